"""Lightning's counters after a checkpoint: a function of the number of optimizer steps alone."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from callbacks.metrics_file import MetricsFile


class Resumption(Callback):
    """Goes on exactly after optimizer step k of a checkpoint, whatever the accumulation was and is.

    Lightning's own counters depend on the hook in which a checkpoint was written and on the number of
    micro-batches in a step, and it skips a validation that was due there. Here they are set to those of k
    whole steps, and a validation that is due at step k is run (again): callbacks/checkpoints.py leaves it out
    of the checkpoint. One is due where an algorithm ends itself, too.

    Args:
        metrics: the CSV log, which forgets what came after the checkpoint.
    """

    def __init__(self, metrics: MetricsFile) -> None:
        self.metrics = metrics
        self._max_steps: int | None = None
        self._ended_itself = False

    def on_load_checkpoint(
        self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        step = checkpoint["global_step"]
        batches = step * trainer.accumulate_grad_batches
        is_over = module.objective.finished(step) is not None
        due = _validation_due(trainer, batches, is_over)
        self.metrics.go_on_after(step, without_validation=due)
        checkpoint["loops"]["fit_loop"] |= {
            "epoch_progress": _progress(1, 1, 0),  # the one, endless epoch has begun
            "epoch_loop.state_dict": {"_batches_that_stepped": step - due},  # counted after the validation
            "epoch_loop.batch_progress": {**_progress(batches, batches, batches), "is_last_batch": False},
            # One batch begun and not finished: Lightning runs the whole validation again.
            "epoch_loop.val_loop.batch_progress": {**_progress(due, due, 0), "is_last_batch": False},
        }
        if due and step >= trainer.max_steps:
            # Lightning leaves at once when all steps are made; this run still owes its last validation.
            self._max_steps = trainer.max_steps
            trainer.fit_loop.epoch_loop.max_steps = step + 1
        if due and is_over:
            # The algorithm ends itself again when training starts: this lets Lightning stay all the same.
            self._ended_itself, trainer.fit_loop.epoch_loop.min_steps = True, step + 1

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self._ended_itself:  # at any step, where validations are due at regular ones
            trainer.val_check_batch = trainer.global_step * trainer.accumulate_grad_batches

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        if self._max_steps is not None:
            trainer.fit_loop.epoch_loop.max_steps, self._max_steps = self._max_steps, None
        if self._ended_itself:
            trainer.fit_loop.epoch_loop.min_steps, self._ended_itself = None, False


def _validation_due(trainer: L.Trainer, batches: int, is_over: bool) -> bool:
    if not trainer.enable_validation or trainer.check_val_every_n_epoch not in (None, 1):
        return False
    return is_over or batches % trainer.val_check_interval == 0


def _progress(ready: int, started: int, done: int) -> dict[str, dict[str, int]]:
    counts = {"ready": int(ready), "started": int(started), "processed": int(done), "completed": int(done)}
    return {"total": dict(counts), "current": dict(counts)}
