"""The order of batches: the same rows in every optimizer step, whatever the devices, and from any step on."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from data.batching import GlobalBatchSampler, ShardedSequentialSampler, permutation
from dataloader import batch_sizes, get_tokenizer, get_train_dataloader, get_valid_dataloader

FIXED_ORDER = [4, 2, 0, 6, 1, 5, 9, 8, 7, 3]


def test_permutation_is_one_keyed_and_fixed() -> None:
    order = permutation(1000, seed=1, epoch=0)
    assert sorted(order.tolist()) == list(range(1000)) and order.dtype == np.int64
    others = [permutation(1000, seed=2, epoch=0), permutation(1000, seed=1, epoch=1)]
    assert not any(np.array_equal(order, other) for other in others)
    np.testing.assert_array_equal(order, permutation(1000, seed=1, epoch=0))
    # Fixed for good: a run may be resumed under another version of numpy.
    assert permutation(10, seed=1, epoch=2).tolist() == FIXED_ORDER
    assert permutation(1, 0, 0).tolist() == [0] and sorted(permutation(2, -5, 0).tolist()) == [0, 1]


def test_permutation_is_uniform() -> None:
    orders = np.stack([permutation(5, seed=3, epoch=epoch) for epoch in range(5000)])
    # Each of 25 frequencies has a standard deviation of sqrt(0.2 * 0.8 / 5000) = 0.0057; 5 of them allowed.
    frequencies = [[(orders[:, place] == value).mean() for value in range(5)] for place in range(5)]
    assert np.abs(np.array(frequencies) - 0.2).max() < 0.0285
    # Neighbours in place are unrelated: of the 20 ordered pairs each appears equally often.
    pairs = np.bincount(orders[:, 0] * 5 + orders[:, 1], minlength=25).reshape(5, 5) / 5000
    assert np.abs(pairs[~np.eye(5, dtype=bool)] - 0.05).max() < 5 * (0.05 * 0.95 / 5000) ** 0.5


def steps(world_size: int, accumulate: int, count: int, **options: Any) -> list[list[tuple[int, int]]]:
    """The pairs of each of ``count`` optimizer steps, all ranks together, sorted by row."""
    size = 24 // world_size // accumulate
    streams = [
        iter(GlobalBatchSampler(100, 24, size, rank=rank, world_size=world_size, seed=7, **options))
        for rank in range(world_size)
    ]
    made = []
    for _ in range(count):
        micro_batches = [batch for stream in streams for batch in islice(stream, accumulate)]
        assert all(len(batch) == size for batch in micro_batches)
        made.append(sorted(pair for batch in micro_batches for pair in batch))
    return made


@pytest.mark.parametrize("world_size, accumulate", [(1, 1), (2, 1), (1, 3), (4, 2), (3, 8)])
@pytest.mark.parametrize("drop_last", [True, False])
def test_devices_and_accumulation_change_nothing(world_size: int, accumulate: int, drop_last: bool) -> None:
    single = steps(1, 1, 11, drop_last=drop_last)
    assert steps(world_size, accumulate, 11, drop_last=drop_last) == single
    assert [row for row, _ in single[0]] == list(range(24))


@pytest.mark.parametrize("world_size, accumulate", [(1, 1), (2, 3)])
@pytest.mark.parametrize("drop_last", [True, False])
def test_every_micro_batch_knows_the_tokens_of_its_step(
    world_size: int, accumulate: int, drop_last: bool
) -> None:
    lengths = np.random.default_rng(0).integers(1, 17, 100).astype(np.int32)
    ranks = [
        GlobalBatchSampler(
            100, 24, 24 // world_size // accumulate, rank=rank, world_size=world_size, lengths=lengths,
            drop_last=drop_last, start_step=2,
        )
        for rank in range(world_size)
    ]  # fmt: skip
    streams = [list(islice(rank, 6 * accumulate)) for rank in ranks]
    for step in range(6):
        parts = [part for stream in streams for part in stream[step * accumulate : (step + 1) * accumulate]]
        total = sum(int(lengths[index]) for part in parts for _, index in part)
        # Lightning and DDP average over the parts: together they divide by the tokens of the whole step.
        assert all(part.num_tokens * len(parts) == pytest.approx(total) for part in parts)
    assert len({part.num_tokens for part in streams[0]}) > 1
    assert next(iter(GlobalBatchSampler(100, 24, 12))).num_tokens is None  # all rows are full


@pytest.mark.parametrize("drop_last", [True, False])
def test_resuming_continues_the_stream(drop_last: bool) -> None:
    whole = steps(2, 3, 13, drop_last=drop_last)
    assert steps(2, 3, 6, drop_last=drop_last, start_step=7) == whole[7:]


def test_an_epoch_has_no_row_twice() -> None:
    made = [index for step in steps(1, 1, 8) for _, index in step]
    first, second = made[:96], made[96:]
    assert len(set(first)) == len(set(second)) == 96
    assert set(first) != set(second), "another four rows are left out"
    whole = [index for step in steps(1, 1, 25, drop_last=False) for _, index in step]
    assert all(sorted(whole[start : start + 100]) == list(range(100)) for start in range(0, 600, 100))


def test_batches_may_run_over_many_epochs() -> None:
    sampler = GlobalBatchSampler(3, 8, 8, seed=0, drop_last=False)
    indices = [index for _, index in next(iter(sampler))]
    assert sorted(indices[:3]) == sorted(indices[3:6]) == [0, 1, 2]


def test_permutation_is_made_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def counted(num_rows: int, seed: int, epoch: int) -> np.ndarray:
        made.append(epoch)
        return permutation(num_rows, seed, epoch)

    monkeypatch.setattr("data.batching.permutation", counted)
    list(islice(GlobalBatchSampler(100, 10, 5, seed=0), 60))
    assert made == [0, 1, 2]


@pytest.mark.parametrize(
    "num_rows, size, world_size",
    [(10, 4, 1), (8, 4, 1), (37, 4, 3), (36, 4, 3), (2, 4, 3), (0, 4, 2), (26, 4, 3)],
)
def test_evaluation_sees_every_row_once(num_rows: int, size: int, world_size: int) -> None:
    ranks = range(world_size)
    samplers = [ShardedSequentialSampler(num_rows, size, rank=rank, world_size=world_size) for rank in ranks]
    batches = [batch for sampler in samplers for batch in sampler]
    assert sorted(index for batch in batches for _, index in batch) == list(range(num_rows))
    assert all(row == index for batch in batches for row, index in batch)
    assert all(0 < len(batch) <= size for batch in batches)
    assert all(len(list(sampler)) == len(sampler) for sampler in samplers)
    left = num_rows % (size * world_size)
    if left == 0 or left >= world_size:
        assert len({len(sampler) for sampler in samplers}) == 1
    if world_size == 1 and num_rows == 10:
        assert [len(batch) for batch in batches] == [4, 4, 2]


# Loaders ------------------------------------------------------------------------------------------


def make_cfg(tmp_path: Path, **changes: Any) -> DictConfig:
    cfg = OmegaConf.create(
        {
            "seed": 1,
            "model": {"length": 32},
            "loader": {
                "global_batch_size": 12,
                "eval_global_batch_size": 64,
                "batch_size": None,
                "eval_batch_size": None,
                "num_workers": None,
                "pin_memory": None,
                "drop_last": True,
            },
            "data": {
                "name": "pydoc",
                "train": "pydoc",
                "valid": "pydoc",
                "tokenizer_name_or_path": "text8",
                "vocab_size": None,
                "wrap": True,
                "insert_train_eos": True,
                "insert_valid_eos": True,
                "train_revision": None,
                "valid_revision": None,
                "source": {},
                "valid_source": {},
                "source_root": None,
                "streaming": False,
                "shuffle_buffer": 10_000,
                "cache_dir": str(tmp_path),
                "eos": "official",
            },
        }
    )
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value)
    return cfg


def rows_of(batches: Iterator[dict[str, torch.Tensor]]) -> dict[int, list[int]]:
    pairs = [zip(batch["row"].tolist(), batch["input_ids"].tolist(), strict=True) for batch in batches]
    return dict(pair for batch in pairs for pair in batch)


def test_loaders_of_two_ranks_make_one_global_batch(tmp_path: Path) -> None:
    cfg = make_cfg(tmp_path)
    tokenizer = get_tokenizer(cfg)
    single = next(iter(get_train_dataloader(cfg, tokenizer, start_step=3)))
    assert single["input_ids"].shape == single["attention_mask"].shape == (12, 32)
    assert single["input_ids"].dtype == single["row"].dtype == torch.int64
    assert single["attention_mask"].dtype == torch.bool and single["attention_mask"].all()
    cfg.loader.batch_size = 3
    ranks = [get_train_dataloader(cfg, tokenizer, rank=rank, world_size=2, start_step=3) for rank in range(2)]
    together: dict[int, list[int]] = {}
    for loader in ranks:
        together |= rows_of(islice(loader, 2))
    assert together == rows_of(iter([single]))


@pytest.mark.parametrize("wrap", [True, False])
def test_worker_processes_change_nothing(wrap: bool, tmp_path: Path) -> None:
    cfg = make_cfg(tmp_path, loader__num_workers=2, data__wrap=wrap)
    if not wrap:
        cfg.data.train = str(tmp_path / "text.txt")
        Path(cfg.data.train).write_text("\n".join("a" * (1 + n % 29) for n in range(40)))
    tokenizer = get_tokenizer(cfg)
    with_workers = list(islice(get_train_dataloader(cfg, tokenizer), 5))
    cfg.loader.num_workers = 0
    without = list(islice(get_train_dataloader(cfg, tokenizer), 5))
    for one, other in zip(with_workers, without, strict=True):
        assert ("num_tokens" in one) == (not wrap) and one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_validation_loader_keeps_the_last_batch(tmp_path: Path) -> None:
    cfg = make_cfg(tmp_path, loader__eval_batch_size=1000)
    loader = get_valid_dataloader(cfg, get_tokenizer(cfg))
    batches = list(loader)
    assert len(batches) == len(loader) == 2
    assert torch.cat([batch["row"] for batch in batches]).tolist() == list(range(len(loader.dataset)))
    assert len(batches[-1]["row"]) == len(loader.dataset) - 1000


@pytest.mark.parametrize(
    "settings, world_size, sizes",
    [({}, 1, (12, 1)), ({}, 4, (3, 1)), ({"batch_size": 2}, 2, (2, 3)), ({"batch_size": 12}, 1, (12, 1))],
)
def test_batch_sizes(
    settings: dict[str, int], world_size: int, sizes: tuple[int, int], tmp_path: Path
) -> None:
    cfg = make_cfg(tmp_path, **{f"loader__{key}": value for key, value in settings.items()})
    assert batch_sizes(cfg, world_size) == sizes


def test_evaluation_batch_sizes(tmp_path: Path) -> None:
    assert batch_sizes(make_cfg(tmp_path), 1, evaluation=True) == (64, 1)
    assert batch_sizes(make_cfg(tmp_path), 3, evaluation=True) == (22, 1)
    assert batch_sizes(make_cfg(tmp_path, loader__eval_batch_size=5), 3, evaluation=True) == (5, 1)


@pytest.mark.parametrize(
    "settings, world_size, words",
    [
        ({}, 5, "loader.global_batch_size=12: it cannot be divided over 5 devices; use .* 15"),
        ({"batch_size": 5}, 1, "loader.batch_size=5: .* use for instance 4"),
        ({"batch_size": 24}, 1, "loader.batch_size=24: .* use for instance 12"),
    ],
)
def test_batch_size_errors(settings: dict[str, int], world_size: int, words: str, tmp_path: Path) -> None:
    cfg = make_cfg(tmp_path, **{f"loader__{key}": value for key, value in settings.items()})
    with pytest.raises(ValueError, match=words):
        batch_sizes(cfg, world_size)


def test_more_rows_asked_for_than_there_are(tmp_path: Path) -> None:
    cfg = make_cfg(tmp_path, loader__global_batch_size=10**6, loader__batch_size=1000)
    tokenizer = get_tokenizer(cfg)
    with pytest.raises(ValueError, match="loader.global_batch_size=1000000: .* rows only"):
        get_train_dataloader(cfg, tokenizer)
    cfg.loader.drop_last = False
    assert len(next(iter(get_train_dataloader(cfg, tokenizer)))["row"]) == 1000
