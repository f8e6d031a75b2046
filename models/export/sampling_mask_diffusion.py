"""How an exported model writes; mode=export puts what is below the line into the file of the folder.

Shapes: B sequences, L positions, N positions that get a token, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

# ---- the sampler

_SAMPLE_START, _SAMPLE, _ACTIONS, _TOKENS, _NOISE = 6, 7, 1000, 1001, 1003
_LAST_TIME = 1e-5


def _signed(value: int) -> int:
    return ((value + 2**63) % 2**64) - 2**63


def _spread_bits(x: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014) of int64, which wraps around."""
    for bits, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ ((x >> bits) & ((1 << (64 - bits)) - 1))) * _signed(factor)
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def _key(key: Tensor, data: Tensor | int) -> Tensor:
    """A new key of ``key`` and ``data``."""
    return _spread_bits(
        key + _spread_bits(torch.as_tensor(data, device=key.device) + _signed(0x9E3779B97F4A7C15))
    )


def _bits(keys: Tensor, count: int) -> Tensor:
    """63 random bits, (*keys.shape, count) int64."""
    counter = torch.arange(count, device=keys.device) + _signed(0x9E3779B97F4A7C15)
    mixed = _spread_bits((keys ^ _signed(0xD1B54A32D192ED03))[..., None] + _spread_bits(counter))
    return (mixed >> 1) & (2**63 - 1)


def _uniforms(keys: Tensor, count: int) -> Tensor:
    """Uniform in [0, 1), (*keys.shape, count) float64."""
    return (_bits(keys, count) >> 10).double() * 2.0**-53


def _alpha(schedule: dict[str, Any], t: float) -> Tensor:
    """The part of tokens that are no masks at time t, 0-d float64."""
    time, most = torch.tensor(t, dtype=torch.float64), 1.0 - schedule["eps"]
    if schedule["name"] == "cosine":
        late = 2.0 * torch.sin(math.pi / 4 * (1.0 - most * time)).square()
        return torch.where(time < 0.5, 1.0 - torch.sin(math.pi / 2 * most * time), late)
    return 1.0 - most * time


def _write(
    log_probs_at: Any, ids: Tensor, mask_id: int, steps: int, temperature: float, seed: int,
    schedule: dict[str, Any], noisy: bool, fixed: Tensor,
) -> Tensor:  # fmt: skip
    """Reverse steps of the absorbing process from noise to text; a row depends on (seed, its number) alone.

    Args:
        log_probs_at: (ids (B, L), sigma float, seeds (B, L) or None, where (B, L) bool) -> logits (N, V).
        ids: (B, L) int64, the mask where a token is to be written.
        noisy: whether masks carry a random state.
        fixed: (B, L) bool, positions that are left as they are: padding.
    """
    rows = torch.arange(len(ids), device=ids.device)
    keys = torch.as_tensor(seed, device=ids.device)
    for part in (_SAMPLE, 0):
        keys = _key(keys, part)
    keys = _key(keys, rows)
    length = ids.shape[1]
    seeds = _bits(_key(keys, _SAMPLE_START), length) if noisy else None
    t = 1.0
    for step in range(steps):
        before, after = (1 - (step + n) / steps * (1 - _LAST_TIME) for n in (0, 1))
        s = t * (after / before)
        alpha_t, alpha_s = _alpha(schedule, t), _alpha(schedule, s)
        if step == steps - 1:
            alpha_s = torch.ones_like(alpha_s)
        stay = (1 - alpha_s) / (1 - alpha_t)
        chance = _uniforms(_key(_key(keys, _ACTIONS), step), length)
        masked = (ids == mask_id) & ~fixed
        where = masked & (chance < (1 - stay).to(ids.device))
        if where.any():
            logits = log_probs_at(ids, -float(alpha_t.log()), seeds, where).float()
            logits[:, mask_id] = -1e6
            log_probs = logits.log_softmax(-1)
            if temperature != 1:
                log_probs = (log_probs / temperature).log_softmax(-1)
            row, position = where.nonzero(as_tuple=True)
            height = _uniforms(_key(_key(_key(keys, _TOKENS), step)[row], position), 1)
            ids = ids.clone()
            ids[where] = _draw(log_probs.exp(), height)
        if seeds is not None:
            reset = masked & (chance >= (1 - stay + alpha_t / alpha_s * stay).to(ids.device))
            seeds = torch.where(reset, _bits(_key(_key(keys, _NOISE), step), length), seeds)
        t = s
    return ids


def _draw(probs: Tensor, height: Tensor) -> Tensor:
    """One id (N,) for each row of probs (N, V), by one uniform (N, 1) in float64."""
    cumulative = probs.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    height = torch.minimum(height * total, torch.nextafter(total, torch.zeros_like(total)))
    drawn = torch.searchsorted(cumulative, height, right=True).clamp(max=probs.shape[-1] - 1)
    has_mass = probs.gather(-1, drawn) > 0  # a scan of a GPU need not be monotone to the last bit
    return torch.where(has_mass, drawn, probs.argmax(-1, keepdim=True)).squeeze(-1)


def _start(
    input_ids: Tensor | None, attention_mask: Tensor | None, num_samples: int, length: int, mask_id: int,
    device: Any,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Ids (B, length): what is given, masks behind it; and which positions are seen, None for all."""
    if input_ids is None:
        return torch.full((num_samples, length), mask_id, device=device), None
    given = input_ids.to(device)
    if given.shape[1] > length:
        raise ValueError(f"input_ids has {given.shape[1]} tokens, more than the length {length}")
    ids = torch.full((len(given), length), mask_id, device=device)
    ids[:, : given.shape[1]] = given
    if attention_mask is None:
        return ids, None
    seen = torch.ones_like(ids)
    seen[:, : given.shape[1]] = attention_mask.to(device)
    return ids, seen
