"""Texts in the units that the protocol counts: words or characters, the same for every tokenizer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

UNITS = ("words", "characters")
# A word or a sign with the space in front of it: joined together, units are the text again.
_WORD = re.compile(r" ?(?:\w+|[^\w\s])")
# Names that tokenizers of this field give to their special tokens.
_SPECIAL = re.compile(
    r"<\|[a-z_]+\|>|\[(?:CLS|SEP|PAD|MASK|UNK|BOS|EOS)\]|</?s>|<(?:pad|unk|mask|bos|eos)>", re.IGNORECASE
)


def specials(text: str) -> Counter[str]:
    """How often each name of a special token stands in a text."""
    return Counter(_SPECIAL.findall(text))


def plain(text: str) -> str:
    """A text without names of special tokens, every run of white space as one blank."""
    return " ".join(_SPECIAL.sub(" ", text).split())


def units(text: str, kind: str, limit: int | None = None) -> list[str]:
    """The first ``limit`` units of ``plain(text)``; joined together they are its beginning."""
    found = list(plain(text)) if kind == "characters" else _WORD.findall(plain(text))
    return found[:limit]


def joined(parts: Sequence[str]) -> str:
    """Units as a text."""
    return "".join(parts).strip()
