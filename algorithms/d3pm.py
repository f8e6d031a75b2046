"""D3PM: masked diffusion in discrete time, by a distribution over all ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from algorithms.mdlm import MDLM
from algorithms.objective import Context, num_tokens
from diffusion.backbone import Backbone
from diffusion.d3pm import MeanPrediction, discrete_bound, posterior
from diffusion.objectives import LossOutput
from settings import AlgorithmSettings, ForwardProfile, UserError, key


@dataclass
class D3pmSettings(AlgorithmSettings):
    """Masked diffusion in discrete time (Austin et al., 2021, arXiv 2107.03006)."""

    name: str = key("d3pm", "the algorithm")
    time_conditioning: bool = key(True, "let the network see the noise level")
    T: int = key(1000, "number of discrete times", low=1)
    posterior: str = key(
        "exact",
        "the reverse step in the loss; official: as in the code of the published numbers, with alpha_s off",
        choices=("exact", "official"),
    )

    default_predictor: ClassVar[str] = "analytic"

    def profile(self) -> ForwardProfile:
        return ForwardProfile(everywhere=True, chunks=3, passes=2)

    def validate(self, run: Any) -> None:
        what = f"the loss of algo={self.name} is a sum over algo.T={self.T} times"
        if run.training.loss_type == "low_var":
            raise UserError("training.loss_type", "low_var", what, "use training.loss_type=nelbo")
        if run.training.mask_sampling == "count":
            raise UserError("training.mask_sampling", "count", what, "use training.mask_sampling=time")
        if run.eval.nelbo == "count":
            raise UserError("eval.nelbo", "count", what, "use eval.nelbo=time")
        if self.posterior == "official" and run.noise.name != "log-linear":
            problem = f"holds for noise=log-linear alone, not for noise={run.noise.name}"
            raise UserError("algo.posterior", "official", problem, "use algo.posterior=exact")

    def warnings(self, run: Any) -> list[str]:
        if run.mode == "train" and run.training.sampling_eps != 1e-3:
            return [f"training.sampling_eps has no effect with algo.T={self.T} discrete times"]
        return []


class D3PMAbsorb(MDLM):
    """Discrete denoising diffusion, absorbing, in ``algo.T`` steps (Austin et al., 2021, arXiv 2107.03006).

    The loss asks the network twice: about the noised text, and about the text itself, which it has to copy.
    Samples come from the reverse process that the loss is about; other samplers of masked models read the
    distribution of the tokens without the mask as x_theta (see ``diffusion.d3pm``).
    """

    Settings: ClassVar[type[AlgorithmSettings]] = D3pmSettings

    def __init__(self, settings: Any, context: Context) -> None:
        super().__init__(settings, context)
        self.num_times = self.settings.T

    def read(self, features: Tensor, head: Any, xt: Tensor, sigma: Tensor) -> MeanPrediction:
        return MeanPrediction(
            features, head.weight, head.bias, xt, self.mask_id, sigma, dtype=self.context.dtype
        )

    def loss(
        self, backbone: Backbone, batch: dict[str, Tensor], *, step: int, num_rows: int, training: bool
    ) -> LossOutput:
        noised = self.noised(batch, step, num_rows, training)
        return discrete_bound(
            self.denoise(backbone, noised.xt, noised.sigma, noised.mask_seeds),
            self.denoise(backbone, noised.x0, torch.zeros_like(noised.sigma), noised.mask_seeds),
            noised.x0,
            posterior(self.schedule, noised.t, self.num_times, self.settings.posterior),
            self.num_times,
            noised.loss_mask,
            num_tokens(batch, noised.loss_mask),
        )
