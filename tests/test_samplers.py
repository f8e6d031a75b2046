"""The distributions of samplers, judged on worlds small enough to enumerate.

Every comparison of an empirical distribution of n draws uses ``tv_noise``: a bound that a right sampler
exceeds with probability below 4e-5 (at most 0.022 for 27 outcomes and 50,000 draws). Seeds are fixed: no
result flickers.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion.noise import Schedule, get_schedule
from diffusion.randomness import row_keys
from samplers import KeyedDraws, SamplerSettings, Samples, get_sampler, sampler_names
from samplers.ancestral import decide
from tests.worlds import NoisyWorld, World, random_probs, total_variation, tv_noise

ABSORBING = sampler_names()
TRAITS = {name: get_sampler(name).traits for name in ABSORBING}
EXACT = [name for name in ABSORBING if TRAITS[name].exact != "sharpens"]  # the data's, in the limit at least
OF_THE_PROCESS = [name for name in EXACT if not TRAITS[name].own_order]  # mask noise and times too
NUM_SAMPLES = 50_000
FEWER = 25_000  # for samplers that take 64 steps
SCHEDULES = ["log-linear", "cosine"]


def run(
    name: str,
    world: World | NoisyWorld,
    schedule: Schedule,
    xt: Tensor,
    t: Tensor | float = 1.0,
    **settings: object,
) -> Samples:
    """Sample from ids ``xt`` (B, L) with keyed draws."""
    denoiser = world.denoiser()
    rows = torch.arange(len(xt))
    mask_seeds = denoiser.draw_seeds(row_keys(0, 1, 0, rows), world.length)
    sampler = get_sampler(name)(denoiser, schedule, world.mask_id, SamplerSettings(**settings))
    return sampler.sample(xt, t, mask_seeds, KeyedDraws(row_keys(0, 2, 0, rows)))


def masked(world: World | NoisyWorld, num_samples: int = NUM_SAMPLES) -> Tensor:
    return torch.full((num_samples, world.length), world.mask_id)


def grid_alphas(schedule: Schedule, num_steps: int, t: float = 1.0, eps: float = 1e-5) -> list[float]:
    """alpha at the times of the ancestral grid; the last step goes to clean data."""
    times = t * (1 - (1 - eps) * torch.arange(num_steps, dtype=torch.float64) / num_steps)
    return [*schedule.alpha(times).tolist(), 1.0]


def assert_distribution(
    world: World | NoisyWorld, tokens: Tensor, distribution: Tensor, allowance: float = 0.0
) -> None:
    distance = total_variation(world.frequencies(tokens).double(), distribution)
    assert distance < tv_noise(distribution, len(tokens)) + allowance


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", EXACT)
def test_exact_denoiser_gives_the_data(name: str, schedule: str) -> None:
    world, num_steps = World(random_probs(3, 3), mask_id=1), 64
    schedule = get_schedule(schedule, 1e-3)
    # 64 steps of a grid are off by 0.006 to 0.008 in truth, one by 0.39.
    assert (
        total_variation(world.distribution(grid_alphas(schedule, num_steps)), world.data_distribution) < 0.01
    )
    samples = run(name, world, schedule, masked(world, FEWER), num_steps=num_steps)
    assert world.total_variation(samples.tokens) < tv_noise(world.data_distribution, FEWER) + 0.01


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", OF_THE_PROCESS)
def test_mask_noise_gives_the_continuous_distribution(name: str, schedule: str) -> None:
    # The distribution in continuous time, to 1e-3: twice the steps take half of the grid's error away.
    world, num_steps = NoisyWorld(), 64
    schedule = get_schedule(schedule, 1e-3)
    coarse, fine = (world.distribution(grid_alphas(schedule, n)) for n in (250, 500))
    distribution = 2 * fine - coarse
    assert total_variation(distribution, world.distribution(grid_alphas(schedule, num_steps))) < 0.01
    assert (
        total_variation(distribution, world.distribution(grid_alphas(schedule, num_steps), reset=False)) > 0.1
    )
    samples = run(name, world, schedule, masked(world, FEWER), num_steps=num_steps)
    assert_distribution(world, samples.tokens, distribution, allowance=0.01)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_ancestral_distribution_at_few_steps(num_steps: int, schedule: str) -> None:
    world, schedule = World(random_probs(3, 3)), get_schedule(schedule, 1e-3)
    samples = run("ancestral", world, schedule, masked(world), num_steps=num_steps)
    assert_distribution(world, samples.tokens, world.distribution(grid_alphas(schedule, num_steps)))


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize(("num_steps", "t"), [(2, 1.0), (4, 1.0), (4, 0.6)])
def test_ancestral_distribution_with_mask_noise_at_few_steps(num_steps: int, t: float, reset: bool) -> None:
    world, schedule = NoisyWorld(mask_id=0), get_schedule("log-linear", 1e-3)
    alphas = grid_alphas(schedule, num_steps, t)
    distribution, other = world.distribution(alphas, reset=reset), world.distribution(alphas, reset=not reset)
    assert total_variation(distribution, other) > 0.06  # what a wrong switch would show
    samples = run("ancestral", world, schedule, masked(world), t, num_steps=num_steps, reset=reset)
    assert_distribution(world, samples.tokens, distribution)


@pytest.mark.parametrize("reset", [True, False])
def test_first_hitting_distribution_with_and_without_resets(reset: bool) -> None:
    world, schedule = NoisyWorld(seed=3), get_schedule("cosine", 1e-3)
    coarse, fine = (world.distribution(grid_alphas(schedule, n, t=0.7), reset=reset) for n in (250, 500))
    samples = run("first_hitting", world, schedule, masked(world), 0.7, num_steps=1, reset=reset)
    assert_distribution(world, samples.tokens, 2 * fine - coarse, allowance=1e-3)


@pytest.mark.parametrize("name", OF_THE_PROCESS)
def test_rows_with_their_own_times_and_masks(name: str) -> None:
    # Three kinds of rows, interleaved in one batch: all masked at t = 1, two masks at 0.4, none at 0.2.
    world, schedule, m = NoisyWorld(seed=1), get_schedule("log-linear", 1e-3), 3
    starts, times = [[m, m, m], [0, m, m], [2, 1, 0]], [1.0, 0.4, 0.2]
    xt = torch.tensor(starts).repeat(FEWER, 1)
    t = torch.tensor(times, dtype=torch.float64).repeat(FEWER)
    tokens = run(name, world, schedule, xt, t, num_steps=64).tokens
    for kind, (start, time) in enumerate(zip(starts, times, strict=True)):
        distribution = world.distribution(grid_alphas(schedule, 250, time), start=start)
        assert_distribution(world, tokens[kind::3], distribution, allowance=0.01)


@pytest.mark.parametrize("start", [None, [0, 3, 3]])
def test_one_step_misses_the_data_by_the_total_correlation(start: list[int] | None) -> None:
    world, schedule = World(random_probs(3, 3)), get_schedule("log-linear", 1e-3)
    distribution = world.distribution([1e-3, 1.0], start=start)
    truth = world.data_distribution * (distribution > 0)
    truth = truth / truth.sum()
    price = float((torch.special.xlogy(truth, truth) - torch.special.xlogy(truth, distribution)).sum())
    assert price == pytest.approx(world.total_correlation(start), abs=1e-12)
    assert price > 0.1
    xt = masked(world) if start is None else torch.tensor(start).expand(NUM_SAMPLES, -1)
    tokens = run("ancestral", world, schedule, xt, num_steps=1).tokens
    assert_distribution(world, tokens, distribution)
    # The same price from samples. Its standard error is sqrt(sum truth^2 / distribution / n) < 0.01.
    sampled = world.frequencies(tokens).double()
    seen = truth > 0
    assert float((truth[seen] * (truth[seen] / sampled[seen]).log()).sum()) == pytest.approx(price, abs=0.04)


def test_temperature_and_nucleus_shape_tokens_only() -> None:
    # One position: the distribution is the tempered, cut one whatever the number of steps.
    world, schedule = World(torch.tensor([0.5, 0.3, 0.15, 0.05])), get_schedule("log-linear", 1e-3)
    sharp = world.probs**2 / (world.probs**2).sum()
    cases = [
        ({"temperature": 0.5}, sharp),
        ({"p_nucleus": 0.7}, torch.tensor([0.625, 0.375, 0.0, 0.0])),
        ({"temperature": 0.5, "p_nucleus": 0.9}, sharp * (world.probs > 0.2) / sharp[:2].sum()),
    ]
    for name in EXACT:
        for settings, distribution in cases:
            tokens = run(name, world, schedule, masked(world, 20_000), num_steps=8, **settings).tokens
            distribution = torch.cat([distribution.double(), torch.zeros(1)])
            assert_distribution(world, tokens, distribution)
            assert not (world.frequencies(tokens)[distribution == 0] > 0).any()


def test_dense_distribution_agrees_with_a_product_of_two_steps_by_hand() -> None:
    # The oracle itself: two positions that must be equal, two steps with alpha 0.2 -> 0.6 -> 1. They differ
    # exactly when both unmask in one step (0.5^2 each time) and their coins differ (1/2).
    world = World(torch.tensor([[0.5, 0.0], [0.0, 0.5]]))
    distribution = world.distribution([0.2, 0.6, 1.0])
    differ = distribution[world.encode(torch.tensor([[0, 1], [1, 0]]), 3)].sum()
    assert float(differ) == pytest.approx(0.5 * (0.25 + 0.25))
    for alpha_t, alpha_s in pairwise([0.1, 0.4, 0.9]):
        rows = NoisyWorld().transition(alpha_t, alpha_s, True).sum(-1)
        torch.testing.assert_close(rows, torch.ones_like(rows))


def test_decisions_follow_the_posterior() -> None:
    # Evenly spaced uniforms reproduce the three probabilities to one part in n; the golden numbers are the
    # whole official posterior, tokens and keep in one row, reset last.
    golden = np.load(Path(__file__).parent / "golden" / "imdm_posterior.npz", allow_pickle=False)
    alpha_t, alpha_s = (torch.from_numpy(golden[k][:, 0]).double() for k in ("alpha_t", "alpha_s"))
    n, mask_id = 100_000, golden["imdm_f64"].shape[-1] - 2
    uniforms = ((torch.arange(n, dtype=torch.float64) + 0.5) / n).expand(len(alpha_t), n)
    decision = decide(torch.ones_like(uniforms, dtype=torch.bool), alpha_t, alpha_s, uniforms)
    assert not (decision.unmask & decision.reset).any()
    is_masked = golden["xt"] == mask_id
    official = golden["imdm_f64"]
    for row in range(len(alpha_t)):
        expected = official[row][is_masked[row]].mean(0)
        tokens = golden["x_prob"][row][is_masked[row]].astype(np.float64).mean(0)
        unmask, reset = (float(d[row].double().mean()) for d in (decision.unmask, decision.reset))
        np.testing.assert_allclose(unmask * tokens[:mask_id], expected[:mask_id], atol=2e-5)
        np.testing.assert_allclose(reset, expected[-1], atol=2e-5)
        np.testing.assert_allclose(1 - unmask - reset, expected[mask_id], atol=2e-5)


def test_unmasked_positions_are_never_decided_on() -> None:
    uniforms = torch.tensor([[0.0, 0.999999]], dtype=torch.float64)
    alphas = torch.tensor([0.2], dtype=torch.float64), torch.tensor([0.6], dtype=torch.float64)
    masked, clean = torch.tensor([[True, True]]), torch.tensor([[False, False]])
    assert decide(masked, *alphas, uniforms).unmask.tolist() == [[True, False]]
    assert decide(masked, *alphas, uniforms).reset.tolist() == [[False, True]]
    assert not (decide(clean, *alphas, uniforms).unmask | decide(clean, *alphas, uniforms).reset).any()


def test_model_without_mask_noise_and_empty_batch() -> None:
    world, schedule = World(random_probs(3, 3)), get_schedule("log-linear", 1e-3)
    for name in ABSORBING:
        samples = run(name, world, schedule, masked(world, 2), num_steps=4)
        assert samples.mask_seeds is None and not (samples.tokens == world.mask_id).any()
        empty = run(name, world, schedule, masked(world, 0), num_steps=4)
        assert empty.tokens.shape == (0, 3) and empty.forward_passes == 0
