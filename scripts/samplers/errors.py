"""What each sampler does to the distribution of the data, by enumeration: docs/samplers.md and its picture.

    python scripts/samplers/errors.py    # some minutes on one core; writes docs/samplers.md and .png

Words of six bits from five kinds of worlds, each with its exact denoiser: all errors are the sampler's.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from diffusion.noise import get_schedule  # noqa: E402
from samplers import SamplerSettings, certainty, get_sampler, p2, psi, remdm  # noqa: E402
from samplers.ancestral import Ancestral  # noqa: E402
from samplers.planned import Planned  # noqa: E402
from scripts.samplers.distribution import (  # noqa: E402
    Distribution,
    independent_distribution,
    parallel_distribution,
    planned_distribution,
    sampled_distribution,
)
from tests.worlds import World, random_probs, tv_noise  # noqa: E402
from utils import atomic_open  # noqa: E402

LENGTH, CALLS, SHOWN = 6, (1, 2, 3, 4, 6, 12, 24), (2, 6, 24)
SCHEDULE = get_schedule("log-linear", 1e-3)
NUM_SAMPLES = 20_000
NEVER = 1e-9  # of a word's probability: it is not written
BEGIN, END = "<!-- errors: begin -->", "<!-- errors: end -->"


@dataclass(frozen=True)
class Case:
    """A sampler with settings of its own, and how its line looks."""

    label: str
    predictor: str
    own: Any = None
    order: str = "random"
    settings: tuple[tuple[str, Any], ...] = ()
    in_picture: bool = True
    sampled: bool = False  # KL is not known then


CASES = (
    Case("ancestral", "ancestral"),
    Case("first_hitting_parallel", "first_hitting_parallel"),
    Case("order=spread", "ancestral", order="spread"),
    Case("confidence", "confidence"),
    Case("margin", "margin", in_picture=False),
    Case("entropy", "entropy"),
    Case("confidence, temperature 0.7", "confidence", settings=(("temperature", 0.7),), in_picture=False),
    Case("confidence, drawn", "confidence", certainty.Settings(drawn=True)),
    Case("confidence, threshold 0.9", "confidence", certainty.Settings(threshold=0.9), in_picture=False),
    Case("entropy, budget 0.1", "entropy", certainty.Settings(budget=0.1), in_picture=False),
    Case("confidence, blocks of 2", "confidence", certainty.Settings(block_length=2), in_picture=False),
    Case("p2", "p2", p2.Settings(), in_picture=True),
    Case("remdm, cap 0.1", "remdm", remdm.Settings("cap", 0.1)),
    Case("remdm, rescale 0.1", "remdm", remdm.Settings("rescale", 0.1), in_picture=False),
    Case("remdm, loop 0.1", "remdm", remdm.Settings("loop", 0.1)),
    Case("remdm, conf", "remdm", remdm.Settings("conf"), sampled=True),
    Case("psi, constant 0.9", "psi", psi.Settings("linear", *["constant-0.9"] * 3), in_picture=False),
)


@dataclass(frozen=True)
class Error:
    """How far a distribution is from the data: total variation; KL(data || it) in nats; entropy of the data
    minus its own, in nats; mass of data that it never writes; its mass that is no data; its mean calls."""

    tv: float
    kl: float
    entropy_lost: float
    support_lost: float
    no_data: float
    calls: float


def worlds() -> dict[str, World]:
    """Distributions of six bits: independent ones, a chain, two equal halves, three templates with a free
    slot each, and a random one."""
    independent = torch.ones((), dtype=torch.float64)
    chain = torch.full((2,), 0.5, dtype=torch.float64)
    stay = torch.tensor([[0.8, 0.2], [0.2, 0.8]]).double()
    for number, share in enumerate((0.1, 0.3, 0.5, 0.6, 0.8, 0.9)):
        independent = independent.unsqueeze(-1) * torch.tensor([1 - share, share]).double()
        chain = chain.unsqueeze(-1) * stay if number else chain
    half = random_probs(2, 3, seed=1).flatten()
    copies = torch.diag(half).reshape((2,) * LENGTH)
    templates = torch.zeros((2,) * LENGTH, dtype=torch.float64)
    for pattern, slot, share in (("001101", 2, 0.5), ("110100", 0, 0.3), ("101011", 5, 0.2)):
        for bit in (0, 1):
            word = [bit if i == slot else int(letter) for i, letter in enumerate(pattern)]
            templates[tuple(word)] += share / 2
    made = {"independent": independent, "chain": chain, "copies": copies, "templates": templates}
    return {name: World(distribution) for name, distribution in made.items()} | {
        "random": World(random_probs(2, LENGTH))
    }


def distribution_of(case: Case, world: World, num_steps: int) -> Distribution:
    """What ``case`` writes in ``num_steps`` steps."""
    settings = SamplerSettings(num_steps, own=case.own, **dict(case.settings))
    kind = get_sampler(case.predictor, order=case.order)
    sampler = kind(world.denoiser(), SCHEDULE, world.mask_id, settings)
    if case.predictor == "first_hitting_parallel":
        return parallel_distribution(world, num_steps)
    if case.sampled:
        return sampled_distribution(world, lambda: sampler, NUM_SAMPLES)
    if isinstance(sampler, Planned):
        return planned_distribution(world, sampler)
    assert isinstance(sampler, Ancestral)
    return independent_distribution(world, sampler)


def error(world: World, distribution: Distribution) -> Error:
    """Against the data of ``world``."""
    written, calls = distribution
    data = world.data_distribution
    is_data, is_written = data > 0, written > NEVER
    both = is_data & is_written
    lost = float(data[is_data & ~is_written].sum())
    kl = math.inf if lost > 0 else float((data[both] * (data[both] / written[both]).log()).sum())
    return Error(
        tv=0.5 * float((data - written).abs().sum()),
        kl=kl,
        entropy_lost=entropy(data) - entropy(written),
        support_lost=lost,
        no_data=float(written[~is_data].sum()),
        calls=calls,
    )


def entropy(distribution: Tensor) -> float:
    """In nats."""
    return -float(torch.special.xlogy(distribution, distribution).sum())


def measure(cases: Sequence[Case], calls: Sequence[int]) -> dict[tuple[str, str, int], Error]:
    """All errors, by case, world and number of steps."""
    found = {}
    for name, world in worlds().items():
        for case in cases:
            for steps in calls:
                one = error(world, distribution_of(case, world, steps))
                found[case.label, name, steps] = replace(one, kl=math.nan) if case.sampled else one
        print(f"{name}: done", flush=True)
    return found


def number(value: float) -> str:
    """Three digits, no minus in front of zero; - for what is not known."""
    return "-" if math.isnan(value) else f"{round(value, 3) + 0.0:.3f}"


def table(found: dict[tuple[str, str, int], Error]) -> str:
    """A row a sampler and number of steps; total variation and KL in each world, the worst of the others."""
    names = list(worlds())
    head = ["sampler", "steps", "calls", *names, "entropy lost", "support lost", "no data"]
    exact = ["first_hitting (exact)", "any", str(LENGTH), *["0 (0)"] * len(names), "0", "0", "0"]
    rows = [head, ["---"] * len(head), exact]
    for label in dict.fromkeys(label for label, _, _ in found):
        for steps in SHOWN:
            errors = [found[label, name, steps] for name in names]
            cells = [f"{number(one.tv)} ({number(one.kl)})" for one in errors]
            calls = sum(one.calls for one in errors) / len(errors)
            keys = ("entropy_lost", "support_lost", "no_data")
            worst = [max(getattr(one, key) for one in errors) for key in keys]
            rows.append([label, str(steps), f"{calls:.1f}", *cells, *map(number, worst)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def draw(found: dict[tuple[str, str, int], Error], path: Path) -> None:
    """Total variation against calls, a panel a world."""
    names, shown = list(worlds()), [case for case in CASES if case.in_picture]
    figure, axes = plt.subplots(1, len(names), figsize=(16, 4.2), sharey=True, layout="constrained")
    colours = plt.get_cmap("tab10")
    for axis, name in zip(axes, names, strict=True):
        for number, case in enumerate(shown):
            errors = [found[case.label, name, steps] for steps in CALLS if (case.label, name, steps) in found]
            points = [(one.calls, max(one.tv, 1e-4)) for one in errors]
            line = {
                "marker": "osDv^<>Phx"[number],
                "ms": 4.5,
                "alpha": 0.8,
                "lw": 1.3,
                "color": colours(number % 10),
            }
            axis.plot(*zip(*points, strict=True), label=case.label, **line)
        axis.set(xscale="log", yscale="log", ylim=(0.7e-4, 1.1), title=name, xlabel="network calls")
        axis.set_xticks([1, 2, 4, 6, 12, 24], ["1", "2", "4", "6", "12", "24"], minor=False)
        axis.minorticks_off()
        axis.axvline(LENGTH, color="0.7", lw=0.8, ls=":", zorder=0)
    axes[0].set_ylabel("total variation to the data")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def insert(page: str, text: str) -> str:
    """``page`` with ``text`` between the marks."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}"


def main(argv: Sequence[str] | None = None) -> None:
    """Write the table into docs/samplers.md, and docs/samplers.png."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "samplers.md")
    page = parser.parse_args(argv).page
    found = measure(CASES, CALLS)
    noise = max(tv_noise(world.data_distribution, NUM_SAMPLES, sigmas=0) for world in worlds().values())
    note = f"remdm, conf is sampled: {NUM_SAMPLES:,} words; exact ones would seem up to {noise:.3f} off."
    written = insert(page.read_text(encoding="utf-8"), f"{table(found)}\n\n{note}")
    with atomic_open(page) as file:
        file.write(written)
    draw(found, page.with_suffix(".png"))


if __name__ == "__main__":
    main()
