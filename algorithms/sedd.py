"""SEDD: masked diffusion by the score, ratios of probabilities instead of probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from algorithms.mdlm import MDLM
from diffusion.score_entropy import Score
from settings import AlgorithmSettings, ForwardProfile, key


@dataclass
class SeddSettings(AlgorithmSettings):
    """Masked diffusion by score entropy (Lou et al., 2024, arXiv 2310.16834)."""

    name: str = key("sedd", "the algorithm")
    time_conditioning: bool = key(True, "let the network see the noise level")

    default_predictor: ClassVar[str] = "analytic"

    def profile(self) -> ForwardProfile:
        return ForwardProfile(chunks=3)


class SEDDAbsorb(MDLM):
    """Score entropy discrete diffusion, absorbing (Lou et al., 2024, arXiv 2310.16834).

    Noise, times and the weights of the NELBO are MDLM's; the loss at a masked position is the score entropy
    in place of the cross-entropy (see ``diffusion.score_entropy``). Samples are written by the score; other
    samplers of masked models read the normalised score as x_theta.
    """

    Settings: ClassVar[type[AlgorithmSettings]] = SeddSettings

    def read(self, features: Tensor, head: Any, xt: Tensor, sigma: Tensor) -> Score:
        return Score(features, head.weight, head.bias, xt, self.mask_id, sigma, dtype=self.context.dtype)
