"""The study of what first hitting saves: its formula against counted calls, and a run at toy size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench import first_hitting
from bench.first_hitting import expected_calls
from diffusion.noise import get_schedule
from diffusion.randomness import row_keys
from samplers import KeyedDraws, SamplerSettings, Samples, get_sampler
from tests.worlds import World, random_probs

pytestmark = pytest.mark.slow

BATCH, BATCHES, ROWS = 4, 60, 4000


@pytest.mark.parametrize("name", ["log-linear", "cosine"])
@pytest.mark.parametrize("num_steps", [4, 16])
def test_formula_is_what_is_counted(name: str, num_steps: int) -> None:
    """Calls of a row, and forward passes of a batch. Each count is a sum of indicators that are negatively
    correlated (a mask unmasks once), so its variance is at most its mean: 4.5 standard errors are allowed."""
    world, schedule = World(random_probs(3, 4)), get_schedule(name, 1e-3)
    sampler = get_sampler("ancestral_cache")(
        world.denoiser(), schedule, world.mask_id, SamplerSettings(num_steps)
    )

    def sample(rows: Tensor) -> Samples:
        xt = torch.full((len(rows), world.length), world.mask_id)
        return sampler.sample(xt, 1.0, None, KeyedDraws(row_keys(0, 2, 0, rows)))

    calls = sample(torch.arange(ROWS)).nfe.double()
    batches = torch.arange(BATCH * BATCHES).split(BATCH)
    passes = torch.tensor([sample(rows).forward_passes for rows in batches]).double()
    for found, masks in ((calls, world.length), (passes, BATCH * world.length)):
        expected = expected_calls(schedule, num_steps, masks)
        assert float(found.mean()) == pytest.approx(expected, abs=4.5 * (expected / len(found)) ** 0.5)


def test_formula_at_its_ends() -> None:
    schedule = get_schedule("log-linear", 1e-3)
    assert expected_calls(schedule, 1, 7) == pytest.approx(1)
    assert expected_calls(schedule, 16, 100_000) == pytest.approx(16)
    # On a fine grid no two tokens share a step: as many calls as tokens, first hitting's number.
    assert expected_calls(schedule, 1_000_000, 64) == pytest.approx(64, rel=1e-4)
    # Uniform steps of 1 / N, all masks: N (1 - (1 - 1/N)^L).
    assert expected_calls(schedule, 10_000, 1024) == pytest.approx(1e4 * (1 - (1 - 1e-4) ** 1024), rel=1e-3)


def test_the_tables_are_written(tmp_path: Path) -> None:
    toy = ["model.length=8", "model.hidden_size=8", "model.n_heads=2", "model.n_blocks=1"]
    sizes = ["--vocab", "12", "--batch", "2", "--plain", "4", "--steps", "4", "32"]
    first_hitting.main([*sizes, "--out", str(tmp_path / "table.md"), *toy])
    text = (tmp_path / "table.md").read_text()
    assert "2 x 8 ids" in text and "8 calls a row" in text
    lines = [line for line in text.splitlines() if line.startswith("| 32 |")]
    assert len(lines) == 2 and "~" in lines[0]  # measured at 4 steps, 8 times that at 32
    assert "| 4 | ~" not in text
