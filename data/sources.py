"""From a name to its text, wherever that is: a hub, a server, local files, or made here.

Nothing is downloaded, opened or generated until it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data import detokenizers
from data.downloads import PublishedFile, fetch, read_published, verify
from data.formats import BATCH, as_texts, missing_column
from data.generated import text_pieces
from data.hub import Unavailable, ask
from data.places import (
    DatasetRequest,
    ResolvedSource,
    local_copy,
    local_shards,
    locate,
    remote_shards,
    rule_identity,
)
from data.shards import read_shards
from data.table import SOURCE_KEYS, SOURCES, HubSource, RunningText
from errors import UserError


@dataclass(frozen=True)
class TextSource:
    """Text that is ready to be read.

    Attributes:
        where: the place, in words.
        texts: a fresh iterator over batches of documents (or of pieces of one running text); raises
            ``Unavailable`` where the place does not give it.
        identity: all that names the content, for the key of the cache; plain JSON values.
        running: the pieces belong together, so nothing comes between them.
    """

    where: str
    texts: Callable[[], Iterator[list[str]]]
    identity: dict[str, Any]
    running: bool = False


def open_corpora(wanted: DatasetRequest) -> list[TextSource]:
    """The places of the text behind ``data.train`` or ``data.valid``: the first that gives it counts.

    Raises:
        ValueError: nothing of this name, nothing for this role, nothing readable in a local place.
    """
    row = SOURCES.get(wanted.name)
    if isinstance(row, RunningText):
        return [_running_corpus(wanted, row)]
    place = locate(wanted)
    if place.local is not None:
        return [_local_corpus(wanted, place)]
    row = place.row
    others = [other for other in row.instead if isinstance(other, HubSource)]
    files = [found for found in [row.published(wanted.role)] if found is not None]
    return [
        *(_hub_corpus(wanted, replace(one, detokenizer=row.detokenizer)) for one in (row, *others)),
        *(_published_corpus(wanted, row, file) for file in files),
    ]


def nowhere(wanted: DatasetRequest, tried: Sequence[tuple[TextSource, Unavailable]]) -> ValueError:
    """The one line about a text that no place gives: what was tried, and where to put it."""
    problem = ", nor ".join(f"{corpus.where} ({reason})" for corpus, reason in tried)
    file = "train" if wanted.role == "train" else "valid"
    hint = f"put its text as {file}.parquet, .jsonl, .txt or .arrow"
    row, is_stream = SOURCES.get(wanted.name), wanted.streamed and wanted.role == "train"
    if isinstance(row, HubSource) and (published := row.published(wanted.role)) and not is_stream:
        hint += f", or {published.name},"
    if isinstance(row, RunningText):
        hint = "put text8.zip or the file text8"
    if row is None:
        hint += f" into any folder and give that as {wanted.key}"
    else:
        folder = (wanted.root or wanted.cache_dir / "local") / wanted.name.removesuffix("-crop")
        hint += f" into {folder}, or name its place: {SOURCE_KEYS[wanted.role]}.path=..."
    return UserError(wanted.key, wanted.name, f"cannot be read from {problem}", hint)


def detokenized(texts: Iterator[list[str]], name: str | None) -> Iterator[list[str]]:
    """Batches of documents under the rules of a detokenizer (None: as they are)."""
    if name is None:
        return texts
    detokenize = detokenizers.DETOKENIZERS[name]
    return ([detokenize(text) for text in batch] for batch in texts)


def refuse_missing_split(wanted: DatasetRequest, row: HubSource) -> None:
    """Raise where the hub's data set has nothing for the role."""
    if wanted.role in row.splits:
        return
    fitting = [
        key
        for key, other in SOURCES.items()
        if wanted.role in getattr(other, "splits", ("train", "validation"))
    ]
    hint = f"use one of {', '.join(sorted(fitting))}, or name a split: {SOURCE_KEYS[wanted.role]}.split=..."
    raise UserError(wanted.key, wanted.name, f"it has no split for {wanted.role}", hint)


def _running_corpus(wanted: DatasetRequest, row: RunningText) -> TextSource:
    typed = wanted.choice.typed()
    for name, value in typed.items():
        if name != "path" or not row.local:
            problem, hint = f"{wanted.key}={wanted.name} has no such thing", "leave it out"
            raise UserError(f"{SOURCE_KEYS[wanted.role]}.{name}", value, problem, hint)
    if not row.local:
        local = None
    elif typed:
        local = Path(typed["path"]).expanduser()
        if not local.exists():
            key = f"{SOURCE_KEYS[wanted.role]}.path"
            raise UserError(key, str(local), "no such file or folder", "correct it")
    else:
        local, _ = local_copy(wanted, row)
    identity = {"source": wanted.name.removesuffix("-crop"), "role": wanted.role, "version": row.version()}
    if local is not None:
        identity["local"] = str(local.resolve())
    texts = lambda: text_pieces(row.text(wanted.role, local, wanted.cache_dir))  # noqa: E731
    return TextSource(row.where if local is None else str(local), texts, identity, running=True)


def _local_corpus(wanted: DatasetRequest, place: ResolvedSource) -> TextSource:
    row, path = place.row, place.local
    published = SOURCES[wanted.name].published(wanted.role) if wanted.name in SOURCES else None
    if published is not None:
        file = path / published.name if path.is_dir() else path
        if file.name == published.name and file.exists():
            return _published_corpus(wanted, row, published, file)
    shards, row, identity = local_shards(wanted, place)
    texts = lambda: detokenized(read_shards(shards, row.column, wanted.key), row.detokenizer)  # noqa: E731
    return TextSource(str(path), texts, identity)


def _published_corpus(
    wanted: DatasetRequest, row: HubSource, published: PublishedFile, local: Path | None = None
) -> TextSource:
    identity = {"url": published.url, "checksum": published.checksum, "members": published.members}

    def texts() -> Iterator[list[str]]:
        if local is None:
            path = fetch(published.url, wanted.cache_dir / "downloads", published.checksum)
        else:
            path = local
            try:
                verify(path, published.checksum)
            except Unavailable as error:
                hint = "delete it, or give it another name if it is meant to differ"
                raise UserError(wanted.key, wanted.name, str(error), hint) from error
        column = "text" if path.suffix == ".jsonl" else row.column
        return detokenized(read_published(path, published, column, wanted.key), row.detokenizer)

    return TextSource(published.url, texts, {**identity, **rule_identity(row)})


def _hub_corpus(wanted: DatasetRequest, row: HubSource) -> TextSource:
    refuse_missing_split(wanted, row)
    hub = [row.path, row.config, row.data_dir, row.revision, row.splits[wanted.role]]
    folder = wanted.cache_dir / "hub"

    def texts() -> Iterator[list[str]]:
        if wanted.streamed:
            shards, _ = remote_shards(wanted, row)
            return detokenized(read_shards(shards, row.column, wanted.key), row.detokenizer)
        import datasets

        options = {"data_dir": row.data_dir, "revision": row.revision, "split": hub[-1]}
        documents = ask(datasets.load_dataset, row.path, name=row.config, cache_dir=str(folder), **options)
        if row.column not in documents.column_names:
            raise missing_column(wanted.key, wanted.name, row.column, documents.column_names)
        batches = (batch[row.column] for batch in documents.select_columns(row.column).iter(BATCH))
        checked = (as_texts(batch, row.path, row.column, wanted.key) for batch in batches)
        return detokenized(checked, row.detokenizer)

    return TextSource(row.path, texts, {"hub": hub, **rule_identity(row)})
