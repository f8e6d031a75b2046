"""Fixed orders, parallel and second-order first hitting, and scores: their distributions on enumerable
worlds.

Empirical distributions are judged by ``tv_noise`` (see tests/test_samplers.py). Seeds are fixed: no result
flickers.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from config.cli import compose_config
from diffusion.noise import Schedule, get_schedule
from diffusion.randomness import row_keys
from samplers import KeyedDraws, SamplerSettings, Samples, get_sampler
from samplers.spread import spread_calls
from tests.test_algo import LargestTensor, build
from tests.test_sampler_mechanics import Recorder
from tests.test_samplers import ABSORBING, assert_distribution, grid_alphas, masked
from tests.worlds import ExactDenoiser, NoisyWorld, World, random_probs, total_variation

SCHEDULE = get_schedule("log-linear", 1e-3)
COSINE = get_schedule("cosine", 1e-3)
NUM_SAMPLES = 30_000
PARALLEL = ["first_hitting_parallel", "first_hitting_extrapolated"]


def run(
    world: World | NoisyWorld,
    xt: Tensor,
    t: Tensor | float = 1.0,
    *,
    name: str = "ancestral",
    order: str = "random",
    schedule: Schedule = SCHEDULE,
    denoiser: ExactDenoiser | None = None,
    **settings: object,
) -> Samples:
    denoiser, rows = denoiser or world.denoiser(), torch.arange(len(xt))
    mask_seeds = denoiser.draw_seeds(row_keys(0, 1, 0, rows), world.length)
    sampler = get_sampler(name, "absorbing", order)(
        denoiser, schedule, world.mask_id, SamplerSettings(**settings)
    )
    return sampler.sample(xt, t, mask_seeds, KeyedDraws(row_keys(0, 2, 0, rows)))


def chain(stay: float, length: int, num_symbols: int = 2) -> Tensor:
    """The distribution of a Markov chain that keeps its symbol with probability ``stay``, (K,) * L."""
    distribution = torch.full((num_symbols,), 1 / num_symbols, dtype=torch.float64)
    moves = torch.full((num_symbols, num_symbols), (1 - stay) / (num_symbols - 1), dtype=torch.float64)
    moves.fill_diagonal_(stay)
    for _ in range(length - 1):
        distribution = distribution.unsqueeze(-1) * moves
    return distribution


def excess(world: World, distribution: Tensor) -> float:
    """KL(data || distribution) in nats per sequence: what the distribution's negative log-likelihood
    exceeds the entropy by.
    """
    data = world.data_distribution
    return float((torch.special.xlogy(data, data) - torch.special.xlogy(data, distribution)).sum())


def plan_distribution(
    world: World | NoisyWorld,
    start: list[int],
    calls: list[int],
    t: float = 1.0,
    reset: bool = True,
    keep: float | None = None,
) -> Tensor:
    """The distribution of unmasking, in call k, exactly the positions with ``calls`` k.

    The others keep their noise with probability ``keep``, None: as the process would until it has, in
    expectation, so few masks."""
    m, num = world.mask_id, world.num_symbols
    first = world.visible(torch.tensor(start))
    agrees = (world.digits.clamp(max=num) == first).all(-1)
    distribution = agrees / agrees.sum().double()
    left, masked_t = sum(i == m for i in start), 1 - float(SCHEDULE.alpha(torch.tensor(t).double()))
    for call in range(max(calls) + 1):
        after = left - calls.count(call)
        masked_s = masked_t * after / left
        aging = (1 - masked_t) / (1 - masked_s) if keep is None else keep
        stay = aging if reset else 1.0
        eye = torch.eye(num + world.num_noise, dtype=torch.float64)[world.digits]
        fresh = torch.full((*eye.shape[:2], world.num_noise), (1 - stay) / world.num_noise).double()
        aged = torch.cat([torch.zeros_like(world.table), fresh], -1) + stay * eye
        wrote = torch.cat([world.table, torch.zeros_like(fresh)], -1)
        due = torch.tensor([c == call for c in calls])[None, :, None]
        moves = torch.where((world.digits < num).unsqueeze(-1), eye, torch.where(due, wrote, aged))
        matrix = torch.ones(len(eye), 1, dtype=torch.float64)
        for position in range(world.length):
            matrix = (matrix.unsqueeze(-1) * moves[:, position].unsqueeze(1)).flatten(1)
        distribution, left, masked_t = distribution @ matrix, after, masked_s
    words = world.encode(world.digits.clamp(max=num), num + 1)
    return torch.zeros((num + 1) ** world.length, dtype=distribution.dtype).index_add(0, words, distribution)


# Order of unmasking -----------------------------------------------------------------------------------


def test_spread_order_is_bit_reversal_and_keeps_calls_apart() -> None:
    reversed_bits = [int(f"{i:04b}"[::-1], 2) for i in range(16)]
    assert list(spread_calls(16, 16)) == list(spread_calls(16, 99)) == reversed_bits
    for length, num_calls in itertools.product(range(1, 40), range(1, 45)):
        calls = spread_calls(length, num_calls)
        made = min(length, num_calls)
        assert sorted(set(calls)) == list(range(made))
        apart = 1 << (made.bit_length() - 1)
        where = [[i for i, c in enumerate(calls) if c == k] for k in range(made)]
        assert all(b - a >= apart for places in where for a, b in itertools.pairwise(places))
        # about length / made positions a call, exactly so (but for rounding) at powers of two
        assert all(len(places) <= -(-length // apart) for places in where)
        # One call after the other is a part of the full order: the permutation is fixed.
        full = spread_calls(length, length)
        order = sorted(range(length), key=lambda i: full[i])
        assert [calls[i] for i in order] == sorted(calls)
    assert spread_calls(0, 4) == ()


@pytest.mark.parametrize("start", [None, [3, 1, 3], [3, 3, 0]])
def test_spread_order_with_a_call_for_each_mask_gives_the_data(start: list[int] | None) -> None:
    world = World(random_probs(3, 3))
    xt = masked(world, NUM_SAMPLES) if start is None else torch.tensor(start).expand(NUM_SAMPLES, -1)
    samples = run(world, xt, order="spread", num_steps=3)
    given = world.visible(xt[0])
    fits = ((given == 3) | (world.words == given)).all(-1)
    distribution = world.data_distribution.clone()
    distribution[world.encode(world.words, 4)] *= fits
    assert_distribution(world, samples.tokens, distribution / distribution.sum())
    assert (samples.nfe == int((xt[0] == 3).sum())).all() and samples.forward_passes == int(samples.nfe[0])


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_spread_order_at_few_calls(num_steps: int) -> None:
    world, start = World(random_probs(3, 4)), [3, 3, 3, 3]
    distribution = plan_distribution(world, start, list(spread_calls(4, num_steps)))
    samples = run(world, masked(world, NUM_SAMPLES), order="spread", num_steps=num_steps)
    assert_distribution(world, samples.tokens, distribution)
    assert total_variation(distribution, world.distribution(grid_alphas(SCHEDULE, num_steps))) > (
        0.05 if num_steps > 1 else -1
    )
    assert (samples.nfe == num_steps).all()


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize(
    ("start", "t", "num_steps"), [([0, 0, 0], 1.0, 2), ([0, 0, 0], 0.6, 3), ([0, 2, 0], 0.8, 2)]
)
def test_spread_order_with_mask_noise(start: list[int], t: float, num_steps: int, reset: bool) -> None:
    world = NoisyWorld(mask_id=0)
    ranks = iter(spread_calls(start.count(0), num_steps))
    calls = [next(ranks) if i == 0 else -1 for i in start]
    distribution, other = (plan_distribution(world, start, calls, t, kind) for kind in (reset, not reset))
    assert total_variation(distribution, other) > 0.025  # what a wrong switch would show
    xt = torch.tensor(start).expand(NUM_SAMPLES, -1)
    samples = run(world, xt, t, order="spread", num_steps=num_steps, reset=reset)
    assert_distribution(world, samples.tokens, distribution)


def test_spread_order_errs_less_on_a_markov_chain() -> None:
    """The excess NLL at 2 and 4 calls, both enumerated, of spread order and of exact masked diffusion."""
    world = World(chain(0.75, 7))
    spread, random = (
        [excess(world, distribution(n)) for n in (2, 4)]
        for distribution in (
            lambda n: plan_distribution(world, [2] * 7, list(spread_calls(7, n))),
            lambda n: world.distribution(grid_alphas(SCHEDULE, n)),
        )
    )
    assert spread[0] < 0.5 * random[0] and spread[1] < 0.05 * random[1]
    assert random[1] > 0.05


def test_spread_order_ends_greedily_and_shapes_tokens() -> None:
    world = World(random_probs(3, 3))
    xt = masked(world, 400).clone()
    xt[::2, 1] = 1  # these rows end a call earlier
    drawn, best = (
        run(world, xt, order="spread", num_steps=3, noise_removal=removal).tokens
        for removal in ("ancestral", "greedy")
    )
    last = torch.zeros_like(xt, dtype=torch.bool)
    last[::2, 2] = last[1::2, 1] = True
    assert torch.equal(drawn[~last], best[~last]) and not torch.equal(drawn, best)
    before = drawn.masked_fill(last, world.mask_id)
    likeliest = world.denoiser().denoise(before, torch.zeros(400), None).full().argmax(-1)
    assert torch.equal(best[last], likeliest[last])
    cold = run(world, xt, order="spread", num_steps=3, temperature=1e-3).tokens
    narrow = run(world, xt, order="spread", num_steps=3, p_nucleus=1e-6).tokens
    assert torch.equal(cold, narrow) and len(cold.unique(dim=0)) == 2


def test_the_network_sees_the_time_at_which_so_many_masks_are_expected() -> None:
    world, m = NoisyWorld(), 3
    recorder = Recorder(world)
    t = torch.tensor([0.9, 0.5], dtype=torch.float64)
    run(world, torch.full((2, 3), m), t, order="spread", schedule=COSINE, denoiser=recorder, num_steps=3)
    for calls, sigma in enumerate(recorder.sigmas):
        expected = COSINE.masked(t) * (3 - calls) / 3
        torch.testing.assert_close(1 - (-sigma.double()).exp(), expected, rtol=1e-5, atol=1e-6)


# Parallel first hitting ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PARALLEL)
def test_one_hit_a_call_is_first_hitting_itself(name: str) -> None:
    world = NoisyWorld()
    kinds = torch.tensor([[3, 3, 3], [3, 1, 3], [0, 3, 2], [2, 0, 1]]).repeat(100, 1)
    t = torch.linspace(0.05, 1, 400, dtype=torch.float64)
    exact = run(world, kinds, t, name="first_hitting", num_steps=1)
    for num_steps in (3, 8):
        parallel = run(world, kinds, t, name=name, num_steps=num_steps)
        assert torch.equal(parallel.tokens, exact.tokens) and torch.equal(
            parallel.mask_seeds, exact.mask_seeds
        )
        assert torch.equal(parallel.nfe, exact.nfe)


@pytest.mark.parametrize("name", PARALLEL)
def test_calls_are_shared_evenly(name: str) -> None:
    world = World(chain(0.7, 6))
    for num_steps, sizes in ((1, [6]), (2, [3, 3]), (4, [2, 2, 1, 1]), (5, [2, 1, 1, 1, 1])):
        left: list[Tensor] = []
        sampler = get_sampler(name)(world.denoiser(), SCHEDULE, 2, SamplerSettings(num_steps))
        draws = KeyedDraws(row_keys(0, 2, 0, torch.arange(50)))
        samples = sampler.sample(
            masked(world, 50),
            1.0,
            None,
            draws,
            on_step=lambda step, _, now, path=left: path.append((now.x == 2).sum(-1)),
        )
        counts = torch.stack([torch.full((50,), 6), *left])
        assert (-counts.diff(dim=0)).T.tolist() == [sizes] * 50
        assert (samples.nfe == num_steps).all() and samples.forward_passes == num_steps


@pytest.mark.parametrize("name", PARALLEL)
def test_one_call_draws_every_token_from_its_marginal(name: str) -> None:
    world = World(random_probs(3, 3))
    samples = run(world, masked(world, NUM_SAMPLES), name=name, num_steps=1)
    assert_distribution(world, samples.tokens, world.distribution([1e-3, 1.0]))


def test_two_parallel_calls_with_mask_noise() -> None:
    """Two of three masks in the first call, a pair drawn at random: three plans, equally likely.

    The last mask keeps its noise from the first hit to the third with probability alpha_1 / alpha_3, where
    1 - alpha is multiplied by u^(1/3), u^(1/2), u from hit to hit. Its mean is all that counts: quadrature.
    """
    world, t = NoisyWorld(seed=3), 0.7
    u = (torch.arange(60, dtype=torch.float64) + 0.5) / 60
    first = 0.999 * t * u ** (1 / 3)
    third = first[:, None, None] * u[:, None] ** 0.5 * u
    distributions = {}
    for reset, keep in ((True, float(((1 - first[:, None, None]) / (1 - third)).mean())), (False, 1.0)):
        plans = ([0, 0, 1], [0, 1, 0], [1, 0, 0])
        distributions[reset] = (
            sum(plan_distribution(world, [3, 3, 3], list(plan), t, True, keep) for plan in plans) / 3
        )
        samples = run(world, masked(world, NUM_SAMPLES), t, name=PARALLEL[0], num_steps=2, reset=reset)
        assert_distribution(world, samples.tokens, distributions[reset])
    assert total_variation(distributions[True], distributions[False]) > 0.04


def test_second_order_errs_less_and_converges() -> None:
    """On a chain of six tokens the excess over the entropy falls to nothing as calls come to tokens, and at 3
    calls it is 1.4 times smaller at least than without the second order."""
    world, name, ahead = World(chain(0.75, 6)), PARALLEL[1], 1.4
    distributions = {
        (n, kind): world.frequencies(
            run(world, masked(world, 40_000), name=kind, num_steps=n).tokens
        ).double()
        for n in (1, 2, 3, 6)
        for kind in (PARALLEL[0], name)
    }
    errors = {key: excess(world, distribution.clamp(min=1e-9)) for key, distribution in distributions.items()}
    assert errors[1, name] > errors[2, name] > errors[3, name] > errors[6, name]
    assert errors[2, name] < errors[2, PARALLEL[0]]
    assert ahead * errors[3, name] < errors[3, PARALLEL[0]]
    assert total_variation(distributions[6, name], world.data_distribution) < 0.03


def test_extrapolation_needs_two_calls_and_stays_a_distribution() -> None:
    world = World(random_probs(3, 4))
    for settings in ({"noise_removal": "greedy"}, {"temperature": 0.5}, {"p_nucleus": 0.8}):
        plain, second = (
            run(world, masked(world, 500), name=n, num_steps=2, **settings) for n in PARALLEL[:2]
        )
        same = (plain.tokens == second.tokens).double().mean()
        assert 0.8 < float(same) < 1
        assert not (second.tokens == world.mask_id).any()


# Scores -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("removal", ["ancestral", "greedy", "none"])
@pytest.mark.parametrize("schedule", [SCHEDULE, COSINE])
def test_analytic_step_of_a_model_of_x0_is_the_ancestral_one(schedule: Schedule, removal: str) -> None:
    world = NoisyWorld()
    xt = torch.tensor([[3, 3, 3], [3, 1, 3], [0, 3, 2], [2, 0, 1]]).repeat(200, 1)
    t = torch.linspace(0.05, 1, 800, dtype=torch.float64)
    settings = {"schedule": schedule, "num_steps": 6, "noise_removal": removal, "temperature": 0.7}
    ancestral, analytic = (run(world, xt, t, name=name, **settings) for name in ("ancestral", "analytic"))
    assert torch.equal(ancestral.tokens, analytic.tokens) and torch.equal(
        ancestral.mask_seeds, analytic.mask_seeds
    )
    assert (analytic.nfe == 6).all()


class Scored:
    """log scores (B, L, V), as a model of the score gives them."""

    def __init__(self, log_scores: Tensor) -> None:
        self._log_scores = log_scores
        self.asked: list[int] = []

    @property
    def vocab_size(self) -> int:
        return self._log_scores.shape[-1]

    def log_score(self, rows: Tensor) -> Tensor:
        self.asked.append(len(rows))
        return self._log_scores.flatten(0, 1)[rows]


class ScoreDenoiser(ExactDenoiser):
    """The exact score of a world, k x_theta(y), times exp(``bias``) as a network would get it wrong."""

    bias = 0.0
    predictions: list[Scored]

    def denoise(self, xt: Tensor, sigma: Tensor, mask_seeds: Tensor | None) -> Scored:
        log_k = -torch.expm1(sigma.double()).log() + self.bias  # k = e^-sigma / (1 - e^-sigma)
        scores = super().denoise(xt, sigma, mask_seeds).full() + log_k[:, None, None]
        scores[..., self.world.mask_id] = 7.0  # not to be read
        self.predictions = [*getattr(self, "predictions", []), Scored(scores)]
        return self.predictions[-1]


def test_analytic_sampling_by_a_score() -> None:
    world = World(random_probs(3, 3), mask_id=1)
    denoiser, xt = ScoreDenoiser(world), masked(world, NUM_SAMPLES)
    by_score = run(world, xt, name="analytic", denoiser=denoiser, num_steps=4)
    assert_distribution(world, by_score.tokens, world.distribution(grid_alphas(SCHEDULE, 4)))
    assert all(max(p.asked) <= NUM_SAMPLES * 3 for p in denoiser.predictions)
    small = run(world, xt[:8], name="analytic", denoiser=denoiser, num_steps=1, noise_removal="greedy")
    assert torch.equal(
        small.tokens[0], world.denoiser().denoise(xt[:1], torch.ones(1), None).full()[0].argmax(-1)
    )


@pytest.mark.parametrize("bias", [-0.5, 0.5, 9.0])
def test_the_mass_of_a_score_decides_how_much_unmasks(bias: float) -> None:
    """The formulas of the spec, by hand for one step from t = 0.8 to 0.4: staggered score times transposed
    transition. 60,000 positions: standard error 0.002."""
    world = World(random_probs(3, 1, seed=2))
    denoiser = ScoreDenoiser(world)
    denoiser.bias = bias
    xt = masked(world, 60_000)
    settings = {"name": "analytic", "num_steps": 1, "grid_eps": 0.5, "noise_removal": "none"}
    tokens = run(world, xt, 0.8, denoiser=denoiser, **settings).tokens
    sigma_t, sigma_s = (SCHEDULE.sigma(torch.tensor(t, dtype=torch.float64)) for t in (0.8, 0.4))
    d = sigma_t - sigma_s
    k = (-sigma_t).exp() / (1 - (-sigma_t).exp())
    score = torch.cat([k * world.probs * torch.tensor(bias).double().exp(), torch.ones(1)])
    staggered = d.exp() * score
    staggered[-1] += (1 - d.exp()) * score.sum()
    probs = staggered * torch.tensor([1 - (-d).exp()] * 3 + [1.0])
    assert float(probs.sum()) == pytest.approx(1.0)
    probs = probs.clamp(min=0) / probs.clamp(min=0).sum()
    seen = torch.bincount(tokens[:, 0], minlength=4) / 60_000
    torch.testing.assert_close(seen.double(), probs, atol=0.01, rtol=0)


def test_analytic_asks_for_scores_of_masks_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samplers.base._CHUNK_ELEMENTS", 40)  # ten positions of four symbols
    world = World(random_probs(3, 3))
    denoiser, xt = ScoreDenoiser(world), masked(world, 20).clone()
    xt[:, 1] = 0
    run(world, xt, name="analytic", denoiser=denoiser, num_steps=3)
    assert max(max(p.asked) for p in denoiser.predictions) <= 10
    assert sum(denoiser.predictions[0].asked) <= 2 * 40  # the sums of 40 masks, the tokens of some


# Mistakes -----------------------------------------------------------------------------------------------


def test_wrong_pairs_are_one_line() -> None:
    for family, name in (
        ("absorbing", "autoregressive"),
        ("score", "first_hitting"),
        ("uniform", "analytic"),
    ):
        with pytest.raises(
            ValueError, match=f"^sampling.predictor={name}: not for {family} models; use one of"
        ):
            get_sampler(name, family)
    assert get_sampler("analytic", "score").name == "analytic"
    for name in ("first_hitting", "analytic", *PARALLEL):
        with pytest.raises(
            ValueError, match=f"^sampling.order=spread: not an order of {name}; use .*ancestral"
        ):
            get_sampler(name, "absorbing", "spread")
    with pytest.raises(
        ValueError, match="^sampling.order=spread: not an order of autoregressive; use random"
    ):
        get_sampler("autoregressive", "autoregressive", "spread")
    world = World(random_probs(3, 2))
    for name, order in (("ancestral", "spread"), *((name, "random") for name in PARALLEL)):
        with pytest.raises(
            ValueError, match="^sampling.noise_removal=none: .* leaves no mask; use ancestral"
        ):
            run(world, masked(world, 1), name=name, order=order, num_steps=2, noise_removal="none")


@pytest.mark.parametrize("algo", ["mdlm", "imdm"])
@pytest.mark.parametrize("choice", [*ABSORBING, "order=spread"])
def test_every_choice_writes_with_a_network(algo: str, choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts without masks, network calls counted, rows independent of the batch, no (B, L, V) tensor."""
    key, _, value = choice.rpartition("=")
    module = build(f"algo={algo}", f"sampling.{key or 'predictor'}={value}", symbols=4000)
    monkeypatch.setattr("samplers.base._CHUNK_ELEMENTS", 2**15)
    for num_steps in (1, 4):
        with LargestTensor() as seen:
            samples = module.generator.sample(12, num_steps, batch_size=12)
        assert seen.largest < 12 * 10 * 4000 / 4
        assert not (samples.tokens == module.mask_id).any()
        calls = 10 if choice == "first_hitting" else num_steps
        assert (samples.nfe <= calls).all() and (samples.nfe > 0).all() and samples.forward_passes <= calls
        assert torch.equal(samples.tokens, module.generator.sample(12, num_steps, batch_size=5).tokens)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (
            "sampling.order=spread sampling.predictor=first_hitting",
            "sampling.order=spread: .* order of its own",
        ),
        ("sampling.order=spread sampling.predictor=analytic", "sampling.order=spread: .* order of its own"),
        (
            "sampling.order=spread sampling.noise_removal=none",
            "sampling.noise_removal=none: .* leaves no mask",
        ),
        (f"sampling.predictor={PARALLEL[1]} sampling.noise_removal=none", "sampling.noise_removal=none: .*"),
        ("sampling.order=zigzag", "sampling.order=zigzag: unknown value; one of random, spread"),
        ("sampling.num_strides=0", "sampling.num_strides=0: out of range"),
        ("sampling.duplicate=0", "sampling.duplicate=0: out of range"),
    ],
)
def test_settings_that_cannot_both_hold(words: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^{complaint}"):
        compose_config(words.split(), warn=False)
