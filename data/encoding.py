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
from data.tokenizers import mask_id_of
from errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_CHARACTERS = 2**20


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of all that decides about ids: vocabulary, merges, normalisation, special tokens."""
    backend = _plain_backend(tokenizer)
    content = sorted(tokenizer.get_vocab().items()) if backend is None else backend.to_str()
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, mask_id_of(tokenizer)]
    return hashlib.sha256(json.dumps([content, special]).encode()).hexdigest()


def text_encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[str]], list[list[int]]]:
    """A function from texts to ids, without special tokens, truncation or offsets.

    The name of a special token inside a text is text: a page that mentions [MASK] or [PAD] shall not put
    a mask into clean data.
    """
    backend = _plain_backend(tokenizer)
    if backend is None:
        return lambda texts: tokenizer(
            texts, add_special_tokens=False, split_special_tokens=True, verbose=False
        )["input_ids"]
    backend.encode_special_tokens = True
    return lambda texts: [made.ids for made in backend.encode_batch_fast(texts, add_special_tokens=False)]


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
                "data.tokenizer_name_or_path",
                self._name,
                f"it turns text into id {wrong[0]}, but the model has {self._vocab_size} ids, and "
                f"{self._mask_id} is its mask",
                "use one whose tokens lie below its vocab_size",
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
