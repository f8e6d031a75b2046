"""Plain files from web servers: fetched once, whole or not at all, and checked."""

from __future__ import annotations

import errno
import hashlib
import re
import tarfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from data.formats import BATCH
from data.hub import Unavailable
from data.shards import Shard, read_shard
from utils import atomic_open, get_logger

_TIMEOUT = 60.0  # seconds without an answer
log = get_logger("data")


@dataclass(frozen=True)
class PublishedFile:
    """A file of documents on a web server: a line each, or (.jsonl) an object with a text each.

    Attributes:
        checksum: ``algorithm:digest`` of the whole file.
        members: of a tar archive, a pattern of the names of its files.
    """

    url: str
    checksum: str
    members: str | None = None

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


def fetch(url: str, folder: Path, checksum: str | None = None) -> Path:
    """The file of ``url`` in ``folder``; downloaded when it is not there, whole or not at all.

    Raises:
        Unavailable: no network, no such file, or another checksum than ``algorithm:digest``.
    """
    target = folder / url.rsplit("/", 1)[-1]
    if target.exists():
        return target
    log.info("%s -> %s", url, target)
    algorithm, _, expected = (checksum or "md5:").partition(":")
    digest = hashlib.new(algorithm)
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as remote, atomic_open(target, "wb") as file:
            size = int(remote.headers.get("Content-Length") or 0)
            with tqdm.wrapattr(remote, "read", total=size or None, disable=None, desc=target.name) as content:
                while chunk := content.read(2**20):
                    digest.update(chunk)
                    file.write(chunk)
            if size and file.tell() != size:
                raise Unavailable(f"it broke off after {file.tell():,} of {size:,} bytes")
            if expected and digest.hexdigest() != expected:
                raise Unavailable(f"its {algorithm} is {digest.hexdigest()}, not {expected}")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        raise Unavailable(" ".join(str(error).split())) from error
    return target


def verify(path: Path, checksum: str) -> None:
    """Raise ``Unavailable`` unless ``path`` has the checksum ``algorithm:digest``."""
    algorithm, expected = checksum.split(":")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if found != expected:
        raise Unavailable(f"the {algorithm} of {path} is {found}, not {expected}")


def read_published(path: Path, published: PublishedFile, column: str, key: str) -> Iterator[list[str]]:
    """Batches of the documents of a published file: a line each, or the files ``members`` of an archive."""
    if published.members is None:
        yield from read_shard(Shard(str(path)), column, key)
        return
    with tarfile.open(path, "r|*") as archive:  # one pass from the front: members come in their order there
        for member in archive:
            content = archive.extractfile(member) if re.fullmatch(published.members, member.name) else None
            while content and (lines := list(islice(content, BATCH))):
                yield [line.decode("utf-8") for line in lines]
