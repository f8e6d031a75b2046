"""The way of samples through a reverse process, as changes alone: 1024 tokens in 1024 steps stay small.

Shapes: B rows, L positions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from samplers.base import State


@dataclass(frozen=True)
class Change:
    """What one step did to one sample.

    Attributes:
        step: its number, from 1; the strides of a semi-autoregressive text count on.
        t: the time that it reached.
        positions, ids: where it wrote, and what.
        reset: positions that stay masked and received new noise.
    """

    step: int
    t: float
    positions: list[int]
    ids: list[int]
    reset: list[int]


@dataclass(frozen=True)
class Trajectory:
    """One sample: the ids it began with, and the changes of those steps that made one, in their order."""

    start: list[int]
    changes: list[Change]

    def end(self) -> list[int]:
        """The ids after all changes."""
        ids = list(self.start)
        for change in self.changes:
            for position, token in zip(change.positions, change.ids, strict=True):
                ids[position] = token
        return ids

    def cut(self, length: int) -> Trajectory:
        """The same of the first ``length`` positions."""
        changes = []
        for change in self.changes:
            written = [(p, i) for p, i in zip(change.positions, change.ids, strict=True) if p < length]
            reset = [position for position in change.reset if position < length]
            if written or reset:
                positions, ids = [p for p, _ in written], [i for _, i in written]
                changes.append(replace(change, positions=positions, ids=ids, reset=reset))
        return Trajectory(self.start[:length], changes)


class Recorder:
    """An ``on_step`` that keeps the way of the first ``num_rows`` rows of one batch.

    Args:
        num_rows: fewer where the batch has fewer.
        mask_id: id of the mask.
        stride: new tokens of a stride (``samplers.semi_ar``): each window after the first stands so many
            positions further to the right.

    Attributes:
        trajectories: one a row; empty before the first step.
        num_steps: steps seen, those without a change included.
    """

    def __init__(self, num_rows: int, mask_id: int, stride: int = 0) -> None:
        self.trajectories: list[Trajectory] = []
        self.num_steps = 0
        self._num_rows, self._mask_id, self._stride = num_rows, mask_id, stride
        self._offset = 0

    def __call__(self, step: int, before: State, after: State) -> None:
        """Note what the step ``before`` -> ``after``, both of B rows, changed."""
        if step == 0:
            self._begin_window(before.x[: self._num_rows].tolist())
        self.num_steps += 1
        was, now = before.x[: self._num_rows], after.x[: self._num_rows]
        written = was != now
        reset = written & False
        if before.mask_seeds is not None and after.mask_seeds is not None:
            renewed = before.mask_seeds[: self._num_rows] != after.mask_seeds[: self._num_rows]
            reset = renewed & (now == self._mask_id) & ~written
        rows = (written | reset).any(-1).nonzero().squeeze(-1).tolist()
        for row in rows:
            places = written[row].nonzero().squeeze(-1)
            change = Change(
                step=self.num_steps,
                t=round(float(after.t[row]), 6),
                positions=self._shifted(places),
                ids=now[row, places].tolist(),
                reset=self._shifted(reset[row].nonzero().squeeze(-1)),
            )
            self.trajectories[row].changes.append(change)

    def _begin_window(self, rows: list[list[int]]) -> None:
        if not self.trajectories:
            self.trajectories = [Trajectory(row, []) for row in rows]
            return
        self._offset += self._stride
        for trajectory in self.trajectories:
            trajectory.start.extend([self._mask_id] * self._stride)

    def _shifted(self, places: Tensor) -> list[int]:
        return (places + self._offset).tolist()
