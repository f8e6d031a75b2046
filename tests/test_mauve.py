"""MAUVE: features as the library takes them, human texts as prefixes are taken, the command as a whole."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_scoring import gpt2, save
from transformers import AutoModel

import eval_mauve
from data.prepare import Recipe, prepare
from data.tokenizers import get_tokenizer
from eval_mauve import human_texts, main, mauve
from models.featurizer import Featurizer
from tasks.prompts import reference_rows

LENGTH, SEQ_LEN = 32, 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("gpt2"), gpt2())


@pytest.fixture(scope="module")
def human_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """300 lines of words of a to z, all different."""
    draws, path = random.Random(0), tmp_path_factory.mktemp("text") / "human.txt"
    words = ["".join(draws.choices("abcdefghijklmnopqrstuvwxyz", k=4)) for _ in range(50)]
    path.write_text("\n".join(" ".join(draws.choices(words, k=8)) for _ in range(300)))
    return str(path)


def references(human_file: str, cache: Path, sample_num: int = 40, seed: int = 42) -> list[str]:
    return human_texts(
        human_file,
        get_tokenizer("text8"),
        sample_num=sample_num,
        seq_len=SEQ_LEN,
        length=LENGTH,
        seed=seed,
        cache_dir=str(cache),
    )


def test_features_are_those_of_the_library(folder: str) -> None:
    from mauve.utils import featurize_tokens_from_model

    texts = [
        "one text",
        "a",
        "another, which is a good deal longer than the first",
        "[CLS] some <|endoftext|>",
    ]
    featurizer = Featurizer(folder, local_files_only=True, batch_size=3)
    ids = [torch.tensor([featurizer.tokenizer(text)["input_ids"]]) for text in texts]
    expected = featurize_tokens_from_model(AutoModel.from_pretrained(folder).eval(), ids, batch_size=1)
    np.testing.assert_allclose(featurizer(texts), expected.numpy(), rtol=1e-4, atol=1e-5)  # float32
    alone = np.concatenate([featurizer([text]) for text in texts])
    np.testing.assert_allclose(featurizer(texts), alone, rtol=1e-4, atol=1e-5)
    assert featurizer.has_tokens("a") and not featurizer.has_tokens("")
    assert len(featurizer(["word " * 200])) == 1, "cut at the 128 positions of the model"


def test_equal_sets_give_one_and_others_less() -> None:
    draws = np.random.default_rng(0)
    human, near, far = (draws.normal(size=(200, 8)).astype(np.float32) for _ in range(3))
    far[:, 0] += 5
    values = {name: mauve(human, other, range(5)) for name, other in [("equal", human), ("near", near)]}
    values["far"] = mauve(human, far, range(5))
    assert values["near"] == mauve(human, near, range(5))
    assert values["equal"]["mauve"] == pytest.approx(1, abs=1e-6)
    assert (
        0.8 < values["near"]["mauve"] < 1
    )  # the same law: the noise of 200 texts in 20 cells is what is left
    assert values["far"]["mauve"] < 0.1
    near = values["near"]
    assert near["mauve"] == pytest.approx(np.mean(near["mauve_by_seed"])) and near["mauve_std"] > 0
    assert near["seeds"] == [0, 1, 2, 3, 4] and near["num_buckets"] == 20


def test_human_texts_begin_with_the_prefixes(human_file: str, tmp_path: Path) -> None:
    """The rows of mode=cond_sample_eval_with_tc, whatever their number."""
    tokenizer = get_tokenizer("text8")
    recipe = Recipe(human_file, "validation", LENGTH, True, True, "official", "human", None, tmp_path)
    blocks = prepare(recipe, tokenizer)
    rows = reference_rows(blocks, 40, LENGTH)
    expected = tokenizer.batch_decode(blocks.fetch(rows)["input_ids"][:, :SEQ_LEN])
    assert references(human_file, tmp_path) == expected
    assert references(human_file, tmp_path, 10) == expected[:10]
    assert references(human_file, tmp_path, seed=43) != expected
    assert len(set(expected)) > 35


def command(tmp_path: Path, folder: str, human: str, content: Any, *more: str) -> tuple[int, Path]:
    path = tmp_path / "samples.json"
    path.write_text(json.dumps(content))
    words = ["--generation_path", str(path), "--human_path", human, "--featurizer", folder]
    words += ["--tokenizer", "text8", "--length", str(LENGTH), "--seq_len", str(SEQ_LEN)]
    return main([*words, "--cache_dir", str(tmp_path), "--sample_num", "40", *more]), path


def test_the_command_prints_and_writes(
    human_file: str, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    human = references(human_file, tmp_path)
    other = ["zz zz zz zz zz" + "q" * k for k in range(40)]
    runs = [
        {"steps": 8, "seq_len": SEQ_LEN, "prefixes": [t[:9] for t in human], "generated_seqs": [*human, ""]},
        {"steps": 4, "seq_len": SEQ_LEN, "generated_seqs": other},
    ]
    code, path = command(tmp_path, folder, human_file, {"runs": runs})
    written = json.loads((tmp_path / "samples-mauve.json").read_text())
    same, different = written["runs"]
    assert code == 0 and same["mauve"] == pytest.approx(1, abs=1e-6) and different["mauve"] < 0.5
    assert (same["num_human"], same["num_generated"], same["empty_texts_left_out"]) == (40, 40, 1)
    assert (same["human_with_a_prefix_of_the_run"], different["human_with_a_prefix_of_the_run"]) == (40, None)
    assert (same["steps"], same["seed"], same["seeds"]) == (8, 42, [42, 43, 44, 45, 46])
    assert (same["featurizer"], same["human"], same["seq_len"]) == (folder, human_file, SEQ_LEN)
    shown = capsys.readouterr().out
    assert "steps 8: MAUVE 1.0000" in shown and f"steps 4: MAUVE {different['mauve']:.4f}" in shown
    assert f"-> {path.with_name('samples-mauve.json')}" in shown


def test_longer_samples_are_cut_and_shorter_ones_warned_about(
    human_file: str, folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")
    tokenizer = get_tokenizer("text8")
    texts = ["abcdefghij" * 3, "the cat sat on the mat and slept"]
    cut = eval_mauve._cut({"generated_seqs": texts, "length": 30}, SEQ_LEN, tokenizer)
    assert cut == [text[:SEQ_LEN] for text in texts] and not caplog.messages
    logger = eval_mauve.log.parent
    before, logger.propagate = logger.propagate, True
    try:
        assert eval_mauve._cut({"generated_seqs": texts, "seq_len": 10}, SEQ_LEN, tokenizer) == texts
    finally:
        logger.propagate = before
    assert "use --seq_len 10" in caplog.text


def test_a_list_of_texts_serves_as_human_text(folder: str, tmp_path: Path) -> None:
    texts = [f"text number {k}" for k in range(60)]
    (tmp_path / "human.json").write_text(json.dumps(texts))
    drawn = human_texts(
        str(tmp_path / "human.json"), get_tokenizer("text8"), sample_num=20, seq_len=5, length=LENGTH,
        seed=42, cache_dir=str(tmp_path),
    )  # fmt: skip
    assert len(set(drawn)) == 20 and set(drawn) < set(texts)


@pytest.mark.parametrize(
    ("content", "more", "words"),
    [
        ({}, (), "holds no list generated_seqs of texts"),
        ({"generated_seqs": ["", "a"]}, (), "1 of them are not empty"),
        ({"generated_seqs": ["a", "b"]}, ("--sample_num", "100000"), "--sample_num=100000: there are"),
        ({"generated_seqs": ["a", "b"]}, ("--featurizer", "./nowhere"), "--featurizer=./nowhere: "),
        ({"generated_seqs": ["a", "b"]}, ("--human_path", "nowhere.txt"), "--human_path=nowhere.txt: "),
        ({"generated_seqs": ["a", "b"]}, ("--seq_len", "40"), "--seq_len=40: blocks have 32 tokens"),
        ({"generated_seqs": ["a", "b"]}, ("--length", "100000"), "--length=100000"),
        ({"generated_seqs": ["a", "b"]}, ("--generation_path", "nowhere.json"), "No such file"),
    ],
)
def test_mistakes_are_one_line(
    content: Any,
    more: tuple[str, ...],
    words: str,
    human_file: str,
    folder: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(eval_mauve, "hub_reachable", lambda: False)
    code, path = command(tmp_path, folder, human_file, content, *more)
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert code == 2 and line.startswith("error: ") and words in line
    assert not path.with_name("samples-mauve.json").exists()
