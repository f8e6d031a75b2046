"""Several processes as users start them: by the program itself, by torchrun, by srun."""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from two_devices import rendezvous

from config.cli import compose_config
from errors import UserError
from main import ROOT
from tasks import processes
from tasks.processes import launch

pytestmark = pytest.mark.slow

MAIN = str(ROOT / "main.py")
SETTINGS = (
    "debug=fast",
    "algo=mdlm",
    "trainer.accelerator=cpu",
    "trainer.max_steps=2",
    "trainer.val_check_interval=2",
    "checkpointing.resume_from_ckpt=True",
)
LAUNCHED = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"}
SLURM = {
    "SLURM_JOB_ID": "4242",
    "SLURM_JOB_NAME": "training",
    "SLURM_NTASKS": "2",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_NNODES": "1",
    "SLURM_NODEID": "0",
    "SLURM_NODELIST": "127.0.0.1",
}
BY_SRUN = {"SLURM_STEP_ID": "0"}


class Started:
    """A command in a folder, with what it prints in a file."""

    def __init__(self, folder: Path, name: str, words: list[str], **environment: str) -> None:
        self.log = folder / f"{name}.log"
        clean = {k: v for k, v in os.environ.items() if k not in LAUNCHED and not k.startswith("SLURM_")}
        with self.log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, *words],
                cwd=folder,
                env=clean | {"OMP_NUM_THREADS": "1"} | environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def wait(self) -> tuple[int, str]:
        """The exit code and what was printed."""
        return self.process.wait(timeout=240), self.log.read_text()

    def end(self) -> None:
        """End what is left of it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Started]]:
    """All of them at once: they mostly wait for each other."""
    folder = tmp_path_factory.mktemp("launch")
    long = ("trainer.max_steps=1000000", "trainer.val_check_interval=1000000")
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--standalone"]
    commands = {
        "own": Started(folder, "own", [MAIN, *SETTINGS, *long, "trainer.devices=2", "name=own"]),
        "torchrun": Started(folder, "torchrun", [*torchrun, MAIN, *SETTINGS, "trainer.devices=3"]),
    }
    meeting = rendezvous()
    for rank in ("0", "1"):
        own = SLURM | BY_SRUN | meeting | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank}
        commands[f"slurm{rank}"] = Started(folder, f"slurm{rank}", [MAIN, *SETTINGS, "name=slurm"], **own)
    yield commands
    for command in commands.values():
        command.end()


def test_srun(started: dict[str, Started], tmp_path: Path) -> None:
    """Both tasks train one run; the first alone writes and prints. trainer.devices follows the tasks."""
    (code, log), (other_code, other_log) = (started[f"slurm{rank}"].wait() for rank in (0, 1))
    assert code == other_code == 0, log + other_log
    assert not other_log and "8 sequences per step (4 per device x 1)" in log
    assert log.count("step 2 of 2") == 1
    runs = list((started["slurm0"].log.parent / "outputs" / "pydoc").glob("slurm*"))
    assert [run.name for run in runs] == ["slurm"] and (runs[0] / "checkpoints" / "last.ckpt").exists()
    with (runs[0] / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file) if row["trainer/loss"]] == ["0", "1"]


def test_sbatch_without_srun_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody starts the other tasks: one line, where a rendezvous would wait for them for half an hour."""
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    for name, value in (SLURM | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}).items():
        monkeypatch.setenv(name, value)
    cfg = compose_config(["algo=mdlm", "trainer.accelerator=cpu", "trainer.devices=2"], warn=False)
    with pytest.raises(UserError) as caught:
        launch(cfg)
    assert str(caught.value) == (
        "SLURM_NTASKS=2: as many tasks were asked for, and this process was not started by srun; "
        "put srun in front of the command, or ask for one task"
    )


def test_a_stale_launch_is_said_and_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What an earlier launcher left in the environment: the other process never comes."""
    cfg = compose_config(["trainer.devices=2"], warn=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "_SOON", 0.01)
    with pytest.raises(UserError) as caught, processes._patience(cfg):
        time.sleep(0.3)
        raise torch.distributed.DistStoreError("Timed out after 1 seconds waiting for clients")
    assert "the processes did not come together (in the environment:" in str(caught.value)
    assert "WORLD_SIZE=2" in str(caught.value) and "unset what an earlier launcher left" in str(caught.value)
    assert "waiting for the other processes (in the environment" in caplog.text
    caplog.clear()
    with processes._patience(cfg):
        pass
    time.sleep(0.1)
    assert not caplog.messages


def test_a_mistake_under_torchrun_is_told_once(started: dict[str, Started]) -> None:
    code, log = started["torchrun"].wait()
    told = [line for line in log.splitlines() if line.startswith("error")]
    assert code != 0 and told == [
        "error: trainer.devices=3: 2 processes were started for 3 device(s) on 1 machine(s); "
        "give as many devices as processes on a machine, and trainer.num_nodes"
    ]


def test_a_signal_to_the_first_process_stops_all(started: dict[str, Started]) -> None:
    """SIGTERM to one of two: both stop after the same step, with last.ckpt, by the code of the signal."""
    own, end = started["own"], time.monotonic() + 240
    while "step 1 of" not in own.log.read_text():
        assert own.process.poll() is None and time.monotonic() < end, own.log.read_text()
        time.sleep(0.1)
    os.kill(own.process.pid, signal.SIGTERM)
    code, log = own.wait()
    assert code == 128 + signal.SIGTERM, log
    assert log.count("SIGTERM: stopped after step") == 1 and "goes on from step" in log
    assert "Traceback" not in log and "process 1" not in log
    assert (own.log.parent / "outputs" / "pydoc" / "own" / "checkpoints" / "last.ckpt").exists()
    while time.monotonic() < end:  # the other one follows
        try:
            os.killpg(own.process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError("the second process goes on")
