"""The cache of prepared token arrays: one folder per set, named by all that shapes it.

A folder appears complete or not at all (it is renamed into place), is checked whenever it is opened, and
is made by one process while others wait.

What is checked: that there are the files of which meta.json speaks and no others, their sizes, all bytes of
meta.json, and of each array 64 MiB in evenly spaced parts, so smaller ones entirely. A bit that flips between
these parts changes one token, and would cost reading all of the set at every start to be found.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from utils import get_logger, write_json

LAYOUT = 1  # part of every key: raise it when the files inside a folder change
_META = "meta.json"
_CHUNK = 2**20
_MAX_CHUNKS = 64
_PATIENCE = 10.0  # seconds of waiting for another process that nobody needs to know about
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO}  # what file systems without locks answer
log = get_logger("data")


def open_or_build(
    root: Path, label: str, parts: dict[str, Any], build: Callable[[Path], dict[str, Any]]
) -> tuple[Path, dict[str, Any]]:
    """The folder with the arrays that ``parts`` describes, made by ``build`` if it is not there.

    Args:
        root: the cache; made when missing.
        label: readable start of the folder's name.
        parts: everything that shapes the content, JSON values; another value is another folder.
        build: writes its files into the empty folder given to it and returns a report (JSON values).

    Returns:
        the folder and the report. A folder that is truncated, altered or not ours is made anew.
    """
    _, folder = open_or_build_first(root, label, [(parts, build)], skip=())
    return folder, json.loads((folder / _META).read_text(encoding="utf-8"))["report"]


def open_or_build_first(
    root: Path,
    label: str,
    choices: Sequence[tuple[dict[str, Any], Callable[[Path], dict[str, Any]]]],
    skip: tuple[type[Exception], ...],
) -> tuple[int, Path]:
    """The same of the first choice that is there already, else of the first that can be built.

    Processes that start together agree on the choice: one looks and builds at a time.

    Args:
        choices: (parts, build) of each.
        skip: what ``build`` raises when the next choice shall be tried; of the last one it is raised.

    Returns:
        the number of the choice and its folder.
    """
    described = [_described(root, label, parts) for parts, _ in choices]
    if (found := _first_there(described)) is not None:
        return found, described[found][0]
    root.mkdir(parents=True, exist_ok=True)
    with locked(root / f".{described[0][0].name}.lock") as alone:
        if (found := _first_there(described)) is not None:  # another process may have made it meanwhile
            return found, described[found][0]
        for number, ((folder, parts), (_, build)) in enumerate(zip(described, choices, strict=True)):
            try:
                _build(folder, parts, build, alone)
                return number, folder
            except skip:
                if number + 1 == len(choices):
                    raise
    raise AssertionError("no choices")


def _described(root: Path, label: str, parts: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The folder that ``parts`` name, and these as JSON gives them back."""
    parts = json.loads(json.dumps({"layout": LAYOUT, **parts}))
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    return root / f"{label}-{digest}", parts


def _first_there(described: Sequence[tuple[Path, dict[str, Any]]]) -> int | None:
    there = (number for number, (folder, parts) in enumerate(described) if _read_valid(folder, parts))
    return next(there, None)


def _build(folder: Path, parts: dict[str, Any], build: Callable[[Path], dict[str, Any]], alone: bool) -> None:
    """Make a folder; ``alone``: no other process can be making it."""
    prefix = f".{folder.name}.building-"
    if alone:
        for stale in folder.parent.glob(f"{prefix}*"):  # of a killed process
            shutil.rmtree(stale, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=prefix))
    try:
        report = build(temporary)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        files = {file.name: _fingerprint(file) for file in sorted(temporary.iterdir())}
        meta = {"parts": parts, "files": files, "report": report}
        write_json(temporary / _META, {**meta, "checksum": _checksum(meta)})
        _put(temporary, folder, parts)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _put(temporary: Path, folder: Path, parts: dict[str, Any]) -> None:
    """Rename what was made to ``folder``, unless another process without locks was faster."""
    if folder.exists() and not _read_valid(folder, parts):
        log.warning("%s is damaged or not ours; it is made again", folder)
        shutil.rmtree(folder)
    try:
        temporary.rename(folder)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY) or not _read_valid(folder, parts):
            raise
        shutil.rmtree(temporary, ignore_errors=True)


def _read_valid(folder: Path, parts: dict[str, Any]) -> bool:
    """Whether what the folder says about itself is true, and what was asked for."""
    try:
        meta = json.loads((folder / _META).read_text(encoding="utf-8"))
        checksum = meta.pop("checksum", None)  # older versions wrote none
        there = {file.name for file in folder.iterdir() if not file.name.startswith(".")} - {_META}
        return (
            checksum in (None, _checksum(meta))
            and meta["parts"] == parts
            and isinstance(meta["report"], dict)
            and there == meta["files"].keys()
            and len(there) > 0
            and all(_fingerprint(folder / name) == expected for name, expected in meta["files"].items())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _checksum(meta: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def _fingerprint(file: Path) -> list[int]:
    """``[size, checksum]``; the checksum covers up to 64 evenly spaced MiB, so small files entirely."""
    size = file.stat().st_size
    chunks = -(-size // _CHUNK)
    checksum = 0
    with file.open("rb") as content:
        for i in range(min(chunks, _MAX_CHUNKS)):
            content.seek(_CHUNK * (i * chunks // min(chunks, _MAX_CHUNKS)))
            checksum = zlib.crc32(content.read(_CHUNK), checksum)
    return [size, checksum]


@contextlib.contextmanager
def locked(path: Path, work: str = "prepares this text") -> Iterator[bool]:
    """Hold ``path`` as a lock, and say whether that is so.

    Where the file system has no locks, renaming alone keeps folders complete: what is lost is the work of
    processes that make the same one.

    Args:
        path: the lock file; made where it is missing.
        work: what the other process does, for the user who waits for it.
    """
    from filelock import FileLock, Timeout

    lock, held = FileLock(path), True
    try:
        try:
            lock.acquire(timeout=_PATIENCE)
        except Timeout:
            log.warning(
                "another process %s and holds %s%s: waiting for it; if none of yours does, "
                "the lock is one that a killed process has left: delete that file",
                work,
                path,
                _holder(path),
            )
            lock.acquire(timeout=-1)
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        _warn_of_no_locks(path.parent, str(error))
        held = False
    try:
        yield held
    finally:
        if held:
            lock.release()


@functools.cache
def _warn_of_no_locks(folder: Path, reason: str) -> None:
    log.warning(
        "%s is on a file system without locks (%s): processes that start together prepare the same text each",
        folder,
        reason,
    )


def _holder(path: Path) -> str:
    """The host and process that a lock file names, where locks are files: `` (process 12 on host a)``."""
    try:
        process, host, *_ = path.read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return ""
    return f" (process {process} on {host})"
