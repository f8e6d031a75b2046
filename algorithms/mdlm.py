"""MDLM: masked diffusion with a single deterministic mask, the base of all masked algorithms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from algorithms.objective import Context, Objective, num_tokens
from diffusion.backbone import Backbone
from diffusion.objectives import LossOutput, count_weight, masked_nelbo
from diffusion.parameterization import Prediction
from diffusion.process import Absorbing
from diffusion.randomness import Stream, row_keys, uniform
from diffusion.time_sampling import mask_counts, spread_rows, training_times
from diffusion.uniform import Uniform
from settings import AlgorithmSettings, key

TRAIN_STREAMS = (Stream.TRAIN_TIME, Stream.TRAIN_MASK, Stream.TRAIN_NOISE)
VALID_STREAMS = (Stream.VALID_TIME, Stream.VALID_MASK, Stream.VALID_NOISE)


@dataclass
class MdlmSettings(AlgorithmSettings):
    """Masked diffusion with a single deterministic mask (Sahoo et al., 2024, arXiv 2406.07524)."""

    name: str = key("mdlm", "the algorithm")


class Noised(NamedTuple):
    """A batch and its noise: ids x0 and xt (B, L), the times t (B,), the NELBO's weight (B,), sigma (B,), the
    masks' noise ``mask_seeds`` or None, and the tokens that count, ``loss_mask`` (B, L) bool."""

    x0: Tensor
    xt: Tensor
    t: Tensor
    weight: Tensor
    sigma: Tensor
    mask_seeds: Tensor | None
    loss_mask: Tensor


class MDLM(Objective):
    """Masked diffusion with the SUBS parameterization (Sahoo et al., 2024, arXiv 2406.07524)."""

    Settings: ClassVar[type[AlgorithmSettings]] = MdlmSettings
    num_times: int = 0  # into how many times that of training is quantised; 0: it is continuous

    def __init__(self, settings: Any, context: Context) -> None:
        super().__init__(settings, context)
        self.process: Absorbing | Uniform = Absorbing(self.mask_id)

    def denoise(
        self, backbone: Backbone, xt: Tensor, sigma: Tensor, mask_seeds: Tensor | None = None
    ) -> Prediction:
        features = backbone.body(xt, sigma if self.settings.time_conditioning else None, mask_seeds)
        return self.read(features, backbone.head, xt, sigma)

    def read(self, features: Tensor, head: Any, xt: Tensor, sigma: Tensor) -> Prediction:
        """What the features (B, L, D) in front of a head mean at ids xt (B, L) and sigma (B,)."""
        return Prediction(features, head.weight, head.bias, xt, self.mask_id, dtype=self.context.dtype)

    def loss(
        self, backbone: Backbone, batch: dict[str, Tensor], *, step: int, num_rows: int, training: bool
    ) -> LossOutput:
        x0, xt, _, weight, sigma, mask_seeds, loss_mask = self.noised(batch, step, num_rows, training)
        low_variance = training and self.context.low_variance
        return masked_nelbo(
            self.denoise(backbone, xt, sigma, mask_seeds),
            x0,
            xt,
            self.mask_id,
            weight,
            loss_mask,
            num_tokens(batch, loss_mask),
            loss_weight=torch.ones_like(weight) if low_variance else None,
        )

    # The noise of a batch -------------------------------------------------------------------------

    def noised(self, batch: dict[str, Tensor], step: int, num_rows: int, training: bool) -> Noised:
        """The batch at the times of this step, with the mask noise that the network is to see."""
        x0, rows = batch["input_ids"], batch["row"]
        loss_mask = batch["attention_mask"].clone()
        if self.context.ignore_bos:
            loss_mask[:, 0] = False
        streams = TRAIN_STREAMS if training else VALID_STREAMS
        time_keys, mask_keys, noise_keys = (row_keys(self.context.seed, s, step, rows) for s in streams)
        t = self.times(time_keys, rows, num_rows, training)
        xt, t, weight = self.corrupt(x0, t, uniform(mask_keys, x0.shape[1]), loss_mask, training)
        mask_seeds = self.draw_seeds(noise_keys, x0.shape[1])
        return Noised(x0, xt, t, weight, self.schedule.sigma(t), mask_seeds, loss_mask)

    def by_count(self, training: bool) -> bool:
        """Whether noise is drawn as a number of masks (Zheng et al., arXiv 2409.02908) instead of a time."""
        return self.context.train_by_count if training else self.context.valid_by_count

    def times(self, keys: Tensor, rows: Tensor, num_rows: int, training: bool) -> Tensor:
        """Diffusion times (B,), stratified over the global batch, or over the whole validation set."""
        # Neighbouring rows of a validation set are alike: their strata are spread, so that time does not
        # follow text.
        strata = rows if training else spread_rows(rows, num_rows)
        return training_times(
            keys,
            strata,
            num_rows,
            sampling_eps=0.0 if self.by_count(training) else self.context.sampling_eps,
            antithetic=self.context.antithetic,
            num_quanta=self.num_times,
        )

    def corrupt(
        self, x0: Tensor, t: Tensor, uniforms: Tensor, loss_mask: Tensor, training: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Noised ids xt (B, L), the times t (B,) that they have, and each row's weight in the NELBO (B,)."""
        keep = None
        if self.context.ignore_bos:
            keep = torch.zeros_like(loss_mask)
            keep[:, 0] = True
        if self.by_count(training):
            num_masked = mask_counts(t, loss_mask)
            xt = self.process.corrupt_count(x0, num_masked, uniforms, loss_mask, keep)
            clean_share = 1 - num_masked / loss_mask.sum(-1).clamp(min=1).double()
            t = self.schedule.inverse(clean_share).clamp(max=1)
            return xt, t, count_weight(num_masked, loss_mask)
        xt = self.process.corrupt(x0, self.schedule.alpha(t), uniforms, keep)
        return xt, t, self.schedule.weight(t)
