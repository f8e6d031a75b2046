"""Packing, the cache, the generated sets, local files and what stands in for the hub."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_tokenizers import save_bert_like, save_gpt2_like

from data import places, text8
from data.cache import open_or_build
from data.dataset import TokenDataset
from data.encoding import Encoder, ahead, fingerprint, text_encoder
from data.generated import align_rows, pydoc_text, synthetic_rows, text_pieces
from data.packing import BlockPacker, Documents, pad_documents, smallest_int, with_eos
from data.prepare import PreprocessingConfig, prepare
from data.table import SOURCES
from data.tokenizers import get_tokenizer


def recipe(source: str | Path, tmp_path: Path, **changes: Any) -> PreprocessingConfig:
    chosen = (
        dict(
            source=str(source),
            role="train",
            length=8,
            wrap=True,
            insert_eos=True,
            eos="official",
            rules="none",
            revision=None,
            cache_dir=tmp_path / "cache",
        )
        | changes
    )
    return PreprocessingConfig(**chosen)


def all_ids(dataset: TokenDataset) -> np.ndarray:
    return dataset.fetch(np.arange(len(dataset)))["input_ids"].numpy()


# Packing ------------------------------------------------------------------------------------------


def test_blocks_do_not_depend_on_how_the_stream_arrives() -> None:
    stream = np.random.default_rng(0).integers(0, 250, size=1000)
    whole = BlockPacker(12, 251, 252, smallest_int(253)).feed(stream)
    packer = BlockPacker(12, 251, 252, smallest_int(253))
    parts = [packer.feed(part) for part in np.split(stream, [0, 3, 4, 97, 500, 991])]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert whole.dtype == np.uint8 and whole.shape == (100, 12)
    np.testing.assert_array_equal(whole[:, 1:-1].ravel(), stream)
    assert set(whole[:, 0]) == {251} and set(whole[:, -1]) == {252}
    packer.feed(stream[:13])
    assert packer.leftover == 3


def test_eos_stands_behind_each_document() -> None:
    documents = Documents.of([[1, 2], [], [3]])
    assert with_eos(documents, 9).tolist() == [1, 2, 9, 9, 3, 9]
    assert with_eos(Documents.of([]), 9).tolist() == []


def test_padded_documents() -> None:
    documents = Documents.of([[1, 2], [], [3, 4, 5, 6, 7], [8, 8, 8]])
    rows, lengths = pad_documents(documents, 5, bos=20, eos=21, pad=22, dtype=np.dtype(np.uint8))
    assert rows.tolist() == [[20, 1, 2, 21, 22], [20, 3, 4, 5, 21], [20, 8, 8, 8, 21]]
    assert lengths.tolist() == [4, 5, 5]


@pytest.mark.parametrize(
    "vocab_size, dtype", [(256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "int32")]
)
def test_smallest_type_holds_every_id(vocab_size: int, dtype: str) -> None:
    assert smallest_int(vocab_size) == np.dtype(dtype)
    assert np.iinfo(dtype).max >= vocab_size - 1


# Cache --------------------------------------------------------------------------------------------


def fill(folder: Path) -> dict[str, Any]:
    np.save(folder / "tokens.npy", np.arange(12, dtype=np.uint8).reshape(3, 4))
    return {"rows": 3}


def refuse(folder: Path) -> dict[str, Any]:
    raise AssertionError("must come from the cache")


def test_cache_is_made_once_and_keyed_by_its_parts(tmp_path: Path) -> None:
    folder, report = open_or_build(tmp_path, "set", {"length": 4}, fill)
    assert report == {"rows": 3}
    assert open_or_build(tmp_path, "set", {"length": 4}, refuse) == (folder, report)
    assert open_or_build(tmp_path, "set", {"length": 5}, fill)[0] != folder


@pytest.mark.parametrize(
    "damage",
    ["truncated", "altered", "foreign", "no meta", "broken meta", "lost", "no files", "one more", "report"],
)
def test_damaged_cache_is_made_anew(damage: str, tmp_path: Path) -> None:
    folder, _ = open_or_build(tmp_path, "set", {"length": 4}, fill)
    tokens, meta = folder / "tokens.npy", folder / "meta.json"
    content = tokens.read_bytes()
    if damage == "truncated":
        tokens.write_bytes(content[:-1])
    elif damage == "altered":
        tokens.write_bytes(content[:-1] + b"\xff")
    elif damage == "foreign":
        meta.write_text(json.dumps(json.loads(meta.read_text()) | {"parts": {"length": 7}}))
    elif damage == "no meta":
        meta.unlink()
    elif damage == "broken meta":
        meta.write_text("[1")
    elif damage == "no files":
        older = {key: value for key, value in json.loads(meta.read_text()).items() if key != "checksum"}
        meta.write_text(json.dumps(older | {"files": {}}))
        tokens.write_bytes(content[:-1] + b"\xff")
    elif damage == "one more":
        np.save(folder / "lengths.npy", np.array([1, 2, 3]))
    elif damage == "report":
        meta.write_text(meta.read_text().replace('"rows": 3', '"rows": 7'))
    else:
        tokens.unlink()
    assert open_or_build(tmp_path, "set", {"length": 4}, fill) == (folder, {"rows": 3})
    assert tokens.read_bytes() == content
    assert sorted(path.name for path in folder.iterdir()) == ["meta.json", "tokens.npy"]


def test_failed_preparation_leaves_nothing_and_dead_ones_are_swept(tmp_path: Path) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        (folder / "tokens.npy").write_bytes(b"half")
        raise RuntimeError("full disk")

    with pytest.raises(RuntimeError, match="full disk"):
        open_or_build(tmp_path, "set", {}, fail)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    folder, _ = open_or_build(tmp_path, "set", {}, fill)
    dead = tmp_path / f".{folder.name}.building-killed"
    dead.mkdir()
    (folder / "meta.json").unlink()
    open_or_build(tmp_path, "set", {}, fill)
    assert not dead.exists()


def _slow_build(root: Path, results: Any) -> None:
    def build(folder: Path) -> dict[str, Any]:
        time.sleep(0.2)
        with (root / "builds").open("a") as file:
            file.write("x")
        return fill(folder)

    folder, report = open_or_build(root, "set", {"length": 4}, build)
    results.put((str(folder), report, np.load(folder / "tokens.npy").sum().item()))


def test_processes_that_start_together_build_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_slow_build, args=(tmp_path, results)) for _ in range(4)]
    for process in processes:
        process.start()
    answers = [results.get(timeout=30) for _ in processes]
    for process in processes:
        process.join(timeout=30)
    assert (tmp_path / "builds").read_text() == "x"
    assert all(answer == answers[0] for answer in answers) and answers[0][1:] == ({"rows": 3}, 66)


# Generated sets -----------------------------------------------------------------------------------


def test_pydoc_text() -> None:
    train, valid = pydoc_text("train"), pydoc_text("validation")
    assert set(train + valid) == set("abcdefghijklmnopqrstuvwxyz ") and "  " not in train + valid
    assert len(valid) == len(train + valid) // 10
    assert "the yield expressions section" in valid
    if platform.python_version() == "3.11.7":
        assert len(train + valid) == 375_757


def test_pieces_join_to_the_text_and_are_cut_before_blanks() -> None:
    text = pydoc_text("validation") + "x" * 100
    batches = list(text_pieces(text, size=10))
    pieces = [piece for batch in batches for piece in batch]
    assert "".join(pieces) == text and len(batches) > 1
    assert all(piece.startswith(" ") for piece in pieces[1:])


def test_pydoc_blocks_hold_the_text_and_come_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = get_tokenizer("text8")
    wanted = recipe("pydoc", tmp_path, role="validation", length=128)
    ids = all_ids(prepare(wanted, tokenizer))
    assert (ids[:, 0] == 2).all() and (ids[:, -1] == 3).all()
    text = pydoc_text("validation")
    assert len(ids) == len(text) // 126
    assert tokenizer.decode(ids[:, 1:-1].ravel()) == text[: len(ids) * 126]
    monkeypatch.setattr("data.prepare._build", refuse)
    np.testing.assert_array_equal(all_ids(prepare(wanted, tokenizer)), ids)
    (file,) = (tmp_path / "cache").rglob("meta.json")  # as an older version left it
    meta = json.loads(file.read_text())
    del meta["checksum"]
    file.write_text(json.dumps(meta | {"report": {}}))
    np.testing.assert_array_equal(all_ids(prepare(wanted, tokenizer)), ids)


@pytest.mark.parametrize("role, count", [("train", 100_000), ("validation", 1024)])
def test_synthetic_distribution(role: Any, count: int) -> None:
    rows = synthetic_rows(role, 32, 256).astype(int)
    assert rows.shape == (count, 32)
    assert (rows[:, 0] == 254).all() and (rows[:, -1] == 255).all()
    token, following = rows[:, 1:-2], rows[:, 2:-1]
    assert (token == following // 4)[following != 0].all()
    # Drawn uniformly from 254 symbols: the frequency of each is within 6 standard deviations.
    fresh = np.concatenate([rows[:, -2], token[following == 0]])
    frequency = np.bincount(fresh, minlength=254) / len(fresh)
    assert len(frequency) == 254
    assert np.abs(frequency - 1 / 254).max() < 6 * (1 / 254 / len(fresh)) ** 0.5


def test_align_distribution() -> None:
    rows = align_rows("train", 10, 50_000)
    assert rows.shape == (100_000, 10) and (rows == rows[:, :1]).all()
    symbols = rows[:, 0].astype(float)
    assert symbols.max() < 50_000
    # Uniform: mean 24999.5, standard deviation 14434 / sqrt(100000) = 46; 5 of them allowed.
    assert abs(symbols.mean() - 24_999.5) < 230
    assert not np.array_equal(align_rows("validation", 10, 50_000)[:, 0], rows[:1024, 0])


def test_generated_sets_repeat_and_need_their_tokenizer(tmp_path: Path) -> None:
    wanted = recipe("synthetic", tmp_path, wrap=False, length=32)
    first, second = (all_ids(prepare(wanted, get_tokenizer("synthetic")))[:50] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert not (tmp_path / "cache").exists()
    with pytest.raises(ValueError, match="use data.tokenizer_name_or_path=synthetic"):
        prepare(wanted, get_tokenizer("text8"))


def test_text8_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "local" / "text8"
    folder.mkdir(parents=True)
    (folder / "text8").write_bytes(b" anarchism" * 10)
    with pytest.raises(ValueError, match="has 100 characters"):
        text8.text8_text("train", folder, tmp_path)
    monkeypatch.setattr(text8, "SIZE", 100)
    monkeypatch.setattr(text8, "_PARTS", {"train": (0, 90), "validation": (95, 100)})
    assert text8.text8_text("train", folder, tmp_path) == " anarchism" * 9
    assert text8.text8_text("validation", folder / "text8", tmp_path) == "chism"


# Text from files ----------------------------------------------------------------------------------

TEXTS = ["a b", "", "c a b", "abc"]


def write_texts(folder: Path, kind: str, stem: str = "train", column: str = "text") -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    folder.mkdir(parents=True, exist_ok=True)
    path, table = folder / f"{stem}.{kind}", pa.table({column: TEXTS})
    if kind == "txt":
        path.write_text("\n".join(TEXTS) + "\n")
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({column: text}) + "\n" for text in TEXTS))
    elif kind == "parquet":
        parquet.write_table(table, path)
    elif kind == "arrow":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    return path


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet", "arrow"])
def test_local_files_of_every_kind(kind: str, tmp_path: Path) -> None:
    tokenizer = get_tokenizer("text8")
    path = write_texts(tmp_path / "texts", kind)
    dataset = prepare(recipe(path, tmp_path, wrap=False, length=6), tokenizer)
    batch = dataset.fetch([2, 0])
    assert tokenizer.batch_decode(batch["input_ids"]) == ["[BOS]abc[EOS][PAD]", "[BOS]a b[EOS][PAD]"]
    assert batch["attention_mask"].tolist() == [[True] * 5 + [False]] * 2
    assert tokenizer.decode(dataset.fetch([1])["input_ids"][0]) == "[BOS]c a [EOS]"
    assert batch["input_ids"].dtype == torch.int64 and batch["attention_mask"].dtype == torch.bool


def test_packed_documents_with_eos(tmp_path: Path) -> None:
    tokenizer = get_tokenizer("text8")
    path = write_texts(tmp_path / "texts", "jsonl")
    dataset = prepare(recipe(path, tmp_path, length=7), tokenizer)
    text = "".join(tokenizer.batch_decode(all_ids(dataset)[:, 1:-1]))
    assert text == "a b[EOS][EOS]c a b[EOS]abc[EOS]"
    bare = prepare(recipe(path, tmp_path, length=7, insert_eos=False), tokenizer)
    assert "".join(tokenizer.batch_decode(all_ids(bare)[:, 1:-1])) == "a bc a bab"
    assert bare.fetch([0])["attention_mask"].all()


def test_official_eos_of_bert_is_cls(tmp_path: Path) -> None:
    tokenizer = get_tokenizer(save_bert_like(tmp_path / "bert"))
    path = tmp_path / "train.txt"
    path.write_text("red green\nblue\n")
    official = all_ids(prepare(recipe(path, tmp_path, length=7), tokenizer))
    clean = all_ids(prepare(recipe(path, tmp_path, length=7, eos="sep"), tokenizer))
    assert official.tolist() == [[1, 5, 6, 1, 7, 1, 1]]
    assert clean.tolist() == [[1, 5, 6, 2, 7, 2, 2]]
    padded = prepare(recipe(path, tmp_path, length=7, eos="sep", wrap=False), tokenizer)
    assert all_ids(padded).tolist() == [[1, 5, 6, 2, 0, 0, 0], [1, 7, 2, 0, 0, 0, 0]]


def test_names_of_special_tokens_in_a_text_are_text(tmp_path: Path) -> None:
    tokenizer = get_tokenizer(save_gpt2_like(tmp_path / "gpt2"))
    assert 6 in tokenizer("a[PAD]")["input_ids"]
    assert 6 not in text_encoder(tokenizer)(["a[PAD]<|endoftext|>"])[0]
    assert text_encoder(tokenizer)([" ab", ""]) == [[4, 1], []]
    assert 6 in tokenizer("a[PAD]")["input_ids"], "the caller's tokenizer stays as it is"


def test_long_batches_are_tokenised_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    encode, texts = Encoder(get_tokenizer("text8")), ["ab", "", "cdefghijkl", "m", "n", "", "opq"]
    whole = encode(texts)
    monkeypatch.setattr("data.encoding._CHARACTERS", 4)
    parts = encode(texts)
    assert whole.sizes.tolist() == parts.sizes.tolist() == [len(text) for text in texts]
    np.testing.assert_array_equal(whole.tokens, parts.tokens)
    assert len(encode([]).sizes) == 0


def test_the_next_batch_is_made_ahead() -> None:
    made: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(4):
            made.append(number)
            yield number
        raise RuntimeError("at the end")

    items = ahead(numbers())
    assert next(items) == 0 and next(items) == 1
    with pytest.raises(RuntimeError, match="at the end"):
        list(items)
    assert made == [0, 1, 2, 3]


def test_everything_that_shapes_the_rows_is_in_the_key(tmp_path: Path) -> None:
    text8_tokenizer, bert = get_tokenizer("text8"), get_tokenizer(save_bert_like(tmp_path / "bert"))
    path = write_texts(tmp_path / "texts", "txt")
    base = recipe(path, tmp_path, length=5)
    changes = [{}, {"length": 6}, {"wrap": False}, {"insert_eos": False}, {"eos": "sep"}, {"rules": "lm1b"}]
    for change in changes:
        prepare(recipe(path, tmp_path, **({"length": 5} | change)), text8_tokenizer)
    prepare(base, bert)
    path.write_text("another text\n")
    prepare(base, text8_tokenizer)
    assert len([p for p in (tmp_path / "cache").iterdir() if p.is_dir()]) == len(changes) + 2


def test_fingerprint_ignores_truncation_but_not_the_vocabulary(tmp_path: Path) -> None:
    tokenizer = get_tokenizer("text8")
    before = fingerprint(tokenizer)
    tokenizer(["a", "b c"], padding=True, truncation=True, max_length=2)
    assert fingerprint(tokenizer) == before == fingerprint(get_tokenizer("text8"))
    tokenizer.add_tokens(["the"])
    assert fingerprint(tokenizer) != before


def test_folders_are_split_by_the_names_of_their_files(tmp_path: Path) -> None:
    folder, tokenizer = tmp_path / "texts", get_tokenizer("text8")
    write_texts(folder, "txt", "part-0")
    everything = prepare(recipe(folder, tmp_path, wrap=False), tokenizer)
    write_texts(folder / "train", "txt", "part-1")
    (folder / "train" / "part-1.txt").write_text("only this\n")
    assert len(everything) == 3 and len(prepare(recipe(folder, tmp_path, wrap=False), tokenizer)) == 1
    with pytest.raises(ValueError, match="no file for validation"):
        prepare(recipe(folder, tmp_path, role="validation"), tokenizer)


@pytest.mark.parametrize(
    "text, length, words",
    [
        ("", 8, "holds no text"),
        ("\n\n", 8, None),
        ("a b c", 20, "its 5 tokens for train do not fill one block of model.length=20"),
        ("a b c", 2, "model.length=2"),
    ],
)
def test_empty_and_short_data(text: str, length: int, words: str | None, tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_text(text)
    wanted = recipe(path, tmp_path, length=length, wrap=words is not None)
    with pytest.raises(ValueError, match=words or "holds no text") as caught:
        prepare(wanted, get_tokenizer("text8"))
    assert "\n" not in str(caught.value)


def test_source_errors_name_key_and_mend(tmp_path: Path) -> None:
    tokenizer = get_tokenizer("text8")
    write_texts(tmp_path / "columns", "parquet", column="content")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "train.csv").write_text("a,b\n")
    (tmp_path / "broken.jsonl").write_text("{\n")
    for source, words in [
        (tmp_path / "columns", r"data.train=.*no column 'text' \(there is: content\)"),
        (tmp_path / "nothing", "holds no data file"),
        (tmp_path / "train.csv", "unknown kind"),
        (tmp_path / "broken.jsonl", "not JSON"),
        ("wikitext3", "neither a known data set nor a local path.*wikitext2"),
        ("openwebtext-valid", "no split for train.*openwebtext-train"),
    ]:
        with pytest.raises(ValueError, match=words) as caught:
            prepare(recipe(source, tmp_path), tokenizer)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="data.wrap=False: pydoc is one running text"):
        prepare(recipe("pydoc", tmp_path, wrap=False), tokenizer)


# The hub ------------------------------------------------------------------------------------------


def test_without_a_network_one_line_says_where_to_put_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.hub.hub_reachable", lambda: False)
    tokenizer, wanted = get_tokenizer("text8"), recipe("wikitext2", tmp_path, length=5, insert_eos=False)
    place = tmp_path / "cache" / "local" / "wikitext2"
    with pytest.raises(ValueError, match="=wikitext2: .* Salesforce/wikitext .no network") as caught:
        prepare(wanted, tokenizer)
    assert str(place) in str(caught.value) and "\n" not in str(caught.value)
    place.mkdir(parents=True)
    (place / "train.txt").write_text(" a @-@ b\n")
    assert tokenizer.decode(all_ids(prepare(wanted, tokenizer))[0, 1:-1]) == " a[UNK]"


def test_hub_rows_are_read_detokenised_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[tuple] = []

    def load(path: str, **options: Any) -> datasets.Dataset:
        asked.append((path, *(options[name] for name in ("name", "data_dir", "revision", "split"))))
        return datasets.Dataset.from_dict({"label": [1, 2], column: ["a , b", "c"]})

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr("data.hub.hub_reachable", lambda: True)
    tokenizer, column = get_tokenizer("text8"), "text"
    wanted = recipe("lm1b", tmp_path, role="validation", wrap=False)
    rows = prepare(wanted, tokenizer)
    assert asked == [("billion-word-benchmark/lm1b", None, "plain_text", "refs/convert/parquet", "test")]
    assert tokenizer.decode(all_ids(rows)[0]) == "[BOS]a[UNK] b[EOS][PAD][PAD]"
    prepare(wanted, tokenizer)
    assert len(asked) == 1, "a prepared set asks nobody"
    prepare(recipe("someone/texts", tmp_path, wrap=False, revision="v2"), tokenizer)
    assert asked[1] == ("someone/texts", None, None, "v2", "train")
    column = "content"
    with pytest.raises(ValueError, match="data.train=ag_news: no column 'text' .there is: content, label"):
        prepare(recipe("ag_news", tmp_path), tokenizer)


def test_rules_follow_the_longest_name() -> None:
    assert places._rules_of("lm1b-wrap") is SOURCES["lm1b"]
    assert places._rules_of("openwebtext-train") is SOURCES["openwebtext-train"]
    assert places._rules_of("wikitext").detokenizer is None


def test_mapped_rows_travel_to_workers_by_name(tmp_path: Path) -> None:
    np.save(tmp_path / "tokens.npy", np.arange(1_000_000, dtype=np.int32).reshape(-1, 10))
    dataset = TokenDataset.open(tmp_path)
    packed = pickle.dumps(dataset)
    assert len(packed) < 1000
    assert pickle.loads(packed).fetch([7])["input_ids"].tolist() == [list(range(70, 80))]
    in_memory = TokenDataset(np.arange(6).reshape(2, 3), np.array([1, 3]))
    again = pickle.loads(pickle.dumps(in_memory))
    assert again.fetch([0])["attention_mask"].tolist() == [[True, False, False]]
