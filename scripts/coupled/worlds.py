"""Coupled distillation where the teacher is exact and the data can be enumerated: docs/coupled.md, worlds.

    python scripts/coupled/worlds.py [--updates 1000] [--seeds 3] [--worlds chain copies] [--out FILE]

Words of six symbols, one call a symbol: the text that the teacher makes of its noise has the distribution of
the data. Students see each pair some eight times, so that little can be learned by heart.
Shapes: B pairs, L positions, K symbols.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from algorithms.coupled import ImCoupled, ImCoupledSettings  # noqa: E402
from algorithms.objective import BoundDenoiser, Context  # noqa: E402
from diffusion.noise import get_schedule  # noqa: E402
from diffusion.randomness import Stream, random_bits, row_keys  # noqa: E402
from models.dit import BackboneConfig, DiT, MaskNoiseConfig  # noqa: E402
from samplers import KeyedDraws, SamplerSettings, get_sampler  # noqa: E402
from tests.worlds import World, total_variation  # noqa: E402
from utils import write_json  # noqa: E402

SYMBOLS, LENGTH, BATCH = 3, 6, 256
PAIRS, SAMPLES, HELD_OUT, AT_ONCE = 32_768, 20_000, 8192, 1024
SCHEDULE = get_schedule("log-linear", 1e-3)
VARIANTS: dict[str, dict[str, Any]] = {
    "coupled": {},
    "noise at the input alone": {"output_noise": False},
    "no proposal": {"proposal": False},
    "noise drawn apart": {"ignore_seed": True},
}


def chain(stay: float = 0.85) -> Tensor:
    """A Markov chain that keeps its symbol with probability ``stay``, (K,) * L."""
    step = torch.full((SYMBOLS, SYMBOLS), (1 - stay) / (SYMBOLS - 1), dtype=torch.float64)
    step.fill_diagonal_(stay)
    probs = torch.full((SYMBOLS,), 1 / SYMBOLS, dtype=torch.float64)
    for _ in range(LENGTH - 1):
        probs = probs.unsqueeze(-1) * step
    return probs


def copies() -> Tensor:
    """One symbol in all positions, (K,) * L."""
    probs = torch.zeros((SYMBOLS,) * LENGTH, dtype=torch.float64)
    for symbol in range(SYMBOLS):
        probs[(symbol,) * LENGTH] = 1 / SYMBOLS
    return probs


WORLDS: dict[str, Callable[[], Tensor]] = {"chain": chain, "copies": copies}


class Experiment:
    """A world, its teacher's function, and students of it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.masks = torch.full((1, LENGTH), world.mask_id)
        self.seeds = row_keys(0, Stream.REFLOW, 0, torch.arange(PAIRS)).abs()
        self.texts = self.write(world.denoiser(), self.seeds, LENGTH)

    def write(self, denoiser: Any, seeds: Tensor, calls: int) -> Tensor:
        """The text (B, L) that a denoiser makes of the noise of ``seeds`` (B,) in so many calls."""
        sampler = get_sampler("coupled")(denoiser, SCHEDULE, self.world.mask_id, SamplerSettings(calls))
        written = []
        for some in seeds.split(AT_ONCE):  # large batches spend their time in allocating memory
            noise = some.unsqueeze(-1).expand(-1, LENGTH)
            done = sampler.sample(self.masks.expand_as(noise), 1.0, noise, KeyedDraws(some))
            written.append(done.tokens)
        return torch.cat(written)

    def distance(self, denoiser: Any, calls: int, stream: int) -> float:
        """Total variation of fresh samples from the data."""
        tokens = self.write(denoiser, row_keys(stream, Stream.SAMPLE, 0, torch.arange(SAMPLES)), calls)
        return total_variation(self.world.frequencies(tokens).double(), self.world.data_distribution)

    def student(self, seed: int, updates: int, settings: dict[str, Any]) -> BoundDenoiser:
        """A network trained on the pairs of this world."""
        world = self.world
        context = Context(world.vocab_size, world.mask_id, seed=seed)
        objective = ImCoupled(ImCoupledSettings(**settings), context)
        noise = MaskNoiseConfig(noise_type="coupled", noise_dim=objective.coupling.channels)
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)
            shape = {"hidden_size": 64, "cond_dim": 8, "n_blocks": 2, "n_heads": 2, "length": LENGTH}
            net = DiT(BackboneConfig(world.vocab_size, world.mask_id, **shape, dropout=0.0, mask_noise=noise))
        optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=updates)
        rows = torch.arange(BATCH)
        for step in range(updates):
            some = random_bits(row_keys(seed, Stream.DATA_ORDER, step, rows), 1).squeeze(1) % PAIRS
            batch = {"input_ids": self.texts[some], "row": rows, "seed": self.seeds[some]}
            batch["xt"] = self.masks.expand(BATCH, -1)
            batch["attention_mask"] = torch.ones_like(batch["xt"], dtype=torch.bool)
            batch["t"] = torch.ones(BATCH, dtype=torch.float64)
            loss = objective.loss(net, batch, step=step, num_rows=BATCH, training=True).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        return BoundDenoiser(objective, net.eval())

    def measure(self, denoiser: Any, seed: int) -> dict[str, Any]:
        """Distances from the data by the number of calls; how often one call writes the teacher's token."""
        seeds = row_keys(seed + 1000, Stream.SAMPLE, 1, torch.arange(HELD_OUT)).abs()
        taught = self.write(self.world.denoiser(), seeds, LENGTH)
        same = float((self.write(denoiser, seeds, 1) == taught).double().mean())
        distances = {str(calls): round(self.distance(denoiser, calls, seed), 4) for calls in (1, 2, 3)}
        return {"same_token": round(same, 4), "total_variation": distances}


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--worlds", nargs="+", choices=list(WORLDS), default=list(WORLDS))
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--out", type=Path, default=Path("outputs/coupled_worlds.json"))
    options = parser.parse_args()
    found: list[dict[str, Any]] = []
    for name in options.worlds:
        experiment = Experiment(World(WORLDS[name]()))
        own = experiment.measure(experiment.world.denoiser(), 1)
        found.append({"world": name, "model": "exact, one mask", "seed": 1, **own})
        print(json.dumps(found[-1]), flush=True)
        for variant in options.variants:
            settings = VARIANTS[variant]
            for seed in range(1, 1 + (options.seeds if variant == "coupled" else 1)):
                started = time.perf_counter()
                result = experiment.measure(experiment.student(seed, options.updates, settings), seed)
                seconds = round(time.perf_counter() - started)
                found.append({"world": name, "model": variant, "seed": seed, "seconds": seconds, **result})
                print(json.dumps(found[-1]), flush=True)
    write_json(options.out, {"updates": options.updates, "batch": BATCH, "found": found})


if __name__ == "__main__":
    main()
