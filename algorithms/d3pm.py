"""D3PM: masked diffusion in discrete time, by a law over all ids."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from algorithms.mdlm import MDLM
from diffusion.d3pm import MeanPrediction, discrete_bound, posterior
from diffusion.objectives import LossOutput


class D3PMAbsorb(MDLM):
    """Discrete denoising diffusion, absorbing, in ``algo.T`` steps (Austin et al., 2021, arXiv 2107.03006).

    The loss asks the network twice: about the noised text, and about the text itself, which it has to copy.
    Samples come from the reverse process that the loss is about; other samplers of masked models read the
    law of the tokens without the mask as x_theta (see ``diffusion.d3pm``).
    """

    default_predictor: ClassVar[str] = "analytic"

    def num_times(self) -> int:
        return self.config.algo.T

    def read(self, features: Tensor, head: nn.Linear, xt: Tensor, sigma: Tensor) -> MeanPrediction:
        return MeanPrediction(
            features, head.weight, head.bias, xt, self.mask_id, sigma, dtype=self.loss_dtype
        )

    def loss(self, batch: dict[str, Tensor], *, step: int, num_rows: int, training: bool) -> LossOutput:
        noised = self.noised(batch, step, num_rows, training)
        return discrete_bound(
            self.denoise(noised.xt, noised.sigma, noised.cond),
            self.denoise(noised.x0, torch.zeros_like(noised.sigma), noised.cond),
            noised.x0,
            posterior(self.schedule, noised.t, self.num_times(), self.config.algo.posterior),
            self.num_times(),
            noised.loss_mask,
            self.num_tokens(batch, noised.loss_mask),
        )
