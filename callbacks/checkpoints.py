"""Atomic checkpoint files, and when they are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from utils import atomic_open


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints appear under their name only when they are whole: a kill during a write loses nothing."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with atomic_open(Path(path), "wb") as file:
            torch.save(checkpoint, file)


def checkpoint_callbacks(settings: dict[str, Any], folder: Path) -> list[Callback]:
    """The ``callbacks`` group as Lightning callbacks; ``last.ckpt`` is always kept, also at the end."""
    made: list[Callback] = []
    every = settings.get("checkpoint_every_n_steps")
    if every:
        made.append(
            ModelCheckpoint(
                dirpath=folder,
                filename="{epoch}-{step}",
                auto_insert_metric_name=False,
                save_top_k=every["save_top_k"],
                every_n_train_steps=every["every_n_train_steps"],
                save_last=True,
                save_on_train_epoch_end=False,
            )
        )
    monitor = settings.get("checkpoint_monitor")
    if monitor:
        made.append(
            ModelCheckpoint(
                dirpath=folder,
                filename="best",
                monitor=monitor["monitor"],
                mode=monitor["mode"],
                save_top_k=1,
                enable_version_counter=False,
                save_on_train_epoch_end=False,
            )
        )
    return made
