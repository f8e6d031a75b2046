"""MDLM: masked diffusion with a single deterministic mask, the base of all masked algorithms."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffusion.objectives import LossOutput, count_weight, masked_nelbo
from diffusion.parameterization import Prediction
from diffusion.randomness import Stream, row_keys, uniform
from diffusion.time_sampling import mask_counts, spread_rows, training_times
from models.dit import DiT
from trainer_base import TrainerBase

TRAIN_STREAMS = (Stream.TRAIN_TIME, Stream.TRAIN_MASK, Stream.TRAIN_NOISE)
VALID_STREAMS = (Stream.VALID_TIME, Stream.VALID_MASK, Stream.VALID_NOISE)


class Noised(NamedTuple):
    """A batch and its noise: ids x0 and xt (B, L), the times t (B,), the NELBO's weight (B,), sigma (B,), the
    masks' noise ``cond`` or None, and the tokens that count, ``loss_mask`` (B, L) bool."""

    x0: Tensor
    xt: Tensor
    t: Tensor
    weight: Tensor
    sigma: Tensor
    cond: Tensor | None
    loss_mask: Tensor


class MDLM(TrainerBase):
    """Masked diffusion with the SUBS parameterization (Sahoo et al., 2024, arXiv 2406.07524)."""

    def denoise(self, xt: Tensor, sigma: Tensor, cond: Tensor | None = None) -> Prediction:
        return self.denoise_by(self.backbone, xt, sigma, cond)

    def denoise_by(self, backbone: DiT, xt: Tensor, sigma: Tensor, cond: Tensor | None) -> Prediction:
        """What another network of the same shape, such as a teacher, says: see ``denoise``."""
        features = backbone.body(xt, sigma if self.config.algo.time_conditioning else None, cond)
        return self.read(features, backbone.head, xt, sigma)

    def read(self, features: Tensor, head: nn.Linear, xt: Tensor, sigma: Tensor) -> Prediction:
        """What the features (B, L, D) in front of a head mean at ids xt (B, L) and sigma (B,)."""
        return Prediction(features, head.weight, head.bias, xt, self.mask_id, dtype=self.loss_dtype)

    def loss(self, batch: dict[str, Tensor], *, step: int, num_rows: int, training: bool) -> LossOutput:
        x0, xt, _, weight, sigma, cond, loss_mask = self.noised(batch, step, num_rows, training)
        low_var = training and self.config.training.loss_type == "low_var"
        return masked_nelbo(
            self.denoise(xt, sigma, cond),
            x0,
            xt,
            self.mask_id,
            weight,
            loss_mask,
            self.num_tokens(batch, loss_mask),
            loss_weight=torch.ones_like(weight) if low_var else None,
        )

    def noised(self, batch: dict[str, Tensor], step: int, num_rows: int, training: bool) -> Noised:
        """The batch at the times of this step, with the mask noise that the network is to see."""
        x0, rows = batch["input_ids"], batch["row"]
        loss_mask = batch["attention_mask"].clone()
        if self.config.training.ignore_bos:
            loss_mask[:, 0] = False
        streams = TRAIN_STREAMS if training else VALID_STREAMS
        time_keys, mask_keys, noise_keys = (row_keys(self.config.seed, s, step, rows) for s in streams)
        t = self.times(time_keys, rows, num_rows, training)
        xt, t, weight = self.corrupt(x0, t, uniform(mask_keys, x0.shape[1]), loss_mask, training)
        cond = self.draw_cond(noise_keys, x0.shape[1])
        return Noised(x0, xt, t, weight, self.schedule.sigma(t), cond, loss_mask)

    def by_count(self, training: bool) -> bool:
        """Whether noise is drawn as a number of masks (Zheng et al., arXiv 2409.02908) instead of a time."""
        return (self.config.training.mask_sampling if training else self.config.eval.nelbo) == "count"

    def times(self, keys: Tensor, rows: Tensor, num_rows: int, training: bool) -> Tensor:
        """Diffusion times (B,), stratified over the global batch, or over the whole validation set."""
        settings = self.config.training
        # Neighbouring rows of a validation set are alike: their strata are spread, lest time follow text.
        strata = rows if training else spread_rows(rows, num_rows)
        sampling_eps = 0.0 if self.by_count(training) else settings.sampling_eps
        return training_times(
            keys,
            strata,
            num_rows,
            sampling_eps=sampling_eps,
            antithetic=settings.antithetic_sampling,
            num_quanta=self.num_times(),
        )

    def num_times(self) -> int:
        """Into how many times that of training is quantised; 0: it is continuous."""
        return 0

    def corrupt(
        self, x0: Tensor, t: Tensor, uniforms: Tensor, loss_mask: Tensor, training: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Noised ids xt (B, L), the times t (B,) that they have, and each row's weight in the NELBO (B,)."""
        keep = None
        if self.config.training.ignore_bos:
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
