"""Times (and numbers of masks) at which a batch is trained or evaluated."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffusion.randomness import uniform
from errors import UserError


def training_times(
    keys: Tensor,
    rows: Tensor,
    num_rows: int,
    *,
    sampling_eps: float,
    antithetic: bool,
    num_quanta: int = 0,
) -> Tensor:
    """One time per sequence, each uniform in (sampling_eps, 1).

    With ``antithetic`` row i draws from the i-th of ``num_rows`` equal parts of the interval, so the times of
    a whole batch are spread evenly however it is cut into devices and micro-batches. A row number beyond
    ``num_rows`` wraps around, so that dataset indices serve as rows as well.

    Args:
        keys: (B,) int64, one random key per row.
        rows: (B,) int64, the row's place in the global batch.
        num_rows: size of the global batch.
        sampling_eps: the earliest time, in [0, 1).
        antithetic: stratify (the default of training) or draw independently.
        num_quanta: T of discrete-time models: t is uniform on {1/T, ..., 1} and ``sampling_eps`` has no part;
            0 means continuous time.

    Returns:
        (B,) float64.

    Raises:
        ValueError: ``sampling_eps`` outside [0, 1).
    """
    if not 0.0 <= sampling_eps < 1.0:
        raise UserError(
            "training.sampling_eps", sampling_eps, "must be at least 0 and below 1", "the usual value is 1e-3"
        )
    u = uniform(keys, 1).squeeze(-1)
    if antithetic:
        u = (u + rows.remainder(num_rows)) / num_rows
    if num_quanta > 0:
        # The last stratum may round up to u = 1.
        return (torch.floor(u * num_quanta) + 1).clamp(max=num_quanta) / num_quanta
    return (1.0 - sampling_eps) * u + sampling_eps


def mask_counts(times: Tensor, maskable: Tensor) -> Tensor:
    """Numbers of masks n = ceil(t N), in 1..N, for the NELBO by count (Zheng et al., arXiv 2409.02908).

    Stratified ``times`` give low-discrepancy counts; times drawn with ``sampling_eps=0`` give counts that are
    exactly uniform on 1..N.

    Args:
        times: (B,) in [0, 1].
        maskable: (B, L) bool, the N positions of each sequence that may be masked.

    Returns:
        (B,) int64; 0 where a sequence has no maskable position.
    """
    total = maskable.sum(-1)
    counts = torch.ceil(times * total).to(torch.int64).clamp(min=1)
    return torch.minimum(counts, total)


def spread_rows(rows: Tensor, num_rows: int) -> Tensor:
    """Send dataset indices 0..n-1 one to one to strata 0..n-1, neighbours far apart, (B,) int64.

    Rows of a data set that follow one another are alike; strata in their order would tie the noise level to
    the text. Steps of about n over the golden ratio leave every stretch of rows nearly evenly spread
    (Weyl sequence), so that a few batches of a validation set are a fair sample of times as well.

    Args:
        rows: (B,) int64.
        num_rows: n.
    """
    stride = max(1, round(num_rows * 0.6180339887498949))
    while math.gcd(stride, num_rows) != 1:
        stride += 1
    return rows * stride % num_rows
