"""Rows of token ids, fetched a whole micro-batch at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

TOKENS_FILE = "tokens.npy"
LENGTHS_FILE = "lengths.npy"


_CHUNK, _DIGEST_CHUNKS = 2**20, 64
_CROP = 0x63726F70  # keeps these draws apart from the order of the rows


def window(seed: int, step: int, rows: np.ndarray, choices: int) -> np.ndarray:
    """(B,) int64, uniform over 0 .. choices - 1: a function of seed, optimizer step and row (B,) alone."""
    key = np.array([seed % 2**64, _CROP << 32], dtype=np.uint64)
    philox = np.random.Philox(key=key, counter=np.array([0, step, 0, 0], dtype=np.uint64))
    words = philox.random_raw(int(rows.max()) + 1)[rows] >> np.uint64(32)
    return (words * np.uint64(choices) >> np.uint64(32)).astype(np.int64)


def array_digest(*arrays: np.ndarray) -> str:
    """A digest of shapes and content; of a large array of ``_DIGEST_CHUNKS`` evenly spaced MiB."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape} {array.dtype.str}".encode())
        content = array.reshape(-1).view(np.uint8)
        chunks = -(-len(content) // _CHUNK)
        for number in range(min(chunks, _DIGEST_CHUNKS)):
            start = _CHUNK * (number * chunks // min(chunks, _DIGEST_CHUNKS))
            digest.update(content[start : start + _CHUNK])
    return digest.hexdigest()


class TokenDataset:
    """(N, L) token ids, in memory or memory-mapped, with the true length of each row where rows are padded.

    Args:
        tokens: (N, L) of any integer type.
        lengths: (N,) number of positions from the left that count; None when all of them do.
        crop: L, where a row of ``tokens`` (2 L - 2 long) is bos, twice the text of L positions, and eos, out
            of which a batch takes a window at random. A function of (seed, step, row), see ``window``.
    """

    def __init__(
        self, tokens: np.ndarray, lengths: np.ndarray | None = None, crop: int | None = None
    ) -> None:
        assert crop is None or (lengths is None and tokens.shape[1] == 2 * crop - 2)
        self._tokens, self._lengths, self._crop = tokens, lengths, crop
        self._folder: Path | None = None

    @classmethod
    def open(cls, folder: Path, crop: int | None = None) -> TokenDataset:
        """Map the arrays of a cache folder; nothing is read yet."""
        lengths = folder / LENGTHS_FILE
        tokens = np.load(folder / TOKENS_FILE, mmap_mode="r")
        dataset = cls(tokens, np.load(lengths) if lengths.exists() else None, crop)
        dataset._folder = folder
        return dataset

    def __reduce__(self) -> tuple:
        # A worker process maps the files itself; pickling a memory map would copy all of it.
        if self._folder is not None:
            return TokenDataset.open, (self._folder, self._crop)
        return TokenDataset, (self._tokens, self._lengths, self._crop)

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def length(self) -> int:
        """L, the number of positions of a row."""
        return self._crop or self._tokens.shape[1]

    @property
    def lengths(self) -> np.ndarray | None:
        """(N,) tokens that count in each row; None when all of them do."""
        return self._lengths

    @property
    def nbytes(self) -> int:
        """Size of the token array in bytes."""
        return self._tokens.nbytes

    def digest(self) -> str:
        """Of the content, wherever it lies."""
        return array_digest(self._tokens, *(() if self._lengths is None else (self._lengths,)))

    def fetch(
        self, indices: np.ndarray | Sequence[int], starts: np.ndarray | None = None
    ) -> dict[str, Tensor]:
        """``input_ids`` (B, L) int64 and ``attention_mask`` (B, L) bool of the rows ``indices`` (B,).

        ``starts`` (B,), 0 .. L - 2: where the windows of a cropped set begin; None: at the front.
        """
        indices = np.asarray(indices, dtype=np.int64)
        found = np.asarray(self._tokens[indices])
        if self._crop is not None:
            begin = np.zeros(len(indices), dtype=np.int64) if starts is None else starts
            inner = np.take_along_axis(found, 1 + begin[:, None] + np.arange(self._crop - 2), axis=1)
            found = np.concatenate([found[:, :1], inner, found[:, -1:]], axis=1)
        input_ids = torch.from_numpy(found.astype(np.int64))
        if self._lengths is None:
            return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids, dtype=torch.bool)}
        counted = np.arange(self.length) < self._lengths[indices][:, None]
        return {"input_ids": input_ids, "attention_mask": torch.from_numpy(counted)}

    def __getitems__(self, pairs: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """``fetch`` for torch's DataLoader, from pairs (row, index); adds ``row`` (B,) int64.

        From a ``MicroBatch`` that knows it also ``num_tokens``, 0-d float32.
        """
        rows, indices = np.asarray(pairs, dtype=np.int64).T
        seed, step = getattr(pairs, "seed", 0), getattr(pairs, "step", 0)
        starts = None if self._crop is None else window(seed, step, rows, self._crop - 1)
        batch = {**self.fetch(indices, starts), "row": torch.from_numpy(rows.copy())}
        num_tokens = getattr(pairs, "num_tokens", None)
        return batch if num_tokens is None else {**batch, "num_tokens": torch.tensor(num_tokens)}

    def __getitem__(self, pair: tuple[int, int]) -> dict[str, Tensor]:
        """One row, without the batch axis."""
        return {name: value[0] for name, value in self.__getitems__([pair]).items()}
