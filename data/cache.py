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
from collections.abc import Callable, Iterator
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
    parts = json.loads(json.dumps({"layout": LAYOUT, **parts}))  # compared later with what JSON gives back
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    folder = root / f"{label}-{digest}"
    meta = _read_valid(folder, parts)
    if meta is None:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / f".{folder.name}.lock"):
            meta = _read_valid(folder, parts)  # another process may have made it meanwhile
            if meta is None:
                meta = _build(folder, parts, build)
    return folder, meta["report"]


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
