"""IMDM: masks that each carry their own random state."""

from __future__ import annotations

import torch
from torch import Tensor

from algorithms.mdlm import MDLM
from diffusion.randomness import random_bits
from models.dit import MaskNoiseConfig


class IMDM(MDLM):
    """Infinite Mask Diffusion: every mask carries its own random state (ICML 2026).

    ``cond`` holds one noise seed per position (B, L); the mask embedding turns it into noise.
    """

    def mask_noise_config(self) -> MaskNoiseConfig | None:
        algo = self.config.algo
        if algo.as_mdlm:
            return None
        noise_dim = self.config.model.noise_dim or self.config.model.hidden_size
        return MaskNoiseConfig(algo.noise_type, noise_dim, algo.noise_scale, algo.num_mask)

    def draw_cond(self, keys: Tensor, length: int) -> Tensor | None:
        return None if self.config.algo.as_mdlm else random_bits(keys, length)

    def refresh_cond(self, cond: Tensor | None, where: Tensor, keys: Tensor) -> Tensor | None:
        return cond if cond is None else torch.where(where, random_bits(keys, where.shape[1]), cond)

    def times(self, keys: Tensor, rows: Tensor, num_rows: int, training: bool) -> Tensor:
        t, algo = super().times(keys, rows, num_rows, training), self.config.algo
        if not training or (algo.alpha_min, algo.alpha_max) == (0.0, 1.0):
            return t
        return self.schedule.inverse(
            algo.alpha_min + (algo.alpha_max - algo.alpha_min) * self.schedule.alpha(t)
        )
