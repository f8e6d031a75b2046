"""Maximum mean discrepancy of two sets of features: estimate, standard error, permutation test.

Shapes: N vectors of each set, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluation.estimates import Estimate, u_statistic


@dataclass(frozen=True)
class Discrepancy:
    """MMD^2 with its error, and the p-value of the hypothesis that both sets are of one distribution."""

    squared: Estimate
    p_value: float
    permutations: int


def bandwidth(features: np.ndarray) -> float:
    """The median distance between different rows of ``features`` (N, D): the kernel's width, which is taken
    from human texts alone so that all files meet the same kernel."""
    distances = np.sqrt(_squared_distances(features, features))
    found = float(np.median(distances[~np.eye(len(features), dtype=bool)]))
    return found or 1.0


def mmd(one: np.ndarray, other: np.ndarray, width: float, seed: int, permutations: int = 499) -> Discrepancy:
    """Unbiased MMD^2 of (N, D) and (N, D) under a Gaussian kernel exp(-d^2 / (2 width^2)).

    Gretton et al., JMLR 2012, lemma 6 with pairs (x_i, y_i) as units, which needs equal numbers. The estimate
    may be negative. The p-value is exact for any numbers: the share of random divisions of all 2N vectors
    that are as far apart, the observed one included.

    Raises:
        ValueError: unequal numbers, or fewer than three.
    """
    if len(one) != len(other) or len(one) < 3:
        raise ValueError(f"MMD needs equal numbers of three or more, not {len(one)} and {len(other)}")
    pooled, count = np.concatenate([one, other]), len(one)
    kernel = np.exp(-_squared_distances(pooled, pooled) / (2 * width**2))
    across = kernel[:count, count:]
    pairs = kernel[:count, :count] + kernel[count:, count:] - across - across.T
    np.fill_diagonal(pairs, 0.0)
    np.fill_diagonal(kernel, 0.0)
    observed = _of_divisions(kernel, np.arange(2 * count)[None] < count)[0]
    draws = np.random.default_rng(seed)
    order = draws.random((permutations, 2 * count)).argsort(1) < count
    as_far = int((_of_divisions(kernel, order) >= observed - 1e-12).sum())
    return Discrepancy(u_statistic(pairs.sum(1)), (1 + as_far) / (1 + permutations), permutations)


def _of_divisions(kernel: np.ndarray, first: np.ndarray) -> np.ndarray:
    """MMD^2 for each division ``first`` (P, 2N) bool, given a kernel without diagonal; (P,)."""
    ours = first.astype(np.float64)
    theirs, count = 1 - ours, int(first[0].sum())
    half, rest = ours @ kernel, theirs @ kernel
    within = ((half * ours).sum(1) + (rest * theirs).sum(1)) / (count * (count - 1))
    return within - 2 * (half * theirs).sum(1) / count**2


def _squared_distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    one, other = one.astype(np.float64), other.astype(np.float64)
    squares = (one**2).sum(1)[:, None] + (other**2).sum(1)[None] - 2 * one @ other.T
    return np.maximum(squares, 0.0)
