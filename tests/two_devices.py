"""Jobs on two processes that share one start-up, and what they compute on the way.

This file, run as a program, forks once: both processes import everything before, and take all jobs in turn.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
Rows = dict[tuple[int, int], dict[str, Tensor]]


def serve(folder: Path) -> None:
    """Be both processes; do the jobs of ``folder``/jobs.json and leave what each gave in ``folder``/given."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from lightning.pytorch.utilities import rank_zero_only

    from config.cli import compose_config
    from tasks import MODES

    child = os.fork()  # nothing was computed yet
    rank = rank_zero_only.rank = 1 if child == 0 else 0
    os.environ["LOCAL_RANK"] = str(rank)
    code = 0
    try:
        for name, words in json.loads((folder / "jobs.json").read_text()).items():
            cfg = compose_config([*words, "trainer.devices=2"], warn=False)
            with noted() as rows:
                result = MODES[cfg.mode](cfg)
            torch.save({"result": result, "rows": rows}, folder / "given" / f"{name}.{rank}.pt")
    except BaseException:
        print(f"process {rank}, job {name}:", file=sys.stderr)
        traceback.print_exc()
        code = 1
    finally:
        sys.stderr.flush()
        if child == 0:
            os._exit(code)
    if code == 0:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os._exit(code)


@contextmanager
def noted() -> Iterator[Rows]:
    """What the rows of a training see while the block lasts: their tokens, times, masks and mask noise."""
    from algorithms.mdlm import MDLM

    original, rows = MDLM.noised, {}

    def notes(self: Any, batch: Mapping[str, Tensor], step: int, num_rows: int, training: bool) -> Any:
        noised = original(self, batch, step, num_rows, training)
        if training and "seed" not in batch and len(batch["row"]) < num_rows:
            seen = {name: value for name, value in noised._asdict().items() if value is not None}
            for n, row in enumerate(batch["row"].tolist()):
                rows[step, row] = {name: value[n].clone() for name, value in seen.items()}
        return noised

    MDLM.noised = notes
    try:
        yield rows
    finally:
        MDLM.noised = original


class TwoProcesses:
    """Starts the jobs at once; ``finish`` waits for them.

    Args:
        jobs: names and command lines.
    """

    def __init__(self, folder: Path, jobs: Mapping[str, Sequence[str]]) -> None:
        self.folder = folder
        (folder / "given").mkdir(parents=True)
        (folder / "jobs.json").write_text(json.dumps(jobs))
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            env=os.environ | rendezvous() | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, seconds: float = 300) -> None:
        """Wait; whoever hangs so long is ended, and what was printed is told."""
        try:
            printed = self._process.communicate(timeout=seconds)[0]
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise AssertionError(
                f"the two processes hang: {self._process.communicate()[0][-3000:]}"
            ) from None
        assert self._process.returncode == 0, printed[-5000:]

    def given(self, name: str) -> list[dict[str, Any]]:
        """What a job gave in both processes."""
        return [
            torch.load(self.folder / "given" / f"{name}.{rank}.pt", weights_only=False) for rank in (0, 1)
        ]


def rendezvous() -> dict[str, str]:
    """Where processes meet: variables of the environment with a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
