"""The algorithms as a whole: what enters the loss, what its draws depend on, how much memory is touched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import diffusion.duality
import diffusion.linear_nll
import samplers.base
from algo import ALGORITHMS, OBJECTIVES
from config.cli import compose_config
from dataloader import get_tokenizer
from trainer_base import TrainerBase

SYMBOLS, LENGTH, BATCH = 12, 10, 16
MASKED = sorted(name for name, cls in OBJECTIVES.items() if cls.Settings.family == "absorbing")
UNIFORM = sorted(name for name, cls in OBJECTIVES.items() if cls.Settings.family == "uniform")
# The others have their masks stored.
DRAW_MASKS = [name for name in MASKED if not OBJECTIVES[name].Settings.needs_pairs]
# The loss of d3pm is a sum over times, with a part at every position.
BY_COUNT = [name for name in DRAW_MASKS if name != "d3pm"]


def build(*overrides: str, symbols: int = SYMBOLS, noise: float = 0.3) -> TrainerBase:
    """A tiny model whose weights are all non-zero, so that everything it is given matters."""
    settings = {
        "algo": "mdlm", "data": "synthetic-align", "data.vocab_size": symbols,
        "model": "synthetic", "model.length": LENGTH, "model.hidden_size": 16,
        "model.cond_dim": 8, "model.n_blocks": 1, "model.n_heads": 2,
        "model.noise_dim": 4, "loader.global_batch_size": BATCH, "trainer.precision": 32, "training.ema": 0,
        "wandb": "null",
    }  # fmt: skip
    words = [f"{key}={value}" for key, value in settings.items()]
    cfg = compose_config([*words, *overrides], warn=False)
    module = ALGORITHMS[cfg.algo.name](cfg, get_tokenizer(cfg))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += noise * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def batch(size: int = BATCH, symbols: int = SYMBOLS, algo: str = "mdlm") -> dict[str, Tensor]:
    """Text, and with it what stored pairs have besides, with the noise of the algorithm's own process."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(symbols, (size, LENGTH), generator=generator)
    mask = torch.ones_like(ids, dtype=torch.bool)
    t = torch.linspace(0.2, 1, size, dtype=torch.float64)
    replaced = torch.rand(ids.shape, generator=generator) < t[:, None]
    seed = torch.randint(2**62, (size,), generator=generator)
    noise = torch.randint(symbols, ids.shape, generator=generator) if algo in UNIFORM else symbols
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "row": torch.arange(size),
        "xt": torch.where(replaced, noise, ids),
        "t": t,
        "seed": seed,
    }


def part(whole: dict[str, Tensor], rows: slice) -> dict[str, Tensor]:
    return {name: value[rows] for name, value in whole.items()}


@pytest.mark.parametrize("algo", sorted(ALGORITHMS))
def test_token_losses_do_not_depend_on_the_micro_batch(algo: str) -> None:
    module, whole = build(f"algo={algo}"), batch(algo=algo)
    for training in (True, False):
        full = module.loss(whole, step=3, num_rows=BATCH, training=training).token_nll
        for rows in (slice(0, 5), slice(5, 16)):
            piece = module.loss(part(whole, rows), step=3, num_rows=BATCH, training=training).token_nll
            torch.testing.assert_close(piece, full[rows], rtol=1e-5, atol=1e-5)
        other = module.loss(whole, step=4, num_rows=BATCH, training=training).token_nll
        if algo in BY_COUNT:
            assert not torch.equal(full > 0, other > 0)  # another step, other masks


@pytest.mark.parametrize("algo", BY_COUNT)
def test_both_forms_of_the_nelbo_agree(algo: str) -> None:
    """By time and by number of masks, as the mean over many draws; the tolerance is 4.5 standard errors."""
    timeless = (f"algo={algo}", "algo.time_conditioning=False")
    by_time = build(*timeless, "training.sampling_eps=0.0")
    by_count = build(*timeless, "training.mask_sampling=count")
    repeated = {name: value.repeat(400, *[1] * (value.ndim - 1)) for name, value in batch().items()}
    repeated["row"] = torch.arange(400 * BATCH)
    means, errors = [], []
    for module in (by_time, by_count):
        with torch.no_grad():
            output = module.loss(repeated, step=0, num_rows=400 * BATCH, training=True)
        per_draw = output.token_nll.view(400, -1).double().mean(-1)
        means.append(per_draw.mean())
        errors.append(per_draw.std() / 400**0.5)
    assert abs(means[0] - means[1]) < 4.5 * (errors[0] ** 2 + errors[1] ** 2) ** 0.5
    assert errors[1] < errors[0]  # why the count form is offered


@pytest.mark.parametrize("form", ["time", "count"])
def test_padding_and_bos_are_left_out(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, padded = build("training.ignore_bos=True", f"training.mask_sampling={form}"), batch()
    seen: list[Tensor] = []
    original = module.objective.denoise
    monkeypatch.setattr(
        module.objective, "denoise", lambda net, xt, *rest: seen.append(xt) or original(net, xt, *rest)
    )
    padded["attention_mask"][:, 7:] = False
    outputs = [module.loss(padded, step=s, num_rows=BATCH, training=True) for s in range(20)]
    touched = torch.stack([output.token_nll for output in outputs]).sum((0, 1)) > 0
    assert touched.tolist() == [False] + [True] * 6 + [False] * 3
    assert int(outputs[0].loss_mask.sum()) == BATCH * 6
    assert all((xt[:, 0] == padded["input_ids"][:, 0]).all() for xt in seen)
    mean = outputs[0].token_nll.sum() / outputs[0].loss_mask.sum()
    torch.testing.assert_close(outputs[0].loss.detach(), mean)


def test_low_var_changes_the_loss_and_not_the_reported_nelbo() -> None:
    nelbo, low_var = build(), build("training.loss_type=low_var")
    expected, output = (m.loss(batch(), step=0, num_rows=BATCH, training=True) for m in (nelbo, low_var))
    torch.testing.assert_close(output.token_nll, expected.token_nll)
    t = nelbo.objective.times(*_time_arguments(nelbo), num_rows=BATCH, training=True)
    unweighted = (expected.token_nll / nelbo.objective.schedule.weight(t)[:, None]).sum() / (BATCH * LENGTH)
    torch.testing.assert_close(output.loss.double(), unweighted.double(), rtol=1e-5, atol=1e-6)


def _time_arguments(module: TrainerBase) -> tuple[Tensor, Tensor]:
    from diffusion.randomness import Stream, row_keys

    rows = torch.arange(BATCH)
    return row_keys(module.config.seed, Stream.TRAIN_TIME, 0, rows), rows


@pytest.mark.parametrize("noise", ["log-linear", "cosine"])
def test_alpha_limits_narrow_the_noise_in_training_only(noise: str) -> None:
    """alpha' = 0.4 + 0.2 alpha(t), and the NELBO's weight is its own -dalpha'/dt / (1 - alpha')."""
    module = build("algo=imdm", "algo.alpha_min=0.4", "algo.alpha_max=0.6", f"noise={noise}")
    keys, rows = _time_arguments(module)
    t = module.objective.times(keys, rows, BATCH, True).requires_grad_()
    alpha = 0.4 + 0.2 * module.objective.schedule.alpha(t)
    (dalpha,) = torch.autograd.grad(alpha.sum(), t)
    narrowed = module.objective.noised(batch(), 0, BATCH, True)
    torch.testing.assert_close(module.objective.schedule.alpha(narrowed.t), alpha.detach())
    torch.testing.assert_close(narrowed.sigma, -alpha.detach().log())
    torch.testing.assert_close(narrowed.weight, -dalpha / (1 - alpha.detach()))
    plain, wide = (
        m.objective.noised(batch(), 0, BATCH, False) for m in (module, build("algo=imdm", f"noise={noise}"))
    )
    assert torch.equal(plain.t, wide.t) and torch.equal(plain.weight, wide.weight)
    assert module.objective.schedule.alpha(plain.t).max() > 0.8


def test_as_mdlm_is_mdlm_and_mask_noise_matters() -> None:
    mdlm, twin, imdm = build("algo=mdlm"), build("algo=imdm", "algo.as_mdlm=True"), build("algo=imdm")
    losses = [m.loss(batch(), step=0, num_rows=BATCH, training=True).loss for m in (mdlm, twin, imdm)]
    assert torch.equal(losses[0], losses[1])
    assert [name for name, _ in twin.named_parameters()] == [name for name, _ in mdlm.named_parameters()]
    seeds = [imdm.objective.draw_seeds(torch.tensor([key]), LENGTH) for key in (1, 2)]
    masked, sigma = torch.full((1, LENGTH), imdm.mask_id), torch.zeros(1)
    first, second = (imdm.denoiser.denoise(masked, sigma, mask_seeds).full() for mask_seeds in seeds)
    assert (first - second)[..., :SYMBOLS].abs().max() > 1e-3


@pytest.mark.parametrize("algo", sorted(ALGORITHMS))
def test_samples_do_not_depend_on_the_batch_size(algo: str) -> None:
    module = build(f"algo={algo}")
    whole = module.generator.sample(12, 4, batch_size=12)
    pieces = module.generator.sample(12, 4, batch_size=5)
    assert torch.equal(whole.tokens, pieces.tokens)
    assert torch.equal(whole.tokens[4:8], module.generator.sample(4, 4, first_row=4).tokens)
    assert not torch.equal(whole.tokens[0], whole.tokens[1])
    assert (whole.tokens != module.mask_id).all()


def test_a_sampler_without_a_grid_samples_once() -> None:
    assert build("sampling.steps=1,4").generator.step_counts() == [1, 4]
    assert build("sampling.steps=1,4", "sampling.predictor=first_hitting").generator.step_counts() == [LENGTH]


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.largest = max([self.largest, *(x.numel() for x in tree_leaves(out) if isinstance(x, Tensor))])
        return out


@pytest.mark.parametrize("algo", sorted(ALGORITHMS))
def test_no_tensor_over_batch_length_and_vocabulary(algo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training, validation and sampling stay below B L V elements by far; the full prediction does not."""
    symbols = 6000
    module, whole = build(f"algo={algo}", symbols=symbols), batch(symbols=symbols, algo=algo)
    original = diffusion.linear_nll.LinearHead.__init__

    def small_chunks(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **{**kwargs, "chunk_elements": 2**16})

    monkeypatch.setattr(diffusion.linear_nll.LinearHead, "__init__", small_chunks)
    monkeypatch.setattr(samplers.base, "_CHUNK_ELEMENTS", 2**16)
    monkeypatch.setattr(diffusion.duality, "_CHUNK_ELEMENTS", 2**16)
    everything = BATCH * LENGTH * symbols
    parameters = max(p.numel() for p in module.parameters())
    assert parameters < everything / 8
    with LargestTensor() as seen:
        module.loss(whole, step=0, num_rows=BATCH, training=True).loss.backward()
        module.loss(whole, step=0, num_rows=BATCH, training=False)
        module.generator.sample(BATCH, 1, batch_size=BATCH)
        module.generator.sample(BATCH, 4, batch_size=BATCH)
    assert seen.largest < everything / 8
    if algo not in MASKED:
        return
    with LargestTensor() as seen:
        mask_seeds = module.objective.draw_seeds(whole["row"], LENGTH)
        module.denoiser.denoise(whole["input_ids"], torch.zeros(BATCH), mask_seeds).full()
    assert seen.largest >= everything


def test_learnable_noise_and_finite_masks_train() -> None:
    for overrides in (("algo.noise_type=learnable",), ("algo.num_mask=4",), ("algo.noise_type=randn",)):
        module = build("algo=imdm", *overrides)
        module.loss(batch(), step=0, num_rows=BATCH, training=True).loss.backward()
        noise = [p.grad for name, p in module.named_parameters() if "imdm_mlp" in name or "learnable" in name]
        assert noise and all(grad is not None and grad.abs().max() > 0 for grad in noise), overrides
