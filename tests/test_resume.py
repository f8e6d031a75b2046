"""A run that is killed, stopped or broken at any moment goes on, by the same command, as if nothing was."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from callbacks.checkpoints import link
from callbacks.metrics_file import MetricsFile
from tasks.run_folder import RESUME, wandb_id
from tests.resume_runs import STEPS, Runner, assert_same, content, metrics, running

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums depend on the number of threads; the runs that are killed have one, and so has this process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    with running(tmp_path_factory.mktemp("resume")) as found:
        yield found


@pytest.fixture(scope="module")
def whole(runner: Runner) -> Path:
    """A run that nothing interrupts; the others are compared with it."""
    started = time.monotonic()
    code, log = runner(runner.folder / "whole")
    runner.seconds = time.monotonic() - started
    assert code == 0, log
    return runner.folder / "whole"


# Kills ------------------------------------------------------------------------------------------------------


def test_the_uninterrupted_run(whole: Path) -> None:
    rows = metrics(whole)
    assert [int(row["step"]) for row in rows] == [1, 3, 3, 5, 7, 7, 9, 11, 11]
    assert [row["step"] for row in rows if row["val/nll"]] == ["3", "7", "11"]
    assert all(row["lr-AdamW"] and row["trainer/loss"] for row in rows if not row["val/nll"])
    nll = [float(row["val/nll"]) for row in rows if row["val/nll"]]
    assert nll[0] > nll[1] + 1e-3 < nll[2], "the best one is to be in the middle"
    folder = whole / "checkpoints"
    assert {path.name: content(path)["global_step"] for path in folder.iterdir()} == {
        "0-3.ckpt": 3, "0-6.ckpt": 6, "0-9.ckpt": 9, "0-12.ckpt": 12, "last.ckpt": 12, "best.ckpt": 8
    }  # fmt: skip
    assert (folder / "last.ckpt").samefile(folder / "0-12.ckpt"), "one step is written once"


def test_killed_at_every_kind_of_moment(runner: Runner, whole: Path, tmp_path: Path) -> None:
    """Before training steps, updates, validations, file operations; they are drawn, with a fixed seed."""
    draw, run, killed = random.Random(5), tmp_path / "run", 0
    for _ in range(6):
        code, log = runner(run, fault=("any", draw.randint(8, 40), "SIGKILL"))
        assert code in (0, -signal.SIGKILL), log
        killed += code != 0
    assert killed > 3
    assert runner(run)[0] == 0
    assert_same(run, whole)


def test_killed_at_any_time(runner: Runner, whole: Path, tmp_path: Path) -> None:
    draw, run = random.Random(), tmp_path / "run"
    for _ in range(3):
        assert runner(run, kill_after=runner.seconds * draw.uniform(0.4, 1))[0] in (0, -signal.SIGKILL)
    assert runner(run)[0] == 0
    assert_same(run, whole)


def test_killed_in_the_write_of_a_checkpoint(runner: Runner, whole: Path, tmp_path: Path) -> None:
    """Synced are config.yaml, metrics.csv, a checkpoint, metrics.csv with val/, samples, a checkpoint, ..."""
    run, folder = tmp_path / "run", tmp_path / "run" / "checkpoints"
    assert runner(run, fault=("fsync", 7, "SIGKILL"))[0] == -signal.SIGKILL
    left = list(folder.glob(".last.ckpt.*.tmp"))
    assert left and left[0].stat().st_size > 10_000
    survived = content(folder / "last.ckpt")["global_step"]
    assert survived in (3, 4)
    code, log = runner(run)
    assert code == 0 and f"from step {survived}" in log
    assert_same(run, whole)


def test_killed_in_the_last_validation(runner: Runner, whole: Path, tmp_path: Path) -> None:
    """All steps are made, and a validation is owed."""
    run = tmp_path / "run"
    assert runner(run, fault=("sample", 3, "SIGKILL"))[0] == -signal.SIGKILL
    assert content(run / "checkpoints" / "last.ckpt")["global_step"] == STEPS
    assert len(metrics(run)) == len(metrics(whole)) - 1
    assert runner(run)[0] == 0
    assert_same(run, whole)


# Stops ------------------------------------------------------------------------------------------------------


def test_stopped_by_signals(runner: Runner, whole: Path, tmp_path: Path) -> None:
    """A step that was begun is finished, a validation is left, and one line says what happens."""
    run, last = tmp_path / "run", tmp_path / "run" / "checkpoints" / "last.ckpt"
    for fault, code, step in (
        (("train", 3, "SIGUSR1"), 138, 2),
        (("sample", 1, "SIGTERM"), 143, 4),
        (("update", 3, "SIGINT"), 130, 7),
    ):
        done, log = runner(run, fault=fault)
        assert (done, content(last)["global_step"]) == (code, step), log
        assert (run / "samples").exists() == (step > 4), "a validation is left at once"
        told = log.strip().splitlines()[-1]
        assert (
            f"{fault[2]}: stopped after step {step} of 12; the same command goes on from step {step}" in told
        )
    assert runner(run)[0] == 0
    assert_same(run, whole)


def test_the_end_of_the_time(
    runner: Runner,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """trainer.max_time counts anew for the same command, which therefore goes on."""
    from main import main

    ticks = iter(range(1000))
    monkeypatch.setattr("callbacks.stopping.time", SimpleNamespace(monotonic=lambda: next(ticks)))
    before = signal.getsignal(signal.SIGTERM)
    for step in (4, 8, STEPS):
        assert main(runner.words(tmp_path / "run", "trainer.max_time=00:00:00:05")) == 0
        assert signal.getsignal(signal.SIGTERM) is before
        assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == step
        assert (f"trainer.max_time is over: stopped after step {step}" in capsys.readouterr().err) == (
            step < STEPS
        )
    assert_same(tmp_path / "run", whole)
    assert main(runner.words(tmp_path / "new", "trainer.max_time=5h")) == 2
    assert "trainer.max_time=5h: not of the form DD:HH:MM:SS" in capsys.readouterr().err


# Accidents --------------------------------------------------------------------------------------------------


def test_a_full_disk_while_writing_a_checkpoint(
    runner: Runner, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from main import main

    run, before = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)
    shutil.copytree(whole, run)
    os.replace(run / "checkpoints" / "0-6.ckpt", run / "checkpoints" / "last.ckpt")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
        assert main(runner.words(run)) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told == (
        f"error: checkpointing.save_dir={run}: the checkpoint of step 8 cannot be written (File too large); "
        "make room, then the same command goes on from step 6"
    )
    assert content(run / "checkpoints" / "last.ckpt")["global_step"] == 6
    assert not list(run.rglob("*.tmp"))
    assert runner(run)[0] == 0
    assert_same(run, whole)


def test_a_validation_that_fails_costs_no_step(
    runner: Runner, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from generation import Generator
    from main import main

    def fails(*args: Any, **kwargs: Any) -> None:
        raise MemoryError("of the device")

    with monkeypatch.context() as patch:
        patch.setattr(Generator, "sample", fails)
        with pytest.raises(MemoryError):
            main(runner.words(tmp_path / "run"))
    assert content(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 4
    assert runner(tmp_path / "run")[0] == 0
    assert_same(tmp_path / "run", whole)


def tell(capsys: pytest.CaptureFixture, words: list[str]) -> str:
    from main import main

    assert main(words) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert told[-1].startswith("error: ")
    return told[-1]


@pytest.mark.parametrize("damage", ["truncated", "empty", "of another kind", "of another program"])
def test_a_last_checkpoint_that_cannot_be_used(
    damage: str, runner: Runner, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    last, kept = run / "checkpoints" / "last.ckpt", {}
    last_content = last.read_bytes()
    if damage == "of another program":
        torch.save({"state_dict": {"x": torch.zeros(1)}, "global_step": 5}, last)
    else:
        last.write_bytes({"truncated": last_content[:-500], "empty": b"", "of another kind": b"x"}[damage])
    (run / "checkpoints" / "0-12.ckpt").write_bytes(last_content[:3000])
    kept = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    told = tell(capsys, runner.words(run))
    assert told.startswith(f"error: checkpointing.resume_ckpt_path={last}: ")
    assert told.endswith(
        f"; checkpointing.resume_ckpt_path={run}/checkpoints/0-9.ckpt goes on from the newest intact one"
    )
    for path in (run / "checkpoints").glob("0-*.ckpt"):
        path.unlink()
    assert f"{RESUME}={run}/checkpoints/best.ckpt goes on from the newest intact one" in tell(
        capsys, runner.words(run)
    )
    (run / "checkpoints" / "best.ckpt").unlink()
    assert f"delete {last} to start anew" in tell(capsys, runner.words(run))
    assert all(path.read_bytes() == old for path, old in kept.items() if path.exists())


def test_an_older_checkpoint_mends_a_broken_one(runner: Runner, whole: Path, tmp_path: Path) -> None:
    """The story is told anew from there: no line of the log is left twice."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "checkpoints" / "last.ckpt").write_bytes(b"")
    shutil.copy(whole / "checkpoints" / "0-12.ckpt", run / "checkpoints")
    (run / "result.json").unlink()
    older = f"checkpointing.resume_ckpt_path={run}/checkpoints/0-6.ckpt"
    code, log = runner(run, older)
    assert code == 0 and "from step 6" in log
    assert_same(run, whole)


def test_places_that_are_missing_or_taken(
    runner: Runner, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    missing = f"checkpointing.resume_ckpt_path={tmp_path}/none.ckpt"
    assert f"{missing}: no such file" in tell(capsys, runner.words(tmp_path / "new", missing))
    other = f"checkpointing.resume_ckpt_path={whole}/checkpoints/0-3.ckpt"
    told = tell(capsys, runner.words(tmp_path / "new", other, "optim.lr=1"))
    assert "optim.lr was 0.005, is 1.0" in told and "training.finetune_path=" in told

    holder = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); "
        "print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", holder, whole / ".lock"], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert "another process trains there" in tell(capsys, runner.words(whole))
        process.kill()


# Other ways to go on ----------------------------------------------------------------------------------------


def test_a_finished_run_is_left_alone(runner: Runner, whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.name != "config.yaml"}
    code, log = runner(whole)
    assert code == 0 and "already trained for 12 steps" in log
    assert before | {whole: whole.stat().st_mtime_ns} == {
        path: path.stat().st_mtime_ns for path in [*before, whole]
    }


def batches(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> list[list[Any]]:
    """(row, tokens) of every row of the optimizer steps of a run."""
    from algo import OBJECTIVES
    from config.cli import compose_config
    from tasks import MODES

    original, seen = OBJECTIVES["imdm"].loss, {}

    def notes(self: Any, backbone: Any, batch: Any, *, step: int, training: bool, **more: Any) -> Any:
        if training:
            rows = zip(batch["row"].tolist(), batch["input_ids"].tolist(), strict=True)
            seen.setdefault(step, []).extend(rows)
        return original(self, backbone, batch, step=step, training=training, **more)

    with monkeypatch.context() as patch:
        patch.setattr(OBJECTIVES["imdm"], "loss", notes)
        MODES["train"](compose_config([*words, "eval.generate_samples=False"], warn=False))
    return [seen[step] for step in sorted(seen)]


def test_other_micro_batches_and_a_few_batches_again_and_again(
    runner: Runner, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resumed with a quarter of the batch, then with all of it from worker processes: the same data."""
    more = ("trainer.limit_train_batches=5", "trainer.val_check_interval=7")
    words = runner.words(tmp_path / "whole", *more)
    expected = batches(monkeypatch, words)
    assert len(expected) == STEPS and expected[5:10] == expected[:5], "five batches, over and over"

    words, found = runner.words(tmp_path / "run", *more), []
    found += batches(monkeypatch, [*words, "trainer.max_steps=4"])
    found += batches(monkeypatch, [*words, "trainer.max_steps=7", "loader.batch_size=4"])
    found += batches(monkeypatch, [*words, "loader.batch_size=null", "loader.num_workers=1"])
    assert found == expected
    rows = metrics(tmp_path / "run")
    assert [row["step"] for row in rows if row["trainer/loss"]] == ["1", "3", "5", "7", "9", "11"]
    # After 7 micro-batches, rounded up to whole steps: step 4 of 2, 6 of 4 and 7 of a single one.
    validations = [row for row in rows if row["val/nll"]]
    assert [row["step"] for row in validations] == ["3", "5", "6"]
    assert validations[0]["val/nll"] == metrics(whole)[2]["val/nll"]


# Parts ------------------------------------------------------------------------------------------------------


def test_the_log_of_a_crash(tmp_path: Path) -> None:
    """A line that was cut off and lines of steps to come are left out; columns may come in any order."""
    logs = [MetricsFile(tmp_path / name / "metrics.csv") for name in ("whole", "parts")]
    lines = [({"b": 0.1}, 0), ({"val/a": math.pi}, 0), ({"b": 0.3, "a": 1e-30}, 1), ({"c": 2.0}, 2)]
    for log in logs:
        for values, step in lines[: 4 if log is logs[0] else 3]:
            log.log_metrics(values, step)
            log.save()
        log.finalize("success")
    with logs[1].path.open("a") as file:
        file.write("2,,0.")
    again = MetricsFile(logs[1].path)
    again.go_on_after(1, without_validation=True)
    for values, step in lines[1:]:
        again.log_metrics(values, step)
        again.save()
    assert again.path.read_text() == logs[0].path.read_text()
    assert again.last_values() == {"a": 1e-30, "b": 0.3, "c": 2.0, "val/a": math.pi}


def test_a_second_name_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "last.ckpt", tmp_path / "best.ckpt"
    source.write_bytes(b"new")
    target.write_bytes(b"old")
    for _ in range(2):
        link(source, target)
        assert target.samefile(source) and len(list(tmp_path.iterdir())) == 2

    def no_links(*args: Any) -> None:
        raise OSError(errno.EPERM, "not here")

    target.write_bytes(b"old")  # through both names
    source.unlink()
    source.write_bytes(b"new")
    monkeypatch.setattr(os, "link", no_links)
    link(source, target)
    assert target.read_bytes() == b"new" and not target.samefile(source)
    assert len(list(tmp_path.iterdir())) == 2


def test_wandb_knows_the_run_again(tmp_path: Path) -> None:
    assert wandb_id(tmp_path / "a") == wandb_id(tmp_path / "a") != wandb_id(tmp_path / "b")
