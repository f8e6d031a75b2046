"""Training rows tokenised while they are used: the same in every optimizer step, whatever the devices.

The shards of the text are dealt to lanes. Row g of the global batch of size G takes its blocks from lane
g // q, q = G / (number of lanes), and so a device reads and tokenises the lanes of its own rows alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from data.batching import permutation
from data.encoding import Encoder, fingerprint
from data.hub import Unavailable
from data.lanes import ShardStream, TooShort
from data.places import DatasetRequest, local_shards, locate, remote_shards
from data.shards import Shard, read_shard
from data.sources import TextSource, detokenized, nowhere, refuse_missing_split
from data.table import SOURCES, HubSource
from data.tokenizers import boundary_ids
from errors import UserError
from utils import get_logger, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LANES = 64  # at most
_SHARDS = 16 * _LANES  # at least, where that can be: lanes shall be about equally long
_LANE_BYTES = 2**20  # of local text, at least
_DIGEST_CHUNKS, _DIGEST_BYTES = 64, 2**20  # of a text, at most
_NOTE_TOKENS = 2**25  # of all rows, between two places that a stream can begin at
log = get_logger("data")


@dataclass(frozen=True)
class StreamRecipe:
    """What shapes the rows, besides the tokenizer.

    Attributes:
        length: L, positions of a row.
        insert_eos: eos behind each document.
        eos: ``official`` or ``sep``, see ``data.tokenizers.boundary_ids``.
        global_batch_size: rows of an optimizer step.
        shuffle_buffer: documents that wait to be drawn from, in all lanes together.
    """

    wanted: DatasetRequest
    length: int
    insert_eos: bool
    eos: str
    global_batch_size: int
    shuffle_buffer: int
    seed: int


class TokenStream:
    """The rows of every optimizer step.

    Raises:
        ValueError: what cannot be streamed, is not there, or does not fill a row.
    """

    def __init__(self, recipe: StreamRecipe, tokenizer: PreTrainedTokenizerBase) -> None:
        self.recipe, self._tokenizer = recipe, tokenizer
        shards, self._row, identity = _open(recipe.wanted)
        if not shards:
            wanted = recipe.wanted
            raise UserError(wanted.key, wanted.name, "the set for train holds no text", "use another one")
        self._bos, self._eos = boundary_ids(tokenizer, recipe.eos)
        size = recipe.global_batch_size
        room = min(_LANES, len(shards), _local_bytes(shards) // _LANE_BYTES or 1)
        self.num_lanes = max(lanes for lanes in range(1, min(room, size) + 1) if size % lanes == 0)
        self.rows_per_lane = size // self.num_lanes
        dealt = [shards[place] for place in permutation(len(shards), recipe.seed, 0)]
        self._dealt = [dealt[lane :: self.num_lanes] for lane in range(self.num_lanes)]
        parts = {
            "text": identity,
            "tokenizer": fingerprint(tokenizer),
            "eos": [recipe.eos, recipe.insert_eos],
            "length": recipe.length,
            "rows": [size, self.num_lanes],
            "shuffle_buffer": recipe.shuffle_buffer,
            "seed": recipe.seed,
        }
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
        label = Path(recipe.wanted.name).stem or "data"
        self.folder = recipe.wanted.cache_dir / "streams" / f"{label}-{digest}"
        self.note_every = max(1, _NOTE_TOKENS // (size * recipe.length))
        where = shards[0].file.rpartition("/")[0]
        log.info("%s streams from %s: %d shards in %d lanes", label, where, len(shards), self.num_lanes)

    def check(self) -> None:
        """Make the first row, so that what is wrong with the text is said at once; leave a description."""
        self.blocks(self.open_lane(0, Encoder(self._tokenizer)), 0, 1)
        if not (self.folder / "README.json").exists():
            about = (
                "where the lanes of a stream can begin; made again, by reading from the start, when missing"
            )
            write_json(self.folder / "README.json", {"about": about, "of": str(self.recipe)})

    def digest(self) -> str:
        """Of the local files by size and a part of their content, wherever they lie; of others by address."""
        digest = hashlib.sha256()
        files = list(dict.fromkeys(shard.file for lane in self._dealt for shard in lane))
        looked_into = -(-len(files) // _DIGEST_CHUNKS)  # one file of so many
        for number, file in enumerate(files):
            if "://" in file:
                digest.update(file.encode())
                continue
            size = Path(file).stat().st_size
            digest.update(str(size).encode())
            chunks = max(1, _DIGEST_CHUNKS // len(files)) if number % looked_into == 0 else 0
            with open(file, "rb") as content:
                for chunk in range(chunks):
                    content.seek(chunk * size // chunks)
                    digest.update(content.read(_DIGEST_BYTES))
        return digest.hexdigest()

    def warn_without_notes(self, step: int) -> None:
        """Say why a start at ``step`` takes long, and what may be wrong with it."""
        if not any(self.folder.glob("lane-*.txt")):
            log.warning(
                "no notes of an earlier run in %s: the text has changed, or the cache was removed; "
                "the stream is read from its start to step %d",
                self.folder,
                step,
            )

    def encoder(self) -> Encoder:
        """What the lanes of a process share."""
        return Encoder(self._tokenizer)

    def open_lane(self, number: int, encode: Encoder) -> ShardStream:
        """A lane at its beginning."""
        recipe, row = self.recipe, self._row
        return ShardStream(
            self._dealt[number],
            read=partial(_read, column=row.column, detokenizer=row.detokenizer, key=recipe.wanted.key),
            encode=encode,
            eos=self._eos if recipe.insert_eos else None,
            inner=recipe.length - 2,
            chunk=max(1, recipe.shuffle_buffer // self.num_lanes),
            key=(recipe.seed, number),
            notes=self.folder / f"lane-{number:03d}.txt",
        )

    def blocks(self, lane: ShardStream, first: int, last: int) -> np.ndarray:
        """Rows ``first`` .. ``last`` - 1 of a lane, (last - first, L), bos and eos around them."""
        try:
            inner = lane.take(first, last)
        except TooShort as error:
            wanted, length = self.recipe.wanted, self.recipe.length
            problem = f"{error} tokens for {wanted.role} do not fill one block of model.length={length}"
            hint = "use a smaller model.length or more text, or data.streaming=False"
            raise UserError(wanted.key, wanted.name, problem, hint) from error
        return np.pad(inner, ((0, 0), (1, 1)), constant_values=((0, 0), (self._bos, self._eos)))


class StreamBatches(IterableDataset):
    """An endless stream of the micro-batches of one rank, from any optimizer step on.

    Micro-batches are laid out as by ``data.batching.GlobalBatchSampler``; each is a dict of ``input_ids``
    (B, L) int64, ``attention_mask`` (B, L) bool, all True, and ``row`` (B,) int64.

    Args:
        start_step: number of optimizer steps already made.
        cycle: optimizer steps after which the first batches come again; None: never.
    """

    def __init__(
        self,
        stream: TokenStream,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        cycle: int | None = None,
    ) -> None:
        super().__init__()
        assert stream.recipe.global_batch_size % (batch_size * world_size) == 0 and 0 <= rank < world_size
        self._stream, self._batch_size = stream, batch_size
        self._rank, self._world, self._start_step, self._cycle = rank, world_size, start_step, cycle

    def digest(self) -> str:
        """Of the text."""
        return self._stream.digest()

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        lanes, step = _OpenLanes(self._stream), self._start_step
        if step >= self._stream.note_every and not self._cycle:
            self._stream.warn_without_notes(step)
        while True:
            drawn = step % self._cycle if self._cycle else step
            for start in self._starts():
                rows = np.arange(start, start + self._batch_size)
                input_ids = torch.from_numpy(lanes.rows(rows, drawn).astype(np.int64))
                mask = torch.ones_like(input_ids, dtype=torch.bool)
                yield {"input_ids": input_ids, "attention_mask": mask, "row": torch.from_numpy(rows)}
            step += 1
            if step % self._stream.note_every == 0 and not self._cycle:
                lanes.note(step)

    def _starts(self) -> range:
        first, stride = self._rank * self._batch_size, self._batch_size * self._world
        return range(first, self._stream.recipe.global_batch_size, stride)


class _OpenLanes:
    """The lanes that a process reads."""

    def __init__(self, stream: TokenStream) -> None:
        self._stream, self._encode = stream, stream.encoder()
        self._lanes: dict[int, ShardStream] = {}

    def rows(self, rows: np.ndarray, step: int) -> np.ndarray:
        """(B, L): the neighbouring ``rows`` (B,) of a step's global batch."""
        each, made = self._stream.rows_per_lane, []
        for number in range(rows[0] // each, rows[-1] // each + 1):
            inside = rows[rows // each == number] % each
            first, last = (step * each + int(place) for place in (inside[0], inside[-1] + 1))
            made.append(self._stream.blocks(self._lane(number, step), first, last))
        return np.concatenate(made)

    def note(self, step: int) -> None:
        """Write down where the lanes are at the beginning of ``step``."""
        for lane in self._lanes.values():
            lane.note(step * self._stream.rows_per_lane)

    def _lane(self, number: int, step: int) -> ShardStream:
        if number not in self._lanes:
            self._lanes[number] = self._stream.open_lane(number, self._encode)
            self._lanes[number].seek(step * self._stream.rows_per_lane)
        return self._lanes[number]


def _open(wanted: DatasetRequest) -> tuple[list[Shard], HubSource, dict[str, Any]]:
    """The shards of a text, how to read them, and what names their content."""
    if wanted.name in SOURCES and not isinstance(SOURCES[wanted.name], HubSource):
        problem, hint = f"{wanted.key}={wanted.name} has no documents that could stream", "use False"
        raise UserError("data.streaming", True, problem, hint)
    place = locate(wanted)
    if place.local is not None:
        return local_shards(wanted, place, _SHARDS)
    refuse_missing_split(wanted, place.row)
    try:
        shards, identity = remote_shards(wanted, place.row, _SHARDS)
    except Unavailable as error:
        corpus = TextSource(place.row.path, lambda: iter(()), {})
        raise nowhere(wanted, [(corpus, error)]) from error
    return shards, place.row, identity


def _read(shard: Shard, done: int, *, column: str, detokenizer: str | None, key: str) -> Iterator[list[str]]:
    return detokenized(read_shard(shard, column, key, done), detokenizer)


def _local_bytes(shards: list[Shard]) -> int:
    """Size of the local files; what is remote counts as large."""
    if any(shard.remote for shard in shards):
        return _LANES * _LANE_BYTES
    return sum(Path(file).stat().st_size for file in {shard.file for shard in shards})
