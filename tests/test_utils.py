"""Atomic files: the first of several wins where that is asked for, and what kills leave is removed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from file_operations import Killed, content, dead_process, kill_before

from utils import TEMPORARY, atomic_open, remove_leftovers, remove_unfinished, temporary_prefix, write_json


def test_the_next_write_removes_what_killed_ones_left(tmp_path: Path) -> None:
    kills = 0
    while True:
        try:
            with pytest.MonkeyPatch.context() as patch:
                kill_before(patch, kills)
                write_json(tmp_path / "a.json", kills)
            break
        except Killed:
            old = content(tmp_path).get("a.json")
            assert old in (None, b"0\n", b"-1\n")
            write_json(tmp_path / "a.json", -1)
            assert content(tmp_path) == {"a.json": b"-1\n"}
            kills += 1
    assert kills >= 3


def test_only_what_nobody_needs_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, old = tmp_path / "a.json", time.time() - 100_000
    dead = temporary_prefix(path).replace(f"-{os.getpid()}.", f"-{dead_process()}.")
    elsewhere = f".a.json.00000000-{dead_process()}."
    gone = [f"{dead}abcdefgh", f"{elsewhere}12345678", ".a.json.q_w_e_r_"]
    kept = [
        f"{temporary_prefix(path)}abcdefgh",  # somebody writes it at this moment
        f"{elsewhere}abcdefgh",
        ".a.json.abcdefgh",  # of an earlier version
        dead.replace("a.json", "b.json") + "abcdefgh",
        ".a.json.backup",
    ]
    for name in (*gone, *kept):
        (tmp_path / f"{name}{TEMPORARY}").write_text("x")
    for name in gone[1:]:
        os.utime(tmp_path / f"{name}{TEMPORARY}", (old, old))
    folder = tmp_path / f"{dead}hgfedcba{TEMPORARY}"
    (folder / "in").mkdir(parents=True)
    remove_leftovers(path)
    assert set(content(tmp_path)) == {f"{name}{TEMPORARY}" for name in kept}
    monkeypatch.setattr(os, "kill", lambda *_: (_ for _ in ()).throw(PermissionError))
    (tmp_path / f"{dead}abcdefgh{TEMPORARY}").touch()
    remove_leftovers(path)
    assert (tmp_path / f"{dead}abcdefgh{TEMPORARY}").exists(), "the process is somebody else's"


def test_a_run_folder_is_cleaned_but_for_what_is_being_written(tmp_path: Path) -> None:
    mine = temporary_prefix(tmp_path / "a")
    dead = mine.replace(f"-{os.getpid()}.", f"-{dead_process()}.")
    for name in (f"{mine}abcdefgh", f"{dead}abcdefgh", ".a.abcdefgh", ".last.ckpt.link"):
        (tmp_path / f"{name}{TEMPORARY}").touch()
    (tmp_path / f".out.abcdefgh{TEMPORARY}").mkdir()  # of an export
    remove_unfinished(tmp_path)
    assert set(content(tmp_path)) == {f"{mine}abcdefgh{TEMPORARY}", f".out.abcdefgh{TEMPORARY}"}


@pytest.mark.parametrize("links", [True, False])
def test_the_first_of_several_wins(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*args: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    write_json(tmp_path / "a", "first", "x")
    with pytest.raises(FileExistsError), atomic_open(tmp_path / "a", "x") as file:
        file.write("second")
    with pytest.raises(FileExistsError), atomic_open(tmp_path / "b", "x") as file:
        write_json(tmp_path / "b", "first", "x")
        file.write("second")
    assert content(tmp_path) == {"a": b'"first"\n', "b": b'"first"\n'}


def test_a_long_name_can_be_written(tmp_path: Path) -> None:
    write_json(tmp_path / ("\N{GREEK SMALL LETTER ALPHA}" * 120 + ".json"), 1)
