"""The numbers of the protocol (docs/protocol.md) that need texts alone: no evaluator, no network.

Shapes: N texts, the independent units.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from evaluation.controls import unit_entropy
from evaluation.estimates import Estimate, differ, mean, ratio, u_statistic
from evaluation.ngrams import NGrams, grams
from evaluation.units import specials, units

PROTOCOL = 1  # raised whenever a number would come out differently
ORDER = 3  # of the n-gram models
COPIED = 8  # units of a run that counts as copied from the source
SHARED = 4  # units of a run that counts as repeated
LOWER, HUMAN, DISTANCE = "lower", "human", "distance"


class Metric(NamedTuple):
    """A column: its title, a format, and what is good: ``lower``, or as ``human`` texts have it, or a
    ``distance`` with a test of its own."""

    title: str
    form: str
    good: str


METRICS = {
    "generative_ppl": Metric("generative perplexity", ".2f", LOWER),
    "entropy": Metric("entropy (nats)", ".3f", HUMAN),
    "distinct_2": Metric("distinct 2-grams", ".3f", HUMAN),
    "repeated": Metric(f"repeated {SHARED}-grams", ".4f", HUMAN),
    "shared": Metric(f"{SHARED}-grams shared by two texts", ".5f", HUMAN),
    "ngram_nll": Metric("n-gram cross-entropy (nats)", ".3f", HUMAN),
    "reverse_ngram_nll": Metric("reverse n-gram cross-entropy (nats)", ".3f", LOWER),
    "copied": Metric(f"{COPIED}-grams of the source", ".4f", HUMAN),
    "mmd": Metric("MMD²", ".4f", DISTANCE),
    "mauve": Metric("MAUVE", ".3f", DISTANCE),
}


class Reference:
    """What texts are compared with.

    Args:
        reference: human texts, units of each.
        source: other human texts, for the n-gram model and for what counts as copied.
    """

    def __init__(self, reference: Sequence[list[str]], source: Sequence[list[str]]) -> None:
        self.texts = reference
        self.model = NGrams(source, ORDER)
        self.source_grams = {gram for text in source for gram in grams(text, COPIED)}


def text_metrics(texts: Sequence[list[str]], reference: Reference) -> dict[str, Estimate]:
    """Those of ``METRICS`` that need the units of N texts alone.

    entropy: of the units inside a text, mean over texts. distinct_2: different 2-grams of a text / its
    2-grams. repeated: share of a text's 4-grams that stand in it before. shared: share of a text's different
    4-grams that another text of the set has, mean over all pairs (its expectation does not depend on N).
    ngram_nll: of the texts under the source's n-gram model, per unit. reverse_ngram_nll: of the reference
    under an n-gram model of the texts; its interval is for these texts given. copied: share of 8-grams that
    the source has.
    """
    pairs, fours, eights = ([grams(text, size) for text in texts] for size in (2, SHARED, COPIED))
    own = NGrams(texts, ORDER)
    return {
        "entropy": mean(np.array([unit_entropy(text) for text in texts])),
        "distinct_2": mean(np.array([len(set(found)) / max(len(found), 1) for found in pairs])),
        "repeated": ratio(_array(len(f) - len(set(f)) for f in fours), _array(map(len, fours))),
        "shared": _shared([set(found) for found in fours]),
        "ngram_nll": ratio(_array(map(reference.model.nll, texts)), _array(map(len, texts))),
        "reverse_ngram_nll": ratio(_array(map(own.nll, reference.texts)), _array(map(len, reference.texts))),
        "copied": ratio(
            _array(sum(g in reference.source_grams for g in found) for found in eights),
            _array(map(len, eights)),
        ),
    }


def _shared(sets: Sequence[set[tuple[str, ...]]]) -> Estimate:
    """Mean over pairs of different texts of |A and B| (1/|A| + 1/|B|) / 2, by how many texts have a gram."""
    have, weight = Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()
    for one in sets:
        for gram in one:
            have[gram] += 1
            weight[gram] += 1 / len(one)  # type: ignore[assignment]
    rows = [
        (sum(have[g] - 1 for g in one) / len(one) + sum(weight[g] - 1 / len(one) for g in one)) / 2
        if one
        else 0.0
        for one in sets
    ]
    return u_statistic(np.array(rows))


def _array(values: Any) -> np.ndarray:
    return np.array(list(values), dtype=np.float64)


def length_statistics(texts: Sequence[str], kind: str) -> dict[str, Any]:
    """Lengths of whole texts in units, special tokens by name and text, empty and equal texts."""
    lengths = _array(len(units(text, kind)) for text in texts)
    found = sum((specials(text) for text in texts), Counter[str]())
    return {
        "mean_units": float(lengths.mean()),
        "min_units": int(lengths.min()),
        "max_units": int(lengths.max()),
        "special_tokens_per_text": {name: count / len(texts) for name, count in sorted(found.items())},
        "empty": int((lengths == 0).sum()),
        "duplicates": len(texts) - len(set(texts)),
    }


def verdict(name: str, row: dict[str, Any], human: dict[str, Any]) -> str | None:
    """Whether a metric tells a set of bad texts from human ones.

    Args:
        name: of the metric.
        row, human: results (``tasks.judge``) of the texts, and of human texts against the same reference.

    Returns:
        "caught"; "blind": no difference beyond chance at 95 %; "fooled": better than human; None: not
        measured.
    """
    metrics, good = row["metrics"], METRICS[name].good
    if metrics.get(name) is None or human["metrics"].get(name) is None:
        return None
    if name == "mmd":
        return "caught" if row["mmd_p_value"] < 0.05 else "blind"
    if name == "mauve":
        return "caught" if metrics[name]["value"] < human["mauve_lowest_ceiling"] else "blind"
    sign = differ(Estimate(**metrics[name]), Estimate(**human["metrics"][name]))
    if good == HUMAN:
        return "caught" if sign else "blind"
    return {1: "caught", 0: "blind", -1: "fooled"}[sign]
