"""SEDD: its loss against the formula of the paper, its optimum and samples on enumerable worlds, training.

Shapes: B rows, L positions, D width, V vocabulary with the mask.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from test_algo import BATCH, batch, build
from test_objectives import LENGTH, patterns
from test_samplers import assert_distribution, grid_alphas, masked
from test_training import run
from torch import Tensor
from worlds import ExactDenoiser, World, random_probs

from config.cli import compose_config
from diffusion.noise import get_schedule
from diffusion.objectives import masked_nelbo
from diffusion.randomness import row_keys
from diffusion.score_entropy import Score
from samplers import KeyedDraws, SamplerSettings, get_sampler

pytestmark = pytest.mark.slow

SCHEDULE = get_schedule("log-linear")
V, MASK = 7, 2


def problem() -> tuple[list[Tensor], Tensor, Tensor]:
    """Leaves (features (2, 5, 4), weight, bias), x0 and xt, in float64."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 5, 4), (V, 4), (V,))
    leaves = [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]
    x0 = torch.tensor([[0, 1, 3, 6, 5], [3, 4, 0, 1, 6]])
    xt = torch.tensor([[2, 1, 2, 2, 2], [3, 2, 2, 1, 2]])
    return leaves, x0, xt


@pytest.mark.parametrize("name", ["log-linear", "cosine"])
def test_loss_and_gradients_are_those_of_the_paper(name: str) -> None:
    """Against the score entropy written out over (B, L, V), with autograd."""
    schedule, t = get_schedule(name), torch.tensor([0.3, 0.9], dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    leaves, x0, xt = problem()
    logits = leaves[0] @ leaves[1].T + leaves[2]
    log_score = logits - (sigma.exp() - 1).log()[:, None, None] - math.log(V - 1)
    log_score = log_score.scatter(2, xt[..., None], 0.0)
    tokens = [v for v in range(V) if v != MASK]
    q = (1 / (sigma.exp() - 1))[:, None]
    at_x0 = log_score.gather(2, x0[..., None])[..., 0]
    entropy = log_score[..., tokens].exp().sum(-1) - q * at_x0 + q * (q.log() - 1)
    expected = (-schedule.dalpha(t) / alpha)[:, None] * entropy * (xt == MASK)
    wanted = torch.autograd.grad(expected.sum() / 7, leaves)

    score = Score(*leaves, xt, MASK, sigma, dtype=torch.float64)
    score._head.chunk_rows = 3
    everywhere = torch.ones_like(xt, dtype=torch.bool)
    output = masked_nelbo(score, x0, xt, MASK, schedule.weight(t), everywhere, num_tokens=7)
    torch.testing.assert_close(output.token_nll, expected.detach())
    torch.testing.assert_close(output.loss, expected.sum() / 7)
    for found, grad in zip(torch.autograd.grad(output.loss, leaves), wanted, strict=True):
        torch.testing.assert_close(found, grad)
    with torch.no_grad():
        unseen = masked_nelbo(score, x0, xt, MASK, schedule.weight(t), everywhere, num_tokens=7)
    torch.testing.assert_close(unseen.token_nll, output.token_nll)
    rows = (xt == MASK).flatten().nonzero().squeeze(1)
    torch.testing.assert_close(score.log_score(rows), log_score.flatten(0, 1)[rows])


def test_float32_loss_is_the_float64_one() -> None:
    leaves, x0, xt = problem()
    sigma, everywhere = torch.ones(2), torch.ones_like(xt, dtype=torch.bool)
    losses = []
    for dtype in (torch.float32, torch.float64):
        score = Score(*(leaf.to(dtype) for leaf in leaves), xt, MASK, sigma, dtype=dtype)
        losses.append(masked_nelbo(score, x0, xt, MASK, sigma, everywhere, num_tokens=7).token_nll)
    assert losses[0].dtype == torch.float32
    torch.testing.assert_close(losses[0].double(), losses[1], rtol=1e-6, atol=1e-6)


class ExactScore(ExactDenoiser):
    """The score of a world; ``bias`` is added to the logits, as by a network whose score has a wrong sum."""

    bias = 0.0

    def denoise(self, xt: Tensor, sigma: Tensor, mask_seeds: Tensor | None) -> Score:
        features = (
            super().denoise(xt, sigma, mask_seeds).full() + math.log(self.world.num_symbols) + self.bias
        )
        head = torch.eye(self.world.vocab_size).double()
        return Score(features, head, None, xt, self.world.mask_id, sigma, torch.float64)


@pytest.mark.parametrize("mask_id", [None, 1])
def test_the_exact_score_has_mdlms_nelbo_and_any_other_a_larger_one(mask_id: int | None) -> None:
    """Position by position, for all sequences and masks: so the NELBO of the exact score is the entropy, as
    tests/test_objectives.py integrates it. A sum of the score off by e^c costs e^c - 1 - c."""
    world = World(random_probs(3, LENGTH, seed=2), mask_id=mask_id)
    wrong = ExactScore(world)
    wrong.bias = 0.4
    for chosen in patterns(LENGTH):
        is_masked = torch.zeros(LENGTH, dtype=torch.bool)
        is_masked[list(chosen)] = True
        x0 = world.sequences
        xt, weight = x0.masked_fill(is_masked, world.mask_id), torch.full((len(x0),), 1.7).double()
        everywhere = torch.ones_like(xt, dtype=torch.bool)
        mdlm, exact, biased = (
            masked_nelbo(
                d.denoise(xt, weight, None), x0, xt, world.mask_id, weight, everywhere, 1
            ).token_nll
            for d in (world.denoiser(), ExactScore(world), wrong)
        )  # fmt: skip
        torch.testing.assert_close(exact, mdlm)
        torch.testing.assert_close(biased, mdlm + 1.7 * (math.exp(0.4) - 1.4) * is_masked)


@pytest.mark.parametrize("name", ["analytic", "ancestral", "first_hitting"])
def test_samples_of_the_exact_score_have_the_distribution(name: str) -> None:
    """Other samplers than its own read x_theta, the normalised score, which a wrong sum does not touch."""
    world, num = World(random_probs(3, 3), mask_id=1), 20_000
    denoiser = ExactScore(world)
    denoiser.bias = 0.0 if name == "analytic" else 0.7
    sampler = get_sampler(name)(denoiser, SCHEDULE, world.mask_id, SamplerSettings(num_steps=4))
    samples = sampler.sample(masked(world, num), 1.0, None, KeyedDraws(row_keys(0, 2, 0, torch.arange(num))))
    distribution = (
        world.data_distribution if name == "first_hitting" else world.distribution(grid_alphas(SCHEDULE, 4))
    )
    assert_distribution(world, samples.tokens, distribution)


def test_low_variance_and_count_forms() -> None:
    """A network that sees no time has the same weights as MDLM: all forms of its NELBO exist."""
    plain = build("algo=sedd")
    assert plain.config.algo.time_conditioning and plain.generator.sampler_class.name == "analytic"
    low_var = build("algo=sedd", "training.loss_type=low_var")
    outputs = [m.loss(batch(), step=0, num_rows=BATCH, training=True) for m in (plain, low_var)]
    torch.testing.assert_close(outputs[0].token_nll, outputs[1].token_nll)
    assert not torch.isclose(outputs[0].loss, outputs[1].loss)
    cfg = compose_config(["algo=sedd", "algo.time_conditioning=False", "eval.nelbo=auto"], warn=False)
    assert cfg.eval.nelbo == "count"
    assert compose_config(["algo=sedd", "eval.nelbo=auto"], warn=False).eval.nelbo == "time"


@pytest.mark.parametrize("algo", ["sedd", "d3pm"])
def test_training_reaches_the_entropy_and_resumes(algo: str, tmp_path: Path) -> None:
    """A sequence repeats one of 8 symbols: ln(8)/8 nats per token; then the last 50 steps over again."""
    folder = f"checkpointing.save_dir={tmp_path}/run"
    words = (f"algo={algo}", "trainer.val_check_interval=250", "sampling.steps=32")
    every = "callbacks.checkpoint_every_n_steps.every_n_train_steps=200"
    run(tmp_path, *words, every, "trainer.max_steps=250", folder)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    evaluate = (f"eval.checkpoint_path={last}", f"eval.generated_samples_path={tmp_path}/out.json", *words)
    measured = run(tmp_path, "mode=ppl_eval", *evaluate)
    entropy, error = math.log(8) / 8, measured["nll_stderr"]
    assert measured["nelbo"] == "time" and error < 0.15 * entropy
    assert entropy - 4 * error < measured["nll"] < 1.2 * entropy + 4 * error
    run(tmp_path, "mode=sample_eval", "eval.compute_generative_perplexity=False", *evaluate)
    texts = json.loads((tmp_path / "out.json").read_text())["generated_seqs"]
    # Of 32 steps the first that unmasks takes one position alone with probability 0.88.
    alike = sum(len(set(text.split())) == 1 for text in texts)
    assert alike > 0.8 * len(texts)

    again = tmp_path / "again"
    (again / "checkpoints").mkdir(parents=True)
    start = tmp_path / "run" / "checkpoints" / "0-200.ckpt"
    resume = (f"checkpointing.resume_ckpt_path={start}", f"checkpointing.save_dir={again}")
    run(tmp_path, *words, every, "trainer.max_steps=250", *resume)
    once, twice = (
        torch.load(path, weights_only=True) for path in (last, again / "checkpoints" / "last.ckpt")
    )
    assert once["state_dict"].keys() == twice["state_dict"].keys()
    assert all(
        torch.equal(once["state_dict"][name], twice["state_dict"][name]) for name in once["state_dict"]
    )
    mdlm = build("algo=mdlm", "model.n_blocks=2").state_dict()
    assert list(once["state_dict"]) == list(mdlm) and once["ema"]["num_updates"] == 250
