"""Sweeps: every job runs, a failed one is reported by name; launchers and sweepers of Hydra's plugins work.

The plugins are extras (docs/sweeps.md): their tests skip themselves where they are not installed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig

import tasks
from config import cli
from errors import UserError
from main import PROGRAM_FAULT, ROOT, USER_MISTAKE, main

PLAN = ("mode=plan", "algo=mdlm", "model=tiny", "data=synthetic", "wandb=null")


def needs(package: str) -> pytest.MarkDecorator:
    found = importlib.util.find_spec("hydra_plugins") and importlib.util.find_spec(f"hydra_plugins.{package}")
    return pytest.mark.skipif(not found, reason=f"{package} is not installed")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[DictConfig]]:
    """The configurations of the jobs; seed=2 is a mistake of the user, seed=3 a fault of the program."""
    jobs: list[DictConfig] = []

    def train(cfg: DictConfig) -> dict[str, Any]:
        jobs.append(cfg)
        if cfg.seed == 2:
            raise UserError("data.train", "x", "is not there", "give another")
        if cfg.seed == 3:
            int("a fault of ours")
        return {"val/nll": (cfg.model.dropout - 0.5) ** 2}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setitem(tasks.MODES, "train", train)
    yield jobs


def test_a_run_composes_once(seen: list[DictConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_compose", lambda words: pytest.fail("Hydra composes already"))
    assert main(["algo=mdlm", "seed=4"]) == 0
    assert [cfg.seed for cfg in seen] == [4]


def test_the_others_run_and_the_failed_job_is_named(
    seen: list[DictConfig], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["-m", "algo=mdlm", "seed=1,2,4"]) == USER_MISTAKE
    assert [cfg.seed for cfg in seen] == [1, 2, 4]
    error = capsys.readouterr().err
    assert "error: data.train=x: is not there; give another\njob 1 (algo=mdlm seed=2) failed" in error
    assert error.endswith("error: 1 of the jobs failed: job 1 (algo=mdlm seed=2)\n")
    assert "Traceback" not in error
    assert os.listdir(tmp_path / "outputs" / "multirun") == ["multirun.yaml"]


def test_a_fault_of_ours_in_a_job_shows_its_traceback(
    seen: list[DictConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-m", "algo=mdlm", "seed=3,2,1"]) == PROGRAM_FAULT
    assert [cfg.seed for cfg in seen] == [3, 2, 1]
    error = capsys.readouterr().err
    assert "invalid literal for int()" in error and "please report it" in error
    assert "error: 2 of the jobs failed: job 0 (algo=mdlm seed=3); job 1 (algo=mdlm seed=2)\n" in error


def test_a_mistake_in_one_point_stops_the_sweep_before_its_first_job(
    seen: list[DictConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-m", "algo=mdlm", "model.n_heads=12,7"]) == USER_MISTAKE
    assert main(["-m", "model.dropout=interval(0,0.5)"]) == USER_MISTAKE
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: model.n_heads=7: does not divide")
    assert "a sweep without single points" in second
    assert not seen


def test_a_plugin_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", "hydra/launcher=nobodys", "seed=1,2"]) == USER_MISTAKE
    assert capsys.readouterr().err.startswith("error: hydra/launcher=nobodys: not installed; pip install")


@needs("hydra_optuna_sweeper")
def test_optuna_minimises_the_monitored_metric(seen: list[DictConfig], tmp_path: Path) -> None:
    words = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=12", "hydra.sweeper.sampler.seed=1")
    assert main(["-m", "algo=mdlm", *words, "model.dropout=interval(0.1,0.9)"]) == 0
    found = yaml.safe_load((tmp_path / "outputs/multirun/optimization_results.yaml").read_text())
    tried = [(cfg.model.dropout - 0.5) ** 2 for cfg in seen]
    assert len(tried) == 12 and found["best_value"] == pytest.approx(min(tried), abs=1e-12)


@needs("hydra_optuna_sweeper")
def test_optuna_goes_on_after_a_failed_job(
    seen: list[DictConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ("hydra/sweeper=optuna", "hydra/sweeper/sampler=grid", "hydra.sweeper.max_failure_rate=1")
    assert main(["-m", "algo=mdlm", *grid, "seed=choice(1,2,4)"]) == USER_MISTAKE
    assert sorted(cfg.seed for cfg in seen) == [1, 2, 4]
    assert "error: 1 of the jobs failed: job" in capsys.readouterr().err


def _launched(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A sweep over three places, of which the second cannot be written, from a folder that is not ours."""
    (folder / "file").write_text("not a folder")
    places = "plan.path=a.json,file/b.json,c.json"
    command = [sys.executable, str(ROOT / "main.py"), "-m", *PLAN, *words, places]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        pytest.param(
            ("hydra/launcher=joblib", "hydra.launcher.n_jobs=1"), marks=needs("hydra_joblib_launcher")
        ),
        pytest.param(
            ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"), marks=needs("hydra_joblib_launcher")
        ),
        pytest.param(("hydra/launcher=submitit_local",), marks=needs("hydra_submitit_launcher")),
    ],
)
def test_launched_processes(words: tuple[str, ...], tmp_path: Path) -> None:
    done = _launched(tmp_path, *words)
    assert done.returncode == USER_MISTAKE, done.stderr[-3000:]
    assert "error: 1 of the jobs failed: job 1 (" in done.stderr and "file/b.json" in done.stderr
    assert all(json.loads((tmp_path / name).read_text()) for name in ("a.json", "c.json"))
