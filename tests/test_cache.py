"""The cache of prepared texts where something fails: locks, the disk, the process itself."""

from __future__ import annotations

import builtins
import errno
import fcntl
import io
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_data import all_ids, fill, recipe

from data import cache
from data.cache import open_or_build
from data.hub import Unavailable, ask
from data.prepare import prepare
from data.tokenizers import get_tokenizer

REPORT = {"rows": 3}


@pytest.fixture(autouse=True)
def new_process() -> Iterator[None]:
    cache._warn_of_no_locks.cache_clear()
    yield


# Locks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_without_locks_it_goes_on_and_says_so_once(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for length in (4, 5):
        assert open_or_build(tmp_path, "set", {"length": length}, fill)[1] == REPORT
    (warning,) = caplog.messages
    assert f"{tmp_path} is on a file system without locks" in warning and os.strerror(number) in warning


def test_other_errors_of_a_lock_are_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "root").mkdir()
    monkeypatch.setattr(
        os, "open", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.EROFS, "read-only", "x"))
    )
    with pytest.raises(OSError, match="read-only"):
        open_or_build(tmp_path / "root", "set", {}, fill)


def test_without_locks_the_faster_process_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody removes what another one is making, and both have the same folder in the end."""

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    inner: list[Any] = []

    def slow(target: Path) -> dict[str, Any]:
        inner.append(open_or_build(tmp_path, "set", {}, fill))
        inner.append(inner[0][0].stat().st_ino)
        return fill(target)

    folder, report = open_or_build(tmp_path, "set", {}, slow)
    assert inner == [(folder, report), folder.stat().st_ino]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [folder.name]


def on_warning(monkeypatch: pytest.MonkeyPatch, then: Callable[[], Any]) -> list[str]:
    """The warnings of the cache; ``then`` is done at each of them."""
    found: list[str] = []

    def warned(message: str, *arguments: Any) -> None:
        found.append(message % arguments)
        then()

    monkeypatch.setattr(cache.log, "warning", warned)
    return found


def test_waiting_for_a_lock_is_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_PATIENCE", 0.1)
    folder, _ = open_or_build(tmp_path, "set", {}, fill)
    path = tmp_path / f".{folder.name}.lock"
    shutil.rmtree(folder)
    held = path.open("w")
    fcntl.flock(held, fcntl.LOCK_EX)
    warnings = on_warning(monkeypatch, held.close)
    assert open_or_build(tmp_path, "set", {}, fill)[1] == REPORT
    (line,) = warnings
    assert f"holds {path}: waiting for it" in line and "delete that file" in line


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_the_lock_file_of_another_host_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> None:
        raise OSError(errno.ENOSYS, "no such function")

    folder, _ = open_or_build(tmp_path, "set", {}, fill)
    path = tmp_path / f".{folder.name}.lock"
    shutil.rmtree(folder)
    path.write_text("4711\nnode17\n")
    monkeypatch.setattr(fcntl, "flock", missing)
    monkeypatch.setattr(cache, "_PATIENCE", 0.1)
    warnings = on_warning(monkeypatch, path.unlink)
    assert open_or_build(tmp_path, "set", {}, fill)[1] == REPORT
    (line,) = warnings
    assert f"holds {path} (process 4711 on node17): waiting for it" in line and "delete that file" in line


# The disk ---------------------------------------------------------------------------------------------------


class _Full(io.BufferedWriter):
    """A file on a disk with little room."""

    def write(self, content: Any) -> int:
        if self.tell() + len(memoryview(content).cast("B")) > 150:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(content)


@pytest.mark.parametrize("wrap, name", [(True, "tokens.npy"), (False, "lengths.npy")])
def test_a_full_disk_has_a_name_and_the_same_command_goes_on(
    wrap: bool, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = tmp_path / "train.txt"
    texts.write_text("some words of text\n" * 40)
    wanted, tokenizer = recipe(texts, tmp_path, length=8, wrap=wrap), get_tokenizer("text8")

    def opened(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if path.name == name and "w" in mode:
            return _Full(io.FileIO(path, "w"))
        return builtins.open(path, mode, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", opened)
        with pytest.raises(OSError) as caught:
            prepare(wanted, tokenizer)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename.endswith(name)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    assert len(prepare(wanted, tokenizer)) > 10


def test_a_full_disk_below_the_library_of_the_hub() -> None:
    def load(path: str) -> None:
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise RuntimeError("An error occurred while generating the dataset") from error

    with pytest.raises(OSError) as caught:
        ask(load, "owner/set")
    assert caught.value.errno == errno.ENOSPC and caught.value.filename is not None
    with pytest.raises(Unavailable):
        ask(lambda path: 1 / 0, "owner/set")


# A kill -----------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Nothing happens any more, not even what is done when an error passes."""


class Disk:
    """Counts what changes files, and from the ``last``-th operation on lets none happen."""

    def __init__(self, patch: pytest.MonkeyPatch, last: int | None) -> None:
        self.done, self.last = 0, last
        for module, name in [
            (os, "mkdir"), (os, "rmdir"), (os, "rename"), (os, "replace"), (os, "unlink"), (os, "remove"),
            (os, "chmod"), (os, "fsync"), (os, "fdopen"),
        ]:  # fmt: skip
            patch.setattr(module, name, self._guarded(getattr(module, name)))
        plain = io.open

        def opened(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if set(mode) & set("wax+"):
                self._count()
            return plain(file, mode, *arguments, **options)

        patch.setattr(io, "open", opened)
        patch.setattr(builtins, "open", opened)

    def _count(self) -> None:
        if self.last is not None and self.done >= self.last:
            raise Killed
        self.done += 1

    def _guarded(self, operation: Callable) -> Callable:
        def guarded(*arguments: Any, **options: Any) -> Any:
            self._count()
            return operation(*arguments, **options)

        return guarded


def tree(root: Path) -> dict[str, bytes]:
    """The visible files below a folder."""
    files = (path for path in root.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.mark.parametrize("wrap", [True, False])
@pytest.mark.parametrize("before", ["nothing", "another", "damaged"])
def test_a_kill_before_any_operation_leaves_the_old_set_or_the_new_one(
    wrap: bool, before: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, tokenizer = tmp_path / "train.txt", get_tokenizer("text8")
    texts.write_text("some words of text\n" * 20)
    wanted = recipe(texts, tmp_path, length=8, wrap=wrap)
    good = all_ids(prepare(wanted, tokenizer)).copy()
    complete = tree(tmp_path / "cache")
    (folder,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    operations = 0
    while True:
        shutil.rmtree(tmp_path / "cache")
        kept: dict[str, bytes] = {}
        if before == "another":
            prepare(recipe(texts, tmp_path, length=9, wrap=wrap), tokenizer)
            kept = tree(tmp_path / "cache")
        elif before == "damaged":
            prepare(wanted, tokenizer)
            (folder / "tokens.npy").write_bytes(b"damaged")
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, operations)
            try:
                prepare(wanted, tokenizer)
                ended = True
            except Killed:
                ended = False
        there = tree(tmp_path / "cache")
        assert kept.items() <= there.items(), "another set is as it was"
        parts = {name for name in there if name.startswith(folder.name)}
        if before != "damaged" and parts:
            assert parts == set(complete) and all(there[name] == complete[name] for name in parts)
        np.testing.assert_array_equal(all_ids(prepare(wanted, tokenizer)), good)
        after = tree(tmp_path / "cache")
        assert {name: after[name] for name in complete} == complete
        assert set(after) == set(complete) | set(kept), "nothing of the killed one is left"
        if ended:
            break
        operations += 1
    assert operations >= 9


def test_a_killed_process_holds_no_lock(tmp_path: Path) -> None:
    def die(folder: Path) -> dict[str, Any]:
        fill(folder)
        os._exit(9)

    process = multiprocessing.get_context("fork").Process(
        target=open_or_build, args=(tmp_path, "set", {}, die)
    )
    process.start()
    process.join(timeout=60)
    assert process.exitcode == 9
    assert open_or_build(tmp_path, "set", {}, fill)[1] == REPORT
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1
