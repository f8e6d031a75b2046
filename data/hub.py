"""One question about the Hugging Face hub: is it worth asking?"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit


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
