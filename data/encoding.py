"""Texts into ids: without special tokens, checked, and one batch ahead of the reader."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from data.packing import Documents
from data.tokenizers import TOKENIZER_KEY, first_of_eos, has_own_eos, mask_id_of
from errors import UserError
from utils import well_formed

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_CHARACTERS = 2**20


class UnknownText(UserError):
    """A text that the tokenizer cannot turn into ids, for want of a token for unknown words."""


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of all that decides about ids: vocabulary, merges, normalisation, special tokens."""
    backend = _plain_backend(tokenizer)
    content = sorted(tokenizer.get_vocab().items()) if backend is None else backend.to_str()
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, mask_id_of(tokenizer)]
    eos = tokenizer.eos_token_id
    if eos is not None and has_own_eos(tokenizer) and first_of_eos(tokenizer) != eos:
        special.append("own eos")  # earlier versions put another id in its place
    return hashlib.sha256(json.dumps([content, special]).encode()).hexdigest()


def text_encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[str]], list[list[int]]]:
    """A function from texts to ids, without special tokens, truncation or offsets.

    The name of a special token inside a text is text: a page that mentions [MASK] or [PAD] shall not put
    a mask into clean data. Half a surrogate pair, as JSON can hold it, becomes U+FFFD. What it returns
    raises UnknownText.
    """
    backend = _plain_backend(tokenizer)
    if backend is not None:
        backend.encode_special_tokens = True

    def encode(texts: list[str]) -> list[list[int]]:
        texts = [*map(well_formed, texts)]
        if backend is None:
            options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
            return tokenizer(texts, **options)["input_ids"]
        try:
            return [made.ids for made in backend.encode_batch_fast(texts, add_special_tokens=False)]
        except Exception as error:
            if type(error) is not Exception:  # the library's own errors are just that
                raise
            problem = f"it cannot turn all of the text into tokens ({error})"
            hint = "use a tokenizer that has its token for unknown words, or text that it knows"
            raise UnknownText(TOKENIZER_KEY, tokenizer.name_or_path, problem, hint) from error

    return encode


def _plain_backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer | None:
    """A copy of the fast tokenizer inside, if there is one, free of what earlier calls set in it."""
    if not hasattr(tokenizer, "backend_tokenizer"):
        return None
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.no_truncation()
    backend.no_padding()
    return backend


class Encoder:
    """Texts to checked ids: none is the mask's, none outside the model's vocabulary."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._encode, self._name = text_encoder(tokenizer), tokenizer.name_or_path
        self._mask_id, self._vocab_size = mask_id_of(tokenizer)

    def __call__(self, texts: list[str]) -> Documents:
        parts = [Documents.of(self._encode(group)) for group in _groups(texts)]
        documents = Documents(*map(np.concatenate, zip(*parts, strict=True))) if parts else Documents.of([])
        tokens = documents.tokens
        wrong = tokens[(tokens >= self._vocab_size) | (tokens == self._mask_id)]
        if len(wrong):
            raise UserError(
                TOKENIZER_KEY,
                self._name,
                f"it turns text into id {wrong[0]}, but the model has {self._vocab_size} ids, and "
                f"{self._mask_id} is its mask",
                "use another one",
            )
        return documents


def _groups(texts: list[str]) -> Iterator[list[str]]:
    """Neighbouring texts, a million characters at once: for a while each token takes 100 bytes."""
    first, size = 0, 0
    for last, text in enumerate(texts):
        if size and size + len(text) > _CHARACTERS:
            yield texts[first:last]
            first, size = last, 0
        size += len(text)
    if texts[first:]:
        yield texts[first:]


def ahead(items: Iterable[Any]) -> Iterator[Any]:
    """The same items, the next one made in a thread while the caller works on this one."""
    rest, end = iter(items), object()
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, rest, end)
        while (item := following.result()) is not end:
            following = pool.submit(next, rest, end)
            yield item
