"""D3PM: its bound against the divergences of enumerated posteriors, on worlds, and its own reverse process.

Shapes: B rows, L positions, D width, V vocabulary with the mask, T times.
"""

from __future__ import annotations

import math

import pytest
import torch
from test_algo import BATCH, batch, build
from test_objectives import LENGTH, patterns
from test_samplers import masked
from torch import Tensor
from worlds import NEG_INF, ExactDenoiser, World, random_probs

from config.cli import compose_config
from diffusion.d3pm import MeanPrediction, discrete_bound, posterior
from diffusion.noise import Schedule, get_schedule
from diffusion.objectives import LossOutput
from diffusion.randomness import Stream, row_keys
from samplers import KeyedDraws, SamplerSettings, get_sampler

SCHEDULE = get_schedule("log-linear")
V, MASK = 6, 2


def reverse_distribution(schedule: Schedule, t: Tensor, s: Tensor, x: Tensor) -> Tensor:
    """q(x_s | x_t = mask, x_0 ~ x) by Bayes' rule over all V states, (V,); ``x`` (V,) may hold the mask."""
    eye, to_mask = torch.eye(V).double(), torch.zeros(V, V).double()
    to_mask[:, MASK] = 1
    alpha_t, alpha_s = schedule.alpha(t), schedule.alpha(s)
    until_s = alpha_s * eye + (1 - alpha_s) * to_mask
    onward = alpha_t / alpha_s * eye + (1 - alpha_t / alpha_s) * to_mask
    joint = (x @ until_s) * onward[:, MASK]
    return joint / joint.sum()


def official(t: float, num_times: int, alpha_t: float, log_p: Tensor, x0: int) -> Tensor:
    """The formula of the official code, a position's loss, as it is written there."""
    dt, t = 1 / num_times, 1 - alpha_t
    alpha_s, p_m = t - dt, log_p[MASK].exp()
    first = torch.log(alpha_t * p_m / t + 1)
    second = torch.log(alpha_s * p_m / (t - dt) + 1)
    return num_times * (dt / t * (first - log_p[x0]) + (1 - dt / t) * (first - second))


@pytest.mark.parametrize("kind", ["exact", "official"])
@pytest.mark.parametrize("name", ["log-linear", "cosine"])
@pytest.mark.parametrize("num_times", [1, 10, 1000])
def test_bound_and_gradients(name: str, num_times: int, kind: str) -> None:
    """Position by position; of exact posteriors T times KL(true || model), which autograd differentiates."""
    if kind == "official" and name == "cosine":
        pytest.skip("official is of the log-linear schedule")
    schedule, generator = get_schedule(name), torch.Generator().manual_seed(0)
    shapes = ((3, 4, 5), (3, 4, 5), (V, 5), (V,))
    leaves = [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]
    x0 = torch.tensor(
        [[0, 1, 3, 5], [3, 4, 0, 1], [5, 0, 1, 2]]
    )  # the 2 is padding that shares the mask's id
    xt = torch.tensor([[2, 1, 2, 2], [2, 4, 0, 2], [5, 2, 2, 2]])
    loss_mask = torch.ones_like(xt, dtype=torch.bool)
    loss_mask[2, 3] = False
    t = torch.tensor([1, (num_times + 1) // 2, num_times]).double() / num_times

    log_p, copied = ((leaf @ leaves[2].T + leaves[3]).log_softmax(-1) for leaf in leaves[:2])
    expected = []
    for b, i in loss_mask.nonzero().tolist():
        loss = -copied[b, i, x0[b, i]]
        if xt[b, i] == MASK and kind == "official":
            alpha = float(schedule.alpha(t[b]))
            loss = loss + official(float(t[b]), num_times, alpha, log_p[b, i], int(x0[b, i]))
        elif xt[b, i] == MASK:
            s = (t[b] - 1 / num_times).clamp(min=0)
            true = reverse_distribution(schedule, t[b], s, torch.eye(V).double()[x0[b, i]])
            model = reverse_distribution(schedule, t[b], s, log_p[b, i].exp())
            seen = true > 0
            loss = loss + num_times * (true[seen] * (true[seen].log() - model[seen].log())).sum()
        expected.append(loss)
    wanted = torch.autograd.grad(torch.stack(expected).sum() / 11, leaves)

    sigma = schedule.sigma(t)
    prediction = MeanPrediction(leaves[0], *leaves[2:], xt, MASK, sigma, torch.float64)
    clean = MeanPrediction(leaves[1], *leaves[2:], x0, MASK, 0 * sigma, torch.float64)
    prediction._whole_head.chunk_rows = clean._whole_head.chunk_rows = 3
    steps = posterior(schedule, t, num_times, kind)
    output = discrete_bound(prediction, clean, x0, steps, num_times, loss_mask, num_tokens=11)
    torch.testing.assert_close(
        output.token_nll[loss_mask], torch.stack(expected).detach(), rtol=1e-7, atol=1e-7
    )
    assert output.token_nll[2, 3] == 0
    torch.testing.assert_close(output.loss, output.token_nll.sum() / 11)
    for found, grad in zip(torch.autograd.grad(output.loss, leaves), wanted, strict=True):
        torch.testing.assert_close(found, grad, rtol=1e-6, atol=1e-8)


def test_float32_keeps_the_digits_that_a_thousand_times_take_away() -> None:
    t = torch.linspace(0.001, 1, 1000, dtype=torch.float64)
    x0, generator = torch.zeros(1000, 1, dtype=torch.int64), torch.Generator().manual_seed(0)
    features = torch.randn(1000, 1, V, generator=generator)
    bounds = []
    for dtype in (torch.float32, torch.float64):
        parts = features.to(dtype), torch.eye(V, dtype=dtype), None
        prediction = MeanPrediction(*parts, torch.full_like(x0, MASK), MASK, SCHEDULE.sigma(t), dtype)
        clean = MeanPrediction(*parts, x0, MASK, torch.zeros(1000), dtype)
        steps = posterior(SCHEDULE, t, 1000)
        bounds.append(discrete_bound(prediction, clean, x0, steps, 1000, x0 == 0, 1).token_nll.double())
    torch.testing.assert_close(*bounds, rtol=1e-5, atol=1e-5)


class Mean(ExactDenoiser):
    """The exact denoiser of a world, which gives a part ``mask`` of its distribution to the mask."""

    mask = 0.0

    def denoise(self, xt: Tensor, sigma: Tensor, mask_seeds: Tensor | None) -> MeanPrediction:
        features = super().denoise(xt, sigma, mask_seeds).full() + math.log(1 - self.mask)
        features[..., self.world.mask_id] = math.log(self.mask) if self.mask else NEG_INF
        head = torch.eye(self.world.vocab_size).double()
        return MeanPrediction(features, head, None, xt, self.world.mask_id, sigma, torch.float64)


def bound_of(world: World, denoiser: Mean, schedule: Schedule, num_times: int) -> float:
    """The expected bound of a sequence, summed over all times, masks and sequences."""
    total, x0 = 0.0, world.sequences
    masks = torch.zeros(len(patterns(LENGTH)), LENGTH, dtype=torch.bool)
    for row, chosen in zip(masks, patterns(LENGTH), strict=True):
        row[list(chosen)] = True
    everywhere, xt = x0.repeat(len(masks), 1), x0.masked_fill(masks[:, None], world.mask_id).flatten(0, 1)
    for index in range(1, num_times + 1):
        t = torch.full((len(xt),), index / num_times, dtype=torch.float64)
        loss: LossOutput = discrete_bound(
            denoiser.denoise(xt, schedule.sigma(t), None),
            denoiser.denoise(everywhere, 0 * t, None), everywhere,
            posterior(schedule, t, num_times), num_times, torch.ones_like(xt, dtype=torch.bool), 1,
        )  # fmt: skip
        alpha = schedule.alpha(t[0])
        chance = (1 - alpha) ** masks.sum(-1) * alpha ** (~masks).sum(-1)
        total += float((chance[:, None] * world.probs * loss.token_nll.sum(-1).view(len(masks), -1)).sum())
    return total / num_times


@pytest.mark.parametrize("name", ["log-linear", "cosine"])
def test_the_bound_falls_to_the_entropy_as_times_become_many(name: str) -> None:
    """In one step it is the sum of the marginal entropies; the excess then falls as 1/T, to MDLM's NELBO."""
    world = World(random_probs(3, LENGTH, seed=2), mask_id=1)
    schedule = get_schedule(name, 1e-9 if name == "log-linear" else 1e-6)
    excess = {n: bound_of(world, Mean(world), schedule, n) - world.entropy for n in (1, 4, 64, 128)}
    assert excess[1] == pytest.approx(world.total_correlation(), abs=1e-5)
    assert excess[1] > excess[4] > excess[64] > excess[128] > 0
    assert excess[128] < 0.02 * excess[1] and excess[128] == pytest.approx(excess[64] / 2, rel=0.03)
    wrong = Mean(world)
    wrong.mask = 0.2
    assert bound_of(world, wrong, schedule, 4) > excess[4] + world.entropy + 0.01


@pytest.mark.parametrize("mask", [0.0, 0.3])
def test_the_analytic_sampler_is_its_reverse_process(mask: float) -> None:
    """One step from t = 0.8 to 0.4, against Bayes' rule; 60,000 positions: standard error 0.002."""
    world = World(random_probs(V - 1, 1, seed=2), mask_id=MASK)
    denoiser = Mean(world)
    denoiser.mask = mask
    settings = SamplerSettings(num_steps=1, grid_eps=0.5, noise_removal="none")
    keys = row_keys(0, 2, 0, torch.arange(60_000))
    xt = masked(world, 60_000)
    tokens = {}
    for name in ("analytic", "ancestral"):
        sampler = get_sampler(name)(denoiser, SCHEDULE, MASK, settings)
        tokens[name] = sampler.sample(xt, 0.8, None, KeyedDraws(keys)).tokens
    x = torch.zeros(V).double()
    x[world.symbols], x[MASK] = world.probs * (1 - mask), mask
    distributions = {
        "analytic": reverse_distribution(SCHEDULE, torch.tensor(0.8), torch.tensor(0.4), x),
        "ancestral": reverse_distribution(
            SCHEDULE, torch.tensor(0.8), torch.tensor(0.4), x * (torch.arange(V) != MASK)
        ),
    }
    for name, distribution in distributions.items():
        seen = torch.bincount(tokens[name][:, 0], minlength=V) / 60_000
        torch.testing.assert_close(seen.double(), distribution / distribution.sum(), atol=0.009, rtol=0)
    assert (abs(float(distributions["analytic"][MASK] - distributions["ancestral"][MASK])) > 0.02) == (
        mask > 0
    )


def test_the_algorithm_puts_it_together() -> None:
    """Quantised times, sigma at them, the network at the clean text; every token has a loss, padding none."""
    module, data = build("algo=d3pm", "algo.T=50", "noise=cosine"), batch()
    data["attention_mask"][:, 8:] = False
    assert module.config.algo.posterior == "exact" and module.generator.sampler_class.name == "analytic"
    for training, stream in ((True, Stream.TRAIN_TIME), (False, Stream.VALID_TIME)):
        output = module.loss(data, step=3, num_rows=BATCH, training=training)
        keys = row_keys(module.config.seed, stream, 3, data["row"])
        t = module.objective.times(keys, data["row"], BATCH, training)
        torch.testing.assert_close((t * 50).round(), t * 50)
        xt = module.objective.noised(data, 3, BATCH, training).xt
        sigma = module.objective.schedule.sigma(t)
        again = discrete_bound(
            module.denoiser.denoise(xt, sigma),
            module.denoiser.denoise(data["input_ids"], torch.zeros(BATCH)), data["input_ids"],
            posterior(module.objective.schedule, t, 50), 50,
            data["attention_mask"], data["attention_mask"].sum(),
        )  # fmt: skip
        torch.testing.assert_close(output.token_nll, again.token_nll)
        torch.testing.assert_close(output.loss, output.token_nll.sum() / data["attention_mask"].sum())
        assert torch.equal(output.token_nll > 0, data["attention_mask"])
    other = build("algo=d3pm", "algo.T=50", "algo.posterior=official")
    losses = [
        m.loss(data, step=3, num_rows=BATCH, training=True).loss
        for m in (build("algo=d3pm", "algo.T=50"), other)
    ]
    assert not torch.isclose(*losses, rtol=1e-3)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (
            "training.loss_type=low_var",
            "training.loss_type=low_var: the loss of algo=d3pm is a sum over .*nelbo",
        ),
        (
            "training.mask_sampling=count",
            "training.mask_sampling=count: the loss of algo=d3pm .* algo.T=1000",
        ),
        ("eval.nelbo=count algo.time_conditioning=False", "eval.nelbo=count: .*; use eval.nelbo=time"),
        ("algo.posterior=official noise=cosine", "algo.posterior=official: .*; use algo.posterior=exact"),
        ("algo.T=0", "algo.T=0: out of range; give a number >= 1"),
        ("sampling.predictor=first_hitting sampling.noise_removal=none", "sampling.noise_removal=none"),
    ],
)
def test_mistakes_are_one_line(words: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^{complaint}"):
        compose_config(["algo=d3pm", *words.split()], warn=False)
    with pytest.raises(ValueError, match="^algo.T=1000: "):
        compose_config(["algo=sedd", "algo.T=1000"], warn=False)


def test_wrong_posterior_and_sampler() -> None:
    with pytest.raises(
        ValueError, match="^algo.posterior=other: no such posterior; use one of exact, official"
    ):
        posterior(SCHEDULE, torch.ones(1), 10, "other")
    for algo in ("sedd", "d3pm"):
        with pytest.raises(ValueError, match="^sampling.predictor=autoregressive: .*; use one of analytic"):
            build(f"algo={algo}", "sampling.predictor=autoregressive")
