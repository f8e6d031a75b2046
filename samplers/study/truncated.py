"""Draws of tokens with the precision of float32, to study what it does to samples (``sampling.draws``)."""

from __future__ import annotations

from torch import Tensor

from diffusion.gumbel import gumbel_max
from samplers.draws import KeyedDraws


class TruncatedDraws(KeyedDraws):
    """Gumbel-max with Gumbel noise truncated at 16.6355, float32's largest, and otherwise exact: the
    distribution of ``diffusion.gumbel.truncated_distribution``. All other draws are those of
    ``KeyedDraws``."""

    def categorical(self, log_probs: Tensor, keys: Tensor) -> Tensor:
        return gumbel_max(log_probs, keys)


class Float32Draws(KeyedDraws):
    """Gumbel-max with float32 uniforms as generators make them, multiples of 2^-24: truncated at the same
    number, and coarse below it (``diffusion.gumbel.grid_distribution``). This is what codes do that sample
    so in float32; near the limit it keeps more of a rare token than truncation alone."""

    def categorical(self, log_probs: Tensor, keys: Tensor) -> Tensor:
        return gumbel_max(log_probs, keys, on_grid=True)


DRAWS: dict[str, type[KeyedDraws]] = {
    "exact": KeyedDraws,
    "truncated32": TruncatedDraws,
    "float32": Float32Draws,
}
