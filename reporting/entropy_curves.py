"""Curves of generative perplexity over entropy, made of the points of mode=frontier and read at one entropy.

Generative perplexity falls with the entropy of the samples (a low temperature flatters it), so models are
compared at one entropy: each curve runs over temperatures, and is read off where it has that entropy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

Point = dict[str, Any]
Curves = dict[str, dict[int, list[Point]]]  # label -> number of steps -> points by rising entropy

ALONG_CURVES = ("steps", "temperature")
DIGESTS = ("weights", "network", "scorer_files")  # settings that say nothing to a reader


class Matched(NamedTuple):
    """A curve at an entropy in nats: perplexity, and the ends of its interval where there are intervals."""

    entropy: float
    ppl: float
    low: float | None
    high: float | None


def at_entropy(curve: Sequence[Point], entropy: float) -> Matched | None:
    """Read a curve at an entropy: log perplexity is linear in entropy between neighbouring points.

    The ends of the intervals are interpolated in the same way, which is right where neighbours err together
    and too wide where they err apart; that the entropies err as well is left out.

    Args:
        curve: points with ``entropy`` and ``generative_ppl``, by rising entropy (``by_entropy``).

    Returns:
        None outside of the curve: nothing is extrapolated.
    """
    if not curve or not curve[0]["entropy"] <= entropy <= curve[-1]["entropy"]:
        return None
    above = next(k for k, point in enumerate(curve) if point["entropy"] >= entropy)
    right, left = curve[above], curve[max(above - 1, 0)]
    gap = right["entropy"] - left["entropy"]
    share = (entropy - left["entropy"]) / gap if gap > 0 else 1.0

    def between(a: float, b: float) -> float:
        return math.exp((1 - share) * math.log(a) + share * math.log(b))

    ends: list[float | None] = [None, None]
    intervals = [point.get("generative_ppl_interval") for point in (left, right)]
    if all(intervals):
        ends = [between(*pair) for pair in zip(*intervals, strict=True)]
    return Matched(entropy, between(left["generative_ppl"], right["generative_ppl"]), *ends)


def shared_entropy(curves: Iterable[Sequence[Point]]) -> float | None:
    """The middle of the entropies that all curves reach; None when they have none in common."""
    ranges = [(curve[0]["entropy"], curve[-1]["entropy"]) for curve in curves]
    if not ranges:
        return None
    low, high = max(r[0] for r in ranges), min(r[1] for r in ranges)
    return (low + high) / 2 if low <= high else None


def by_entropy(points: Iterable[Point]) -> list[Point]:
    """The points that have a perplexity, by rising entropy."""
    return sorted((p for p in points if p["generative_ppl"] is not None), key=lambda p: p["entropy"])


def make_curves(points: Sequence[Point]) -> Curves:
    """Curves over temperatures: all but the temperature is the same on one. A series of curves, which differ
    in the number of steps, is called by what sets it apart from the other series."""
    series: dict[str, list[Point]] = {}
    for point in points:
        rest = {name: v for name, v in point["settings"].items() if name not in ALONG_CURVES}
        series.setdefault(json.dumps(rest, sort_keys=True), []).append(point)
    flat = {identity: _flat(json.loads(identity)) for identity in series}
    differing = [
        name
        for name in dict.fromkeys(key for one in flat.values() for key in one)
        if len({json.dumps(one.get(name)) for one in flat.values()}) > 1
    ]
    labels, curves = _labels(flat, differing), {}
    for identity, members in series.items():
        counts = sorted({point["steps"] for point in members})
        chosen = {n: by_entropy(p for p in members if p["steps"] == n) for n in counts}
        curves[labels[identity]] = {n: curve for n, curve in chosen.items() if curve}
    return curves


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return found


def _labels(flat: dict[str, dict[str, Any]], differing: Sequence[str]) -> dict[str, str]:
    """Identity of a series -> the name, the sampler where there are several, whatever else differs; digests
    only where two series would be called the same."""
    told = [name for name in differing if name not in ("name", "predictor", "algo", *DIGESTS)]
    labels = {}
    for identity, settings in flat.items():
        words = [settings["name"], *([settings["predictor"]] if "predictor" in differing else [])]
        words += [f"{name.rsplit('.', 1)[-1]}={settings.get(name)}" for name in told]
        labels[identity] = ", ".join(words)
    for name in DIGESTS:
        for label in {label for label in labels.values() if list(labels.values()).count(label) > 1}:
            same = [identity for identity in labels if labels[identity] == label]
            if len({flat[identity].get(name) for identity in same}) > 1:
                labels.update({i: f"{label}, {name} {str(flat[i].get(name))[:6]}" for i in same})
    return labels


def match(curves: Curves, entropy: float | None) -> dict[int, tuple[float | None, dict[str, Matched | None]]]:
    """For each number of steps the entropy of comparison, and every series there.

    Args:
        entropy: in nats; None takes what ``shared_entropy`` says of the curves of each number of steps.
    """
    found = {}
    for steps in sorted({n for by_steps in curves.values() for n in by_steps}):
        there = {label: by_steps[steps] for label, by_steps in curves.items() if steps in by_steps}
        at = shared_entropy(there.values()) if entropy is None else entropy
        read = {label: None if at is None else at_entropy(curve, at) for label, curve in there.items()}
        found[steps] = (at, read)
    return found
