"""Undo the tokenisation in which some corpora are published.

Each detokenizer is an ordered table of rules (pattern, replacement), applied to one document.
"""

from __future__ import annotations

import re
from collections.abc import Callable

VERSION = 1  # part of the cache's key: raise it when a rule changes

_Rules = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]

# WikiText marks splits inside numbers and words by @, sets blanks around all punctuation.
_WIKITEXT: _Rules = (
    (r"s '", "s'"),
    (r" @([-,.])@ ", r"\1"),
    (r" ([:;.!?,]) ", r"\1 "),
    (r"\(\s*([^)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"\{\s*([^}]*?)\s*\}", r"{\1}"),
    (r'"\s*([^"]*?)\s*"', r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
    (r"=(?: =)+", lambda found: found[0].replace(" ", "")),
    (r" ° ", "°"),
    (r" ?\n ?", "\n"),
    (r" N ", " 1 "),
    (r" 's", "'s"),
)

# LM1B: one sentence a line, blanks around punctuation, addresses torn apart.
_LM1B: _Rules = (
    (r"\b(https?) : / / ", r"\1://"),
    (r" '(\w+)", r"'\1"),
    (r" (\w+) \.(?= |$)", r" \1."),
    (r" ([?!])(?= |$)", r"\1"),
    (r" ([,:;]) ", r"\1 "),
    (r" / ", "/"),
    (r'" ([^"]+) "', r'"\1"'),
    (r"' ([^']+) '", r"'\1'"),
    (r"\( ([^()]+) \)", r"(\1)"),
    (r"\[ ([^\[\]]+) \]", r"[\1]"),
    (r"([$£]) ", r"\1"),
)


def _detokenizer(rules: _Rules) -> Callable[[str], str]:
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]

    def detokenize(text: str) -> str:
        for pattern, replacement in compiled:
            text = pattern.sub(replacement, text)
        return text

    return detokenize


DETOKENIZERS: dict[str, Callable[[str], str]] = {
    "wikitext": _detokenizer(_WIKITEXT),
    "lm1b": _detokenizer(_LM1B),
}
