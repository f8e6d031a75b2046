"""Writing pairs as they are made: part files, each whole or absent, joined into one set of arrays at the end.

Any number of processes on any number of machines may write parts of different rows into one folder, and a
killed run goes on with what is there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data.reflow import FILES, KEY, MANIFEST, read_manifest
from errors import UserError
from utils import atomic_open, write_json

PARTS = "parts"
# What may differ between the command that began and the one that goes on.
_HARMLESS = ("complete", "versions", "nfe", "checkpoint.path", "data.cache_dir")


class PairStore:
    """The folder in which ``manifest["rows"]`` pairs are gathered.

    Args:
        folder: made when missing.
        manifest: what makes the pairs; JSON values.

    Raises:
        ValueError: the folder holds pairs that something else made; it says what differs.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self.folder, self.parts = folder, folder / PARTS
        found = read_manifest(folder)
        if found is None and any((folder / name).exists() for name in FILES.values()):
            raise UserError(KEY, str(folder), f"holds pairs without a {MANIFEST}", "give another folder")
        if found is None:
            found = {"complete": False, **manifest}
            write_json(folder / MANIFEST, found)
        differences = _differences(found, manifest)
        if differences:
            problem = f"holds pairs made with other settings ({'; '.join(differences)})"
            raise UserError(KEY, str(folder), problem, "give another folder")
        self.manifest = found
        self.rows: int = found["rows"]

    @property
    def complete(self) -> bool:
        """Whether the joined arrays are there."""
        return self.manifest["complete"]

    def refresh(self) -> None:
        """Read again what another process may have changed."""
        self.manifest = read_manifest(self.folder) or self.manifest

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

    def write(self, start: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Store rows from ``start`` on, safely: the arrays that ``FILES`` names, and ``nfe`` (n,)."""
        with atomic_open(self._part(start, start + len(arrays["t"])), "wb") as file:
            np.savez(file, **arrays)

    def join(self) -> None:
        """Make the arrays from all parts, say so in the manifest, and remove the parts."""
        calls = np.zeros(self.rows, dtype=np.int64)
        with contextlib.ExitStack() as stack:
            targets: dict[str, np.memmap] = {}
            for start, stop in self._ranges():
                with np.load(self._part(start, stop), allow_pickle=False) as part:
                    calls[start:stop] = part["nfe"]
                    for name in FILES:
                        if name not in targets:
                            targets[name] = stack.enter_context(self._array(name, part[name]))
                        targets[name][start:stop] = part[name]
        self.manifest = {**self.manifest, "complete": True, "nfe": float(calls.mean())}
        write_json(self.folder / MANIFEST, self.manifest)
        self.clear()

    def clear(self) -> None:
        """Remove parts that a run killed after joining left behind."""
        shutil.rmtree(self.parts, ignore_errors=True)

    @contextlib.contextmanager
    def _array(self, name: str, like: np.ndarray) -> Iterator[np.memmap]:
        path = self.folder / FILES[name]
        temporary = self.folder / f".{FILES[name]}.joining"
        array = np.lib.format.open_memmap(temporary, "w+", like.dtype, (self.rows, *like.shape[1:]))
        yield array
        array.flush()
        os.replace(temporary, path)

    def _ranges(self) -> list[tuple[int, int]]:
        names = [path.stem.split("-") for path in self.parts.glob("*-*.npz")]
        return sorted((int(start), int(stop)) for start, stop in names)

    def _part(self, start: int, stop: int) -> Path:
        return self.parts / f"{start:09d}-{stop:09d}.npz"


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
