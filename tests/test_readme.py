"""The README tells the truth: its commands compose, the files that it names exist, none is left out."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from config.arguments import read_command_line
from config.cli import compose_config

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    shell = "\n".join(text for language, text in BLOCKS if language == "bash").replace("\\\n", " ")
    return [line for line in shell.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("command", [c for c in commands() if "main.py" in c])
def test_commands_compose(command: str) -> None:
    words = shlex.split(command, comments=True)
    assert words[:2] == ["python", "main.py"]
    line = read_command_line(words[2:])
    compose_config(line.words, warn=False)


def test_settings_in_tables_are_known() -> None:
    rows = [line for line in README.splitlines() if line.startswith("| ") and "`" in line]
    settings = re.findall(r"`([a-z_]+(?:[./][a-z_0-9]+)*=[^`]*)`", "\n".join(rows))
    assert len(settings) > 10
    for setting in settings:
        words = [word for word in shlex.split(setting) if "..." not in word and "folder" not in word]
        given = ["eval.checkpoint_path=last.ckpt"] if any(word.startswith("mode=") for word in words) else []
        compose_config(["algo=imdm", *given, *words], warn=False)


def test_scripts_that_are_named_exist() -> None:
    for command in commands():
        if command.startswith("bash "):
            assert (ROOT / command.split()[1]).is_file(), command


def test_file_tree_is_complete_and_true() -> None:
    tree = next(text for _, text in BLOCKS if "main.py                 8" in text)
    names = set(re.findall(r"[\w/]+\.py", tree))
    known = {path.name for path in ROOT.rglob("*.py") if ".venv" not in path.parts}
    assert {Path(name).name for name in names} <= known, "the tree names files that do not exist"
    top = {path.name for path in ROOT.glob("*.py")}
    top |= {f"{path.parent.name}/" for path in ROOT.glob("*/__init__.py")}
    for name in top:
        assert name in tree, f"{name} is missing in the tree"
