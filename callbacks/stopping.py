"""Ends a training between two steps with last.ckpt written: on signals, and when its time is over."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from callbacks.checkpoints import Checkpoints
from errors import UserError

# What a user, a system that shuts down and a scheduler send.
_GO_ON, _TIME = -1, 0  # beside the numbers of signals, which are positive
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class TrainingStopped(BaseException):
    """Training ended early, and not by a mistake. No ``Exception``: nobody is to mistake it for one.

    Attributes:
        signum: the signal that asked for it; None when the time was over.
    """

    def __init__(self, signum: int | None) -> None:
        super().__init__(signum)
        self.signum = signum

    @property
    def reason(self) -> str:
        """What ended the training, as a user knows it."""
        return "trainer.max_time is over" if self.signum is None else signal.Signals(self.signum).name


def read_duration(max_time: str | None) -> float:
    """``DD:HH:MM:SS`` in seconds; infinity for None.

    Raises:
        ValueError: it has another form.
    """
    if max_time is None:
        return float("inf")
    match = re.fullmatch(r"(\d+):(\d\d):(\d\d):(\d\d)", max_time.strip())
    if match is None:
        raise UserError(
            "trainer.max_time", max_time, "not of the form DD:HH:MM:SS", "write 00:12:00:00 for twelve hours"
        )
    days, hours, minutes, seconds = map(int, match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60.0 + seconds


def ignore_signals(worker: int) -> None:
    """For worker processes of the data loader, whom schedulers and terminals signal as well.

    The step that was begun needs them; without them torch would break it off. They end with the training.
    """
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


class Stopping(Callback):
    """Raises ``TrainingStopped`` where nothing is lost: between steps, or, on one device, in a validation.

    The time counts from the construction of this object, so that the same command gets it anew. A second
    SIGINT stops at once.

    Args:
        checkpoints: writes last.ckpt first.
        max_time: ``trainer.max_time``.
    """

    def __init__(self, checkpoints: Checkpoints, max_time: str | None) -> None:
        self._checkpoints = checkpoints
        self._end = time.monotonic() + read_duration(max_time)
        self._signum: int | None = None
        self._single = True
        self._step_before: int | None = None

    def _listen(self, trainer: L.Trainer) -> None:
        # After Lightning's own handlers, which would write a file of their own amid a step or stop without
        # one. Lightning puts back what was there before it.
        self._single = trainer.world_size == 1
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                signal.signal(signum, self._on_signal)

    def on_sanity_check_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._listen(trainer)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._listen(trainer)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        again, self._signum = self._signum is not None, signum
        # Devices that stop by themselves would leave the others waiting for them.
        in_validation = self._checkpoints.validating and self._single
        if signum == signal.SIGINT if again else in_validation:
            raise TrainingStopped(signum)
        if signum == signal.SIGINT and rank_zero_only.rank == 0:
            # No print: a signal may come in the middle of one.
            os.write(2, b"\nstopping after this step; Ctrl-C again: at once\n")

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self._step_before:
            return  # amid the micro-batches of a step
        self._step_before = trainer.global_step
        reason = self._signum or (_TIME if time.monotonic() >= self._end else _GO_ON)
        if trainer.world_size > 1:  # a signal may reach one process alone; all end for the same reason
            own = torch.tensor(int(reason), device=trainer.strategy.root_device)
            reason = int(trainer.strategy.reduce(own, reduce_op="max"))
        if reason != _GO_ON:
            self._checkpoints.save(trainer)
            raise TrainingStopped(None if reason == _TIME else reason)
