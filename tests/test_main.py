"""The entry point: flags and sweeps, one line for a mistake, no trace of its own on the disk."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import DictConfig

from config.cli import read_command_line
from errors import UserError
from main import ROOT, main


def test_flags_and_sweeps() -> None:
    line = read_command_line(["-m", "algo=mdlm,imdm", "sampling.steps=1,2", "optim.lr=1e-3"])
    assert line.multirun and [job.words for job in line.jobs()] == [
        ["algo=mdlm", "sampling.steps=1", "optim.lr=0.001"],
        ["algo=mdlm", "sampling.steps=2", "optim.lr=0.001"],
        ["algo=imdm", "sampling.steps=1", "optim.lr=0.001"],
        ["algo=imdm", "sampling.steps=2", "optim.lr=0.001"],
    ]
    with pytest.raises(ValueError, match="--seed: no such flag.*seed=3"):
        read_command_line(["--seed=3"])
    with pytest.raises(ValueError, match="--config-name: not used here"):
        read_command_line(["--config-name", "x"])


def test_main_tells_a_mistake_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["smapling.steps=3"], ["--multirun", "seed=1,x"], ["--sed"], ["mode=ppl_eval"]):
        assert main(argv) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and not captured.out


def test_main_runs_a_mode_and_tells_its_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import tasks

    seen: list[DictConfig] = []

    def fails(cfg: DictConfig) -> None:
        seen.append(cfg)
        raise UserError("data.train", "x", "is not there", "give another")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(tasks.MODES, "train", fails)
    assert main(["seed=4", "sampling.steps=1,2"]) == 2
    assert capsys.readouterr().err.endswith("error: data.train=x: is not there; give another\n")
    assert seen[0].seed == 4 and seen[0].sampling.steps == [1, 2]

    monkeypatch.setitem(tasks.MODES, "train", lambda cfg: json.loads("x"))  # a ValueError of a library
    with pytest.raises(json.JSONDecodeError):
        main([])
    assert not list(tmp_path.iterdir()), "composing must leave no folders behind"


def test_a_place_that_cannot_be_written_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert main(["debug=fast", f"checkpointing.save_dir={tmp_path}/file/run"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {tmp_path}/file") and "Not a directory" in error


def test_main_from_any_folder_without_importing_torch(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-B",
        "-X",
        "importtime",
        str(ROOT / "main.py"),
        "--cfg",
        "job",
        "--package",
        "optim",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "lr: 0.0003" in done.stdout
    assert not re.search(r"\| +(torch|lightning)$", done.stderr, re.MULTILINE)
    assert not list(tmp_path.iterdir())
