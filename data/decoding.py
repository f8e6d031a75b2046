"""Ids into the texts that are shown, judged and stored; the one place where that is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from data.tokenizers import is_wordpiece

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RULES = ("default", "raw", "clean")
# In this order; pairs of English that WordPiece takes apart. transformers 4 did this to whole texts.
_JOINED = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"),
    (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


def rule_of(tokenizer: PreTrainedTokenizerBase, rule: str) -> str:
    """What ``eval.decoding=rule`` means for a tokenizer, as results record it: ``raw`` or ``clean``.

    By default the texts of WordPiece (bert) are cleaned and those of all others (gpt2) are not, as by
    transformers 4.49, with which the numbers of IMDM were made; docs/differences.md compares releases.
    """
    if rule == "default":
        return "clean" if is_wordpiece(tokenizer) else "raw"
    return rule


def decode(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Any], rule: str) -> list[str]:
    """The texts of rows of ids, special tokens included.

    Args:
        rule: ``raw``: what the tokenizer itself says; ``clean``: without the blanks that stand in front of
            punctuation and in contractions; ``default``: see ``rule_of``.
    """
    texts = tokenizer.batch_decode(rows, clean_up_tokenization_spaces=False)
    return [cleaned(text) for text in texts] if rule_of(tokenizer, rule) == "clean" else texts


def cleaned(text: str) -> str:
    """A text without the blanks in front of punctuation and in contractions: ``don ' t .`` is ``don't.``"""
    for apart, joined in _JOINED:
        text = text.replace(apart, joined)
    return text
