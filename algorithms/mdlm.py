"""MDLM: masked diffusion with a single deterministic mask, the base of all masked algorithms."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion.objectives import LossOutput, count_weight, masked_nelbo
from diffusion.parameterization import Prediction
from diffusion.randomness import Stream, row_keys, uniform
from diffusion.time_sampling import mask_counts, spread_rows, training_times
from trainer_base import TrainerBase

TRAIN_STREAMS = (Stream.TRAIN_TIME, Stream.TRAIN_MASK, Stream.TRAIN_NOISE)
VALID_STREAMS = (Stream.VALID_TIME, Stream.VALID_MASK, Stream.VALID_NOISE)


class MDLM(TrainerBase):
    """Masked diffusion with the SUBS parameterization (Sahoo et al., 2024, arXiv 2406.07524)."""

    def denoise(self, xt: Tensor, sigma: Tensor, cond: Tensor | None = None) -> Prediction:
        features = self.backbone.body(xt, sigma if self.config.algo.time_conditioning else None, cond)
        head = self.backbone.head
        return Prediction(features, head.weight, head.bias, xt, self.mask_id, dtype=self.loss_dtype)

    @property
    def loss_dtype(self) -> torch.dtype:
        """Losses are in float32 or better, whatever the network computes in."""
        return torch.float64 if self.config.training.loss_precision == "float64" else torch.float32

    def loss(self, batch: dict[str, Tensor], *, step: int, num_rows: int, training: bool) -> LossOutput:
        x0, rows = batch["input_ids"], batch["row"]
        loss_mask = batch["attention_mask"].clone()
        if self.config.training.ignore_bos:
            loss_mask[:, 0] = False
        streams = TRAIN_STREAMS if training else VALID_STREAMS
        time_keys, mask_keys, noise_keys = (row_keys(self.config.seed, s, step, rows) for s in streams)
        t = self.times(time_keys, rows, num_rows, training)
        xt, weight, sigma = self.corrupt(x0, t, uniform(mask_keys, x0.shape[1]), loss_mask, training)
        prediction = self.denoise(xt, sigma, self.draw_cond(noise_keys, x0.shape[1]))
        low_var = training and self.config.training.loss_type == "low_var"
        return masked_nelbo(
            prediction,
            x0,
            xt,
            self.mask_id,
            weight,
            loss_mask,
            loss_mask.sum().clamp(min=1),
            loss_weight=torch.ones_like(weight) if low_var else None,
        )

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
            keys, strata, num_rows, sampling_eps=sampling_eps, antithetic=settings.antithetic_sampling
        )

    def corrupt(
        self, x0: Tensor, t: Tensor, uniforms: Tensor, loss_mask: Tensor, training: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Noised ids xt (B, L), the weight of each row's log-likelihoods (B,), and sigma (B,)."""
        keep = None
        if self.config.training.ignore_bos:
            keep = torch.zeros_like(loss_mask)
            keep[:, 0] = True
        if self.by_count(training):
            num_masked = mask_counts(t, loss_mask)
            xt = self.process.corrupt_count(x0, num_masked, uniforms, loss_mask, keep)
            clean_share = 1 - num_masked / loss_mask.sum(-1).clamp(min=1).double()
            t = self.schedule.inverse(clean_share).clamp(max=1)
            return xt, count_weight(num_masked, loss_mask), self.schedule.sigma(t)
        xt = self.process.corrupt(x0, self.schedule.alpha(t), uniforms, keep)
        return xt, self.schedule.weight(t), self.schedule.sigma(t)
