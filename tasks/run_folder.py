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

import yaml
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data.reflow import REFLOW
from data.table import SOURCES
from errors import UserError
from models.checkpoint import UnreadableError, read_for_resuming
from schedulers import lr_multiplier
from tasks.inputs import PLACES, VALIDATION, VOCABULARY
from tasks.processes import ALONE, Processes
from tasks.stored import checked_settings
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
# Settings that name a place, or something that is known by a name like one.
PATHS = (*PLACES, "training.finetune_path", "algo.integral_cache_path")


class RunFolder:
    """A run's folder, and where in its training it goes on.

    Attributes:
        path: the folder.
        checkpoint: the file to go on from; None for a fresh start.
        state: its content, until somebody takes it.
        step: optimizer steps made so far.
        moved: settings whose places are others than before, with words for it: allowed where the content is
            the same.
    """

    def __init__(self, path: Path, checkpoint: Path | None, state: dict[str, Any] | None) -> None:
        self.path, self.checkpoint, self.state = path, checkpoint, state
        self.step: int = state["global_step"] if state else 0
        self.moved: dict[str, str] = {}
        self._unwritten: str | None = None

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
        if self.state and (differences := _differences(self.state["config"], cfg)):
            if self._refuses(differences):
                self._refuse(differences)
            self.moved |= differences

    def _refuses(self, differences: dict[str, str]) -> bool:
        """Whether they can only be a mistake: a place may be another one where its content is known."""
        return not (differences.keys() <= PLACES.keys() and self.state and self.state.get("inputs"))

    def _refuse(self, differences: dict[str, str]) -> None:
        raise UserError(
            RESUME,
            str(self.checkpoint),
            f"comes from a training with other settings ({'; '.join(differences.values())})",
            f"use its settings, or start from its weights: training.finetune_path={self.checkpoint}",
        )

    def compare_inputs(self, cfg: DictConfig, inputs: dict[str, str]) -> None:
        """Look at what the run reads (``tasks.inputs.input_digests``) before it goes on; to be called once.

        Another vocabulary and other pairs are refused: the weights know words by their ids, and pairs are the
        training itself. Another text is a warning in the same place (it may have been added to), and refused
        in another. Checkpoints of older versions do not say what was read.
        """
        before = (self.state or {}).get("inputs") or {}
        changed = {name for name in inputs if before.get(name, inputs[name]) != inputs[name]}
        if moved := {k: v for k, v in self.moved.items() if changed.intersection(PLACES[k])}:
            self._refuse(moved)
        if VOCABULARY in changed:
            key = "data.tokenizer_name_or_path"
            problem = f"its vocabulary is another one than that of {self.checkpoint}: ids mean other words"
            raise UserError(key, cfg.data.tokenizer_name_or_path, problem, _HINT_INPUTS)
        for name in sorted(changed):
            if name != VALIDATION and cfg.data.train == REFLOW:
                problem = f"holds other pairs than those that {self.checkpoint} was trained on"
                raise UserError("reflow.save_path", cfg.reflow.save_path, problem, _HINT_INPUTS)
            key = "data.valid" if name == VALIDATION else "data.train"
            words = "the text has changed since step %d was written; the run goes on with the present one"
            log.warning(f"%s=%s: {words}", key, OmegaConf.select(cfg, key), self.step)
        for words in self.moved.values():
            log.info("%s, with the same content", words)
        self.write_config()

    def warn_of_another_length(self, cfg: DictConfig) -> None:
        """Say what jumps when a schedule is a function of ``trainer.max_steps`` and that has changed."""
        stored = (self.state or {}).get("config", {}).get("trainer", {})
        before, now = stored.get("max_steps"), cfg.trainer.max_steps
        if before in (None, now):
            return
        jumps, step = [], self.step
        if cfg.lr_scheduler.name == "cosine_decay_warmup":
            settings = OmegaConf.to_container(cfg.lr_scheduler)
            rates = [cfg.optim.lr * lr_multiplier(settings, cfg.optim.lr, n)(step) for n in (before, now)]
            jumps.append("the learning rate from {:.3g} to {:.3g}".format(*rates))
            if step < (warmup := settings["warmup_fraction"] * now):
                jumps[-1] += f" (it warms up until step {warmup:.0f})"
        if cfg.algo.get("linear_growth_dt"):
            low, high = cfg.algo.linear_growth_min, cfg.algo.linear_growth_max
            lengths = [low + min(1.0, step / n) * (high - low) for n in (before, now)]
            jumps.append("the time step of the distillation from {:.3g} to {:.3g}".format(*lengths))
        if jumps:
            log.warning(
                "trainer.max_steps was %d, is %d, and what is a function of it jumps at step %d: %s",
                before,
                now,
                step,
                ", ".join(jumps),
            )

    def put_config(self, cfg: DictConfig) -> None:
        """Write config.yaml, of a run that goes on when all is found to be as it was (``write_config``)."""
        self._unwritten = OmegaConf.to_yaml(cfg, resolve=True)
        if self.checkpoint is None:
            self.write_config()

    def write_config(self) -> None:
        """Write config.yaml, if that is not done."""
        if self._unwritten is not None:
            with atomic_open(self.path / "config.yaml") as file:
                file.write(self._unwritten)
            self._unwritten = None


_HINT_INPUTS = (
    "put it back, or begin another run (name=..., or checkpointing.resume_from_ckpt=False), "
    "perhaps from these weights (training.finetune_path)"
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
    known = _written_config(folder) if (folder / CHECKPOINTS / LAST).exists() else None
    differences = _differences(known, cfg) if known else {}
    if differences.keys() - PLACES.keys():
        raise _another_run(folder, differences)
    held.enter_context(_alone_in(folder))
    checkpoint = _checkpoint(cfg) if cfg.checkpointing.resume_from_ckpt else None
    run = RunFolder(folder, checkpoint, _read(checkpoint) if checkpoint else None)
    if differences and run._refuses(differences):
        raise _another_run(folder, differences)
    run.moved = differences
    for place in (folder, folder / CHECKPOINTS, folder / STUDENTS, folder / "samples"):
        remove_unfinished(place)
    run.put_config(cfg)
    return run


def _another_run(folder: Path, differences: dict[str, str]) -> UserError:
    return UserError(
        "checkpointing.save_dir",
        str(folder),
        f"holds a run with other settings ({'; '.join(differences.values())})",
        "give another name=... or checkpointing.resume_from_ckpt=False",
    )


def _written_config(folder: Path) -> dict[str, Any] | None:
    """What config.yaml of a run says, if anything; the checkpoint knows the settings as well."""
    file = folder / "config.yaml"
    if not file.exists():
        return None
    try:
        content = OmegaConf.to_container(OmegaConf.load(file))  # ours are resolved: nothing is looked up
        if isinstance(content, dict) and "${" not in file.read_text(encoding="utf-8"):
            return content
    except (yaml.YAMLError, OmegaConfBaseException, ValueError):
        pass
    except OSError as error:
        if error.errno is not None:  # else the file is of one value
            raise
    log.warning("%s is damaged; it is written again, and the settings of the checkpoint count", file)
    return None


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
        state = read_for_resuming(path, key=RESUME)
    except UserError as error:
        if path.name != LAST and not isinstance(error, UnreadableError):
            raise
        other = _newest_intact(path)
        if other is not None:
            error.hint = f"{RESUME}={other} goes on from the newest intact one"
        elif path.name == LAST:
            error.hint = f"no other one is intact: delete {path} to start anew, or {error.hint}"
        raise
    checked_settings(state, key=RESUME, path=str(path))
    return state


def _newest_intact(damaged: Path) -> Path | None:
    """Among the checkpoints beside a damaged one; of those of one step the one named after it goes first."""
    found: list[tuple[int, bool, Path]] = []
    for path in damaged.parent.glob("*.ckpt"):
        named = re.search(r"-(\d+)$", path.stem)
        step = int(named[1]) if named else _intact_step(path)
        if path != damaged and step is not None:
            found.append((step, named is not None, path))
    newest_first = (path for _, _, path in sorted(found, reverse=True))
    return next((path for path in newest_first if _intact_step(path) is not None), None)


def _intact_step(path: Path) -> int | None:
    try:
        return read_for_resuming(path, key=RESUME)["global_step"]
    except UserError:
        return None


def _fresh(folder: Path) -> Path:
    number, fresh = 2, folder
    while fresh.exists():
        fresh = folder.with_name(f"{folder.name}-{number}")
        number += 1
    return fresh


def _differences(old: dict[str, Any], new: DictConfig) -> dict[str, str]:
    """The defining settings that differ, with words for each."""
    before, after = _flat(old), _flat(OmegaConf.to_container(new, resolve=True))
    return {
        key: f"{key} was {before[key]}, is {after[key]}"
        for key in sorted(before.keys() & after.keys())  # one-sided ones came or went with a version
        if before[key] != after[key] and not (key in PATHS and _same_place(before[key], after[key]))
    }


def _same_place(before: Any, after: Any) -> bool:
    """Whether two words are paths of one place, spelled in two ways."""
    if not (isinstance(before, str) and isinstance(after, str)) or {before, after} & {*SOURCES, ""}:
        return False
    return os.path.realpath(os.path.expanduser(before)) == os.path.realpath(os.path.expanduser(after))


def _flat(content: dict[str, Any]) -> dict[str, Any]:
    """The defining settings as dotted keys."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}", inner)
        elif prefix not in HARMLESS:
            flat[prefix] = value

    for section in DEFINING:
        if section in content:
            walk(section, content[section])
    others = DEFINING_KEYS
    if flat.get("data.train") == REFLOW:
        others = (*others, "reflow.save_path")
    for section, key in (name.split(".") for name in others):
        inside = content.get(section)
        if isinstance(inside, dict) and key in inside:
            flat[f"{section}.{key}"] = inside[key]
    return flat
