"""Data that needs no download: the pydoc text and the two synthetic sets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

import numpy as np

from data.packing import smallest_int

Role = Literal["train", "validation"]

SYNTHETIC_ROWS = {"train": 100_000, "validation": 1_024}
SYNTHETIC_SEEDS = {"train": 42, "validation": 41}
_PIECE = 4096
_PIECES_PER_BATCH = 256


def pydoc_text(role: Role) -> str:
    """The help texts that ship with Python, in the letters a-z and single blanks.

    375,757 characters on Python 3.11.7; the last tenth of them is for validation. Results made with it
    name the Python version.
    """
    from pydoc_data.topics import topics

    text = re.sub(r"[^a-z]+", " ", " ".join(topics[key] for key in sorted(topics)).lower())
    border = len(text) - len(text) // 10
    return text[:border] if role == "train" else text[border:]


def text_pieces(text: str, size: int = _PIECE) -> Iterator[list[str]]:
    """Cut one running text into batches of pieces of about ``size`` characters, each cut before a blank.

    The pieces are joined again after tokenisation. A blank opens a word for byte-pair and word-piece
    tokenizers alike, so their tokens are those of the whole text, and short pieces tokenise far faster.
    """
    batch: list[str] = []
    start = 0
    while start < len(text):
        end = text.find(" ", start + size)
        end = len(text) if end < 0 else end
        batch.append(text[start:end])
        start = end
        if len(batch) == _PIECES_PER_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def synthetic_rows(role: Role, length: int, vocab_size: int) -> np.ndarray:
    """(N, length): bos, then tokens, then eos; N = 100,000 or 1,024 (seeds 42 and 41).

    The last two of the ``vocab_size`` symbols (256) are bos and eos. From the end backwards each token is
    the one after it divided by 4 (whole part); where that one is 0, and in front of eos, a token is drawn
    uniformly from the ordinary symbols. The set is made for length 32.
    """
    ordinary = vocab_size - 2
    generator = _generator(role)
    rows = np.empty((SYNTHETIC_ROWS[role], length), dtype=smallest_int(vocab_size))
    rows[:, 0], rows[:, -1] = ordinary, ordinary + 1
    token = np.zeros(len(rows), dtype=rows.dtype)
    for position in range(length - 2, 0, -1):
        fresh = generator.integers(ordinary, size=len(rows), dtype=rows.dtype)
        token = np.where(token == 0, fresh, token // 4)
        rows[:, position] = token
    return rows


def align_rows(role: Role, length: int, vocab_size: int) -> np.ndarray:
    """(N, length): each row repeats one symbol drawn uniformly from ``vocab_size``; N and seeds as above.

    The rows are a view with stride 0: they take no memory beyond one symbol each.
    """
    symbols = _generator(role).integers(vocab_size, size=SYNTHETIC_ROWS[role], dtype=smallest_int(vocab_size))
    return np.broadcast_to(symbols[:, None], (len(symbols), length))


def _generator(role: Role) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(SYNTHETIC_SEEDS[role])))
