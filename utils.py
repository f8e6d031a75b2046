"""Small helpers that every floor may use: logging, atomic files."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import re
import shutil
import socket
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

TEMPORARY = ".tmp"  # how the names of temporary files and folders end
# What comes behind the name of the file; earlier versions wrote the last eight letters alone.
_MADE_BY = re.compile(rf"\.(?:(?P<machine>[0-9a-f]{{8}})-(?P<process>\d+)\.)?\w{{8}}{re.escape(TEMPORARY)}$")
_STALE_SECONDS = 86_400.0
# What a terminal takes for a command, or cannot show: control characters but for line feed and tab, line
# separators, overrides of the writing direction, halves of surrogate pairs.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def get_logger(name: str) -> logging.Logger:
    """A logger of this program; handlers are set once, by ``setup_logging``."""
    return logging.getLogger(f"imdm.{name}")


class _AboveBars(logging.Handler):
    """Prints to standard error as it is now, above a live progress bar instead of into it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(printable(self.format(record)), file=sys.stderr)
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


def well_formed(text: str) -> str:
    """A text in which halves of surrogate pairs, which are no characters, are U+FFFD; two halves become one
    character. Tokenizers and files refuse them; JSON and command lines may bring them."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


@contextlib.contextmanager
def atomic_open(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path`` and rename it onto ``path`` when the block succeeds.

    A reader sees the old content or the new one, never a part. Parent folders are made. What killed processes
    left of the same file is removed (``remove_leftovers``). When the block raises, ``path`` is untouched and
    the temporary file is removed; an OSError without the name of a file (a full disk) gets that of ``path``.

    Args:
        mode: "w", "wb"; "x" as in ``open``: of several processes the first one's file stays, the others get
            a FileExistsError.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    try:
        prefix = temporary_prefix(path)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=TEMPORARY)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    try:
        # mkstemp makes private files; results are to be as readable as any other file of the user.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        with os.fdopen(handle, mode.replace("x", "w"), encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if "x" in mode:
            _move_to_free_name(temporary, path)
        else:
            os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise


def _move_to_free_name(temporary: str, path: Path) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError as error:  # some file systems know no links
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        os.replace(temporary, path)
    else:
        os.unlink(temporary)


def temporary_prefix(path: Path) -> str:
    """How the names of temporary files and folders for ``path`` begin: hidden, with machine and process."""
    return f".{path.name[:40]}.{_machine()}-{os.getpid()}."


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files and folders for ``path`` whose process is gone.

    Of processes elsewhere nothing is known: theirs are removed a day after the last change.
    """
    name = re.compile(rf"\.{re.escape(path.name[:40])}{_MADE_BY.pattern}")
    with contextlib.suppress(OSError):  # a folder that cannot be listed, a file that another one removed
        for left in [entry for entry in os.scandir(path.parent) if name.fullmatch(entry.name)]:
            alive = _maker_is_alive(left.name)
            if alive is None:
                alive = time.time() - left.stat(follow_symlinks=False).st_mtime < _STALE_SECONDS
            if not alive and left.is_dir(follow_symlinks=False):
                shutil.rmtree(left.path, ignore_errors=True)
            elif not alive:
                os.unlink(left.path)


def _maker_is_alive(name: str) -> bool | None:
    """Whether the process that made the temporary file of this name lives; None: that is not known here."""
    match = _MADE_BY.search(name)
    if match is None or match["machine"] != _machine():
        return None
    if os.name != "posix":
        return True
    try:
        os.kill(int(match["process"]), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass  # it is somebody else's
    return True


def _machine() -> str:
    """Eight hex digits for this machine, and for the container where process numbers are its own."""
    try:
        numbers = os.readlink("/proc/self/ns/pid")
    except OSError:
        numbers = ""
    return f"{zlib.crc32(f'{socket.gethostname()} {numbers}'.encode()):08x}"


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files that a kill left in ``folder``, where one process at a time trains.

    What another process of this machine writes there at the moment stays.
    """
    for path in folder.glob(f".*{TEMPORARY}"):
        if not path.is_dir() and not _maker_is_alive(path.name):
            path.unlink(missing_ok=True)


def printable(text: str) -> str:
    """``text`` for a terminal, which may obey control characters of a sample: these are written as in Python
    (``\\x1b``); line feeds and tabs stay."""
    return _UNPRINTABLE.sub(lambda found: repr(found[0])[1:-1], text)


def to_json(value: object, **layout: Any) -> str:
    """``value`` as JSON that every reader takes: numbers that are not finite become null.

    An object says under ``not_finite`` what stood in the place of these nulls, by dotted name. Halves of
    surrogate pairs become U+FFFD.
    """
    replaced: dict[str, str] = {}
    value = _finite(value, "", replaced)
    if replaced and isinstance(value, dict):
        value["not_finite"] = replaced
    return well_formed(json.dumps(value, ensure_ascii=False, allow_nan=False, **layout))


def _finite(value: object, name: str, replaced: dict[str, str]) -> Any:
    """A copy with None for floats that are not finite; ``replaced`` gets their names and what they were."""
    if isinstance(value, dict):
        return {
            key: _finite(one, f"{name}.{key}" if name else str(key), replaced) for key, one in value.items()
        }
    if isinstance(value, list | tuple):
        return [_finite(one, f"{name}.{k}" if name else str(k), replaced) for k, one in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        replaced[name] = repr(float(value))
        return None
    return value


def write_json(path: str | Path, value: object, mode: str = "w") -> None:
    """Write ``value`` as indented JSON (``to_json``), atomically; ``mode`` as in ``atomic_open``."""
    text = to_json(value, indent=2)
    with atomic_open(path, mode) as file:
        file.write(text + "\n")
