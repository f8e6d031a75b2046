"""Seeded mask noise: a pure function of (seed, position, channel), equal on every device and batch layout.

It is the hash of the official Infinite Mask Diffusion code: stored reflow pairs replay their noise by it.
Shapes: N positions, C = noise_dim channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

NOISE_KINDS = ("rand", "randn", "learnable")

_M1 = 0xD251125F
_M2 = 0xCD9E8D57
_SECOND_OFFSET = 12345
# Values hashed at a time: enough for two threads on CPU, few enough that the int64 temporaries stay in cache.
_CPU_CHUNK = 2**17
_DEVICE_CHUNK = 2**24


@torch.no_grad()
def seeded_noise(seeds: Tensor, positions: Tensor, noise_dim: int, kind: str) -> Tensor:
    """Noise of N positions.

    Args:
        seeds: (N,) int64, one for each position (the same for all of a sequence in stored reflow pairs).
        positions: (N,) int64, each one's place in its sequence.
        noise_dim: C, channels.
        kind: "rand" for U(-1, 1), "randn" for N(0, 1).

    Returns:
        (N, C) float32.
    """
    noise = torch.empty(seeds.shape[0], noise_dim, dtype=torch.float32, device=seeds.device)
    channels = torch.arange(noise_dim, device=seeds.device)
    chunk = _CPU_CHUNK if seeds.device.type == "cpu" else _DEVICE_CHUNK
    rows = max(1, chunk // noise_dim)
    for start in range(0, seeds.shape[0], rows):
        part = slice(start, start + rows)
        seed, out = seeds[part, None], noise[part]
        index = positions[part, None] * noise_dim + channels
        first = _first_uniform(seed, index, out)
        if kind == "rand":
            first.mul_(2).sub_(1)
        else:
            angle = _second_uniform(seed, index).clamp_(min=1e-8).mul_(2 * math.pi)
            first.clamp_(min=1e-8).log_().mul_(-2).sqrt_().mul_(angle.cos_())
    return noise


@torch.no_grad()
def finite_mask_ids(seeds: Tensor, positions: Tensor, noise_dim: int, num_mask: int) -> Tensor:
    """Which of K = ``num_mask`` masks N positions hold, (N,) int64 in 0..K-1: channel 0 of their noise."""
    uniforms = torch.empty(seeds.shape, dtype=torch.float32, device=seeds.device)
    _first_uniform(seeds, positions * noise_dim, uniforms)
    # In float32 the first clamp does nothing for large K, hence the second.
    return uniforms.mul_(num_mask).clamp_(0, num_mask - 1e-5).long().clamp_(max=num_mask - 1)


def _first_uniform(seed: Tensor, index: Tensor, out: Tensor) -> Tensor:
    state = (index * _M2).bitwise_xor_(seed * _M1)
    return out.copy_(_mix(state, _M1, _M2)).mul_(2.0**-32)


def _second_uniform(seed: Tensor, index: Tensor) -> Tensor:
    """Uses up ``index``."""
    state = index.add_(_SECOND_OFFSET).mul_(_M1).bitwise_xor_(seed * _M2)
    return _mix(state, _M2, _M1).float().mul_(2.0**-32)


def _mix(state: Tensor, first: int, second: int) -> Tensor:
    """32 well mixed bits of int64 ``state``, in place; products wrap, shifts keep the sign."""
    shifted = torch.empty_like(state)
    torch.bitwise_right_shift(state, 15, out=shifted)
    state.bitwise_xor_(shifted).mul_(first)
    torch.bitwise_right_shift(state, 13, out=shifted)
    state.bitwise_xor_(shifted).mul_(second)
    torch.bitwise_right_shift(state, 16, out=shifted)
    return state.bitwise_xor_(shifted).bitwise_and_(0xFFFFFFFF)
