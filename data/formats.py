"""Files of documents: txt (one a line), jsonl, parquet and arrow, whole or a span of them.

A span ``start, stop`` is what can be read without the rest of the file: bytes of lines, row groups of
parquet, record batches of arrow; ``stop`` None: to the end. Files of lines may be compressed; such a file,
and an array of JSON, is one span.

Raises, here and below, UserError that names ``key`` (data.train or data.valid), the file and, where lines are
read, the line: a damaged or empty file, a pointer of git-lfs, what is no text.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, NoReturn, Protocol

from errors import UserError
from utils import get_logger

BATCH = 1000  # documents that are handed on together
COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}  # behind the ending of a file of lines
DAMAGED_HINT = "fetch it again, or delete it"
_LINE_SPAN = 2**22  # bytes
_POINTER = b"version https://git-lfs.github.com/spec/"
log = get_logger("data")
_POINTER_BYTES = 1024  # a pointer of git-lfs is smaller


class Format(Protocol):
    """How files of a kind are read."""

    def spans(self, file: str, key: str) -> list[tuple[int, int | None, int | None]]:
        """The smallest spans of a file, with the number of documents where that is cheap to know."""

    def count(self, file: str, start: int, stop: int | None, key: str) -> int:
        """Number of documents in a span, without reading their text where that can be."""

    def read(self, file: str, start: int, stop: int | None, column: str, key: str) -> Iterator[list[Any]]:
        """Batches of as many documents as ``count`` says, as they stand in the file."""

    def skip(self, file: str, start: int, stop: int | None, documents: int, key: str) -> tuple[int, int]:
        """A later start of a span, and how many of ``documents`` to be left out are still behind it."""

    def texts(self, found: list[Any], file: str, column: str, key: str) -> list[str]:
        """The text of documents that ``read`` gave."""


class _Text:
    """A line is a document; its line break belongs to it."""

    def spans(self, file: str, key: str) -> list[tuple[int, int | None, int | None]]:
        if file.lower().endswith(tuple(COMPRESSED)):
            return [(0, None, None)]
        with _broken_as_one_line(file, key), open(file, "rb") as content:
            size = content.seek(0, 2)
            borders = [0]
            for target in range(_LINE_SPAN, size, _LINE_SPAN):
                if target > borders[-1]:
                    content.seek(target - 1)
                    content.readline()
                    borders.append(content.tell())
        borders = [*(border for border in borders if border < size), size]
        return [(start, stop, None) for start, stop in zip(borders[:-1], borders[1:], strict=True)]

    def count(self, file: str, start: int, stop: int | None, key: str) -> int:
        return sum(len(batch) for batch in self.read(file, start, stop, "", key))

    def read(self, file: str, start: int, stop: int | None, column: str, key: str) -> Iterator[list[Any]]:
        with _broken_as_one_line(file, key), _opened_lines(file) as content:
            if start:
                content.seek(start)
            lines = iter(content) if stop is None else _within(content, stop - start)
            if start == 0 and (first := next(lines, b"").removeprefix(codecs.BOM_UTF8)):
                lines = chain([first], lines)
            while batch := list(islice(lines, BATCH)):
                yield batch

    def skip(self, file: str, start: int, stop: int | None, documents: int, key: str) -> tuple[int, int]:
        return start, documents

    def texts(self, found: list[Any], file: str, column: str, key: str) -> list[str]:
        texts = []
        for line in found:
            try:
                texts.append(line.decode("utf-8").replace("\r\n", "\n"))
            except UnicodeDecodeError as error:
                _refuse_encoding(file, line, key, error)
        return texts


class _Element(NamedTuple):
    """One of an array of JSON."""

    number: int
    value: Any


class _Json(_Text):
    """A line is an object, and blank lines are nothing; or all of the file is one array of objects."""

    def spans(self, file: str, key: str) -> list[tuple[int, int | None, int | None]]:
        return [(0, None, None)] if _holds_array(file, key) else super().spans(file, key)

    def read(self, file: str, start: int, stop: int | None, column: str, key: str) -> Iterator[list[Any]]:
        if start == 0 and stop is None and _holds_array(file, key):
            elements = _read_array(file, key)
            yield from (elements[first : first + BATCH] for first in range(0, len(elements), BATCH))
            return
        for batch in super().read(file, start, stop, column, key):
            yield [line for line in batch if line.strip()]

    def texts(self, found: list[Any], file: str, column: str, key: str) -> list[str]:
        texts = []
        for item in found:
            try:
                record = item.value if isinstance(item, _Element) else json.loads(item.decode("utf-8"))
                text = record[column]
            except UnicodeDecodeError as error:
                _refuse_encoding(file, item, key, error)
            except (ValueError, RecursionError) as error:
                problem = f"not JSON, one object a line ({_place(file, item)}: {_reason(error)})"
                raise UserError(key, file, problem, "fix the line, or delete it") from error
            except (KeyError, TypeError) as error:
                raise _no_text(file, item, record, column, key) from error
            if not isinstance(text, str | None):
                raise _other_value(key, file, column, text, _place(file, item))
            texts.append(text or "")
        return texts


class _Parquet:
    def spans(self, file: str, key: str) -> list[tuple[int, int | None, int | None]]:
        with _table(file, key) as table:
            counts = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
        return [(group, group + 1, count) for group, count in enumerate(counts)]

    def count(self, file: str, start: int, stop: int | None, key: str) -> int:
        return sum(count for _, _, count in self.spans(file, key)[start:stop])

    def read(self, file: str, start: int, stop: int | None, column: str, key: str) -> Iterator[list[Any]]:
        with _table(file, key) as table:
            if column not in table.schema_arrow.names:
                raise missing_column(key, file, column, table.schema_arrow.names)
            groups = list(range(table.num_row_groups)[start:stop])
            for batch in table.iter_batches(BATCH, row_groups=groups, columns=[column]):
                batch.validate(full=True)  # damaged ones can end the process otherwise
                yield batch.column(0).to_pylist()

    def skip(self, file: str, start: int, stop: int | None, documents: int, key: str) -> tuple[int, int]:
        for _, end, count in self.spans(file, key)[start:stop] if documents else ():
            if count > documents:
                break
            start, documents = end, documents - count
        return start, documents

    def texts(self, found: list[Any], file: str, column: str, key: str) -> list[str]:
        return as_texts(found, file, column, key)


class _Arrow(_Parquet):
    def spans(self, file: str, key: str) -> list[tuple[int, int | None, int | None]]:
        found = enumerate(_record_batches(file, 0, None, key))
        return [(number, number + 1, batch.num_rows) for number, batch in found]

    def read(self, file: str, start: int, stop: int | None, column: str, key: str) -> Iterator[list[Any]]:
        for batch in _record_batches(file, start, stop, key):
            if column not in batch.schema.names:
                raise missing_column(key, file, column, batch.schema.names)
            with _broken_as_one_line(file, key):
                batch.validate(full=True)
                texts = batch.column(column).to_pylist()
            for first in range(0, len(texts), BATCH):
                yield texts[first : first + BATCH]


FORMATS: dict[str, Format] = {
    ".txt": _Text(),
    ".jsonl": _Json(),
    ".json": _Json(),
    ".ndjson": _Json(),
    ".parquet": _Parquet(),
    ".arrow": _Arrow(),
}
_LINES = tuple(ending for ending, how in FORMATS.items() if isinstance(how, _Text))
ENDINGS = (*FORMATS, *(f"{ending}{packed}" for ending in _LINES for packed in COMPRESSED))


def ending_of(name: str) -> str | None:
    """The ending, a key of ``FORMATS``, by which a file is read, whatever its case; None: it is not read."""
    path = PurePosixPath(name.lower())
    packed = path.suffix in COMPRESSED
    ending = PurePosixPath(path.stem).suffix if packed else path.suffix
    return ending if ending in (_LINES if packed else FORMATS) else None


def check_start(file: Path, size: int, key: str) -> bool:
    """Refuse a local file that is no text at first sight; returns whether a byte order mark begins it."""
    holds_lines, is_packed = ending_of(file.name) in _LINES, file.suffix.lower() in COMPRESSED
    if size == 0 and (is_packed or not holds_lines):
        raise UserError(key, str(file), "an empty file (0 bytes)", DAMAGED_HINT)
    if size >= _POINTER_BYTES and (is_packed or not holds_lines):
        return False
    with _broken_as_one_line(str(file), key), file.open("rb") as content:
        head = content.read(len(_POINTER))
    if size < _POINTER_BYTES and head == _POINTER:
        problem = "a pointer of git-lfs, not the file itself"
        raise UserError(key, str(file), problem, "fetch the file (git lfs pull, or download it)")
    return holds_lines and not is_packed and head.startswith(codecs.BOM_UTF8)


def missing_column(key: str, where: str, column: str, there: Iterable[str]) -> UserError:
    """The error for a data set without the text column; ``key`` is data.train or data.valid."""
    return UserError(
        key,
        where,
        f"no column {column!r} (there is: {', '.join(sorted(there))})",
        f"name the column of the text: {_column_key(key)}=...",
    )


def as_texts(found: Sequence[Any], where: str, column: str, key: str) -> list[str]:
    """Values of a column as texts; nothing (null) is an empty one."""
    for value in found:
        if not isinstance(value, str | None):
            raise _other_value(key, where, column, value)
    return [value or "" for value in found]


def _column_key(key: str) -> str:
    return "data.valid_source.column" if key == "data.valid" else "data.source.column"


def _other_value(key: str, where: str, column: str, value: Any, place: str = "") -> UserError:
    problem = f"column {column!r} holds values like {str(value)[:40]!r}, no text"
    return UserError(
        key,
        where,
        f"{problem} ({place})" if place else problem,
        f"name another column: {_column_key(key)}=...",
    )


def _no_text(file: str, item: bytes | _Element, record: Any, column: str, key: str) -> UserError:
    place = _place(file, item)
    if not isinstance(record, dict):
        hint = 'one object a line is wanted, {"text": "..."}, or one array of objects'
        return UserError(key, file, f"{place} is no object", hint)
    if place in ("line 1", "element 1"):
        return missing_column(key, file, column, record)
    problem = f"{place} has no {column!r} (there is: {', '.join(sorted(record))})"
    return UserError(key, file, problem, f"add it or delete the line; another column: {_column_key(key)}=...")


def _refuse_encoding(file: str, line: bytes, key: str, error: UnicodeDecodeError) -> NoReturn:
    problem = f"not text in UTF-8 ({_place(file, line)}: {error.reason})"
    raise UserError(key, file, problem, "convert it") from error


def _place(file: str, item: bytes | _Element) -> str:
    """Where in the file an item stands: as the same line is as wrong anywhere, the first of them is meant."""
    if isinstance(item, _Element):
        return f"element {item.number}"
    with _opened_lines(file) as content:
        for number, line in enumerate(content, 1):
            if item == (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line):
                return f"line {number}"
    return "a line that has changed meanwhile"


@contextlib.contextmanager
def _broken_as_one_line(file: str, key: str) -> Iterator[None]:
    """Inside, what the system and pyarrow say about a local file is raised as a UserError that names it.

    Of a remote file, what may be the network is left to data/shards.py, which tries again.
    """
    try:
        yield
    except _about_files() as error:
        is_remote, is_library = "://" in file, not isinstance(error, OSError)
        if is_remote and not is_library:
            raise
        if isinstance(error, OSError) and error.errno is not None:
            problem, hint = (
                f"cannot be read ({os.strerror(error.errno)})",
                "the same command goes on when it can",
            )
        else:
            problem, hint = f"damaged ({' '.join(str(error).split())[:200]})", DAMAGED_HINT
        raise UserError(key, file, problem, hint) from error


def _about_files() -> tuple[type[Exception], ...]:
    import pyarrow as pa  # evaluated when something is raised, and not before

    return OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowSerializationError


@contextlib.contextmanager
def _opened_lines(file: str) -> Iterator[IO[bytes]]:
    packed = COMPRESSED.get(PurePosixPath(file.lower()).suffix)
    if packed is None:
        with open(file, "rb") as content:
            yield content
        return
    import pyarrow as pa

    with pa.input_stream(file, compression=packed) as content:
        yield io.BufferedReader(content, 2**20)


def _within(lines: Iterable[bytes], room: int) -> Iterator[bytes]:
    for line in lines:
        room -= len(line)
        if room < 0:
            return
        yield line


def _holds_array(file: str, key: str) -> bool:
    with _broken_as_one_line(file, key), _opened_lines(file) as content:
        return content.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["


def _read_array(file: str, key: str) -> list[_Element]:
    with _broken_as_one_line(file, key), _opened_lines(file) as content:
        raw = content.read()
    try:
        return [_Element(*pair) for pair in enumerate(json.loads(raw.decode("utf-8-sig")), 1)]
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        problem = f"not text in UTF-8 (line {line}: {error.reason})"
        raise UserError(key, file, problem, "convert it") from error
    except (ValueError, RecursionError) as error:
        problem, hint = f"no array of JSON ({error})", "correct it, or write one object a line"
        raise UserError(key, file, problem, hint) from error


def _reason(error: ValueError | RecursionError) -> str:
    """What is wrong with JSON, in a few words."""
    if isinstance(error, RecursionError):
        return "nested too deep"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.removesuffix(' at')} at column {error.colno}"
    return str(error)


@contextlib.contextmanager
def _table(file: str, key: str) -> Iterator[Any]:
    """A parquet file, local or by URL, open for reading."""
    from pyarrow import parquet

    with (
        _broken_as_one_line(file, key),
        _opened(file) as content,
        parquet.ParquetFile(content, page_checksum_verification=True) as table,
    ):
        yield table


@contextlib.contextmanager
def _opened(file: str) -> Iterator[str | IO[bytes]]:
    if "://" not in file:
        yield file
        return
    import fsspec

    with fsspec.open(file, "rb") as content:
        yield content


@functools.cache
def _warn_of_no_end(file: str) -> None:
    """An arrow stream may end without its mark, and one cut between two messages does: nothing else tells."""
    with open(file, "rb") as content:
        begin = content.read(4)
        content.seek(-8, os.SEEK_END)
        end = content.read()
    mark = b"\xff\xff\xff\xff"
    if begin == mark and end != mark + bytes(4):  # streams of before arrow 0.15 begin otherwise
        log.warning("%s does not end with the mark of an arrow stream: it may be a part of a file", file)


def _record_batches(file: str, start: int, stop: int | None, key: str) -> Iterator[Any]:
    import pyarrow as pa

    with _broken_as_one_line(file, key), pa.memory_map(file) as source:
        try:
            batches = iter(pa.ipc.open_stream(source))
            _warn_of_no_end(file)
        except pa.ArrowInvalid:  # the other of the two arrow layouts
            reader = pa.ipc.open_file(source)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        yield from islice(batches, start, stop)
