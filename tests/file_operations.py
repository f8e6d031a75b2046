"""What changes a file or a folder, watched from inside: to stop a process before any such operation."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

CHANGES = ("mkdir", "open", "chmod", "replace", "link", "unlink", "rmdir", "fsync")


class Killed(BaseException):
    """Stands for the end of the process: nothing of it may touch a file afterwards."""


def watch(patch: pytest.MonkeyPatch, before: Callable[[str], None]) -> None:
    """Call ``before(name)`` in front of every operation of ``CHANGES``; nothing waits for the disk."""
    for name in CHANGES:
        patch.setattr(os, name, _watched(name, getattr(os, name), before))


def _watched(
    name: str, original: Callable[..., object], before: Callable[[str], None]
) -> Callable[..., object]:
    def watched(*args: object, **kwargs: object) -> object:
        before(name)
        return None if name == "fsync" else original(*args, **kwargs)

    return watched


def kill_before(patch: pytest.MonkeyPatch, number: int, more: tuple[tuple[object, str], ...] = ()) -> None:
    """From operation ``number`` on all raise ``Killed``; what was made bears the number of a dead process.

    Args:
        more: functions (owner, name) that are operations as well.
    """
    left, dead = [number], dead_process()

    def before(name: str) -> None:
        if left[0] <= 0:
            raise Killed
        left[0] -= 1

    watch(patch, before)
    patch.setattr(os, "getpid", lambda: dead)
    for owner, name in more:
        patch.setattr(owner, name, _watched(name, getattr(owner, name), before))


@functools.cache
def dead_process() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def content(folder: Path) -> dict[str, bytes]:
    """All files below ``folder``, hidden ones too; folders have the content ``b"/"``."""
    return {
        str(path.relative_to(folder)): b"/" if path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
    }
