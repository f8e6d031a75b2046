"""The cache of prepared token arrays: one folder per set, named by all that shapes it.

A folder appears complete or not at all (it is renamed into place), is checked whenever it is opened, and
is made by one process while others wait.
"""

from __future__ import annotations

import contextlib
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
    return open_or_build_first(root, label, [(parts, build)], skip=())


def open_or_build_first(
    root: Path,
    label: str,
    choices: Sequence[tuple[dict[str, Any], Callable[[Path], dict[str, Any]]]],
    skip: tuple[type[Exception], ...],
) -> tuple[Path, dict[str, Any]]:
    """The same of the first choice that is there already, else of the first that can be built.

    Processes that start together agree on the choice: one looks and builds at a time.

    Args:
        choices: (parts, build) of each.
        skip: what ``build`` raises when the next choice shall be tried; of the last one it is raised.
    """
    described = [_described(root, label, parts) for parts, _ in choices]
    if found := _first_there(described):
        return found
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / f".{described[0][0].name}.lock"):
        if found := _first_there(described):  # another process may have made it meanwhile
            return found
        for number, ((folder, parts), (_, build)) in enumerate(zip(described, choices, strict=True), 1):
            try:
                return folder, _build(folder, parts, build)["report"]
            except skip:
                if number == len(choices):
                    raise
    raise AssertionError("no choices")


def _described(root: Path, label: str, parts: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The folder that ``parts`` name, and these as JSON gives them back."""
    parts = json.loads(json.dumps({"layout": LAYOUT, **parts}))
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    return root / f"{label}-{digest}", parts


def _first_there(described: Sequence[tuple[Path, dict[str, Any]]]) -> tuple[Path, dict[str, Any]] | None:
    for folder, parts in described:
        if meta := _read_valid(folder, parts):
            return folder, meta["report"]
    return None


def _build(folder: Path, parts: dict[str, Any], build: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    prefix = f".{folder.name}.building-"
    for stale in folder.parent.glob(f"{prefix}*"):  # of a killed process: we hold the lock
        shutil.rmtree(stale, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=prefix))
    try:
        report = build(temporary)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        files = {file.name: _fingerprint(file) for file in sorted(temporary.iterdir())}
        meta = {"parts": parts, "files": files, "report": report}
        write_json(temporary / _META, meta)
        if folder.exists():
            log.warning("%s is damaged or not ours; it is made anew", folder)
            shutil.rmtree(folder)
        temporary.rename(folder)
        return meta
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _read_valid(folder: Path, parts: dict[str, Any]) -> dict[str, Any] | None:
    """What the folder says about itself, or None when that is not true or not what was asked for."""
    try:
        meta = json.loads((folder / _META).read_text(encoding="utf-8"))
        intact = meta["parts"] == parts and all(
            _fingerprint(folder / name) == expected for name, expected in meta["files"].items()
        )
        return meta if intact and isinstance(meta["report"], dict) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


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
def _locked(path: Path) -> Iterator[None]:
    """Hold ``path`` as a lock; where the file system has no locks, renaming alone keeps folders whole."""
    from filelock import FileLock

    lock = FileLock(path)
    with contextlib.suppress(NotImplementedError):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
