"""From a name to rows of tokens: read, detokenise, tokenise, pack, cache."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from data.cache import open_or_build_first
from data.dataset import LENGTHS_FILE, TOKENS_FILE, TokenDataset
from data.encoding import Encoder, ahead, fingerprint
from data.generated import Role
from data.hub import Unavailable
from data.packing import (
    BlockPacker,
    Documents,
    official_blocks,
    pad_documents,
    smallest_int,
    with_eos,
)
from data.places import DatasetRequest, SourceOverride
from data.sources import TextSource, nowhere, open_corpora
from data.table import ROLE_KEYS, SOURCE_KEYS, SOURCES, GeneratedRows, RunningText
from data.tokenizers import boundary_ids, mask_id_of, padding_id
from errors import UserError
from utils import get_logger

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = get_logger("data")
OFFICIAL = "cond_sampling.official_workers"


@dataclass(frozen=True)
class PreprocessingConfig:
    """What shapes a prepared set, besides the tokenizer.

    Attributes:
        source: a row of ``data.table.SOURCES``, a local path, or a hub name.
        role: train or validation.
        length: L, positions of a row.
        wrap: pack blocks; otherwise one document a row, padded.
        insert_eos: eos behind each document (packed blocks only; a running text has no documents).
        eos: ``official`` or ``sep``, see ``data.tokenizers.boundary_ids``.
        rules: the configuration's data.name, see ``data.places.DatasetRequest``.
        revision: of a hub data set; goes before that of ``choice``.
        cache_dir: downloads and prepared arrays.
        choice, root, streamed: see ``data.places.DatasetRequest``.
        official_workers: pack blocks as the official programs do with so many workers
            (``data.packing.official_blocks``); None: one stream of ids.
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
    choice: SourceOverride = field(default_factory=SourceOverride)
    root: Path | None = None
    streamed: bool = False
    official_workers: int | None = None

    def wanted(self) -> DatasetRequest:
        """The text of the recipe."""
        choice = self.choice if self.revision is None else replace(self.choice, revision=self.revision)
        where = (self.cache_dir, self.root, choice, self.streamed)
        return DatasetRequest(self.source, self.role, self.rules, *where)


def prepare(recipe: PreprocessingConfig, tokenizer: PreTrainedTokenizerBase) -> TokenDataset:
    """The rows of a recipe; generated in memory, or from the cache, which is filled on first use.

    Raises:
        ValueError: the source is missing, empty, too short for one row, or does not fit the tokenizer.
    """
    if recipe.length < 3:
        raise UserError(
            "model.length", recipe.length, "no room for a token between bos and eos", "use 3 or more"
        )
    row, crop = SOURCES.get(recipe.source), None
    if isinstance(row, GeneratedRows):
        return _generated(recipe, row, tokenizer)
    if isinstance(row, RunningText) and row.crop and recipe.role == "train":
        crop, recipe = recipe.length, replace(recipe, length=2 * recipe.length - 2)
    corpora = open_corpora(recipe.wanted())
    if corpora[0].running and recipe.official_workers is not None:
        problem = f"{recipe.source} is one running text, which has no documents to share out"
        raise UserError(OFFICIAL, recipe.official_workers, problem, "leave it out")
    if corpora[0].running and not recipe.wrap:
        raise UserError(
            "data.wrap", recipe.wrap, f"{recipe.source} is one running text", "use data.wrap=True"
        )
    label = f"{Path(recipe.source).stem or 'data'}-{recipe.role}-{recipe.length}"
    folder = _first_built(recipe, label, corpora, tokenizer)
    return TokenDataset.open(folder, crop)


def _first_built(
    recipe: PreprocessingConfig, label: str, corpora: list[TextSource], tokenizer: PreTrainedTokenizerBase
) -> Path:
    """The folder of the first corpus that is prepared already, or else can be read; a log line names it."""
    tried: list[tuple[TextSource, Unavailable]] = []

    def attempt(corpus: TextSource) -> Callable[[Path], dict[str, Any]]:
        def build(target: Path) -> dict[str, Any]:
            try:
                return {"where": corpus.where, **_build(target, recipe, corpus, tokenizer)}
            except Unavailable as error:
                tried.append((corpus, error))
                if corpus is not corpora[-1]:
                    log.warning("%s: %s cannot be read (%s)", recipe.source, corpus.where, error)
                raise

        return build

    settings = {
        "tokenizer": fingerprint(tokenizer),
        "length": recipe.length,
        "wrap": recipe.wrap,
        "insert_eos": recipe.wrap and recipe.insert_eos,
        "eos": recipe.eos,
    }
    if recipe.wrap and recipe.official_workers is not None:
        settings["official_workers"] = recipe.official_workers
    choices = [({"corpus": corpus.identity, **settings}, attempt(corpus)) for corpus in corpora]
    try:
        chosen, folder = open_or_build_first(recipe.cache_dir, label, choices, skip=(Unavailable,))
    except Unavailable as error:
        raise nowhere(recipe.wanted(), tried) from error
    if chosen:
        where = corpora[chosen].where, corpora[0].where
        log.warning("%s (%s): the text is from %s instead of %s", recipe.source, recipe.role, *where)
    return folder


def _generated(
    recipe: PreprocessingConfig, row: GeneratedRows, tokenizer: PreTrainedTokenizerBase
) -> TokenDataset:
    for name, value in recipe.choice.typed().items():
        problem = f"{recipe.source} is made here, not read"
        raise UserError(f"{SOURCE_KEYS[recipe.role]}.{name}", value, problem, "leave it out")
    borders = (tokenizer.vocab_size - 2, tokenizer.vocab_size - 1)
    if row.bordered and (tokenizer.bos_token_id, tokenizer.eos_token_id) != borders:
        raise UserError(
            ROLE_KEYS[recipe.role],
            recipe.source,
            "its last two symbols are bos and eos, unlike this tokenizer's",
            f"use data.tokenizer_name_or_path={recipe.source}",
        )
    return TokenDataset(row.rows(recipe.role, recipe.length, tokenizer.vocab_size))


def _build(
    target: Path, recipe: PreprocessingConfig, corpus: TextSource, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """Fill a cache folder; returns the counts of texts, rows and lost tokens."""
    bos, eos = boundary_ids(tokenizer, recipe.eos)
    dtype = smallest_int(mask_id_of(tokenizer)[1])
    counts = {"texts": 0, "tokens": 0, "dropped": 0}
    texts = ahead(corpus.texts())
    if not recipe.wrap:
        # Between packed documents a line break is a separator; at the end of a row it would be noise.
        texts = ([text.rstrip("\r\n") for text in batch] for batch in texts)
    documents = _encoded(texts, Encoder(tokenizer), counts)
    if recipe.wrap:
        separator = eos if recipe.insert_eos and not corpus.running else None
        new_packer = partial(BlockPacker, recipe.length, bos, eos, dtype)
        if recipe.official_workers is None:
            rows = _packed(documents, new_packer(), separator, counts)
        else:
            blocks = official_blocks(documents, new_packer, separator, recipe.official_workers)
            rows = _counted(blocks, counts)
    else:
        pad = padding_id(tokenizer, eos)  # padding is known from the lengths
        lengths: list[np.ndarray] = []
        rows = _padded(documents, (recipe.length, bos, eos, pad, dtype), lengths, counts)
    count = _write_rows(target / TOKENS_FILE, rows, recipe.length, dtype)
    if count == 0:
        raise _too_short(recipe, counts)
    if not recipe.wrap:
        with _written(target / LENGTHS_FILE) as file:
            counted = np.concatenate(lengths)
            np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(counted))
            file.write(counted.data)
    log.info(
        "%s (%s) from %s: %s rows of %d from %s texts; %s of %s tokens %s",
        recipe.source,
        recipe.role,
        corpus.where,
        f"{count:,}",
        recipe.length,
        f"{counts['texts']:,}",
        f"{counts['dropped']:,}",
        f"{counts['tokens']:,}",
        "dropped at the end" if recipe.wrap else "cut off",
    )
    return {"rows": count, **counts}


def _encoded(texts: Iterator[list[str]], encode: Encoder, counts: dict[str, int]) -> Iterator[Documents]:
    for batch in texts:
        documents = encode(batch)
        counts["texts"] += len(documents.sizes)
        counts["tokens"] += len(documents.tokens)
        yield documents


def _packed(
    batches: Iterator[Documents], packer: BlockPacker, separator: int | None, counts: dict[str, int]
) -> Iterator[np.ndarray]:
    for documents in batches:
        yield packer.feed(documents.tokens if separator is None else with_eos(documents, separator))
    counts["dropped"] = packer.leftover


def _counted(blocks: Iterator[tuple[np.ndarray, int]], counts: dict[str, int]) -> Iterator[np.ndarray]:
    for rows, dropped in blocks:
        counts["dropped"] += dropped
        yield rows


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
    with _written(path) as file:
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        for batch in rows:
            file.write(np.ascontiguousarray(batch).data)
            count += len(batch)
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (count, length)})
        assert file.tell() == start, "numpy leaves room for the first axis to grow"
    return count


@contextlib.contextmanager
def _written(path: Path) -> Iterator[IO[bytes]]:
    """A new file, on the disk when the block ends; an error of writing (a full disk) has its name.

    The arrays' own ``tofile`` raises errors without number and name.
    """
    try:
        with path.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def _too_short(recipe: PreprocessingConfig, counts: dict[str, int]) -> ValueError:
    key = ROLE_KEYS[recipe.role]
    if counts["tokens"] == 0:
        return UserError(key, recipe.source, f"the set for {recipe.role} holds no text", "use another one")
    return UserError(
        key,
        recipe.source,
        f"its {counts['tokens']} tokens for {recipe.role} do not fill one "
        f"block of model.length={recipe.length}",
        "use a smaller model.length or more text",
    )
