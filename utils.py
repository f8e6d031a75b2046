"""Small helpers that every floor may use: logging, atomic files."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm


def get_logger(name: str) -> logging.Logger:
    """A logger of this program; handlers are set once, by ``setup_logging``."""
    return logging.getLogger(f"imdm.{name}")


class _AboveBars(logging.Handler):
    """Prints to standard error as it is now, above a live progress bar instead of into it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)


def setup_logging(rank: int = 0) -> None:
    """Print this program's messages to standard error, one line each; ranks above 0 only tell errors."""
    logger = logging.getLogger("imdm")
    if not logger.handlers:
        handler = _AboveBars()
        handler.setFormatter(logging.Formatter("[%(levelname)s] %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
    logger.setLevel(logging.INFO if rank == 0 else logging.ERROR)


@contextlib.contextmanager
def atomic_open(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path`` and rename it onto ``path`` when the block succeeds.

    A reader sees the old content or the new one, never a part. Parent folders are made.
    When the block raises, ``path`` is untouched and the temporary file is removed; an OSError without the
    name of a file (a full disk) gets that of ``path``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    try:
        # mkstemp makes private files; results are to be as readable as any other file of the user.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files that a kill left in ``folder``; nobody else may be writing there."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def write_json(path: str | Path, value: object) -> None:
    """Write ``value`` as indented JSON, atomically."""
    with atomic_open(path) as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")
