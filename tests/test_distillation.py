"""Discrete consistency distillation: the distribution of a pair of noise levels, the loss, the rounds,
resumption.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from resume_runs import Runner, content, differences, metrics, running
from test_algo import BATCH, LENGTH, batch, build, part
from test_training import run

from algorithms.objective import Stage
from diffusion.distillation import consistency_dt
from diffusion.duality import argmax_distribution, argmax_pair, discrete_level
from diffusion.randomness import Stream, row_keys, uniform
from trainer_base import TrainerBase

pytestmark = pytest.mark.slow

DCD = "algo=distillation"
NUM_SAMPLES = 100_000


# The path of noise --------------------------------------------------------------------------------


def test_a_pair_is_the_argmax_at_two_levels_under_one_noise() -> None:
    """Joint frequencies, of Gaussians and of the pair, against the formula: 4.5 sqrt(p (1 - p) / n)."""
    size, x0 = 4, 2
    gammas = torch.tensor([-1.0, -2.0], dtype=torch.float64)
    p_t, p_s = argmax_distribution(gammas, size).stays.tolist()
    distribution = torch.zeros(size, size).double()
    distribution[x0, x0] = p_t
    for other in (0, 1, 3):
        distribution[other, x0], distribution[other, other] = (p_s - p_t) / 3, (1 - p_s) / 3
    z = torch.randn(NUM_SAMPLES, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    signal_, noise = torch.sigmoid(-gammas).sqrt(), torch.sigmoid(gammas).sqrt()
    dense = [(s * torch.eye(size)[x0] + n * z).argmax(-1) for s, n in zip(signal_, noise, strict=True)]
    ids, stays = torch.full((NUM_SAMPLES, 1), x0), torch.ones(NUM_SAMPLES).double()
    lazy = argmax_pair(ids, p_t * stays, p_s * stays, uniform(torch.arange(NUM_SAMPLES), 2), size)
    for xt, xs in (dense, lazy):
        found = torch.bincount((xt * size + xs).flatten(), minlength=size**2).view(size, size) / NUM_SAMPLES
        assert (
            (found - distribution).abs() <= 4.5 * (distribution * (1 - distribution) / NUM_SAMPLES).sqrt()
        ).all()
    assert distribution.sum() == pytest.approx(1)


def test_a_step_ends_where_it_should() -> None:
    """t is the drawn time plus dt, at most 1; s lies dt before it; the network sees the sigma of both."""
    module, step = build(DCD, "algo.T=4", "algo.gamma_min=-5"), 3
    found = module.objective.trajectory(batch(), step, BATCH, training=True, dt=0.25)
    keys, rows = (
        row_keys(module.config.seed, Stream.TRAIN_TIME, step, torch.arange(BATCH)),
        torch.arange(BATCH),
    )
    t = (module.objective.times(keys, rows, BATCH, True) + 0.25).clamp(max=1)
    assert (t == 1).sum() == 4 and (t - 0.25 > 0).all()
    for sigma, time in ((found.sigma_t, t), (found.sigma_s, t - 0.25)):
        distribution = argmax_distribution(-5 + 4 * time, module.vocab_size)
        torch.testing.assert_close(sigma, discrete_level(distribution, 4.0, module.vocab_size)[1])
    x0 = batch()["input_ids"]
    assert ((found.xs == x0) | (found.xs == found.xt)).all() and (found.xs != found.xt).any()
    fixed = build(DCD, "training.ignore_bos=True").objective.trajectory(batch(), step, BATCH, True, 1 / 64)
    assert torch.equal(fixed.xt[:, 0], x0[:, 0]) and torch.equal(fixed.xs[:, 0], x0[:, 0])
    assert not fixed.loss_mask[:, 0].any()


def test_steps_double_or_grow_evenly() -> None:
    assert [consistency_dt(n, 64) for n in (0, 1, 6)] == [1 / 64, 1 / 32, 1]
    module = build(DCD)
    assert (module.objective.round_at(9_999), module.objective.round_at(10_000)) == (0, 1)
    assert module.objective.finished(69_999) is None
    assert module.objective.finished(70_000) == "a step of 128/algo.T=64 is longer than all the time there is"
    assert module.objective.dt(Stage(8, 90_000)) == 1  # a validation at the very end
    linear = build(DCD, "algo.linear_growth_dt=True", "algo.linear_growth_min=0.1",
                   "algo.linear_growth_max=0.5", "trainer.max_steps=100")  # fmt: skip
    assert [linear.objective.dt(Stage(0, step)) for step in (0, 50, 100, 300)] == pytest.approx(
        [0.1, 0.3, 0.5, 0.5]
    )
    assert linear.objective.finished(10**7) is None


# The loss -----------------------------------------------------------------------------------------


def another_teacher(module: TrainerBase) -> TrainerBase:
    """A teacher that is not the student."""
    module.rounds.teacher = module.rounds._copy_of_student()
    generator = torch.Generator().manual_seed(5)
    for parameter in module.rounds.teacher.backbone.parameters():
        parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return module


@pytest.mark.parametrize("kind", ["kl-bwd", "kl-fwd"])
@pytest.mark.parametrize("words", [(), ("training.loss_precision=float64", "algo.time_conditioning=False")])
def test_loss_and_gradients_are_those_of_the_definition(kind: str, words: tuple[str, ...]) -> None:
    module = another_teacher(build(DCD, "algo.T=4", f"algo.loss_type={kind}", *words))
    data = batch()
    data["attention_mask"][:, 8:] = False
    output = module.loss(data, step=3, num_rows=BATCH, training=True)
    ends = module.objective.trajectory(data, 3, BATCH, training=True, dt=0.25)
    log_q = module.denoiser.denoise(ends.xt, ends.sigma_t).full()
    log_p = module.rounds.teacher.denoise(ends.xs, ends.sigma_s, None).full().detach()
    first, second = (log_q, log_p) if kind == "kl-bwd" else (log_p, log_q)
    expected = (first.exp() * (first - second)).sum(-1)[data["attention_mask"]].mean()
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=1e-6)
    assert output.loss > 0.1 and output.loss.dtype == module.objective.context.dtype
    parameters = list(module.parameters())
    found, wanted = (torch.autograd.grad(x, parameters, allow_unused=True) for x in (output.loss, expected))
    for grad, want in zip(found, wanted, strict=True):
        if want is not None:
            torch.testing.assert_close(grad, want.to(grad.dtype), rtol=1e-4, atol=1e-6)
    assert all(p.grad is None and not p.requires_grad for p in module.rounds.teacher.backbone.parameters())


def test_a_student_like_its_teacher_at_the_same_place_has_nothing_to_learn() -> None:
    still = build(DCD, "algo.linear_growth_dt=True", "algo.linear_growth_min=0")
    assert still.loss(batch(), step=0, num_rows=BATCH, training=True).loss.abs() < 1e-6
    assert build(DCD, "algo.T=2").loss(batch(), step=0, num_rows=BATCH, training=True).loss > 1e-3


def test_micro_batches_add_up_and_padding_never_counts() -> None:
    module, whole = another_teacher(build(DCD, "training.ignore_bos=True")), batch()
    for row in range(BATCH):
        whole["attention_mask"][row, 3 + row % 8 :] = False
    whole["num_tokens"] = whole["attention_mask"].sum().float()
    full = module.loss(whole, step=3, num_rows=BATCH, training=True).loss
    losses = []
    for start in range(0, BATCH, 4):
        piece = part({name: value for name, value in whole.items() if value.ndim}, slice(start, start + 4))
        piece["num_tokens"] = whole["num_tokens"] / 4
        losses.append(module.loss(piece, step=3, num_rows=BATCH, training=True).loss)
    torch.testing.assert_close(torch.stack(losses).mean(), full)
    _, divergence, where = module.rounds.distill(whole, step=3, num_rows=BATCH, training=True)
    assert torch.equal(where[:, 1:], whole["attention_mask"][:, 1:]) and not where[:, 0].any()
    assert ((divergence > 0) == where).all()
    whole["attention_mask"][:] = False
    nothing = module.loss(
        whole | {"num_tokens": torch.tensor(1.0)}, step=3, num_rows=BATCH, training=True
    ).loss
    nothing.backward()
    assert nothing == 0
    assert all(p.grad is not None and (p.grad == 0).all() for p in module.parameters())


def test_the_nelbo_is_that_of_the_uniform_process() -> None:
    """In validation, and in training on the steps that are logged (every second one here)."""
    module, twin = another_teacher(build(DCD, "trainer.log_every_n_steps=2")), build("algo=duo_base")
    for step, training in ((0, False), (3, True)):
        arguments = {"step": step, "num_rows": BATCH, "training": training}
        found, expected = module.rounds.distill(batch(), **arguments)[0], twin.loss(batch(), **arguments)
        torch.testing.assert_close(found.token_nll, expected.token_nll)
        assert torch.equal(found.loss_mask, expected.loss_mask)
    assert not module.loss(batch(), step=2, num_rows=BATCH, training=True).loss_mask.any()


def test_it_samples_as_duo_base() -> None:
    module, twin = build(DCD), build("algo=duo_base")
    assert module.state_dict().keys() == twin.state_dict().keys()
    assert torch.equal(module.generator.sample(6, 4).tokens, twin.generator.sample(6, 4).tokens)
    assert module.generator.sample(2, 1).tokens.shape == (2, LENGTH)


# Whole runs ---------------------------------------------------------------------------------------

FOUR = ("data.vocab_size=4", "loader.global_batch_size=32", "trainer.val_check_interval=1000", "seed=4")
ROUNDS = (DCD, "algo.T=8", "algo.update_teacher_every=2")


@pytest.fixture(scope="module")
def duo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Duo that knows that all symbols of a sequence agree (4 symbols, 8 positions)."""
    folder = tmp_path_factory.mktemp("duo")
    run(folder, "algo=duo_base", *FOUR, "trainer.max_steps=200", f"checkpointing.save_dir={folder}/run")
    return folder / "run" / "checkpoints" / "last.ckpt"


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("use_ema", [True, False])
def test_the_student_of_a_round_is_the_teacher_of_the_next(use_ema: bool, duo: Path, tmp_path: Path) -> None:
    result = run(tmp_path, *ROUNDS, *FOUR, f"algo.teacher_ema={use_ema}", "trainer.max_steps=2",
                 f"training.finetune_path={duo}", "trainer.log_every_n_steps=1", "training.load_ema=True",
                 "trainer.val_check_interval=2", f"checkpointing.save_dir={tmp_path}/run")  # fmt: skip
    assert {"val/nll", "val/distill_loss", "train/nll", "trainer/loss", "train/dt"} <= result.keys()
    folder = tmp_path / "run" / "checkpoints"
    student, last = load(folder / "student_checkpoints" / "2.ckpt"), load(folder / "last.ckpt")
    averaged = dict(zip(student["ema"]["names"], student["ema"]["shadow_params"], strict=True))
    assert last["teacher"]["round"] == 1 and last["ema"]["num_updates"] > 2
    for name, raw in student["state_dict"].items():
        chosen = averaged.get(name, raw) if use_ema else raw
        assert torch.equal(last["teacher"]["state_dict"][name.removeprefix("backbone.")], chosen)
        assert torch.equal(last["state_dict"][name], raw)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    with running(tmp_path_factory.mktemp("killed")) as found:
        yield found


KINDS = {
    "doubling, averaged": ("algo.teacher_ema=True",),
    "linear": ("algo.linear_growth_dt=True", "algo.linear_growth_min=0.1", "algo.linear_growth_max=0.9"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_in_any_round_goes_on_bit_for_bit(kind: str, runner: Runner, tmp_path: Path) -> None:
    """12 steps in four rounds of 3, a checkpoint after every second one: killed inside rounds, behind the end
    of a round that no checkpoint has, behind one that has, in the write of a file, while samples are made."""
    words = (
        DCD, "algo.T=16", "algo.update_teacher_every=3", *KINDS[kind],
        "callbacks.checkpoint_every_n_steps.every_n_train_steps=2",
    )  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code, log = runner(whole, *words)
    assert code == 0, log
    faults = (("update", 4), ("update", 3), ("update", 4), ("replace", 3), ("sample", 1))
    for fault in faults if kind != "linear" else faults[::2]:
        code, log = runner(killed, *words, fault=(*fault, "SIGKILL"))
        assert code == -signal.SIGKILL, log
    code, log = runner(killed, *words)
    assert code == 0, log
    last = "checkpoints/last.ckpt"
    assert not differences(content(killed / last), content(whole / last))
    assert content(whole / last)["teacher"]["round"] == 4
    assert metrics(killed) == metrics(whole)
    students = [sorted((path / "checkpoints" / "student_checkpoints").iterdir()) for path in (killed, whole)]
    assert [path.name for path in students[0]] == ["12.ckpt", "3.ckpt", "6.ckpt", "9.ckpt"]
    for ours, theirs in zip(*students, strict=True):
        assert not differences(load(ours)["state_dict"], load(theirs)["state_dict"])


def test_training_ends_when_a_step_takes_all_the_time(duo: Path, tmp_path: Path) -> None:
    result = run(tmp_path, *ROUNDS, *FOUR, "trainer.max_steps=100", f"training.finetune_path={duo}",
                 f"checkpointing.save_dir={tmp_path}/run")  # fmt: skip
    assert result["steps"] == 8
    assert result["finished"] == "a step of 16/algo.T=8 is longer than all the time there is"


def test_distillation_reduces_the_steps_that_are_needed(duo: Path, tmp_path: Path) -> None:
    """Sequences of one repeated symbol, of which Duo hardly ever makes one in two steps."""
    run(tmp_path, DCD, *FOUR, "algo.T=16", "algo.update_teacher_every=60", "trainer.max_steps=300",
        f"training.finetune_path={duo}", "training.load_ema=True",
        f"checkpointing.save_dir={tmp_path}/run")  # fmt: skip
    student = tmp_path / "run" / "checkpoints" / "last.ckpt"
    shares = []
    for algo, path in (("algo=duo_base", duo), (DCD, student)):
        sampled = run(tmp_path, algo, *FOUR, "mode=sample_eval", "sampling.steps=2",
                      "sampling.num_sample_batches=1", "sampling.noise_removal=greedy",
                      "eval.compute_generative_perplexity=False", f"eval.checkpoint_path={path}",
                      f"eval.generated_samples_path={tmp_path}/s.json")  # fmt: skip
        agreeing = [len(set(text.split())) == 1 for text in sampled["generated_seqs"]]
        shares.append(sum(agreeing) / len(agreeing))
    assert 1 - shares[1] < 0.6 * (1 - shares[0])


def test_a_checkpoint_without_a_teacher_is_refused(duo: Path) -> None:
    with pytest.raises(ValueError, match="holds no teacher") as caught:
        build(DCD).on_load_checkpoint(load(duo))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("algo.teacher_ema=True", "algo.teacher_ema=True: training.ema=0 keeps no average; use "),
        ("algo.linear_growth_min=0.5", "algo.linear_growth_min=0.5: above algo.linear_growth_max="),
        ("algo.loss_type=mse", "algo.loss_type=mse: unknown value; one of kl-bwd, kl-fwd"),
        ("algo.T=0", "algo.T=0: out of range; give a number >= 1"),
        ("training.loss_type=low_var", "training.loss_type=low_var: is about masks"),
        ("algo.gamma_min=0", "algo.gamma_min=0.0: not below algo.gamma_max=-1.0"),
    ],
)
def test_mistakes_are_one_line(typed: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        build(DCD, typed)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
