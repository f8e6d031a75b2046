"""Streamed training rows: the same in every step whatever the devices, and from any step on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from test_data import recipe

import data.streaming
from data.lanes import ShardStream
from data.places import DatasetRequest, SourceOverride
from data.prepare import prepare
from data.shards import Shard, Split, cut, read_shard, take
from data.streaming import StreamBatches, StreamRecipe, TokenStream
from data.tokenizers import get_tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"
LENGTH, ROWS = 10, 8


@pytest.fixture(autouse=True)
def small_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.streaming, "_LANE_BYTES", 64)
    monkeypatch.setattr("data.formats._LINE_SPAN", 200)
    monkeypatch.setattr("data.lanes._CHARACTERS", 40)


def word(number: int) -> str:
    """A document of 5 letters, another one for every number."""
    return "".join(LETTERS[number // 26**place % 26] for place in range(5))


def write(folder: Path, kind: str, count: int = 300) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    texts = [word(number) for number in range(count)]
    for part in range(2):
        half = texts[part * count // 2 : (part + 1) * count // 2]
        path, table = folder / f"train-{part}.{kind}", pa.table({"text": half})
        if kind == "parquet":
            parquet.write_table(table, path, row_group_size=20)
        elif kind == "arrow":
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table, max_chunksize=20)
        elif kind == "jsonl":
            path.write_text("".join(json.dumps({"text": text}) + "\n" + "\n" * (text < "f") for text in half))
        else:
            path.write_text("".join(f"{text}\n" for text in half))
    return folder


def stream(folder: Path, cache: Path, **changes: Any) -> TokenStream:
    settings = {"length": LENGTH, "insert_eos": True, "eos": "sep", "global_batch_size": ROWS, "seed": 3}
    wanted = changes.pop("wanted", None) or DatasetRequest(str(folder), "train", "none", cache)
    settings |= {"shuffle_buffer": 40, **changes}
    return TokenStream(StreamRecipe(wanted, **settings), get_tokenizer("text8"))


def steps(made: TokenStream, count: int, *, start: int = 0, ranks: int = 1, passes: int = 1) -> list[list]:
    """The rows of each optimizer step, all ranks together."""
    size = ROWS // ranks // passes
    streams = [
        iter(StreamBatches(made, size, rank=rank, world_size=ranks, start_step=start))
        for rank in range(ranks)
    ]
    found = []
    for _ in range(count):
        batches = [batch for one in streams for batch in islice(one, passes)]
        assert all(batch["input_ids"].shape == (size, LENGTH) for batch in batches)
        assert all(batch["attention_mask"].all() for batch in batches)
        pairs = [zip(b["row"].tolist(), b["input_ids"].tolist(), strict=True) for b in batches]
        rows = dict(pair for batch in pairs for pair in batch)
        found.append([rows[row] for row in range(ROWS)])
    return found


def lane_texts(lane: ShardStream, blocks: int) -> list[str]:
    """The documents of a lane's first blocks but the last, which is torn."""
    ids = lane.take(0, blocks).ravel()
    return get_tokenizer("text8").decode(ids).split("[EOS]")[:-1]


# Lanes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["parquet", "arrow", "jsonl", "txt"])
def test_an_epoch_has_every_document_once(kind: str, tmp_path: Path) -> None:
    made = stream(write(tmp_path / "texts", kind), tmp_path)
    assert made.num_lanes == 8 and made.rows_per_lane == 1
    first_epochs = []
    for number in range(made.num_lanes):
        lane = made.open_lane(number, made.encoder())
        count = sum(len(shard) for shard in made._dealt[number])
        texts = [text.strip("[UNK]") for text in lane_texts(lane, 200)][: 2 * count]
        assert sorted(texts[:count]) == sorted(texts[count:]) and texts[:count] != texts[count:]
        first_epochs += texts[:count]
    assert sorted(first_epochs) == sorted(word(number) for number in range(300))
    assert first_epochs != sorted(first_epochs)


def test_blocks_do_not_depend_on_how_they_are_asked_for(tmp_path: Path) -> None:
    made = stream(write(tmp_path / "texts", "parquet"), tmp_path)
    whole = made.open_lane(0, made.encoder()).take(0, 60)
    one_by_one, jumping = made.open_lane(0, made.encoder()), made.open_lane(0, made.encoder())
    np.testing.assert_array_equal(whole, np.concatenate([one_by_one.take(n, n + 1) for n in range(60)]))
    for first, last in [(0, 1), (7, 9), (9, 40), (55, 60), (3, 5), (3, 4)]:
        np.testing.assert_array_equal(jumping.take(first, last), whole[first:last])


def test_a_noted_place_saves_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = stream(write(tmp_path / "texts", "parquet"), tmp_path)
    first = made.open_lane(0, made.encoder())
    whole = [first.take(0, 50)]
    first.note(50)
    whole.append(first.take(50, 80))
    file = made.folder / "lane-000.txt"
    assert len(file.read_text().split()) == 5 and first.seek(50) <= 6
    file.write_text(file.read_text() + "\n[0, 3, 1")  # torn by a kill
    read: list[int] = []

    def counted(shard: Shard, column: str, key: str, skip: int) -> Iterator[list[str]]:
        for batch in read_shard(shard, column, key, skip):
            read.append(len(batch))
            yield batch

    monkeypatch.setattr(data.streaming, "read_shard", counted)
    again = made.open_lane(0, made.encoder())
    assert 0 <= again.seek(55) <= 5 * (LENGTH - 2) + 6
    np.testing.assert_array_equal(again.take(55, 80), whole[1][5:])
    from_note = sum(read)
    read.clear()
    file.unlink()
    np.testing.assert_array_equal(made.open_lane(0, made.encoder()).take(55, 80), whole[1][5:])
    assert from_note < sum(read)
    backwards = again.take(2, 4)
    np.testing.assert_array_equal(backwards, whole[0][2:4])


# Batches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks, passes", [(2, 1), (1, 4), (4, 2), (8, 1)])
@pytest.mark.parametrize("lanes", [8, 2])
def test_devices_and_accumulation_change_nothing(
    ranks: int, passes: int, lanes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.streaming, "_LANES", lanes)
    made = stream(write(tmp_path / "texts", "parquet"), tmp_path)
    assert made.num_lanes == lanes
    single = steps(made, 12)
    assert steps(made, 12, ranks=ranks, passes=passes) == single
    assert steps(made, 5, start=7, ranks=ranks, passes=passes) == single[7:]
    assert len({tuple(row) for step in single[:4] for row in step}) == 4 * ROWS, "rows are disjoint"


def test_a_start_at_any_step_reads_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.streaming, "_NOTE_TOKENS", 3 * ROWS * LENGTH)
    made = stream(write(tmp_path / "texts", "jsonl"), tmp_path)
    assert made.note_every == 3
    whole = steps(made, 100)
    notes = sorted(path.name for path in made.folder.glob("lane-*"))
    assert notes == [f"lane-{number:03d}.txt" for number in range(8)]
    lane = made.open_lane(2, made.encoder())
    assert lane.seek(98) <= 3 * LENGTH + 6, "of 784 tokens"
    for start in (1, 50, 99):
        assert steps(made, 1, start=start, ranks=2) == whole[start : start + 1]


@pytest.mark.parametrize(
    "change", [{"seed": 4}, {"shuffle_buffer": 8}, {"length": 11}, {"insert_eos": False}]
)
def test_everything_that_shapes_the_rows_is_in_the_name(change: dict[str, Any], tmp_path: Path) -> None:
    folder = write(tmp_path / "texts", "txt")
    assert stream(folder, tmp_path, **change).folder != stream(folder, tmp_path).folder


def test_changed_text_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = stream(write(tmp_path / "texts", "txt"), tmp_path)
    next(iter(StreamBatches(made, ROWS, start_step=12, cycle=10)))
    assert "no notes of an earlier run" not in caplog.text
    monkey = pytest.MonkeyPatch()
    monkey.setattr(made, "note_every", 5)
    next(iter(StreamBatches(made, ROWS, start_step=6)))
    monkey.undo()
    assert "no notes of an earlier run" in caplog.text


def test_first_batches_come_again_after_a_cycle(tmp_path: Path) -> None:
    made = stream(write(tmp_path / "texts", "parquet"), tmp_path)
    batches = [b["input_ids"] for b in islice(StreamBatches(made, ROWS, start_step=1, cycle=3), 7)]
    assert torch.equal(batches[2], batches[5]) and torch.equal(batches[0], batches[3])
    assert batches[2].tolist() == steps(made, 1)[0]


# Shards -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["parquet", "arrow", "jsonl", "txt"])
def test_slices_count_documents(kind: str, tmp_path: Path) -> None:
    files = sorted(map(str, write(tmp_path / "texts", kind).iterdir()))
    expected = [word(number) for number in range(300)]
    for wanted in (0, 64):
        shards = cut(files, wanted)
        assert (len(shards) == 2) == (wanted == 0) and sum(map(len, shards)) == 300
        for text in ("train", "train[:-110]", "train[-110:]", "train[25:170]", "train[:3]", "train[400:]"):
            split = Split.parse(text)
            batches = [batch for shard in take(shards, split) for batch in read_shard(shard, "text", "k")]
            found = [text.strip() for batch in batches for text in batch]
            assert found == expected[split.start : split.stop]
    assert Split.parse("train[:10%]") is None and Split.parse("train+test") is None
    shard = take(cut(files), Split("train", 170, 230))[0]
    rest = [text.strip() for batch in read_shard(shard, "text", "k", skip=33) for text in batch]
    assert rest == expected[203:230]


def test_a_remote_file_that_breaks_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sorted(write(tmp_path / "texts", "parquet").iterdir())[0]
    shard, failures = Shard(f"file://{path}"), [3, 2]
    original = type(shard.format).read

    def breaking(*arguments: Any) -> Iterator[list]:
        for number, batch in enumerate(original(*arguments)):
            if failures and number == failures[0]:
                raise ConnectionError(f"lost after {failures.pop(0)}")
            yield batch

    monkeypatch.setattr("data.formats.BATCH", 20)
    monkeypatch.setattr(type(shard.format), "read", breaking)
    monkeypatch.setattr("data.shards.time.sleep", lambda seconds: None)
    found = [text for batch in read_shard(shard, "text", "k") for text in batch]
    assert found == [word(number) for number in range(150)] and not failures
    monkeypatch.setattr("data.shards._WAITS", ())
    failures.append(0)
    with pytest.raises(ValueError, match="cannot be read any more .lost after 0.; when the network is back"):
        list(read_shard(shard, "text", "k"))
    failures.append(0)
    with pytest.raises(ConnectionError):
        list(read_shard(Shard(str(path)), "text", "k"))


# What is wrong ----------------------------------------------------------------------------------------------


def test_what_cannot_be_streamed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.hub.hub_reachable", lambda: False)
    (tmp_path / "short.txt").write_text("a b\n")
    (tmp_path / "empty.txt").write_text("")
    parquet.write_table(pa.table({"content": ["a"]}), tmp_path / "columns.parquet")
    parquet.write_table(pa.table({"text": [1, 2]}), tmp_path / "numbers.parquet")
    for name, words in [
        (str(tmp_path / "short.txt"), "data.train=.*tokens for train do not fill one block"),
        (str(tmp_path / "empty.txt"), "data.train=.*holds no text"),
        (str(tmp_path / "columns.parquet"), "no column 'text' .there is: content.*data.source.column"),
        (str(tmp_path / "numbers.parquet"), "holds values like '1', no text"),
        ("pydoc", "data.streaming=True: data.train=pydoc has no documents"),
        ("openwebtext-valid", "no split for train"),
        ("fineweb-edu", f"fineweb-edu .no network.*{tmp_path}/local/fineweb-edu.*data.source.path"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=words) as caught:
            stream(tmp_path, tmp_path, wanted=DatasetRequest(name, "train", "none", tmp_path)).check()
        assert "\n" not in str(caught.value)


def test_a_hub_data_set_is_streamed_from_its_parquet_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's own listing of a repository, which here is a folder."""
    import datasets

    made, asked = datasets.load_dataset_builder, []
    write(tmp_path / "repository" / "data", "parquet", count=100)

    def builder(path: str, **options: Any) -> Any:
        asked.append((path, options["name"], options["data_dir"], options["revision"]))
        return made(str(tmp_path / "repository"), cache_dir=str(tmp_path / "hub"))

    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    monkeypatch.setattr("data.hub.hub_reachable", lambda: True)
    choice = SourceOverride(revision="abc", split="train[:-90]")
    wanted = DatasetRequest("fineweb-edu", "train", "fineweb-edu", tmp_path, choice=choice)
    found = stream(tmp_path, tmp_path, wanted=wanted)
    assert asked == [("HuggingFaceFW/fineweb-edu", None, None, "abc")]
    texts = [shard for lane in found._dealt for shard in lane]
    assert sorted(t for s in texts for b in read_shard(s, "text", "k") for t in b) == [
        word(n) for n in range(10)
    ]
    found.check()
    # Validation beside a stream reads of the hub what it needs, and is prepared as ever.
    wanted = recipe("openwebtext-valid", tmp_path, role="validation", wrap=False, streamed=True)
    prepared = prepare(replace(wanted, choice=SourceOverride(split="train[-7:]")), get_tokenizer("text8"))
    texts = get_tokenizer("text8").batch_decode(prepared.fetch(range(7))["input_ids"][:, 1:6])
    assert len(prepared) == 7 and texts == [word(number) for number in range(93, 100)]
