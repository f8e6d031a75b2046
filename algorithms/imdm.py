"""IMDM: masks that each carry their own random state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from algorithms.mdlm import MDLM
from diffusion.randomness import random_bits
from settings import AlgorithmSettings, UserError, key


@dataclass
class ImdmSettings(AlgorithmSettings):
    """Infinite masks: every mask carries its own random state (ICML 2026, arXiv 2605.10518)."""

    name: str = key("imdm", "the algorithm")
    noise_type: str = key(
        "rand", "U(-1,1), N(0,1), or N(mu, s^2) with trained mu and s", choices=("rand", "randn", "learnable")
    )
    noise_scale: float = key(1.0, "factor on the noise", above=0)
    num_mask: int = key(0, "number of different masks; 0: infinitely many", low=0)
    as_mdlm: bool = key(False, "one plain mask: the single-mask baseline")
    alpha_min: float = key(0.0, "narrows alpha in training, and its derivative with it", low=0, high=1)
    alpha_max: float = key(1.0, "narrows alpha in training, and its derivative with it", low=0, high=1)

    def mask_noise(self) -> dict[str, Any] | None:
        if self.as_mdlm:
            return None
        return {"noise_type": self.noise_type, "noise_scale": self.noise_scale, "num_mask": self.num_mask}

    def validate(self, run: Any) -> None:
        if self.noise_type == "learnable" and self.num_mask > 0:
            hint = "use algo.num_mask=0 or algo.noise_type=rand"
            raise UserError("algo.num_mask", self.num_mask, "a finite alphabet has no learnable noise", hint)
        if self.noise_type == "learnable" and self.noise_scale != 1:
            hint = "use algo.noise_scale=1 or algo.noise_type=randn"
            raise UserError(
                "algo.noise_scale", self.noise_scale, "learnable noise learns its own scale", hint
            )
        if self.alpha_min >= self.alpha_max:
            problem, hint = (
                f"not below algo.alpha_max={self.alpha_max}",
                "give algo.alpha_min < algo.alpha_max",
            )
            raise UserError("algo.alpha_min", self.alpha_min, problem, hint)
        if run.training.mask_sampling == "count" and (self.alpha_min > 0 or self.alpha_max < 1):
            problem = "draws no alpha that algo.alpha_min/alpha_max could narrow"
            raise UserError("training.mask_sampling", "count", problem, "use training.mask_sampling=time")

    def warnings(self, run: Any) -> list[str]:
        resets = run.sampling.fix_eps or run.sampling.mdlm_posterior
        if self.as_mdlm and self.num_mask > 0:
            return ["algo.num_mask has no effect while algo.as_mdlm=True"]
        if not self.as_mdlm and self.num_mask == 1 and not resets:
            return ["algo.num_mask=1 is a single frozen mask, which equals algo=mdlm"]
        return []


class IMDM(MDLM):
    """Infinite Mask Diffusion: every mask carries its own random state (ICML 2026, arXiv 2605.10518).

    ``mask_seeds`` holds one noise seed per position (B, L); the mask embedding turns it into noise.
    """

    Settings: ClassVar[type[AlgorithmSettings]] = ImdmSettings

    def draw_seeds(self, keys: Tensor, length: int) -> Tensor | None:
        return None if self.settings.as_mdlm else random_bits(keys, length)

    def refresh_seeds(self, mask_seeds: Tensor | None, where: Tensor, keys: Tensor) -> Tensor | None:
        return (
            mask_seeds
            if mask_seeds is None
            else torch.where(where, random_bits(keys, where.shape[1]), mask_seeds)
        )

    def alpha_limits(self, training: bool) -> tuple[float, float]:
        """Between which values alpha runs while t runs from 1 to 0."""
        return (self.settings.alpha_min, self.settings.alpha_max) if training else (0.0, 1.0)

    def corrupt(
        self, x0: Tensor, t: Tensor, uniforms: Tensor, loss_mask: Tensor, training: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As any masked model, but with alpha_min + (alpha_max - alpha_min) alpha(t) in alpha's place.

        Its derivative by t, which the NELBO's weight has, shrinks by the same factor.
        """
        low, high = self.alpha_limits(training)
        if (low, high) == (0.0, 1.0):
            return super().corrupt(x0, t, uniforms, loss_mask, training)
        narrowed = self.schedule.inverse(low + (high - low) * self.schedule.alpha(t))
        xt, narrowed, _ = super().corrupt(x0, narrowed, uniforms, loss_mask, training)
        return xt, narrowed, -(high - low) * self.schedule.dalpha(t) / self.schedule.masked(narrowed)
