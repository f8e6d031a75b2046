"""README and docs are true: their commands compose, the files that they name exist, none is left out."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from config.cli import compose_config, read_command_line

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    shell = "\n".join(text for language, text in BLOCKS if language == "bash").replace("\\\n", " ")
    return [line for line in shell.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("command", [c for c in commands() if "main.py" in c])
def test_commands_compose(command: str) -> None:
    words = shlex.split(command, comments=True)
    assert words[:2] == ["python", "main.py"]
    for job in read_command_line(words[2:]).jobs():
        own = [word for word in job.words if not word.startswith("hydra")]  # plugins are extras
        compose_config(own, warn=False)


def test_settings_in_tables_are_known() -> None:
    pages = (ROOT / "README.md", ROOT / "docs" / "settings.md")
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    rows = [line for line in text.splitlines() if line.startswith("| ") and "`" in line]
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
    tree = next(text for _, text in BLOCKS if text.startswith("main.py   "))
    names = set(re.findall(r"[\w/]+\.py", tree))
    known = {path.name for path in ROOT.rglob("*.py") if ".venv" not in path.parts}
    assert {Path(name).name for name in names} <= known, "the tree names files that do not exist"
    top = {path.name for path in ROOT.glob("*.py")}
    top |= {f"{path.parent.name}/" for path in ROOT.glob("*/__init__.py")}
    for name in top:
        assert name in tree, f"{name} is missing in the tree"


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) < 2000
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_the_objective_of_the_page_gives_a_loss_and_gradients(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "objective.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", page, flags=re.DOTALL)[1]
    names: dict[str, object] = {}
    exec(compile(code, "docs/objective.md", "exec"), names)
    assert float(names["output"].loss) > 0 and names["embedding"].weight.grad.norm() > 0
