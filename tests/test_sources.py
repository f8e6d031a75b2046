"""Where texts come from: hubs and servers that fail, local copies, what the user says instead."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import json
import logging
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_data import all_ids, recipe

from data import downloads, table, text8
from data.batching import GlobalBatchSampler
from data.dataset import TokenDataset, window
from data.downloads import PublishedFile
from data.places import SourceOverride
from data.prepare import PreprocessingConfig, prepare
from data.table import SOURCES, HubSource, RunningText
from data.tokenizers import get_tokenizer

TEXT8 = get_tokenizer("text8")
PARQUET = "refs/convert/parquet"


def texts_of(wanted: PreprocessingConfig) -> list[str]:
    """The documents as the model sees them: unwrapped, in the letters of text8 (others are [UNK])."""
    ids = all_ids(prepare(replace(wanted, wrap=False, length=40), TEXT8))
    return [text.split("[BOS]")[1].split("[EOS]")[0] for text in TEXT8.batch_decode(ids)]


class Hub:
    """Stands for ``datasets.load_dataset``: splits of data sets by hub name."""

    def __init__(self) -> None:
        self.sets: dict[str, dict[str, list[str]]] = {}
        self.asked: list[tuple] = []
        self.column = "text"

    def __call__(self, path: str, *, split: str, **options: Any) -> Any:
        import datasets

        self.asked.append((path, options["name"], options["data_dir"], options["revision"], split))
        if path not in self.sets:
            raise FileNotFoundError(f"Couldn't find {path}\nand a second line")
        return datasets.Dataset.from_dict({self.column: self.sets[path][split]})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    fake = Hub()
    monkeypatch.setattr("datasets.load_dataset", fake)
    monkeypatch.setattr("data.hub.hub_reachable", lambda: True)
    return fake


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError("<urlopen error no network>")

    monkeypatch.setattr("data.hub.hub_reachable", lambda: False)
    monkeypatch.setattr(downloads.urllib.request, "urlopen", refuse)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[str, bytes], PublishedFile]]:
    """Puts a file on a web server of this machine and describes it, with its checksum."""
    folder = tmp_path / "server"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()

    def put(name: str, content: bytes, members: str | None = None) -> PublishedFile:
        (folder / name).write_bytes(content)
        checksum = f"sha256:{hashlib.sha256(content).hexdigest()}"
        return PublishedFile(f"http://127.0.0.1:{server.server_port}/{name}", checksum, members)

    yield put
    server.shutdown()
    server.server_close()


def with_files(monkeypatch: pytest.MonkeyPatch, name: str, **files: PublishedFile) -> None:
    row = SOURCES[name]
    monkeypatch.setitem(SOURCES, name, replace(row, instead=(files,)))


# The table ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, role, asked, text",
    [
        ("ptb", "train", ("ptb-text-only/ptb_text_only", None, "penn_treebank", PARQUET, "train"), "a"),
        ("ptb", "validation", (..., ..., ..., ..., "validation"), "a"),
        ("lambada", "validation", ("EleutherAI/lambada_openai", "default", None, None, "test"), "[UNK]a"),
        ("ag_news", "validation", ("fancyzhx/ag_news", None, None, None, "test"), "a"),
        ("scientific_papers_arxiv", "train",
         ("armanc/scientific_papers", None, "arxiv", PARQUET, "train"), "a"),
        ("scientific_papers_pubmed", "validation",
         ("armanc/scientific_papers", None, "pubmed", PARQUET, "validation"), "a"),
        ("openwebtext-train", "train", ("Skylion007/openwebtext", None, None, None, "train[:-100000]"), "a"),
        ("openwebtext-valid", "validation", (..., ..., ..., ..., "train[-100000:]"), "a"),
        ("wikitext103", "train", ("Salesforce/wikitext", "wikitext-103-raw-v1", None, None, "train"), "a"),
        ("fineweb-edu", "train", ("HuggingFaceFW/fineweb-edu", None, None, None, "train"), "a"),
    ],
)  # fmt: skip
def test_what_the_hub_is_asked(
    name: str, role: Any, asked: tuple, text: str, hub: Hub, tmp_path: Path
) -> None:
    row = SOURCES[name]
    hub.column, hub.sets[row.path] = row.column, {row.splits[role]: ["a"]}
    assert texts_of(recipe(name, tmp_path, role=role)) == [text]
    assert all(given in (there, ...) for given, there in zip(asked, hub.asked[0], strict=True))


ROLES = [
    (name, role)
    for name, row in SOURCES.items()
    for role in ("train", "validation")
    if isinstance(row, RunningText) and row.local or isinstance(row, HubSource) and role in row.splits
]


@pytest.mark.parametrize("name, role", ROLES)
def test_without_a_network_one_line_says_what_to_do(
    name: str, role: Any, offline: None, tmp_path: Path
) -> None:
    key, root = ("data.train", tmp_path / "copies") if role == "train" else ("data.valid", None)
    if root:
        root.mkdir()
    with pytest.raises(ValueError) as caught:
        prepare(recipe(name, tmp_path, role=role, length=16, root=root), TEXT8)
    line, place = str(caught.value), (root or tmp_path / "cache" / "local") / name.removesuffix("-crop")
    assert "\n" not in line and line.startswith(f"{key}={name}: cannot be read from ")
    source = table.SOURCE_KEYS[role]
    assert "no network" in line and f"into {place}" in line and line.endswith(f"{source}.path=...")
    row = SOURCES[name]
    if isinstance(row, HubSource):
        assert row.path in line and all(other.path in line for other in row.instead if hasattr(other, "path"))
        published = row.published(role)
        assert published is None or (published.url in line and f"or {published.name}," in line)


# Where the same text is as well ----------------------------------------------------------------------


def test_another_place_stands_in_is_named_and_stays(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    wanted = recipe("scientific_papers_arxiv", tmp_path)
    hub.column, hub.sets["ccdv/arxiv-summarization"] = "article", {"train": ["b"]}
    assert texts_of(wanted) == ["b"]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [
        "scientific_papers_arxiv: armanc/scientific_papers cannot be read "
        "(Couldn't find armanc/scientific_papers)",
        "scientific_papers_arxiv (train): the text is from ccdv/arxiv-summarization instead of "
        "armanc/scientific_papers",
    ]
    # What is prepared is used, wherever the first place is by now: a run that goes on sees the same text.
    hub.sets["armanc/scientific_papers"] = {"train": ["a"]}
    assert texts_of(wanted) == ["b"] and len(hub.asked) == 2
    assert texts_of(replace(wanted, cache_dir=tmp_path / "fresh")) == ["a"]
    caplog.clear()
    assert texts_of(wanted) == ["b"] and "instead of" in caplog.text


def test_nobody_has_it(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Skylion007/openwebtext .Couldn't find.*, nor dylanebert") as caught:
        texts_of(recipe("openwebtext", tmp_path))
    assert "\n" not in str(caught.value)


def test_plain_files_are_fetched_once_and_checked(
    hub: Hub, serve: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = serve("ptb.valid.txt", b" no it was n't <unk> \n for N days \n")
    with_files(monkeypatch, "ptb", validation=good, train=good)
    wanted = recipe("ptb", tmp_path, role="validation")
    assert texts_of(wanted) == ["no it wasn[UNK]t [UNK]", "for [UNK] days"]
    (tmp_path / "server" / "ptb.valid.txt").unlink()
    assert texts_of(replace(wanted, role="train"))[1] == "for [UNK] days", "from downloads/"
    bad = serve("ptb.other.txt", b"something else\n")
    with_files(monkeypatch, "ptb", validation=replace(bad, checksum=good.checksum))
    with pytest.raises(ValueError, match=r"ptb.other.txt \(its sha256 is [0-9a-f]{64}, not [0-9a-f]{64}\)"):
        texts_of(replace(wanted, cache_dir=tmp_path / "fresh"))
    assert not list((tmp_path / "fresh").glob("downloads/*"))
    with_files(monkeypatch, "ptb", validation=replace(bad, url=bad.url + ".gone"))
    with pytest.raises(ValueError, match="Error 404"):
        texts_of(replace(wanted, cache_dir=tmp_path / "fresh"))


def test_the_archive_of_lm1b(
    hub: Hub, serve: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = io.BytesIO()
    names = {
        "training-monolingual.tokenized.shuffled/news.en-00001-of-00100": "one\ntwo , three\n",
        "training-monolingual.tokenized.shuffled/news.en-00099-of-00100": "four\n",
        "heldout-monolingual.tokenized.shuffled/news.en-00000-of-00100": "all of it held out\n",
        "heldout-monolingual.tokenized.shuffled/news.en.heldout-00049-of-00050": "held out\n",
        "README": "nothing",
    }
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, text in names.items():
            info = tarfile.TarInfo(f"1-billion-word/{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    members = {role: SOURCES["lm1b"].published(role).members for role in ("train", "validation")}
    files = {role: serve("lm1b.tar.gz", content.getvalue(), members[role]) for role in members}
    with_files(monkeypatch, "lm1b", **files)
    assert texts_of(recipe("lm1b", tmp_path)) == ["one", "two[UNK] three", "four"]
    assert texts_of(recipe("lm1b", tmp_path, role="validation")) == ["held out"]
    # The same file, put there by hand.
    copy = tmp_path / "elsewhere" / "lm1b.tar.gz"
    copy.parent.mkdir()
    copy.write_bytes(content.getvalue())
    chosen = recipe("lm1b", tmp_path, choice=SourceOverride(path=str(copy)), cache_dir=tmp_path / "fresh")
    assert texts_of(chosen) == ["one", "two[UNK] three", "four"]
    copy.write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"the sha256 of .*lm1b.tar.gz is .*, not .*; delete it"):
        texts_of(replace(chosen, cache_dir=tmp_path / "fresher"))


def test_lambada_of_its_authors(
    hub: Hub, serve: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in ["  a “ b", "c"])
    with_files(monkeypatch, "lambada", validation=serve("lambada_test.jsonl", lines.encode()))
    assert texts_of(recipe("lambada", tmp_path, role="validation")) == ["[UNK]a [UNK] b", "[UNK]c"]
    with pytest.raises(ValueError, match="data.train=lambada: it has no split for train"):
        texts_of(recipe("lambada", tmp_path))


def test_text8_is_unpacked(serve: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("text8", " anarchism" * 10)
    monkeypatch.setattr(text8, "URL", serve("text8.zip", content.getvalue()).url)
    monkeypatch.setattr(text8, "SIZE", 100)
    monkeypatch.setattr(text8, "_PARTS", {"train": (0, 90), "validation": (95, 100)})
    rows = prepare(recipe("text8", tmp_path, length=12), TEXT8)
    assert TEXT8.decode(all_ids(rows)[0, 1:-1]) == " anarchism" and len(rows) == 9
    (tmp_path / "server" / "text8.zip").unlink()
    assert len(prepare(recipe("text8-crop", tmp_path, length=12), TEXT8)) == 4


# Local copies, and what the user says -------------------------------------------------------------------


def test_local_copies_are_found_under_every_name(offline: None, tmp_path: Path) -> None:
    root = tmp_path / "copies"
    (root / "ccdv").mkdir(parents=True)
    for place in ("ag_news.txt", "wikitext2/test.txt", "fancyzhx/ag_news/test.txt", "openwebtext/a.jsonl"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_text('{"text": "b"}\n{"text": "c"}\n' if place.endswith("l") else "a\n")
    wanted = recipe("ag_news", tmp_path, role="validation", root=root)
    assert texts_of(wanted) == ["a"]
    (root / "ag_news.txt").unlink()
    assert texts_of(wanted) == ["a"]
    assert texts_of(replace(wanted, source="wikitext2")) == ["a"]
    assert texts_of(recipe("openwebtext", tmp_path, root=root)) == ["b", "c"]
    with pytest.raises(ValueError, match=r"train\[:-100000\] leaves nothing for train of 2 documents"):
        texts_of(recipe("openwebtext-train", tmp_path, root=root))
    (root / "openwebtext-train.txt").write_text("d\n")
    assert texts_of(recipe("openwebtext-train", tmp_path, root=root)) == ["d"], "its own file is not cut"
    with pytest.raises(ValueError, match="data.source_root=.*gone: no such folder"):
        texts_of(recipe("ag_news", tmp_path, root=root / "gone"))


def test_the_column_of_local_copies(offline: None, tmp_path: Path) -> None:
    for name, column in [("one", "sentence"), ("two", "text"), ("three", "content")]:
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({column: "a", "other": "b"}) + "\n")
    for name, column, found in [("one", None, "a"), ("two", None, "a"), ("three", "content", "a")]:
        choice = SourceOverride(path=f"{tmp_path}/{name}.jsonl", column=column)
        assert texts_of(recipe("ptb", tmp_path, choice=choice)) == [found]
    for name, column in [("three", None), ("two", "content")]:
        choice = SourceOverride(path=f"{tmp_path}/{name}.jsonl", column=column)
        with pytest.raises(ValueError, match=f"no column '{column or 'sentence'}'.*data.source.column"):
            texts_of(recipe("ptb", tmp_path, choice=choice))


def test_what_the_user_says_wins(hub: Hub, tmp_path: Path) -> None:
    hub.sets["my/news"] = {"dev": ["a , b"]}
    hub.column = "content"
    choice = SourceOverride("my/news", config="x", data_dir="y", revision="z", split="dev", column="content")
    assert texts_of(recipe("lm1b", tmp_path, choice=choice)) == ["a[UNK] b"], "under the rules of the row"
    assert hub.asked == [("my/news", "x", "y", "z", "dev")]
    with pytest.raises(ValueError, match="=lm1b: cannot be read from billion-word-benchmark/lm1b [^,]*; put"):
        texts_of(recipe("lm1b", tmp_path, choice=SourceOverride(revision="w")))  # nothing stands in for it
    assert hub.asked[1:] == [("billion-word-benchmark/lm1b", None, "plain_text", "w", "train")]
    with pytest.raises(ValueError, match="cannot be read"):
        texts_of(recipe("lm1b", tmp_path, revision="v", choice=SourceOverride(revision="w")))
    assert hub.asked[2][3] == "v"


def test_slices_of_local_texts(offline: None, tmp_path: Path) -> None:
    (tmp_path / "all.txt").write_text("a\nb\nc\nd\n")
    (tmp_path / "mine.txt").write_text("x\ny\n")
    source = {"path": str(tmp_path / "all.txt"), "split": "train[:-1]"}
    data = {"train": "openwebtext-train", "valid": "openwebtext-valid", "source": source}
    train = recipe("openwebtext-train", tmp_path, choice=SourceOverride.of(data, "train"))
    assert texts_of(train) == ["a", "b", "c"]
    data["valid_source"] = {"split": "train[-1:]"}
    valid = recipe(
        "openwebtext-valid", tmp_path, role="validation", choice=SourceOverride.of(data, "validation")
    )
    assert texts_of(valid) == ["d"]
    data["valid_source"] = {"path": str(tmp_path / "mine.txt")}
    assert SourceOverride.of(data, "validation").own, "a file of its own is not sliced"
    assert texts_of(replace(valid, choice=SourceOverride.of(data, "validation"))) == ["x", "y"]
    assert texts_of(replace(train, choice=SourceOverride.of(data, "train"))) == ["a", "b", "c", "d"]
    with pytest.raises(ValueError, match=r"data.source.split=train\[:5%\]: cannot be cut from local files"):
        texts_of(replace(train, choice=SourceOverride(path=str(tmp_path), split="train[:5%]")))


@pytest.mark.parametrize(
    "train, valid, source, own, expected",
    [
        ("lm1b", "lm1b", {"path": "p", "column": "c", "split": "s"}, {}, {"path": "p", "column": "c"}),
        ("openwebtext", "wikitext103", {"path": "p"}, {}, {}),
        ("openwebtext-train", "openwebtext-valid", {"path": "p"}, {}, {"path": "p"}),
        ("ptb", "ptb", {"path": "p", "config": "g"}, {"path": "q"}, {"path": "q"}),
        ("ptb", "ptb", {"column": "c"}, {"path": "q"}, {"path": "q", "column": "c"}),
        ("text8-crop", "text8", {"path": "p"}, {}, {"path": "p"}),
        ("reflow", "ptb", {}, {"split": "s"}, {"split": "s"}),
    ],
)  # fmt: skip
def test_validation_takes_over_what_is_of_the_same_data(
    train: str, valid: str, source: dict, own: dict, expected: dict
) -> None:
    data = {"train": train, "valid": valid, "source": source, "valid_source": own}
    assert SourceOverride.of(data, "validation").typed() == expected
    assert SourceOverride.of(data, "train").typed() == source


def test_a_folder_of_a_cloned_repository(offline: None, tmp_path: Path) -> None:
    for place in (
        "wikitext-2-raw-v1/train-0.txt",
        "wikitext-2-raw-v1/test-0.txt",
        "wikitext-103-raw-v1/train.txt",
    ):
        (tmp_path / "clone" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clone" / place).write_text(f"{place[:10]}\n".replace("-", " "))
    (tmp_path / "clone" / "wikitext-2-raw-v1" / ".cache").mkdir()
    (tmp_path / "clone" / "wikitext-2-raw-v1" / ".cache" / "train.json").write_text("{}")
    choice = SourceOverride(path=str(tmp_path / "clone"))
    assert texts_of(recipe("wikitext2", tmp_path, choice=choice)) == ["wikitext [UNK]"]
    assert texts_of(recipe("wikitext2", tmp_path, choice=choice, role="validation")) == ["wikitext [UNK]"]


def test_wrong_sources_are_one_line(offline: None, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a\n")
    (tmp_path / "latin.txt").write_bytes("\u00fc\n".encode("latin-1"))
    local = str(tmp_path / "train.txt")
    for name, choice, words in [
        ("lm1b", {"path": "no such"}, "data.source.path=no such: neither a local file or folder nor"),
        (local, {"path": "x/y"}, "data.source.path=x/y: data.train=.* is no row of the table"),
        ("pydoc", {"path": local}, "data.source.path=.*: data.train=pydoc has no such thing; leave it out"),
        ("text8", {"column": "a"}, "data.source.column=a: data.train=text8 has no such thing"),
        ("text8", {"path": "gone"}, "data.source.path=gone: no such file or folder"),
        ("synthetic", {"split": "a"}, "data.source.split=a: synthetic is made here, not read"),
        (str(tmp_path / "latin.txt"), {}, "latin.txt: not text in UTF-8"),
    ]:  # fmt: skip
        tokenizer = get_tokenizer("synthetic") if name == "synthetic" else TEXT8
        with pytest.raises(ValueError, match=words) as caught:
            prepare(recipe(name, tmp_path, choice=SourceOverride(**choice)), tokenizer)
        assert "\n" not in str(caught.value)


def test_sources_are_in_the_key(offline: None, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jsonl").write_text('{"text": "a a a a a", "other": "b b b b b"}\n' * 3)
    choices = [{}, {"column": "other"}, {"split": "train[:2]"}, {"split": "train[:1]"}]
    for choice in choices:
        prepare(
            recipe("openwebtext", tmp_path, choice=SourceOverride(path=str(tmp_path / "texts"), **choice)),
            TEXT8,
        )
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == len(choices)


# Cropped training blocks ---------------------------------------------------------------------------------


def test_windows_are_keyed_by_seed_step_and_row() -> None:
    rows = np.arange(4000)
    found = window(1, 7, rows, 31)
    assert found.min() == 0 and found.max() == 30
    # Uniform over 31: each frequency has a standard deviation of 0.0028; 5 of them allowed.
    assert np.abs(np.bincount(found) / 4000 - 1 / 31).max() < 0.014
    np.testing.assert_array_equal(window(1, 7, rows[5:9], 31), found[5:9])
    assert not np.array_equal(window(1, 8, rows, 31), found) and not np.array_equal(
        window(2, 7, rows, 31), found
    )


def test_cropped_rows_are_parts_of_double_ones() -> None:
    inner = np.arange(5 * 60, dtype=np.int32).reshape(5, 60)
    pieces = np.pad(inner, ((0, 0), (1, 1)), constant_values=((0, 0), (500, 501)))
    dataset = TokenDataset(pieces, crop=32)
    assert dataset.length == 32 and dataset.fetch([2])["input_ids"][0, :2].tolist() == [500, 120]

    def batches(batch_size: int, world: int, start: int) -> dict[int, torch.Tensor]:
        samplers = [
            GlobalBatchSampler(5, 4, batch_size, rank=rank, world_size=world, seed=9, start_step=start)
            for rank in range(world)
        ]
        found = {}
        for sampler in samplers:
            stream = iter(sampler)
            for _ in range(4 // batch_size // world):
                batch = dataset.__getitems__(next(stream))
                found |= dict(zip(batch["row"].tolist(), batch["input_ids"], strict=True))
        return found

    whole, split = batches(4, 1, 3), batches(1, 2, 3)
    assert all(torch.equal(whole[row], split[row]) for row in range(4))
    starts = [int(whole[row][1]) % 60 for row in range(4)]
    assert starts == window(9, 3, np.arange(4), 31).tolist() and len(set(starts)) > 1
    assert all(row[0] == 500 and row[-1] == 501 and (row[1:-1].diff() == 1).all() for row in whole.values())
    other = batches(4, 1, 4)
    assert any(not torch.equal(whole[row], other[row]) for row in range(4))
