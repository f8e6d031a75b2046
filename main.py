"""The one entry: ``python main.py key=value ...`` composes, validates and runs ``mode``.

Mistakes of the user are one line on standard error and exit code 2; FULL_TRACEBACK=1 shows all.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from config.cli import (
    COMPOSE_ERRORS,
    CommandLine,
    Overrides,
    compose_clean,
    dropped_warning,
    explain,
    finish_typed,
    help_text,
    read_command_line,
    register_schema,
    sweep_folder,
)
from config.run import CONFIG_DIR, ONE_DEVICE_MODES
from errors import RankZeroError, UserError, of_system
from utils import get_logger, printable, setup_logging

ROOT = Path(__file__).resolve().parent
USER_MISTAKE = 2
PROGRAM_FAULT = 1
REPORT_US = (
    "this is a fault of the program, not of your settings: please report it with the lines above, "
    "the command, and the run folder's config.yaml"
)
FULL_ERROR = "HYDRA_FULL_ERROR"  # Hydra's own switch: it raises what it would print
# What a search over an evaluation looks at; over a training, the monitored metric.
MEASURES = {
    "ppl_eval": "perplexity",
    "sample_eval": "generative_ppl",
    "sample_eval_with_tc": "generative_ppl",
    "gen_ppl_eval": "generative_ppl",
}
PATIENCE_SECONDS = 20.0  # a busy machine takes some to end a process
INTERRUPTED = 130  # 128 + SIGINT, as of other programs
PARENT = os.getppid()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name); returns the exit code.

    0: done; 2: a mistake of the user, reported in one line; 1: a job of a sweep crashed; 130: interrupted.
    Other errors are raised.
    """
    rank = _rank()
    setup_logging(rank)
    try:
        line = read_command_line(sys.argv[1:] if argv is None else argv)
        if line.wants_help:
            print(help_text())
            return 0
        if line.flags:  # Hydra shows something, or sweeps: all is checked before
            for job in line.jobs():
                finish_typed(compose_clean(job), job)
            _warn(dropped_warning(line.overrides), rank)
        return _sweep(line, rank) if line.multirun else _run(line, rank)
    except UserError as error:
        return _tell(error, rank)
    except KeyboardInterrupt:
        if rank == 0:
            print("interrupted; files that were written are whole", file=sys.stderr)
        return INTERRUPTED


def _run(line: CommandLine, rank: int) -> int:
    """Let Hydra compose and call the job."""
    code, crash = 0, None

    def job(cfg: DictConfig) -> None:
        nonlocal code, crash
        try:
            code, _ = _job(cfg, rank, line.overrides, [] if line.flags else dropped_warning(line.overrides))
        except Exception as error:  # kept from Hydra, so that what it raises is about the composition
            crash = error

    try:
        _hydra(line, job)
    except COMPOSE_ERRORS as error:
        raise explain(line.overrides, error) from error
    if crash is not None:
        raise crash
    return code


def _sweep(line: CommandLine, rank: int) -> int:
    """Let Hydra's sweeper and launcher call a job for each point; report those that failed, by name.

    Jobs may run in other processes, or on other machines: one that fails leaves a note in the sweep's folder.
    """
    notes = sweep_folder(line.overrides) / f".failed-{os.getpid()}-{time.time_ns()}"
    overrides = line.overrides

    def job(cfg: DictConfig) -> float | None:
        return _point(cfg, rank, overrides, notes)

    # Launched processes unpickle the job, which imports what is here.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    stopped = None
    try:
        _hydra(line, job)
    except Exception as error:  # the first failed job, or the sweeper's own
        stopped = error
    failed = [path.read_text(encoding="utf-8").split("\n", 1) for path in sorted(notes.glob("*"))]
    shutil.rmtree(notes, ignore_errors=True)
    if stopped is not None and not failed:
        if isinstance(stopped, COMPOSE_ERRORS):
            raise explain(overrides, stopped) from stopped
        raise stopped
    if not failed:
        return 0
    print(
        f"error: {len(failed)} of the jobs failed: {'; '.join(name for _, name in failed)}", file=sys.stderr
    )
    if all(int(code) == USER_MISTAKE for code, _ in failed):
        return USER_MISTAKE
    print(REPORT_US, file=sys.stderr)
    return PROGRAM_FAULT


def _point(cfg: DictConfig, rank: int, overrides: Overrides, notes: Path) -> float | None:
    """One job of a sweep; what it measures, for a sweeper that searches.

    Raises:
        RuntimeError: it failed; the launcher goes on with the others.
    """
    setup_logging(rank)
    own = HydraConfig.get()
    name = f"job {own.job.num} ({' '.join(own.overrides.task)})"
    try:
        code, result = _job(cfg, rank, overrides, [])
    except Exception as error:
        traceback.print_exception(error)
        code, result = PROGRAM_FAULT, {}
    if code:
        print(f"{name} failed", file=sys.stderr)
        notes.mkdir(parents=True, exist_ok=True)
        (notes / f"{own.job.num:06d}").write_text(f"{code}\n{name}", encoding="utf-8")
        raise RuntimeError(f"{name} failed")
    value = result.get(MEASURES.get(cfg.mode) or _monitored(cfg))
    return float(value) if isinstance(value, int | float) else None


def _monitored(cfg: DictConfig) -> str:
    """The metric of a training that a search looks at: that of best.ckpt."""
    best = cfg.callbacks.checkpoint_monitor
    return "val/nll" if best is None else str(best.monitor)


def _hydra(line: CommandLine, job: Callable[[DictConfig], float | None]) -> None:
    """``hydra.main`` on the clean command line; its errors are raised, not printed."""
    register_schema()
    before, full = sys.argv, os.environ.get(FULL_ERROR)
    sys.argv, os.environ[FULL_ERROR] = [before[0], *line.words], "1"
    try:
        hydra.main(config_path=str(CONFIG_DIR), config_name="config", version_base="1.3")(job)()
    finally:
        sys.argv = before
        if full is None:
            del os.environ[FULL_ERROR]
        else:
            os.environ[FULL_ERROR] = full


def _job(
    cfg: DictConfig, rank: int, overrides: Overrides, remarks: Sequence[str]
) -> tuple[int, dict[str, Any]]:
    """Check ``cfg`` and run its mode; the exit code and the result."""
    try:
        _warn([*remarks, *finish_typed(cfg, overrides)], rank)
        if rank > 0 and cfg.mode in ONE_DEVICE_MODES:
            return 0, {}
        from tasks import MODES  # here, because it imports torch and lightning: mistakes are told before

        return 0, MODES[cfg.mode](cfg) or {}
    except UserError as error:
        return _tell(error, rank), {}
    except OSError as error:  # a full disk, an unwritable folder: the file says more than a traceback
        if (shown := of_system(error)) is None:
            raise
        return _tell(shown, rank), {}
    except SystemExit:
        _let_first_end(rank)
        raise


def _warn(lines: Sequence[str], rank: int) -> None:
    for warning in lines if rank == 0 else ():
        get_logger("config").warning(warning)


def _tell(error: UserError, rank: int) -> int:
    """One line, of the first process; of another one if it alone is in trouble, and has not been ended."""
    if os.environ.get("FULL_TRACEBACK") == "1":
        traceback.print_exception(error)
    if _let_first_end(rank) or isinstance(error, RankZeroError):
        return USER_MISTAKE
    where = f" (process {rank})" if rank else ""
    print(f"error{where}: {printable(' '.join(str(error).split()))}", file=sys.stderr)
    return USER_MISTAKE


def _let_first_end(rank: int) -> bool:
    """Whether the process that started this one is gone: it has told what all would tell.

    A launcher ends all processes when one has failed. Those behind the first give it some seconds, so that
    its message is the one that is read.
    """
    waited = 0.0
    while rank > 0 and waited < PATIENCE_SECONDS:
        if os.getppid() != PARENT:
            return True
        time.sleep(0.1)
        waited += 0.1
    return False


def _rank() -> int:
    """The rank that a launcher gave this process; one process tells what all would tell.

    Without a launcher it is 0 for the first process, and any other number for the others.
    """
    for name in ("RANK", "SLURM_PROCID"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    numbers = [os.environ.get(name, "") for name in ("LOCAL_RANK", "NODE_RANK")]
    return max(int(number) if number.isdigit() else 0 for number in numbers)


def _run_and_report() -> int:
    """``main``; what it does not take for a mistake of the user is ours: a traceback, and what to report."""
    try:
        return main()
    except Exception:
        traceback.print_exc()
        print(REPORT_US, file=sys.stderr)
        return PROGRAM_FAULT


if __name__ == "__main__":
    sys.exit(_run_and_report())
