"""Negative controls: texts that are bad by construction, each in a way that some metric does not see.

All are made of human source texts, have the lengths of a set of model texts, and come from (seed, name)
alone. The last four lower generative perplexity at a healthy sample entropy (arXiv 2606.08417 names the
phenomenon; these constructions are our own).
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from evaluation.ngrams import NGrams
from evaluation.units import joined

Text = list[str]
Maker = Callable[["Source", Sequence[int], np.random.Generator], list[Text]]
PIECE = 8  # units of a piece of spliced texts
LOOPS = 4  # repetitions in looped texts


class Source:
    """Human texts that controls are made of, with their n-gram models. ``texts`` are lists of units."""

    def __init__(self, texts: Sequence[Text]) -> None:
        self.texts = [text for text in texts if text]
        self._models: dict[int, NGrams] = {}

    def model(self, order: int) -> NGrams:
        """The n-gram model of this order."""
        if order not in self._models:
            self._models[order] = NGrams(self.texts, order)
        return self._models[order]

    def chosen(self, number: int, draws: np.random.Generator) -> list[Text]:
        """``number`` of the texts, different ones as far as there are so many."""
        order = [draws.permutation(len(self.texts)) for _ in range(-(-number // len(self.texts)))]
        return [self.texts[at] for at in np.concatenate(order)[:number]]


def _resampled(order: int, temperature: float = 1.0) -> Maker:
    def make(source: Source, lengths: Sequence[int], draws: np.random.Generator) -> list[Text]:
        return [source.model(order).sample(length, draws, temperature) for length in lengths]

    return make


def _copies(source: Source, lengths: Sequence[int], draws: np.random.Generator) -> list[Text]:
    return source.chosen(len(lengths), draws)


def _shuffled(source: Source, lengths: Sequence[int], draws: np.random.Generator) -> list[Text]:
    return [[text[at] for at in draws.permutation(len(text))] for text in _copies(source, lengths, draws)]


def _one_text(source: Source, lengths: Sequence[int], draws: np.random.Generator) -> list[Text]:
    """For every sample the same source text: of those with more than the median entropy the likeliest per
    unit under the source's own trigrams."""
    entropies = np.array([unit_entropy(text) for text in source.texts])
    varied = [text for text, own in zip(source.texts, entropies, strict=True) if own >= np.median(entropies)]
    best = min(varied, key=lambda text: source.model(3).nll(text) / len(text))
    return [best] * len(lengths)


def _looped(source: Source, lengths: Sequence[int], draws: np.random.Generator) -> list[Text]:
    """The beginning of a human text again and again: in-context copying makes it likely."""
    made = []
    for text, length in zip(_copies(source, lengths, draws), lengths, strict=True):
        piece = text[: max(1, length // LOOPS)]
        made.append((piece * (length // len(piece) + 1))[:length])
    return made


def _listed(source: Source, lengths: Sequence[int], draws: np.random.Generator) -> list[Text]:
    """As many different units as the entropy of a human text needs, in one fixed order, round and round."""
    entropy = np.mean([unit_entropy(text) for text in source.texts])
    common = [unit for unit, _ in Counter(u for text in source.texts for u in text).most_common()]
    cycle = common[: max(2, round(math.exp(entropy)))]
    starts = draws.integers(len(cycle), size=len(lengths))
    return [
        [cycle[(start + at) % len(cycle)] for at in range(length)]
        for start, length in zip(starts, lengths, strict=True)
    ]


def _spliced(source: Source, lengths: Sequence[int], draws: np.random.Generator) -> list[Text]:
    """Pieces of ``PIECE`` units of different human texts: every phrase is human, no text is."""
    made = []
    for length in lengths:
        text: Text = []
        while len(text) < length:
            whole = source.texts[draws.integers(len(source.texts))]
            at = int(draws.integers(max(1, len(whole) - PIECE + 1)))
            text += whole[at : at + PIECE]
        made.append(text[:length])
    return made


CONTROLS: dict[str, Maker] = {
    "unigram": _resampled(1),
    "bigram": _resampled(2),
    "trigram": _resampled(3),
    "shuffled": _shuffled,
    "copies": _copies,
    "tempered trigram": _resampled(3, temperature=0.5),
    "one text": _one_text,
    "looped": _looped,
    "listed": _listed,
    "spliced": _spliced,
}


def make_controls(source: Sequence[Text], lengths: Sequence[int], seed: int) -> dict[str, list[str]]:
    """Every control by its name: one text for each of ``lengths`` (units), of ``source`` texts in units."""
    ready = Source(source)
    found = {}
    for name, make in CONTROLS.items():
        draws = np.random.default_rng([seed, zlib.crc32(name.encode())])
        found[name] = [joined(text) for text in make(ready, lengths, draws)]
    return found


def unit_entropy(text: Sequence[str]) -> float:
    """Entropy in nats of the frequencies of units inside a text."""
    shares = np.array(list(Counter(text).values())) / max(len(text), 1)
    return float(-(shares * np.log(shares)).sum())
