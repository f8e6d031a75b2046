"""Softmax over noised one-hots from their largest entries alone (for Duo's curriculum; see duality.py).

When tau is small, few of the V numbers w = a onehot(x0) + s z have weight in softmax(w / tau): the largest.
The k largest of the V - 1 Gaussians beside x0 are drawn by their exact joint distribution. Those below keep
the weight
that they have in the mean, given the k-th, spread evenly over their tokens: with c = s/tau each exp(c z)
gives way to

    E[exp(c z) | z < z_k] = exp(c^2/2) Phi(z_k - c) / Phi(z_k).

argmax(w) keeps its exact distribution. The embedding loses the fluctuation of the rest, whose mean is 0 and
whose
standard deviation is sqrt(sum over the rest of p_v^2) times that of an embedding, p the true softmax. At V =
30,522 and k = 64, at the worst gamma, it is 1.1e-2 for tau = 0.1, 4e-4 for 0.03, 3e-9 for 0.01, 0 for 0.001.
Shapes: N positions, V vocabulary, D width, k largest.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion.duality import Relaxed
from diffusion.randomness import fold_in, uniform

DEFAULT_TOP_K = 64
_SMALLEST = 2.0**-54  # in place of a uniform number that is 0


def default_top_k(vocab_size: int) -> int:
    """How many entries are drawn when nobody says: all (0) where that costs little."""
    return DEFAULT_TOP_K if vocab_size > 16 * DEFAULT_TOP_K else 0


def largest_normals(uniforms: Tensor, size: int) -> Tensor:
    """The k largest of ``size`` independent N(0, 1), in falling order, (N, k) float64.

    The largest of n uniform numbers is U^(1/n), and those below it are n - 1 uniform ones again (Renyi).

    Args:
        uniforms: (N, k) float64 in [0, 1), k <= size.
    """
    left = size - torch.arange(uniforms.shape[1], device=uniforms.device)
    log_cdf = (uniforms.clamp(min=_SMALLEST).log() / left).cumsum(-1)
    return -torch.special.ndtri(-log_cdf.expm1())


def distinct_ids(keys: Tensor, k: int, size: int) -> Tensor:
    """k different ids below ``size`` in uniformly random order, (N, k) int64.

    They are the first different ones of an endless stream of ids, so that a row's depend on its key alone.

    Args:
        keys: (N,) int64.
        k: at most ``size``.
    """
    num_drawn = k + 8
    while True:
        drawn = (uniform(keys, num_drawn) * size).long().clamp(max=size - 1)
        ordered, places = drawn.sort(dim=-1, stable=True)
        repeats = F.pad(ordered[:, 1:] == ordered[:, :-1], (1, 0))
        repeats = torch.zeros_like(repeats).scatter_(-1, places, repeats)
        if bool((num_drawn - repeats.sum(-1) >= k).all()):
            first = repeats.int().sort(dim=-1, stable=True).indices[:, :k]
            return drawn.gather(-1, first)
        num_drawn *= 2


class Largest(NamedTuple):
    """The Gaussians that are drawn: that of x0, ``own`` (N,) float64, and the k largest others in falling
    order, ``values`` (N, k) float64 of the tokens ``ids`` (N, k) int64."""

    own: Tensor
    values: Tensor
    ids: Tensor

    @classmethod
    def of(cls, relaxed: Relaxed, k: int, vocab_size: int) -> Largest:
        """Draw them from the keys; the noise is another one than that of ``Relaxed.chunks``."""
        uniforms = uniform(relaxed.keys, 1 + k)
        ids = distinct_ids(fold_in(relaxed.keys, 1), k, vocab_size - 1)
        ids += ids >= relaxed.x0.unsqueeze(1)
        own = torch.special.ndtri(uniforms[:, 0].clamp(min=_SMALLEST))
        return cls(own, largest_normals(uniforms[:, 1:], vocab_size - 1), ids)

    def weights(self, gamma: Tensor, tau: float, vocab_size: int) -> tuple[Tensor, Tensor]:
        """softmax(w / tau): weights (N, 1 + k) of x0 and the others, and (N,) of the rest; the sum is 1."""
        scale, signal = (torch.sigmoid(g).sqrt() / tau for g in (gamma, -gamma))
        lowest, left = self.values[:, -1], vocab_size - 1 - self.values.shape[1]
        mean = scale.square() / 2 + torch.special.log_ndtr(lowest - scale) - torch.special.log_ndtr(lowest)
        rest = mean + (math.log(left) if left else -math.inf)
        logits = torch.cat((self.own.unsqueeze(1), self.values), 1) * scale.unsqueeze(1)
        logits[:, 0] += signal
        soft = torch.cat((logits, rest.unsqueeze(1)), 1).softmax(-1)
        return soft[:, :-1], soft[:, -1]

    def embed(self, embedding: Tensor, x0: Tensor, gamma: Tensor, tau: float) -> Tensor:
        """softmax(w / tau) @ embedding, (N, D), differentiable with respect to ``embedding`` (V, D)."""
        weights, rest = self.weights(gamma, tau, vocab_size := embedding.shape[0])
        # Each token of the rest has its share; so have those drawn, which have it taken off their weight.
        share = (rest / max(1, vocab_size - 1 - self.values.shape[1])).unsqueeze(1)
        drawn, share = (weights - share).to(embedding.dtype), share.to(embedding.dtype)
        ids = torch.cat((x0.unsqueeze(1), self.ids), 1)
        return F.embedding_bag(ids, embedding, per_sample_weights=drawn, mode="sum") + share * embedding.sum(
            0
        )


def top_k_embedding(embedding: Tensor, relaxed: Relaxed, k: int) -> tuple[Tensor, Tensor]:
    """As ``duality.relaxed_embedding``, from the k largest others and the mean of the rest.

    The cost is O(N k D + V D) instead of O(N V D).

    Args:
        embedding: (V, D) float32.
        relaxed: which w.
        k: from 1 to V - 1.
    """
    largest = Largest.of(relaxed, k, embedding.shape[0])
    embedded = largest.embed(embedding, relaxed.x0, relaxed.gamma, relaxed.tau)
    stays = largest.own + torch.exp(-relaxed.gamma / 2) > largest.values[:, 0]
    return embedded, torch.where(stays, relaxed.x0, largest.ids[:, 0])
