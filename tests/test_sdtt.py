"""SDTT and IM-SDTT: the distribution of the targets on enumerable worlds, the loss, the rounds, resumption.

Shapes: B rows, L positions, K teacher evaluations.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from test_algo import BATCH, LENGTH, batch, build, part
from test_training import run
from torch import Tensor
from worlds import NoisyWorld, World, random_probs

from diffusion.distillation import teacher_times
from diffusion.noise import get_schedule
from diffusion.parameterization import Denoiser, Prediction
from diffusion.randomness import Stream, row_keys
from samplers.ancestral import Ancestral, decide
from samplers.base import SamplerSettings
from samplers.draws import KeyedDraws
from samplers.teacher import teacher_targets
from tasks.run_folder import _differences
from trainer_base import TrainerBase

pytestmark = pytest.mark.slow

SCHEDULE = get_schedule("log-linear")
SDTT = "algo=im-sdtt"


# Times and rounds ---------------------------------------------------------------------------------


def test_teacher_times() -> None:
    t = torch.tensor([0.9, 0.15], dtype=torch.float64)
    official = teacher_times(t, 0.1, 2, exact=False, floor=1e-3)
    torch.testing.assert_close(official, torch.tensor([[0.9, 0.15], [0.7, 1e-3]], dtype=torch.float64))
    exact = teacher_times(t, 0.1, 3, exact=True, floor=1e-3)
    torch.testing.assert_close(
        exact, torch.tensor([[0.9, 0.15], [0.8, 0.05], [0.7, 0.0]], dtype=torch.float64)
    )
    for choice in (True, False):
        assert torch.equal(teacher_times(t, 0.1, 1, exact=choice, floor=1e-3), t[None])


def test_the_default_plan_has_seven_rounds_in_70000_steps() -> None:
    """The scripts stop there; by itself training goes on to a teacher of one step, the official default."""
    plan = build(SDTT).objective.plan
    assert plan.min_sampling_steps == 1 and not plan.is_over(109_999) and plan.is_over(110_000)
    plan = replace(plan, min_sampling_steps=8)
    assert plan.dt(0) == 0.999 / 1024 and plan.dt(3) == 8 * plan.dt(0)
    assert [plan.sampling_steps(number) for number in range(9)] == [1024, 512, 256, 128, 64, 32, 16, 8, 4]
    assert (plan.round_at(0), plan.round_at(9999), plan.round_at(10_000), plan.round_at(70_000)) == (
        0,
        0,
        1,
        7,
    )
    assert not plan.is_over(79_999) and plan.is_over(80_000)


# The distribution of the targets ---------------------------------------------------------------------------


def exact_mean_target(world: World | NoisyWorld, start: Tensor, alphas: Tensor, reset: bool) -> Tensor:
    """E[target] (L, K symbols) of rollouts from ids ``start`` (L,): by enumeration of all chains of states.

    A position that is masked before step k gets its target there if the step unmasks it or is the last.
    """
    first = world.visible(start)
    agrees = (world.digits.clamp(max=world.num_symbols) == first).all(-1)
    distribution, mean = agrees / agrees.sum().double(), torch.zeros(world.length, world.num_symbols)
    for k, (alpha_t, alpha_s) in enumerate(alphas.tolist()):
        is_masked = (world.digits >= world.num_symbols).double()
        leaves = 1.0 if k == len(alphas) - 1 else (alpha_s - alpha_t) / (1 - alpha_t)
        mean = mean + leaves * torch.einsum("s,sl,slk->lk", distribution, is_masked, world.table)
        distribution = distribution @ world.transition(alpha_t, alpha_s, reset)
    return mean


def targets_of(
    denoiser: Denoiser, xt: Tensor, num_steps: int, dt: float, *, exact: bool = True, reset: bool = False,
    t: float = 0.8, sees_time: bool = False,
) -> Prediction:  # fmt: skip
    keys = row_keys(0, Stream.TRAIN_TEACHER, 0, torch.arange(len(xt)))
    times = teacher_times(
        torch.full((len(xt),), t, dtype=torch.float64), dt, num_steps, exact=exact, floor=1e-3
    )
    mask_id = denoiser.world.mask_id  # type: ignore[attr-defined]
    sampler = Ancestral(denoiser, SCHEDULE, mask_id, SamplerSettings(num_steps, reset=reset))
    mask_seeds = denoiser.draw_seeds(keys, xt.shape[1])
    return teacher_targets(sampler, xt, mask_seeds, times, dt, KeyedDraws(keys), sees_time=sees_time)[0]


WORLDS = {
    "one mask": World(random_probs(3, 3, seed=3), mask_id=1),
    "mask noise": NoisyWorld(num_symbols=3, length=3, seed=1),
}


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "official"])
@pytest.mark.parametrize("num_steps", [2, 3])
@pytest.mark.parametrize(
    ("name", "reset"), [("one mask", False), ("mask noise", False), ("mask noise", True)]
)
def test_mean_targets_have_the_distribution_of_the_teachers_steps(
    name: str, reset: bool, num_steps: int, exact: bool
) -> None:
    """Means of n rollouts; the tolerance is 4.5 standard errors, of 6 to 9 numbers a case."""
    world, rollouts, dt = WORLDS[name], 20_000, 0.25
    start = torch.full((3,), world.mask_id)
    start[1] = world.symbols[2]
    prediction = targets_of(
        world.denoiser(), start.repeat(rollouts, 1), num_steps, dt, exact=exact, reset=reset
    )
    targets = prediction.full().exp()[..., world.symbols]
    t = torch.tensor([0.8], dtype=torch.float64)
    times = teacher_times(t, dt, num_steps, exact=exact, floor=1e-3)
    alphas = torch.cat([SCHEDULE.alpha(times), SCHEDULE.alpha((times - dt).clamp(min=0))], 1)
    expected = exact_mean_target(world, start, alphas, reset)
    error = targets.std(0) / rollouts**0.5
    masked = start == world.mask_id
    assert ((targets.mean(0) - expected)[masked].abs() <= 4.5 * error[masked] + 1e-12).all()
    assert (targets[:, masked].std(0) > 0.01).any()  # one call would have no spread
    assert torch.equal(targets[:, 1].mean(0), torch.eye(3, dtype=torch.float64)[2])  # carried over


@pytest.mark.parametrize("name", WORLDS)
def test_one_step_is_the_teacher_itself(name: str) -> None:
    world = WORLDS[name]
    xt = torch.full((50, 3), world.mask_id)
    keys = row_keys(0, Stream.TRAIN_TEACHER, 0, torch.arange(50))
    denoiser = world.denoiser()
    itself = denoiser.denoise(xt, torch.zeros(50), denoiser.draw_seeds(keys, 3))
    assert torch.equal(targets_of(denoiser, xt, 1, 0.5).full(), itself.full())


def test_beyond_time_zero_everything_is_unmasked_and_nobody_is_asked_again() -> None:
    world = WORLDS["one mask"]
    xt = torch.full((50, 3), world.mask_id)
    first = targets_of(world.denoiser(), xt, 1, 0.3)
    assert torch.equal(targets_of(world.denoiser(), xt, 3, 0.9, t=0.8).full(), first.full())


@pytest.mark.parametrize("reset", [False, True])
def test_only_rows_that_changed_are_asked_again(reset: bool) -> None:
    """The targets are those of a teacher that is asked about everything, at a part of the calls."""
    world = WORLDS["mask noise"]

    class Counting(type(world.denoiser())):
        asked = 0

        def denoise(self, xt: Tensor, sigma: Tensor, mask_seeds: Tensor | None) -> Prediction:
            self.asked += len(xt)
            return super().denoise(xt, sigma, mask_seeds)

    xt = torch.full((400, 3), world.mask_id)
    lazy, full = Counting(world), Counting(world)
    found = targets_of(lazy, xt, 3, 0.02, reset=reset)
    expected = targets_of(full, xt, 3, 0.02, reset=reset, sees_time=True)
    assert torch.equal(found.full(), expected.full())
    assert full.asked == 3 * 400 and 400 < lazy.asked < 800


# The loss -----------------------------------------------------------------------------------------


def another_teacher(module: TrainerBase) -> TrainerBase:
    """A teacher that is not the student."""
    module.rounds.teacher = module.rounds._copy_of_student()
    generator = torch.Generator().manual_seed(5)
    for parameter in module.rounds.teacher.backbone.parameters():
        parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return module


def naive_targets(
    module: TrainerBase, xt: Tensor, t: Tensor, mask_seeds: Tensor | None, num_steps: int
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities (B, L, V) of the targets at all steps, and the student's noise, by definition."""
    draws = KeyedDraws(row_keys(module.config.seed, Stream.TRAIN_TEACHER, 3, torch.arange(len(xt))))
    dt, x, target, seen = module.objective.plan.dt(module.rounds.round), xt, None, mask_seeds
    positions = torch.arange(xt.shape[1]).expand(xt.shape)
    for step in range(num_steps):
        now = t if step == 0 else (t - num_steps * dt * step / (num_steps - 1)).clamp(min=1e-3)
        sigma = module.objective.schedule.sigma(now).float()
        seen = mask_seeds
        log_p = module.rounds.teacher.denoise(x, sigma, mask_seeds).full()
        is_masked = (x == module.mask_id).unsqueeze(-1)
        target = log_p if target is None else torch.where(is_masked, log_p, target)
        alpha_s = module.objective.schedule.alpha(now - dt).clamp(max=1)
        alpha_t = module.objective.schedule.alpha(now)
        decision = decide(is_masked[..., 0], alpha_t, alpha_s, draws.actions(step, LENGTH))
        rows = torch.arange(len(x)).unsqueeze(1).expand(x.shape)
        tokens = draws.tokens(step, log_p.double().flatten(0, 1), rows.flatten(), positions.flatten())
        x = torch.where(decision.unmask, tokens.view(x.shape), x)
        if not module.config.algo.sdtt_fix_eps:
            mask_seeds = module.objective.refresh_seeds(mask_seeds, decision.reset, draws.cond_keys(step))
    return target, seen


def naive_loss(module: TrainerBase, data: dict[str, Tensor], num_steps: int) -> Tensor:
    """Mean KL(student || teacher) over the masked positions that count, from whole log-probabilities."""
    noised = module.objective.noised(data, 3, BATCH, True)
    t = module.objective.schedule.inverse(torch.exp(-noised.sigma))
    target, mask_seeds = naive_targets(module, noised.xt, t, noised.mask_seeds, num_steps)
    log_q = module.denoiser.denoise(noised.xt, noised.sigma, mask_seeds).full()
    kl = (log_q.exp() * (log_q - target)).sum(-1)
    return kl[(noised.xt == module.mask_id) & noised.loss_mask].mean()


FEW = ("algo.orig_num_sampling_steps=8",)  # the teacher's steps then unmask a lot


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("algo.as_mdlm=True",),
        ("algo.as_mdlm=True", "algo.num_distill_steps=3"),
        ("algo.time_conditioning=True", "algo.num_distill_steps=3"),
        ("algo.num_distill_steps=1",),
        ("training.mask_sampling=count", "algo.num_mask=3"),
        ("algo.sdtt_fix_eps=False", "algo.noise_scale=5"),
        ("algo.sdtt_fix_eps=False", "algo.num_distill_steps=3", "algo.num_mask=5"),
    ],
)
def test_loss_and_gradients_are_those_of_the_definition(overrides: tuple[str, ...]) -> None:
    """With as_mdlm this is classical SDTT: its posterior keeps or unmasks, and there is no mask noise.

    With resets the student sees the noise that the teacher saw when it was asked last, as officially.
    """
    module = another_teacher(build(SDTT, *FEW, *overrides))
    output = module.loss(batch(), step=3, num_rows=BATCH, training=True)
    expected = naive_loss(module, batch(), module.config.algo.num_distill_steps)
    torch.testing.assert_close(output.loss, expected.to(output.loss.dtype), rtol=1e-5, atol=1e-6)
    assert output.loss > 0.1
    parameters = [p for p in module.parameters() if p.requires_grad]
    found, wanted = (torch.autograd.grad(x, parameters, allow_unused=True) for x in (output.loss, expected))
    for grad, want in zip(found, wanted, strict=True):
        if want is not None:
            torch.testing.assert_close(grad, want.to(grad.dtype), rtol=1e-4, atol=1e-6)


def test_as_mdlm_is_an_mdlm_with_nothing_added() -> None:
    mdlm, sdtt = build("algo=mdlm"), build(SDTT, "algo.as_mdlm=True")
    assert {n: v.shape for n, v in mdlm.state_dict().items()} == {
        n: v.shape for n, v in sdtt.state_dict().items()
    }
    assert sdtt.objective.draw_seeds(torch.arange(2), LENGTH) is None
    fixed, reset = (
        another_teacher(build(SDTT, "algo.as_mdlm=True", f"algo.sdtt_fix_eps={choice}", *FEW))
        for choice in (True, False)
    )
    losses = [m.loss(batch(), step=0, num_rows=BATCH, training=True).loss for m in (fixed, reset)]
    assert torch.equal(*losses)


def test_resetting_the_noise_of_masks_changes_the_targets() -> None:
    fixed, reset = (
        another_teacher(build(SDTT, f"algo.sdtt_fix_eps={choice}", *FEW)) for choice in (True, False)
    )
    losses = [m.loss(batch(), step=0, num_rows=BATCH, training=True).loss for m in (fixed, reset)]
    assert not torch.isclose(*losses, rtol=1e-3)


def test_the_teacher_is_out_of_sight_and_does_not_move() -> None:
    module = another_teacher(build(SDTT, "algo.noise_type=learnable", "model.dropout=0.5", *FEW))
    assert module.state_dict().keys() == build(SDTT, "algo.noise_type=learnable").state_dict().keys()
    hidden = {id(p) for p in module.rounds.teacher.backbone.parameters()}
    assert not hidden & {id(p) for p in module.parameters()}
    assert all(not p.requires_grad for p in module.rounds.teacher.backbone.parameters())
    noised = module.objective.noised(batch(), 0, BATCH, True)
    draws = KeyedDraws(torch.arange(BATCH))
    dt = module.objective.plan.dt(0)
    before, _ = module.objective._targets(module.rounds.teacher, noised, draws, dt)
    module.train()  # neither dropout nor the student's learnable noise reaches the teacher
    with torch.no_grad():
        module.backbone.vocab_embed.learnable_noise_mu += 1
        module.backbone.head.bias.mul_(2)
    after, _ = module.objective._targets(module.rounds.teacher, noised, draws, dt)
    assert torch.equal(before.full(), after.full())
    assert not before.features.requires_grad


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("form", ["time", "count"])
def test_micro_batches_add_up_to_the_whole(form: str, padded: bool) -> None:
    """As Lightning and DDP do, the mean over equal micro-batches is the loss of all rows together."""
    module, whole = another_teacher(build(SDTT, f"training.mask_sampling={form}", *FEW)), batch()
    if padded:
        for row in range(BATCH):
            whole["attention_mask"][row, 3 + row % 8 :] = False
        whole["num_tokens"] = whole["attention_mask"].sum().float()
    full = module.loss(whole, step=3, num_rows=BATCH, training=True).loss
    rows = [slice(k, k + 4) for k in range(0, BATCH, 4)]
    losses = []
    for chosen in rows:
        piece = part({name: value for name, value in whole.items() if value.ndim}, chosen)
        if padded:
            piece["num_tokens"] = whole["num_tokens"] / len(rows)
        losses.append(module.loss(piece, step=3, num_rows=BATCH, training=True).loss)
    torch.testing.assert_close(torch.stack(losses).mean(), full, rtol=1e-5, atol=1e-6)


SLICED = ("algo.loss_average=slices", "algo.loss_average=positions")
SHARES = (1.5, 4.7, 7.8, 11.0, 14.0, 17.2, 20.3, 23.4)  # % of the loss, all positions alike, by eighths of t


@pytest.mark.parametrize("share", [1, 2])
def test_every_slice_of_the_times_weighs_the_same(share: int) -> None:
    """Published on OpenWebText: 128 rows, 16 at a time. With a divergence of 1 the weights are the loss."""
    words = ("loader.global_batch_size=128", "loader.batch_size=16", "model.length=256")
    whole = {
        "input_ids": torch.zeros(128, 256, dtype=torch.int64),
        "attention_mask": torch.ones(128, 256, dtype=torch.bool),
        "row": torch.arange(128),
    }
    found = {}
    for average in SLICED:
        module, shares = build(SDTT, *words, average), []
        for rows in torch.arange(128).split(16 // share):
            piece = {name: value[rows] for name, value in whole.items()}
            noised = module.objective.noised(piece, 0, 128, True)
            where = noised.xt == module.mask_id
            weights = module.objective.row_weights(piece, where, noised.loss_mask, 0, 128)
            shares.append((weights * where.sum(1)).sum() / (8 * share))
        found[average] = torch.stack(shares).view(8, share).sum(1)
        assert found[average].sum() == pytest.approx(1)
    torch.testing.assert_close(found[SLICED[0]], torch.full((8,), 0.125, dtype=torch.float64))
    torch.testing.assert_close(100 * found[SLICED[1]], torch.tensor(SHARES).double(), rtol=0, atol=0.6)


def test_the_loss_is_the_mean_over_slices_of_the_mean_over_their_masks() -> None:
    """As the official program has it, whose micro-batches are the slices; and one alone is its own mean."""
    module = another_teacher(build(SDTT, *FEW, "algo.loss_slice_rows=4"))
    output, divergence, where = module.rounds.distill(batch(), step=3, num_rows=BATCH, training=True)
    slices = [divergence[k : k + 4][where[k : k + 4]].mean() for k in range(0, BATCH, 4)]
    torch.testing.assert_close(output.loss, torch.stack(slices).mean(), rtol=1e-5, atol=1e-6)
    for k, mean in zip(range(0, BATCH, 4), slices, strict=True):
        piece = part(batch(), slice(k, k + 4))
        loss = module.loss(piece, step=3, num_rows=BATCH, training=True).loss
        torch.testing.assert_close(loss, mean, rtol=1e-5, atol=1e-6)
    alike = another_teacher(build(SDTT, *FEW, "algo.loss_slice_rows=4", SLICED[1]))
    found = alike.loss(batch(), step=3, num_rows=BATCH, training=True).loss
    torch.testing.assert_close(found, divergence[where].mean(), rtol=1e-5, atol=1e-6)
    assert not torch.isclose(found, output.loss, rtol=1e-3)


def test_a_slice_is_loader_batch_size_rows_unless_it_is_given() -> None:
    sizes = {
        (): BATCH,  # all rows at once, on however many devices
        ("loader.batch_size=4",): 4,
        ("loader.batch_size=4", "algo.loss_slice_rows=8"): 8,
        ("loader.batch_size=4", "algo.loss_slice_rows=null"): BATCH,
        ("algo.loss_slice_rows=100",): BATCH,
        ("loader.batch_size=4", SLICED[1]): BATCH,
    }
    for words, size in sizes.items():
        assert build(SDTT, *words).objective.slice_rows(BATCH) == size


@pytest.mark.parametrize("size", [1, 2, 8, 16])
@pytest.mark.parametrize("form", ["time", "count"])
def test_slices_do_not_depend_on_how_rows_are_divided(form: str, size: int) -> None:
    """Micro-batches of 1 to 16 rows, on however many devices, of slices of 4 rows: one and the same loss."""
    words = (f"training.mask_sampling={form}", "algo.loss_slice_rows=4", f"loader.batch_size={size}")
    module, whole = another_teacher(build(SDTT, *FEW, *words)), batch()
    full = module.loss(whole, step=3, num_rows=BATCH, training=True).loss
    pieces = [part(whole, slice(k, k + size)) for k in range(0, BATCH, size)]
    losses = [module.loss(piece, step=3, num_rows=BATCH, training=True).loss for piece in pieces]
    torch.testing.assert_close(torch.stack(losses).mean(), full, rtol=1e-5, atol=1e-6)


def test_a_run_does_not_go_on_with_other_slices() -> None:
    """Other rows in a micro-batch are no other training, but slices are."""
    words = ("algo=im-sdtt", "loader.global_batch_size=16")
    config = build(*words, "loader.batch_size=4").config
    before = OmegaConf.to_container(config, resolve=True)
    for more, differences in (
        (("loader.batch_size=8",), ["algo.loss_slice_rows was 4, is 8"]),
        (("loader.batch_size=8", "algo.loss_slice_rows=4"), []),
    ):
        assert list(_differences(before, build(*words, *more).config).values()) == differences


def test_padding_in_slices_counts_exactly_where_they_are_whole() -> None:
    module, whole = another_teacher(build(SDTT, *FEW, "algo.loss_slice_rows=4")), batch()
    for row in range(BATCH):
        whole["attention_mask"][row, 3 + row % 8 :] = False
    whole["num_tokens"] = whole["attention_mask"].sum().float()
    output, divergence, where = module.rounds.distill(whole, step=3, num_rows=BATCH, training=True)
    slices = [divergence[k : k + 4][where[k : k + 4]].mean() for k in range(0, BATCH, 4)]
    torch.testing.assert_close(output.loss, torch.stack(slices).mean(), rtol=1e-5, atol=1e-6)


def test_a_slice_without_masks_is_a_zero_that_counts_as_a_slice() -> None:
    """Officially it is 0/0."""
    module, data = another_teacher(build(SDTT, *FEW, "algo.loss_slice_rows=4")), batch()
    data["attention_mask"][:4] = False
    output, divergence, where = module.rounds.distill(data, step=3, num_rows=BATCH, training=True)
    slices = [divergence[k : k + 4][where[k : k + 4]].mean() for k in range(4, BATCH, 4)]
    torch.testing.assert_close(output.loss, torch.stack(slices).sum() / 4, rtol=1e-5, atol=1e-6)


def test_padding_never_counts_and_nothing_masked_is_a_zero_that_reaches_everything() -> None:
    module, data = another_teacher(build(SDTT, "training.ignore_bos=True", *FEW)), batch()
    data["attention_mask"][:, 6:] = False
    output, divergence, where = module.rounds.distill(data, step=3, num_rows=BATCH, training=True)
    assert not where[:, 6:].any() and not where[:, 0].any() and where[:, 1:6].any()
    assert torch.equal(divergence != 0, where) and torch.equal(output.token_nll != 0, where)
    data["attention_mask"][:] = False
    loss = module.loss(data, step=3, num_rows=BATCH, training=True).loss
    loss.backward()
    assert loss == 0
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and (parameter.grad == 0).all(), name


def test_training_reports_the_students_nelbo_and_validation_is_plain() -> None:
    module, twin = another_teacher(build(SDTT, *FEW)), build("algo=imdm")
    for training in (True, False):
        found, expected = (m.loss(batch(), step=3, num_rows=BATCH, training=training) for m in (module, twin))
        torch.testing.assert_close(found.token_nll, expected.token_nll)
        assert torch.equal(found.loss_mask, expected.loss_mask)
    torch.testing.assert_close(found.loss, expected.loss)
    both = module.rounds.distill(batch(), step=3, num_rows=BATCH, training=False)[0]
    torch.testing.assert_close(both.token_nll, expected.token_nll)


def test_loss_precision() -> None:
    for precision, dtype in (("bf16", torch.float32), ("float64", torch.float64)):
        module = another_teacher(build(SDTT, f"training.loss_precision={precision}", *FEW))
        assert module.loss(batch(), step=3, num_rows=BATCH, training=True).loss.dtype == dtype


# Whole runs ---------------------------------------------------------------------------------------

FOUR = ("data.vocab_size=4", "loader.global_batch_size=32", "trainer.val_check_interval=1000", "seed=4")
SHORT = (
    SDTT,
    *FOUR,
    "model.dropout=0.2",
    "loader.batch_size=16",
    "optim.lr=1e-2",
    "trainer.val_check_interval=3",
    "trainer.limit_val_batches=1",
    "trainer.log_every_n_steps=1",
    "algo.orig_num_sampling_steps=8",
    "algo.min_num_sampling_steps=1",
    "algo.grow_dt_every=2",
)


@pytest.fixture(scope="module")
def mdlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MDLM that knows that all symbols of a sequence agree (4 symbols, 8 positions)."""
    folder = tmp_path_factory.mktemp("mdlm")
    run(folder, "algo=mdlm", *FOUR, "trainer.max_steps=150", f"checkpointing.save_dir={folder}/run")
    return folder / "run" / "checkpoints" / "last.ckpt"


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def tensors(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    shadow = {f"ema{i}": value for i, value in enumerate(checkpoint["ema"]["shadow_params"])}
    teacher = {f"teacher.{n}": value for n, value in checkpoint["teacher"]["state_dict"].items()}
    moments = {
        f"{i}.{n}": value
        for i, state in checkpoint["optimizer_states"][0]["state"].items()
        for n, value in state.items()
    }
    return {**checkpoint["state_dict"], **shadow, **teacher, **moments}


@pytest.mark.parametrize("renewed", [True, False], ids=["ema, reset", "plain"])
def test_a_run_killed_in_any_round_goes_on_bit_for_bit(renewed: bool, mdlm: Path, tmp_path: Path) -> None:
    """With accumulation, dropout and validations; stopped inside a round and at its end."""
    last = "checkpoints/last.ckpt"
    common = (
        *SHORT,
        f"training.finetune_path={mdlm}",
        f"algo.use_ema_on_growth={renewed}",
        f"algo.reset_optimizer_on_growth={renewed}",
    )
    run(tmp_path, *common, "trainer.max_steps=5", f"checkpointing.save_dir={tmp_path}/whole")
    whole = load(tmp_path / "whole" / last)
    head = "output_layer.linear.weight"
    moved = whole["teacher"]["state_dict"][head] - load(mdlm)["state_dict"][f"backbone.{head}"]
    assert moved.abs().max() > 1e-3  # or else there would be nothing to lose
    assert whole["teacher"]["round"] == 2 and whole["ema"]["num_updates"] == (1 if renewed else 5)
    for stops in ((1, 2), (3, 4)) if renewed else ((1, 4),):
        parts = f"checkpointing.save_dir={tmp_path}/parts{stops[0]}"
        for stop in (*stops, 5):
            run(tmp_path, *common, f"trainer.max_steps={stop}", parts)
        resumed = load(tmp_path / f"parts{stops[0]}" / last)
        assert resumed["teacher"]["round"] == 2
        expected, found = tensors(whole), tensors(resumed)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert torch.equal(value, found[name]), (stops, name)


@pytest.mark.parametrize("use_ema", [True, False])
def test_the_student_of_a_round_is_the_teacher_of_the_next(use_ema: bool, mdlm: Path, tmp_path: Path) -> None:
    run(tmp_path, *SHORT, f"training.finetune_path={mdlm}", f"algo.use_ema_on_growth={use_ema}",
        "algo.reset_optimizer_on_growth=True", "trainer.max_steps=2",
        f"checkpointing.save_dir={tmp_path}/run")  # fmt: skip
    folder = tmp_path / "run" / "checkpoints"
    student, last = load(folder / "student_checkpoints" / "2.ckpt"), load(folder / "last.ckpt")
    averaged = dict(zip(student["ema"]["names"], student["ema"]["shadow_params"], strict=True))
    for name, raw in student["state_dict"].items():
        chosen = averaged.get(name, raw) if use_ema else raw
        assert torch.equal(last["teacher"]["state_dict"][name.removeprefix("backbone.")], chosen)
        assert torch.equal(last["state_dict"][name], chosen)
    assert last["ema"]["num_updates"] == (0 if use_ema else 2)
    if use_ema:
        assert all(
            torch.equal(value, last["state_dict"][name])
            for name, value in zip(last["ema"]["names"], last["ema"]["shadow_params"], strict=True)
        )
    assert not last["optimizer_states"][0]["state"]
    assert "teacher" not in student


def test_a_checkpoint_from_before_a_growth_catches_up() -> None:
    """However a checkpoint came about, the round that its step belongs to begins with training."""
    module = build(SDTT, "algo.grow_dt_every=2")
    saved: dict[str, Any] = {"teacher": {"round": 0, "state_dict": module.backbone.state_dict()}}
    module.on_load_checkpoint(saved)
    calls: list[int] = []

    class Stub:
        should_stop, global_step = False, 2

    module._trainer = module._fabric = None
    module.__dict__["_trainer"] = Stub()
    module.rounds._end = lambda: calls.append(module.global_step)  # type: ignore[method-assign]
    module.on_train_start()
    assert calls == [2]


def test_training_ends_by_itself_and_says_so_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    save_dir = f"checkpointing.save_dir={tmp_path}/run"
    common = (*SHORT, "algo.min_num_sampling_steps=4", "trainer.max_steps=100", save_dir)
    result = run(tmp_path, *common)
    assert result["steps"] == 4
    assert result["finished"] == "a teacher of 2 steps is below algo.min_num_sampling_steps=4"
    assert {"val/nll", "val/distill_loss", "train/nll", "trainer/loss"} <= result.keys()
    assert (result["train/num_sampling_steps"], result["train/dt"]) == (4, pytest.approx(0.999 / 4))
    assert sum("student ->" in line for line in caplog.messages) == 2  # once a round, not a micro-batch
    students = tmp_path / "run" / "checkpoints" / "student_checkpoints"
    assert sorted(path.name for path in students.iterdir()) == ["2.ckpt", "4.ckpt"]
    assert load(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 4
    caplog.clear()
    assert run(tmp_path, *common) == result
    assert any("already trained for 4 steps" in line for line in caplog.messages)
    (tmp_path / "run" / "result.json").unlink()  # a kill just before the end
    assert run(tmp_path, *common)["steps"] == 4


def test_students_can_be_evaluated(mdlm: Path, tmp_path: Path) -> None:
    """After one step of vanishing size the student is still its MDLM; with any algorithm of its shape."""
    tiny = ("optim.lr=1e-12", "algo.grow_dt_every=1", "trainer.max_steps=1", f"training.finetune_path={mdlm}")
    nll = {}
    for algo, other, flag in ((SDTT, "algo=imdm", "False"), (SDTT, "algo=mdlm", "True")):
        run(tmp_path, algo, f"algo.as_mdlm={flag}", *FOUR, *tiny, "training.load_ema=True",
            f"checkpointing.save_dir={tmp_path}/{flag}")  # fmt: skip
        path = tmp_path / flag / "checkpoints" / "student_checkpoints" / "1.ckpt"
        nll[other] = run(tmp_path, other, *FOUR, "mode=ppl_eval", f"eval.checkpoint_path={path}",
                         f"eval.generated_samples_path={tmp_path}/ppl.json")["nll"]  # fmt: skip
    plain = run(tmp_path, "algo=mdlm", *FOUR, "mode=ppl_eval", f"eval.checkpoint_path={mdlm}",
                f"eval.generated_samples_path={tmp_path}/ppl.json")["nll"]  # fmt: skip
    assert all(value == pytest.approx(plain, rel=1e-5) for value in nll.values())


def test_distillation_reduces_the_steps_that_are_needed(mdlm: Path, tmp_path: Path) -> None:
    """Sequences of one repeated symbol: an MDLM that samples in two steps hardly ever makes one.

    Four rounds of 50 steps (16 -> 1); with five other seeds the share grew by factors of 2.8 to 10.
    """
    run(tmp_path, SDTT, *FOUR, "algo.orig_num_sampling_steps=16", "algo.min_num_sampling_steps=2",
        "algo.grow_dt_every=50", "trainer.max_steps=1000", f"training.finetune_path={mdlm}",
        "training.load_ema=True", f"checkpointing.save_dir={tmp_path}/run")  # fmt: skip
    student = tmp_path / "run" / "checkpoints" / "student_checkpoints" / "200.ckpt"
    shares = []
    for algo, path in (("algo=mdlm", mdlm), (SDTT, student)):
        sampled = run(tmp_path, algo, *FOUR, "mode=sample_eval", "sampling.steps=2",
                      "sampling.num_sample_batches=1", "eval.compute_generative_perplexity=False",
                      f"eval.checkpoint_path={path}",
                      f"eval.generated_samples_path={tmp_path}/s.json")  # fmt: skip
        agreeing = [len(set(text.split())) == 1 for text in sampled["generated_seqs"]]
        shares.append(sum(agreeing) / len(agreeing))
    assert shares[1] > 2 * shares[0]
    assert shares[1] > 0.1


def test_a_checkpoint_without_a_teacher_is_refused(mdlm: Path) -> None:
    with pytest.raises(ValueError, match="holds no teacher") as caught:
        build(SDTT).on_load_checkpoint(load(mdlm))
    assert "\n" not in str(caught.value)
