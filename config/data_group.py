"""The group ``data``: a data set, where its text is, and how it becomes blocks of tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from settings import key


@dataclass
class Source:
    """Where a text is, in the place of what the table of data sets says; null: as it is there."""

    path: str | None = key(
        None, "hub name owner/set, or a local file or folder", example="Skylion007/openwebtext"
    )
    config: str | None = key(None, "configuration of the hub data set", example="sample-10BT")
    data_dir: str | None = key(None, "folder inside the hub data set", example="plain_text")
    revision: str | None = key(None, "its branch, tag or commit", example="refs/convert/parquet")
    split: str | None = key(None, "its split, or a part of one", example="'train[:-1000]'")
    column: str | None = key(None, "the column of the text", example="text")


@dataclass
class Data:
    """A data set and how its text becomes blocks of tokens."""

    name: str = key(MISSING, "the data set; names the run folder")
    train: str = key(MISSING, "known data set, hub name, or a local file or folder", example="openwebtext")
    valid: str = key(
        MISSING, "the same for validation; reflow: the texts of the pairs", example="wikitext103"
    )
    tokenizer_name_or_path: str = key(
        MISSING, "hub name, folder, or text8, synthetic, synthetic-align", example="gpt2"
    )
    wrap: bool = key(True, "concatenate documents and cut blocks; False: one document a row, padded")
    insert_train_eos: bool = key(True, "eos after every training document")
    insert_valid_eos: bool = key(True, "eos after every validation document")
    train_revision: str | None = key(None, "revision of the hub data set", example="main")
    valid_revision: str | None = key(None, "the same for validation", example="main")
    source: Source = field(default_factory=Source)
    valid_source: Source = field(default_factory=Source)
    source_root: str | None = key(
        None, "folder of local copies, each named like its data set; null: <cache_dir>/local", example="texts"
    )
    streaming: bool = key(False, "tokenise the training text while training, not before; needs wrap")
    shuffle_buffer: int = key(10_000, "streaming: documents that are shuffled together; 1: none", low=1)
    cache_dir: str = key("./cache/${.name}", "downloads and tokenised blocks")
    vocab_size: int | None = key(None, "symbols of synthetic-align", low=2, high=1_000_000, example=50_000)
    eos: str = key(
        "official",
        "eos of tokenizers without one: [CLS] as trained weights expect, or [SEP]",
        choices=("official", "sep"),
    )
