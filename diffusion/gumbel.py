"""Gumbel-max with coarse uniforms, for study: which distribution it draws from, and what it loses.

Gumbel noise -log(-log u) of float32 uniforms is at most M = 16.6355, because u <= 1 - 2^-24 (Zheng et al.,
arXiv 2409.02908, section 4). Rare symbols then rarely win, and likely ones gain. Nothing here is used unless
``sampling.draws`` asks for it; ``diffusion.categorical`` draws exactly.

Shapes: N rows, V symbols, G groups of equally likely symbols.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffusion.randomness import uniform

BITS = 24  # of a float32 uniform
_LOWEST = 1e-10  # of a uniform: keeps its logarithms finite (the value that implementations of MDLM use)
_CHUNK_ELEMENTS = 2**20  # Gumbel numbers at once
_SINGLE_LEVELS = 2**10  # levels of the grid that grid_distribution takes one by one


def gumbel_max(log_probs: Tensor, keys: Tensor, *, bits: int = BITS, on_grid: bool = False) -> Tensor:
    """argmax of log-probabilities plus Gumbel noise whose uniforms stay at or below 1 - 2^-bits.

    Args:
        log_probs: (N, V) float; each row must have mass.
        keys: (N,) int64, one a row (``diffusion.randomness``).
        on_grid: uniforms are multiples of 2^-bits, which is what float32 ones are; otherwise they are as fine
            as float64, and only the largest are missing, which is what ``truncated_distribution``
            describes. Both are
            made from the same numbers, so that draws differ only where precision makes a difference.

    Returns:
        (N,) int64.
    """
    num_rows, vocab_size = log_probs.shape
    drawn = torch.empty(num_rows, dtype=torch.int64, device=log_probs.device)
    size = max(1, _CHUNK_ELEMENTS // vocab_size)
    for start in range(0, num_rows, size):
        part = slice(start, start + size)
        u = uniform(keys[part], vocab_size)
        u = (u * 2.0**bits).floor() * 2.0**-bits if on_grid else u * (1 - 2.0**-bits)
        noise = -(-u.clamp(min=_LOWEST).log()).log()
        drawn[part] = (log_probs[part].double() + noise).argmax(-1)
    return drawn


def truncated_distribution(probs: Tensor, counts: Tensor | None = None, *, bits: int = BITS) -> Tensor:
    """The distribution of Gumbel-max with Gumbel noise truncated at M = -log(-log(1 - 2^-bits)).

    With K probabilities sorted upward, pi_0 = 0 and S_i = sum_{k >= i} pi_k, symbol n is drawn with
    pi_n sum_{i <= n} beta(i), where beta(i) S_i = exp((K+1-i - S_i/pi_i) e^-M) - exp((K+1-i - S_i/pi_{i-1})
    e^-M), the second term 0 at i = 1 (Zheng et al., proposition on the truncated Gumbel). Between equals beta
    vanishes, so that they can be told together.

    Args:
        probs: (..., G) probability of one symbol of each group; of all symbols they sum to 1.
        counts: (G,) or (..., G) how many symbols a group has; None: one each.

    Returns:
        (..., G) float64, the probability of each group as a whole.
    """
    probs = probs.double()
    counts = torch.ones_like(probs) if counts is None else counts.double().expand_as(probs)
    order = probs.argsort(-1)
    pi, many = probs.gather(-1, order), counts.gather(-1, order)
    mass, left = (x.flip(-1).cumsum(-1).flip(-1) for x in (pi * many, many))  # S_i and K+1-i
    below = torch.cat([torch.zeros_like(pi[..., :1]), pi[..., :-1]], -1)
    step = -math.log1p(-(2.0**-bits))  # e^-M
    upper, lower = ((left - mass / x) * step for x in (pi, below))
    # A difference of two exponentials that may be nearly equal.
    beta = torch.where(pi > 0, -upper.exp() * torch.expm1(lower - upper) / mass, 0.0)
    return torch.zeros_like(probs).scatter(-1, order, pi * many * beta.cumsum(-1))


def grid_distribution(probs: Tensor, counts: Tensor | None = None, *, bits: int = BITS) -> Tensor:
    """The distribution of Gumbel-max with uniforms 0, 2^-bits, ..., 1 - 2^-bits, as generators of float32
    make them.

    Exact up to 1024 levels; finer grids are summed in blocks where their width no longer matters (to about
    1e-5 of a probability).

    Args:
        probs: (G,) positive and different; see ``truncated_distribution``.
        counts: (G,) how many symbols a group has; None: one each.

    Returns:
        (G,) float64, the probability of each group as a whole.
    """
    probs, size = probs.double(), 2**bits
    counts = torch.ones_like(probs) if counts is None else counts.double()
    edges = torch.arange(min(_SINGLE_LEVELS, size) + 1, dtype=torch.float64)
    if size > _SINGLE_LEVELS:
        ratio = size / _SINGLE_LEVELS
        blocks = _SINGLE_LEVELS * ratio ** torch.linspace(0, 1, 2**12, dtype=torch.float64)
        edges = torch.cat([edges[:-1], blocks.round().unique()])
    # Level k stands for u = 1 - k / size, k = 1, 2, ...; a block holds those above its lower edge.
    middle = (edges[:-1] + 1 + edges[1:]) / 2
    x = -(1 - middle / size).clamp(min=_LOWEST).log()
    at_least = torch.log1p(-edges / size)  # log P(level > edge)
    distribution = torch.empty_like(probs)
    for g in range(len(probs)):
        low, high = counts[g] * at_least[:-1], counts[g] * at_least[1:]
        smallest = -low.exp() * torch.expm1(high - low)  # P(the group's smallest level is in the block)
        y = x.unsqueeze(-1) * probs / probs[g]
        beaten = torch.where(y < -math.log(_LOWEST), (torch.exp(-y) * size).ceil() / size, 0.0)
        others = counts * beaten.log()
        others[:, g] = 0.0
        distribution[g] = (smallest * others.sum(-1).exp()).sum()
    return distribution
