"""How many masks each network call unmasks: ``sampling.schedule``.

What is unmasked together is drawn independently, so a call that starts with m known tokens and unmasks the
ranks m .. n-1 of an order errs by its conditional total correlation, sum_j c(m, j) - c(j, j), where c(m, j)
is the mean cross-entropy in nats of the token of rank j given those of ranks below m. All calls together err
by the sum over calls, which for an exact denoiser is the KL divergence of the samples from the data, averaged
over orders (chain rule; the "information profile" of arXiv 2510.25544). c(j, j) does not depend on the calls:
the best N calls minimise a sum over consecutive segments, which dynamic programming does exactly.

Shapes: B rows, L positions, M measured numbers of known tokens.
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samplers.base import CallSchedule, Sampler, State, chunks
from samplers.draws import Draws

MOST_POINTS = 64  # numbers of known tokens that are measured, a network call each


class Uniform:
    """The same number in every call, as nearly as that can be."""

    def due(self, num_masked: int, length: int, step: int, num_calls: int) -> int:
        return math.ceil(num_masked / max(num_calls - step, 1))


class Cosine:
    """Few at first, many at the end: the share that is left is cos(pi/2 * calls made / calls) (MaskGIT, Chang
    et al., arXiv 2202.04200, section 3.3)."""

    def due(self, num_masked: int, length: int, step: int, num_calls: int) -> int:
        if step + 1 >= num_calls:
            return num_masked
        left = math.cos(math.pi / 2 * (step + 1) / num_calls) / math.cos(math.pi / 2 * step / num_calls)
        return max(num_masked - math.floor(num_masked * left + 1e-9), 1)


@dataclass(frozen=True)
class Dependence:
    """What ``measure`` found.

    Attributes:
        known: (M,) the numbers of known tokens, rising from 0.
        cost: (M, L) float64, c(m, j) in nats where j >= m, else 0.
    """

    known: tuple[int, ...]
    cost: Tensor

    def __post_init__(self) -> None:
        assert self.known[0] == 0 and list(self.known) == sorted(set(self.known))
        assert self.cost.shape[0] == len(self.known) and self.known[-1] < self.cost.shape[1]

    @property
    def length(self) -> int:
        return self.cost.shape[1]

    @functools.cached_property
    def segments(self) -> Tensor:
        """(M, L + 1): sum of c(m, j) over the ranks below n, n = 0 .. L."""
        return torch.nn.functional.pad(self.cost.cumsum(-1), (1, 0))

    def of_counts(self, numbers: Sequence[int]) -> float:
        """Cross-entropy in nats of a text that is written in calls of these numbers of tokens. A call that
        begins between two measured numbers is valued as at the lower one."""
        total, begin = 0.0, 0
        for number in numbers:
            row = self.segments[bisect_right(self.known, begin) - 1]
            total += float(row[begin + number] - row[begin])
            begin += number
        return total


class Measured:
    """The calls that err least by a ``Dependence``; they begin at measured numbers of known tokens.

    A row that starts with given tokens is treated like one whose sampler wrote as many.
    """

    def __init__(self, dependence: Dependence) -> None:
        self.dependence = dependence
        self._best = [self._last()]

    def due(self, num_masked: int, length: int, step: int, num_calls: int) -> int:
        assert length == self.dependence.length, "measured at another length"
        known, left = length - num_masked, num_calls - step
        if left <= 1:
            return num_masked
        if left >= num_masked:
            return 1
        begin = max(k for k, m in enumerate(self.dependence.known) if m <= known)
        ends = [k for k, m in enumerate(self.dependence.known) if m > known]
        if len(ends) < left:  # more calls than measured places for them
            return Uniform().due(num_masked, length, step, num_calls)
        later, points = self.best(left - 1), torch.tensor([self.dependence.known[k] for k in ends])
        total = self.dependence.segments[begin, points] - self.dependence.segments[begin, known] + later[ends]
        return int(points[total.argmin()]) - known

    def best(self, num_calls: int) -> Tensor:
        """(M,): the least cross-entropy of what is left at each measured number, in ``num_calls`` calls."""
        known, segments = self.dependence.known, self.dependence.segments
        while len(self._best) < num_calls:
            later, found = self._best[-1], self._last()
            for k, m in enumerate(known[:-1]):
                ends = torch.tensor(known[k + 1 :])
                found[k] = min(found[k], (segments[k, ends] - segments[k, m] + later[k + 1 :]).min())
            self._best.append(found)
        return self._best[num_calls - 1]

    def _last(self) -> Tensor:
        """All that is left in one call."""
        known, segments = torch.tensor(self.dependence.known), self.dependence.segments
        return segments[:, -1] - segments.gather(1, known[:, None]).squeeze(1)


def counts(schedule: CallSchedule, num_masked: int, length: int, num_calls: int) -> tuple[int, ...]:
    """How many masks each call unmasks, from ``num_masked`` to none: at most ``num_calls`` numbers."""
    found: list[int] = []
    while (left := num_masked - sum(found)) > 0:
        found.append(min(max(schedule.due(left, length, len(found), num_calls), 1), left))
    return tuple(found)


def points(length: int, most: int = MOST_POINTS) -> tuple[int, ...]:
    """At most ``most`` >= 32 numbers of known tokens below ``length``: all where they are so few; else
    sixteenths of the length, where calls of ``order=spread`` begin, the first ones, and some between that
    grow further apart."""
    if length <= most:
        return tuple(range(length))
    sixteenths = {length * k // 16 for k in range(16)}
    dense = (most - len(sixteenths)) // 2
    number = most - len(sixteenths) - dense
    rest = {int(dense * (length / dense) ** (k / number)) for k in range(number)}
    return tuple(sorted(sixteenths | set(range(dense)) | rest))


@torch.no_grad()
def measure(
    sampler: Sampler, x0: Tensor, mask_seeds: Tensor | None, draws: Draws, *, most: int = MOST_POINTS
) -> tuple[tuple[int, ...], Tensor]:
    """Cross-entropies of the ranks of the sampler's order, given the true tokens of earlier ones: one network
    call for each measured number of known tokens.

    Args:
        sampler: the model, and the order in which it unmasks (``Sampler.ranking``).
        x0: (B, L) held-out ids.
        mask_seeds: mask noise seeds of fully masked rows, or None.
        draws: source of the order.
        most: see ``points``.

    Returns:
        the measured numbers, and (M, L) float64 on the CPU, summed over the rows.
    """
    length, process = x0.shape[1], sampler.schedule
    known, rank = points(length, most), sampler.ranking(x0.shape, draws)
    cost = torch.zeros(len(known), length, dtype=torch.float64)
    is_masked = torch.ones_like(x0, dtype=torch.bool)
    start = process.masked(torch.ones(len(x0), dtype=torch.float64, device=x0.device))
    for k, m in enumerate(known):
        t = process.inverse(1 - (1 - m / length) * start)
        state = State(torch.where(is_masked, sampler.mask_id, x0), t, mask_seeds)
        prediction = sampler.predict(state)
        score = rank(state, prediction).double().masked_fill(~is_masked, torch.inf)
        order = score.argsort(dim=-1, descending=True, stable=True)
        nll = torch.zeros(x0.shape, dtype=torch.float64, device=x0.device)
        for rows, columns in chunks(is_masked, prediction.vocab_size):
            log_probs = prediction.at(rows * length + columns)
            nll[rows, columns] = -log_probs.gather(1, x0[rows, columns, None]).squeeze(1).double()
        cost[k] = nll.gather(1, order).sum(0).cpu()
        cost[k, :m] = 0
        following = known[k + 1] if k + 1 < len(known) else length
        is_masked.scatter_(1, order[:, m:following], False)
    return known, cost
