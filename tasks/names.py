"""Lists of things on a command line, each a path or ``name:path``."""

from __future__ import annotations


def name_and_path(text: str) -> tuple[str | None, str]:
    """``name:path`` in its parts; a path alone has no name. A colon behind a slash belongs to the path."""
    name, colon, path = text.partition(":")
    return (name, path) if colon and name and path and "/" not in name else (None, text)
