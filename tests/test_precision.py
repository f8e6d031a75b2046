"""Draws at the edge of precision: the default ones are exact, those of float32 lose what the formula says."""

from __future__ import annotations

import itertools
import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

import samplers.draws as draws_module
from api import Model
from diffusion import NEG_INF
from diffusion.gumbel import grid_distribution, gumbel_max, truncated_distribution
from diffusion.noise import get_schedule
from diffusion.parameterization import Prediction
from diffusion.randomness import row_keys, uniform
from metrics import TextScores
from samplers import KeyedDraws, SamplerSettings, get_sampler
from samplers.study.truncated import DRAWS, Float32Draws, TruncatedDraws
from scripts.precision import study
from scripts.precision.checkpoint import Remembering
from scripts.precision.distribution import enumerate_distribution, step_distributions, written, zipf_in_stairs
from tests.test_algo import build
from tests.test_samplers import grid_alphas
from tests.worlds import total_variation, tv_noise

pytestmark = pytest.mark.slow

SKEWED = torch.tensor([0.013, 0.29, 0.048, 0.599, 0.05], dtype=torch.float64)


class OneLaw:
    """A denoiser that says the same everywhere: ``probs`` (V,), the mask last."""

    def __init__(self, probs: Tensor) -> None:
        self.log_probs = probs.log().clamp(min=NEG_INF)

    def denoise(self, xt: Tensor, sigma: Tensor, mask_seeds: Tensor | None) -> Prediction:
        features = self.log_probs.expand(*xt.shape, -1)
        head = torch.eye(len(self.log_probs), dtype=torch.float64)
        return Prediction(features, head, None, xt, len(self.log_probs) - 1, dtype=torch.float64)


def sample(probs: Tensor, draws: KeyedDraws, rows: int, predictor: str, num_steps: int) -> Tensor:
    """Tokens (rows,) of sequences of one token."""
    sampler = get_sampler(predictor)(
        OneLaw(probs), get_schedule("log-linear", 1e-3), len(probs) - 1, SamplerSettings(num_steps)
    )
    return sampler.sample(torch.full((rows, 1), len(probs) - 1), 1.0, None, draws).tokens[:, 0]


# The default draws -----------------------------------------------------------------------------------


@pytest.mark.parametrize("predictor", ["ancestral_cache", "first_hitting", "ancestral_joint"])
def test_default_draws_give_every_probability_down_to_1e_9(
    predictor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uniforms that are spread evenly over a window around a token's part of [0, 1) go through the draws of a
    whole sampler; the share that draws it, times the window's width, is its probability, to 2 of 20,000."""
    probs = torch.tensor([1e-9, 0.3, 2e-9, 0.25, 1e-8, 3e-7, 1e-4, 0.2, 0.0], dtype=torch.float64)
    probs[7] += 1 - probs.sum()
    edges = torch.cat([torch.zeros(1, dtype=torch.float64), probs.cumsum(0)])
    rows = 20_000
    for token, prob in enumerate(probs[:-1].tolist()):
        width = min(4 * prob, 1.0)
        start = min(max(float(edges[token]) - 1.5 * prob, 0.0), 1 - width)
        window = start + width * (torch.arange(rows, dtype=torch.float64) + 0.5) / rows
        monkeypatch.setattr(draws_module, "uniform", lambda keys, n, w=window: w.unsqueeze(1).expand(-1, n))
        drawn = sample(probs, KeyedDraws(torch.arange(rows)), rows, predictor, 1)
        assert float((drawn == token).double().mean()) * width == pytest.approx(prob, rel=5e-4)


def test_the_uniforms_of_the_default_draws_are_finer_than_float32() -> None:
    u = uniform(row_keys(0, 1, 0, torch.arange(1000)), 1).squeeze(1)
    rest = (u * 2.0**24).frac()  # 0 in float32; here uniform, with mean 1/2 and standard error 0.009
    assert float(rest.mean()) == pytest.approx(0.5, abs=0.045)
    assert DRAWS["exact"] is KeyedDraws


# The distribution of Gumbel-max with few bits
# -----------------------------------------------------------------


@pytest.mark.parametrize("bits", [3, 5, 24])
def test_the_formula_is_the_distribution_of_truncated_gumbels(bits: int) -> None:
    """Against the integral over the winner's noise: density times the others' distribution functions."""
    limit = -math.log(-math.log1p(-(2.0**-bits)))
    x = torch.linspace(-6, limit, 400_001, dtype=torch.float64)
    norm = math.exp(-math.exp(-limit))

    def below(y: Tensor) -> Tensor:
        return torch.where(y < limit, torch.exp(-torch.exp(-y)) / norm, 1.0)

    for n, prob in enumerate(SKEWED.tolist()):
        density = torch.exp(-x - torch.exp(-x)) / norm
        for k, other in enumerate(SKEWED.tolist()):
            if k != n:
                density = density * below(x + math.log(prob / other))
        expected = float(torch.trapezoid(density, x))
        assert float(truncated_distribution(SKEWED, bits=bits)[n]) == pytest.approx(expected, abs=1e-6)


def test_the_grid_distribution_is_that_of_all_cases() -> None:
    levels = [-math.log(-math.log(max(k / 8, 1e-10))) for k in range(8)]
    probs = torch.tensor([0.15, 0.32, 0.53], dtype=torch.float64)
    expected = [0.0] * 3
    for case in itertools.product(range(8), repeat=3):
        scores = [levels[k] + math.log(p) for k, p in zip(case, probs.tolist(), strict=True)]
        expected[scores.index(max(scores))] += 8.0**-3
    assert grid_distribution(probs, bits=3).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("on_grid", [False, True])
def test_draws_have_these_distributions(on_grid: bool) -> None:
    keys = row_keys(0, 1, 0, torch.arange(40_000))
    drawn = gumbel_max(SKEWED.log().expand(len(keys), -1), keys, bits=4, on_grid=on_grid)
    distribution = (grid_distribution if on_grid else truncated_distribution)(SKEWED, bits=4)
    other = (truncated_distribution if on_grid else grid_distribution)(SKEWED, bits=4)
    assert distribution.sum() == pytest.approx(1)
    found = drawn.bincount(minlength=5) / len(keys)
    allowed = tv_noise(distribution, len(keys))
    assert total_variation(found, distribution) < allowed < total_variation(found, other)
    assert total_variation(distribution, SKEWED) > 2 * allowed


def test_laws_of_float32() -> None:
    """Beside a likely token one of probability p keeps a part exp(-a) of it, a = 2^-24 / p, and on the grid
    of float32 a / (exp(a) - 1): the integral, or the sum, of exp(-x / p) over the levels x >= 2^-24."""
    small = torch.tensor([1e-9, 1e-8, 6e-8, 1e-7, 1e-6, 1e-5], dtype=torch.float64)
    probs = torch.cat([small, 1 - small.sum(0, keepdim=True)])
    a = 2.0**-24 / small
    for distribution, part in ((truncated_distribution, (-a).exp()), (grid_distribution, a / torch.expm1(a))):
        torch.testing.assert_close((distribution(probs) / probs)[:-1], part, rtol=1e-4, atol=1e-12)
        assert float(distribution(probs).sum()) == pytest.approx(1, abs=1e-5)
    # Equals can be told together, and what has no mass is not drawn.
    grouped = truncated_distribution(torch.tensor([0.02, 0.0, 0.1]), torch.tensor([10.0, 3.0, 8.0]), bits=6)
    single = truncated_distribution(torch.tensor([0.02] * 10 + [0.0] * 3 + [0.1] * 8), bits=6)
    torch.testing.assert_close(grouped, torch.stack([part.sum() for part in single.split([10, 3, 8])]))
    assert grouped[1] == 0


def test_finer_bits_and_equal_distributions_change_nothing() -> None:
    flat = torch.full((100,), 0.01, dtype=torch.float64)
    torch.testing.assert_close(truncated_distribution(flat, bits=8), flat)
    torch.testing.assert_close(truncated_distribution(SKEWED, bits=50), SKEWED, rtol=1e-9, atol=0)


# In samplers -----------------------------------------------------------------------------------------


class Truncated3(KeyedDraws):
    """Gumbel noise of three bits, whose truncation a few thousand samples can see."""

    def categorical(self, log_probs: Tensor, keys: Tensor) -> Tensor:
        return gumbel_max(log_probs, keys, bits=3)


def test_joint_steps_are_truncated_as_a_whole() -> None:
    """Steps of the tokens and the mask, and at last of the tokens. The same draws in ``ancestral``, which
    truncates tokens alone, have another distribution."""
    expected, still = torch.zeros(5, dtype=torch.float64), 1.0
    for alpha_t, alpha_s in pairwise(grid_alphas(get_schedule("log-linear", 1e-3), 6)):
        unmask = (alpha_s - alpha_t) / (1 - alpha_t)
        distribution = truncated_distribution(
            torch.cat([SKEWED * unmask, torch.tensor([1 - unmask])]), bits=3
        )
        expected, still = expected + still * distribution[:-1], still * float(distribution[-1])
    apart = truncated_distribution(SKEWED, bits=3)
    keys, probs = row_keys(0, 1, 0, torch.arange(20_000)), torch.cat([SKEWED, torch.zeros(1)])
    for name, own in (("ancestral_joint", expected), ("ancestral", apart)):
        found = sample(probs, Truncated3(keys), len(keys), name, 6).bincount(minlength=5) / len(keys)
        assert total_variation(found, own) < tv_noise(own, len(keys))
    assert total_variation(expected, apart) > 2 * tv_noise(expected, len(keys))


def test_the_key_chooses_the_draws() -> None:
    """A module draws as sampling.draws says; use_float64=False is float32."""
    tokens = {}
    for words in ("draws=exact", "draws=truncated32", "draws=float32", "use_float64=False"):
        module = build("algo=mdlm", f"sampling.{words}")
        tokens[words] = module.generator.sample(64, 4).tokens
        assert not (tokens[words] == module.mask_id).any()
    assert torch.equal(tokens["use_float64=False"], tokens["draws=float32"])
    # The same Gumbel numbers but for their last bits: a toy network's tokens do not depend on these.
    assert torch.equal(tokens["draws=truncated32"], tokens["draws=float32"])
    assert not torch.equal(tokens["draws=exact"], tokens["draws=float32"])
    for kind in (TruncatedDraws, Float32Draws):
        assert type(kind(torch.arange(3)).select(torch.tensor([1]))) is kind


# The study -------------------------------------------------------------------------------------------


def test_the_enumerated_distribution_of_many_steps() -> None:
    probs, counts = zipf_in_stairs(2000)
    assert float(counts.sum()) == 2000 and float((probs * counts).sum()) == pytest.approx(1)
    exact = step_distributions("exact", probs, counts, 50)
    for num_steps in (1, 7, 50):
        distribution, left = written(exact, num_steps)
        torch.testing.assert_close(distribution, probs * counts)
        assert left == pytest.approx(1 / num_steps)
    # Between its knots the grid's distribution is interpolated: here it is at n = 333.
    n, most = 333, 1000
    joint = torch.cat([probs / n, torch.tensor([1 - 1 / n])]), torch.cat([counts, torch.ones(1)])
    torch.testing.assert_close(
        step_distributions("float32", probs, counts, most)[n - 1],
        grid_distribution(*joint)[:-1],
        rtol=1e-3,
        atol=0,
    )
    rows = {(row["draws"], row["steps"]): row for row in enumerate_distribution(probs, counts, [1, 2000])}
    entropy = {key: row["entropy"] for key, row in rows.items()}
    assert entropy["truncated32", 2000] < entropy["float32", 2000] < entropy["exact", 2000] - 0.05
    assert entropy["truncated32", 1] == pytest.approx(entropy["exact", 1], abs=1e-3)


def test_remembered_calls_are_the_calls() -> None:
    """The study's samples are those of the program, with fewer calls of the network."""
    module = build("algo=imdm", "sampling.predictor=ancestral_joint", "sampling.draws=truncated32")
    keys = row_keys(1, 7, 0, torch.arange(6))
    mask_seeds = module.objective.draw_seeds(keys, module.config.model.length)
    expected = module.generator.reverse(module.generator.prior(6), 1.0, mask_seeds, keys, 40).tokens
    asked: list[int] = []
    ask = module.objective.denoise
    module.objective.denoise = lambda net, xt, *more: asked.append(len(xt)) or ask(net, xt, *more)
    sampler = get_sampler("ancestral_joint")(
        Remembering(module), module.objective.schedule, module.mask_id, module.generator.sampler_settings(40)
    )
    with torch.no_grad():
        found = sampler.sample(module.generator.prior(6), 1.0, mask_seeds, TruncatedDraws(keys)).tokens
    assert torch.equal(found, expected)
    assert sum(asked) < 6 * 40


class StandIn:
    """A judge by the length of texts in place of a language model."""

    def __init__(self, cfg: DictConfig) -> None:
        assert cfg.eval.gen_ppl_eval_model_name_or_path == "judge.ckpt"

    def scores(self, texts: list[str], device: torch.device, length: int) -> TextScores:
        numbers = torch.tensor([float(len(text)) for text in texts], dtype=torch.float64)
        return TextScores(numbers, torch.full_like(numbers, length))


def test_the_study_writes_its_table_and_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(build("algo=mdlm", "eval.gen_ppl_eval_model_name_or_path=judge.ckpt"))
    monkeypatch.setattr("scripts.precision.checkpoint.load", lambda path, **settings: model)
    monkeypatch.setattr("scripts.precision.checkpoint.GenerativePerplexity", StandIn)
    words = ["--checkpoint", "a.ckpt", "--judge", "judge.ckpt", "--steps", "1,8", "--samples", "6"]
    study.main(
        ["--out", str(tmp_path), "--vocab", "500", "--distribution-steps", "1,64", "--batch", "4", *words]
    )
    text = (tmp_path / "table.md").read_text()
    assert "| 64 |" in text and "| 8 | truncated32 |" in text
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    found = json.loads((tmp_path / "study.json").read_text())
    assert len(found["distribution"]) == 6 and len(found["checkpoint"]) == 6
    for row in found["checkpoint"]:  # 24 bits are enough for a few tokens in a few steps
        assert (row["samples_that_differ"], row["ppl_factor"], row["entropy_shift"]) == (0, 1, 0)
        assert row["generative_ppl_interval"][0] <= row["generative_ppl"] <= row["generative_ppl_interval"][1]
