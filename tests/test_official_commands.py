"""The commands of the official programs: all compose here, but for those that are listed with why not.

tests/official_commands/*.txt holds what the scripts and READMEs of IMDM, Duo, ReDi and MDLM type, a setting a
line, as facts: names and values, with CKPT.ckpt and the like in the place of shell variables.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import quick_compose
from omegaconf import DictConfig

from config import cli
from config.cli import compose_config
from config.run import groups
from errors import UserError

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parent / "official_commands"
ALGORITHMS = {"subs": "mdlm", "d3pm": "d3pm", "sedd": "sedd", "ar": "ar"}


def read(name: str) -> dict[str, list[str]]:
    """The commands of one program: where they stand -> what they type."""
    commands: dict[str, list[str]] = {}
    for block in (FOLDER / f"{name}.txt").read_text(encoding="utf-8").strip().split("\n\n"):
        title, *words = block.splitlines()
        commands[title.removeprefix("# ")] = words
    return commands


COMMANDS = {
    f"{program}: {name}": words
    for program in ("imdm", "duo", "redi", "mdlm")
    for name, words in read(program).items()
}
# Images.
NO_DATA = f"data=cifar10: unknown choice; one of {', '.join(groups()['data'])}"
NO_GUIDANCE = (
    "sampling.guid_weight=1.0: not in this program, where it would change the results; "
    "leave it out, or use null or none"
)
REFUSED = {
    "duo: scripts/fid_cifar10_duo_ancestral_cosine.sh": NO_GUIDANCE,
    "duo: scripts/fid_cifar10_duo_base_ancestral_cosine.sh": NO_GUIDANCE,
    "duo: scripts/fid_cifar10_mdlm_ancestral_cosine.sh": NO_GUIDANCE,
    **{name: NO_DATA for name in COMMANDS if "/cifar10/" in name or "train_cifar10" in name},
    # A discrete-time bound of MDLM, which is looser than the one that is computed here.
    "mdlm: scripts/eval_owt_T_mdlm.sh": "algo.T=1000: unknown value; one of 0",
}


@pytest.fixture(autouse=True)
def _without_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(cli, "_compose", quick_compose.compose)
    yield


def outcome(words: list[str]) -> DictConfig | str:
    try:
        return compose_config(words, warn=False)
    except UserError as error:
        return str(error)


def test_every_command_composes_as_what_it_means() -> None:
    """One test, so that the compositions of equal choices are made once."""
    refused = {}
    for name, words in COMMANDS.items():
        cfg = outcome(words)
        if isinstance(cfg, str):
            refused[name] = cfg
            continue
        typed = dict(word.lstrip("+").split("=", 1) for word in words)
        meant = typed.get("algo") or ALGORITHMS.get(typed.get("parameterization", ""))
        if meant is None:  # MDLM's README leaves its default unsaid
            assert name.startswith("mdlm") and "backbone" in typed
            meant = "mdlm"
        assert cfg.algo.name == meant, name
        if "sampling.num_sample_batches" in typed:
            assert cfg.sampling.num_sample_batches == int(typed["sampling.num_sample_batches"]), name
    assert refused == REFUSED


def test_how_many_there_are() -> None:
    numbers = {program: sum(name.startswith(program) for name in COMMANDS) for program in ("imdm", "mdlm")}
    scripts = {name.split(".sh")[0] for name in COMMANDS if name.startswith("imdm")}
    assert numbers == {"imdm": 41, "mdlm": 14} and len(scripts) == 27


def test_a_quick_composition_is_hydras() -> None:
    words = ["algo=imdm", "model=small", "model.length=128", "data=lm1b-wrap", "sampling.steps='1,2'"]
    assert quick_compose.compose(words) == quick_compose.hydra_composes(words)
