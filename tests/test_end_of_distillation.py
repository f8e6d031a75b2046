"""A distillation that ends itself, killed before each of its last file operations, ends the same way."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import utils
from callbacks.checkpoints import Checkpoints
from config.cli import compose_config
from tasks import MODES
from tests.resume_runs import COMMAND, TIMED, content, differences, metrics

pytestmark = pytest.mark.slow

# Rounds of two steps of two micro-batches end after step 4; the last validation is the best.
WORDS = (
    *COMMAND,
    "lr_scheduler.num_warmup_steps=0",
    "trainer.max_steps=100",
    "trainer.log_every_n_steps=1",
    "trainer.limit_val_batches=1",
    "callbacks.checkpoint_every_n_steps.every_n_train_steps=3",
    "eval.generate_samples=False",
)
OPERATIONS = ("replace", "link", "unlink")


SDTT = (
    "algo=im-sdtt",
    "algo.orig_num_sampling_steps=8",
    "algo.min_num_sampling_steps=4",
    "algo.grow_dt_every=2",
    "training.load_ema=True",
    "callbacks.checkpoint_monitor.mode=max",  # few steps make the student worse
)


def train(run: Path, *more: str) -> dict[str, Any]:
    words = [*WORDS, f"data.cache_dir={run.parent}/cache", f"checkpointing.save_dir={run}", *more]
    return MODES["train"](compose_config(words, warn=False))


def train_with_snapshots(run: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> list[Path]:
    """Train; the folder as a kill before each rename, link and removal would leave it, but for those
    that differ in unfinished files alone."""
    snapshots: list[Path] = []
    seen: set[tuple[tuple[str, bytes], ...]] = set()

    def watch(name: str) -> None:
        original = getattr(os, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            files = sorted(path for path in run.rglob("*") if path.is_file() and path.suffix != ".tmp")
            state = tuple((str(path), path.read_bytes()) for path in files)
            if state not in seen and (run / "checkpoints" / "last.ckpt").exists():
                seen.add(state)
                snapshots.append(run.with_name(f"{run.name}-{len(seen)}"))
                shutil.copytree(run, snapshots[-1])
            return original(*args, **kwargs)

        patch.setattr(os, name, watched)

    with monkeypatch.context() as patch:
        for name in OPERATIONS:
            watch(name)
        train(run, *more)
    return snapshots


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the distillations start from."""
    run = tmp_path_factory.mktemp("teacher") / "run"
    train(run, "algo=imdm", "trainer.max_steps=40", "trainer.val_check_interval=1000")
    return f"training.finetune_path={run}/checkpoints/last.ckpt"


@pytest.mark.parametrize("interval", [6, 4], ids=["of its own", "due anyway"])
def test_killed_before_each_of_the_last_operations(
    interval: int, teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last validation is at a step of its own, or at one at which one is due."""
    more = (teacher, f"trainer.val_check_interval={interval}", *SDTT)
    whole = tmp_path / "whole"
    snapshots = train_with_snapshots(whole, monkeypatch, *more)[-5:]
    # The files are of this very process, which a kill would have ended.
    monkeypatch.setattr(utils, "_maker_is_alive", lambda name: False)
    best, last = (content(whole / "checkpoints" / name) for name in ("best.ckpt", "last.ckpt"))
    assert best["global_step"] == last["global_step"] == 4, "the last validation is to be the best"
    assert {content(run / "checkpoints" / "last.ckpt")["global_step"] for run in snapshots} >= {3, 4}
    expected = json.loads((whole / "result.json").read_text())
    for run in snapshots:
        train(run, *more)
        for name in ("last.ckpt", "best.ckpt"):
            found = content(run / "checkpoints" / name)
            assert not differences(found, content(whole / "checkpoints" / name)), (run, name)
        assert metrics(run) == metrics(whole), run
        result = json.loads((run / "result.json").read_text())
        assert result | {name: expected[name] for name in ("checkpoint", *TIMED)} == expected
        assert not list(run.rglob("*.tmp"))


def test_stopped_in_the_last_validation(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All steps are made, and last.ckpt is written without the validation, which is owed."""
    more = (teacher, "trainer.val_check_interval=6", *SDTT)
    train(tmp_path / "whole", *more)

    original = Checkpoints.on_validation_end

    def fails(self: Checkpoints, trainer: Any, module: Any) -> None:
        if trainer.global_step == 4:
            raise MemoryError("of the device")
        original(self, trainer, module)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "on_validation_end", fails)
        with pytest.raises(MemoryError):
            train(tmp_path / "run", *more)
    assert content(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 4
    train(tmp_path / "run", *more)
    for name in ("last.ckpt", "best.ckpt"):
        found, expected = (content(tmp_path / run / "checkpoints" / name) for run in ("run", "whole"))
        found["epoch"] = expected["epoch"]  # Lightning's, 0 inside a training and 1 at its end
        assert not differences(found, expected)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
