"""Estimates with their standard errors and 95 % intervals. Shapes: N texts, the independent units."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

_NORMAL = 1.959964  # of a normal distribution, on both sides of 95 %


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error and the ends of its 95 % interval; None where there is no error."""

    value: float
    stderr: float | None = None
    low: float | None = None
    high: float | None = None

    def record(self) -> dict[str, Any]:
        """The estimate as it stands in a result file."""
        return asdict(self)


def student(degrees: int) -> float:
    """The 97.5 % quantile of Student's t distribution (Cornish-Fisher, four terms; Abramowitz and Stegun
    26.7.5): within 0.3 % from 4 degrees of freedom on."""
    z, n = _NORMAL, degrees
    terms = (
        z,
        (z**3 + z) / (4 * n),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2),
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3),
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * n**4),
    )
    return sum(terms)


def mean(values: np.ndarray) -> Estimate:
    """The mean of ``values`` (N,) and its interval by Student's t."""
    return ratio(values, np.ones(len(values)))


def ratio(
    numerators: np.ndarray, denominators: np.ndarray, shown: Callable[[float], float] = lambda value: value
) -> Estimate:
    """Sum of ``numerators`` (N,) over sum of ``denominators`` (N,): a mean over tokens of N texts.

    The standard error is that of a ratio estimator (Cochran, Sampling Techniques, eq. 6.13), with texts as
    the independent units; the interval is Student's.

    Args:
        shown: an increasing function that the value and both ends are given through, like ``math.exp`` for a
            perplexity; the standard error becomes half the width of the interval over Student's quantile.

    Returns:
        nan where the denominators are 0; no error for fewer than two texts.
    """
    numerators, denominators = (np.asarray(x, dtype=np.float64) for x in (numerators, denominators))
    count, total = len(numerators), denominators.sum()
    if not total:
        return Estimate(math.nan)
    value = float(numerators.sum() / total)
    if count < 2:
        return Estimate(shown(value))
    residual = numerators - value * denominators
    stderr = math.sqrt(count / (count - 1) * float(residual @ residual)) / float(total)
    room = student(count - 1) * stderr
    low, high = shown(value - room), shown(value + room)
    return Estimate(shown(value), (high - low) / 2 / student(count - 1), low, high)


def u_statistic(rows: np.ndarray) -> Estimate:
    """Mean of a symmetric (N, N) matrix without its diagonal, a U-statistic of N independent units.

    The standard error is the jackknife's (Arvesen, 1969), which is right where the statistic is not
    degenerate and too large where it is (an MMD of equal distributions).

    Args:
        rows: (N,) sums of the matrix's rows without its diagonal, which is all that this needs.
    """
    count, total = len(rows), float(rows.sum())
    if count < 2:
        return Estimate(math.nan)
    value = total / (count * (count - 1))
    if count < 3:
        return Estimate(value)
    without = (total - 2 * rows) / ((count - 1) * (count - 2))
    stderr = math.sqrt((count - 1) / count * float(((without - without.mean()) ** 2).sum()))
    room = student(count - 1) * stderr
    return Estimate(value, stderr, value - room, value + room)


def differ(one: Estimate, other: Estimate) -> int:
    """Whether two independent estimates differ: the sign of ``one - other`` where its 95 % interval excludes
    0, and 0 where it does not or an error is unknown."""
    if one.stderr is None or other.stderr is None:
        return 0
    gap = one.value - other.value
    certain = abs(gap) > _NORMAL * math.hypot(one.stderr, other.stderr)
    return int(math.copysign(1, gap)) if certain and math.isfinite(gap) and gap else 0
