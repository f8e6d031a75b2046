"""D3PM: masked diffusion in discrete time, by a law over all ids."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from algorithms.mdlm import MDLM
from diffusion.d3pm import MeanPrediction, discrete_bound, posterior
from diffusion.objectives import LossOutput
from models.dit import DiT


class D3PMAbsorb(MDLM):
    """Discrete denoising diffusion, absorbing, in ``algo.T`` steps (Austin et al., 2021, arXiv 2107.03006).

    The loss asks the network twice: about the noised text, and about the text itself, which it has to copy.
    Samples come from the reverse process that the loss is about; other samplers of masked models read the
    law of the tokens without the mask as x_theta (see ``diffusion.d3pm``).
    """

    default_predictor: ClassVar[str] = "analytic"

    def denoise_by(self, backbone: DiT, xt: Tensor, sigma: Tensor, cond: Tensor | None) -> MeanPrediction:
        features = backbone.body(xt, sigma if self.config.algo.time_conditioning else None, cond)
        head = backbone.head
        return MeanPrediction(
            features, head.weight, head.bias, xt, self.mask_id, sigma, dtype=self.loss_dtype
        )

    def loss(self, batch: dict[str, Tensor], *, step: int, num_rows: int, training: bool) -> LossOutput:
        noised, num_times = self.noised(batch, step, num_rows, training), self.config.algo.T
        # sigma is that of one of T times: which of them is known exactly.
        index = (self.schedule.inverse(torch.exp(-noised.sigma)) * num_times).round()
        return discrete_bound(
            self.denoise(noised.xt, noised.sigma, noised.cond),
            self.denoise(noised.x0, torch.zeros_like(noised.sigma), noised.cond),
            noised.x0,
            posterior(self.schedule, index / num_times, num_times, self.config.algo.posterior),
            num_times,
            noised.loss_mask,
            self.num_tokens(batch, noised.loss_mask),
        )
