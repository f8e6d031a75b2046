"""The study of what the protocol's numbers say where the truth is known, at a smaller size."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evaluation.ngrams import grams
from scripts.evaluation import coverage as study_of
from scripts.evaluation.coverage import Language, Study, corrupted, coverage, distances, ranks

TRIALS = 60
LOWEST = 0.95 - 3.5 * math.sqrt(0.95 * 0.05 / TRIALS)  # of 60 at 95 %


@pytest.fixture(scope="module")
def study() -> Study:
    return Study(Language("ab", 8), number=150, source=60)


def test_true_values_are_those_of_large_samples(study: Study) -> None:
    language = study.language
    probs = corrupted(language, "independent letters", 0.4)
    assert probs.sum() == pytest.approx(1) and len(probs) == 256
    truth, draws = study.truth(probs), np.random.default_rng(0)
    rows = language.draw(probs, 4000, draws)
    sets = [set(grams(text, study_of.SHARED)) for text in language.chosen(rows)]
    pairs = [len(a & b) * (1 / len(a) + 1 / len(b)) / 2 for a, b in zip(sets[::2], sets[1::2], strict=True)]
    assert truth["shared"] == pytest.approx(np.mean(pairs), abs=4 * np.std(pairs) / len(pairs) ** 0.5)
    for name, each in study.per_word.items():
        seen = each[rows]
        assert truth[name] == pytest.approx(seen.mean(), abs=4 * seen.std() / 63 + 1e-12), name


@pytest.mark.slow
def test_intervals_cover(study: Study) -> None:
    probs = corrupted(study.language, "random letters", 0.4)
    found = coverage(study, probs, TRIALS, reverse=0)
    assert found.keys() == {*study_of.METRICS} - {"reverse_ngram_nll"}
    for name in ("generative_ppl", "entropy", "distinct_2", "ngram_nll", "shared", "mmd"):
        assert LOWEST < found[name] <= 1, name


def test_known_corruptions_are_ranked(study: Study) -> None:
    for kind in study_of.KINDS:
        steps = [distances(study.language.probs, corrupted(study.language, kind, s)) for s in (0.1, 0.4, 0.8)]
        assert all(a[1] < b[1] for a, b in zip(steps[:-1], steps[1:], strict=True)), "by total variation"
        assert ranks(study, kind)["mmd"] == "up"
    assert ranks(study, "one word")["generative_ppl"] == "down", "better, and worse: it is fooled"
    assert ranks(study, "one word")["shared"] == "up"
    assert ranks(study, "random letters")["ngram_nll"] == "up"
