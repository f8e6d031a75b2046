"""The keys of ``data`` from the command line to the loader: sources, streaming, the sets of zero_shot."""

from __future__ import annotations

import json
import logging
from itertools import islice
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from config.cli import compose_config
from config.run import groups
from data.places import SourceOverride
from data.table import SOURCES
from dataloader import data_settings, get_dataset, get_tokenizer, get_train_dataloader, get_valid_dataloader
from tasks.zero_shot import _section


def compose(tmp_path: Path, *words: str) -> DictConfig:
    usual = ("model.length=16", "loader.global_batch_size=4", f"data.cache_dir={tmp_path}/cache")
    return compose_config([*usual, *words], warn=False)


def write_text(path: Path, lines: int = 40) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{chr(97 + number % 26) * 20}\n" for number in range(lines)))
    return path


@pytest.mark.parametrize("name", groups()["data"])
def test_every_entry_names_rows_of_the_table(name: str) -> None:
    data = compose_config([f"data={name}"], warn=False).data
    assert {data.train, data.valid} <= {*SOURCES, "reflow", "auto"}
    assert data.streaming == (name.endswith("-streaming") or name == "fineweb-edu")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("data=fineweb-edu data.wrap=False", "data.wrap=False: data.streaming=True packs"),
        ("data=reflow-dataset-general data.streaming=True", "data.streaming=True: training is on pairs"),
        ("data=reflow-dataset-general data.source.split=a", "data.source.split=a: training is on pairs"),
        ("data=fineweb-edu trainer.limit_train_batches=0.5", "trainer.limit_train_batches=0.5: data.stream"),
        ("data.train_revision=a data.source.revision=b", "data.train_revision=a: data.source.revision=b"),
        (
            "data=fineweb-edu mode=generate_reflow_dataset eval.checkpoint_path=a",
            "data.streaming=True: mode=generate_reflow_dataset takes rows",
        ),
        ("data.shuffle_buffer=0", "data.shuffle_buffer=0: out of range"),
        ("data.source.colum=a", "data.source.colum: unknown key; did you mean data.source.column?"),
    ],
)
def test_settings_that_cannot_hold(typed: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        compose_config(typed.split())
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("data=fineweb-edu mode=ppl_eval eval.checkpoint_path=a", "data.streaming=True has no effect in"),
        ("data.shuffle_buffer=5", "data.shuffle_buffer has no effect"),
        ("mode=zero_shot eval.checkpoint_path=a", "are those of data.insert_valid_eos=False"),
    ],
)
def test_settings_that_are_idle_warn(typed: str, words: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    compose_config(typed.split())
    assert sum(words in line for line in caplog.messages) == 1


# Loaders ------------------------------------------------------------------------------------------


def test_sources_reach_the_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = [json.dumps({"content": letter * 30, "text": "z"}) for letter in "abcdef"]
    (tmp_path / "all.jsonl").write_text("\n".join(records) + "\n")
    cfg = compose(
        tmp_path,
        "data=openwebtext-split",
        "data.tokenizer_name_or_path=text8",
        f"data.source.path={tmp_path}/all.jsonl",
        "data.source.column=content",
        "data.source.split=train[:-2]",
        "data.valid_source.split=train[-2:]",
    )
    tokenizer = get_tokenizer(cfg)
    for role, letters in [("train", "abcd"), ("validation", "ef")]:
        rows = get_dataset(cfg, tokenizer, role).fetch(range(4))["input_ids"]
        text = "".join(tokenizer.batch_decode(rows[:, 1:-1])).replace("[EOS]", "")
        assert set(text) <= set(letters) and text.startswith(letters[0])
    assert "is the training text as well" not in caplog.text
    both = ["data=ag_news", "data.tokenizer_name_or_path=text8", f"data.source.path={tmp_path}/all.jsonl"]
    cfg = compose(tmp_path, *both, "data.source.column=content")
    get_dataset(cfg, tokenizer, "validation")
    assert "is the training text as well" in caplog.text


def test_the_manifest_of_pairs_knows_the_sources(tmp_path: Path) -> None:
    """Also where the pairs were made of local text, and by a version that had no such keys."""
    made_of = compose(tmp_path, "data=openwebtext-split", "data.source.path=texts").data
    kept = {
        key: value for key, value in made_of.items() if key not in ("source", "valid_source", "source_root")
    }
    for recorded, path in [(made_of, "texts"), (kept, None)]:
        tokenizer = {"name": "gpt2", "vocabulary": "", "vocab_size": 50258, "mask_id": 50257}
        made = {"rows": 1, "length": 8, "tokenizer": tokenizer, "algorithm": {"name": "imdm"}}
        noise = {"schedule": {"name": "log-linear", "eps": 1e-3}, "mask_noise": None}
        manifest = {"complete": True, "data": json.loads(json.dumps(dict(recorded), default=dict))}
        manifest |= made | noise
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        words = ("data=reflow-dataset-general", f"reflow.save_path={tmp_path}")
        found = data_settings(compose_config(words, warn=False))
        choice = SourceOverride.of(found, "validation")
        assert (found.valid, choice.path, choice.own) == ("openwebtext-valid", path, False)
    words = (*words, "data.valid_source.split=train[-5:]", "data.source_root=copies")
    found = data_settings(compose_config(words, warn=False))
    assert (found.valid_source.split, found.source_root) == ("train[-5:]", "copies")


def streaming(tmp_path: Path, workers: int) -> DictConfig:
    write_text(tmp_path / "copies" / "fineweb-edu.txt")
    write_text(tmp_path / "copies" / "openwebtext-valid.txt")
    words = ("data=fineweb-edu", "data.tokenizer_name_or_path=text8", f"data.source_root={tmp_path}/copies")
    return compose(tmp_path, *words, f"loader.num_workers={workers}")


def test_a_stream_through_the_loader(tmp_path: Path) -> None:
    """A process of its own tokenises; the batches are the same, and begin at any step."""
    cfg = streaming(tmp_path, workers=0)
    tokenizer = get_tokenizer(cfg)
    whole = list(islice(get_train_dataloader(cfg, tokenizer), 6))
    cfg.loader.num_workers = 3
    loader = get_train_dataloader(cfg, tokenizer, start_step=2)
    assert loader.num_workers == 1
    for one, other in zip(islice(loader, 4), whole[2:], strict=True):
        assert one.keys() == other.keys() == {"input_ids", "attention_mask", "row"}
        assert all(torch.equal(one[name], other[name]) for name in one)
    cfg.loader.batch_size, cfg.loader.num_workers = 1, 0
    ranks = [get_train_dataloader(cfg, tokenizer, rank=rank, world_size=2) for rank in range(2)]
    rows = torch.cat([batch["input_ids"] for loader in ranks for batch in islice(loader, 2)])
    order = torch.cat([batch["row"] for loader in ranks for batch in islice(loader, 2)])
    assert torch.equal(rows[order.argsort()], whole[0]["input_ids"])
    valid = get_valid_dataloader(cfg, tokenizer).dataset
    assert len(valid) == 40 * 22 // 14


# zero_shot ----------------------------------------------------------------------------------------


def test_the_published_sets_are_the_default() -> None:
    found = compose_config(["mode=zero_shot", "eval.checkpoint_path=a"], warn=False).zero_shot.datasets
    papers = ["scientific_papers_pubmed", "scientific_papers_arxiv"]
    assert found == ["ag_news", *papers, "lambada", "wikitext2", "wikitext103", "ptb", "lm1b-gpt2"]


def test_each_set_has_its_own_source_and_the_common_root(tmp_path: Path) -> None:
    write_text(tmp_path / "mine.txt")
    cfg = compose(
        tmp_path,
        "data=openwebtext-split",
        f"data.source_root={tmp_path}",
        "data.valid_source.column=content",
        "data.insert_valid_eos=False",
        "data.tokenizer_name_or_path=text8",
    )
    own = _section(cfg, "openwebtext-split")
    assert own.valid_source.column == "content"
    papers, mine = _section(cfg, "scientific_papers_arxiv"), _section(cfg, f"ptb:{tmp_path}/mine.txt")
    for section in (papers, mine, _section(cfg, str(tmp_path / "mine.txt"))):
        assert section.source_root == str(tmp_path) and section.insert_valid_eos is False
        assert not SourceOverride.of(section, "validation").typed()
    assert (mine.name, mine.valid, papers.valid) == ("ptb", str(tmp_path / "mine.txt"), papers.name)
    write_text(tmp_path / "lm1b.txt")
    cfg.data = _section(cfg, "lm1b-gpt2")
    assert len(get_dataset(cfg, get_tokenizer(cfg), "validation")) == 40 * 20 // 14
