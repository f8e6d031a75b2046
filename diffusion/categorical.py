"""Drawing symbols from categorical distributions without the truncation of 32-bit Gumbel-max.

Gumbel noise made of 24-bit uniforms is cut at 16.6, which takes mass from rare symbols (Zheng et al.,
arXiv 2409.02908, section 4). Here one 53-bit uniform is looked up in the cumulative distribution instead.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion import NEG_INF
from errors import UserError

_CHUNK_ELEMENTS = 2**22  # of the float64 cumulative sums: 32 MB


def sample_categorical(log_probs: Tensor, uniforms: Tensor) -> Tensor:
    """Inverse-CDF draw: symbol k exactly when F(k-1) <= u < F(k), cumulated in float64.

    A symbol of probability 0 is never drawn.

    Args:
        log_probs: (N, V) float log-probabilities; need not be normalised exactly, each row must have mass.
        uniforms: (N,) float64 in [0, 1); 1 counts as the number just below it.

    Returns:
        (N,) int64.
    """
    num_rows, vocab_size = log_probs.shape
    drawn = torch.empty(num_rows, dtype=torch.int64, device=log_probs.device)
    step = max(1, _CHUNK_ELEMENTS // vocab_size)
    for start in range(0, num_rows, step):
        part = slice(start, start + step)
        drawn[part] = _inverse_cdf(log_probs[part].exp(), uniforms[part].to(torch.float64))
    return drawn


def _inverse_cdf(probs: Tensor, uniforms: Tensor) -> Tensor:
    cumulative = probs.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1]
    # A uniform that was rounded up to 1 must not point beyond the last symbol with mass.
    height = torch.minimum(uniforms * total, torch.nextafter(total, torch.zeros_like(total)))
    drawn = torch.searchsorted(cumulative, height.unsqueeze(-1), right=True).squeeze(-1)
    if probs.device.type == "cpu":
        return drawn
    # A parallel scan need not be monotone to the last bit, so it may step onto a symbol without mass.
    drawn = drawn.clamp(max=probs.shape[-1] - 1)
    has_mass = probs.gather(-1, drawn.unsqueeze(-1)).squeeze(-1) > 0
    return torch.where(has_mass, drawn, probs.argmax(-1))


def temper(log_probs: Tensor, temperature: float) -> Tensor:
    """Log of p^(1/temperature), renormalised over the last dimension; same shape and dtype.

    Raises:
        ValueError: ``temperature`` not positive.
    """
    if not temperature > 0.0:
        raise UserError("sampling.temperature", temperature, "must be positive", "1.0 changes nothing")
    if temperature == 1.0:
        return log_probs
    return torch.log_softmax(log_probs / temperature, dim=-1)


def nucleus(log_probs: Tensor, p: float) -> Tensor:
    """Keep the fewest likeliest symbols with mass at least ``p`` (Holtzman et al. 2020), renormalised.

    Args:
        log_probs: (N, V) log-probabilities. Of symbols equally likely at the edge any may stay.
        p: mass in (0, 1]; 1.0 switches the filter off.

    Returns:
        (N, V), NEG_INF (up to the normaliser) outside the set.

    Raises:
        ValueError: ``p`` outside (0, 1].
    """
    if not 0.0 < p <= 1.0:
        raise UserError("sampling.p_nucleus", p, "must lie in (0, 1]", "1.0 switches the filter off")
    if p == 1.0:
        return log_probs
    vocab_size = log_probs.shape[-1]
    needed = p * log_probs.exp().sum(-1, keepdim=True, dtype=torch.float64)
    kept = torch.zeros_like(log_probs, dtype=torch.bool)
    rows = torch.arange(len(log_probs), device=log_probs.device)
    # Sorting a whole vocabulary costs ten times the head that made it; the set is usually small.
    size = min(256, vocab_size)
    while rows.numel() > 0:
        top, index = log_probs[rows].topk(size, dim=-1)
        cumulative = top.exp().cumsum(-1, dtype=torch.float64)
        # A symbol stays while those before it lack mass; so the first one always does.
        lacking = F.pad(cumulative[:, :-1], (1, 0)) < needed[rows]
        kept[rows] = torch.zeros_like(kept[rows]).scatter_(-1, index, lacking)
        unfinished = (cumulative[:, -1:] < needed[rows]).squeeze(-1) & (size < vocab_size)
        rows, size = rows[unfinished], min(16 * size, vocab_size)
    return torch.log_softmax(log_probs.masked_fill(~kept, NEG_INF), dim=-1)
