"""Undo the tokenisation in which some corpora are published.

Each detokenizer is an ordered table of rules (pattern, replacement), applied to one document. The rules are
those under which the published perplexities were measured, so some are cruder than they could be: a quotation
mark is paired with the next one, whatever stands between, and WikiText's " N " is a number even where it is a
letter.
"""

from __future__ import annotations

import re
from collections.abc import Callable

VERSION = 2  # part of the cache's key: raise it when a rule changes

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

# Penn Treebank: lower case, contractions split, every number an N, rare words <unk>, / written \/.
_PTB: _Rules = (
    (r" 's", "'s"),
    (r"s ' ", "s' "),
    (r" n't", "n't"),
    (r" \n ", "\n"),
    (r"\\/", "/"),
    (r"(?<= )N(?= )", "1"),
    (r"([$#]) 1", r"\g<1>1"),
    (r"<unk>", "?"),
)

# LAMBADA: only quotation marks; as in its first evaluation each text is a new line.
_LAMBADA: _Rules = (
    (r"[“”]", '"'),
    (r"[‘’]", "'"),
    (r"\s+\Z", ""),
    (r"\A\s*", "\n"),
)

# One sentence a line: the line break of a text file is no part of it.
_STRIP: _Rules = ((r"\A\s+|\s+\Z", ""),)


def _detokenizer(rules: _Rules) -> Callable[[str], str]:
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]

    def detokenize(text: str) -> str:
        for pattern, replacement in compiled:
            text = pattern.sub(replacement, text)
        return text

    return detokenize


DETOKENIZERS: dict[str, Callable[[str], str]] = {
    "wikitext": _detokenizer(_WIKITEXT),
    "lm1b": _detokenizer((*_STRIP, *_LM1B)),
    "ptb": _detokenizer((*_STRIP, *_PTB)),
    "lambada": _detokenizer(_LAMBADA),
    "scientific_papers": _detokenizer((*_WIKITEXT, *_LM1B)),
}
