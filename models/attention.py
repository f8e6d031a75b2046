"""Attention, its one entry point, rotary positions, the cache of keys and values.

Shapes: B batch, L length, H heads, E width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention_backends import (
    FLASH_MODULES,
    choose,
    flash_attention,
    flex_attention,
    plain_attention,
)

# Above this many scores the plain path would keep too much for the backward pass (64 MB a block in bfloat16).
PLAIN_MAX_SCORES = 2**25


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, softcap: float = 0.0, backend: str = "auto"
) -> Tensor:
    """Softmax attention, scale 1/sqrt(E).

    Args:
        q, k, v: (B, H, L, E), any strides; with fewer queries than keys the queries are the last positions.
        causal: position i sees positions up to i only.
        softcap: if positive, the scaled scores s become softcap * tanh(s / softcap).
        backend: see ``models.attention_backends.choose``. The few queries of a cache may go the plain way
            whatever it says: their scores are small.

    Returns:
        (B, H, L, E).
    """
    causal = causal and q.shape[2] > 1  # one query, the last, sees everything
    way = choose(backend, q.device.type, q.dtype, q.shape[3], softcap > 0)
    if way in FLASH_MODULES:
        return flash_attention(q, k, v, causal=causal, softcap=softcap, name=way)
    if way == "flex" and q.shape[2] == k.shape[2]:
        return flex_attention(q, k, v, causal=causal, softcap=softcap)
    # PyTorch's causal mask takes queries for the first positions.
    later = causal and q.shape[2] < k.shape[2]
    if way != "sdpa" or later or (backend == "auto" and _plain_is_faster(q, k)):
        return plain_attention(q, k, v, causal=causal, softcap=softcap)
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


def _plain_is_faster(q: Tensor, k: Tensor) -> bool:
    # In bfloat16 PyTorch's fused CPU kernel takes about 5 times as long as plain products, with its backward.
    small = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] <= PLAIN_MAX_SCORES
    return q.device.type == "cpu" and q.dtype == torch.bfloat16 and small


class Rotary(nn.Module):
    """Rotary positions (Su et al., arXiv 2104.09864): base 10000, the two halves of a head form the pairs.

    Args:
        head_dim: E, even.
        length: positions that tables are made for at first.
    """

    inv_freq: Tensor

    def __init__(self, head_dim: int, length: int) -> None:
        super().__init__()
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        self.register_buffer("inv_freq", 1.0 / 10000.0**exponents)
        self.length = length
        self._tables: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}

    def forward(self, length: int, dtype: torch.dtype, start: int = 0) -> tuple[Tensor, Tensor]:
        """Tables (cos, sin), each (L - start, 1, 1, E), of positions start..L-1; sin is negative in the first
        half.

        They are made in float32, once per dtype and device (again only for a greater length).
        """
        key = (dtype, self.inv_freq.device)
        if length > self.length:
            self.length = length
            self._tables.clear()
        if key not in self._tables:
            self._tables[key] = self._make_tables(self.length, dtype)
        cos, sin = self._tables[key]
        return cos[start:length], sin[start:length]

    def _make_tables(self, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        # Not in inference mode: its tensors could not be saved for a later backward pass.
        with torch.inference_mode(False):
            positions = torch.arange(length, device=self.inv_freq.device, dtype=torch.float32)
            angles = torch.outer(positions, self.inv_freq.clone())[:, None, None, :]
            cos, sin = angles.cos(), angles.sin()
            return torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype)


class KeyValues:
    """The keys and values of a causal block at the positions it has seen, so that none is computed twice.

    Args:
        capacity: the most positions there will be; memory for all of them is taken at the first call.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0  # positions seen
        self._memory: Tensor | None = None

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Remember k and v (B, H, n, E) of the next n positions; return those of all positions so far."""
        end = self.length + k.shape[2]
        assert end <= self.capacity, "more positions than the cache was made for"
        if self._memory is None:
            self._memory = k.new_empty((2, *k.shape[:2], self.capacity, k.shape[3]))
        self._memory[0, :, :, self.length : end] = k
        self._memory[1, :, :, self.length : end] = v
        self.length = end
        return self._memory[0, :, :, :end], self._memory[1, :, :, :end]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn pairs (x_j, x_{j+E/2}) of ``x`` (..., E) by the angles of ``Rotary``'s tables."""
    return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), sin)


def rotate_qkv(qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split (B, L, 3, H, E) into q, k, v of shape (B, H, L, E), with q and k rotated."""
    return _RotateQKV.apply(qkv, cos, sin)


class _RotateQKV(torch.autograd.Function):
    """Saves what autograd would do: a copy for each split and a product for each half of a head."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        q, k = rotate(qkv[:, :, :2], cos, sin).transpose(1, 3).unbind(2)
        return q, k, qkv[:, :, 2].transpose(1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        grad = torch.stack([g.transpose(1, 2) for g in grads], 2)
        # The inverse of a rotation turns by the negative angle.
        grad[:, :, :2] = rotate(grad[:, :, :2], cos, -sin)
        return grad, None, None
