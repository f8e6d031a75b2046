"""Uniform-state diffusion on worlds that can be enumerated, and Duo as an algorithm."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import diffusion.duality
from algo import DUO_BASE
from config.cli import compose_config
from diffusion.duality import Relaxed, argmax_distribution, discrete_level, relaxed_embedding
from diffusion.noise import get_schedule
from diffusion.randomness import Stream, normal, row_keys, uniform
from diffusion.uniform import Uniform, UniformPrediction, uniform_nelbo, uniform_reverse
from samplers import KeyedDraws, SamplerSettings, Samples, get_sampler
from tests.test_algo import BATCH, LENGTH, batch, build
from tests.test_conditional import words_tokenizer
from tests.test_samplers import grid_alphas
from tests.test_training import run
from tests.worlds import UniformWorld, posterior, total_variation, tv_noise

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parent / "golden"
SCHEDULE = get_schedule("log-linear", 1e-3)
NUM_SAMPLES = 20_000


@pytest.fixture(scope="module")
def world() -> UniformWorld:
    return UniformWorld()


# Process, posterior, NELBO ------------------------------------------------------------------------


def test_corruption_has_its_rates() -> None:
    """100,000 positions: frequencies within 4.5 standard deviations of sqrt(p (1 - p) / n) < 0.0016."""
    process, x0, keep = Uniform(5), torch.full((1000, 100), 2), torch.zeros(1000, 100, dtype=torch.bool)
    alpha = torch.linspace(0.2, 0.4, 1000, dtype=torch.float64)
    keep[:, 0] = True
    xt = process.corrupt(x0, alpha, uniform(torch.arange(1000), 100), keep)
    found = torch.bincount(xt[:, 1:].flatten(), minlength=5) / 99_000
    expected = 0.7 / 5 + 0.3 * (torch.arange(5) == 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=4.5 * 0.0016)
    assert (xt[:, 0] == 2).all()
    start = process.prior(uniform(torch.arange(1000), 100))
    assert (torch.bincount(start.flatten(), minlength=5) / 1e5 - 0.2).abs().max() < 4.5 * 0.0013


@pytest.mark.parametrize("alpha_s", [0.5, 0.9, 1.0])
def test_posterior_is_bayes_rule(world: UniformWorld, alpha_s: float) -> None:
    """Against p(xs_i | xt) by enumeration of x0, for all xt; and the mixture that samplers draw from."""
    alpha_t = torch.tensor(0.3, dtype=torch.float64)
    alpha_s = torch.tensor(alpha_s, dtype=torch.float64)
    x = world.table(alpha_t)
    found = posterior(x, world.words, alpha_t, alpha_s)
    torch.testing.assert_close(found.sum(-1), torch.ones(27, 3).double())
    each, early, late = world.likelihoods(alpha_t), world.channel(alpha_s), world.channel(alpha_t / alpha_s)
    for i in range(world.length):
        others = torch.stack([each[j] for j in range(world.length) if j != i]).prod(0) * world.probs
        joint = (others @ early[world.words[:, i]]) * late[:, world.words[:, i]].T
        torch.testing.assert_close(found[:, i], joint / joint.sum(-1, keepdim=True))
    here = torch.eye(3).double()[world.words]
    at_xt = x.gather(-1, world.words.unsqueeze(-1))
    keep, noise, draw = uniform_reverse(alpha_t, alpha_s, at_xt, 3)
    torch.testing.assert_close(keep * here + noise / 3 + draw * x, found)
    least = uniform_reverse(alpha_t, alpha_s, 0.0, 3).keep
    assert (keep >= least).all() and least == pytest.approx(float((0.3 / alpha_s - 0.3) / 0.7))


def test_golden_token_nll() -> None:
    arrays = np.load(GOLDEN / "token_nll.npz", allow_pickle=False)
    golden = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    x0, xt, alpha = golden["x0"], golden["x_duo"], golden["alpha_t"][:, 0].double()
    prediction = UniformPrediction(golden["duo_log_x_theta"], torch.eye(50), None, xt)
    weight = -golden["dalpha_t"][:, 0] / (1 - alpha)
    everywhere = torch.ones_like(x0, dtype=torch.bool)
    output = uniform_nelbo(prediction, x0, weight, -alpha.log(), everywhere, num_tokens=x0.numel())
    torch.testing.assert_close(output.token_nll, golden["duo_nll"], rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(output.loss, golden["duo_nll"].mean(), rtol=1e-5, atol=2e-5)


def by_the_formula(log_x: Tensor, x0: Tensor, xt: Tensor, alpha: Tensor, dalpha: Tensor) -> Tensor:
    """Duo's equation 5, (B, L), over whole (B, L, V) tensors."""
    size, alpha, dalpha = log_x.shape[-1], alpha[:, None, None], dalpha[:, None]
    eye = torch.eye(size, dtype=log_x.dtype)
    bar, bar_theta = size * alpha * eye[x0] + 1 - alpha, size * alpha * log_x.exp() + 1 - alpha
    at, at_theta = (b.gather(-1, xt.unsqueeze(-1)) for b in (bar, bar_theta))
    logs = (bar / at * (at_theta * bar / (bar_theta * at)).log()).sum(-1)
    bracket = (size / at - size / at_theta)[..., 0] - logs
    return dalpha / (size * alpha[..., 0]) * bracket


def problem() -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Leaves (features (2, 5, 4), weight, bias) in float64, x0 and xt with V = 7, and what counts."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 5, 4), (7, 4), (7,))
    leaves = [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]
    x0 = torch.tensor([[0, 1, 3, 6, 5], [3, 4, 0, 1, 6]])
    xt = torch.tensor([[2, 1, 3, 0, 5], [3, 2, 2, 1, 6]])
    return leaves, x0, xt, torch.tensor([[True] * 5, [True] * 4 + [False]])


@pytest.mark.parametrize("times", [(0.3, 0.9), (1e-3, 1.0)])
def test_loss_and_gradients_are_those_of_the_formula(times: tuple[float, float]) -> None:
    (t, (leaves, x0, xt, loss_mask)) = torch.tensor(times, dtype=torch.float64), problem()
    log_x = (leaves[0] @ leaves[1].T + leaves[2]).log_softmax(-1)
    expected = by_the_formula(log_x, x0, xt, SCHEDULE.alpha(t), SCHEDULE.dalpha(t)) * loss_mask
    wanted = torch.autograd.grad(expected.sum() / 9, leaves)
    weight, sigma = SCHEDULE.weight(t), SCHEDULE.sigma(t)

    prediction = UniformPrediction(*leaves, xt, torch.float64)
    prediction._head.chunk_rows = 4
    output = uniform_nelbo(prediction, x0, weight, sigma, loss_mask, num_tokens=9)
    torch.testing.assert_close(output.token_nll, expected.detach())
    torch.testing.assert_close(output.loss, expected.sum() / 9)
    for found, grad in zip(torch.autograd.grad(output.loss, leaves), wanted, strict=True):
        torch.testing.assert_close(found, grad)
    with torch.no_grad():
        unseen = uniform_nelbo(prediction, x0, weight, sigma, loss_mask, num_tokens=9)
        torch.testing.assert_close(unseen.token_nll, output.token_nll)
        single = UniformPrediction(*(leaf.float() for leaf in leaves), xt)
        low = uniform_nelbo(single, x0, weight, sigma, loss_mask, num_tokens=9)
    assert low.token_nll.dtype == torch.float32
    torch.testing.assert_close(low.token_nll.double(), output.token_nll, rtol=1e-5, atol=1e-5)
    nowhere = torch.zeros_like(loss_mask)
    nothing = uniform_nelbo(prediction, x0, weight, sigma, nowhere, num_tokens=1)
    assert nothing.loss == 0 and all((g == 0).all() for g in torch.autograd.grad(nothing.loss, leaves))
    torch.testing.assert_close(prediction.nll(loss_mask, x0[loss_mask]), -log_x[loss_mask].gather(
        1, x0[loss_mask][:, None])[:, 0].detach())  # fmt: skip


def test_nelbo_of_the_exact_denoiser_is_the_entropy(world: UniformWorld) -> None:
    """Integrated over time, words and states: t = u^4 takes the logarithm at t = 0 away, and 24 nodes of
    Gauss-Legendre are then enough. The posterior that looks at its own position too is no better than it."""
    schedule = get_schedule("log-linear", eps=1e-9)
    nodes, node_weights = np.polynomial.legendre.leggauss(24)
    total = peeking = 0.0
    xt = world.words.repeat_interleave(27, 0)  # (729, L): all states, each with all words
    x0 = world.words.repeat(27, 1)
    everywhere, head = torch.ones_like(x0, dtype=torch.bool), torch.eye(3).double()
    for u, node_weight in zip((nodes + 1) / 2, node_weights / 2, strict=True):
        t = torch.full((729,), u**4, dtype=torch.float64)
        alpha, weight, sigma = schedule.alpha(t), schedule.weight(t), schedule.sigma(t)
        chance = (world.likelihoods(alpha[0]).prod(0) * world.probs).flatten()
        exact = world.denoise(xt, sigma, None)
        other = world.table(alpha[0], others_only=False).log()[world.encode(xt)]
        for prediction in (exact, UniformPrediction(other, head, None, xt, torch.float64)):
            output = uniform_nelbo(prediction, x0, weight, sigma, everywhere, num_tokens=1)
            value = node_weight * 4 * u**3 * float((chance * output.token_nll.sum(-1)).sum())
            total, peeking = (total + value, peeking) if prediction is exact else (total, peeking + value)
    assert total == pytest.approx(world.entropy, abs=1e-6)
    assert peeking > world.entropy + 0.01


# Sampling -----------------------------------------------------------------------------------------


def sample(
    world: UniformWorld, num_steps: int, name: str = "ancestral_cache", fixed: Tensor | None = None,
    xt: Tensor | None = None, **settings: Any,
) -> Samples:  # fmt: skip
    rows = torch.arange(NUM_SAMPLES)
    if xt is None:
        xt = Uniform(world.size).prior(uniform(row_keys(0, 1, 0, rows), world.length))
    sampler = get_sampler(name, "uniform")(world, SCHEDULE, -1, SamplerSettings(num_steps, **settings))
    return sampler.sample(xt, 1.0, None, KeyedDraws(row_keys(0, 2, 0, rows)), fixed=fixed)


def assert_distribution(world: UniformWorld, tokens: Tensor, distribution: Tensor) -> None:
    assert total_variation(world.frequencies(tokens), distribution) < tv_noise(distribution, len(tokens))


@pytest.mark.parametrize("num_steps", [1, 4])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_samples_have_the_distribution_of_the_chain(
    world: UniformWorld, num_steps: int, temperature: float
) -> None:
    distribution = world.distribution(grid_alphas(SCHEDULE, num_steps), temperature)
    assert total_variation(distribution, world.probs) > 2 * tv_noise(
        distribution, NUM_SAMPLES
    )  # few steps are not the data
    assert_distribution(world, sample(world, num_steps, temperature=temperature).tokens, distribution)


def test_many_steps_give_the_data(world: UniformWorld) -> None:
    errors = [
        total_variation(world.distribution(grid_alphas(SCHEDULE, n)), world.probs) for n in (16, 64, 256)
    ]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] and errors[1] < 0.02
    distance = total_variation(world.frequencies(sample(world, 64).tokens), world.probs)
    assert distance < tv_noise(world.probs, NUM_SAMPLES) + errors[1]


def test_the_network_is_asked_only_where_it_matters() -> None:
    """The cache changes no token; a position is asked about 1 - (alpha_ts - alpha_t)/(1 - alpha_t) times a
    step, so a row of three is asked that often or less; within 4.5 standard deviations over all rows."""
    world = UniformWorld(seed=5)
    plain, cached = (sample(world, 32, name) for name in ("ancestral", "ancestral_cache"))
    assert torch.equal(plain.tokens, cached.tokens) and (plain.nfe == 32).all()
    alphas = torch.tensor(grid_alphas(SCHEDULE, 32)).double()
    least = (alphas[:-1] / alphas[1:] - alphas[:-1]) / (1 - alphas[:-1])
    chance = 1 - least**3
    deviation = (chance * (1 - chance)).sum().sqrt() / NUM_SAMPLES**0.5
    assert abs(cached.nfe.double().mean() - chance.sum()) < 4.5 * deviation
    assert cached.nfe.double().mean() < 20


def test_end_of_sampling(world: UniformWorld) -> None:
    """Greedy: the likeliest token at every position in the last step; none: a step like the others."""
    greedy = sample(world, 1, noise_removal="greedy")
    rows = torch.arange(NUM_SAMPLES)
    start = Uniform(3).prior(uniform(row_keys(0, 1, 0, rows), 3))
    assert torch.equal(greedy.tokens, world.table(SCHEDULE.alpha(torch.tensor(1.0)).double())[
        world.encode(start)].argmax(-1)) and (greedy.nfe == 1).all()  # fmt: skip
    alphas = grid_alphas(SCHEDULE, 2)[:-1] + SCHEDULE.alpha(torch.tensor([1e-5]).double()).tolist()
    assert_distribution(world, sample(world, 2, noise_removal="none").tokens, world.distribution(alphas))
    # A nucleus of one token makes x_theta a point.
    sharp = sample(world, 3, p_nucleus=1e-9)
    assert_distribution(world, sharp.tokens, world.distribution(grid_alphas(SCHEDULE, 3), temperature=0.01))


def test_fixed_positions_stay_and_are_seen(world: UniformWorld) -> None:
    start = torch.tensor([-1, 2, -1])
    fixed = (start >= 0).expand(NUM_SAMPLES, -1)
    rows = torch.arange(NUM_SAMPLES)
    xt = Uniform(3).prior(uniform(row_keys(0, 1, 0, rows), 3)).where(~fixed, start)
    found = sample(world, 4, fixed=fixed, xt=xt)
    assert_distribution(world, found.tokens, world.distribution(grid_alphas(SCHEDULE, 4), start=start))
    assert (found.tokens[:, 1] == 2).all()


# The curriculum -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [27, 30522])
def test_argmax_distribution_is_the_golden_one(size: int) -> None:
    golden = np.load(GOLDEN / "duo_integral.npz", allow_pickle=False)
    gamma = torch.from_numpy(golden["gammas"])
    distribution = argmax_distribution(gamma, size)
    # Near gamma = -5 the golden numbers end at 1e-15.
    np.testing.assert_allclose(distribution.stays, golden[f"pt_{size}"], rtol=1e-12)
    np.testing.assert_allclose(distribution.slope, golden[f"grad_pt_{size}"], rtol=1e-9, atol=2e-15)
    torch.testing.assert_close(distribution.leaves, 1 - distribution.stays, rtol=0, atol=1e-14)
    # 1 - P keeps its digits where it vanishes, by the ratio of the two at neighbouring places.
    near = [argmax_distribution(gamma[:1] + h, size) for h in (-1e-4, 1e-4)]
    torch.testing.assert_close(
        (near[1].leaves - near[0].leaves) / 2e-4, -distribution.slope[:1], rtol=1e-5, atol=0
    )


def test_discrete_level_is_the_derivative_of_its_alpha() -> None:
    gamma, h = torch.linspace(-3, -1, 5).double(), 1e-5
    weight, sigma = discrete_level(argmax_distribution(gamma, 40), 2.5, 40)
    earlier, later = (
        torch.exp(-discrete_level(argmax_distribution(gamma + d, 40), 2.5, 40)[1]) for d in (-h, h)
    )
    numeric = -(later - earlier) / (2 * h) * 2.5 / (1 - torch.exp(-sigma))
    torch.testing.assert_close(weight, numeric, rtol=1e-7, atol=0)


def test_argmax_is_uniform_noise() -> None:
    """20,000 positions at two gammas: within 4.5 standard deviations of sqrt(p (1 - p) / n)."""
    x0, gamma = torch.full((2, 10_000), 3), torch.tensor([-3.0, -1.0]).double()
    relaxed = Relaxed.of(x0, gamma, torch.tensor([1, 2]), 0.1)
    ids = torch.cat([ids for _, ids, _ in relaxed.chunks(8)]).view(2, -1)
    stays = argmax_distribution(gamma, 8).stays
    for row, p in zip(ids, stays.tolist(), strict=True):
        expected = torch.full((8,), (1 - p) / 7).double().index_fill(0, torch.tensor([3]), p)
        found = torch.bincount(row, minlength=8) / 10_000
        assert ((found - expected).abs() < 4.5 * (expected * (1 - expected) / 10_000).sqrt()).all()
    alpha = torch.exp(-discrete_level(argmax_distribution(gamma, 8), 1.0, 8)[1])
    torch.testing.assert_close(alpha + (1 - alpha) / 8, stays)


def test_relaxed_embedding_and_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against whole tensors, and in any chunks; the noise of a row is its own."""
    monkeypatch.setattr(diffusion.duality, "_CHUNK_ELEMENTS", 30)
    keys, generator = torch.tensor([5, 6, 7]), torch.Generator().manual_seed(0)
    x0, gamma = torch.arange(12).view(3, 4) % 11, torch.tensor([-4.0, -2.0, -1.0]).double()
    embedding = torch.randn(11, 6, generator=generator).requires_grad_()
    relaxed = Relaxed.of(x0, gamma, keys, 0.3)
    noise = normal(relaxed.keys, 11)
    a, s = (torch.sigmoid(g).sqrt().float().repeat_interleave(4)[:, None] for g in (-gamma, gamma))
    w = a * torch.eye(11)[x0.flatten()] + s * noise
    expected = (w / 0.3).softmax(-1) @ embedding
    embedded, argmax = relaxed_embedding(embedding, relaxed)
    torch.testing.assert_close(embedded, expected)
    assert torch.equal(argmax, w.argmax(-1))
    weights = torch.randn(12, 6, generator=generator)
    grads = (torch.autograd.grad((weights * e).sum(), embedding)[0] for e in (embedded, expected))
    torch.testing.assert_close(*grads)
    alone = relaxed_embedding(embedding, Relaxed.of(x0[1:2], gamma[1:2], keys[1:2], 0.3))[0]
    torch.testing.assert_close(alone, embedded[4:8])
    hard = relaxed_embedding(embedding, Relaxed.of(x0, gamma, keys, 1e-6))[0]
    torch.testing.assert_close(hard, embedding[argmax])


def test_curriculum_has_its_course() -> None:
    words = ("algo.curriculum_start=10", "algo.curriculum_end=20", "algo.gumbel_tau_log10_end=-3")
    duo = build("algo=duo", *words, "training.ignore_bos=True")
    base = build("algo=duo_base", "training.ignore_bos=True")
    assert [duo.objective.tau(step) for step in (0, 10, 15, 19)] == pytest.approx([0.1, 0.1, 0.01, 10**-2.8])
    losses = {
        (step, training): [
            m.loss(batch(), step=step, num_rows=BATCH, training=training).token_nll for m in (duo, base)
        ]
        for step, training in ((20, True), (19, True), (0, False))
    }
    assert torch.equal(*losses[20, True]) and torch.equal(*losses[0, False])
    assert not torch.isclose(*losses[19, True])[:, 1:].any()
    assert (losses[19, True][0][:, 0] == 0).all() and (losses[19, True][0][:, 1:] > 0).all()
    duo.loss(batch(), step=0, num_rows=BATCH, training=True).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in duo.parameters())


def test_a_sharp_curriculum_is_the_uniform_nelbo() -> None:
    """tau = 1e-6: the network sees argmax(w) itself, so the loss is that of the plain prediction there."""
    module = build("algo=duo", "algo.gumbel_tau_log10_start=-6", "algo.gamma_min=-4", "algo.gamma_max=-1")
    seen: dict[str, Tensor] = {}
    body = module.backbone.body
    module.backbone.body = lambda xt, sigma, **rest: (
        seen.update(xt=xt, sigma=sigma) or body(xt, sigma, **rest)
    )
    output = module.loss(batch(), step=0, num_rows=BATCH, training=True)
    del module.backbone.body
    keys = row_keys(module.config.seed, Stream.TRAIN_TIME, 0, torch.arange(BATCH))
    gamma = -4 + 3 * module.objective.times(keys, torch.arange(BATCH), BATCH, True)
    weight, sigma = discrete_level(argmax_distribution(gamma, module.vocab_size), 3.0, module.vocab_size)
    torch.testing.assert_close(seen["sigma"], sigma)
    plain = uniform_nelbo(
        module.denoiser.denoise(seen["xt"], sigma), batch()["input_ids"], weight, sigma, output.loss_mask, 1
    )
    torch.testing.assert_close(plain.token_nll, output.token_nll, rtol=1e-4, atol=1e-5)


# The algorithm ------------------------------------------------------------------------------------


def test_given_positions_never_change() -> None:
    module = build("algo=duo_base")
    given = torch.randint(module.mask_id, (12, LENGTH), generator=torch.Generator().manual_seed(0))
    given[torch.arange(12 * LENGTH).view(12, LENGTH) % 3 > 0] = module.mask_id
    fixed, seen = given != module.mask_id, []
    on_step = lambda step, _, now: seen.append(now.x[fixed])  # noqa: E731
    samples = module.generator.sample(12, 5, given=given, on_step=on_step)
    assert len(seen) == 5 and all(torch.equal(x, given[fixed]) for x in seen)
    assert (samples.tokens < module.vocab_size).all() and (samples.tokens[~fixed] != given[~fixed]).all()
    assert torch.equal(module.generator.sample(12, 5, given=given, batch_size=5).tokens, samples.tokens)
    free = module.generator.sample(12, 5, given=torch.full_like(given, module.mask_id))
    assert torch.equal(free.tokens, module.generator.sample(12, 5).tokens)


def test_groups_share_their_start_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    module, seen = build("algo=duo_base"), []
    notes = lambda xt, *rest, **k: seen.append(xt) or Samples(xt, xt, 1, None)  # noqa: E731
    monkeypatch.setattr(module.generator, "reverse", notes)
    for words in ({"group_size": 2}, {"start_seed": 3}, {"start_seed": 4}):
        module.generator.sample(6, 1, batch_size=3, **words)
    grouped, one, other = torch.cat(seen).split(6)
    assert torch.equal(grouped[::2], grouped[1::2]) and len(grouped.unique(dim=0)) == 3
    assert len(one.unique(dim=0)) == 1 and not torch.equal(one, other)


def test_vocabulary_is_that_of_the_published_weights() -> None:
    """No mask in it; names and shapes of the official checkpoints (50 symbols)."""
    golden = json.loads((GOLDEN / "state_dict_keys.json").read_text())["duo_base"]
    module = build(
        "algo=duo_base", "model.length=16", "model.hidden_size=64", "model.cond_dim=32", "model.n_blocks=2",
        "model.n_heads=4", symbols=50,
    )  # fmt: skip
    assert module.vocab_size == 50 and module.backbone.config.mask_id is None and module.mask_id == 50
    assert {entry["name"]: entry["shape"] for entry in golden} == {
        name: list(value.shape) for name, value in module.state_dict().items()
    }
    tokenizer = words_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    own = DUO_BASE(module.config, tokenizer)
    assert own.vocab_size == len(tokenizer) == 11 and own.backbone.head.weight.shape[0] == 11


def test_ignored_bos_and_padding_are_out_of_the_loss() -> None:
    module, padded = build("algo=duo_base", "training.ignore_bos=True"), batch()
    padded["attention_mask"][:, 7:] = False
    output = module.loss(padded, step=0, num_rows=BATCH, training=True)
    assert ((output.token_nll > 0) == output.loss_mask).all()
    assert output.loss_mask[0].tolist() == [False] + [True] * 6 + [False] * 3
    xt = module.objective.noised(padded, 0, BATCH, True).xt
    assert torch.equal(xt[:, 0], padded["input_ids"][:, 0]) and (xt < module.vocab_size).all()


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("training.loss_type=low_var", "training.loss_type=low_var: "),
        ("training.mask_sampling=count", "training.mask_sampling=count: "),
        ("eval.nelbo=count algo.time_conditioning=False", "eval.nelbo=count: "),
        ("algo=duo algo.gamma_min=-1", "algo.gamma_min=-1.0: not below"),
        ("algo=duo algo.curriculum.start=9 algo.curriculum.end=8", "algo.curriculum_end=8: before"),
        ("sampling.predictor=first_hitting", "sampling.predictor=first_hitting: not for uniform models"),
        ("sampling.order=spread", "sampling.order=spread: not an order of ancestral_cache; use random"),
        ("sampling.semi_ar=True", "sampling.semi_ar=True: a uniform-state model"),
    ],
)
def test_what_has_no_meaning_is_refused(typed: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        build("algo=duo_base", *typed.split())


def test_settings_of_its_own() -> None:
    cfg = compose_config(["algo=duo_base", "eval.nelbo=auto", "algo.time_conditioning=False"], warn=False)
    assert cfg.eval.nelbo == "time" and compose_config(["algo=duo_base"], warn=False).algo.time_conditioning
    assert build("algo=duo_base", "sampling.predictor=ancestral").generator.sampler_class.name == "ancestral"
    assert build("algo=duo_base").generator.sampler_class.name == "ancestral_cache"


CURRICULUM = (
    "algo.gamma_min=-3.5",
    "algo.gamma_max=-1",
    "algo.curriculum_start=0",
    "algo.curriculum_end=150",
)


@pytest.mark.parametrize("algo", [("algo=duo_base",), ("algo=duo", *CURRICULUM)], ids=["base", "curriculum"])
def test_training_reaches_the_entropy_and_writes(algo: tuple[str, ...], tmp_path: Path) -> None:
    """A sequence repeats one of 8 symbols: ln(8)/8 nats per token."""
    words = (*algo, "trainer.val_check_interval=300", "sampling.steps=32")
    run(tmp_path, *words, "trainer.max_steps=300", f"checkpointing.save_dir={tmp_path}/run")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    evaluate = (f"eval.checkpoint_path={last}", f"eval.generated_samples_path={tmp_path}/out.json", *words)
    measured = run(tmp_path, "mode=ppl_eval", *evaluate)
    entropy, error = math.log(8) / 8, measured["nll_stderr"]
    assert entropy - 4 * error < measured["nll"] < 1.3 * entropy + 4 * error
    assert error < 0.15 * entropy
    run(tmp_path, "mode=sample_eval", "eval.compute_generative_perplexity=False", *evaluate)
    texts = json.loads((tmp_path / "out.json").read_text())["generated_seqs"]
    assert sum(len(set(text.split())) == 1 for text in texts) > 0.8 * len(texts)
    exported = tmp_path / "exported"
    run(tmp_path, "mode=export", f"export.path={exported}", *evaluate)
    config = json.loads((exported / "config.json").read_text())
    assert config["vocab_size"] == 8 and config["mask_token_id"] is None
    again = run(tmp_path, "mode=ppl_eval", *evaluate, f"eval.checkpoint_path={exported}")
    assert again["nll"] == pytest.approx(measured["nll"], rel=1e-6)
