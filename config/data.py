"""Sections ``data`` and ``loader``: where text is, and how it becomes blocks of tokens and batches."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import DictConfig

from errors import UserError
from settings import MISSING, key

_PAIRS = "reflow"


@dataclass
class Source:
    """Where a text is, in the place of what the table of data sets says; null: as it is there."""

    path: str | None = key(
        None, "hub name owner/set, or a local file or folder", path=True, example="Skylion007/openwebtext"
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
    train: str = key(
        MISSING, "known data set, hub name, or a local file or folder", path=True, example="openwebtext"
    )
    valid: str = key(
        MISSING, "the same for validation; reflow: the texts of the pairs", path=True, example="wikitext103"
    )
    tokenizer_name_or_path: str = key(
        MISSING, "hub name, folder, or text8, synthetic, synthetic-align", path=True, example="gpt2"
    )
    wrap: bool = key(True, "concatenate documents and cut blocks; False: one document a row, padded")
    insert_train_eos: bool = key(True, "eos after every training document")
    insert_valid_eos: bool = key(True, "eos after every validation document")
    train_revision: str | None = key(None, "revision of the hub data set", example="main")
    valid_revision: str | None = key(None, "the same for validation", example="main")
    source: Source = field(default_factory=Source)
    valid_source: Source = field(default_factory=Source)
    source_root: str | None = key(
        None,
        "folder of local copies, each named like its data set; null: <cache_dir>/local",
        path=True,
        example="texts",
    )
    streaming: bool = key(False, "tokenise the training text while training, not before; needs wrap")
    shuffle_buffer: int = key(10_000, "streaming: documents that are shuffled together; 1: none", low=1)
    cache_dir: str = key("./cache/${.name}", "downloads and tokenised blocks", path=True)
    vocab_size: int | None = key(None, "symbols of synthetic-align", low=2, high=1_000_000, example=50_000)
    eos: str = key(
        "official",
        "eos of tokenizers without one: [CLS] as trained weights expect, or [SEP]",
        choices=("official", "sep"),
    )


@dataclass
class Loader:
    """Batches and their workers."""

    global_batch_size: int = key(512, "sequences per optimizer step, over all devices", low=1)
    eval_global_batch_size: int = key("${.global_batch_size}", "the same for evaluation", low=1, example=512)
    batch_size: int | None = key(
        None, "per device and pass; null: all of it at once", low=1, auto=True, example=64
    )
    eval_batch_size: int | None = key(None, "the same for evaluation", low=1, auto=True, example=64)
    num_workers: int | None = key(
        None, "worker processes; null or -1: by the machine", low=-1, high=1024, auto=True, example=4
    )
    pin_memory: bool | None = key(None, "page-locked host memory; null: with a GPU", auto=True)
    drop_last: bool = key(True, "drop the last incomplete batch of a training epoch")


def derive(cfg: DictConfig) -> None:
    """Words for the machine's own number of workers, and the official name of pairs."""
    if cfg.loader.num_workers == -1:
        cfg.loader.num_workers = None
    for role in ("train", "valid"):
        if cfg.data[role] == "reflow-dataset":  # its name in the official configurations
            cfg.data[role] = _PAIRS


def check(cfg: DictConfig) -> list[str]:
    """Raise for settings that cannot both hold; returns warnings."""
    _validate_source(cfg)
    if cfg.data.streaming:
        _validate_streaming(cfg)
    return _warnings(cfg)


def _validate_source(cfg: DictConfig) -> None:
    data = cfg.data
    for role, section, other in (("train", "source", "valid_source"), ("valid", "valid_source", "source")):
        typed = {name: value for name, value in data[section].items() if value is not None}
        if data[role] == _PAIRS and typed:
            name, value = next(iter(typed.items()))
            what = "training" if role == "train" else "validation"
            hint = f"use data.{other} for the other text, or leave it out"
            raise UserError(f"data.{section}.{name}", value, f"{what} is on pairs, not on text", hint)
    if data.train_revision and data.source.revision and data.train_revision != data.source.revision:
        problem = f"data.source.revision={data.source.revision} says otherwise"
        raise UserError("data.train_revision", data.train_revision, problem, "give one of them")


def _validate_streaming(cfg: DictConfig) -> None:
    data, limit = cfg.data, cfg.trainer.limit_train_batches
    if data.train == _PAIRS:
        raise UserError("data.streaming", True, "training is on pairs, not on text", "use False")
    if not data.wrap:
        raise UserError("data.wrap", False, "data.streaming=True packs documents", "use data.wrap=True")
    if isinstance(limit, float) and limit not in (0.0, 1.0):
        problem = "data.streaming=True has no length of which this could be a part"
        raise UserError("trainer.limit_train_batches", limit, problem, "give a number of batches")
    if cfg.mode == "generate_reflow_dataset" and cfg.reflow.perturbed_rect:
        problem = "mode=generate_reflow_dataset takes rows of the training text by their number"
        hint = "use data.streaming=False, or reflow.perturbed_rect=False for pairs from pure noise"
        raise UserError("data.streaming", True, problem, hint)


def _warnings(cfg: DictConfig) -> list[str]:
    """A line about settings that have no effect, or are not what one expects."""
    data = cfg.data
    if data.streaming and cfg.mode in ("ppl_eval", "cond_sample_eval_with_tc"):
        return [f"data.streaming=True has no effect in mode={cfg.mode}: validation texts are prepared whole"]
    if data.shuffle_buffer != Data.shuffle_buffer and not data.streaming:
        return ["data.shuffle_buffer has no effect without data.streaming=True: all rows are shuffled"]
    if cfg.mode == "zero_shot" and data.insert_valid_eos:
        return ["published zero-shot perplexities are those of data.insert_valid_eos=False"]
    return []
