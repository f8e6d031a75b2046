"""Texts that were decoded from samples, as ids of a model of this program that says how likely they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from errors import UserError
from utils import get_logger, well_formed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = get_logger("scorer")
SCORER_KEY = "eval.gen_ppl_eval_model_name_or_path"


class WrittenTexts:
    """Encodes texts for a model that can write all ids below ``vocab_size`` but for the mask.

    The names of special tokens are read as those tokens, as samples have them. What the model cannot write
    would make all texts impossible: masks count as the unknown token where there is one, and all other names
    of such tokens as the text that they are. Masks stand in texts that were not finished; uniform-state
    models can write the name of any special token, and everybody the letters of one.

    Args:
        name: how the model is reported.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        mask_id: int | None,
        vocab_size: int,
        name: str,
    ) -> None:
        self._tokenizer, self._unknown_id, self._name = tokenizer, unknown_id(tokenizer), name
        self._mask_id, self._vocab_size = mask_id, vocab_size

    def encode(self, texts: Sequence[str], max_tokens: int | None = None) -> list[list[int]]:
        """The ids of every text, cut behind ``max_tokens`` of them where that is a number; nothing is put
        around a text.

        Raises:
            UserError: the tokenizer has no ids for all of a text.
        """
        if not len(texts):
            return []
        texts = [well_formed(text) for text in texts]
        cut = {"truncation": True, "max_length": max_tokens} if max_tokens else {}
        encoded = self._ids(texts, **cut)
        wrong = [sum(map(self._cannot_be, ids)) for ids in encoded]
        if not any(wrong):
            return encoded
        known = self._unknown_id is not None and all(id < self._vocab_size for ids in encoded for id in ids)
        if known:
            what, taken = "masks", self._tokenizer.convert_ids_to_tokens(self._unknown_id)
            encoded = [[self._unknown_id if self._cannot_be(id) else id for id in ids] for ids in encoded]
        else:
            what, taken = "names of special tokens", "text"
            encoded = [
                self._names_as_text(text)[:max_tokens] if number else ids
                for text, ids, number in zip(texts, encoded, wrong, strict=True)
            ]
        message = "%d %s stand in the texts; %s, which cannot write any, takes them for %s"
        log.warning(message, sum(wrong), what, self._name, taken)
        return encoded

    def _cannot_be(self, token: int) -> bool:
        return token == self._mask_id or token >= self._vocab_size

    def _names_as_text(self, text: str) -> list[int]:
        """The ids of a text in which the names of what cannot be written are text, if the tokenizer can."""
        added = self._tokenizer.added_tokens_decoder.items()
        names = {token.content: id for id, token in added if token.special and not self._cannot_be(id)}
        pattern = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
        ids: list[int] = []
        for part in re.split(f"({pattern})", text) if pattern else [text]:
            if part in names:
                ids.append(names[part])
            elif part:
                ids += self._ids([part], split_special_tokens=True)[0]
        return [id for id in ids if not self._cannot_be(id)]

    def _ids(self, texts: list[str], **settings: object) -> list[list[int]]:
        try:
            return self._tokenizer(texts, add_special_tokens=False, verbose=False, **settings)["input_ids"]
        except Exception as error:
            if type(error) is not Exception:  # the library's own errors are just that
                raise
            problem = f"its tokenizer cannot turn all of the texts into tokens ({error})"
            hint = "give a model of the same kind of text"
            raise UserError(SCORER_KEY, self._name, problem, hint) from error


def unknown_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id that stands for unknown text, if there is one: gpt2's unk_token is its eos."""
    borders = {getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "sep", "cls", "mask")}
    return None if tokenizer.unk_token_id in borders else tokenizer.unk_token_id
