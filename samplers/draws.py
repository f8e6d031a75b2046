"""All randomness of reverse steps comes through one small object, so that it can be replayed or coupled.

Shapes: B rows, L positions, N chosen positions, V vocabulary.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Protocol

from torch import Tensor

from diffusion.categorical import sample_categorical
from diffusion.randomness import fold_in, uniform


class Draws(Protocol):
    """What a sampler asks chance for. Each answer belongs to (row, step, purpose, position) alone."""

    def actions(self, step: int, length: int) -> Tensor:
        """Uniforms (B, length), float64 in [0, 1): unmask, keep or reset each position."""
        ...

    def tokens(self, step: int, log_probs: Tensor, batch_index: Tensor, position: Tensor) -> Tensor:
        """One id (N,) per row of ``log_probs`` (N, V); row n belongs to (batch_index[n], position[n])."""
        ...

    def hits(self, step: int, number: int = 0) -> Tensor:
        """Uniforms (B, 2), float64: time and position of hit ``number`` of a step (first hitting)."""
        ...

    def order(self, step: int, length: int) -> Tensor:
        """Uniforms (B, length), float64 in [0, 1): of samplers that rank positions, besides ``actions``."""
        ...

    def cond_keys(self, step: int) -> Tensor:
        """Keys (B,) int64 from which fresh mask noise is drawn."""
        ...

    def select(self, rows: Tensor) -> Draws:
        """The draws of a sub-batch; ``rows`` (n,) int64 indices. A row's draws do not change by it."""
        ...


class _Purpose(IntEnum):
    # Away from small numbers: callers may fold those into the same row keys for draws of their own.
    ACTIONS = 1000
    TOKENS = 1001
    HITS = 1002
    COND = 1003
    ORDER = 1004


class KeyedDraws:
    """Draws from a counter-based generator: pure functions of the rows' keys.

    Args:
        keys: (B,) int64, one per row (``diffusion.randomness.row_keys``); equal keys give equal samples,
            whatever else is in the batch and however often a draw is asked for.
    """

    def __init__(self, keys: Tensor) -> None:
        self._keys = keys

    def actions(self, step: int, length: int) -> Tensor:
        return uniform(self._at(step, _Purpose.ACTIONS), length)

    def tokens(self, step: int, log_probs: Tensor, batch_index: Tensor, position: Tensor) -> Tensor:
        keys = fold_in(self._at(step, _Purpose.TOKENS)[batch_index], position)
        return self.categorical(log_probs, keys)

    def categorical(self, log_probs: Tensor, keys: Tensor) -> Tensor:
        """One id (N,) per row of ``log_probs`` (N, V), decided by its key alone; ``keys`` (N,) int64."""
        return sample_categorical(log_probs, uniform(keys, 1).squeeze(-1))

    def hits(self, step: int, number: int = 0) -> Tensor:
        keys = self._at(step, _Purpose.HITS)
        return uniform(fold_in(keys, number) if number else keys, 2)

    def order(self, step: int, length: int) -> Tensor:
        return uniform(self._at(step, _Purpose.ORDER), length)

    def cond_keys(self, step: int) -> Tensor:
        return self._at(step, _Purpose.COND)

    def select(self, rows: Tensor) -> KeyedDraws:
        return type(self)(self._keys[rows])

    def _at(self, step: int, purpose: _Purpose) -> Tensor:
        return fold_in(fold_in(self._keys, int(purpose)), step)
