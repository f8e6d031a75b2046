"""Draws that a mask's own noise decides: the same noise and the same distribution give the same token.

Gumbel-max with noise made from a seed by the counter-based generator (diffusion/randomness.py). When the
seed is fresh the token has exactly the given distribution; when the seed is known the token is a function
of the distribution, which a network can learn (coupled distillation, docs/coupled.md).

A small vocabulary has one Gumbel a symbol. A large one is a fixed tree whose nodes have 16 children: from the
root a draw takes the child with the largest log mass + Gumbel, until it reaches a leaf. That is as exact
(the mass of a child given its parent is what the path's probabilities multiply to), needs 16 numbers a level
instead of one a symbol, and the numbers are few enough to be an input of a network.
Shapes: N positions, V vocabulary with the mask, T levels, C channels of noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion.randomness import fold_in, uniform

BRANCHING = 16
LARGEST_FLAT = 512  # a vocabulary up to here has one Gumbel a symbol
EULER_GAMMA, GUMBEL_STD = 0.5772156649015329, 1.2825498301618641  # mean and deviation of a Gumbel
_SMALLEST = 2.0**-54  # half of the smallest uniform above 0


def gumbel(keys: Tensor, n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard Gumbel noise -log(-log u), shape (*keys.shape, n); entry i depends on (key, i) alone.

    With 53 random bits it is cut at 36.7: only symbols of probability below about 1e-16 notice.

    Args:
        keys: int64.
        dtype: of the result; the logarithms are taken in float64.
    """
    return uniform(keys, n).clamp_(min=_SMALLEST).log_().neg_().log_().neg_().to(dtype)


@dataclass(frozen=True)
class Coupling:
    """How noise decides a draw from a vocabulary.

    Args:
        vocab_size: V, the mask included.
        levels: T of the tree, 0 for one Gumbel a symbol. The digits of an id to the base 16, the lowest
            first, are its path: ids in the order of their frequency, as BPE and WordPiece vocabularies have
            them, are dealt out evenly over the children of every node.
    """

    vocab_size: int
    levels: int = 0

    @classmethod
    def of(cls, vocab_size: int) -> Coupling:
        """The coupling of a vocabulary: flat up to 512 ids, else the lowest tree that has a leaf for each."""
        levels = 0
        while vocab_size > LARGEST_FLAT and BRANCHING**levels < vocab_size:
            levels += 1
        return cls(vocab_size, levels)

    @property
    def channels(self) -> int:
        """C, Gumbel numbers of a position."""
        return BRANCHING * self.levels if self.levels else self.vocab_size

    def noise(self, seeds: Tensor, positions: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """The Gumbel noise of N positions, (N, C).

        Args:
            seeds: (N,) int64, of the mask; positions of one sequence may share it (stored pairs do).
            positions: (N,) int64, each one's place in its sequence.
        """
        return gumbel(fold_in(seeds, positions), self.channels, dtype)

    def pick(self, log_probs: Tensor, noise: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """The tokens (N,) int64 that ``noise`` (N, C) decides; distributed as ``log_probs`` when it is fresh.

        Args:
            log_probs: (N, V), normalised or not; -inf or very negative where there is no mass.
            gain: factor on the noise, one for all or (N, 1); 1 is exact, 0 takes the likeliest token (in a
                tree: the likeliest child of each node).
        """
        if not self.levels:
            return (log_probs + gain * noise).argmax(-1)
        node = self._padded((log_probs - log_probs.amax(-1, keepdim=True)).exp())
        token = torch.zeros(len(node), dtype=torch.int64, device=node.device)
        for level in range(self.levels):
            children = _children(node)
            child = (children.sum(1).log() + gain * _of_level(noise, level)).argmax(-1)
            token, node = token + child * BRANCHING**level, _take(children, child)
        return token

    def pick_shared(self, log_probs: Tensor, noise: Tensor) -> Tensor:
        """``pick`` (N,) from one distribution (V,) for all N positions, in a tree without (N, V) tensors."""
        if not self.levels:
            return self.pick(log_probs, noise)
        missing = BRANCHING**self.levels - self.vocab_size
        masses = F.pad((log_probs - log_probs.max()).exp(), (0, missing))
        token = torch.zeros(len(noise), dtype=torch.int64, device=noise.device)
        for level in range(self.levels):
            # Entry (c, r): child c of the node whose path is the digits of r.
            of_children = masses.view(-1, BRANCHING, BRANCHING**level).sum(0).log()
            child = (of_children[:, token].t() + _of_level(noise, level)).argmax(-1)
            token = token + child * BRANCHING**level
        return token

    def tree_loss(
        self, exponentials: Tensor, noise: Tensor, gain: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sum over the levels of -log softmax(log mass + gain * noise) at the target's child.

        Args:
            exponentials: (N, V) unnormalised probabilities; overwritten by the gradient.
            noise: (N, C); gain: (N, 1); targets: (N,) int64.

        Returns:
            The losses (N,), their gradient by the logits (N, V), and by the gain (N,).
        """
        loss, slope = torch.zeros_like(exponentials[:, 0]), torch.zeros_like(exponentials[:, 0])
        node, path, tiny = self._padded(exponentials), [], torch.finfo(exponentials.dtype).tiny
        for level in range(self.levels):
            child = (targets // BRANCHING**level) % BRANCHING
            children, own = _children(node), _of_level(noise, level)
            mass = children.sum(1).clamp(min=tiny)
            log_q = torch.log_softmax(mass.log() + gain * own, -1)
            loss -= log_q.gather(1, child.unsqueeze(1)).squeeze(1)
            delta = log_q.exp() - F.one_hot(child, BRANCHING)
            slope += (delta * own).sum(-1)
            path.append((node.shape[1], children, delta / mass, child))
            node = _take(children, child)
        inner = torch.zeros_like(node)
        for width, children, rate, child in reversed(path):
            grad = children * rate.unsqueeze(1)
            index = child.view(-1, 1, 1).expand(-1, grad.shape[1], 1)
            inner = grad.scatter_add_(2, index, inner.unsqueeze(2)).flatten(1)[:, :width]
        return loss, exponentials.copy_(inner[:, : exponentials.shape[1]]), slope

    def _padded(self, probs: Tensor) -> Tensor:
        """(N, V) with zeros up to a multiple of 16**(T - 1): the last level need not be full."""
        missing = -probs.shape[1] % BRANCHING ** (self.levels - 1)
        return F.pad(probs, (0, missing)) if missing else probs


def _of_level(noise: Tensor, level: int) -> Tensor:
    """The Gumbels (N, 16) of the children of the node that a draw reaches on ``level``."""
    return noise[:, BRANCHING * level : BRANCHING * (level + 1)]


def _children(node: Tensor) -> Tensor:
    """The probabilities (N, n) below a node by its child, which is the last dimension: (N, n / 16, 16)."""
    missing = -node.shape[1] % BRANCHING
    return (F.pad(node, (0, missing)) if missing else node).unflatten(1, (-1, BRANCHING))


def _take(children: Tensor, child: Tensor) -> Tensor:
    """Of children (N, n, 16) those that ``child`` (N,) names, (N, n)."""
    return children.gather(2, child.view(-1, 1, 1).expand(-1, children.shape[1], 1)).squeeze(2)
