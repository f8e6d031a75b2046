"""Texts of the user's own: which files of a folder are read, what they hold, and what is wrong with them."""

from __future__ import annotations

import bz2
import gzip
import json
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from test_data import all_ids, recipe
from test_tokenizers import save_gpt2_like

from data.encoding import Encoder, text_encoder
from data.local_files import find_files
from data.places import DatasetRequest, SourceOverride, local_shards, locate, shared_text
from data.prepare import prepare
from data.shards import Split, read_shards
from data.streaming import StreamRecipe, TokenStream
from data.tokenizers import get_tokenizer
from errors import UserError
from utils import well_formed

BOM = b"\xef\xbb\xbf"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def wanted(path: Path, role: str = "train", **choice: str) -> DatasetRequest:
    return DatasetRequest(str(path), role, "none", Path("no cache"), choice=SourceOverride(**choice))


def texts(path: Path, role: str = "train", pieces: int = 0, **choice: str) -> list[str]:
    """What is read, without line breaks."""
    asked = wanted(path, role, **choice)
    shards, row, _ = local_shards(asked, locate(asked), pieces)
    return [text.strip("\n") for batch in read_shards(shards, row.column, asked.key) for text in batch]


def write(path: Path, content: str | bytes = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(*words: str) -> str:
    return "".join(json.dumps({"text": word}) + "\n" for word in words)


def arrow(path: Path, *words: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"text": list(words)})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return path


def table(path: Path, *words: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table({"text": list(words)}), path)
    return path


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(content)
    return sink.getvalue().to_pybytes()


# Which files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names, train, validation",
    [
        (["notes-train", "notes-validation", "notes-test"], [0], [1]),
        (["notes_train", "notes_valid"], [0], [1]),
        (["TRAIN", "Dev"], [0], [1]),
        (["trainset", "devset"], [0], [1]),
        (["training-0", "training-1", "evaluation"], [0, 1], [2]),
        (["train2", "my.val"], [0], [1]),
        (["train/a", "train/b", "validation/a"], [0, 1], [2]),
        (["train", "eval_runs/old"], [0], [1]),
        (["developers", "trainers", "valuable", "contest"], [0, 1, 2, 3], [0, 1, 2, 3]),
    ],
)  # fmt: skip
def test_roles_are_words_between_separators(
    names: list[str], train: list[int], validation: list[int], tmp_path: Path
) -> None:
    for number, name in enumerate(names):
        write(tmp_path / f"{name}.jsonl", lines(str(number)))
    assert sorted(texts(tmp_path)) == [str(number) for number in train]
    assert sorted(texts(tmp_path, "validation")) == [str(number) for number in validation]


def test_a_folder_goes_before_a_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "train" / "doc-test.txt", "a\n")
    assert texts(tmp_path) == ["a"]
    assert "1 files count for train by their folder, not by their name: train/doc-test.txt" in caplog.text
    with pytest.raises(UserError, match="the folder has no file for validation"):
        texts(tmp_path, "validation")


def test_what_datasets_leaves_beside_its_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for part in ("train", "validation"):
        arrow(tmp_path / part / "data-00000-of-00001.arrow", part)
        arrow(tmp_path / part / "cache-7e87cdf19ca57865.arrow", "twice")
        write(tmp_path / part / "dataset_info.json", "{}")
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
    write(tmp_path / "train" / "state.json", json.dumps(state))
    assert texts(tmp_path) == ["train"] and texts(tmp_path, "validation") == ["validation"]
    assert "train/cache-7e87cdf19ca57865.arrow (not one of the files that state.json names)" in caplog.text
    assert "validation/cache-7e87cdf19ca57865.arrow (left there by map" in caplog.text
    write(tmp_path / "train" / "state.json", json.dumps(state | {"_indices_data_files": [{"filename": "i"}]}))
    with pytest.raises(UserError, match="saved with indices"):
        texts(tmp_path)
    (tmp_path / "train" / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(UserError, match="state.json names data-00000-of-00001.arrow, which is not there"):
        texts(tmp_path)


def test_folders_named_like_files(tmp_path: Path) -> None:
    for part in ("train", "valid"):
        write(tmp_path / f"{part}.parquet" / "_SUCCESS")
        write(tmp_path / f"{part}.parquet" / ".part-0.snappy.parquet.crc", "x")
        table(tmp_path / f"{part}.parquet" / "part-0.snappy.parquet", part)
        table(tmp_path / f"{part}.parquet" / "_temporary" / "0" / "part-1.parquet", "half")
    assert texts(tmp_path) == ["train"] and texts(tmp_path, "validation") == ["valid"]
    assert texts(tmp_path / "train.parquet") == ["train"]


@pytest.mark.parametrize("pack, ending", [(gzip.compress, "gz"), (bz2.compress, "bz2"), (zstd, "zst")])
def test_compressed_files_are_read(pack: Callable[[bytes], bytes], ending: str, tmp_path: Path) -> None:
    write(tmp_path / "train-0.jsonl", lines("a"))
    two = pack(BOM + lines("b").encode()) + pack(lines("c").encode())  # as joined by cat
    write(tmp_path / f"train-1.jsonl.{ending}", two)
    write(tmp_path / f"train-2.TXT.{ending.upper()}", pack(b"d\n"))
    assert texts(tmp_path) == ["a", "b", "c", "d"] == texts(tmp_path, pieces=99)
    assert texts(tmp_path, split="train[1:3]") == ["a", "b", "c", "d"], "own files are not sliced"
    assert texts(tmp_path / f"train-1.jsonl.{ending}", split="train[1:]") == ["c"]
    write(tmp_path / f"train-1.jsonl.{ending}", two[:-3])
    with pytest.raises(UserError, match=f"data.train=.*train-1.jsonl.{ending}: damaged .*; fetch it again"):
        texts(tmp_path)


def test_other_endings_and_links(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "elsewhere" / "1.ndjson", lines("b"))
    folder = tmp_path / "texts"
    write(folder / "train-0.JSONL", lines("a"))
    (folder / "train").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    (folder / "round").symlink_to(folder)
    assert sorted(texts(folder)) == ["a", "b"]
    assert "not read" not in caplog.text
    (folder / "train-latest.jsonl").symlink_to("train-0.JSONL")
    (folder / "train-again").symlink_to(tmp_path / "elsewhere")
    write(folder / "train-3.jsonl.gz", gzip.compress(lines("c").encode()))
    write(folder / "train-3.jsonl", lines("c"))
    assert sorted(texts(folder)) == ["a", "b", "c"], "each text once"
    for name in ("train-latest.jsonl (a link to", "train-3.jsonl.gz (it is there unpacked"):
        assert name in caplog.text
    (folder / "valid").symlink_to(tmp_path / "elsewhere")
    assert texts(folder, "validation") == ["b"]
    (folder / "train-4.jsonl").symlink_to("gone")
    with pytest.raises(UserError, match="train-4.jsonl: a link to gone, where nothing is"):
        texts(folder)


def test_what_is_left_out_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("train.jsonl", "valid.jsonl", "more.jsonl"):
        write(tmp_path / name, lines(name))
    for name in ("train.csv", "valid.jsonl.xz", "README.md", ".hidden.jsonl", "_old.jsonl", "load.py"):
        write(tmp_path / name, "x")
    assert texts(tmp_path) == ["train.jsonl"]
    (line,) = caplog.messages
    assert line == (
        f"data.train={tmp_path}: not read: _old.jsonl (its name begins with _), "
        "train.csv (its kind is unknown), more.jsonl (not named after a role)"
    )
    for name in ("train.jsonl", "more.jsonl", "_old.jsonl"):
        (tmp_path / name).unlink()
    with pytest.raises(UserError, match=r"no file for train but train.csv \(its kind is unknown\); name one"):
        texts(tmp_path)
    (tmp_path / "valid.jsonl").unlink()
    with pytest.raises(UserError, match="holds no data file but train.csv .*, valid.jsonl.xz"):
        texts(tmp_path)


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "train.txt", "a\n")
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def closed(path: Path) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(UserError, match=r"closed: the folder cannot be listed \(Permission denied\)"):
        texts(tmp_path)
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(UserError, match="pipe.txt: neither a file nor a folder"):
        find_files(tmp_path / "pipe.txt", "train", "data.train")


# What they hold ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["txt", "jsonl", "json"])
def test_a_byte_order_mark_is_no_text(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.formats._LINE_SPAN", 20)
    words = [f"w{number}" for number in range(30)]
    content = "".join(f"{word}\n" for word in words) if kind == "txt" else lines(*words)
    if kind == "json":
        content = json.dumps([{"text": word} for word in words])
    plain, marked = (
        write(tmp_path / f"a.{kind}", content),
        write(tmp_path / f"b.{kind}", BOM + content.encode()),
    )
    for pieces in (0, 99):
        assert texts(plain, pieces=pieces) == texts(marked, pieces=pieces) == words
    assert texts(marked, split="train[:1]") == ["w0"]
    empty = write(tmp_path / "empty" / f"a.{kind}", BOM)
    assert texts(empty) == []


def test_rows_with_a_mark_in_them_are_made_again(tmp_path: Path) -> None:
    for mark, expected in [(b"", 0), (BOM, 1)]:
        asked = wanted(write(tmp_path / "a.txt", mark + b"text\n"))
        assert len(local_shards(asked, locate(asked))[2].get("without_mark", [])) == expected


@pytest.mark.parametrize(
    "text", ["\ud83d", "a \ud800 b", "\udc00\ud800", "\u00e9\ud83d", "\ud83d\udc00x\ud83d"]
)
def test_half_a_surrogate_pair_is_the_replacement_character(text: str, tmp_path: Path) -> None:
    halves = text.replace("\ud83d\udc00", "\U0001f400")
    expected = "".join("\ufffd" if "\ud800" <= letter < "\ue000" else letter for letter in halves)
    assert well_formed(text) == expected and well_formed(expected) == expected
    for tokenizer in (get_tokenizer("text8"), get_tokenizer(save_gpt2_like(tmp_path / "gpt2"))):
        encode = text_encoder(tokenizer)
        assert encode([text, "ab"]) == encode([expected, "ab"])
    path = write(tmp_path / "train.jsonl", json.dumps({"text": text}) + "\n" + lines("ab ab ab ab"))
    tokenizer = get_tokenizer("text8")
    rows = all_ids(prepare(recipe(path, tmp_path, length=4, insert_eos=False), tokenizer))
    ids = Encoder(tokenizer)([expected, "ab ab ab ab"]).tokens
    np.testing.assert_array_equal(rows[:, 1:-1].ravel(), ids[: len(rows) * 2])
    settings = {"insert_eos": False, "eos": "sep", "global_batch_size": 2, "shuffle_buffer": 1, "seed": 1}
    asked = replace(wanted(path), cache_dir=tmp_path / "streams")
    TokenStream(StreamRecipe(asked, length=4, **settings), tokenizer).check()


# What is wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.jsonl", lines(*"abc") + '{"text": "a\tb"}\n', "line 4: Invalid control character at column 12"),
        ("a.jsonl", "\n" + lines("a") + '{"c": 1, "b": 2}', r"line 3 has no 'text' \(there is: b, c\); add"),
        ("a.jsonl", '{"id": 1}\n', r"no column 'text' \(there is: id\); name the column"),
        ("a.jsonl", lines("a") + '"b"\n', "line 2 is no object; one object a line is wanted"),
        ("a.jsonl", lines("a") + '{"text": 7}\n', r"column 'text' holds values like '7', no text \(line 2\)"),
        ("a.jsonl", lines("a").encode() + b'{"text": "\xe4"}\n', r"not text in UTF-8 \(line 2: invalid"),
        ("a.jsonl", lines("a") + '{"text": ' + "[" * 200_000 + "\n", r"\(line 2: nested too deep\)"),
        ("a.jsonl", lines("a") + '{"text": ' + "9" * 5000 + "}\n", r"\(line 2: Exceeds the limit"),
        ("a.jsonl.gz", gzip.compress(lines("a").encode() + b"{\n"), "not JSON, one object a line .line 2: "),
        ("a.txt", b"a\n\xe4\n", r"a.txt: not text in UTF-8 \(line 2: invalid"),
        ("a.json", '[\n{"text": "a"},\n{"text": }\n]', "no array of JSON .Expecting value: line 3 column 10"),
        ("a.json", '[{"text": "a"}, {"id": 1}]', r"element 2 has no 'text' \(there is: id\)"),
        ("a.json", b'[{"text": "a"},\n{"text": "\xe4"}]', r"not text in UTF-8 \(line 2: "),
        ("a.json", "[" * 200_000, "no array of JSON .maximum recursion depth"),
        ("a.json", '{"data": [\n1]}', "not JSON, one object a line .line 1: "),
        ("a.parquet", POINTER, "a pointer of git-lfs, not the file itself; fetch the file"),
        ("a.txt", POINTER, "a pointer of git-lfs"),
        ("a.jsonl.gz", POINTER, "a pointer of git-lfs"),
        ("a.arrow", b"", r"an empty file \(0 bytes\); fetch it again, or delete it"),
        ("a.parquet", b"", "an empty file"),
        ("a.jsonl.gz", b"", "an empty file"),
        ("a.arrow", b"garbage" * 300, r"damaged \(.*\); fetch it again"),
        ("a.parquet", b"garbage" * 300, r"damaged \(Parquet magic bytes not found.*\); fetch it again"),
    ],
)  # fmt: skip
def test_wrong_files_are_one_line(name: str, content: str | bytes, words: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, content)
    for role, key in [("train", "data.train"), ("validation", "data.valid")]:
        with pytest.raises(UserError, match=words) as caught:
            texts(path, role)
        assert str(caught.value).startswith(f"{key}={path}: ") and "\n" not in str(caught.value)
    assert ("data.valid_source.column" in str(caught.value)) == ("column" in caught.value.hint)


def test_an_array_of_json_is_read(tmp_path: Path) -> None:
    records = [{"text": f"a{number}"} for number in range(2500)]
    path = write(tmp_path / "a.json", json.dumps(records, indent=1))
    assert texts(path) == texts(path, pieces=99) == [record["text"] for record in records]
    assert texts(path, split="train[-3:]") == ["a2497", "a2498", "a2499"]


@pytest.mark.parametrize("make", [arrow, table])
def test_damaged_tables_are_one_line(make: Callable[..., Path], tmp_path: Path) -> None:
    """Whatever byte is cut off or changed: the texts, other ones, or one line, but no other error."""
    words = [f"words of text {number} \u00e4" * 3 for number in range(300)]
    path = make(tmp_path / f"a.{'arrow' if make is arrow else 'parquet'}", *words)
    content, random, refused = path.read_bytes(), np.random.default_rng(0), 0
    for number in range(80):
        place = int(random.integers(len(content)))
        damaged = bytearray(content[:place] if number % 2 else content)
        if number % 2 == 0:
            damaged[place] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        for pieces in (0, 9):
            try:
                texts(path, pieces=pieces)
            except UserError as error:
                refused += 1
                assert str(error).startswith(f"data.train={path}: ") and "\n" not in str(error)
    assert refused >= 80, "all that were cut"


# The same text for training and validation ------------------------------------------------------------------


def test_slices_that_overlap() -> None:
    for left, right, expected in [
        ("a[:-5]", "a[-5:]", False), ("a[:5]", "a[5:]", False), ("a[:5]", "a[4:]", True),
        ("a", "a[-1:]", True),
        ("a[:9]", "a[-9:]", False), ("a[9:]", "a[-9:]", True), ("a[:-5]", "a[-6:]", True),
    ]:  # fmt: skip
        one, other = Split.parse(left), Split.parse(right)
        assert one.overlaps(other) is other.overlaps(one) is expected, (left, right)


def test_validation_on_training_text_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "texts"
    first, second = write(folder / "a.jsonl", lines("a", "b")), write(folder / "b.jsonl", lines("b"))
    (tmp_path / "link").symlink_to(folder)
    os.link(second, tmp_path / "hard.jsonl")
    monkeypatch.chdir(tmp_path)
    every = "is the training text as well"

    def shared(train: str | Path, valid: str | Path, **choice: str) -> str | None:
        return shared_text(wanted(Path(train)), wanted(Path(valid), "validation", **choice))

    for train, valid, expected in [
        (folder, folder, every), (folder, "texts", every), ("texts/", tmp_path / "link", every),
        (folder, "texts/../texts/a.jsonl", every), (folder, "hard.jsonl", every), (first, second, None),
        (first, folder, f"has 1 files of the training text ({first}, ...)"),
    ]:  # fmt: skip
        assert shared(train, valid) == expected, (train, valid)
    assert shared(first, first, split="train[-1:]") == every
    asked = [wanted(first, split="train[:-1]"), wanted(first, "validation", split="train[-1:]")]
    assert shared_text(*asked) is None
    write(folder / "valid.jsonl", lines("c"))
    first.rename(folder / "train.jsonl")
    assert shared(folder, folder) is None
    on_hub = [("openwebtext", "openwebtext-valid", every), ("openwebtext-train", "openwebtext-valid", None)]
    for train, valid, expected in [
        *on_hub,
        ("lm1b", "ptb", None),
        ("pydoc", "pydoc", None),
        ("a/b", "a/b", None),
    ]:
        assert shared(train, valid) == expected


def test_the_spelling_of_a_path_is_no_other_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "texts" / "train.txt", "abcdefgh\n")
    monkeypatch.chdir(tmp_path)
    tokenizer = get_tokenizer("text8")
    for spelled in ("texts", tmp_path / "texts", "../" + tmp_path.name + "/texts"):
        with caplog.at_level(logging.WARNING):
            prepare(recipe(spelled, tmp_path, length=5), tokenizer)
    assert not caplog.records
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 1


@pytest.mark.parametrize("is_cut", [True, False])
def test_a_stream_of_arrow_without_its_end_is_warned_of(
    is_cut: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Cut between two messages it reads as a shorter file, and other writers may leave the mark out."""
    path = arrow(tmp_path / "x.arrow", "a", "b")
    if is_cut:
        path.write_bytes(path.read_bytes()[:-8])
    assert texts(path) == ["a", "b"]
    assert ("does not end with the mark of an arrow stream" in caplog.text) is is_cut
