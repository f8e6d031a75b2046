"""The absorbing process: tokens turn into masks one by one; and one step of its reverse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Absorbing:
    """Forward process in which a token is replaced by ``mask_id`` and stays so (MDLM, Sahoo et al. 2024)."""

    mask_id: int

    def corrupt(self, x0: Tensor, alpha_t: Tensor, uniforms: Tensor, keep: Tensor | None = None) -> Tensor:
        """Mask every position independently with probability 1 - alpha_t.

        Args:
            x0: (B, L) int64 clean ids.
            alpha_t: (B,) probability of staying clean.
            uniforms: (B, L) float64 in [0, 1).
            keep: (B, L) bool, positions that are never masked.

        Returns:
            (B, L) int64, the noised ids.
        """
        is_masked = uniforms >= alpha_t.unsqueeze(-1)
        if keep is not None:
            is_masked = is_masked & ~keep
        return x0.masked_fill(is_masked, self.mask_id)

    def corrupt_count(
        self,
        x0: Tensor,
        num_masked: Tensor,
        uniforms: Tensor,
        maskable: Tensor,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Mask exactly ``num_masked`` positions per sequence, every set of that size equally likely.

        The choice is among the N positions that are ``maskable`` and not kept. All other positions that are
        not kept (padding) are masked by an independent coin of probability n/N: the network then sees as many
        masks there as it does when positions are masked by time.

        Args:
            x0: (B, L) int64 clean ids.
            num_masked: (B,) int64 n; where it exceeds N all N are masked.
            uniforms: (B, L) float64 in [0, 1).
            maskable: (B, L) bool.
            keep: (B, L) bool, positions that are never masked.

        Returns:
            (B, L) int64, the noised ids.
        """
        candidate = maskable if keep is None else maskable & ~keep
        order = uniforms.masked_fill(~candidate, 2.0).argsort(dim=-1)
        places = torch.arange(x0.shape[-1], device=x0.device).expand_as(order)
        rank = torch.empty_like(order).scatter_(-1, order, places)
        chosen = rank < num_masked.unsqueeze(-1)
        rate = num_masked.to(torch.float64) / candidate.sum(-1).clamp(min=1)
        is_masked = torch.where(candidate, chosen, uniforms < rate.unsqueeze(-1))
        if keep is not None:
            is_masked = is_masked & ~keep
        return x0.masked_fill(is_masked, self.mask_id)


class ReverseProbabilities(NamedTuple):
    """What happens to a masked position in one reverse step; the three sum to 1. All float64."""

    unmask: Tensor
    keep: Tensor
    reset: Tensor


def reverse_probabilities(alpha_t: Tensor | float, alpha_s: Tensor | float) -> ReverseProbabilities:
    """Probabilities of unmask / stay with the same mask noise / stay with a new one, from t to s < t.

    They do not depend on the network, which only says which token an unmasked position gets. With
    alpha_ts = alpha_t / alpha_s (Infinite Mask Diffusion's posterior):
    unmask (alpha_s - alpha_t)/(1 - alpha_t), keep alpha_ts (1 - alpha_s)/(1 - alpha_t),
    reset (1 - alpha_ts)(1 - alpha_s)/(1 - alpha_t). MDLM's own posterior has keep and reset in one.

    Args:
        alpha_t, alpha_s: broadcastable, 0 < alpha_t <= alpha_s; alpha_s above 1 counts as 1, where
            everything unmasks.
    """
    alpha_t = torch.as_tensor(alpha_t, dtype=torch.float64)
    alpha_s = torch.as_tensor(alpha_s, dtype=torch.float64).clamp(max=1.0)
    # At alpha_s = 1 nothing stays masked, whatever alpha_t: this also settles 0/0 at alpha_t = 1.
    stay = torch.where(alpha_s < 1.0, (1.0 - alpha_s) / (1.0 - alpha_t), 0.0)
    alpha_ts = alpha_t / alpha_s
    return ReverseProbabilities(unmask=1.0 - stay, keep=alpha_ts * stay, reset=(1.0 - alpha_ts) * stay)
