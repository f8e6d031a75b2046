"""``sampling.record_trajectories``: how the first samples came about, in a file beside the result.

The file is named like the result, ``<name>.trajectories.json``:

* ``mask_id``, and ``pieces``: the text of every id that occurs, blanks in front included;
* ``runs``: one a number of steps, with ``steps``, ``predictor``, ``num_steps`` (steps made, those without
  a change included) and ``samples``. A sample has the ids of its ``start`` and ``changes``, each
  ``[step, t, positions, ids, reset]`` (``samplers.trajectory.Change``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from transformers import PreTrainedTokenizerBase

from samplers.trajectory import Recorder, Trajectory
from tasks.processes import ALONE, Processes
from trainer_base import TrainerBase
from utils import atomic_open, to_json


class Trajectories:
    """Records the first ``sampling.record_trajectories`` samples at each number of steps.

    Args:
        path: of the result.
    """

    def __init__(self, module: TrainerBase, cfg: DictConfig, path: Path) -> None:
        self.path = path.with_name(f"{path.stem}.trajectories.json")
        self._module, self._number = module, cfg.sampling.record_trajectories
        self._recorders: dict[int, Recorder] = {}
        self._runs: list[dict[str, Any]] = []

    def watch(self, first_row: int) -> Recorder | None:
        """The hook for a batch that begins with sample ``first_row``; None where none is to be recorded."""
        missing = self._number - first_row
        if missing <= 0:
            return None
        strides = self._module.generator.strides
        stride = strides.stride_length if strides.num_strides else 0
        self._recorders[first_row] = Recorder(missing, self._module.mask_id, stride)
        return self._recorders[first_row]

    def finish(self, num_steps: int, lengths: Sequence[int], processes: Processes = ALONE) -> str:
        """Write what was recorded since the last call, by all processes; returns the file's name.

        Args:
            lengths: how many tokens of each sample are kept.
        """
        mine = {row: (found.trajectories, found.num_steps) for row, found in self._recorders.items()}
        self._recorders.clear()
        recorded = {row: part for parts in processes.gathered(mine) for row, part in parts.items()}
        ways = [way for row in sorted(recorded) for way in recorded[row][0]]
        kept = [way.cut(length) for way, length in zip(ways, lengths, strict=False)]
        self._runs.append(
            {
                "steps": num_steps,
                "predictor": self._module.generator.sampler_class.name,
                "num_steps": max(number for _, number in recorded.values()),
                "samples": [_as_json(way) for way in kept],
            }
        )
        if processes.is_first:
            self._write()
        return self.path.name

    def _write(self) -> None:
        samples = [sample for run in self._runs for sample in run["samples"]]
        used = {i for sample in samples for i in sample["start"]}
        used |= {i for sample in samples for change in sample["changes"] for i in change[3]}
        mask_id = self._module.mask_id
        found = pieces(self._module.tokenizer, sorted(used - {mask_id}))
        content = {"mask_id": mask_id, "pieces": found, "runs": self._runs}
        with atomic_open(self.path) as file:
            file.write(to_json(content, separators=(",", ":")) + "\n")


def pieces(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> dict[int, str]:
    """What each id adds to a text: decoded behind another token, so that blanks between words show."""
    try:
        anchor = tokenizer("a", add_special_tokens=False)["input_ids"]
    except Exception:  # a tokenizer that does not know letters
        anchor = tokenizer("0", add_special_tokens=False)["input_ids"]
    front = tokenizer.decode(anchor)
    texts = tokenizer.batch_decode([[*anchor, i] for i in ids])
    return {i: text.removeprefix(front) for i, text in zip(ids, texts, strict=True)}


def _as_json(way: Trajectory) -> dict[str, Any]:
    changes = [[c.step, c.t, c.positions, c.ids, c.reset] for c in way.changes]
    return {"start": way.start, "changes": changes}
