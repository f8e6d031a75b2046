"""Documents from local files: txt (one a line), jsonl, parquet and arrow."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

from data.generated import Role
from utils import get_logger, user_error

log = get_logger("data")

_BATCH = 1000
_ROLE_NAMES = {"train": ("train",), "validation": ("valid", "val", "dev", "test")}


def find_files(path: Path, role: Role, key: str) -> list[Path]:
    """The files that ``path`` (a file or a folder) offers for a role, sorted.

    In a folder in which any file or subfolder is named after a role (train*, valid*, val*, dev*, test*),
    the files of this role count, and of those for validation the first kind in that order; otherwise all.

    Raises:
        ValueError: nothing readable there, or nothing for this role.
    """
    kinds = ", ".join(sorted(READERS))
    if path.is_file():
        if path.suffix not in READERS:
            raise user_error(key, str(path), "a file of an unknown kind", f"use one of {kinds}")
        return [path]
    files = sorted(file for file in path.rglob("*") if file.suffix in READERS and _is_data(file))
    if not files:
        raise user_error(key, str(path), "the folder holds no data file", f"put {kinds} files there")
    named = {role: _named(files, path, role) for role in _ROLE_NAMES}
    if not any(named.values()):
        log.info("%s=%s: no file is named after a role, so all %d are read", key, path, len(files))
        return files
    if not named[role]:
        wanted = ", ".join(f"{name}*" for name in _ROLE_NAMES[role])
        raise user_error(
            key, str(path), f"the folder has no file for {role}", f"name one of its files {wanted}"
        )
    return named[role]


def read_files(files: Iterable[Path], column: str, key: str) -> Iterator[list[str]]:
    """Batches of documents; ``column`` is the field of jsonl, parquet and arrow files that holds the text."""
    for file in files:
        yield from READERS[file.suffix](file, column, key)


def missing_column(key: str, where: str, column: str, there: Iterable[str]) -> ValueError:
    """The error for a data set without the text column."""
    return user_error(
        key,
        where,
        f"no column {column!r} (there is: {', '.join(sorted(there))})",
        f"rename the text column to {column!r}",
    )


def _is_data(file: Path) -> bool:
    # datasets.save_to_disk leaves descriptions beside its arrow files.
    return file.name not in ("dataset_info.json", "state.json", "dataset_dict.json")


def _named(files: list[Path], folder: Path, role: Role) -> list[Path]:
    for name in _ROLE_NAMES[role]:
        found = [
            file for file in files if any(part.startswith(name) for part in file.relative_to(folder).parts)
        ]
        if found:
            return found
    return []


def _read_lines(file: Path, column: str, key: str) -> Iterator[list[str]]:
    del column, key  # a text file has no columns
    with file.open(encoding="utf-8") as lines:
        while batch := list(islice(lines, _BATCH)):
            yield batch


def _read_jsonl(file: Path, column: str, key: str) -> Iterator[list[str]]:
    with file.open(encoding="utf-8") as lines:
        while batch := list(islice(lines, _BATCH)):
            try:
                records = [json.loads(line) for line in batch if line.strip()]
            except json.JSONDecodeError as error:
                raise user_error(
                    key, str(file), f"not JSON, one object a line ({error})", "mend the file"
                ) from error
            for record in records:
                if not isinstance(record, dict) or column not in record:
                    raise missing_column(key, str(file), column, record if isinstance(record, dict) else ())
            yield [record[column] for record in records]


def _read_parquet(file: Path, column: str, key: str) -> Iterator[list[str]]:
    from pyarrow import parquet

    with parquet.ParquetFile(file) as table:
        if column not in table.schema_arrow.names:
            raise missing_column(key, str(file), column, table.schema_arrow.names)
        for batch in table.iter_batches(_BATCH, columns=[column]):
            yield batch.column(0).to_pylist()


def _read_arrow(file: Path, column: str, key: str) -> Iterator[list[str]]:
    import pyarrow as pa

    with pa.memory_map(str(file)) as source:
        try:
            batches = iter(pa.ipc.open_stream(source))
        except pa.ArrowInvalid:  # the other of the two arrow layouts
            reader = pa.ipc.open_file(source)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        for batch in batches:
            if column not in batch.schema.names:
                raise missing_column(key, str(file), column, batch.schema.names)
            texts = batch.column(column).to_pylist()
            for start in range(0, len(texts), _BATCH):
                yield texts[start : start + _BATCH]


READERS: dict[str, Callable[[Path, str, str], Iterator[list[str]]]] = {
    ".txt": _read_lines,
    ".jsonl": _read_jsonl,
    ".json": _read_jsonl,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}
