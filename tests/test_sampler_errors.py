"""The study of what samplers do to a distribution: its enumeration against samples, its numbers, its page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion.noise import get_schedule
from diffusion.randomness import row_keys
from samplers import KeyedDraws, SamplerSettings, certainty, get_sampler, p2, remdm
from scripts.samplers import errors
from scripts.samplers.distribution import parallel_distribution, planned_distribution
from tests.worlds import World, random_probs, total_variation, tv_noise

SCHEDULE = get_schedule("log-linear", 1e-3)
NUM_SAMPLES = 6000


@pytest.mark.parametrize(
    ("name", "own", "order", "more"),
    [
        ("p2", p2.Settings(2.0), "random", {}),
        ("confidence", certainty.Settings(drawn=True), "random", {}),
        ("entropy", certainty.Settings(budget=0.6), "random", {"temperature": 0.6}),
        ("ancestral", None, "spread", {}),
        ("first_hitting_parallel", None, "random", {}),
        ("remdm", remdm.Settings("rescale", 0.3), "random", {}),
    ],
)
def test_enumerated_is_what_is_sampled(name: str, own: Any, order: str, more: dict[str, Any]) -> None:
    world = World(random_probs(2, 4, contrast=2.5), mask_id=1)
    case = errors.Case("", name, own, order, tuple(more.items()))
    distribution, calls = errors.distribution_of(case, world, 3)
    assert (
        float(distribution.sum()) == pytest.approx(1)
        and float(distribution[world.data_distribution == 0].sum()) < 1e-9
    )
    sampler = get_sampler(name, order=order)(
        world.denoiser(), SCHEDULE, 1, SamplerSettings(3, own=own, **more)
    )
    draws = KeyedDraws(row_keys(0, 2, 0, torch.arange(NUM_SAMPLES)))
    samples = sampler.sample(torch.full((NUM_SAMPLES, 4), 1), 1.0, None, draws)
    assert total_variation(world.frequencies(samples.tokens).double(), distribution) < tv_noise(
        distribution, NUM_SAMPLES
    )
    assert float(samples.nfe.double().mean()) == pytest.approx(calls, abs=0.06)


def test_a_token_a_call_is_exact_in_any_order() -> None:
    world = World(random_probs(2, 4))
    assert total_variation(parallel_distribution(world, 4)[0], world.data_distribution) < 1e-12
    for name in ("confidence", "margin", "entropy"):
        sampler = get_sampler(name)(world.denoiser(), SCHEDULE, 2, SamplerSettings(4))
        distribution, calls = planned_distribution(world, sampler)
        assert total_variation(distribution, world.data_distribution) < 1e-12 and calls == pytest.approx(4)


def test_numbers_by_hand() -> None:
    """Two equal bits, drawn apart: each of four words 1/4; drawn both as 0: half of the data is lost."""
    world = World(torch.tensor([[0.5, 0.0], [0.0, 0.5]]))
    distribution = torch.zeros_like(world.data_distribution)
    distribution[world.encode(world.words, 3)] = 0.25
    found = errors.error(world, (distribution, 1.0))
    log2 = float(torch.tensor(2.0).log())
    assert (found.tv, found.no_data, found.support_lost) == (0.5, 0.5, 0.0)
    assert found.kl == pytest.approx(log2) and found.entropy_lost == pytest.approx(-log2)
    distribution = torch.zeros_like(distribution)
    distribution[0] = 1.0
    found = errors.error(world, (distribution, 1.0))
    assert (found.tv, found.support_lost, found.kl) == (0.5, 0.5, float("inf"))
    assert found.entropy_lost == pytest.approx(log2)


def test_the_page_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worlds = {name: World(random_probs(2, 3, seed=seed)) for seed, name in enumerate("ab")}
    monkeypatch.setattr(errors, "worlds", lambda: worlds)
    monkeypatch.setattr(errors, "CASES", (errors.Case("plain", "ancestral"), errors.Case("sure", "entropy")))
    monkeypatch.setattr(errors, "CALLS", (1, 2))
    monkeypatch.setattr(errors, "SHOWN", (2,))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{errors.BEGIN}\nold\n{errors.END}\nafter\n")
    errors.main(["--page", str(page)])
    lines = page.read_text().splitlines()
    assert lines[0] == "before" and lines[-1] == "after" and "old" not in lines
    assert sum(line.startswith(("| plain | 2 | 2.0 |", "| sure | 2 | 2.0 |")) for line in lines) == 2
    assert (tmp_path / "page.png").stat().st_size > 5000
