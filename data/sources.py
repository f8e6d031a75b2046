"""Where text and tokens come from: one table, a row a data set.

Nothing is downloaded, opened or generated until it is asked for.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from data import detokenizers
from data.generated import Role, align_rows, pydoc_text, synthetic_rows, text_pieces
from data.hub import offline_if_unreachable
from data.local_files import find_files, missing_column, read_files
from data.text8 import text8_text
from utils import user_error

_HUB_BATCH = 1000
ROLE_KEYS: Mapping[Role, str] = {"train": "data.train", "validation": "data.valid"}


@dataclass(frozen=True)
class HubSource:
    """A data set of documents on the hub that needs no loading script.

    ``splits`` are split expressions of ``datasets.load_dataset``; ``detokenizer`` names a table of
    ``data/detokenizers.py``.
    """

    path: str
    config: str | None = None
    data_dir: str | None = None
    revision: str | None = None
    splits: Mapping[Role, str] = field(default_factory=lambda: {"train": "train", "validation": "validation"})
    column: str = "text"
    detokenizer: str | None = None


@dataclass(frozen=True)
class RunningText:
    """One long text without documents: ``text(role, cache folder)``; ``version`` names its content."""

    text: Callable[[Role, Path], str]
    version: Callable[[], str]


@dataclass(frozen=True)
class GeneratedRows:
    """Rows of token ids made on the spot: ``rows(role, length, vocab_size)`` -> (N, length).

    ``bordered``: the last two symbols of the vocabulary are bos and eos.
    """

    rows: Callable[[Role, int, int], np.ndarray]
    bordered: bool


SOURCES: dict[str, HubSource | RunningText | GeneratedRows] = {
    "pydoc": RunningText(lambda role, folder: pydoc_text(role), version=platform.python_version),
    "text8": RunningText(text8_text, version=lambda: "1"),
    "synthetic": GeneratedRows(synthetic_rows, bordered=True),
    "synthetic-align": GeneratedRows(align_rows, bordered=False),
    "wikitext2": HubSource("Salesforce/wikitext", "wikitext-2-raw-v1", detokenizer="wikitext"),
    "wikitext103": HubSource("Salesforce/wikitext", "wikitext-103-raw-v1", detokenizer="wikitext"),
    "openwebtext": HubSource("Skylion007/openwebtext", splits={"train": "train"}),
    "openwebtext-train": HubSource("Skylion007/openwebtext", splits={"train": "train[:-100000]"}),
    "openwebtext-valid": HubSource("Skylion007/openwebtext", splits={"validation": "train[-100000:]"}),
    "lm1b": HubSource(
        "billion-word-benchmark/lm1b",
        data_dir="plain_text",
        revision="refs/convert/parquet",
        splits={"train": "train", "validation": "test"},
        detokenizer="lm1b",
    ),
    "ag_news": HubSource("fancyzhx/ag_news", splits={"train": "train", "validation": "test"}),
}


@dataclass(frozen=True)
class Corpus:
    """Text that is ready to be read.

    Attributes:
        texts: a fresh iterator over batches of documents (or of pieces of one running text).
        identity: all that names the content, for the key of the cache; plain JSON values.
        running: the pieces belong together, so nothing comes between them.
    """

    texts: Callable[[], Iterator[list[str]]]
    identity: dict[str, Any]
    running: bool = False


def open_corpus(name: str, role: Role, *, rules: str, cache_dir: Path, revision: str | None) -> Corpus:
    """The text behind ``data.train`` or ``data.valid``.

    Args:
        name: a row of ``SOURCES`` with text, a local file or folder, or a hub name ``owner/set``.
        rules: the configuration's ``data.name``; a local path or a hub name takes column, splits and
            detokenizer from the row of that name (``lm1b-wrap``: from ``lm1b``), if there is one.
        cache_dir: downloads go there, and ``cache_dir/local/<name>`` is used in the place of a download.
        revision: of the hub's data set; None is the row's own.

    Raises:
        ValueError: nothing of this name, nothing for this role, nothing readable, or no network.
    """
    row = SOURCES.get(name)
    if isinstance(row, RunningText):
        identity = {"source": name, "role": role, "version": row.version()}
        return Corpus(lambda: text_pieces(row.text(role, cache_dir)), identity, running=True)
    if isinstance(row, HubSource):
        local = cache_dir / "local" / name
        if local.exists():
            return _local_corpus(local, role, row)
        return _hub_corpus(name, role, row, cache_dir, revision)
    path = Path(name).expanduser()
    if path.exists():
        return _local_corpus(path, role, _rules_of(rules))
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        row = replace(_rules_of(rules), path=name, config=None, data_dir=None, revision=None)
        return _hub_corpus(name, role, row, cache_dir, revision)
    raise user_error(
        ROLE_KEYS[role],
        name,
        "neither a known data set nor a local path",
        f"use a path, a hub name owner/set, or one of {', '.join(sorted(SOURCES))}",
    )


def _rules_of(name: str) -> HubSource:
    fitting = [
        key
        for key, row in SOURCES.items()
        if isinstance(row, HubSource) and (name == key or name.startswith(f"{key}-"))
    ]
    return SOURCES[max(fitting, key=len)] if fitting else HubSource("")


def _detokenized(texts: Iterator[list[str]], name: str | None) -> Iterator[list[str]]:
    if name is None:
        return texts
    detokenize = detokenizers.DETOKENIZERS[name]
    return ([detokenize(text) for text in batch] for batch in texts)


def _rule_identity(row: HubSource) -> dict[str, Any]:
    return {"column": row.column, "detokenizer": row.detokenizer and [row.detokenizer, detokenizers.VERSION]}


def _local_corpus(path: Path, role: Role, row: HubSource) -> Corpus:
    key = ROLE_KEYS[role]
    files = find_files(path, role, key)
    stats = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    identity = {"files": stats, **_rule_identity(row)}
    return Corpus(lambda: _detokenized(read_files(files, row.column, key), row.detokenizer), identity)


def _hub_corpus(name: str, role: Role, row: HubSource, cache_dir: Path, revision: str | None) -> Corpus:
    if role not in row.splits:
        fitting = [
            key for key, other in SOURCES.items() if not isinstance(other, HubSource) or role in other.splits
        ]
        raise user_error(
            ROLE_KEYS[role], name, f"it has no split for {role}", f"use one of {', '.join(sorted(fitting))}"
        )
    row = replace(row, revision=revision or row.revision)
    identity = {
        "hub": [row.path, row.config, row.data_dir, row.revision, row.splits[role]],
        **_rule_identity(row),
    }

    def texts() -> Iterator[list[str]]:
        documents = _load_from_hub(name, role, row, cache_dir)
        if row.column not in documents.column_names:
            raise missing_column(ROLE_KEYS[role], name, row.column, documents.column_names)
        batches = (batch[row.column] for batch in documents.select_columns(row.column).iter(_HUB_BATCH))
        return _detokenized(batches, row.detokenizer)

    return Corpus(texts, identity)


def _load_from_hub(name: str, role: Role, row: HubSource, cache_dir: Path) -> Any:
    """``datasets.load_dataset`` with everything that goes wrong there in one line."""
    import datasets

    offline = False
    try:
        with offline_if_unreachable() as offline:
            return datasets.load_dataset(
                row.path,
                row.config,
                data_dir=row.data_dir,
                revision=row.revision,
                split=row.splits[role],
                cache_dir=str(cache_dir / "hub"),
            )
    except Exception as error:  # half a dozen libraries below, each with its own types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        problem = f"{row.path} cannot be read from the hub ({'no network' if offline else reason})"
        place = cache_dir / "local" / name if name in SOURCES else "any folder"
        mend = f"put its {role} text as {role}.parquet, .jsonl, .txt or .arrow into {place}" + (
            "" if name in SOURCES else f" and give that folder as {ROLE_KEYS[role]}"
        )
        raise user_error(ROLE_KEYS[role], name, problem, mend) from error
