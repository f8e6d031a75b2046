"""Interpolated n-gram models of units: cross-entropies without a neural evaluator, and resamplers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

_START = "\0"  # in front of a text; no unit is this


class NGrams:
    """Witten-Bell interpolation of orders 1 to ``order`` over a uniform distribution.

    p(w | h) = (c(h w) + T(h) p(w | h')) / (c(h) + T(h)), where T(h) is the number of different units behind
    the context h in the source and h' is h without its first unit (Witten and Bell, 1991). The uniform
    distribution is over the units of the source and one more, which stands for all others: every text has a
    finite cross-entropy, and probabilities sum to 1.

    Args:
        source: texts as lists of units.
    """

    def __init__(self, source: Sequence[Sequence[str]], order: int = 3) -> None:
        self.order = order
        self.followers: dict[tuple[str, ...], Counter[str]] = {}
        for text in source:
            padded = [_START] * (order - 1) + list(text)
            for at in range(order - 1, len(padded)):
                for size in range(order):
                    context = tuple(padded[at - size : at])
                    self.followers.setdefault(context, Counter())[padded[at]] += 1
        self.totals = {context: counts.total() for context, counts in self.followers.items()}
        self.vocabulary = sorted(self.followers.get((), ()))
        self._uniform = 1 / (len(self.vocabulary) + 1)
        self._tables: dict[tuple[tuple[str, ...], float], tuple[list[str], np.ndarray]] = {}

    def prob(self, unit: str, context: Sequence[str]) -> float:
        """p(unit | the last units of ``context``)."""
        known, value = self.followers, self._uniform
        for size in range(min(self.order - 1, len(context)) + 1):
            counts = known.get(tuple(context[len(context) - size :]))
            if counts is None:
                break
            kinds = len(counts)
            value = (counts[unit] + kinds * value) / (
                self.totals[tuple(context[len(context) - size :])] + kinds
            )
        return value

    def nll(self, text: Sequence[str]) -> float:
        """-log p(text) in nats, its length given."""
        padded = [_START] * (self.order - 1) + list(text)
        first = self.order - 1
        return -sum(
            math.log(self.prob(padded[at], padded[at - first : at])) for at in range(first, len(padded))
        )

    def sample(self, length: int, draws: np.random.Generator, temperature: float = 1.0) -> list[str]:
        """A text of ``length`` units: each from the units behind the longest context that the source has,
        with probabilities proportional to their counts to the power 1 / ``temperature``."""
        text = [_START] * (self.order - 1)
        for _ in range(length):
            context = tuple(text[len(text) - self.order + 1 :])
            while context not in self.followers:
                context = context[1:]
            names, cumulative = self._table(context, temperature)
            text.append(names[int(np.searchsorted(cumulative, draws.random(), side="right"))])
        return text[self.order - 1 :]

    def _table(self, context: tuple[str, ...], temperature: float) -> tuple[list[str], np.ndarray]:
        key = (context, temperature)
        if key not in self._tables:
            counts = self.followers[context]
            weights = np.array(list(counts.values()), dtype=np.float64) ** (1 / temperature)
            cumulative = np.cumsum(weights / weights.sum())
            cumulative[-1] = 1.0
            self._tables[key] = (list(counts), cumulative)
        return self._tables[key]


def grams(text: Sequence[str], size: int) -> list[tuple[str, ...]]:
    """All runs of ``size`` units of a text."""
    return [tuple(text[at : at + size]) for at in range(len(text) - size + 1)]
