"""mode=zero_shot: several data sets, one result; those that are missing do not stop the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_scoring import SMALL

import data.hub
import main
from config.cli import compose_config
from tasks import MODES

pytestmark = pytest.mark.slow


def run(folder: Path, *overrides: str) -> dict[str, Any]:
    places = (f"data.cache_dir={folder}/cache", f"checkpointing.save_dir={folder}/run")
    cfg = compose_config([*SMALL, *places, *overrides], warn=False)
    return MODES[cfg.mode](cfg)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mdlm")
    run(folder, "eval.generate_samples=False", "trainer.val_check_interval=6")
    for name, line in [("one", "the cat sat on the mat"), ("two", "zq xj vw")]:
        (folder / f"{name}.txt").write_text(f"{line}\n" * 60)
    return folder


def evaluate(folder: Path, mode: str, path: Path, *overrides: str) -> dict[str, Any]:
    places = (
        f"eval.checkpoint_path={folder}/run/checkpoints/last.ckpt",
        f"eval.generated_samples_path={path}",
    )
    return run(folder, f"mode={mode}", *places, "trainer.limit_val_batches=1.0", *overrides)


def test_each_set_as_alone(trained: Path, tmp_path: Path) -> None:
    names = f"{trained}/one.txt,named:{trained}/two.txt,pydoc"
    typed = ("data.insert_valid_eos=False", "eval.nelbo=count")
    result = evaluate(trained, "zero_shot", tmp_path / "all.json", f"zero_shot.datasets={names}", *typed)
    assert json.loads((tmp_path / "all.json").read_text()) == result and result["failed"] == {}
    assert [one["data"] for one in result["runs"]] == ["one", "named", "pydoc"]
    alone = [
        evaluate(trained, "ppl_eval", tmp_path / "x.json", *typed, *words)
        for words in [
            (f"data.valid={trained}/one.txt", "data.name=one"),
            (f"data.valid={trained}/two.txt", "data.name=named"),
            (),
        ]
    ]
    assert result["runs"] == alone
    with_eos = evaluate(trained, "ppl_eval", tmp_path / "x.json", f"data.valid={trained}/one.txt")
    assert with_eos["tokens"] > alone[0]["tokens"]
    table = (tmp_path / "all.md").read_text().splitlines()
    assert len(table) == 5 and f"| named | {alone[1]['perplexity']:.2f} |" in table[3]


def test_a_set_that_is_missing_is_one_line_and_the_others_go_on(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the command, whose exit code tells; inside it Hydra is at work already."""
    monkeypatch.setattr(data.hub, "hub_reachable", lambda: False)
    path = tmp_path / "all.json"
    words = (f"zero_shot.datasets=[wikitext2,{trained}/one.txt]", f"data.cache_dir={trained}/cache")
    places = (
        f"eval.checkpoint_path={trained}/run/checkpoints/last.ckpt",
        f"eval.generated_samples_path={path}",
    )
    assert main.main([*SMALL, "mode=zero_shot", *places, *words]) == main.USER_MISTAKE
    written = json.loads(path.read_text())
    assert [one["data"] for one in written["runs"]] == ["one"] and "no network" in written["failed"][
        "wikitext2"
    ]
    lines = capsys.readouterr().err.strip().splitlines()
    assert sum(line.startswith("[ERROR] wikitext2: ") and "local/wikitext2" in line for line in lines) == 1
    assert lines[-1].startswith("error: zero_shot.datasets=wikitext2: not evaluated (1 of 2")


def test_what_is_no_set_is_told_before_anything_is_loaded(trained: Path, tmp_path: Path) -> None:
    for names, words in [("nowhere", "zero_shot.datasets=nowhere: neither"), ("''", "evaluates data sets")]:
        with pytest.raises(ValueError, match=words):
            evaluate(trained, "zero_shot", tmp_path / "all.json", f"zero_shot.datasets={names}")
    assert not (tmp_path / "all.json").exists()
