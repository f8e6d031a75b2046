"""text8: the first 10^8 characters of an English Wikipedia dump, cleaned to a-z and blanks (M. Mahoney)."""

from __future__ import annotations

import shutil
import urllib.request
import zipfile
from pathlib import Path

from data.generated import Role
from utils import atomic_open, get_logger, user_error

URL = "http://mattmahoney.net/dc/text8.zip"
SIZE = 100_000_000
# 90M / 5M / 5M characters; validation is on the last part, the test part.
_PARTS = {"train": (0, 90_000_000), "validation": (95_000_000, SIZE)}
log = get_logger("data")


def text8_text(role: Role, cache_dir: Path) -> str:
    """The characters of a role; downloads 30 MB into ``cache_dir/local/text8`` when they are not there."""
    key = "data.train" if role == "train" else "data.valid"
    folder = cache_dir / "local" / "text8"
    plain = next((folder / name for name in ("text8", "text8.txt") if (folder / name).exists()), None)
    archive = folder / "text8.zip"
    if plain is None and not archive.exists():
        _download(archive, key)
    try:
        if plain is None:
            with zipfile.ZipFile(archive) as zipped:
                content = zipped.read("text8")
        else:
            content = plain.read_bytes()
    except (zipfile.BadZipFile, KeyError) as error:
        raise user_error(key, "text8", f"{archive} is no archive of text8 ({error})", "delete it") from error
    if len(content) != SIZE:
        raise user_error(
            key, "text8", f"{plain or archive} has {len(content)} characters, not {SIZE}", "delete it"
        )
    start, end = _PARTS[role]
    return content[start:end].decode("ascii")


def _download(archive: Path, key: str) -> None:
    log.info("%s -> %s", URL, archive)
    try:
        with urllib.request.urlopen(URL, timeout=60) as remote, atomic_open(archive, "wb") as file:
            shutil.copyfileobj(remote, file)
    except OSError as error:
        raise user_error(
            key,
            "text8",
            f"{URL} cannot be fetched ({error})",
            f"put text8.zip or the file text8 into {archive.parent}",
        ) from error
