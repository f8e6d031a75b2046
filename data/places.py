"""Where the documents of a name are: the table's place, the user's own, or a local copy; and their shards."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data import detokenizers
from data.formats import ENDINGS, check_start
from data.generated import Role
from data.hub import parquet_files
from data.local_files import Found, find_files
from data.shards import Shard, Split, cut, read_shards, take
from data.table import ROLE_KEYS, SOURCE_KEYS, SOURCES, GeneratedRows, HubSource, RunningText, same_data
from errors import UserError

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_ALL_SHARED = "is the training text as well"


@dataclass(frozen=True)
class SourceOverride:
    """What the user says instead of the table (``data.source``, ``data.valid_source``); None: as it is there.

    Attributes:
        path: hub name, or local file or folder.
        own: a local ``path`` holds this role alone, so no slice is cut from it.
    """

    path: str | None = None
    config: str | None = None
    data_dir: str | None = None
    revision: str | None = None
    split: str | None = None
    column: str | None = None
    own: bool = False

    @classmethod
    def of(cls, settings: Mapping[str, Any], role: Role) -> SourceOverride:
        """What ``source`` and ``valid_source`` of the settings ``data`` say of a role (nothing without them).

        Validation takes over, but for the split, what is said of training where both are of one data set.
        """
        train, valid = (
            {key: value for key, value in (settings.get(section) or {}).items() if value is not None}
            for section in ("source", "valid_source")
        )
        apart = "path" in valid and valid["path"] != train.get("path")
        if role == "train":
            return cls(**train, own=apart and "path" in train)
        taken = ("column",) if "path" in valid else ("path", "config", "data_dir", "revision", "column")
        shared = train if same_data(settings["train"], settings["valid"]) else {}
        return cls(**{key: shared[key] for key in taken if key in shared} | valid, own=apart)

    def typed(self) -> dict[str, str]:
        """What is not None."""
        names = ("path", "config", "data_dir", "revision", "split", "column")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def applied(self, row: HubSource, role: Role) -> HubSource:
        """``row`` with what was typed; nothing else stands in for it then."""
        typed = self.typed()
        typed.pop("path", None)
        if split := typed.pop("split", None):
            typed["splits"] = {**row.splits, role: split}
        return replace(row, **typed, instead=()) if typed else row


@dataclass(frozen=True)
class DatasetRequest:
    """Which text is asked for.

    Attributes:
        name: a row of ``SOURCES``, a local file or folder, or a hub name ``owner/set``.
        rules: the configuration's ``data.name``; a local path or a hub name takes column, splits and
            detokenizer from the row of that name (``lm1b-wrap``: from ``lm1b``), if there is one.
        cache_dir: downloads go there, and ``cache_dir/local/<name>`` is used in the place of a download.
        root: another folder of local copies, looked into first.
        streamed: read of a hub's files only what is needed.
    """

    name: str
    role: Role
    rules: str
    cache_dir: Path
    root: Path | None = None
    choice: SourceOverride = field(default_factory=SourceOverride)
    streamed: bool = False

    @property
    def key(self) -> str:
        return ROLE_KEYS[self.role]


@dataclass(frozen=True)
class ResolvedSource:
    """A row as it is to be read: from ``local`` (``own``: that holds the role alone) or, None, the hub."""

    row: HubSource
    local: Path | None = None
    own: bool = False


def locate(wanted: DatasetRequest) -> ResolvedSource:
    """Where the documents behind ``wanted.name`` are."""
    choice, row = wanted.choice, SOURCES.get(wanted.name)
    if isinstance(row, HubSource):
        chosen = choice.applied(row, wanted.role)
        if choice.path is None:
            local, own = local_copy(wanted, row)
            return ResolvedSource(chosen, local, own)
        local = Path(choice.path).expanduser()
        if local.exists():
            return ResolvedSource(chosen, local, choice.own)
        if not _HUB_NAME.fullmatch(choice.path):
            problem = "neither a local file or folder nor a hub name owner/set"
            raise UserError(f"{SOURCE_KEYS[wanted.role]}.path", choice.path, problem, "correct it")
        another = replace(row, path=choice.path, config=None, data_dir=None, revision=None, instead=())
        return ResolvedSource(choice.applied(another, wanted.role))
    if choice.path is not None:
        problem = f"{wanted.key}={wanted.name} is no row of the table, whose place another could take"
        raise UserError(f"{SOURCE_KEYS[wanted.role]}.path", choice.path, problem, f"give it as {wanted.key}")
    rules = choice.applied(replace(_rules_of(wanted.rules), instead=()), wanted.role)
    local = Path(wanted.name).expanduser()
    if local.exists():
        return ResolvedSource(rules, local)
    if _HUB_NAME.fullmatch(wanted.name):
        bare = replace(rules, path=wanted.name, config=None, data_dir=None, revision=None)
        return ResolvedSource(choice.applied(bare, wanted.role))
    problem = "neither a known data set nor a local path"
    hint = f"use a path, a hub name owner/set, or one of {', '.join(sorted(SOURCES))}"
    raise UserError(wanted.key, wanted.name, problem, hint)


def local_shards(
    wanted: DatasetRequest, place: ResolvedSource, pieces: int = 0
) -> tuple[list[Shard], HubSource, dict[str, Any]]:
    """The shards of a local place (at least ``pieces``, where that can be), how to read them, and what names
    their content."""
    key, row, text = wanted.key, place.row, place.row.splits.get(wanted.role)
    found, split = _local_files(wanted, place)
    found.report(place.local, key)
    stats = [(file, file.stat()) for file in found.files]
    marked = [number for number, (file, stat) in enumerate(stats) if check_start(file, stat.st_size, key)]
    identity = {"files": [[str(file.resolve()), stat.st_size, stat.st_mtime_ns] for file, stat in stats]}
    if marked:  # a byte order mark was text once, so these rows are others
        identity["without_mark"] = marked
    shards = cut([str(file) for file in found.files], pieces, key)
    row = replace(row, column=_local_column(wanted, row, shards))
    if split is not None:
        shards, identity = _slice(wanted, shards, text, split), {**identity, "split": text}
    return shards, row, {**identity, **rule_identity(row)}


def _local_files(wanted: DatasetRequest, place: ResolvedSource) -> tuple[Found, Split | None]:
    """The files of a local place, and the slice to be taken of their documents, if any."""
    path, row = place.local, place.row
    for part in (row.data_dir, row.config):  # as a clone of the hub's repository has them
        path = path / part if part and (path / part).is_dir() else path
    text = row.splits.get(wanted.role)
    split = None if text is None else Split.parse(text)
    if text is not None and split is None:
        hint = "count documents, as in train[:-1000]"
        raise UserError(f"{SOURCE_KEYS[wanted.role]}.split", text, "cannot be cut from local files", hint)
    found = find_files(path, wanted.role, wanted.key, split and split.name)
    is_whole = split is None or split.whole or found.own or place.own
    return found, None if is_whole else split


def shared_text(train: DatasetRequest, valid: DatasetRequest) -> str | None:
    """How the text for validation is training text as well, in words; None: it is not, as far as names say.

    Files are compared as the system knows them, however they are spelled or linked; of the hub's data sets
    the names of the splits are compared.
    """
    if any(isinstance(SOURCES.get(wanted.name), RunningText | GeneratedRows) for wanted in (train, valid)):
        return None  # each role has its own part of these
    places = locate(train), locate(valid)
    if any(place.local is None for place in places):
        return _ALL_SHARED if _same_on_hub(*places) else None
    (train_found, train_split), (valid_found, valid_split) = map(_local_files, (train, valid), places)
    if train_split and valid_split and not train_split.overlaps(valid_split):
        return None
    known = {_file_id(file) for file in train_found.files}
    shared = [file for file in valid_found.files if _file_id(file) in known]
    if len(shared) < len(valid_found.files):
        return f"has {len(shared)} files of the training text ({shared[0]}, ...)" if shared else None
    return _ALL_SHARED


def _same_on_hub(train: ResolvedSource, valid: ResolvedSource) -> bool:
    rows = train.row, valid.row
    if train.local != valid.local or len({(row.path, row.config, row.data_dir) for row in rows}) > 1:
        return False
    texts = rows[0].splits.get("train"), rows[1].splits.get("validation")
    ours, theirs = (None if text is None else Split.parse(text) for text in texts)
    if ours is None or theirs is None:  # nothing for the role, or more than a slice
        return texts[0] is not None and texts[0] == texts[1]
    return ours.name == theirs.name and ours.overlaps(theirs)


def _file_id(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_dev, found.st_ino


def _local_column(wanted: DatasetRequest, row: HubSource, shards: list[Shard]) -> str:
    """The table's column, or "text" where local files have that one instead."""
    if wanted.choice.column is not None or row.column == "text":
        return row.column
    for column in (row.column, "text"):
        with contextlib.suppress(UserError):
            next(read_shards(shards, column, wanted.key), None)
            return column
    return row.column


def remote_shards(
    wanted: DatasetRequest, row: HubSource, pieces: int = 0
) -> tuple[list[Shard], dict[str, Any]]:
    """The same of a hub's parquet files, which are read where they are."""
    text = row.splits[wanted.role]
    split = Split.parse(text)
    if split is None:
        hint = "count documents, as in train[:-1000]"
        raise UserError(f"{SOURCE_KEYS[wanted.role]}.split", text, "cannot be cut from a stream", hint)
    place = (row.path, row.config, row.data_dir, row.revision)
    files = parquet_files(*place, split.name, str(wanted.cache_dir / "hub"))
    shards = _slice(wanted, cut(files, pieces, wanted.key), text, split)
    return shards, {"urls": files, "split": text, **rule_identity(row)}


def local_copy(wanted: DatasetRequest, row: HubSource | RunningText) -> tuple[Path | None, bool]:
    """A local copy of a row of the table in the folders for them, and whether it holds the role alone."""
    if wanted.root is not None and not wanted.root.is_dir():
        raise UserError("data.source_root", str(wanted.root), "no such folder", "correct it, or leave it out")
    roots = [root for root in (wanted.root, wanted.cache_dir / "local") if root is not None]
    whole = row.family if isinstance(row, HubSource) else wanted.name.removesuffix("-crop")
    names = [wanted.name, whole, row.path if isinstance(row, HubSource) else None]
    suffixes = ("", *ENDINGS) if isinstance(row, HubSource) else ("", ".txt", ".zip")
    for root in roots:
        for name in filter(None, names):
            for suffix in suffixes:
                if (root / f"{name}{suffix}").exists():
                    return root / f"{name}{suffix}", whole is not None and name == wanted.name != whole
    return None, False


def rule_identity(row: HubSource) -> dict[str, Any]:
    return {"column": row.column, "detokenizer": row.detokenizer and [row.detokenizer, detokenizers.VERSION]}


def _slice(wanted: DatasetRequest, shards: list[Shard], text: str, split: Split) -> list[Shard]:
    taken = take(shards, split)
    if not taken:
        problem = f"{text} leaves nothing for {wanted.role} of {sum(map(len, shards)):,} documents"
        hint = f"name its files train and valid, or another split: {SOURCE_KEYS[wanted.role]}.split=..."
        raise UserError(wanted.key, wanted.name, problem, hint)
    return taken


def _rules_of(name: str) -> HubSource:
    fitting = [
        key
        for key, row in SOURCES.items()
        if isinstance(row, HubSource) and (name == key or name.startswith(f"{key}-"))
    ]
    return SOURCES[max(fitting, key=len)] if fitting else HubSource("")
