"""One progress bar for the whole training, and throughput."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ProgressBar
from tqdm import tqdm

from utils import get_logger

log = get_logger("progress")


class Throughput(Callback):
    """Tokens per second since the previous log step, over all devices, without validation time."""

    def __init__(self, tokens_per_step: int) -> None:
        self.tokens_per_step = tokens_per_step
        self.tokens_per_second = 0.0
        self._steps = 0
        self._seconds = 0.0
        self._started = 0.0

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self._started = time.perf_counter()
        self._step_before = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        self._seconds += time.perf_counter() - self._started
        self._steps += trainer.global_step - self._step_before
        if trainer.global_step > self._step_before and trainer.global_step % trainer.log_every_n_steps == 0:
            self.tokens_per_second = self._steps * self.tokens_per_step / self._seconds
            self._steps, self._seconds = 0, 0.0
            module.log("train/tokens_per_second", self.tokens_per_second)


class StepProgressBar(ProgressBar):
    """One bar from step 0 to ``trainer.max_steps``: loss, tokens per second, time left.

    On a terminal it is a live bar; in a log file, one line each log step.
    """

    def __init__(self, throughput: Throughput) -> None:
        super().__init__()
        self.throughput = throughput
        self._bar: tqdm | None = None
        self._enabled = True
        self._printed = (0.0, 0)

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._printed = (time.perf_counter(), trainer.global_step)
        if self._enabled and sys.stderr.isatty():
            self._bar = tqdm(
                total=trainer.max_steps,
                initial=trainer.global_step,
                desc=module.config.name,
                unit="step",
                dynamic_ncols=True,
            )

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        step = trainer.global_step
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
        if not self._enabled or step % trainer.log_every_n_steps or step == self._printed[1]:
            return
        loss = trainer.callback_metrics.get("trainer/loss")
        shown = {
            "loss": f"{float(loss):.4g}" if loss is not None else "-",
            "tokens/s": f"{self.throughput.tokens_per_second:,.0f}",
        }
        if self._bar is not None:
            self._bar.set_postfix(shown)
        else:
            self._print_line(trainer, module.config.name, shown)

    def _print_line(self, trainer: L.Trainer, name: str, shown: dict[str, str]) -> None:
        step, (before, step_before) = trainer.global_step, self._printed
        now = time.perf_counter()
        left = (now - before) / (step - step_before) * (trainer.max_steps - step)
        self._printed = (now, step)
        words = ", ".join(f"{key} {value}" for key, value in shown.items())
        log.info(
            "%s: step %d of %d, %s, %s left", name, step, trainer.max_steps, words, tqdm.format_interval(left)
        )

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
