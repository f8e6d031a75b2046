"""CONTRIBUTING.md followed to the letter: one file is an algorithm, and nothing else has to be edited."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SKIPPED = {
    ".git",
    ".venv",
    "outputs",
    "cache",
    "docs",
    "__pycache__",
    ".pytest_cache",
    ".ruff_cache",
    "results",
}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the program with the algorithm of CONTRIBUTING.md."""
    folder = tmp_path_factory.mktemp("copy") / "program"
    shutil.copytree(ROOT, folder, ignore=lambda _, names: SKIPPED & set(names))
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(# algorithms/clipped.py\n.*?)```", page, flags=re.DOTALL)[1]
    (folder / "algorithms" / "clipped.py").write_text(code)
    return folder


def run(folder: Path, *words: str) -> str:
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def test_help_plan_and_training_find_it(copy: Path) -> None:
    assert "algo.max_weight=10.0" in run(copy, "main.py", "--help")
    command = ("main.py", "algo=mdlm-clipped", "data=synthetic", "model=tiny", "wandb=null")
    assert "mdlm-clipped" in run(copy, *command, "mode=plan", "plan.path=plan.json") + (
        copy / "plan.json"
    ).read_text(encoding="utf-8")
    run(copy, "main.py", "algo=mdlm-clipped", "debug=fast", "name=clipped")


def test_a_wrong_value_of_its_key_is_one_line(copy: Path) -> None:
    words = ("main.py", "algo=mdlm-clipped", "algo.max_weight=0")
    done = subprocess.run([sys.executable, *words], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: algo.max_weight=0.0: out of range; give a number > 0\n"


def test_the_tests_of_all_algorithms_take_it_in(copy: Path) -> None:
    words = ("-m", "pytest", "-p", "no:cacheprovider", "-k", "mdlm-clipped")
    told = run(copy, *words, "tests/test_algo.py", "tests/test_config.py")
    assert int(re.search(r"(\d+) passed", told)[1]) > 5
