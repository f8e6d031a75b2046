"""MAUVE: features as the library takes them, human texts as prefixes are taken, the command as a whole."""

from __future__ import annotations

import errno
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
from data.prepare import PreprocessingConfig, prepare
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


def test_equal_texts_have_equal_features_in_any_batch(folder: str) -> None:
    """To the last bit, whatever stands beside them: k-means could tell copies apart that differ there."""
    texts = [f"{'word ' * (k % 7)}text {k}" for k in range(11)]
    featurizer = Featurizer(folder, local_files_only=True, batch_size=3)
    first, again = featurizer(texts), featurizer(["another one", *texts[::-1], "b"] + texts)
    assert (again[1:12] == first[::-1]).all() and (again[13:] == first).all()
    assert len({row.tobytes() for row in first}) == 11
    short = Featurizer(folder, local_files_only=True, max_tokens=2)
    assert (short(["some text"]) == short(["some other"])).all()
    assert (featurizer(["some text"]) != featurizer(["some other"])).any()


def test_the_area_depends_on_no_sort() -> None:
    """Equal sets: all points are (1, 1) but for rounding, where the library's unstable sort may give 0.75."""
    features = np.random.default_rng(34).normal(size=(64, 16)).astype(np.float32)
    found = mauve(features, np.concatenate([features[::-1]] * 3), range(42, 62))
    assert found["mauve_by_seed"] == [1.0] * 20 and found["frontier_integral"] == 0
    beyond = np.array([[1, 0], [1 + 4e-16, 1], [1 - 4e-16, 1 + 4e-16], [1 + 2e-16, 1], [0, 1]])
    assert eval_mauve._area(beyond) == 1
    assert eval_mauve._area(np.array([[1, 0], [0.8, 0.5], [0.3, 0.9], [0, 1]])) == pytest.approx(0.685)


def test_equal_sets_give_one_and_others_less() -> None:
    draws = np.random.default_rng(0)
    human, near, far = (draws.normal(size=(200, 8)).astype(np.float32) for _ in range(3))
    far[:, 0] += 5
    values = {name: mauve(human, other, range(5)) for name, other in [("equal", human), ("near", near)]}
    values["far"] = mauve(human, far, range(5))
    assert values["near"] == mauve(human, near, range(5))
    assert values["equal"]["mauve"] == values["equal"]["mauve_star"] == 1
    assert (
        0.8 < values["near"]["mauve"] < 1
    )  # the same distribution: the noise of 200 texts in 20 cells is what is left
    assert values["far"]["mauve"] < 0.1
    near = values["near"]
    assert near["mauve"] == pytest.approx(np.mean(near["mauve_by_seed"])) and near["mauve_std"] > 0
    assert near["seeds"] == [0, 1, 2, 3, 4] and near["num_buckets"] == 20


def test_human_texts_begin_with_the_prefixes(human_file: str, tmp_path: Path) -> None:
    """The rows of mode=cond_sample_eval_with_tc, whatever their number."""
    tokenizer = get_tokenizer("text8")
    recipe = PreprocessingConfig(
        human_file, "validation", LENGTH, True, True, "official", "human", None, tmp_path
    )
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


def test_half_surrogates_become_replacements(human_file: str, folder: str, tmp_path: Path) -> None:
    """Web text has them, JSON can hold them, and no tokenizer takes them."""
    texts = [f"some \ud800 words {'q' * k}" for k in range(8)]
    assert "\\ud800" in json.dumps(texts)
    code, path = command(tmp_path, folder, human_file, {"generated_seqs": texts, "prefixes": texts[:1]})
    assert code == 0 and json.loads(path.with_name("samples-mauve.json").read_text())["num_generated"] == 8
    (tmp_path / "human.json").write_text(json.dumps(texts * 5))
    assert command(tmp_path, folder, str(tmp_path / "human.json"), {"generated_seqs": texts})[0] == 0


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
    assert code == 0 and same["mauve"] == 1 and different["mauve"] < 0.5
    assert (same["num_human"], same["num_generated"], same["empty_texts_left_out"]) == (40, 40, 1)
    assert (same["human_with_a_prefix_of_the_run"], different["human_with_a_prefix_of_the_run"]) == (40, None)
    assert (same["steps"], same["seed"], same["seeds"]) == (8, 42, [42, 43, 44, 45, 46])
    assert (same["featurizer"], same["human"], same["seq_len"]) == (folder, human_file, SEQ_LEN)
    shown = capsys.readouterr().out
    assert "steps 8: MAUVE: 1.0000\n" in shown and f"steps 4: MAUVE: {different['mauve']:.4f}\n" in shown
    assert f"-> {path.with_name('samples-mauve.json')}" in shown


def test_longer_samples_are_cut_and_shorter_ones_warned_about(
    human_file: str, folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")
    tokenizer = get_tokenizer("text8")
    texts = ["abcdefghij" * 3, "the cat sat on the mat and slept"]
    cut = eval_mauve._cut({"generated_seqs": texts, "length": 30}, SEQ_LEN, tokenizer, "generated")
    assert cut == [text[:SEQ_LEN] for text in texts] and not caplog.messages
    logger = eval_mauve.log.parent
    before, logger.propagate = logger.propagate, True
    try:
        run = {"generated_seqs": texts, "seq_len": 10}
        assert eval_mauve._cut(run, SEQ_LEN, tokenizer, "generated") == texts
    finally:
        logger.propagate = before
    assert "use --seq_len 10" in caplog.text


def test_both_sides_are_cut(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same texts on both sides, longer than --seq_len: 1, not what is left of one side's tail."""
    draws = random.Random(1)
    texts = [" ".join(draws.choices(["lamp", "river", "stone", "cloud"], k=12)) for _ in range(40)]
    for human in ({"generated_seqs": texts}, texts, {"runs": [{"generated_seqs": texts, "length": 80}]}):
        (tmp_path / "human.json").write_text(json.dumps(human))
        code, path = command(tmp_path, folder, str(tmp_path / "human.json"), {"generated_seqs": texts})
        found = json.loads(path.with_name("samples-mauve.json").read_text())
        assert code == 0 and found["mauve"] == 1 and found["seq_len"] == SEQ_LEN
    assert "MAUVE: 1.0000" in capsys.readouterr().out.splitlines()


def test_the_ceiling_is_of_other_human_texts(
    human_file: str, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many other human texts as the run has take its place; with too few, or unasked, the file says so."""
    everything = references(human_file, tmp_path, 70)
    runs = [{"generated_seqs": ["zz", "yy q"] * 15}, {"generated_seqs": ["a b c"] * 500}]
    command(tmp_path, folder, human_file, {"runs": runs}, "--num_seeds", "2")
    enough, few = json.loads((tmp_path / "samples-mauve.json").read_text())["runs"]
    featurizer = Featurizer(folder, local_files_only=True, max_tokens=SEQ_LEN)
    expected = mauve(featurizer(everything[:40]), featurizer(everything[40:]), [42, 43])
    assert enough["mauve_ceiling"] == pytest.approx(expected["mauve"], abs=0.02)
    assert 0.7 < enough["mauve_ceiling"] <= 1 and enough["mauve"] < 0.3
    assert enough["mauve_ceiling_reason"] is None and few["mauve_ceiling"] is None
    assert few["mauve_ceiling_reason"].startswith("500 other human texts are needed, there are ")
    shown = capsys.readouterr()
    assert f"these numbers: {enough['mauve_ceiling']:.4f}; " in shown.out and "no ceiling: 500" in shown.out
    assert "40 human texts against 30 generated ones: compare with" in shown.err
    command(tmp_path, folder, human_file, runs[0], "--no-ceiling")
    alone = json.loads((tmp_path / "samples-mauve.json").read_text())
    assert alone["mauve_ceiling"] is None and alone["mauve_ceiling_reason"] == "not asked for"
    sizes = ("num_human", "num_generated", "num_buckets", "seq_len", "seeds", "featurizer")
    assert [alone[name] for name in sizes] == [40, 30, 3, SEQ_LEN, [42, 43, 44, 45, 46], folder]
    assert alone["mauve_text"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("8-MDLM-gpt2.json", "8-MDLM-mauve.json"),
        ("8-MDLM-llama3_1.json", "8-MDLM-mauve.json"),
        ("samples.json", "samples-mauve.json"),
        ("-gpt2.json", "-gpt2-mauve.json"),
    ],
)
def test_the_official_name_of_the_result(name: str, expected: str) -> None:
    assert eval_mauve.result_path(f"results/{name}") == Path("results", expected)


def test_official_selection(tmp_path: Path) -> None:
    """2,345 documents, 3 workers: numpy's order of blocks that datasets.map makes of 1,000 documents each."""
    draws = random.Random(3)
    lines = ["".join(draws.choices("abcdefgh ", k=draws.randint(1, 30))) + "\n" for _ in range(2345)]
    (tmp_path / "human.txt").write_text("".join(lines))
    tokenizer = get_tokenizer("text8")
    settings = {
        "sample_num": 50,
        "seq_len": SEQ_LEN,
        "length": LENGTH,
        "seed": 42,
        "cache_dir": str(tmp_path),
    }
    found = human_texts(str(tmp_path / "human.txt"), tokenizer, official_workers=3, **settings)
    blocks = official_by_hand(lines, workers=3)
    expected = [blocks[row][:SEQ_LEN] for row in np.random.RandomState(42).permutation(len(blocks))[:50]]
    assert found == tokenizer.batch_decode(expected)
    assert found != human_texts(str(tmp_path / "human.txt"), tokenizer, official_workers=2, **settings)
    recipe = PreprocessingConfig(
        str(tmp_path / "human.txt"), "validation", LENGTH, True, True, "official", "human", None, tmp_path,
        official_workers=3,
    )  # fmt: skip
    rows = reference_rows(prepare(recipe, tokenizer), 50, LENGTH, official=True)
    assert [blocks[row][:SEQ_LEN] for row in rows] == expected, "the prefixes are theirs as well"


def official_by_hand(lines: list[str], workers: int) -> list[list[int]]:
    """Through datasets.map itself, with one process in the place of each worker's share."""
    import datasets

    tokenizer = get_tokenizer("text8")
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id

    def pack(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        stream = [
            i for text in batch["text"] for i in [*tokenizer.encode(text, add_special_tokens=False), eos]
        ]
        starts = range(0, len(stream) // (LENGTH - 2) * (LENGTH - 2), LENGTH - 2)
        return {"ids": [[bos, *stream[start : start + LENGTH - 2], eos] for start in starts]}

    whole = datasets.Dataset.from_dict({"text": lines})
    shares = [whole.shard(workers, k, contiguous=True) for k in range(workers)]
    return [row for share in shares for row in share.map(pack, batched=True, remove_columns="text")["ids"]]


def test_a_list_of_texts_serves_as_human_text(folder: str, tmp_path: Path) -> None:
    texts = [f"text number {k}" for k in range(60)]
    (tmp_path / "human.json").write_text(json.dumps(texts))
    drawn = human_texts(
        str(tmp_path / "human.json"), get_tokenizer("text8"), sample_num=20, seq_len=50, length=LENGTH,
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
        ({"generated_seqs": ["a", "b"], "seq_len": "x"}, (), 'seq_len="x" is no whole number of 1 or more'),
        ({"generated_seqs": ["a", "b"], "steps": {"a": 1}}, (), 'steps={"a": 1} is no whole number'),
        ({"generated_seqs": ["a", "b"], "prefixes": "a"}, (), 'prefixes="a" is no list of texts'),
        ([1], (), "holds no list generated_seqs"),
        ({"generated_seqs": ["a", "b"]}, ("--generation_path", "nowhere.json"), "no such file"),
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


def test_what_the_system_refuses_is_one_line(
    human_file: str,
    folder: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(eval_mauve, "hub_reachable", lambda: False)
    monkeypatch.setattr(eval_mauve, "write_json", full)
    code, _ = command(tmp_path, folder, human_file, {"generated_seqs": ["a b", "c d"]})
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert code == 2 and line.startswith("error: ") and "No space left on device" in line
