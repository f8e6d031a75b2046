"""Counter-based numbers: range, distribution, independence of layout; times and counts made of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffusion.randomness import Stream, fold_in, random_bits, row_keys, uniform
from diffusion.time_sampling import mask_counts, training_times

MANY = 2**16


def splitmix64(x: int) -> int:
    """The finaliser in unbounded integers, unsigned, as published."""
    full = 2**64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % full
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % full
    return x ^ (x >> 31)


def test_fold_in_equals_unsigned_arithmetic() -> None:
    golden = 0x9E3779B97F4A7C15
    for key, data in [(0, 0), (1, 2), (-1, 5), (2**63 - 1, -(2**63)), (123456789, 987654321)]:
        inner = splitmix64((data + golden) % 2**64)
        expected = splitmix64((key + inner) % 2**64)
        assert int(fold_in(key, data)) % 2**64 == expected


def test_fold_in_broadcasts_and_accepts_any_integer() -> None:
    keys = fold_in(torch.arange(3).unsqueeze(1), torch.arange(4))
    assert keys.shape == (3, 4) and keys.dtype == torch.int64
    assert keys.unique().numel() == 12
    assert fold_in(2**64 + 5, 1) == fold_in(5, 1)


def test_range_and_dtype() -> None:
    keys = torch.arange(10)
    bits, u = random_bits(keys, 1000), uniform(keys, 1000)
    assert bits.dtype == torch.int64 and bits.min() >= 0 and bits.max() > 2**62
    assert u.dtype == torch.float64 and u.min() >= 0 and u.max() < 1
    assert uniform(keys, 0).shape == (10, 0)


def columns() -> dict[str, Tensor]:
    """Four ways to read many numbers: along one key, over plain keys, over rows, over seeds."""
    return {
        "counter": uniform(torch.tensor(0), MANY),
        "plain keys": uniform(torch.arange(MANY), 1)[:, 0],
        "rows": uniform(row_keys(1, Stream.TRAIN_MASK, 7, torch.arange(MANY)), 1)[:, 0],
        "seeds": uniform(fold_in(torch.arange(MANY), 3), 1)[:, 0],
    }


@pytest.mark.parametrize("name", list(columns()))
def test_uniformity_and_serial_independence(name: str) -> None:
    """Chi-square of 256 cells (mean 255, sd sqrt(510) = 22.6) and of 16 x 16 neighbour pairs: within 5 sd.
    Every one of the low bits too: mean of 2**16 coins has sd 0.00195, again 5 sd."""
    u = columns()[name]
    singles = torch.bincount((u * 256).long(), minlength=256).double()
    pairs = torch.bincount((u[:-1] * 16).long() * 16 + (u[1:] * 16).long(), minlength=256).double()
    for counts in (singles, pairs):
        expected = counts.sum() / 256
        chi_square = float(((counts - expected) ** 2 / expected).sum())
        assert abs(chi_square - 255) < 5 * 510**0.5
    bits = ((u * 2**53).long().unsqueeze(1) >> torch.arange(53)) & 1
    assert (bits.double().mean(0) - 0.5).abs().max() < 5 * 0.5 / MANY**0.5


def test_streams_steps_seeds_and_rows_are_unrelated() -> None:
    """Correlation of two independent columns of 2**14 has sd 2**-7 = 0.0078: below 5 sd."""
    rows = torch.arange(2**14)
    time, mask = Stream.TRAIN_TIME, Stream.TRAIN_MASK
    settings = [(0, time, 0), (0, mask, 0), (0, time, 1), (1, time, 0)]
    table = torch.stack([uniform(row_keys(*setting, rows), 1)[:, 0] for setting in settings])
    table = torch.cat([table, table[:1].roll(1, 1)])
    off_diagonal = torch.corrcoef(table) - torch.eye(len(table))
    assert off_diagonal.abs().max() < 5 * 2**-7


def test_numbers_are_not_repeated_by_derived_keys() -> None:
    drawn = random_bits(torch.tensor(5), 1000)
    derived = fold_in(5, torch.arange(1000))
    assert not torch.isin(drawn, (derived >> 1) & (2**63 - 1)).any()


def test_layout_does_not_matter() -> None:
    rows = torch.arange(12)
    whole = uniform(row_keys(3, Stream.SAMPLE, 9, rows), 20)
    parts = [uniform(row_keys(3, Stream.SAMPLE, 9, part), 20) for part in rows.split(5)]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(whole[:, :7], uniform(row_keys(3, Stream.SAMPLE, 9, rows), 7))


def test_streams_keep_their_numbers() -> None:
    assert [int(stream) for stream in Stream] == list(range(len(Stream)))
    assert (Stream.TRAIN_TIME, Stream.VALID_TIME, Stream.SAMPLE_START, Stream.DATA_ORDER) == (0, 3, 6, 9)


def test_no_global_state_is_touched() -> None:
    before = torch.random.get_rng_state()
    uniform(row_keys(3, Stream.SAMPLE, 9, torch.arange(4)), 20)
    assert torch.equal(before, torch.random.get_rng_state())


def times(rows: Tensor, num_rows: int, **options: object) -> Tensor:
    settings = {"sampling_eps": 0.0, "antithetic": True} | options
    return training_times(row_keys(0, Stream.TRAIN_TIME, 1, rows), rows, num_rows, **settings)


def test_antithetic_times_have_one_in_every_stratum_and_any_slicing_agrees() -> None:
    rows = torch.arange(64)
    t = times(rows, 64)
    assert t.dtype == torch.float64
    assert torch.equal((t * 64).floor().long(), rows)
    assert torch.equal(t, torch.cat([times(part, 64) for part in rows.split(24)]))
    assert torch.equal((times(rows + 640, 64) * 64).floor().long(), rows)


def test_independent_times_are_not_stratified_but_uniform() -> None:
    t = times(torch.arange(4096), 4096, antithetic=False)
    occupied = (t * 4096).floor().long().unique().numel()
    assert 0.58 < occupied / 4096 < 0.68  # 1 - 1/e of the cells are hit
    assert abs(float(t.mean()) - 0.5) < 5 * (1 / 12) ** 0.5 / 64


def test_sampling_eps_is_the_earliest_time() -> None:
    t = times(torch.arange(1000), 1000, sampling_eps=0.2)
    assert 0.2 <= t.min() < 0.202 and 0.998 < t.max() <= 1.0
    with pytest.raises(ValueError, match=r"sampling_eps=1\.0: .*; "):
        times(torch.arange(2), 2, sampling_eps=1.0)


def test_quantised_times_are_uniform_on_their_grid() -> None:
    t = times(torch.arange(1000), 1000, num_quanta=10)
    values, counts = t.unique(return_counts=True)
    torch.testing.assert_close(values, torch.arange(1, 11).double() / 10)
    assert (counts == 100).all()


def test_mask_counts_are_uniform_and_respect_the_maskable() -> None:
    maskable = torch.ones(80, 8, dtype=torch.bool)
    counts = mask_counts(times(torch.arange(80), 80), maskable)
    assert torch.equal(counts.bincount(), torch.tensor([0] + [10] * 8))
    maskable[:, 5:] = False
    maskable[3] = False
    counts = mask_counts(torch.ones(80), maskable)
    assert counts[3] == 0 and (counts[4:] == 5).all()
    assert (mask_counts(torch.zeros(80), maskable)[4:] == 1).all()
