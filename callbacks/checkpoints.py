"""Checkpoint files: whole or not there, written once for all their names, and when that is."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.io import TorchCheckpointIO

from errors import UserError
from utils import atomic_open, get_logger

log = get_logger("checkpoints")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints appear under their name only when they are whole: a kill during a write loses nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._handed: tuple[Path, dict[str, Any]] | None = None

    def preload(self, path: str | Path, checkpoint: dict[str, Any]) -> None:
        """Give the next ``load_checkpoint`` of ``path`` what was read already: files can have many GB."""
        self._handed = Path(path), checkpoint

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:
        handed, self._handed = self._handed, None
        if handed is not None and handed[0] == Path(path):
            return handed[1]
        return super().load_checkpoint(path, weights_only=weights_only)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``.

        Raises:
            OSError: with the name of the file; what was there before is untouched.
        """
        try:
            with atomic_open(Path(path), "wb") as file:
                torch.save(checkpoint, file)
        except RuntimeError as error:
            # torch's writer closes its archive after a failed write, and complains of that instead.
            cause = error.__context__
            if not isinstance(cause, OSError):
                raise
            raise OSError(cause.errno, cause.strerror, str(path)) from error


def link(source: Path, target: Path) -> None:
    """Make ``target`` another name of the file ``source``, atomically; a copy where links are not known."""
    temporary = target.with_name(f".{target.name}.link.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        with atomic_open(target, "wb") as file, source.open("rb") as content:
            shutil.copyfileobj(content, file)
        return
    os.replace(temporary, target)
    temporary.unlink(missing_ok=True)  # a rename does nothing when both names were the same file already


def _remove(trainer: L.Trainer, file: Path) -> None:
    if trainer.is_global_zero:
        file.unlink(missing_ok=True)


class Checkpoints(Callback):
    """Writes last.ckpt at regular steps, for a better best.ckpt and at the end; the others are links to it.

    A checkpoint of step k is what k optimizer steps and the log line of step k leave behind. A validation at
    step k is not part of it: resuming there repeats it (callbacks/resumption.py). So it does not matter
    whether the process ends before, during or after a validation.

    Args:
        folder: of the files.
        every: optimizer steps between the checkpoints <epoch>-<step>.ckpt; None: there are none.
        newest: how many of these are kept; -1: all.
        regular_folder: where they are; None: in ``folder``.
        monitor: the validation metric that decides on best.ckpt; None: there is none.
        mode: "min" or "max", what is better.
        top_k: how many of the best validations are kept, those but one as best-<step>.ckpt; -1: all.
        best: in the place of ``folder``/best.ckpt.

    Attributes:
        saved_step: the step of last.ckpt; None where this run has not written or read it.
        validating: a validation of the training is going on.
        inputs: digests of what the training reads (tasks/inputs.py), which every file keeps.
    """

    def __init__(
        self,
        folder: Path,
        *,
        every: int | None = None,
        newest: int = -1,
        regular_folder: Path | None = None,
        monitor: str | None = None,
        mode: str = "min",
        top_k: int = 1,
        best: Path | None = None,
    ) -> None:
        self.folder, self.last = folder, folder / "last.ckpt"
        self.every, self.newest, self.regular_folder = every, newest, regular_folder or folder
        self.monitor, self.mode, self.top_k = monitor, mode, top_k
        self.best = best or folder / "best.ckpt"
        self.saved_step: int | None = None
        self.validating = False
        self.inputs: dict[str, str] = {}
        self._best_score: float | None = None
        self._ranked: list[tuple[float, str]] = []  # the best validations and their files, the best first
        self._regular: list[str] = []
        self._step_before: int | None = None

    def save(self, trainer: L.Trainer) -> None:
        """Make last.ckpt that of the present step, if it is not; to be called between two optimizer steps.

        Raises:
            ValueError: it cannot be written; the one before is intact.
        """
        step = trainer.global_step
        if step == self.saved_step or step == 0:
            return
        try:
            trainer.save_checkpoint(self.last, weights_only=False)
        except OSError as error:
            again = "starts anew" if self.saved_step is None else f"goes on from step {self.saved_step}"
            raise UserError(
                "checkpointing.save_dir",
                str(self.folder.parent),
                f"the checkpoint of step {step} cannot be written ({error.strerror})",
                f"make room, then the same command {again}",
            ) from error
        self.saved_step = step

    def _save_if_due(self, trainer: L.Trainer) -> None:
        if self.every and trainer.global_step % self.every == 0:
            self.save(trainer)
            self._file_regular(trainer, trainer.global_step)

    def _file_regular(self, trainer: L.Trainer, step: int) -> None:
        """Give last.ckpt the name of its step, if that is a regular one."""
        if not self.every or step % self.every or not step or not self.newest:
            return
        name = f"0-{step}.ckpt"  # <epoch>-<step>: the batches are one endless epoch
        kept = [other for other in self._regular if other != name] if self.newest > 0 else []
        self._regular = [*kept, name]
        if trainer.is_global_zero:
            link(self.last, self.regular_folder / name)
        while 0 < self.newest < len(self._regular):
            _remove(trainer, self.regular_folder / self._regular.pop(0))

    # Between two steps: when Lightning begins the next one, the log line of the step before is written.

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step != self._step_before:
            self._step_before = trainer.global_step
            self._save_if_due(trainer)

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._save_if_due(trainer)
        self.validating = True

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not self.validating:
            return
        self.validating = False
        if self.monitor is None:
            return
        score = self._score(trainer)
        is_best = self._best_score is None or self._is_better(score, self._best_score)
        if not is_best and not self._is_kept(score):
            return
        self.save(
            trainer
        )  # with the scores before: a kill in between repeats validation, comparison and link
        if is_best:
            self._best_score = score
            if trainer.is_global_zero:
                link(self.last, self.best)
        if self.top_k != 1:
            self._file_ranked(trainer, score)

    def _score(self, trainer: L.Trainer) -> float:
        if self.monitor not in trainer.callback_metrics:
            logged = ", ".join(sorted(name for name in trainer.callback_metrics if name.startswith("val/")))
            problem, hint = "no validation logs it", f"use one of {logged}"
            raise UserError("callbacks.checkpoint_monitor.monitor", self.monitor, problem, hint)
        return float(trainer.callback_metrics[self.monitor])

    def _is_better(self, score: float, other: float) -> bool:
        return score < other if self.mode == "min" else score > other

    def _is_kept(self, score: float) -> bool:
        """Whether a validation that is not the best is among those that are kept."""
        if self.top_k == 1:
            return False
        room = self.top_k == -1 or len(self._ranked) < self.top_k
        return room or self._is_better(score, self._ranked[-1][0])

    def _file_ranked(self, trainer: L.Trainer, score: float) -> None:
        """Give last.ckpt a name among those of the best validations."""
        name = f"{self.best.stem}-{trainer.global_step}.ckpt"
        kept = [(other, file) for other, file in self._ranked if file != name]
        place = sum(not self._is_better(score, other) for other, _ in kept)
        self._ranked = [*kept[:place], (score, name), *kept[place:]]
        if trainer.is_global_zero:
            link(self.last, self.best.with_name(name))
        while 0 < self.top_k < len(self._ranked):
            _remove(trainer, self.best.with_name(self._ranked.pop()[1]))

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._save_if_due(trainer)
        self.save(trainer)

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """What goes wrong in a validation (memory, above all) does not cost the steps before it."""
        if self.validating and trainer.world_size == 1 and self.saved_step != trainer.global_step:
            with contextlib.suppress(OSError, ValueError):  # told is the first error
                self.save(trainer)
                log.info("validation broke off; %s holds all %d steps", self.last, trainer.global_step)

    # Resumption -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self._best_score, "regular": self._regular, "ranked": self._ranked}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best_score, regular = state_dict["best_score"], state_dict["regular"]
        # Earlier versions knew the newest one alone.
        self._regular = regular if isinstance(regular, list) else [regular] if regular else []
        self._ranked = [(score, name) for score, name in state_dict.get("ranked", [])]

    def on_save_checkpoint(
        self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["inputs"] = dict(self.inputs)

    def on_load_checkpoint(
        self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self.last.exists() and self.last.samefile(trainer.ckpt_path):
            self.saved_step = checkpoint["global_step"]

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            for folder in (self.regular_folder, self.best.parent):
                folder.mkdir(parents=True, exist_ok=True)
        if self.saved_step is not None:
            self._file_regular(trainer, self.saved_step)  # a kill may have come between file and link
