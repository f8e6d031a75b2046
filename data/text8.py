"""text8: the first 10^8 characters of an English Wikipedia dump, cleaned to a-z and blanks (M. Mahoney)."""

from __future__ import annotations

import zipfile
from pathlib import Path

from data.downloads import fetch
from data.generated import Role
from errors import UserError

URL = "http://mattmahoney.net/dc/text8.zip"
SIZE = 100_000_000
NAMES = ("text8", "text8.txt", "text8.zip")
# 90M / 5M / 5M characters; validation is on the last part, the test part.
_PARTS = {"train": (0, 90_000_000), "validation": (95_000_000, SIZE)}


def text8_text(role: Role, local: Path | None, cache_dir: Path) -> str:
    """The characters of a role, from ``local`` (text8.zip, text8, or a folder with one of them).

    Without a local copy 30 MB are downloaded into ``cache_dir/downloads``.
    """
    key, path = "data.train" if role == "train" else "data.valid", local
    if local is not None and local.is_dir():
        path = next((local / name for name in NAMES if (local / name).exists()), None)
    if path is None:
        path = fetch(URL, cache_dir / "downloads")
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as zipped:
                content = zipped.read("text8")
        else:
            content = path.read_bytes()
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(key, "text8", f"{path} is no archive of text8 ({error})", "delete it") from error
    if len(content) != SIZE:
        raise UserError(key, "text8", f"{path} has {len(content)} characters, not {SIZE}", "delete it")
    start, end = _PARTS[role]
    return content[start:end].decode("ascii")
