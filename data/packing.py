"""From documents of token ids to rows of equal length: packed blocks or padded documents."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

MAP_BATCH = 1000  # documents that datasets.map hands over at once


def smallest_int(vocab_size: int) -> np.dtype:
    """The smallest integer type that holds the ids 0 .. vocab_size - 1."""
    return np.dtype(np.uint8 if vocab_size <= 2**8 else np.uint16 if vocab_size <= 2**16 else np.int32)


class Documents(NamedTuple):
    """Some documents of ids, laid end to end: ``tokens`` (T,) int64, ``sizes`` (n,) int64 with sum T."""

    tokens: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, ids: Sequence[Sequence[int]]) -> Documents:
        """From one list of ids a document."""
        sizes = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        tokens = np.fromiter(itertools.chain.from_iterable(ids), dtype=np.int64, count=int(sizes.sum()))
        return cls(tokens, sizes)


def with_eos(documents: Documents, eos: int) -> np.ndarray:
    """The ids (T + n,), ``eos`` behind each document."""
    joined = np.full(len(documents.tokens) + len(documents.sizes), eos, dtype=np.int64)
    is_token = np.ones(len(joined), dtype=bool)
    is_token[np.cumsum(documents.sizes + 1) - 1] = False
    joined[is_token] = documents.tokens
    return joined


def map_batches(number: int, workers: int, size: int = MAP_BATCH) -> list[tuple[int, int]]:
    """The batches (first, end) of ``number`` documents that ``datasets.map(batched=True, num_proc=workers)``
    hands over: each worker has a contiguous share, and cuts it behind every ``size`` documents."""
    workers = min(workers, number)
    borders = [number // max(workers, 1) * k + min(k, number % max(workers, 1)) for k in range(workers + 1)]
    return [
        (first, min(first + size, end))
        for start, end in itertools.pairwise(borders)
        for first in range(start, end, size)
    ]


class BlockPacker:
    """Cut an endless stream of ids into blocks of ``length - 2`` between bos and eos.

    What does not fill a block waits for the next call; at the end it is the only part that is dropped.
    """

    def __init__(self, length: int, bos: int, eos: int, dtype: np.dtype) -> None:
        self._length, self._bos, self._eos, self._dtype = length, bos, eos, dtype
        self._rest = np.empty(0, dtype=dtype)

    def feed(self, tokens: np.ndarray) -> np.ndarray:
        """Add ids (T,); return the blocks that are now complete, (n, length)."""
        stream = np.concatenate([self._rest, tokens.astype(self._dtype)])
        inner = self._length - 2
        count = len(stream) // inner
        self._rest = stream[count * inner :]
        blocks = np.empty((count, self._length), dtype=self._dtype)
        blocks[:, 0], blocks[:, -1] = self._bos, self._eos
        blocks[:, 1:-1] = stream[: count * inner].reshape(count, inner)
        return blocks

    @property
    def leftover(self) -> int:
        """Number of ids that wait for a block to be filled."""
        return len(self._rest)


def official_blocks(
    documents: Iterable[Documents], new_packer: Callable[[], BlockPacker], separator: int | None, workers: int
) -> Iterator[tuple[np.ndarray, int]]:
    """The blocks as the official programs pack them: each batch of ``map_batches`` for itself, so that each
    drops what does not fill its last block.

    All documents are held in memory: where a worker's share ends is known when all of them are read.

    Yields:
        blocks (n, length) of a batch, and how many ids it drops.
    """
    tokens, sizes = [], []
    for part in documents:
        tokens.append(part.tokens.astype(np.int32))
        sizes.append(part.sizes)
    if not sizes:
        return
    everything, counts = np.concatenate(tokens), np.concatenate(sizes)
    ends = np.concatenate([[0], np.cumsum(counts)])
    for first, end in map_batches(len(counts), workers):
        batch = Documents(everything[ends[first] : ends[end]].astype(np.int64), counts[first:end])
        packer = new_packer()
        blocks = packer.feed(batch.tokens if separator is None else with_eos(batch, separator))
        yield blocks, packer.leftover


def pad_documents(
    documents: Documents, length: int, bos: int, eos: int, pad: int, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """One document a row: bos, at most ``length - 2`` ids, eos, padding. Empty documents are left out.

    Returns:
        rows (n, length) of ``dtype`` and lengths (n,) int32, bos and eos counted.
    """
    sizes = documents.sizes[documents.sizes > 0]
    kept = np.minimum(sizes, length - 2)
    place_in_document = np.arange(len(documents.tokens)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    rows = np.full((len(sizes), length), pad, dtype=dtype)
    rows[:, 0] = bos
    rows[:, 1:-1][np.arange(length - 2) < kept[:, None]] = documents.tokens[place_in_document < length - 2]
    rows[np.arange(len(rows)), kept + 1] = eos
    return rows, (kept + 2).astype(np.int32)
