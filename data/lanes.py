"""A lane: an endless stream of blocks from some shards, that can begin at any block it has noted.

Documents come in chunks; a chunk is shuffled and handed out, then the next one is read. So the order is a
function of the seed, and where a chunk begins is all there is to know about the past.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.batching import permutation
from data.packing import Documents, with_eos
from data.shards import Shard

_CHARACTERS = 2**17  # of the documents that are tokenised together


class Cursor(NamedTuple):
    """Where a chunk begins: in a round through the lane's shards, at a document of one of them."""

    epoch: int = 0
    shard: int = 0
    document: int = 0


class ResumePoint(NamedTuple):
    """A document of the stream: in a chunk, the ``index``-th after shuffling; ``tokens`` came before it."""

    cursor: Cursor
    index: int
    tokens: int


class TooShort(Exception):
    """All shards of a lane together have ``args[0]`` tokens, which fill no block."""


class ShardStream:
    """Blocks of one lane, in order.

    Args:
        shards: its own, in no particular order.
        read: the texts of a shard from a document on, in batches.
        encode: texts to ids.
        eos: behind each document; None: nothing.
        inner: tokens of a block.
        chunk: documents that are shuffled together.
        key: (seed, number of the lane).
        notes: file of places to begin from; grows as blocks are asked for by ``note``. None: none is kept.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        *,
        read: Callable[[Shard, int], Iterator[list[str]]],
        encode: Callable[[list[str]], Documents],
        eos: int | None,
        inner: int,
        chunk: int,
        key: tuple[int, int],
        notes: Path | None = None,
    ) -> None:
        assert shards and inner > 0 and chunk > 0
        self._shards, self._read, self._encode = list(shards), read, encode
        self._eos, self._inner, self._chunk, self._key = eos, inner, chunk, key
        self._notes, self._noted = notes, 0
        self._begin(ResumePoint(Cursor(), 0, 0))

    def take(self, first: int, last: int) -> np.ndarray:
        """Blocks ``first`` .. ``last`` - 1, (last - first, inner); fast where ``first`` is the next one."""
        if first * self._inner < self._start:
            self.seek(first)
        self._drop(first * self._inner)
        while self._end < last * self._inner:
            self._refill()
            self._drop(first * self._inner)
        tokens = np.concatenate(self._parts)[: (last - first) * self._inner]
        self._drop(last * self._inner)
        return tokens.reshape(last - first, self._inner)

    def seek(self, block: int) -> int:
        """Go to the last noted place before ``block``; returns how many tokens lie between."""
        target, found = block * self._inner, ResumePoint(Cursor(), 0, 0)
        for note in _read_notes(self._notes):
            self._noted = max(self._noted, note.tokens)
            if found.tokens < note.tokens <= target:
                found = note
        if not found.tokens <= self._start <= target:
            self._begin(found)
        return target - max(self._start, found.tokens)

    def note(self, block: int) -> None:
        """Write down a place from which ``block`` is soon reached; the lane stands there."""
        target = block * self._inner
        found = next((note for note in reversed(self._known) if note.tokens <= target), None)
        if self._notes is None or found is None or found.tokens <= self._noted:
            return
        self._noted = found.tokens
        self._notes.parent.mkdir(parents=True, exist_ok=True)
        # One short write, on a line of its own: a kill can tear the last line only.
        with self._notes.open("a", encoding="utf-8") as file:
            file.write(f"\n{json.dumps([*found.cursor, found.index, found.tokens])}")

    # The stream of tokens: self._parts hold those from self._start to self._end ---------------------------

    def _begin(self, note: ResumePoint) -> None:
        self._parts: list[np.ndarray] = []
        self._start = self._end = note.tokens
        self._known: deque[ResumePoint] = deque()
        self._stream = self._documents(note.cursor, note.index)
        self._epoch, self._epoch_start, self._whole = note.cursor.epoch, note.tokens, note.tokens == 0

    def _drop(self, position: int) -> None:
        while self._parts and self._start + len(self._parts[0]) <= position:
            self._start += len(self._parts.pop(0))
        if self._parts and self._start < position:
            self._parts[0] = self._parts[0][position - self._start :]
            self._start = position
        while len(self._known) > 1 and self._known[1].tokens <= position:
            self._known.popleft()

    def _refill(self) -> None:
        places, texts, size = [], [], 0
        while size < _CHARACTERS and len(texts) < 1000:
            cursor, index, text = next(self._stream)
            places.append((cursor, index))
            texts.append(text)
            size += len(text)
        documents = self._encode(texts)
        separated = self._eos is not None
        ends = self._end + np.cumsum(documents.sizes + separated)
        for (cursor, index), begin in zip(places, [self._end, *ends.tolist()], strict=False):
            self._watch_epoch(cursor.epoch, begin)
            self._known.append(ResumePoint(cursor, index, begin))
        self._parts.append(with_eos(documents, self._eos) if separated else documents.tokens)
        self._end = int(ends[-1])

    def _watch_epoch(self, epoch: int, begin: int) -> None:
        """Raise when a whole epoch, of which the beginning was seen, filled no block."""
        if epoch == self._epoch:
            return
        if self._whole and begin - self._epoch_start < self._inner:
            raise TooShort(begin - self._epoch_start)
        self._epoch, self._epoch_start, self._whole = epoch, begin, True

    def _documents(self, cursor: Cursor, index: int) -> Iterator[tuple[Cursor, int, str]]:
        """(chunk, index in it, text) from a document on, without end."""
        while True:
            chunks = self._chunks(cursor)
            for cursor, texts in chunks:
                order = permutation(len(texts), self._key[0], _mix(1, self._key[1], *cursor))
                for place in range(index, len(texts)):
                    yield cursor, place, texts[order[place]]
                index = 0
            cursor = Cursor(cursor.epoch + 1)

    def _chunks(self, cursor: Cursor) -> Iterator[tuple[Cursor, list[str]]]:
        """The chunks of one epoch from ``cursor`` on; raises ``TooShort`` when it has no document at all."""
        order = permutation(len(self._shards), self._key[0], _mix(2, self._key[1], cursor.epoch))
        texts: list[str] = []
        first = cursor
        for number in range(cursor.shard, len(order)):
            done = cursor.document if number == cursor.shard else 0
            for batch in self._read(self._shards[order[number]], done):
                while batch:
                    room = self._chunk - len(texts)
                    texts += batch[:room]
                    done += len(batch[:room])
                    batch = batch[room:]
                    if len(texts) == self._chunk:
                        yield first, texts
                        first, texts = Cursor(cursor.epoch, number, done), []
        if texts:
            yield first, texts
        elif first == Cursor(cursor.epoch):
            raise TooShort(0)


def _mix(*numbers: int) -> int:
    """One number of many, as the key of an order of its own."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def _read_notes(path: Path | None) -> Iterator[ResumePoint]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path else []
    except OSError:
        return
    for line in lines:
        try:
            epoch, shard, document, index, tokens = json.loads(line)
            yield ResumePoint(Cursor(int(epoch), int(shard), int(document)), int(index), int(tokens))
        except (ValueError, TypeError):  # torn by a kill
            continue
