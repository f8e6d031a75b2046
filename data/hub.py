"""The Hugging Face hub: is it worth asking, and what does it answer?"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit


class Unavailable(ValueError):
    """A text that is not to be had where it should be; another place may have it. The message is one line."""


def ask(library_call: Callable[..., Any], path: str, **options: Any) -> Any:
    """``library_call(path, **options)`` of ``datasets``.

    Raises:
        Unavailable: whatever goes wrong there, in a few words ("no network", or the library's own).
    """
    offline = False
    try:
        with offline_if_unreachable() as offline:
            return library_call(path, **options)
    except Exception as error:  # half a dozen libraries below, each with its own types
        _raise_full_disk(error, str(options.get("cache_dir") or path))
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise Unavailable("no network" if offline else reason) from error


def _raise_full_disk(error: BaseException, where: str) -> None:
    """Raise the error of a full disk that one of the library's own was raised from, with a name."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(cause.errno, cause.strerror, cause.filename or where) from error
        cause = cause.__cause__ or cause.__context__


def parquet_files(
    path: str, config: str | None, data_dir: str | None, revision: str | None, split: str, cache_dir: str
) -> list[str]:
    """URLs of the parquet files of a split, as they are at this moment (a commit is named in them).

    Raises:
        Unavailable: no such data set, no such split, or files of another kind.
    """
    import datasets

    builder = ask(
        datasets.load_dataset_builder,
        path,
        name=config,
        data_dir=data_dir,
        revision=revision,
        cache_dir=cache_dir,
    )
    by_split = builder.config.data_files or {}
    if split not in by_split:
        raise Unavailable(f"no split {split} there, but {', '.join(map(str, by_split)) or 'none at all'}")
    files = [str(file) for file in by_split[split]]
    if other := next((file for file in files if not file.endswith(".parquet")), None):
        raise Unavailable(f"{other.rsplit('/', 1)[-1]} is no parquet, which may be at refs/convert/parquet")
    return files


def hub_reachable() -> bool:
    """False when the hub's host name does not resolve and no proxy stands between.

    The hub's clients retry for most of a minute, with a message for each try, before they notice
    that there is no network; a compute node without one shall get its one clear line at once.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def offline_if_unreachable() -> Iterator[bool]:
    """Inside, ``datasets`` looks into its own cache alone when the hub is out of reach; gives that answer.

    The library has no argument for this that it obeys, so its offline switches are set for the while.
    """
    import datasets
    from huggingface_hub import constants

    offline = not hub_reachable()
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    if offline:
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield offline
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
