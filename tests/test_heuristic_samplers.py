"""Samplers that choose, remask, take back: their distributions by enumeration, their limits, their settings.

Empirical distributions are held to ``tv_noise`` (see tests/worlds.py). Seeds are fixed: no result flickers.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from config.cli import compose_config
from diffusion.noise import get_schedule
from diffusion.randomness import row_keys
from diffusion.uniform import uniform_reverse
from samplers import KeyedDraws, SamplerSettings, Samples, certainty, get_sampler, p2, psi, remdm
from samplers.base import OnStep
from tests.test_algo import build
from tests.worlds import NoisyWorld, UniformWorld, World, posterior, random_probs, total_variation, tv_noise

SCHEDULE = get_schedule("log-linear", 1e-3)
NUM_SAMPLES = 8_000
M = 3


def run(
    name: str,
    world: Any,
    xt: Tensor,
    t: Tensor | float = 1.0,
    family: str = "absorbing",
    on_step: OnStep | None = None,
    **settings: Any,
) -> Samples:
    rows, denoiser = torch.arange(len(xt)), world.denoiser()
    mask_seeds = denoiser.draw_seeds(row_keys(0, 1, 0, rows), xt.shape[1])
    sampler = get_sampler(name, family)(denoiser, SCHEDULE, M, SamplerSettings(**settings))
    return sampler.sample(xt, t, mask_seeds, KeyedDraws(row_keys(0, 2, 0, rows)), on_step=on_step)


def masks(number: int = NUM_SAMPLES, length: int = 3) -> Tensor:
    return torch.full((number, length), M)


def path(name: str, world: Any, xt: Tensor, **settings: Any) -> Tensor:
    """The ids after each step, (steps, B, L)."""
    seen: list[Tensor] = []
    run(name, world, xt, on_step=lambda step, _, now: seen.append(now.x), **settings)
    return torch.stack(seen)


# Remasking ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("removal", ["ancestral", "greedy", "none", "tail", "greedy_tail"])
@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("remdm", remdm.Settings(eta=0.0)),
        ("remdm", remdm.Settings("conf", eta=0.0)),
        ("psi", psi.Settings("linear", "pure-posterior", "constant-1.0", "max-capped-0.0")),
    ],
)
def test_without_remasking_it_is_the_process_draw_by_draw(name: str, own: Any, removal: str) -> None:
    world, xt = NoisyWorld(), torch.tensor([[M, M, M], [M, 1, M], [0, M, 2], [2, 0, 1]]).repeat(100, 1)
    settings = {"num_steps": 6, "noise_removal": removal}
    plain, same = run("ancestral", world, xt, **settings), run(name, world, xt, own=own, **settings)
    assert torch.equal(plain.tokens, same.tokens) and torch.equal(plain.mask_seeds, same.mask_seeds)
    assert (plain.nfe == (7 if removal.endswith("tail") else 6)).all() and torch.equal(plain.nfe, same.nfe)


def remasking_distribution(
    world: World, alphas: list[float], sigmas: list[float], given: list[bool]
) -> Tensor:
    """By the matrices of ReMDM's equation for q(z_s | z_t, x), from all masks but ``given`` symbols 0."""
    is_symbol = world.digits < world.num_symbols
    distribution = (world.digits == torch.where(torch.tensor(given), 0, world.num_symbols)).all(-1).double()
    eye = torch.eye(world.num_symbols + 1, dtype=torch.float64)
    mask = eye[-1]
    for alpha_t, alpha_s, sigma in zip(alphas[:-1], alphas[1:], sigmas, strict=True):
        clean = torch.cat([world.table, torch.zeros_like(world.table[..., :1])], -1)
        unmask = (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t)
        of_masks = unmask * clean + (1 - unmask) * mask
        of_tokens = (1 - sigma) * eye[world.digits] + sigma * mask
        moves = torch.where(is_symbol.unsqueeze(-1), of_tokens, of_masks)
        moves[:, torch.tensor(given)] = eye[world.digits][:, torch.tensor(given)]
        matrix = torch.ones(len(distribution), 1, dtype=torch.float64)
        for position in range(world.length):
            matrix = (matrix.unsqueeze(-1) * moves[:, position].unsqueeze(1)).flatten(1)
        distribution = distribution @ matrix
    return distribution


def grid(num_steps: int) -> Tensor:
    return 1 - (1 - 1e-5) * torch.arange(num_steps + 1, dtype=torch.float64) / num_steps


@pytest.mark.parametrize("kind", ["cap", "rescale", "psi", "loop"])
def test_remasking_has_its_distribution(kind: str) -> None:
    """Six steps, with one position given; and what no remasking would give is far off."""
    world, num_steps, given = World(random_probs(3, 3)), 6, [False, True, False]
    alphas = SCHEDULE.alpha(grid(num_steps))
    most = (1 - alphas[1:]) / alphas[:-1]
    name, own, sigma = {
        "cap": ("remdm", remdm.Settings("cap", 0.3), most.clamp(max=0.3)),
        "rescale": ("remdm", remdm.Settings("rescale", 0.3), most.clamp(max=1) * 0.3),
        "psi": ("psi", psi.Settings("linear", *["constant-0.4"] * 3), 0.6 * (1 - alphas[1:])),
        "loop": ("remdm", remdm.Settings("loop", 0.1, t_on=0.6, t_off=0.2, alpha_on=0.8), None),
    }[kind]
    if sigma is None:  # times 1, 5/6, 4/6, 3/6, 2/6, 1/6: from 0.6 to 0.2 alpha is 0.8
        alphas = torch.tensor([1e-3, 0.8 / 0.4 / 6, 0.8 / 0.4 / 3, 0.8, 0.8, 1 - 0.2 / 0.2 / 6, 1.0])
        sigma = torch.tensor([0, 0, 0, 0.1, 0.1, 0.0])
    alphas, sigma = [*alphas.tolist()[:-1], 1.0], [*sigma.tolist()[:-1], 0.0]
    distribution = remasking_distribution(world, alphas, sigma, given)
    xt = torch.tensor([M, 0, M]).expand(NUM_SAMPLES, -1)
    samples = run(name, world, xt, num_steps=num_steps, own=own)
    assert (samples.tokens[:, 1] == 0).all() and (samples.nfe == 6).all()
    assert total_variation(world.frequencies(samples.tokens).double(), distribution) < tv_noise(
        distribution, NUM_SAMPLES
    )
    steps = path(name, world, xt, num_steps=num_steps, own=own)
    # Whatever is remasked, as many masks are left as in the process.
    left = (1 - torch.tensor(alphas[1:])) / (1 - alphas[0])
    noise = 4.5 * 0.5 / (2 * NUM_SAMPLES) ** 0.5
    found = (steps == M)[..., [0, 2]].double().mean((1, 2))
    torch.testing.assert_close(found, left.double(), rtol=0, atol=noise)
    taken_back = (steps[:-1] != M) & (steps[1:] == M)
    expected = [0.0] * 5  # E[tokens that are remasked], of the two that are free
    for step in range(1, 6):
        before = remasking_distribution(world, alphas[: step + 1], sigma[:step], given)
        there = (world.digits[:, [0, 2]] < world.num_symbols).double().mean(-1)
        expected[step - 1] = float(before @ there) * sigma[step]
    found = taken_back[..., [0, 2]].double().mean((1, 2))
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=0, atol=noise)
    assert max(expected) > 0.03


def test_conf_takes_back_what_was_unlikely() -> None:
    """It remembers the probability of what it wrote, and shares sigma_max out by softmax(-p)."""
    world = World(torch.tensor([0.9, 0.1]).double()[:, None] * torch.tensor([0.5, 0.5]).double())
    settings = SamplerSettings(num_steps=6, own=remdm.Settings("conf"))
    sampler, states = get_sampler("remdm")(world.denoiser(), SCHEDULE, 2, settings), []
    xt = torch.tensor([[2, 2], [2, 0]]).repeat(150, 1)
    draws = KeyedDraws(row_keys(0, 2, 0, torch.arange(300)))
    sampler.sample(xt, 1.0, None, draws, on_step=lambda k, _, now: states.append(now))
    likely = torch.tensor([[0.9, 0.5], [0.1, 0.5]]).double()
    alpha_t, alpha_s = (SCHEDULE.alpha(torch.tensor([[t]]).double()) for t in (0.3, 0.15))
    for state in states[1:4]:
        here = (state.x != 2) & ~state.fixed
        p = likely[state.x.clamp(max=1), torch.arange(2)]
        torch.testing.assert_close(state.memory.probability[here], p[here])
        share = (-p).exp() * here
        expected = (1 - alpha_s) / alpha_t * share / share.sum(-1, keepdim=True)
        found = sampler.remask(2, state, alpha_t, alpha_s)
        torch.testing.assert_close(found[here], expected[here])
        assert (found[~here] == 0).all() and here.any()


def test_the_loop_returns_to_its_level() -> None:
    times = remdm.ReMDM(
        World(random_probs(3, 2)).denoiser(), SCHEDULE, M, SamplerSettings(256, own=remdm.Settings("loop"))
    )._loop
    alpha = SCHEDULE.alpha(torch.tensor(times).double())
    still = alpha.sub(0.9).abs() < 1e-9
    assert still.sum() == pytest.approx(0.5 * 257, abs=1.5) and (alpha.diff() >= -1e-12).all()
    assert float(alpha[0]) == pytest.approx(1e-3) and float(alpha[-1]) > 0.9999


# Psi of uniform noise -----------------------------------------------------------------------------


@pytest.mark.parametrize("kappa", [0.0, 0.6])
def test_psi_of_uniform_noise_has_its_distribution(kappa: float) -> None:
    world, num_steps = UniformWorld(), 3
    alphas = [*SCHEDULE.alpha(grid(num_steps))[:-1].tolist(), 1.0]
    distribution, rates = torch.full((27,), 1 / 27, dtype=torch.float64), []
    for alpha_t, alpha_s in zip(alphas[:-1], alphas[1:], strict=True):
        x = world.table(alpha_t)
        direct = posterior(x, world.words, alpha_t, alpha_s)
        noised = alpha_s * posterior(x, world.words, alpha_t, 1.0) + (1 - alpha_s) / 3
        moves = kappa * direct + (1 - kappa) * noised
        stays = [m.gather(-1, world.words.unsqueeze(-1)).mean((1, 2)) for m in (moves, direct)]
        rates.append([1 - float(distribution @ stay) for stay in stays])
        distribution = distribution @ torch.stack(
            [moves[:, i][:, w] for i, w in enumerate(world.words.T)]
        ).prod(0)
    own = psi.Settings("linear", *[f"constant-{kappa}"] * 3)
    xt = world.words[torch.arange(8100) % 27]
    samples = run("psi", world, xt, family="uniform", num_steps=num_steps, own=own)
    assert total_variation(world.frequencies(samples.tokens), distribution) < tv_noise(distribution, len(xt))
    # The marginals hardly differ from those of plain steps: how much changes in each step does.
    ids = torch.stack([xt, *path("psi", world, xt, family="uniform", num_steps=num_steps, own=own)])
    found = (ids[1:] != ids[:-1]).double().mean((1, 2))
    expected, plain = torch.tensor(rates).double().T
    torch.testing.assert_close(found, expected, rtol=0, atol=0.015)
    assert (expected - plain)[:-1].abs().max() > 0.05
    own = psi.Settings("linear", *["constant-1.0"] * 3)
    same = run("psi", world, xt[:500], family="uniform", num_steps=3, own=own)
    assert torch.equal(same.tokens, run("ancestral", world, xt[:500], family="uniform", num_steps=3).tokens)


def test_the_mixture_sums_to_one_and_keeps_the_most_at_least() -> None:
    world = UniformWorld()
    sampler = get_sampler("psi", "uniform")(world, SCHEDULE, M, SamplerSettings(32))
    alphas = torch.tensor([[0.2], [0.5]]).double()
    for step in (3, 17):
        for p in (0.0, 0.3, 1.0):
            mixed = sampler.mixture(step, alphas, p, 3)
            assert float(sum(mixed)) == pytest.approx(1.0)
            assert float(mixed.keep) >= float(sampler.mixture(step, alphas, 0.0, 1).keep) - 1e-12
    assert float(uniform_reverse(alphas[0], alphas[1], 0.3, 3).keep) > 0


def test_psi_times_and_kappas() -> None:
    """The published loop: 256 steps, alpha 0.9 in the middle, kappa = 1 - 0.01 / 0.1 there."""
    own = psi.Settings()
    times = psi.times(own, SCHEDULE, 256, 1e-5)
    found = psi.kappas(own, SCHEDULE, times)
    assert psi.parts(own, 257) == (116, 128, 13) and len(times) == len(found) == 257
    assert float(times[0]) == 1 and float(times[-1]) == pytest.approx(1e-5)
    middle = SCHEDULE.alpha(times[116:244])
    torch.testing.assert_close(middle, torch.full_like(middle, 0.9))
    torch.testing.assert_close(found[116:243], torch.full((127,), 0.9).double())
    assert (found[:116] == 1).all() and (found[243:] == 1).all()
    linear = psi.Settings("linear", *["max-capped-0.01"] * 3, 0.0, 0.0)
    times = psi.times(linear, SCHEDULE, 4, 1e-5)
    sigma = (1 - psi.kappas(linear, SCHEDULE, times)[:-1]) * (1 - SCHEDULE.alpha(times[1:]))
    torch.testing.assert_close(sigma, torch.tensor([0.01, 0.01, 0.01, 1e-5 * 0.999]).double())


# The most certain first ---------------------------------------------------------------------------


def planned_distribution(world: World, sampler: certainty.Certainty) -> Tensor:
    """The distribution of a sampler whose choice follows from what is visible, by asking it in all states."""
    ids = torch.cat([world.symbols, torch.tensor([world.mask_id])])[world.digits]
    distribution = (world.digits == world.num_symbols).all(-1).double()
    eye = torch.eye(world.num_symbols + 1, dtype=torch.float64)
    clean = torch.cat([world.table, torch.zeros_like(world.table[..., :1])], -1)
    for step in range(sampler.settings.num_steps):
        some = (ids == world.mask_id).any(-1).nonzero().squeeze(1)
        state = samplers_state(ids[some])
        draws = KeyedDraws(torch.arange(len(some)))
        due = torch.zeros_like(ids, dtype=torch.bool)
        due[some] = sampler.choose(step, state, sampler.predict(state), draws)
        moves = torch.where(due.unsqueeze(-1), clean, eye[world.digits])
        matrix = torch.ones(len(distribution), 1, dtype=torch.float64)
        for position in range(world.length):
            matrix = (matrix.unsqueeze(-1) * moves[:, position].unsqueeze(1)).flatten(1)
        distribution = distribution @ matrix
    return distribution


def samplers_state(ids: Tensor) -> Any:
    from samplers import State

    return State(ids, torch.full((len(ids),), 0.5, dtype=torch.float64), None)


@pytest.mark.parametrize("name", ["confidence", "margin", "entropy"])
@pytest.mark.parametrize(
    "own", [{}, {"threshold": 0.5}, {"factor": 1.0}, {"budget": 1.5}, {"block_length": 2}]
)
def test_certainty_has_its_distribution_at_few_calls(name: str, own: dict[str, Any]) -> None:
    world = World(random_probs(3, 4, seed=1))
    settings = SamplerSettings(2, own=certainty.Settings(**own))
    distribution = planned_distribution(world, get_sampler(name)(world.denoiser(), SCHEDULE, M, settings))
    assert float(distribution.sum()) == pytest.approx(1)
    samples = run(name, world, masks(length=4), num_steps=2, own=settings.own)
    assert total_variation(world.frequencies(samples.tokens).double(), distribution) < tv_noise(
        distribution, NUM_SAMPLES
    )
    assert (samples.nfe <= 2).all() and not (samples.tokens == M).any()
    if not own:
        assert total_variation(distribution, world.data_distribution) > 0.05


def test_which_positions_are_certain() -> None:
    """Three positions with distributions of their own, chosen so that the three measures disagree."""
    distributions = torch.tensor(
        [[0.60, 0.40, 0.00, 0.00], [0.55, 0.15, 0.15, 0.15], [0.50, 0.48, 0.02, 0.00]], dtype=torch.float64
    )
    world = World(distributions[0][:, None, None] * distributions[1][:, None] * distributions[2], mask_id=4)
    first = {"confidence": 0, "margin": 1, "entropy": 0}
    for name, position in first.items():
        seen: list[Tensor] = []
        sampler = get_sampler(name)(world.denoiser(), SCHEDULE, 4, SamplerSettings(3))
        draws = KeyedDraws(torch.arange(4))
        xt = torch.full((4, 3), 4)
        sampler.sample(xt, 1.0, None, draws, on_step=lambda k, _, now, s=seen: s.append(now.x))
        assert ((seen[0] != 4).nonzero()[:, 1] == position).all(), name
    entropies = -(torch.special.xlogy(distributions, distributions)).sum(-1)
    order = entropies.sort().values
    for budget, calls in ((float(order[0]) - 0.01, 3), (float(order[0]) + 0.01, 2), (5.0, 1)):
        own = certainty.Settings(budget=budget)
        sampler = get_sampler("entropy")(world.denoiser(), SCHEDULE, 4, SamplerSettings(3, own=own))
        nfe = sampler.sample(torch.full((4, 3), 4), 1.0, None, KeyedDraws(torch.arange(4))).nfe
        assert (nfe == calls).all(), budget
    for threshold, calls in ((0.7, 3), (0.52, 2), (0.4, 1)):
        own = certainty.Settings(threshold=threshold)
        sampler = get_sampler("confidence")(world.denoiser(), SCHEDULE, 4, SamplerSettings(3, own=own))
        nfe = sampler.sample(torch.full((4, 3), 4), 1.0, None, KeyedDraws(torch.arange(4))).nfe
        assert (nfe == calls).all(), threshold


def test_blocks_go_from_the_left() -> None:
    world = World(random_probs(2, 6, seed=3))
    sampler = get_sampler("confidence")(
        world.denoiser(), SCHEDULE, 2, SamplerSettings(6, own=certainty.Settings(block_length=2))
    )
    seen: list[Tensor] = []
    xt = torch.full((50, 6), 2)
    xt[:, 3] = 0
    sampler.sample(xt, 1.0, None, KeyedDraws(torch.arange(50)), on_step=lambda k, _, now: seen.append(now.x))
    for x, done in zip(seen, [0, 2, 4, 4, 6], strict=True):
        assert not (x[:, :done] == 2).any()
    number = [int((x == 2).sum(-1).unique()) for x in seen]
    assert number == [4, 3, 2, 1, 0]
    assert all(not (x[:, 4:] != 2).any() for x in seen[:3])


def test_temperature_of_the_order_and_drawn_confidence() -> None:
    world, xt = World(random_probs(3, 3)), masks(4000)
    strict = path("confidence", world, xt, num_steps=3)[0] != M
    assert len(strict.unique(dim=0)) == 1
    loose = path("confidence", world, xt, num_steps=3, own=certainty.Settings(temperature=50.0))[0] != M
    assert (loose.double().mean(0) - 1 / 3).abs().max() < 4.5 * (2 / 9 / 4000) ** 0.5
    drawn = run("confidence", world, xt, num_steps=3, own=certainty.Settings(drawn=True)).tokens
    entropy = {
        kind: -torch.special.xlogy(distribution, distribution).sum()
        for kind, distribution in (
            ("drawn", world.frequencies(drawn).double()),
            ("data", world.data_distribution),
        )
    }
    assert float(entropy["drawn"]) < float(entropy["data"]) - 0.1  # it sharpens


# P2 -----------------------------------------------------------------------------------------------


def test_p2_counts_its_masks_and_takes_back() -> None:
    world = NoisyWorld(length=3)
    steps = path("p2", world, masks(2000), num_steps=3)
    assert [int((x == M).sum(-1).unique()) for x in steps] == [2, 1, 0]
    never = path("p2", world, masks(2000), num_steps=3, own=p2.Settings(eta=0.0))
    assert not ((never[:-1] != M) & (never[1:] == M)).any()

    class Doubtful(World):
        """The head says of visible positions what the others say: they can look wrong."""

        def __init__(self) -> None:
            super().__init__(random_probs(3, 4, contrast=3.0))
            for position in range(4):
                others = self.digits.clone()
                others[:, position] = 3
                self.table[:, position] = self.table[self.encode(others, 4), position]

    steps = path("p2", Doubtful(), masks(2000, 4), num_steps=4)
    assert ((steps[:-1] != M) & (steps[1:] == M)).any()
    assert [int((x == M).sum(-1).unique()) for x in steps] == [3, 2, 1, 0]
    given = masks(500, 4).clone()
    given[:, 0] = 1
    assert (path("p2", Doubtful(), given, num_steps=4)[..., 0] == 1).all()


# Tails, settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["absorbing", "uniform"])
def test_a_tail_is_one_more_call_behind_all_steps(family: str) -> None:
    world = World(random_probs(3, 3)) if family == "absorbing" else UniformWorld()
    xt = masks(2000) if family == "absorbing" else world.words[torch.arange(2000) % 27]
    plain, tail, greedy = (
        path("ancestral", world, xt, family=family, num_steps=4, noise_removal=removal)
        for removal in ("none", "tail", "greedy_tail")
    )
    assert len(plain) == 4 and len(tail) == len(greedy) == 5
    assert torch.equal(plain, tail[:4]) and torch.equal(plain, greedy[:4])
    one = run("ancestral", world, xt, family=family, num_steps=1, noise_removal="greedy_tail")
    assert (one.nfe == 2).all() and len(one.tokens.unique(dim=0)) > 10  # ordinary samples, unlike greedy
    if family == "absorbing":
        equal = run("ancestral", world, xt, num_steps=1, noise_removal="greedy").tokens
        assert len(equal.unique(dim=0)) == 1


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (
            "sampling.predictor=psi sampling.psi.high_mode=wild-1",
            "sampling.psi.high_mode=wild-1: no such mode",
        ),
        (
            "sampling.predictor=psi sampling.psi.low_mode=constant-2",
            "sampling.psi.low_mode=constant-2: no such",
        ),
        (
            "sampling.predictor=psi sampling.psi.time_profile=cubic",
            "sampling.psi.time_profile=cubic: no such",
        ),
        ("sampling.predictor=psi sampling.psi.high_frac=0.7", "sampling.psi.middle_frac=0.5: more than all"),
        ("sampling.predictor=remdm sampling.remdm.t_off=0.9", "sampling.remdm.t_off=0.9: not below"),
        (
            "sampling.predictor=margin sampling.certainty.threshold=0.9 sampling.certainty.budget=0.1",
            "sampling.certainty.budget=0.1: sampling.certainty.threshold says already",
        ),
        (
            "sampling.predictor=p2 sampling.noise_removal=tail",
            "sampling.noise_removal=tail: .* no such last step",
        ),
        (
            "sampling.predictor=remdm sampling.remdm.schedule=max",
            "sampling.remdm.schedule=max: unknown value",
        ),
        ("sampling.predictor=confidence sampling.order=spread", "sampling.order=spread: .* order of its own"),
    ],
)
def test_wrong_settings_are_found_when_the_model_is_built(words: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^{complaint}"):
        build("algo=mdlm", *words.split())


def test_settings_of_a_sampler_that_was_not_chosen_warn(caplog: pytest.LogCaptureFixture) -> None:
    compose_config(["algo=mdlm", "sampling.remdm.eta=0.1"])
    line = r"sampling.remdm.eta has no effect without sampling.predictor=remdm"
    assert len(caplog.messages) == 1 and re.search(line, caplog.messages[0])
    module = build("algo=mdlm", "sampling.predictor=remdm", "sampling.remdm.eta=0.1")
    assert module.generator.make_sampler(4).own == remdm.Settings(eta=0.1)


def test_the_published_psi_commands_compose_and_write() -> None:
    for algo, mode in (("mdlm", "max-rescale-0.05"), ("duo_base", "max-capped-0.01")):
        keys = [f"sampling.psi.{part}_mode={mode}" for part in ("high", "middle", "low")]
        fractions = ["sampling.psi.high_frac=0.0", "sampling.psi.middle_frac=0.0"]
        words = ["sampling.predictor=psi", "sampling.psi.time_profile=linear", *keys, *fractions]
        module = build(f"algo={algo}", *words, "sampling.noise_removal=tail")
        samples = module.generator.sample(4, 8)
        assert (samples.nfe == 9).all() and samples.tokens.shape == (4, 10)
