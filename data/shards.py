"""Parts of files that are read on their own: what a slice of a split, and a stream, are made of."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from data.formats import FORMATS, Format, ending_of
from errors import UserError
from utils import get_logger

_THREADS = 16  # for the footers of remote files
_ANY_NUMBER = 10**15  # of documents: more than there are
_WAITS = (1, 4, 16, 60, 60)  # seconds until a file on the network is tried again
log = get_logger("data")


@dataclass(frozen=True)
class Shard:
    """Documents ``first`` .. ``first + count`` (None: to the end) of a span of a file.

    Attributes:
        file: a path or a URL.
        start, stop: the span, see data/formats.py.
        key: data.train or data.valid, for errors.
    """

    file: str
    start: int = 0
    stop: int | None = None
    first: int = 0
    count: int | None = None
    key: str = "data.train"

    @property
    def format(self) -> Format:
        return FORMATS[ending_of(self.file)]

    @property
    def remote(self) -> bool:
        return "://" in self.file

    def __len__(self) -> int:
        there = self.format.count(self.file, self.start, self.stop, self.key) - self.first
        return there if self.count is None else min(there, self.count)


@dataclass(frozen=True)
class Split:
    """A split expression of ``datasets`` such as ``train[:-100]``: a name and a slice of its documents."""

    name: str
    start: int | None = None
    stop: int | None = None

    @classmethod
    def parse(cls, text: str) -> Split | None:
        """None for what is more than a name and one slice in documents."""
        match = re.fullmatch(r"(?P<name>[\w.-]+)(\[(?P<start>-?\d+)?:(?P<stop>-?\d+)?\])?", text)
        if match is None:
            return None
        return cls(match["name"], *(int(match[side]) if match[side] else None for side in ("start", "stop")))

    @property
    def whole(self) -> bool:
        return self.start is None and self.stop is None

    def overlaps(self, other: Split) -> bool:
        """Whether two slices of the same documents share one, were there any number of them."""
        left, right = (slice(split.start, split.stop).indices(_ANY_NUMBER) for split in (self, other))
        return max(left[0], right[0]) < min(left[1], right[1])


def cut(files: Sequence[str], wanted: int = 0, key: str = "data.train") -> list[Shard]:
    """A shard a file; where these are fewer than ``wanted``, the smallest parts that can be read alone."""
    shards = [Shard(file, key=key) for file in files]
    if len(shards) >= wanted:
        return shards
    with ThreadPoolExecutor(_THREADS) as pool:
        spans = pool.map(lambda shard: shard.format.spans(shard.file, key), shards)
        pairs = zip(files, spans, strict=True)
        return [Shard(file, start, stop, key=key) for file, parts in pairs for start, stop, _ in parts]


def take(shards: Sequence[Shard], split: Split) -> list[Shard]:
    """The documents of ``split``'s slice; counts those of all shards."""
    if split.whole:
        return list(shards)
    with ThreadPoolExecutor(_THREADS) as pool:
        counts = list(pool.map(len, shards))
    left, right, _ = slice(split.start, split.stop).indices(sum(counts))
    taken, begin = [], 0
    for shard, count in zip(shards, counts, strict=True):
        first, last = max(left - begin, 0), min(right - begin, count)
        if first < last:
            full = (first, last) == (0, count)
            taken.append(shard if full else replace(shard, first=shard.first + first, count=last - first))
        begin += count
    return taken


def read_shards(shards: Iterable[Shard], column: str, key: str) -> Iterator[list[str]]:
    """Batches of documents; ``column`` holds the text in jsonl, parquet and arrow."""
    for shard in shards:
        yield from read_shard(shard, column, key)


def read_shard(shard: Shard, column: str, key: str, skip: int = 0) -> Iterator[list[str]]:
    """Batches of the documents of a shard but for the first ``skip``.

    A file on the network that breaks off is opened again, after a while, where it stopped.
    """
    given, waits = skip, iter(_WAITS if shard.remote else ())
    while True:
        try:
            for found in _trimmed(shard, column, key, given):
                given += len(found)
                yield shard.format.texts(found, shard.file, column, key)
            return
        except Exception as error:  # each library of the network has its own types
            if not shard.remote or isinstance(error, ValueError):
                raise
            reason, wait = " ".join(str(error).split())[:200], next(waits, None)
            if wait is None:
                hint = "when the network is back, the same command goes on"
                raise UserError(key, shard.file, f"cannot be read any more ({reason})", hint) from error
            log.warning("%s: %s; again in %d s", shard.file, reason, wait)
            time.sleep(wait)


def _trimmed(shard: Shard, column: str, key: str, skip: int) -> Iterator[list]:
    begin, end = shard.first + skip, None if shard.count is None else shard.first + shard.count
    start, left = shard.format.skip(shard.file, shard.start, shard.stop, begin, key)
    position = begin - left
    for found in shard.format.read(shard.file, start, shard.stop, column, key):
        part = found[max(begin - position, 0) : None if end is None else max(end - position, 0)]
        position += len(found)
        if part:
            yield part
        if end is not None and position >= end:
            return
