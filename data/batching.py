"""Which row of the data goes into which micro-batch: a function of seed and optimizer step alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from torch.utils.data import Sampler

Pairs = list[tuple[int, int]]


class MicroBatch(Pairs):
    """Pairs (row in the global batch, index in the data set), and how large the whole step is.

    Attributes:
        num_tokens: tokens that count in the optimizer step's global batch, divided by its number of
            micro-batches (accumulation x devices); None when all tokens of all rows count.
        seed, step: what random treatment of a row is keyed by, beside its number.
    """

    def __init__(
        self,
        pairs: Iterable[tuple[int, int]] = (),
        num_tokens: float | None = None,
        seed: int = 0,
        step: int = 0,
    ) -> None:
        super().__init__(pairs)
        self.num_tokens, self.seed, self.step = num_tokens, seed, step


def permutation(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    """(num_rows,) int64: a random order of 0 .. num_rows - 1, the same on every machine.

    Sorts the counter-based Philox words of key (seed, epoch), each with its index in the low bits: no two
    are equal, so the order depends on no sorting algorithm, and sorting in place needs no second array.
    """
    words = np.random.Philox(key=np.array([seed % 2**64, epoch], dtype=np.uint64)).random_raw(num_rows)
    low = np.uint64((1 << max(num_rows - 1, 1).bit_length()) - 1)
    words &= ~low
    words |= np.arange(num_rows, dtype=np.uint64)
    words.sort()
    words &= low
    return words.view(np.int64)


def official_permutation(num_rows: int, seed: int) -> np.ndarray:
    """(num_rows,) int64: the order of ``numpy.random.permutation`` behind ``numpy.random.seed(seed)``, in
    which the official programs take prefixes and human texts."""
    return np.random.RandomState(seed).permutation(num_rows)


class GlobalBatchSampler(Sampler[Pairs]):
    """An endless stream of the micro-batches of one rank, from any optimizer step on.

    The global batch of optimizer step k is a slice of the permutation of its epoch, whatever the devices
    are. With W ranks and A accumulation steps, micro-batch j of rank r holds its rows
    (j W + r) b .. (j W + r + 1) b - 1, where b = ``batch_size`` and A W b = ``global_batch_size``.

    Yields ``MicroBatch``es of b pairs (row in the global batch, index in the data set).

    Args:
        lengths: (num_rows,) tokens that count in each row of the data set; None when all of them do.
        drop_last: leave out, in each epoch, the rows that fill no global batch; otherwise a batch begins
            in one epoch and ends in the next, and no row is left out.
        start_step: number of optimizer steps already made.
        cycle: optimizer steps after which the first batches come again; None: never.
    """

    def __init__(
        self,
        num_rows: int,
        global_batch_size: int,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        start_step: int = 0,
        drop_last: bool = True,
        lengths: np.ndarray | None = None,
        cycle: int | None = None,
    ) -> None:
        assert global_batch_size % (batch_size * world_size) == 0 and 0 <= rank < world_size
        assert num_rows >= (global_batch_size if drop_last else 1)
        assert lengths is None or len(lengths) == num_rows
        self.batch_size, self.start_step = batch_size, start_step
        self._num_rows, self._global, self._rank, self._world = num_rows, global_batch_size, rank, world_size
        self._seed, self._lengths, self._cycle = seed, lengths, cycle
        self._epoch_rows = num_rows - num_rows % global_batch_size if drop_last else num_rows
        self._order: tuple[int, np.ndarray] | None = None

    @property
    def steps_per_epoch(self) -> float:
        """Optimizer steps until all rows were drawn, or until the first batches come again."""
        return self._cycle or self._epoch_rows / self._global

    def global_batch(self, step: int) -> np.ndarray:
        """(global_batch_size,) int64: the data set's indices in the batch of an optimizer step."""
        parts: list[np.ndarray] = []
        position, missing = step * self._global, self._global
        while missing:
            epoch, start = divmod(position, self._epoch_rows)
            parts.append(self._epoch_order(epoch)[start : min(start + missing, self._epoch_rows)])
            position, missing = position + len(parts[-1]), missing - len(parts[-1])
        return np.concatenate(parts)

    def __iter__(self) -> Iterator[MicroBatch]:
        step, stride = self.start_step, self.batch_size * self._world
        while True:
            drawn = step % self._cycle if self._cycle else step
            indices = self.global_batch(drawn)
            num_tokens = None
            if self._lengths is not None:
                passes = self._global // self.batch_size
                num_tokens = int(self._lengths[indices].sum(dtype=np.int64)) / passes
            for start in range(self._rank * self.batch_size, self._global, stride):
                end = start + self.batch_size
                pairs = zip(range(start, end), indices[start:end].tolist(), strict=True)
                yield MicroBatch(pairs, num_tokens, self._seed, drawn)
            step += 1

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            self._order = None  # free the old one first
            self._order = epoch, permutation(self._num_rows, self._seed, epoch)
        return self._order[1]


class ShardedSequentialSampler(Sampler[Pairs]):
    """Every row once, in order, over all ranks; the last batches are shorter, and none is dropped.

    All ranks take full batches in turn while there are ``world_size`` of them; the rows left over are
    divided evenly. With fewer rows left than ranks, some ranks have one batch less than others.

    Yields lists of pairs (index, index): in evaluation the row is the index in the data set.
    """

    def __init__(self, num_rows: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        assert batch_size > 0 and 0 <= rank < world_size
        self.batch_size = batch_size
        stride = batch_size * world_size
        rounds, left = divmod(num_rows, stride)
        starts = np.arange(rounds, dtype=np.int64) * stride + rank * batch_size
        self._borders = [(start, start + batch_size) for start in starts.tolist()]
        border = [rounds * stride + left * r // world_size for r in (rank, rank + 1)]
        if border[0] < border[1]:
            self._borders.append((border[0], border[1]))

    def __len__(self) -> int:
        return len(self._borders)

    def __iter__(self) -> Iterator[Pairs]:
        for start, end in self._borders:
            yield [(i, i) for i in range(start, end)]
