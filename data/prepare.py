"""From a name to rows of tokens: read, detokenise, tokenise, pack, cache."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.cache import open_or_build
from data.dataset import LENGTHS_FILE, TOKENS_FILE, TokenDataset
from data.generated import Role
from data.packing import BlockPacker, Documents, pad_documents, smallest_int, with_eos
from data.sources import ROLE_KEYS, SOURCES, Corpus, GeneratedRows, open_corpus
from data.tokenizers import boundary_ids, mask_id_of
from utils import get_logger, user_error

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

log = get_logger("data")


@dataclass(frozen=True)
class Recipe:
    """What shapes a prepared set, besides the tokenizer.

    Attributes:
        source: a row of ``data.sources.SOURCES``, a local path, or a hub name.
        role: train or validation.
        length: L, positions of a row.
        wrap: pack blocks; otherwise one document a row, padded.
        insert_eos: eos behind each document (packed blocks only; a running text has no documents).
        eos: ``official`` or ``sep``, see ``data.tokenizers.boundary_ids``.
        rules: the configuration's data.name, see ``data.sources.open_corpus``.
        revision: of a hub data set.
        cache_dir: downloads and prepared arrays.
    """

    source: str
    role: Role
    length: int
    wrap: bool
    insert_eos: bool
    eos: str
    rules: str
    revision: str | None
    cache_dir: Path


def prepare(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> TokenDataset:
    """The rows of a recipe; generated in memory, or from the cache, which is filled on first use.

    Raises:
        ValueError: the source is missing, empty, too short for one row, or does not fit the tokenizer.
    """
    if recipe.length < 3:
        raise user_error(
            "model.length", recipe.length, "no room for a token between bos and eos", "use 3 or more"
        )
    row = SOURCES.get(recipe.source)
    if isinstance(row, GeneratedRows):
        borders = (tokenizer.vocab_size - 2, tokenizer.vocab_size - 1)
        if row.bordered and (tokenizer.bos_token_id, tokenizer.eos_token_id) != borders:
            raise user_error(
                ROLE_KEYS[recipe.role],
                recipe.source,
                "its last two symbols are bos and eos, unlike this tokenizer's",
                f"use data.tokenizer_name_or_path={recipe.source}",
            )
        return TokenDataset(row.rows(recipe.role, recipe.length, tokenizer.vocab_size))
    corpus = open_corpus(
        recipe.source, recipe.role, rules=recipe.rules, cache_dir=recipe.cache_dir, revision=recipe.revision
    )
    if corpus.running and not recipe.wrap:
        raise user_error(
            "data.wrap", recipe.wrap, f"{recipe.source} is one running text", "use data.wrap=True"
        )
    parts = {
        "corpus": corpus.identity,
        "tokenizer": fingerprint(tokenizer),
        "length": recipe.length,
        "wrap": recipe.wrap,
        "insert_eos": recipe.wrap and recipe.insert_eos,
        "eos": recipe.eos,
    }
    label = f"{Path(recipe.source).stem or 'data'}-{recipe.role}-{recipe.length}"
    folder, _ = open_or_build(
        recipe.cache_dir, label, parts, lambda target: _build(target, recipe, corpus, tokenizer)
    )
    return TokenDataset.open(folder)


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


def _build(
    target: Path, recipe: Recipe, corpus: Corpus, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """Fill a cache folder; returns the counts of texts, rows and lost tokens."""
    mask_id, vocab_size = mask_id_of(tokenizer)
    bos, eos = boundary_ids(tokenizer, recipe.eos)
    dtype = smallest_int(vocab_size)
    counts = {"texts": 0, "tokens": 0, "dropped": 0}
    texts = corpus.texts()
    if not recipe.wrap:
        # Between packed documents a line break is a separator; at the end of a row it would be noise.
        texts = ([text.rstrip("\r\n") for text in batch] for batch in texts)
    documents = _encoded(texts, tokenizer, mask_id, vocab_size, counts)
    if recipe.wrap:
        separator = eos if recipe.insert_eos and not corpus.running else None
        rows = _packed(documents, BlockPacker(recipe.length, bos, eos, dtype), separator, counts)
    else:
        # Some tokenizers have their [PAD] behind the model's vocabulary; any id inside does as well,
        # because padding is known from the lengths.
        inside = tokenizer.pad_token_id is not None and tokenizer.pad_token_id < vocab_size
        pad = tokenizer.pad_token_id if inside else eos
        lengths: list[np.ndarray] = []
        rows = _padded(documents, (recipe.length, bos, eos, pad, dtype), lengths, counts)
    count = _write_rows(target / TOKENS_FILE, rows, recipe.length, dtype)
    if count == 0:
        raise _too_short(recipe, counts)
    if not recipe.wrap:
        np.save(target / LENGTHS_FILE, np.concatenate(lengths))
    log.info(
        "%s (%s): %s rows of %d from %s texts; %s of %s tokens %s",
        recipe.source,
        recipe.role,
        f"{count:,}",
        recipe.length,
        f"{counts['texts']:,}",
        f"{counts['dropped']:,}",
        f"{counts['tokens']:,}",
        "dropped at the end" if recipe.wrap else "cut off",
    )
    return {"rows": count, **counts}


def _encoded(
    texts: Iterator[list[str]],
    tokenizer: PreTrainedTokenizerBase,
    mask_id: int,
    vocab_size: int,
    counts: dict[str, int],
) -> Iterator[Documents]:
    encode = text_encoder(tokenizer)
    for batch in texts:
        documents = Documents.of(encode(batch))
        wrong = documents.tokens[(documents.tokens >= vocab_size) | (documents.tokens == mask_id)]
        if len(wrong):
            raise user_error(
                "data.tokenizer_name_or_path",
                tokenizer.name_or_path,
                f"it turns text into id {wrong[0]}, but the model has {vocab_size} ids, and "
                f"{mask_id} is its mask",
                "use one whose tokens lie below its vocab_size",
            )
        counts["texts"] += len(documents.sizes)
        counts["tokens"] += len(documents.tokens)
        yield documents


def _packed(
    batches: Iterator[Documents], packer: BlockPacker, separator: int | None, counts: dict[str, int]
) -> Iterator[np.ndarray]:
    for documents in batches:
        yield packer.feed(documents.tokens if separator is None else with_eos(documents, separator))
    counts["dropped"] = packer.leftover


def _padded(
    batches: Iterator[Documents],
    layout: tuple[int, int, int, int, np.dtype],
    lengths: list[np.ndarray],
    counts: dict[str, int],
) -> Iterator[np.ndarray]:
    for documents in batches:
        rows, kept = pad_documents(documents, *layout)
        counts["dropped"] += len(documents.tokens) - int((kept - 2).sum())
        lengths.append(kept)
        yield rows


def _write_rows(path: Path, rows: Iterator[np.ndarray], length: int, dtype: np.dtype) -> int:
    """Write an .npy file (N, length) whose N is known at the end only; returns N."""
    count = 0
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (0, length)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        for batch in rows:
            batch.tofile(file)
            count += len(batch)
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (count, length)})
        assert file.tell() == start, "numpy leaves room for the first axis to grow"
    return count


def _too_short(recipe: Recipe, counts: dict[str, int]) -> ValueError:
    key = ROLE_KEYS[recipe.role]
    if counts["tokens"] == 0:
        return user_error(key, recipe.source, f"the set for {recipe.role} holds no text", "use another one")
    return user_error(
        key,
        recipe.source,
        f"its {counts['tokens']} tokens for {recipe.role} do not fill one "
        f"block of model.length={recipe.length}",
        "use a smaller model.length or more text",
    )
