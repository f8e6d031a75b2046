"""mode=judge as a whole: files and a checkpoint of ours beside human texts and controls, result and pages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from config.cli import compose_config
from errors import UserError
from tasks import MODES
from tests.test_evaluation import texts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoregressive checkpoint after two steps, human texts, two files of samples."""
    path = tmp_path_factory.mktemp("judge")
    train = [*common(path), "algo=ar", f"checkpointing.save_dir={path}/ar", "trainer.max_steps=2"]
    MODES["train"](compose_config([*train, "eval.generate_samples=False"], warn=False))
    (path / "human.txt").write_text("\n".join(texts(45, 0, words=12)))
    (path / "good.json").write_text(json.dumps(texts(20, 5, words=12)))
    rng = np.random.default_rng(0)
    bad = [" ".join(f"w{at}" for at in rng.integers(80, size=12)) for _ in range(20)]
    run = {"steps": 2, "nfe": 2.0, "total_generation_times": 4.0, "num_samples": 20, "generated_seqs": bad}
    (path / "bad.json").write_text(json.dumps(run))
    return path


def common(path: Path) -> list[str]:
    return [
        "debug=fast",
        f"data.cache_dir={path}/cache",
        "trainer.precision=32",
        "trainer.enable_progress_bar=False",
        "trainer.num_sanity_val_steps=0",
    ]


def judged(path: Path, *words: str) -> dict:
    cfg = compose_config(
        [*common(path), "mode=judge", f"judge.path={path}/out", f"judge.human={path}/human.txt", *words],
        warn=False,
    )
    return MODES["judge"](cfg)


@pytest.mark.slow
def test_sets_of_all_kinds_stand_side_by_side(folder: Path) -> None:
    last = f"{folder}/ar/checkpoints/last.ckpt"
    result = judged(
        folder,
        f"judge.files=ours:{last},good:{folder}/good.json,{folder}/bad.json",
        "algo=ar",
        "sampling.num_sample_batches=2",
        "loader.eval_batch_size=8",
        "eval.compute_generative_perplexity=True",
        f"eval.gen_ppl_eval_model_name_or_path={last}",
        "judge.mauve=False",
        "judge.length=24",
    )
    rows = {row["name"]: row for row in result["rows"]}
    length = result["rows"][1]["about"]["length"]
    ours = next(name for name in rows if name.startswith("ours, "))
    assert list(rows)[:4] == ["human", ours, "good", "bad"] and "looped" in rows
    assert {row["num_texts"] for row in rows.values()} == {15}, "45 human texts in three parts"
    assert rows[ours]["about"]["nfe"] == length - 1 and rows["bad"]["about"]["total_generation_times"] == 4.0
    for row in rows.values():
        found = row["metrics"]["generative_ppl"]
        assert found["low"] <= found["value"] <= found["high"] and found["value"] > 1
    protocol = result["protocol"]
    assert protocol["evaluator"] == last and protocol["version"] == 1 and "torch" in protocol["versions"]
    assert rows["bad"]["metrics"]["ngram_nll"]["low"] > rows["good"]["metrics"]["ngram_nll"]["high"]
    assert rows["bad"]["mmd_p_value"] < 0.05 < rows["good"]["mmd_p_value"]
    page, table = (folder / "out" / name for name in ("report.html", "table.md"))
    assert "Which metric catches which control" in table.read_text() and "<svg" in page.read_text()
    assert json.loads((folder / "out" / "result.json").read_text())["rows"][0]["name"] == "human"


@pytest.mark.slow
def test_mauve_has_its_ceiling_beside_it(folder: Path) -> None:
    (folder / "same.json").write_text(json.dumps(["zz " * 12] * 20))
    files = f"judge.files={folder}/good.json,{folder}/same.json"
    result = judged(folder, files, "judge.controls=False", "judge.num_seeds=2", "judge.length=12")
    human, good, same = result["rows"]
    assert len(human["mauve_ceilings"]) == 4 and human["mauve_lowest_ceiling"] <= min(human["mauve_ceilings"])
    assert same["metrics"]["mauve"]["value"] < human["mauve_lowest_ceiling"]
    assert good["metrics"]["mauve"]["value"] > same["metrics"]["mauve"]["value"]
    assert result["protocol"]["mauve_seeds"] == 2 and "generative_ppl" not in good["metrics"]
    assert "human against human texts of these numbers" in (folder / "out" / "table.md").read_text()


def test_training_texts_are_the_source_where_they_are_given(folder: Path) -> None:
    (folder / "train.txt").write_text((folder / "good.json").read_text().strip('[]"').replace('", "', "\n"))
    words = (f"judge.files={folder}/good.json", f"judge.train={folder}/train.txt", "judge.mauve=False")
    human, good, *_ = judged(folder, *words)["rows"]
    assert good["num_texts"] == 20, "45 human texts in two parts"
    assert good["metrics"]["copied"]["value"] == 1.0 > human["metrics"]["copied"]["value"]


def test_mistakes_are_one_line(folder: Path) -> None:
    with pytest.raises(UserError, match=r"judge\.files"):
        judged(folder)
    with pytest.raises(UserError, match="two sets have this name"):
        judged(folder, f"judge.files={folder}/good.json,{folder}/good.json")
    (folder / "few.txt").write_text("one\ntwo\n")
    with pytest.raises(UserError, match=r"judge\.num_texts=null: 2 texts"):
        judged(folder, f"judge.files={folder}/few.txt")
