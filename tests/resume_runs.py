"""Training runs to be killed, and how they are compared.

They are children of one process that imports everything once: this file, run as a program.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch

ROOT = Path(__file__).resolve().parent.parent
STEPS = 12
# Two micro-batches a step, dropout, mask noise; validations after steps 4, 8 and 12, checkpoints after 3, 6,
# 9 and 12. The last validation is worse than the one before.
COMMAND = (
    "algo=imdm",
    "data=synthetic-align",
    "data.vocab_size=8",
    "model=synthetic",
    "model.length=8",
    "model.hidden_size=32",
    "model.cond_dim=8",
    "model.n_blocks=2",
    "model.n_heads=2",
    "model.noise_dim=8",
    "model.dropout=0.2",
    "loader.global_batch_size=16",
    "loader.batch_size=8",
    "loader.eval_global_batch_size=64",
    "loader.num_workers=0",
    "lr_scheduler.num_warmup_steps=10",
    "optim.lr=5e-3",
    "training.ema=0.9",
    "sampling.steps=2",
    "sampling.num_sample_batches=1",
    "eval.compute_generative_perplexity=False",
    "callbacks.checkpoint_every_n_steps.every_n_train_steps=3",
    "trainer.accelerator=cpu",
    "trainer.precision=32",
    "trainer.num_sanity_val_steps=0",
    "trainer.enable_progress_bar=False",
    "trainer.log_every_n_steps=2",
    "trainer.val_check_interval=8",
    "trainer.limit_val_batches=2",
    f"trainer.max_steps={STEPS}",
    "wandb=null",
)
TIMED = {"train/tokens_per_second"}


# The process that is killed ---------------------------------------------------------------------------------


def serve() -> None:
    """Read runs, one JSON object a line; fork for each, perhaps kill it, print its exit code."""
    sys.path[:0] = [str(ROOT)]
    from config.cli import compose_config
    from tasks import MODES
    from utils import setup_logging

    setup_logging()
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        cfg = compose_config(order["command"], warn=False)
        pid = os.fork()
        if pid == 0:
            for stream in (1, 2):
                os.dup2(os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
            if order["fault"]:
                send_signal(*order["fault"])
            code = 99
            try:
                MODES["train"](cfg)
                code = 0
            except SystemExit as leaving:
                code = leaving.code
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        if order["kill_after"] is not None:
            time.sleep(order["kill_after"])
            os.kill(pid, signal.SIGKILL)  # not waited for yet, so it is still that process
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def send_signal(where: str, number: int, name: str) -> None:
    """Let this process send itself a signal before the ``number``-th event, of one kind or of any."""
    from callbacks.metrics_file import MetricsFile
    from generation import Generator
    from trainer_base import TrainerBase

    kinds = {
        "replace": (os, "replace"),
        "link": (os, "link"),
        "fsync": (os, "fsync"),
        "log": (MetricsFile, "_append"),
        "train": (TrainerBase, "training_step"),
        "update": (TrainerBase, "optimizer_step"),
        "validate": (TrainerBase, "validation_step"),
        "sample": (Generator, "sample"),
    }
    left = number

    def watch(owner: Any, attribute: str) -> None:
        original = getattr(owner, attribute)

        def watched(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), getattr(signal, name))
            return original(*args, **kwargs)

        setattr(owner, attribute, watched)

    for kind, place in kinds.items():
        if where in (kind, "any"):
            watch(*place)


# What the tests ask of it -----------------------------------------------------------------------------------


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Runner]:
    """A process for runs, which ends with the block."""
    process = subprocess.Popen(
        [sys.executable, Path(__file__)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout.readline() == "ready\n"
    yield Runner(process, folder)
    process.stdin.close()
    process.wait(timeout=20)


class Runner:
    """Runs the command in children of one process, with the same data cache."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.stdin: IO[str] = process.stdin
        self.stdout: IO[str] = process.stdout
        self.folder, self.seconds = folder, 0.0

    def words(self, run: Path, *more: str) -> list[str]:
        places = (f"data.cache_dir={self.folder}/cache", f"checkpointing.save_dir={run}")
        return [*COMMAND, *places, *more]

    def __call__(
        self,
        run: Path,
        *more: str,
        fault: tuple[str, int, str] | None = None,
        kill_after: float | None = None,
    ) -> tuple[int, str]:
        """The exit code (minus the signal, if one ended it) and what was printed."""
        log = self.folder / "log.txt"
        log.write_text("")
        order = {"command": self.words(run, *more), "log": str(log), "fault": fault, "kill_after": kill_after}
        self.stdin.write(json.dumps(order) + "\n")
        self.stdin.flush()
        return int(self.stdout.readline()), log.read_text()


def content(path: Path) -> dict[str, Any]:
    """A checkpoint without the name of its folder and without Lightning's counters."""
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["loops"], checkpoint["config"]["checkpointing"]
    del checkpoint["config"]["data"]["cache_dir"], checkpoint["config"]["trainer"]["max_time"]
    return checkpoint


def differences(a: Any, b: Any, name: str = "") -> list[str]:
    if isinstance(a, torch.Tensor):
        return [] if torch.equal(a, b) else [name]
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [found for key in a for found in differences(a[key], b[key], f"{name}.{key}")]
    if isinstance(a, list | tuple) and len(a) == len(b):
        return [
            found
            for i, (x, y) in enumerate(zip(a, b, strict=True))
            for found in differences(x, y, f"{name}.{i}")
        ]
    return [] if a == b else [f"{name}: {a} {b}"]


def metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return [
            {name: value for name, value in row.items() if name not in TIMED} for row in csv.DictReader(file)
        ]


def files(run: Path) -> list[str]:
    return sorted(str(path.relative_to(run)) for path in run.rglob("*"))


def assert_same(run: Path, whole: Path) -> None:
    """Every bit: weights, EMA, optimizer, schedule, log, the best checkpoint, samples, the list of files."""
    for name in ("last.ckpt", "best.ckpt", "0-9.ckpt"):
        assert not differences(*(content(folder / "checkpoints" / name) for folder in (run, whole))), name
    assert metrics(run) == metrics(whole)
    assert files(run) == files(whole)
    for name in ("samples/step4-T2.json", "samples/step12-T2.json"):
        assert (run / name).read_text() == (whole / name).read_text()
    ours, theirs = (json.loads((folder / "result.json").read_text()) for folder in (run, whole))
    assert ours | {name: theirs[name] for name in ("checkpoint", *TIMED)} == theirs


if __name__ == "__main__":
    serve()
