"""Counter-based random numbers: every draw is a pure function of (key, index).

A key is an int64. New keys are made from old ones by ``fold_in``; numbers are read off a key by
``random_bits`` and ``uniform``. There is no state, so the same numbers come out on every device, in every
batch layout and with any number of processes. The arithmetic is that of SplitMix64 (Steele, Lea and
Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014): 64-bit integers that wrap around.
"""

from __future__ import annotations

import math
from enum import IntEnum

import torch
from torch import Tensor


class Stream(IntEnum):
    """What a family of random numbers is for. Values are part of the recorded seeds: never renumber."""

    TRAIN_TIME = 0
    TRAIN_MASK = 1
    TRAIN_NOISE = 2
    VALID_TIME = 3
    VALID_MASK = 4
    VALID_NOISE = 5
    SAMPLE_START = 6
    SAMPLE = 7
    DROPOUT = 8
    DATA_ORDER = 9
    REFLOW = 10
    TRAIN_TEACHER = 11
    VALID_TEACHER = 12
    SCHEDULE = 13


def _signed(value: int) -> int:
    """The int64 with the same low 64 bits as ``value``."""
    return ((value + 2**63) % 2**64) - 2**63


_GOLDEN = _signed(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio, odd
_MULTIPLIER_1 = _signed(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = _signed(0x94D049BB133111EB)
# Numbers and keys derived from one key come from different functions: none repeats the other's bits.
_DRAW_DOMAIN = _signed(0xD1B54A32D192ED03)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64; torch's own shift copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser: a bijection of 64 bits in which every input bit moves every output bit."""
    x = (x ^ _shift_right(x, 30)) * _MULTIPLIER_1
    x = (x ^ _shift_right(x, 27)) * _MULTIPLIER_2
    return x ^ _shift_right(x, 31)


def _int64(value: Tensor | int) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(torch.int64)
    return torch.tensor(_signed(int(value)), dtype=torch.int64)


def fold_in(key: Tensor | int, data: Tensor | int) -> Tensor:
    """A new key made of ``key`` and ``data``, as good as independent of both and of every other pair.

    Args:
        key, data: integers or integer tensors whose shapes broadcast.

    Returns:
        int64 tensor of the broadcast shape.
    """
    return _mix(_int64(key) + _mix(_int64(data) + _GOLDEN))


def row_keys(seed: int, stream: int, step: int, rows: Tensor) -> Tensor:
    """One key per row, (B,) int64.

    Args:
        seed: of the run.
        stream: what the numbers are for, a ``Stream``.
        step: the optimizer step, or whatever counts batches.
        rows: (B,) int64, the rows' numbers in the global batch.
    """
    return fold_in(fold_in(fold_in(seed, int(stream)), step), rows)


def random_bits(keys: Tensor, n: int) -> Tensor:
    """63 random bits as non-negative int64, shape (*keys.shape, n); entry i depends on (key, i) alone."""
    counter = torch.arange(n, dtype=torch.int64, device=keys.device)
    mixed = _mix((_int64(keys) ^ _DRAW_DOMAIN).unsqueeze(-1) + _mix(counter + _GOLDEN))
    return _shift_right(mixed, 1)


def uniform(keys: Tensor, n: int) -> Tensor:
    """U[0, 1) in float64 with 53 random bits, shape (*keys.shape, n); entry i depends on (key, i) alone."""
    return (random_bits(keys, n) >> 10).to(torch.float64) * 2.0**-53


def normal(keys: Tensor, n: int) -> Tensor:
    """N(0, 1) in float32 by Box-Muller, shape (*keys.shape, n); it depends on the keys and n alone.

    Two numbers come from one word, with 31 bits of it for the radius: none lies beyond 6.6.
    """
    bits = random_bits(keys, (n + 1) // 2)
    radius = ((bits >> 32) + 1).to(torch.float32).mul_(2.0**-31).log_().mul_(-2).clamp_(min=0).sqrt_()
    angle = (bits & 0xFFFFFFFF).to(torch.float32).mul_(2 * math.pi * 2.0**-32)
    return torch.cat((radius * angle.cos(), radius * angle.sin_()), -1)[..., :n]
