"""The folder of a training run: the same command finds its own run again, another one is told apart."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from data.reflow import REFLOW
from errors import UserError
from models.checkpoint import read_for_resuming
from tasks.processes import ALONE, Processes
from utils import atomic_open, get_logger, remove_unfinished

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

CHECKPOINTS, LAST, STUDENTS = "checkpoints", "last.ckpt", "checkpoints/student_checkpoints"
RESUME = "checkpointing.resume_ckpt_path"
log = get_logger("train")

# What shapes the trained weights. Everything else (devices, logging, evaluation, how long to train)
# may differ between the command that began a run and the one that goes on with it.
DEFINING = ("seed", "algo", "model", "noise", "data", "optim", "lr_scheduler", "training")
DEFINING_KEYS = ("loader.global_batch_size", "trainer.gradient_clip_val", "trainer.precision")
HARMLESS = (
    "data.cache_dir",
    "data.source_root",
    "algo.min_num_sampling_steps",
    "model.attention",
    "model.compile",
    "training.activation_checkpointing",
)


class RunFolder:
    """A run's folder, and where in its training it goes on.

    Attributes:
        path: the folder.
        checkpoint: the file to go on from; None for a fresh start.
        state: its content, until somebody takes it.
        step: optimizer steps made so far.
    """

    def __init__(self, path: Path, checkpoint: Path | None, state: dict[str, Any] | None) -> None:
        self.path, self.checkpoint, self.state = path, checkpoint, state
        self.step: int = state["global_step"] if state else 0

    def take_state(self) -> dict[str, Any] | None:
        """The content of the checkpoint, which can have many GB: nothing is kept of it here."""
        state, self.state = self.state, None
        return state

    @property
    def link(self) -> Path:
        """The name beside the folder that last.ckpt gets when training is over."""
        return self.path.with_name(f"{self.path.name}.ckpt")

    def refuse_foreign_link(self) -> None:
        """Raise when something else has that name: a checkpoint from elsewhere is never replaced."""
        if os.path.lexists(self.link) and not self._is_linked():
            problem = f"{self.link} is there and no link of this run"
            hint = "move it away, give another name=..., or use checkpointing.link_when_done=False"
            raise UserError("checkpointing.link_when_done", True, problem, hint)

    def make_link(self) -> None:
        """Make ``link`` a relative symbolic link to last.ckpt."""
        if rank_zero_only.rank or self._is_linked():
            return
        try:
            os.symlink(self._linked, self.link)
        except OSError as error:  # some file systems know no links
            log.warning("%s: no link to %s could be made (%s)", self.link, self._linked, error.strerror)
            return
        log.info("%s -> %s", self.link, self._linked)

    @property
    def _linked(self) -> str:
        return f"{self.path.name}/{CHECKPOINTS}/{LAST}"

    def _is_linked(self) -> bool:
        return self.link.is_symlink() and os.readlink(self.link) == self._linked

    def refuse_another_training(self, cfg: DictConfig) -> None:
        """Raise when the checkpoint is of a training with other settings than ``cfg``."""
        if self.state and (differences := _differences(OmegaConf.create(self.state["config"]), cfg)):
            raise UserError(
                RESUME,
                str(self.checkpoint),
                f"comes from a training with other settings ({'; '.join(differences)})",
                f"use its settings, or start from its weights: training.finetune_path={self.checkpoint}",
            )


@contextlib.contextmanager
def open_run_folder(cfg: DictConfig, processes: Processes = ALONE) -> Iterator[RunFolder]:
    """The run's folder with the checkpoint to go on from; inside the block nobody else trains there.

    With ``checkpointing.resume_from_ckpt=False`` an existing run is left alone and a numbered folder
    beside it is taken. What a killed process left unfinished is removed. The first process does all that.

    Raises:
        ValueError: when the folder holds a run of another configuration (it says what differs), when another
            process trains in it, when a checkpoint that was named is missing or one cannot be read.
    """
    with contextlib.ExitStack() as held:
        runs: list[RunFolder] = []

        def take() -> tuple[Path, Path | None]:
            runs.append(_take(cfg, held))
            return runs[0].path, runs[0].checkpoint

        path, checkpoint = processes.by_first(take)
        yield runs[0] if runs else RunFolder(path, checkpoint, _read(checkpoint) if checkpoint else None)


def _take(cfg: DictConfig, held: contextlib.ExitStack) -> RunFolder:
    """The run's folder, locked until ``held`` lets go of it, in order, and with the present configuration."""
    folder = Path(cfg.checkpointing.save_dir)
    if not cfg.checkpointing.resume_from_ckpt:
        folder = _fresh(folder)
    config_file = folder / "config.yaml"
    if config_file.exists() and (folder / CHECKPOINTS / LAST).exists():
        differences = _differences(OmegaConf.load(config_file), cfg)
        if differences:
            raise UserError(
                "checkpointing.save_dir",
                str(folder),
                f"holds a run with other settings ({'; '.join(differences)})",
                "give another name=... or checkpointing.resume_from_ckpt=False",
            )
    held.enter_context(_alone_in(folder))
    checkpoint = _checkpoint(cfg) if cfg.checkpointing.resume_from_ckpt else None
    run = RunFolder(folder, checkpoint, _read(checkpoint) if checkpoint else None)
    for place in (folder, folder / CHECKPOINTS, folder / STUDENTS, folder / "samples"):
        remove_unfinished(place)
    with atomic_open(config_file) as file:
        file.write(OmegaConf.to_yaml(cfg, resolve=True))
    return run


def wandb_id(folder: Path) -> str:
    """The Weights & Biases id of the run in ``folder``: made once, so that a resumed run goes on there."""
    file = folder / "wandb_id.txt"
    if not file.exists():
        with atomic_open(file) as content:
            content.write(secrets.token_hex(4))
    return file.read_text().strip()


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder; the system lets go of it however the process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    # A lock of the process, not of the open file: workers of the data loader may live a little longer.
    with (folder / ".lock").open("a") as file:
        try:
            if fcntl is not None:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):  # others: a file system without locks
                problem, hint = "another process trains there", "wait for it, or give another name=..."
                raise UserError("checkpointing.save_dir", str(folder), problem, hint) from error
        yield


def _checkpoint(cfg: DictConfig) -> Path | None:
    """The checkpoint that ``cfg`` names; None when it is the usual one and there is none yet."""
    usual = f"{cfg.checkpointing.save_dir}/{CHECKPOINTS}/{LAST}"
    named = cfg.checkpointing.resume_ckpt_path or usual
    if Path(named).exists():
        return Path(named)
    if named != usual:
        raise UserError(RESUME, named, "no such file", "leave it out to go on from last.ckpt or start anew")
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_for_resuming(path, key=RESUME)
    except UserError as error:
        if path.name != LAST:
            raise
        older = next((p for p in _by_step(path.parent) if _is_intact(p)), None)
        if older is not None:
            error.hint = f"{RESUME}={older} goes on from the newest intact one"
        else:
            error.hint = f"no other one is intact: delete {path} to start anew, or {error.hint}"
        raise


def _by_step(folder: Path) -> list[Path]:
    """The regular checkpoints, the newest first."""
    found = [path for path in folder.glob("*-*.ckpt") if re.fullmatch(r"\d+-\d+", path.stem)]
    return sorted(found, key=lambda path: int(path.stem.split("-")[1]), reverse=True)


def _is_intact(path: Path) -> bool:
    try:
        return bool(read_for_resuming(path, key=RESUME))
    except ValueError:
        return False


def _fresh(folder: Path) -> Path:
    number, fresh = 2, folder
    while fresh.exists():
        fresh = folder.with_name(f"{folder.name}-{number}")
        number += 1
    return fresh


def _differences(old: Any, new: DictConfig) -> list[str]:
    before, after = _flat(old), _flat(new)
    return [
        f"{key} was {before[key]}, is {after[key]}"
        for key in sorted(before.keys() & after.keys())  # one-sided ones came or went with a version
        if before[key] != after[key]
    ]


def _flat(cfg: Any) -> dict[str, Any]:
    """The defining settings as dotted keys."""
    flat: dict[str, Any] = {key: OmegaConf.select(cfg, key) for key in DEFINING_KEYS}
    if OmegaConf.select(cfg, "data.train") == REFLOW:
        flat["reflow.save_path"] = OmegaConf.select(cfg, "reflow.save_path")

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}", inner)
        elif prefix not in HARMLESS:
            flat[prefix] = value

    content = OmegaConf.to_container(cfg, resolve=True)
    for section in DEFINING:
        walk(section, content.get(section))
    return flat
