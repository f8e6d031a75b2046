"""Texts as vectors without a neural network: hashed counts of their n-grams."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from evaluation.ngrams import grams
from evaluation.units import units


class HashedNGrams:
    """Signed hashing of 1-, 2- and 3-grams of units (Weinberger et al., 2009), a third of ``size`` each.

    The counts of an order are log(1 + count), and have length 1. Equal texts have equal features on every
    machine. Called as ``models.featurizer.Featurizer`` is.
    """

    def __init__(self, kind: str, limit: int | None = None, size: int = 768) -> None:
        self.kind, self.limit, self.size = kind, limit, size
        self.name = f"hashed n-grams of {kind} ({size})"

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) float32 of N texts."""
        return np.stack([self._of(units(text, self.kind, self.limit)) for text in texts]).astype(np.float32)

    def has_tokens(self, text: str) -> bool:
        """Whether a text has a unit."""
        return bool(units(text, self.kind, 1))

    def _of(self, text: Sequence[str]) -> np.ndarray:
        width = self.size // 3
        parts = np.zeros((3, width))
        for order, part in enumerate(parts, 1):
            for gram, count in Counter(grams(text, order)).items():
                digest = zlib.crc32("\1".join(gram).encode("utf-8", "replace"))
                part[(digest >> 1) % width] += np.log1p(count) * (1 if digest & 1 else -1)
        norms = np.linalg.norm(parts, axis=1, keepdims=True)
        return (parts / np.where(norms > 0, norms, 1)).ravel()
