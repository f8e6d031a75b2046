"""Whether the numbers of mode=judge mean what they say, where the truth is known: tables of docs/protocol.md.

    python scripts/evaluation/coverage.py    # about ten minutes on one core; writes docs/protocol.md

The texts are all 6,561 words of eight letters out of three, under a distribution that is known: so are KL,
total variation, and the true value of every metric, of the human distribution and of corrupted ones.
Shapes: W words, N texts of a sample.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from evaluation.controls import unit_entropy  # noqa: E402
from evaluation.estimates import Estimate, differ  # noqa: E402
from evaluation.features import HashedNGrams  # noqa: E402
from evaluation.mmd import bandwidth, mmd  # noqa: E402
from evaluation.ngrams import NGrams, grams  # noqa: E402
from evaluation.scores import COPIED, ORDER, SHARED, Reference, text_metrics  # noqa: E402
from metrics import TextScores  # noqa: E402
from utils import atomic_open  # noqa: E402

LETTERS, LENGTH = "abc", 8
TEXTS, SOURCE, TRIALS, REVERSE = 200, 600, 500, 50
STRENGTHS = (0.1, 0.2, 0.4, 0.8)
BEGIN, END = "<!-- coverage: begin -->", "<!-- coverage: end -->"
METRICS = (
    "generative_ppl", "entropy", "distinct_2", "repeated", "shared", "ngram_nll", "reverse_ngram_nll",
    "copied", "mmd",
)  # fmt: skip


class Language:
    """All words with the distribution ``probs`` (W,) of human texts: a chain of order 2 with sharp moves."""

    def __init__(self, letters: str = LETTERS, length: int = LENGTH, seed: int = 0) -> None:
        draws, size = np.random.default_rng(seed), len(letters)
        self.letters = letters
        self.words = np.array(list(product(range(size), repeat=length)))
        self.texts = [[letters[at] for at in word] for word in self.words]
        first = draws.dirichlet(np.ones(size))
        moves = draws.dirichlet(np.full(size, 0.5), size=(size + 1, size))  # [one before the last, last]
        probs = first[self.words[:, 0]] * moves[size, self.words[:, 0], self.words[:, 1]]
        for at in range(2, length):
            probs = probs * moves[self.words[:, at - 2], self.words[:, at - 1], self.words[:, at]]
        self.probs = probs / probs.sum()

    def draw(self, probs: np.ndarray, number: int, draws: np.random.Generator) -> np.ndarray:
        """Indices (N,) of words drawn from ``probs``."""
        return draws.choice(len(probs), number, p=probs)

    def chosen(self, rows: np.ndarray) -> list[list[str]]:
        """The texts of indices (N,)."""
        return [self.texts[row] for row in rows]

    @cached_property
    def features(self) -> np.ndarray:
        """(W, D) of all words."""
        return HashedNGrams("characters")(["".join(text) for text in self.texts])

    def gram_table(self, size: int) -> np.ndarray:
        """Which of the runs of ``size`` letters each word has, (W, number of runs) bool."""
        known = {gram: at for at, gram in enumerate(product(self.letters, repeat=size))}
        table = np.zeros((len(self.texts), len(known)), dtype=bool)
        for row, text in enumerate(self.texts):
            table[row, [known[gram] for gram in grams(text, size)]] = True
        return table


def corrupted(language: Language, kind: str, strength: float) -> np.ndarray:
    """A distribution (W,) that a corruption of ``strength`` in 0 to 1 makes of the human one."""
    probs = language.probs
    if kind == "independent letters":
        size = len(language.letters)
        each = [np.bincount(column, probs, size)[column] for column in language.words.T]
        return (1 - strength) * probs + strength * np.prod(each, 0)
    if kind == "random letters":
        return (1 - strength) * probs + strength / len(probs)
    if kind == "one word":
        found = (1 - strength) * probs
        found[probs.argsort()[-10]] += strength
        return found
    if kind == "low temperature":
        found = probs ** (1 + 2 * strength)
        return found / found.sum()
    assert kind == "words left out"
    order = np.random.default_rng(1).permutation(len(probs))
    kept = np.where(probs[order].cumsum()[order.argsort()] > strength, probs, 0)
    return kept / kept.sum()


KINDS = ("independent letters", "random letters", "one word", "low temperature", "words left out")


class Study:
    """The human reference, the source and the n-gram model, drawn once; estimates and truths given these.

    Truths are those of the estimates' own targets: given the reference for the reverse cross-entropy's
    model, given the source for the n-gram cross-entropy.
    """

    def __init__(self, language: Language, number: int = TEXTS, source: int = SOURCE, seed: int = 0) -> None:
        self.language, self.number = language, number
        draws = np.random.default_rng(seed)
        texts = language.chosen(language.draw(language.probs, source, draws))
        self.model = NGrams(texts, ORDER)
        self.source = texts
        self.source_grams = {gram for text in texts for gram in grams(text, COPIED)}
        sample = language.features[language.draw(language.probs, number, draws)]
        self.width = bandwidth(sample)
        self.log_probs = np.log(language.probs)

    @cached_property
    def kernel(self) -> np.ndarray:
        """(W, W) float32 of all words."""
        features = self.language.features.astype(np.float32)
        squares = (features**2).sum(1)
        distances = squares[:, None] + squares[None] - 2 * features @ features.T
        return np.exp(-np.maximum(distances, 0) / (2 * self.width**2))

    @cached_property
    def per_word(self) -> dict[str, np.ndarray]:
        """What each word adds to the metrics that are means over words, (W,)."""
        texts = self.language.texts
        runs = {size: [grams(text, size) for text in texts] for size in (2, SHARED, COPIED)}
        return {
            "entropy": _array(map(unit_entropy, texts)),
            "distinct_2": _array(len(set(f)) / len(f) for f in runs[2]),
            "repeated": _array((len(f) - len(set(f))) / len(f) for f in runs[SHARED]),
            "ngram_nll": _array(self.model.nll(text) / len(text) for text in texts),
            "copied": _array(np.mean([g in self.source_grams for g in f]) for f in runs[COPIED]),
        }

    def truth(self, probs: np.ndarray) -> dict[str, float]:
        """The true value of every metric but ``reverse_ngram_nll`` for texts of ``probs``."""
        found = {name: float(probs @ values) for name, values in self.per_word.items()}
        length = self.language.words.shape[1]
        possible = probs > 0
        nats = -float(probs[possible] @ self.log_probs[possible])
        found["generative_ppl"] = math.exp(nats / length)
        table = self.language.gram_table(SHARED)
        have, weight = probs @ table, (probs / table.sum(1)) @ table
        found["shared"] = float(have @ weight)
        gap = (probs - self.language.probs).astype(np.float64)
        found["mmd"] = float(gap @ (self.kernel @ gap.astype(np.float32)).astype(np.float64))
        return found

    def estimates(self, probs: np.ndarray, seed: int, *, test: bool = False) -> dict[str, Any]:
        """What mode=judge says of a sample of N texts from ``probs``, and the truths that depend on it."""
        draws = np.random.default_rng([seed, 17])
        human = self.language.draw(self.language.probs, self.number, draws)
        rows = self.language.draw(probs, self.number, draws)
        texts, reference = self.language.chosen(rows), self.language.chosen(human)
        compared = Reference.__new__(Reference)  # the model of the source is made once
        compared.texts, compared.model, compared.source_grams = reference, self.model, self.source_grams
        found: dict[str, Any] = dict(text_metrics(texts, compared))
        nats = torch.from_numpy(-self.log_probs[rows])
        scores = TextScores(nats, torch.full((self.number,), float(self.language.words.shape[1])))
        found["generative_ppl"] = Estimate(scores.perplexity, *scores.bootstrap(seed, replicates=400))
        features = self.language.features
        distance = mmd(features[human], features[rows], self.width, seed, permutations=199 if test else 1)
        return {**found, "mmd": distance.squared, "p_value": distance.p_value, "rows": rows}

    def reverse_truth(self, rows: np.ndarray) -> float:
        """The human distribution's cross-entropy under the n-gram model of the words ``rows``."""
        own = NGrams(self.language.chosen(rows), ORDER)
        nats = _array(map(own.nll, self.language.texts))
        return float(self.language.probs @ nats) / self.language.words.shape[1]


def coverage(study: Study, probs: np.ndarray, trials: int, *, reverse: int = REVERSE) -> dict[str, float]:
    """Share of trials whose 95 % interval holds the truth, for every metric; of ``reverse`` trials for the
    reverse cross-entropy, whose truth takes a sum over all words in each."""
    truth, inside = study.truth(probs), dict.fromkeys(METRICS, 0)
    for trial in range(trials):
        found = study.estimates(probs, trial)
        now = dict(truth)
        if trial < reverse:
            now["reverse_ngram_nll"] = study.reverse_truth(found["rows"])
        for name, value in now.items():
            inside[name] += found[name].low <= value <= found[name].high
    counts = {name: reverse if name == "reverse_ngram_nll" else trials for name in METRICS}
    return {name: inside[name] / counts[name] for name in METRICS if counts[name]}


def power(study: Study, probs: np.ndarray, trials: int) -> dict[str, tuple[float, float]]:
    """Shares of trials in which a metric of texts from ``probs`` lies above and below that of human texts
    at 95 %; for MMD p < 0.05, and nothing below."""
    above, below = (dict.fromkeys(METRICS, 0) for _ in range(2))
    for trial in range(trials):
        human = study.estimates(study.language.probs, 10_000 + trial)
        found = study.estimates(probs, 20_000 + trial, test=True)
        for name in METRICS[:-1]:
            sign = differ(found[name], human[name])
            above[name] += sign > 0
            below[name] += sign < 0
        above["mmd"] += found["p_value"] < 0.05
    return {name: (above[name] / trials, below[name] / trials) for name in METRICS}


def ranks(study: Study, kind: str) -> dict[str, str]:
    """Whether the true value moves away from the human one with every step of a corruption: ``up``, ``down``,
    or ``no``."""
    steps = [study.truth(corrupted(study.language, kind, strength)) for strength in (0.0, *STRENGTHS)]
    words = {}
    for name in (name for name in METRICS if name != "reverse_ngram_nll"):
        moves = np.diff([step[name] for step in steps])
        words[name] = "up" if (moves > 1e-9).all() else "down" if (moves < -1e-9).all() else "no"
    return words


def distances(human: np.ndarray, probs: np.ndarray) -> tuple[float, float]:
    """KL(probs || human) in nats, and total variation."""
    some = probs > 0
    return float(probs[some] @ np.log(probs[some] / human[some])), 0.5 * float(np.abs(probs - human).sum())


def tables(study: Study, trials: int, power_trials: int, covered: Sequence[str] = KINDS) -> str:
    """All tables of the page; coverage for human texts and the corruptions ``covered``."""
    language = study.language
    cases = {"human": language.probs}
    cases |= {f"{kind}, 0.4": corrupted(language, kind, 0.4) for kind in covered}
    covers = {
        name: coverage(study, probs, trials, reverse=min(REVERSE, trials)) for name, probs in cases.items()
    }
    words = f"Coverage of the 95 % intervals in {trials} trials of {study.number} texts"
    lines = [f"{words} (reverse cross-entropy: {REVERSE}):", ""]
    lines += _markdown(
        ("distribution", *METRICS),
        [[name, *(_share(found[m], m, name) for m in METRICS)] for name, found in covers.items()],
    )
    rows = []
    for kind in KINDS:
        words = {"reverse_ngram_nll": "-", **ranks(study, kind)}
        rows.append([kind, *(words[name] for name in METRICS)])
    lines += ["", f"True values along the strengths 0, {', '.join(map(str, STRENGTHS))}:", ""]
    lines += _markdown(("corruption", *METRICS), rows)
    rows = []
    for name, probs in [("human", cases["human"])] + [(k, corrupted(language, k, 0.2)) for k in KINDS]:
        kl, tv = distances(language.probs, probs)
        found = power(study, probs, power_trials)
        shares = [f"{found[m][0]:.2f} / {found[m][1]:.2f}" for m in METRICS[:-1]]
        rows.append([name, f"{kl:.3f}", f"{tv:.3f}", *shares, f"{found['mmd'][0]:.2f}"])
    lines += ["", f"Called above / below human at strength 0.2, share of {power_trials} trials:", ""]
    lines += _markdown(("corruption", "KL", "TV", *METRICS), rows)
    return "\n".join(lines)


def _share(value: float, metric: str, case: str) -> str:
    return f"({value:.3f})" if metric == "mmd" and case == "human" else f"{value:.3f}"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _array(values: Any) -> np.ndarray:
    return np.array(list(values), dtype=np.float64)


def main(argv: Sequence[str] | None = None, say: Callable[[str], None] = print) -> None:
    """Write the tables into the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "protocol.md")
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--power_trials", type=int, default=100)
    parser.add_argument("--covered", nargs="*", default=list(KINDS), choices=KINDS)
    given = parser.parse_args(argv)
    text = tables(Study(Language()), given.trials, given.power_trials, given.covered)
    before, rest = given.page.read_text(encoding="utf-8").split(BEGIN)
    with atomic_open(given.page) as file:
        file.write(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")
    say(text)


if __name__ == "__main__":
    main()
