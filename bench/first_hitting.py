"""What exact sampling costs: first hitting against ancestral sampling on finer and finer grids.

    python bench/first_hitting.py    # some 2 minutes on 2 cores; writes bench/results/first_hitting.md

Ancestral sampling has the distribution of the model in the limit of many steps; ancestral_cache draws the
same tokens
and calls the network only for rows that unmask; first hitting has that distribution as it is, with a call a
token.
Setting: MDLM of bench/cpu.py with random weights. Plain ancestral sampling costs the same in every step: it
is timed up to --plain steps, and the rest of its column is that cost times the steps (~).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.cpu import BATCH, LENGTH, build
from diffusion.noise import Schedule, get_schedule
from samplers.base import SamplerSettings
from samplers.registry import get_sampler
from trainer_base import TrainerBase
from utils import atomic_open

STEPS = (64, 256, 1024, 4096, 10_000)
PAPER = "Zheng et al., arXiv 2409.02908"


def expected_calls(schedule: Schedule, num_steps: int, masks: int) -> float:
    """Steps of an ancestral grid in which at least one of ``masks`` masks unmasks, in the mean (Zheng et
    al.): sum_i 1 - (1 - (alpha_i - alpha_{i-1}) / (1 - alpha_0))^masks.

    With the masks of a row these are the network calls of that row, as ancestral_cache makes them; with those
    of a batch, masks = B L, the forward passes of the batch, which are the calls of a cache that calls it as
    a whole. The paper has alpha_0 = 0; here all masks of the start unmask by the end.
    """
    eps = SamplerSettings(num_steps).grid_eps
    times = 1 - torch.arange(num_steps + 1, dtype=torch.float64) / num_steps * (1 - eps)
    alphas = schedule.alpha(times)
    alphas[-1] = 1.0  # the last step unmasks what is left
    chance = alphas.diff() / (1 - alphas[0])
    return float(-torch.expm1(masks * torch.log1p(-chance)).sum())


class Timed(NamedTuple):
    """Seconds of a batch (the median of some), network calls of a row (mean), forward passes of the batch."""

    seconds: float
    calls: float
    passes: float


def timed(module: TrainerBase, predictor: str, num_steps: int, batch: int, repeats: int) -> Timed:
    """Sample a batch ``repeats`` times, each with random numbers of its own."""
    module.generator.sampler_class = get_sampler(predictor)
    seconds, calls, passes = [], [], []
    for k in range(repeats):
        began = time.perf_counter()
        samples = module.generator.sample(batch, num_steps, first_row=k * batch, batch_size=batch)
        seconds.append(time.perf_counter() - began)
        calls.append(float(samples.nfe.double().mean()))
        passes.append(samples.forward_passes)
    return Timed(statistics.median(seconds), statistics.mean(calls), statistics.mean(passes))


def measured_table(
    module: TrainerBase, steps: Sequence[int], plain: int, batch: int, repeats: int
) -> list[str]:
    """Markdown lines: seconds and network calls at each number of steps, and first hitting."""
    length, schedule = module.config.model.length, module.objective.schedule
    timed(module, "first_hitting", 1, batch, 1)  # warm-up
    hitting = timed(module, "first_hitting", 1, batch, repeats)
    rows, a_step = [], 0.0
    for num_steps in steps:
        cached = timed(module, "ancestral_cache", num_steps, batch, repeats)
        about = "~" if num_steps > plain and a_step else ""
        if not about:
            a_step = timed(module, "ancestral", num_steps, batch, 1).seconds / num_steps
        ancestral = a_step * num_steps
        formula = (expected_calls(schedule, num_steps, masks) for masks in (length, batch * length))
        rows.append(
            f"| {num_steps:,} | {about}{ancestral:.1f} | {cached.seconds:.1f} | {cached.calls:.1f} "
            "({:.1f}) | {:.0f} ({:.0f}) ".format(next(formula), cached.passes, next(formula))
            + f"| {about}{ancestral / hitting.seconds:.1f} | {cached.seconds / hitting.seconds:.1f} |"
        )
        print(rows[-1], flush=True)
    return [
        f"First hitting: {hitting.seconds:.2f} s for {batch} rows, {hitting.calls:.0f} calls a row, "
        f"{hitting.passes:.0f} forward passes. In brackets: the formula.",
        "",
        "| steps | ancestral (s) | ancestral_cache (s) | calls a row, cache | forward passes, cache "
        "| ancestral / first hitting | cache / first hitting |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ]


def formula_table(steps: Sequence[int], length: int, batches: Sequence[int]) -> list[str]:
    """Markdown lines: expected network calls of cached ancestral sampling at a length of the paper."""
    schedule = get_schedule("log-linear", 1e-3)
    head = ["a row (ours)", *(f"a batch of {batch}" for batch in batches if batch > 1)]
    lines = [
        f"Expected calls of cached ancestral sampling at length {length:,} ({PAPER}), a call counted where "
        f"a row, or any row of a batch, unmasks; first hitting: {length:,}; uncached: the steps.",
        "",
        f"| steps | {' | '.join(head)} |",
        "|---" * (len(head) + 1) + "|",
    ]
    for num_steps in steps:
        calls = (expected_calls(schedule, num_steps, batch * length) for batch in batches)
        lines.append(f"| {num_steps:,} | " + " | ".join(f"{count:,.0f}" for count in calls) + " |")
    return lines


def main(words: Sequence[str] | None = None) -> None:
    """Measure, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "first_hitting.md")
    parser.add_argument("--steps", type=int, nargs="*", default=STEPS)
    parser.add_argument(
        "--plain", type=int, default=1024, help="most steps of timed plain ancestral sampling"
    )
    parser.add_argument("--vocab", type=int, default=30522)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--precision", default="32", choices=("32", "bf16"))
    parser.add_argument("overrides", nargs="*", help="key=value of the model; default: bench/cpu.py's")
    args = parser.parse_intermixed_args(words)
    module = build("mdlm", args.vocab, args.precision, *args.overrides)
    length = module.config.model.length
    text = [
        f"python bench/first_hitting.py: MDLM, V = {args.vocab:,}, {args.precision}, "
        f"{torch.get_num_threads()} threads, {args.batch} x {length} ids, torch {torch.__version__}",
        "",
        *measured_table(module, sorted(args.steps), args.plain, args.batch, args.repeats),
        "",
        *formula_table(sorted(args.steps), 8 * LENGTH, (1, 8, 64)),
    ]
    with atomic_open(args.out) as file:
        file.write("\n".join(text) + "\n")
    print("\n".join(text), f"\n-> {args.out}", sep="\n")


if __name__ == "__main__":
    main()
