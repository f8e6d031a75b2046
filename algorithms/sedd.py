"""SEDD: masked diffusion by the score, ratios of probabilities instead of probabilities."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from algorithms.mdlm import MDLM
from diffusion.score_entropy import Score


class SEDDAbsorb(MDLM):
    """Score entropy discrete diffusion, absorbing (Lou et al., 2024, arXiv 2310.16834).

    Noise, times and the weights of the NELBO are MDLM's; the loss at a masked position is the score entropy
    in place of the cross-entropy (see ``diffusion.score_entropy``). Samples are written by the score; other
    samplers of masked models read the normalised score as x_theta.
    """

    default_predictor: ClassVar[str] = "analytic"

    def read(self, features: Tensor, head: nn.Linear, xt: Tensor, sigma: Tensor) -> Score:
        return Score(features, head.weight, head.bias, xt, self.mask_id, sigma, dtype=self.loss_dtype)
