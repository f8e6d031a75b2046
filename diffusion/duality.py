"""The Gaussian process behind the uniform one (Duo, Sahoo et al., arXiv 2506.10892, section 3).

w = a onehot(x0) + s N(0, I) with a^2 = sigmoid(-gamma), s^2 = sigmoid(gamma): argmax(w) is x0 with
probability P(gamma), any other token with (1 - P)/(V - 1) each, which is uniform noise with alpha =
(V P - 1)/(V - 1). With mu = a/s = e^(-gamma/2)

    P = int phi(z) Phi(z + mu)^(V-1) dz        dP/dmu = (V - 1) int phi(z) phi(z + mu) Phi(z + mu)^(V-2) dz.

A curriculum lets the network see softmax(w / tau) in place of the token argmax(w). Discrete consistency
distillation (section 4 there) needs argmax(w) at two gammas under one noise: ``argmax_pair``.
Shapes: B batch, L length, D width, V vocabulary, N = B L positions, n of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffusion.randomness import fold_in, normal

# The integrands are analytic and vanish at both ends: sums over a grid are then exact to rounding.
_LOWEST, _HIGHEST, _NODES = -14.0, 10.0, 385
_CHUNK_ELEMENTS = 2**23  # of w at a time: 32 MB in float32


class Argmax(NamedTuple):
    """The distribution of argmax(w), of the shape of gamma, float64: ``stays`` P, ``leaves`` 1 - P, and
    dP/dgamma.
    """

    stays: Tensor
    leaves: Tensor
    slope: Tensor


def argmax_distribution(gamma: Tensor, vocab_size: int) -> Argmax:
    """P(gamma) with its derivative, by quadrature to nearly all digits, 1 - P where it is small included.

    Args:
        gamma: (B,), log of noise over signal, from -5 (text) to -1 (noise) or so.
        vocab_size: V, at least 2.
    """
    z = torch.linspace(_LOWEST, _HIGHEST, _NODES, dtype=torch.float64, device=gamma.device)
    measure = torch.exp(-z.square() / 2) * ((_HIGHEST - _LOWEST) / (_NODES - 1) / math.sqrt(2 * math.pi))
    mu = torch.exp(-gamma.to(torch.float64) / 2)
    x = z + mu.unsqueeze(-1)
    log_cdf = torch.special.log_ndtr(x)
    others = (vocab_size - 1) * log_cdf
    log_density = -x.square() / 2 - math.log(2 * math.pi) / 2
    by_mu = (vocab_size - 1) * (torch.exp(others - log_cdf + log_density) @ measure)
    return Argmax(others.exp() @ measure, -(others.expm1() @ measure), -mu / 2 * by_mu)


def discrete_level(distribution: Argmax, speed: float, vocab_size: int) -> tuple[Tensor, Tensor]:
    """The uniform process that argmax(w) follows: (weight, sigma), both (B,) float64.

    Args:
        distribution: that of argmax(w), (B,).
        speed: d gamma / dt.

    Returns:
        -dalpha/(1 - alpha) with the derivative by t, and -log alpha, as ``Schedule.weight`` and ``sigma``.
    """
    sigma = -torch.log1p(-distribution.leaves * (vocab_size / (vocab_size - 1)))
    return -distribution.slope * speed / distribution.leaves, sigma


def argmax_pair(
    x0: Tensor, stays_t: Tensor, stays_s: Tensor, uniforms: Tensor, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """argmax(w) at two noise levels under one Gaussian noise, which is never drawn: (xt, xs), int64 (B, L).

    argmax(w) is x0 exactly when d = max_{v != x0} z_v - z_x0 < mu. d does not depend on mu, nor on which of
    the other tokens is the largest, and has the distribution function P: with u = P(d) uniform, x0 stays
    where u < P(gamma), and wherever it does not it becomes one and the same token.

    Args:
        x0: (B, L) int64.
        stays_t, stays_s: (B,) float64, P at the two gammas.
        uniforms: (B, 2 L) float64 in [0, 1): u of every position, then which token it becomes.
    """
    u, which = uniforms.chunk(2, -1)
    other = (which * (vocab_size - 1)).long().clamp(max=vocab_size - 2)
    other += other >= x0
    xt, xs = (torch.where(u < stays.unsqueeze(-1), x0, other) for stays in (stays_t, stays_s))
    return xt, xs


class Relaxed(NamedTuple):
    """Which w a batch has: ids x0 (N,), gamma (N,) float64, keys (N,) int64 of the noise, and tau."""

    x0: Tensor
    gamma: Tensor
    keys: Tensor
    tau: float

    @classmethod
    def of(cls, x0: Tensor, gamma: Tensor, keys: Tensor, tau: float) -> Relaxed:
        """For ids (B, L), gamma (B,) and row keys (B,): every position has noise of its own."""
        places = torch.arange(x0.shape[1], device=x0.device)
        each = fold_in(keys.unsqueeze(-1), places)
        return cls(x0.flatten(), gamma.unsqueeze(-1).expand(x0.shape).flatten(), each.flatten(), tau)

    def chunks(self, vocab_size: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield (rows, argmax(w) (n,), softmax(w / tau) (n, V)), the same ones every time."""
        size = max(1, _CHUNK_ELEMENTS // vocab_size)
        signal, noise = (torch.sigmoid(g).sqrt().float() for g in (-self.gamma, self.gamma))
        for start in range(0, len(self.x0), size):
            rows = slice(start, start + size)
            w = normal(self.keys[rows], vocab_size).mul_(noise[rows, None])
            w.scatter_add_(1, self.x0[rows, None], signal[rows, None])
            highest, ids = w.max(-1, keepdim=True)
            soft = w.sub_(highest).div_(self.tau).exp_()
            yield rows, ids.squeeze(1), soft.div_(soft.sum(-1, keepdim=True))


def relaxed_embedding(embedding: Tensor, relaxed: Relaxed) -> tuple[Tensor, Tensor]:
    """softmax(w / tau) @ embedding (N, D), and argmax(w) (N,) int64.

    Chunk by chunk, and again for the gradient of ``embedding``: no (N, V) tensor exists.

    Args:
        embedding: (V, D) float32.
    """
    return _RelaxedEmbedding.apply(embedding, relaxed)


class _RelaxedEmbedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, embedding: Tensor, relaxed: Relaxed) -> tuple[Tensor, Tensor]:
        embedded = embedding.new_empty(len(relaxed.x0), embedding.shape[1])
        argmax = torch.empty_like(relaxed.x0)
        for rows, ids, soft in relaxed.chunks(embedding.shape[0]):
            argmax[rows] = ids
            torch.mm(soft, embedding, out=embedded[rows])
        ctx.relaxed, ctx.shape = relaxed, embedding.shape
        ctx.mark_non_differentiable(argmax)
        return embedded, argmax

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None]:
        total = grad.new_zeros(ctx.shape)
        for rows, _ids, soft in ctx.relaxed.chunks(ctx.shape[0]):
            total.addmm_(soft.t(), grad[rows])
        return total, None
