"""Rows of token ids, fetched a whole micro-batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

TOKENS_FILE = "tokens.npy"
LENGTHS_FILE = "lengths.npy"


class TokenDataset:
    """(N, L) token ids, in memory or memory-mapped, with the true length of each row where rows are padded.

    Args:
        tokens: (N, L) of any integer type.
        lengths: (N,) number of positions from the left that count; None when all of them do.
    """

    def __init__(self, tokens: np.ndarray, lengths: np.ndarray | None = None) -> None:
        self._tokens, self._lengths = tokens, lengths
        self._folder: Path | None = None

    @classmethod
    def open(cls, folder: Path) -> TokenDataset:
        """Map the arrays of a cache folder; nothing is read yet."""
        lengths = folder / LENGTHS_FILE
        dataset = cls(
            np.load(folder / TOKENS_FILE, mmap_mode="r"), np.load(lengths) if lengths.exists() else None
        )
        dataset._folder = folder
        return dataset

    def __reduce__(self) -> tuple:
        # A worker process maps the files itself; pickling a memory map would copy all of it.
        if self._folder is not None:
            return TokenDataset.open, (self._folder,)
        return TokenDataset, (self._tokens, self._lengths)

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def length(self) -> int:
        """L, the number of positions of a row."""
        return self._tokens.shape[1]

    @property
    def lengths(self) -> np.ndarray | None:
        """(N,) tokens that count in each row; None when all of them do."""
        return self._lengths

    @property
    def nbytes(self) -> int:
        """Size of the token array in bytes."""
        return self._tokens.nbytes

    def fetch(self, indices: np.ndarray | Sequence[int]) -> dict[str, Tensor]:
        """``input_ids`` (B, L) int64 and ``attention_mask`` (B, L) bool of the rows ``indices`` (B,)."""
        indices = np.asarray(indices, dtype=np.int64)
        input_ids = torch.from_numpy(np.asarray(self._tokens[indices]).astype(np.int64))
        if self._lengths is None:
            return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids, dtype=torch.bool)}
        counted = np.arange(self.length) < self._lengths[indices][:, None]
        return {"input_ids": input_ids, "attention_mask": torch.from_numpy(counted)}

    def __getitems__(self, pairs: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """``fetch`` for torch's DataLoader, from pairs (row, index); adds ``row`` (B,) int64.

        From a ``MicroBatch`` that knows it also ``num_tokens``, 0-d float32.
        """
        rows, indices = np.asarray(pairs, dtype=np.int64).T
        batch = {**self.fetch(indices), "row": torch.from_numpy(rows.copy())}
        num_tokens = getattr(pairs, "num_tokens", None)
        return batch if num_tokens is None else {**batch, "num_tokens": torch.tensor(num_tokens)}

    def __getitem__(self, pair: tuple[int, int]) -> dict[str, Tensor]:
        """One row, without the batch axis."""
        return {name: value[0] for name, value in self.__getitems__([pair]).items()}
