"""The one entry: ``python main.py key=value ...`` composes, validates and runs ``mode``.

Mistakes of the user are one line on standard error and exit code 2; FULL_TRACEBACK=1 shows all.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import hydra
from omegaconf import DictConfig

from config.cli import (
    CommandLine,
    compose_clean,
    dropped_warning,
    finish,
    help_text,
    read_command_line,
    register_schema,
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
PATIENCE_SECONDS = 20.0  # a busy machine takes some to end a process
INTERRUPTED = 130  # 128 + SIGINT, as of other programs
PARENT = os.getppid()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name); returns the exit code.

    0: done; 2: a mistake of the user, told in one line; 130: interrupted. Other errors are raised.
    """
    rank = _rank()
    setup_logging(rank)
    try:
        line = read_command_line(sys.argv[1:] if argv is None else argv)
        if line.wants_help:
            print(help_text())
            return 0
        for job in line.jobs():
            finish(compose_clean(job))
    except UserError as error:
        return _tell(error, rank)
    if rank == 0:
        for warning in dropped_warning(line.overrides):
            get_logger("config").warning(warning)
    try:
        return _run(line, rank)
    except KeyboardInterrupt:
        if rank == 0:
            print("interrupted; files that were written are whole", file=sys.stderr)
        return INTERRUPTED


def _run(line: CommandLine, rank: int) -> int:
    """Let Hydra compose again and call the job, once or for every point of a sweep."""
    codes, crash = [0], None

    def job(cfg: DictConfig) -> None:
        nonlocal crash
        try:
            codes.append(_job(cfg, rank, line.overrides.choose_algorithm))
        except Exception as error:  # kept from Hydra, which would shorten its traceback
            crash = error
            if line.multirun:
                traceback.print_exception(error)

    register_schema()
    before, sys.argv = sys.argv, [sys.argv[0], *line.words]
    try:
        hydra.main(config_path=str(CONFIG_DIR), config_name="config", version_base="1.3")(job)()
    finally:
        sys.argv = before
    if crash is not None:
        raise crash
    return max(codes)


def _job(cfg: DictConfig, rank: int, algo_is_chosen: bool) -> int:
    try:
        for warning in finish(cfg, algo_is_chosen=algo_is_chosen):
            if rank == 0:
                get_logger("config").warning(warning)
        if rank > 0 and cfg.mode in ONE_DEVICE_MODES:
            return 0
        from tasks import MODES  # here, because it imports torch and lightning: mistakes are told before

        MODES[cfg.mode](cfg)
    except UserError as error:
        return _tell(error, rank)
    except OSError as error:  # a full disk, an unwritable folder: the file says more than a traceback
        if (shown := of_system(error)) is None:
            raise
        return _tell(shown, rank)
    except SystemExit:
        _let_first_end(rank)
        raise
    return 0


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
