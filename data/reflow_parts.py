"""Writing pairs as they are made: part files, each whole or absent, joined into one set of arrays at the end.

Any number of processes on any number of machines may write parts into one folder, and a killed run goes on
with what is there. Nothing here relies on locks: a part is the same whoever writes it, the manifest is begun
by one process alone, and arrays appear whole, from parts that hold every row. A lock only keeps a second
command from making what the first one is making.
"""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from data.reflow import FILES, KEY, MANIFEST, read_manifest
from errors import UserError
from utils import atomic_open, get_logger, remove_leftovers, write_json

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

PARTS = "parts"
_LOCK = ".lock"
_POLL_SECONDS = 2.0
# What may differ between the command that began and the one that goes on.
_HARMLESS = ("complete", "versions", "nfe", "checkpoint.path", "data.cache_dir")
log = get_logger("reflow")


class PairStore:
    """The folder in which ``manifest["rows"]`` pairs are gathered.

    Args:
        folder: made when missing.
        manifest: what makes the pairs; JSON values.

    Raises:
        UserError: the folder holds pairs that something else made; it says what differs.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self.folder, self.parts, self._described = folder, folder / PARTS, manifest
        found = read_manifest(folder)
        if found is None and any((folder / name).exists() for name in FILES.values()):
            raise UserError(KEY, str(folder), f"holds pairs without a {MANIFEST}", "give another folder")
        if found is None:
            with contextlib.suppress(FileExistsError):  # another process began them meanwhile
                write_json(folder / MANIFEST, {"complete": False, **manifest}, "x")
        self.manifest: Mapping[str, Any] = {"complete": False, **manifest}
        self.refresh()
        self.rows: int = self.manifest["rows"]

    @property
    def complete(self) -> bool:
        """Whether the joined arrays are there."""
        return self.manifest["complete"]

    def refresh(self) -> None:
        """Read again what another process may have changed.

        Raises:
            UserError: the pairs are others now.
        """
        self.manifest = read_manifest(self.folder) or self.manifest
        if differences := _differences(self.manifest, self._described):
            problem = f"holds pairs made with other settings ({'; '.join(differences)})"
            raise UserError(KEY, str(self.folder), problem, "give another folder")

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder, so that one command makes these pairs and others wait for it.

        The system lets go of it however the process ends. Nobody waits for pairs that are complete, or where
        the file system has no locks: then work is done twice.
        """
        with contextlib.ExitStack() as held:
            file, waits = None, False
            while not self.complete:
                file = file or self._open_lock(held)
                if file is not None and _lock(file, self.folder):
                    break
                if file is not None and not waits:
                    log.info("another process makes the pairs in %s; waiting for it", self.folder)
                    waits = True
                if file is not None:
                    time.sleep(_POLL_SECONDS)
                self.refresh()
            self.refresh()
            yield

    def _open_lock(self, held: contextlib.ExitStack) -> IO[str] | None:
        """The file of the lock; None when another process removed its folder: all pairs are made then."""
        self.parts.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            return held.enter_context((self.parts / _LOCK).open("a"))
        return None

    def done(self) -> np.ndarray:
        """(rows,) bool: the rows whose part is written."""
        ranges = self._ranges()
        self.refresh()  # after the look at the parts: who joins them says so before removing them
        done = np.full(self.rows, self.complete)
        for start, stop in ranges:
            done[start:stop] = True
        return done

    def batches(self, first: int, last: int, size: int) -> list[tuple[int, int]]:
        """The missing rows of first..last - 1 as ranges (start, stop) of at most ``size`` rows."""
        missing = np.flatnonzero(~self.done()[first:last]) + first
        runs = np.split(missing, np.flatnonzero(np.diff(missing) > 1) + 1)
        return [
            (int(run[at]), int(run[min(at + size, len(run)) - 1]) + 1)
            for run in runs
            for at in range(0, len(run), size)
        ]

    def has(self, start: int, stop: int) -> bool:
        """Whether these rows are there by now: another process may have made them."""
        self.refresh()
        return self.complete or self._part(start, stop).exists()

    def write(self, start: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Store rows from ``start`` on, safely: the arrays that ``FILES`` names, and ``nfe`` (n,)."""
        try:
            with atomic_open(self._part(start, start + len(arrays["t"])), "wb") as file:
                np.savez(file, **arrays)
        except FileNotFoundError:  # another process has joined all parts, and removed their folder
            self.refresh()
            if not self.complete:
                raise

    def join(self) -> bool:
        """Make the arrays from the parts and say so in the manifest.

        Returns:
            whether the pairs are complete; False while rows are missing.

        Raises:
            UserError: a part is damaged.
        """
        ranges = self._ranges()
        self.refresh()  # after the look at the parts, as in ``done``
        if self.complete:
            return True
        chain = _covering(ranges, self.rows)
        if chain is None:
            return False
        try:
            calls = self._write_arrays(chain)
        except FileNotFoundError:  # another process has joined them, and removed the parts
            return False
        self.manifest = {**self.manifest, "complete": True, "nfe": float(calls.mean())}
        write_json(self.folder / MANIFEST, self.manifest)
        return True

    def clear(self) -> None:
        """Remove the parts, and what killed processes left; only once the pairs are complete."""
        shutil.rmtree(self.parts, ignore_errors=True)
        for name in (MANIFEST, *FILES.values()):
            remove_leftovers(self.folder / name)

    def _write_arrays(self, chain: Sequence[tuple[int, int]]) -> np.ndarray:
        """Write the arrays from the parts ``chain``, one behind the other; returns the calls (rows,) int64.

        Written from the front to the end, not through a memory map: a full disk is an error there and the
        death of the process here.
        """
        first, calls, position = self._read(*chain[0]), np.zeros(self.rows, dtype=np.int64), 0
        with contextlib.ExitStack() as stack:
            files: dict[str, IO[bytes]] = {}
            for name, file_name in FILES.items():
                files[name] = stack.enter_context(atomic_open(self.folder / file_name, "wb"))
                shape = (self.rows, *first[name].shape[1:])
                header = {"descr": first[name].dtype.str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(files[name], header)
            for start, stop in chain:
                part = self._read(start, stop, like=first)
                calls[position:stop] = part["nfe"][position - start :]
                for name, file in files.items():
                    file.write(np.ascontiguousarray(part[name][position - start :]).data)
                position = stop
        return calls

    def _read(
        self, start: int, stop: int, like: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """A part; ``like`` is another one, with rows of the same kind."""
        path = self._part(start, stop)
        try:
            with np.load(path, allow_pickle=False) as part:
                arrays = {name: part[name] for name in (*FILES, "nfe")}
            for name, array in arrays.items():
                other = array if like is None else like[name]
                if len(array) != stop - start or (array.dtype, array.shape[1:]) != (
                    other.dtype,
                    other.shape[1:],
                ):
                    raise ValueError(f"{name} is {array.dtype} {array.shape}")
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            problem = f"{path} is damaged ({str(error).splitlines()[0][:100]})"
            hint = "delete this file, then the same command makes its pairs again"
            raise UserError(KEY, str(self.folder), problem, hint) from error
        return arrays

    def _ranges(self) -> list[tuple[int, int]]:
        found = (re.fullmatch(r"(\d+)-(\d+)\.npz", path.name) for path in self.parts.glob("*-*.npz"))
        ranges = sorted((int(match[1]), int(match[2])) for match in found if match)
        return [(start, stop) for start, stop in ranges if start < stop <= self.rows]

    def _part(self, start: int, stop: int) -> Path:
        return self.parts / f"{start:09d}-{stop:09d}.npz"


def _lock(file: IO[str], folder: Path) -> bool:
    """Whether this process holds the lock now, or there are none."""
    try:
        if fcntl is not None:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        problem = "a second process would make the same pairs instead of waiting"
        log.warning("%s: no locks there (%s): %s", folder, error.strerror, problem)
    return True


def _covering(ranges: Sequence[tuple[int, int]], rows: int) -> list[tuple[int, int]] | None:
    """Those of the sorted ``ranges`` that together hold all rows, each beginning inside the ones before or at
    their end; None when rows are missing."""
    chain, position = [], 0
    for start, stop in ranges:
        if start <= position < stop:
            chain.append((start, stop))
            position = stop
    return chain if position == rows else None


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    before, after = _flat(old), _flat(new)
    return [
        f"{key} was {before[key]}, is {after[key]}"
        for key in sorted(before.keys() & after.keys())  # one-sided ones came or went with a version
        if before[key] != after[key]
    ]


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        name = prefix + key
        if name in _HARMLESS:
            continue
        flat.update(_flat(inner, f"{name}.") if isinstance(inner, Mapping) else {name: inner})
    return flat
