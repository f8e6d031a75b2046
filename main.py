"""The one entry: ``python main.py key=value ...`` composes, validates and runs ``mode``.

Mistakes of the user are one line on standard error and exit code 2; FULL_TRACEBACK=1 shows all.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import hydra
from omegaconf import DictConfig

from config.arguments import CommandLine, read_command_line
from config.cli import compose_clean, dropped_warning, finish, register_schema
from config.help import help_text
from config.keys import CONFIG_DIR
from utils import get_logger, setup_logging

ROOT = Path(__file__).resolve().parent
USER_MISTAKE = 2
INTERRUPTED = 130  # 128 + SIGINT, as of other programs


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
    except ValueError as error:
        return _tell(error) if rank == 0 else USER_MISTAKE
    if rank == 0:
        for warning in dropped_warning(line.overrides):
            get_logger("config").warning(warning)
    try:
        return _run(line, rank)
    except KeyboardInterrupt:
        print("interrupted; files that were written are whole", file=sys.stderr)
        return INTERRUPTED


def _run(line: CommandLine, rank: int) -> int:
    """Let Hydra compose again and call the job, once or for every point of a sweep."""
    codes, crash = [0], None

    def job(cfg: DictConfig) -> None:
        nonlocal crash
        try:
            codes.append(_job(cfg, rank))
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


def _job(cfg: DictConfig, rank: int) -> int:
    try:
        for warning in finish(cfg):
            if rank == 0:
                get_logger("config").warning(warning)
        from tasks import MODES  # here, because it imports torch and lightning: mistakes are told before

        MODES[cfg.mode](cfg)
    except ValueError as error:
        if not _is_ours(error):
            raise
        return _tell(error)
    except OSError as error:  # a full disk, an unwritable folder: the file says more than a traceback
        if error.filename is None:
            raise
        return _tell(ValueError(f"{error.filename}: {error.strerror}; make room, or choose another place"))
    return 0


def _is_ours(error: ValueError) -> bool:
    """Whether this program raised the error itself, rather than a library that it called."""
    frames = traceback.extract_tb(error.__traceback__)
    where = Path(frames[-1].filename).resolve()
    return where.is_relative_to(ROOT) and "site-packages" not in where.parts


def _tell(error: ValueError) -> int:
    if os.environ.get("FULL_TRACEBACK") == "1":
        traceback.print_exception(error)
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return USER_MISTAKE


def _rank() -> int:
    """The rank that a launcher gave this process; one process tells what all would tell."""
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0


if __name__ == "__main__":
    sys.exit(main())
