"""Coupled distillation: the teacher's function, its pairs, the student, and the samplers of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from config.cli import compose_config
from dataloader import get_tokenizer
from diffusion.coupled_prediction import mask_inputs
from diffusion.coupling import Coupling
from diffusion.noise import get_schedule
from diffusion.randomness import fold_in, row_keys, uniform
from errors import UserError
from samplers import KeyedDraws, SamplerSettings, get_sampler
from samplers.spread import spread_calls
from scripts.coupled import report
from tasks import MODES
from tasks.setup import build_algorithm, build_evaluated
from tests.worlds import World, random_probs, total_variation, tv_noise
from trainer_base import TrainerBase

SYMBOLS, LENGTH, BATCH = 6, 8, 16
LARGE = 600  # a vocabulary that has a tree
TINY = (
    "data=synthetic-align", "model=synthetic", f"model.length={LENGTH}", "model.hidden_size=16",
    "model.cond_dim=8", "model.n_blocks=1", "model.n_heads=2", "model.noise_dim=4",
    f"loader.global_batch_size={BATCH}", "loader.eval_global_batch_size=64", "loader.num_workers=0",
    "trainer.accelerator=cpu", "trainer.precision=32", "trainer.num_sanity_val_steps=0",
    "trainer.enable_progress_bar=False", "trainer.limit_val_batches=1", "training.ema=0",
    "eval.generate_samples=False", "wandb=null",
)  # fmt: skip


def build(*overrides: str, symbols: int = SYMBOLS, noise: float = 0.3) -> TrainerBase:
    """A tiny model whose weights are moved away from their start by ``noise``."""
    module = build_algorithm(compose_config([*TINY, f"data.vocab_size={symbols}", *overrides], warn=False))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += noise * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def student_of(teacher: TrainerBase, symbols: int = SYMBOLS, *overrides: str) -> TrainerBase:
    """A fresh student with the weights of an MDLM."""
    student = build("algo=im-coupled", *overrides, symbols=symbols, noise=0)
    missing = student.backbone.load_state_dict(teacher.backbone.state_dict(), strict=False)
    assert not missing.unexpected_keys and all("coupled_" in name for name in missing.missing_keys)
    return student


def pairs(symbols: int = SYMBOLS) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x0 = torch.randint(symbols, (BATCH, LENGTH), generator=generator)
    return {
        "input_ids": x0,
        "attention_mask": torch.ones_like(x0, dtype=torch.bool),
        "row": torch.arange(BATCH),
        "xt": torch.full_like(x0, symbols),
        "t": torch.ones(BATCH, dtype=torch.float64),
        "seed": torch.randint(2**62, (BATCH,), generator=generator),
    }


@pytest.mark.parametrize("symbols", [SYMBOLS, LARGE])
def test_a_fresh_student_in_one_call_is_its_mdlm_token_for_token(symbols: int) -> None:
    teacher = build("algo=mdlm", symbols=symbols)
    student = student_of(teacher, symbols)
    seeds = student.objective.draw_seeds(torch.arange(BATCH), LENGTH)
    xt = torch.full((BATCH, LENGTH), teacher.mask_id)
    written = [student.generator.reverse(xt, 1.0, seeds, torch.arange(BATCH), 1).tokens]
    teacher.config.sampling.predictor = "coupled"
    teacher.generator.choose_sampler()
    written.append(teacher.generator.reverse(xt, 1.0, seeds, torch.arange(BATCH), 1).tokens)
    # The definition: Gumbel-max of the MDLM's own probabilities (one Gumbel a symbol).
    log_probs = teacher.denoiser.denoise(xt, torch.zeros(BATCH)).full().double()
    assert torch.equal(written[0], written[1])
    if symbols == SYMBOLS:
        u = uniform(fold_in(seeds, torch.arange(LENGTH)), symbols + 1)
        assert torch.equal(written[0], (log_probs - (-u.log()).log()).argmax(-1))
    assert len({tuple(row) for row in written[0].tolist()}) > 4


def test_the_teacher_s_function_has_the_distribution_of_spread_order() -> None:
    world, number = World(random_probs(3, 4), mask_id=1), 12_000
    schedule, start = get_schedule("log-linear", 1e-3), torch.full((number, 4), world.mask_id)
    seeds = row_keys(0, 1, 0, torch.arange(number))
    for calls in (1, 2, 4):
        sampler = get_sampler("coupled")(world.denoiser(), schedule, world.mask_id, SamplerSettings(calls))
        done = sampler.sample(start, 1.0, seeds[:, None].expand(-1, 4), KeyedDraws(0 * seeds))
        assert (done.nfe == calls).all() and done.forward_passes == calls
        exact, found = _spread_distribution(world, calls), world.frequencies(done.tokens).double()
        assert total_variation(found, exact) < tv_noise(exact, number)
        assert (total_variation(exact, world.data_distribution) < 1e-12) == (calls == 4)


def _spread_distribution(world: World, calls: int) -> Tensor:
    """Product of the posterior's marginals, call by call, over all words."""
    plan, found = torch.tensor(spread_calls(4, calls)), torch.ones(len(world.words), dtype=torch.float64)
    for call in range(calls):
        given = torch.where(plan < call, world.words, world.num_symbols)
        table = world.table[world.encode(given, world.num_symbols + 1)]
        for position in (plan == call).nonzero().squeeze(1).tolist():
            found *= table[torch.arange(len(found)), position, world.words[:, position]]
    full = torch.zeros_like(world.data_distribution)
    full[world.encode(world.words, world.num_symbols + 1)] = found
    return full


def test_the_noise_alone_decides_the_text_and_what_is_given_stays() -> None:
    student = build("algo=im-coupled")
    xt = torch.full((BATCH, LENGTH), student.mask_id)
    xt[:, 1], xt[::2, 5:] = 3, 2
    seeds = student.objective.draw_seeds(torch.arange(BATCH), LENGTH)
    first, other = (student.generator.reverse(xt, 1.0, seeds, k + torch.arange(BATCH), 4) for k in (0, 99))
    assert torch.equal(first.tokens, other.tokens)  # no other draw has a part in it
    assert torch.equal(first.tokens[xt != student.mask_id], xt[xt != student.mask_id])
    assert (first.nfe == torch.tensor([4, 4] * (BATCH // 2))).all()
    moved = student.generator.reverse(xt, 1.0, seeds + 1, torch.arange(BATCH), 4)
    assert not torch.equal(moved.tokens, first.tokens)


@pytest.mark.parametrize("symbols", [SYMBOLS, LARGE])
def test_the_loss_and_its_gradient_are_those_of_the_scores(symbols: int) -> None:
    module, batch = build("algo=im-coupled", "algo.partial=0", symbols=symbols, noise=0.1), pairs(symbols)
    output = module.loss(batch, step=0, num_rows=BATCH, training=True)
    output.loss.backward()
    grads = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    xt, seeds = batch["xt"], batch["seed"][:, None].expand(-1, LENGTH)
    prediction = module.denoiser.denoise(xt, torch.zeros(BATCH), seeds)
    log_probs, coupling = prediction.full().flatten(0, 1), Coupling.of(symbols + 1)
    positions = torch.arange(LENGTH).repeat(BATCH)
    noise = coupling.noise(seeds.flatten(), positions, torch.float32)
    targets, gain = batch["input_ids"].flatten(), prediction.gain.flatten()[:, None]
    if coupling.levels:
        assert coupling.levels == 3
        expected = _tree_nll(log_probs, noise, gain, targets, coupling.levels)
    else:
        scores = log_probs + gain * noise
        expected = -scores.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    torch.testing.assert_close(output.token_nll.flatten(), expected.detach(), rtol=1e-4, atol=1e-5)
    expected.mean().backward()
    assert {"backbone.coupled_gain.weight", "backbone.vocab_embed.coupled_mlp.2.weight"} <= grads.keys()
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-3, atol=1e-6, msg=name)


def _tree_nll(log_probs: Tensor, noise: Tensor, gain: Tensor, targets: Tensor, levels: int) -> Tensor:
    ids, loss = torch.arange(log_probs.shape[1]), torch.zeros(len(targets))
    inside = torch.ones(len(targets), len(ids), dtype=torch.bool)
    for level in range(levels):
        digit, own = ids // 16**level % 16, targets // 16**level % 16
        masses = [log_probs.masked_fill(~(inside & (digit == c)), -1e9).logsumexp(-1) for c in range(16)]
        scores = torch.stack(masses, 1) + gain * noise[:, 16 * level : 16 * level + 16]
        loss = loss - scores.log_softmax(-1).gather(1, own[:, None]).squeeze(1)
        inside = inside & (digit == own[:, None])
    return loss


def test_what_training_shows_is_what_calls_in_spread_order_wrote() -> None:
    module, batch = build("algo=im-coupled"), pairs()
    rows = {key: value.repeat(40, *[1] * (value.ndim - 1)) for key, value in batch.items()}
    rows["row"] = torch.arange(40 * BATCH)
    noised = module.objective.noised(rows, 0, 40 * BATCH, True)
    shown = noised.xt != module.mask_id
    assert torch.equal(noised.xt[shown], rows["input_ids"][shown])
    states = {
        tuple(call < over for call in spread_calls(LENGTH, calls))
        for calls in (2, 4, 8)
        for over in range(1, calls)
    }
    seen = {tuple(row) for row in shown.tolist()}
    assert seen == states | {(False,) * LENGTH}
    assert abs(float((~shown.any(-1)).double().mean()) - 0.5) < 0.09  # standard error 0.02
    torch.testing.assert_close(
        1 - shown.double().mean(-1), module.objective.schedule.masked(noised.t), atol=2e-3, rtol=0
    )


def test_proposals_and_noise_are_what_the_network_sees() -> None:
    coupling, seeds = Coupling(SYMBOLS + 1), torch.arange(12).view(3, 4)
    xt = torch.full((3, 4), SYMBOLS)
    xt[0, 0] = 2
    proposal = torch.tensor([0.0, -1e6, -1e6, 0.0, -1e6, -1e6, -1e6])
    inputs = mask_inputs(coupling, xt, SYMBOLS, seeds, proposal)
    assert not inputs[0, 0].any() and set(inputs[1:, :, 0].flatten().tolist()) == {0.0, 3.0}
    noise = inputs[..., 1:]
    assert torch.equal(inputs[1:, :, 0] == 3, noise[1:, :, 3] > noise[1:, :, 0])
    student = student_of(build("algo=mdlm"))
    student.objective.begin(student.backbone)
    unigram = student.backbone.vocab_embed.coupled_unigram.clone()
    torch.testing.assert_close(unigram.exp().sum(), torch.tensor(1.0))
    with torch.no_grad():
        student.backbone.head.bias += torch.arange(SYMBOLS + 1.0)
    student.objective.begin(student.backbone)  # a training that goes on keeps it
    assert torch.equal(student.backbone.vocab_embed.coupled_unigram, unigram)


# Pairs and the whole chain ----------------------------------------------------------------------------


def command(folder: Path, name: str, *words: str) -> Any:
    lines = [*TINY, f"data.vocab_size={SYMBOLS}", f"checkpointing.save_dir={folder / name}", *words]
    cfg = compose_config(lines, warn=False)
    return MODES[cfg.mode](cfg)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MDLM, coupled pairs and plain ones, and a student."""
    folder = tmp_path_factory.mktemp("coupled")
    few = ("trainer.max_steps=3", "trainer.val_check_interval=3", "lr_scheduler.num_warmup_steps=1")
    command(folder, "mdlm", "algo=mdlm", *few)
    made = (
        "algo=mdlm", "mode=generate_reflow_dataset", "reflow.num_reflow_samples=20", "sampling.steps=4",
        "reflow.perturbed_rect=False", f"eval.checkpoint_path={folder}/mdlm/checkpoints/last.ckpt",
    )  # fmt: skip
    command(folder, "p", *made, "sampling.predictor=coupled", f"reflow.save_path={folder}/pairs",
            "loader.eval_batch_size=7", "sampling.temperature=0.8")  # fmt: skip
    command(folder, "p", *made, f"reflow.save_path={folder}/plain")
    start = ("algo=im-coupled", "data=reflow-dataset-general",
             f"training.finetune_path={folder}/mdlm/checkpoints/last.ckpt")  # fmt: skip
    command(folder, "student", *start, f"reflow.save_path={folder}/pairs", *few)
    return folder


def test_pairs_replay_from_their_seeds(chain: Path) -> None:
    manifest = json.loads((chain / "pairs" / "manifest.json").read_text())
    assert manifest["coupled"] == {"order": "spread", "calls": 4, "tree_levels": 0}
    assert manifest["sampling"]["temperature"] == 0.8 and "coupled" not in json.loads(
        (chain / "plain" / "manifest.json").read_text()
    )
    stored, seeds = (torch.from_numpy(np.load(chain / "pairs" / f"{n}.npy")) for n in ("x0", "seeds"))
    words = ("algo=mdlm", "sampling.predictor=coupled", "sampling.temperature=0.8")
    weights = f"eval.checkpoint_path={chain}/mdlm/checkpoints/last.ckpt"
    cfg = compose_config([*TINY, f"data.vocab_size={SYMBOLS}", *words, weights], warn=False)
    teacher = build_evaluated(cfg)
    again = teacher.generator.reverse(
        teacher.generator.prior(20), 1.0, seeds[:, None].expand(-1, LENGTH), torch.arange(20) + 7, 4
    )
    assert torch.equal(again.tokens, stored.long())
    assert get_tokenizer(cfg).name_or_path == manifest["tokenizer"]["name"]


def test_the_student_trains_and_refuses_pairs_drawn_apart(chain: Path) -> None:
    weights = torch.load(chain / "student" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert weights["backbone.vocab_embed.coupled_unigram"].any()
    assert weights["backbone.vocab_embed.coupled_mlp.2.weight"].any()
    start = ("algo=im-coupled", "data=reflow-dataset-general", f"reflow.save_path={chain}/plain",
             f"training.finetune_path={chain}/mdlm/checkpoints/last.ckpt", "trainer.max_steps=1",
             "lr_scheduler.num_warmup_steps=1")  # fmt: skip
    with pytest.raises(UserError, match="reflow.save_path=.*drawn apart from their noise"):
        command(chain, "refused", *start)
    command(chain, "control", *start, "algo.ignore_seed=True")
    with pytest.raises(UserError, match="mask_sampling=count: the pairs of algo=im-coupled carry"):
        compose_config([*TINY, "algo=im-coupled", "training.mask_sampling=count"])


def test_a_student_is_not_exported(chain: Path) -> None:
    words = ("algo=im-coupled", "mode=export", f"export.path={chain}/exported")
    with pytest.raises(UserError, match="algo=im-coupled: its draws need this program's noise"):
        command(chain, "e", *words, f"eval.checkpoint_path={chain}/student/checkpoints/last.ckpt")
    assert not (chain / "exported").exists()


def test_ordinary_samplers_work_with_the_student() -> None:
    student = build("algo=im-coupled", "sampling.predictor=ancestral", "sampling.order=spread")
    spread = student.generator.sample(8, 4)
    assert (spread.nfe == 4).all() and not (spread.tokens == student.mask_id).any()


def test_the_report_reads_the_best_baseline_at_the_entropy_of_a_student(tmp_path: Path) -> None:
    def curve(*points: tuple[float, float]) -> list[dict[str, Any]]:
        return [
            {"entropy": e, "generative_ppl": p, "generative_ppl_interval": [p - 1, p + 1], "temperature": 1}
            for e, p in points
        ]

    curves = {
        "mdlm": {1: curve((2.0, 100.0), (3.0, 400.0))},
        "redi": {1: curve((2.4, 150.0), (2.6, 150.0))},
        "coupled1": {1: curve((2.5, 50.0), (3.5, 60.0))},
    }
    name, value = report.best_baseline(curves, 1, 2.5)
    assert name == "redi" and value.ppl == pytest.approx(150)
    name, value = report.best_baseline(curves, 1, 2.9)
    assert name == "mdlm" and value.ppl == pytest.approx(100 * 4**0.9)
    assert report.best_baseline(curves, 2, 2.5) is None
    lines = report.table(curves).splitlines()
    assert "none reaches it" in lines[2] and lines[3].endswith("| redi 150.0 (149.0 to 151.0) | 3.00 |")
    report.figure(curves, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000
