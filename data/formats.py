"""Files of documents: txt (one a line), jsonl, parquet and arrow, whole or a span of them.

A span ``start, stop`` is what can be read without the rest of the file: bytes of lines, row groups of
parquet, record batches of arrow; ``stop`` None: to the end.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import IO, Any, Protocol

from errors import UserError

BATCH = 1000  # documents that are handed on together
_LINE_SPAN = 2**22  # bytes


class Format(Protocol):
    """How files of a kind are read."""

    def spans(self, file: str) -> list[tuple[int, int, int | None]]:
        """The smallest spans of a file, with the number of documents where that is cheap to know."""

    def count(self, file: str, start: int, stop: int | None) -> int:
        """Number of documents in a span, without reading their text where that can be."""

    def read(self, file: str, start: int, stop: int | None, column: str, key: str) -> Iterator[list[Any]]:
        """Batches of as many documents as ``count`` says, as they stand in the file."""

    def skip(self, file: str, start: int, stop: int | None, documents: int) -> tuple[int, int]:
        """A later start of a span, and how many of ``documents`` to be left out are still behind it."""

    def texts(self, found: list[Any], file: str, column: str, key: str) -> list[str]:
        """The text of documents that ``read`` gave."""


class _Text:
    """A line is a document; its line break belongs to it."""

    def spans(self, file: str) -> list[tuple[int, int, int | None]]:
        with open(file, "rb") as content:
            size = content.seek(0, 2)
            borders = [0]
            for target in range(_LINE_SPAN, size, _LINE_SPAN):
                if target > borders[-1]:
                    content.seek(target - 1)
                    content.readline()
                    borders.append(content.tell())
        borders = [*(border for border in borders if border < size), size]
        return [(start, stop, None) for start, stop in zip(borders[:-1], borders[1:], strict=True)]

    def count(self, file: str, start: int, stop: int | None) -> int:
        return sum(len(batch) for batch in self.read(file, start, stop, "", ""))

    def read(self, file: str, start: int, stop: int | None, column: str, key: str) -> Iterator[list[Any]]:
        with open(file, "rb") as content:
            content.seek(start)
            lines = content if stop is None else _within(content, stop - start)
            while batch := list(islice(lines, BATCH)):
                yield batch

    def skip(self, file: str, start: int, stop: int | None, documents: int) -> tuple[int, int]:
        return start, documents

    def texts(self, found: list[Any], file: str, column: str, key: str) -> list[str]:
        try:
            return [line.decode("utf-8").replace("\r\n", "\n") for line in found]
        except UnicodeDecodeError as error:
            raise UserError(key, file, f"not text in UTF-8 ({error.reason})", "convert it") from error


class _Json(_Text):
    """A line is an object; blank lines are nothing."""

    def read(self, file: str, start: int, stop: int | None, column: str, key: str) -> Iterator[list[Any]]:
        for batch in super().read(file, start, stop, column, key):
            yield [line for line in batch if line.strip()]

    def texts(self, found: list[Any], file: str, column: str, key: str) -> list[str]:
        try:
            records = [json.loads(line) for line in super().texts(found, file, column, key)]
        except json.JSONDecodeError as error:
            raise UserError(key, file, f"not JSON, one object a line ({error})", "fix the file") from error
        for record in records:
            if not isinstance(record, dict) or column not in record:
                raise missing_column(key, file, column, record if isinstance(record, dict) else ())
        return as_texts([record[column] for record in records], file, column, key)


class _Parquet:
    def spans(self, file: str) -> list[tuple[int, int, int | None]]:
        with _table(file) as table:
            counts = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
        return [(group, group + 1, count) for group, count in enumerate(counts)]

    def count(self, file: str, start: int, stop: int | None) -> int:
        return sum(count for _, _, count in self.spans(file)[start:stop])

    def read(self, file: str, start: int, stop: int | None, column: str, key: str) -> Iterator[list[Any]]:
        with _table(file) as table:
            if column not in table.schema_arrow.names:
                raise missing_column(key, file, column, table.schema_arrow.names)
            groups = list(range(table.num_row_groups)[start:stop])
            for batch in table.iter_batches(BATCH, row_groups=groups, columns=[column]):
                yield batch.column(0).to_pylist()

    def skip(self, file: str, start: int, stop: int | None, documents: int) -> tuple[int, int]:
        for _, end, count in self.spans(file)[start:stop] if documents else ():
            if count > documents:
                break
            start, documents = end, documents - count
        return start, documents

    def texts(self, found: list[Any], file: str, column: str, key: str) -> list[str]:
        return as_texts(found, file, column, key)


class _Arrow(_Parquet):
    def spans(self, file: str) -> list[tuple[int, int, int | None]]:
        found = enumerate(_record_batches(file, 0, None))
        return [(number, number + 1, batch.num_rows) for number, batch in found]

    def read(self, file: str, start: int, stop: int | None, column: str, key: str) -> Iterator[list[Any]]:
        for batch in _record_batches(file, start, stop):
            if column not in batch.schema.names:
                raise missing_column(key, file, column, batch.schema.names)
            texts = batch.column(column).to_pylist()
            for first in range(0, len(texts), BATCH):
                yield texts[first : first + BATCH]


FORMATS: dict[str, Format] = {
    ".txt": _Text(),
    ".jsonl": _Json(),
    ".json": _Json(),
    ".parquet": _Parquet(),
    ".arrow": _Arrow(),
}


def missing_column(key: str, where: str, column: str, there: Iterable[str]) -> ValueError:
    """The error for a data set without the text column; ``key`` is data.train or data.valid."""
    source = "data.valid_source" if key == "data.valid" else "data.source"
    return UserError(
        key,
        where,
        f"no column {column!r} (there is: {', '.join(sorted(there))})",
        f"name the column of the text: {source}.column=...",
    )


def as_texts(found: Sequence[Any], where: str, column: str, key: str) -> list[str]:
    """Values of a column as texts; nothing (null) is an empty one."""
    for value in found:
        if not isinstance(value, str | None):
            problem = f"column {column!r} holds values like {str(value)[:40]!r}, no text"
            raise UserError(key, where, problem, "name another column: data.source.column=...")
    return [value or "" for value in found]


def _within(lines: Iterable[bytes], room: int) -> Iterator[bytes]:
    for line in lines:
        room -= len(line)
        if room < 0:
            return
        yield line


@contextlib.contextmanager
def _table(file: str) -> Iterator[Any]:
    """A parquet file, local or by URL, open for reading."""
    from pyarrow import parquet

    with _opened(file) as content, parquet.ParquetFile(content) as table:
        yield table


@contextlib.contextmanager
def _opened(file: str) -> Iterator[str | IO[bytes]]:
    if "://" not in file:
        yield file
        return
    import fsspec

    with fsspec.open(file, "rb") as content:
        yield content


def _record_batches(file: str, start: int, stop: int | None) -> Iterator[Any]:
    import pyarrow as pa

    with pa.memory_map(file) as source:
        try:
            batches = iter(pa.ipc.open_stream(source))
        except pa.ArrowInvalid:  # the other of the two arrow layouts
            reader = pa.ipc.open_file(source)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        yield from islice(batches, start, stop)
