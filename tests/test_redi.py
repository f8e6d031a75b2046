"""(IM-)ReDi: what its objective's optimum is, that pairs replay, and a whole chain of trainings."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from worlds import World, random_probs, total_variation, tv_noise

from config.cli import compose_config
from diffusion.parameterization import Prediction
from diffusion.randomness import Stream, row_keys
from tasks import MODES
from tasks.setup import build_algorithm
from trainer_base import TrainerBase

pytestmark = pytest.mark.slow

SYMBOLS, LENGTH, BATCH = 3, 4, 16
TINY = (
    "algo=mdlm",
    "data=synthetic-align", f"data.vocab_size={SYMBOLS}", "model=synthetic", f"model.length={LENGTH}",
    "model.hidden_size=16", "model.cond_dim=8", "model.n_blocks=1", "model.n_heads=2", "model.noise_dim=4",
    f"loader.global_batch_size={BATCH}", "loader.eval_global_batch_size=256", "loader.num_workers=0",
    "trainer.accelerator=cpu", "trainer.precision=32", "trainer.num_sanity_val_steps=0",
    "trainer.enable_progress_bar=False", "trainer.log_every_n_steps=1", "trainer.limit_val_batches=1",
    "trainer.val_check_interval=100", "lr_scheduler.num_warmup_steps=1", "training.ema=0.9",
    "eval.generate_samples=False", "wandb=null",
)  # fmt: skip


def build(*overrides: str) -> TrainerBase:
    """A tiny model whose weights are all non-zero, so that everything it is given matters."""
    module = build_algorithm(compose_config([*TINY, *overrides], warn=False))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def pairs(size: int = BATCH) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x0 = torch.randint(SYMBOLS, (size, LENGTH), generator=generator)
    t = torch.linspace(0.2, 1, size, dtype=torch.float64)
    hidden = torch.rand(x0.shape, generator=generator) < t[:, None]
    return {
        "input_ids": x0,
        "attention_mask": torch.ones_like(x0, dtype=torch.bool),
        "row": torch.arange(size),
        "xt": x0.masked_fill(hidden, SYMBOLS),
        "t": t,
        "seed": torch.randint(2**62, (size,), generator=generator),
    }


def token_nll(module: TrainerBase, batch: dict[str, Tensor], step: int = 0) -> Tensor:
    return module.loss(batch, step=step, num_rows=BATCH, training=True).token_nll


# The loss -------------------------------------------------------------------------------------------


def test_the_loss_is_a_pure_function_of_the_pair() -> None:
    module, batch = build("algo=im-redi"), pairs()
    full = token_nll(module, batch)
    assert torch.equal(full, token_nll(module, batch, step=9))
    shuffled = torch.randperm(BATCH, generator=torch.Generator().manual_seed(2))
    moved = {name: value if name == "row" else value[shuffled] for name, value in batch.items()}
    torch.testing.assert_close(token_nll(module, moved), full[shuffled])

    mask_seeds = batch["seed"][:, None].expand(-1, LENGTH)
    sigma = module.objective.schedule.sigma(batch["t"])
    log_probs = module.denoiser.denoise(batch["xt"], sigma, mask_seeds).full()
    nll = -log_probs.gather(-1, batch["input_ids"].unsqueeze(-1)).squeeze(-1)
    expected = torch.where(batch["xt"] == SYMBOLS, nll / batch["t"][:, None].float(), 0.0)
    torch.testing.assert_close(full, expected)
    loss = module.loss(batch, step=0, num_rows=BATCH, training=True).loss
    torch.testing.assert_close(loss, expected.mean())

    low_var = build("algo=im-redi", "training.loss_type=low_var")
    output = low_var.loss(batch, step=0, num_rows=BATCH, training=True)
    torch.testing.assert_close(output.loss, (expected * batch["t"][:, None]).mean().float())
    torch.testing.assert_close(output.token_nll, full)


def test_seeds_matter_unless_they_are_ignored() -> None:
    batch = pairs()
    other = {**batch, "seed": batch["seed"] + 1}
    module, fresh = build("algo=im-redi"), build("algo=im-redi", "algo.ignore_seed=True")
    redi = build("algo=im-redi", "algo.as_mdlm=True")
    assert not torch.allclose(token_nll(module, batch), token_nll(module, other))
    assert torch.equal(token_nll(fresh, batch), token_nll(fresh, other))
    assert not torch.allclose(token_nll(fresh, batch), token_nll(fresh, batch, step=1))
    assert torch.equal(token_nll(redi, batch), token_nll(redi, other, step=1))
    assert [n for n, _ in redi.named_parameters()] == [n for n, _ in build("algo=mdlm").named_parameters()]


def test_validation_is_the_plain_nelbo_and_text_is_no_pair() -> None:
    module, imdm, batch = build("algo=im-redi"), build("algo=imdm"), pairs()
    text = {name: batch[name] for name in ("input_ids", "attention_mask", "row")}
    ours, plain = (m.loss(text, step=0, num_rows=BATCH, training=False).token_nll for m in (module, imdm))
    assert torch.equal(ours, plain)
    with pytest.raises(ValueError, match="data: algo=im-redi trains on stored pairs"):
        token_nll(module, text)
    with pytest.raises(ValueError, match="training.mask_sampling=count: the pairs of algo=im-redi carry"):
        compose_config([*TINY, "algo=im-redi", "training.mask_sampling=count"])


# The claim ------------------------------------------------------------------------------------------


class Table:
    """The freest network of one call from pure noise: a table of logits for each seed, or one for all."""

    def __init__(self, num_seeds: int, probs: Tensor) -> None:
        blocked = torch.full((num_seeds, LENGTH, 1), -1e6, dtype=torch.float64)
        self.logits = torch.cat([probs.log().clamp(min=-50), blocked], -1).requires_grad_()

    def denoise(self, xt: Tensor, sigma: Tensor, mask_seeds: Tensor) -> Prediction:
        assert (mask_seeds == mask_seeds[:, :1]).all()
        seeds = mask_seeds[:, 0] if len(self.logits) > 1 else torch.zeros_like(mask_seeds[:, 0])
        return Prediction(
            self.logits[seeds], torch.eye(SYMBOLS + 1).double(), None, xt, SYMBOLS, torch.float64
        )


def test_seeds_make_one_step_exact_and_a_single_mask_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the fully masked start, at the exact optimum of the objective on pairs seed -> x0 of a known
    distribution.

    One mask state: the optimum is the product of the marginals; its one-step distribution has total
    correlation 0
    and stays away from the pairs' distribution however good the network is. A seed for each pair: the
    optimum says each pair's own text, and the one-step distribution over the seeds is that of the pairs.
    """
    counts = (512 * random_probs(SYMBOLS, LENGTH, seed=4, contrast=2.5)).round()
    world = World(counts)  # the distribution of the pairs' texts, each in its own number of copies
    x0, distribution = world.sequences.repeat_interleave(counts.flatten().long(), 0), world.probs
    num_pairs = len(x0)
    onehot = torch.nn.functional.one_hot(x0, SYMBOLS).double()
    marginals = onehot.mean(0, keepdim=True)
    batch = {
        "input_ids": x0,
        "attention_mask": torch.ones_like(x0, dtype=torch.bool),
        "row": torch.arange(num_pairs),
        "xt": torch.full_like(x0, SYMBOLS),
        "t": torch.ones(num_pairs, dtype=torch.float64),
        "seed": torch.arange(num_pairs),
    }
    module = build("algo=im-redi", "sampling.predictor=ancestral")
    one_step, losses = {}, {}
    for name, table in (("seeded", Table(num_pairs, onehot)), ("single", Table(1, marginals))):
        answer = lambda _, *seen, table=table: table.denoise(*seen)  # noqa: E731
        monkeypatch.setattr(module.objective, "denoise", answer)
        output = module.loss(batch, step=0, num_rows=num_pairs, training=True)
        output.loss.backward()
        assert table.logits.grad.abs().max() < 1e-9  # the optimum of a convex objective
        losses[name] = output.token_nll.sum().item() / num_pairs
        draws = 1 if name == "seeded" else 40
        seeds = batch["seed"].repeat(draws)
        keys = row_keys(1, Stream.SAMPLE, 0, torch.arange(len(seeds)))
        xt, mask_seeds = batch["xt"].repeat(draws, 1), seeds[:, None].expand(-1, LENGTH)
        one_step[name] = module.generator.reverse(xt, 1.0, mask_seeds, keys, 1).tokens
    assert torch.equal(one_step["seeded"], x0)  # the distribution of the pairs, exactly
    assert losses["seeded"] == pytest.approx(0, abs=1e-12)

    words = torch.tensor(list(product(range(SYMBOLS), repeat=LENGTH)))
    independent = torch.stack([marginals[0, j, words[:, j]] for j in range(LENGTH)]).prod(0)
    found = torch.bincount(world.encode(one_step["single"], SYMBOLS), minlength=len(words)).double()
    assert total_variation(found / found.sum(), independent) < tv_noise(independent, int(found.sum()))
    assert total_variation(independent, distribution) > 0.25
    # What is lost is the total correlation: sum of the marginals' entropies less that of the pairs'
    # distribution.
    assert losses["single"] - world.entropy == pytest.approx(world.total_correlation(), rel=1e-9)
    assert world.total_correlation() > 0.3


def test_rectification_does_not_increase_the_conditional_total_correlation() -> None:
    """E over xt of TC(x0' | xt), x0' made by the exact single-mask model in k steps, against the data's own.

    In one step the texts are independent given xt, in more steps less so, and never as much as the data's:
    on such pairs a few-step model has less to lose. Enumerated, so there is no noise.
    """
    world = World(random_probs(2, LENGTH, seed=5, contrast=2.0))
    alpha = 0.4
    starts = [list(start) for start in product(range(3), repeat=LENGTH)]

    def start_probability(start: list[int]) -> float:
        masked = start.count(2)
        fits = ((torch.tensor(start) == 2) | (world.words == torch.tensor(start))).all(-1)
        return float(world.probs[fits].sum()) * (1 - alpha) ** masked * alpha ** (LENGTH - masked)

    def made_from(start: list[int], num_steps: int) -> World:
        """The distribution of x0' given xt = start, as a world of its own."""
        alphas = torch.linspace(alpha, 1, num_steps + 1, dtype=torch.float64).tolist()
        distribution = world.distribution(alphas, start=start)[world.encode(world.words, 3)]
        return World(distribution.view((2,) * LENGTH))

    original = sum(start_probability(s) * world.total_correlation(s) for s in starts)
    rectified = [
        sum(start_probability(s) * made_from(s, k).total_correlation(s) for s in starts) for k in (1, 2, 8)
    ]
    assert rectified[0] == pytest.approx(0, abs=1e-12)
    assert 0 < rectified[1] < rectified[2] < original


# The chain ------------------------------------------------------------------------------------------


def run(*overrides: str) -> dict[str, Any]:
    cfg = compose_config([*TINY, *overrides], warn=False)
    return MODES[cfg.mode](cfg)


def weights(folder: Path) -> dict[str, Tensor]:
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    shadow = {f"ema{i}": value for i, value in enumerate(checkpoint["ema"]["shadow_params"])}
    return {**checkpoint["state_dict"], **shadow}


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MDLM of a few steps and pairs that it made from pure noise."""
    folder = tmp_path_factory.mktemp("chain")
    run("algo=mdlm", "trainer.max_steps=20", "optim.lr=1e-2", f"checkpointing.save_dir={folder}/mdlm")
    generate(folder, "mdlm", "algo=mdlm")
    return folder


def generate(folder: Path, name: str, *overrides: str) -> dict[str, Any]:
    return run(
        "mode=generate_reflow_dataset", f"eval.checkpoint_path={folder}/{name}/checkpoints/last.ckpt",
        f"reflow.save_path={folder}/pairs-{name}", "reflow.num_reflow_samples=40", "sampling.steps=8",
        "reflow.perturbed_rect=False", *overrides,
    )  # fmt: skip


def rectify(folder: Path, source: str, name: str, *overrides: str) -> dict[str, Any]:
    start = (f"training.finetune_path={folder}/{source}/checkpoints/last.ckpt", "training.load_ema=True")
    return run(
        "algo=im-redi", "data=reflow-dataset-general", "data.vocab_size=null",
        f"reflow.save_path={folder}/pairs-{source}",
        f"checkpointing.save_dir={folder}/{name}", "model.dropout=0.2", *start, *overrides,
    )  # fmt: skip


@pytest.mark.parametrize("twin", ["algo.as_mdlm=False", "algo.as_mdlm=True"])
def test_rounds_of_training_on_pairs(chain: Path, twin: str) -> None:
    """Resumed as if never stopped (pairs, dropout, EMA), and then one more round from its own pairs."""
    name = f"redi-{twin[-5:]}"
    both = (twin, "loader.batch_size=8")
    rectify(chain, "mdlm", f"{name}-whole", *both, "trainer.max_steps=6")
    rectify(chain, "mdlm", name, *both, "trainer.max_steps=4")
    result = rectify(chain, "mdlm", name, *both, "trainer.max_steps=6", "trainer.val_check_interval=1")
    whole, resumed = weights(chain / f"{name}-whole"), weights(chain / name)
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
    checkpoint = torch.load(chain / name / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["ema"]["num_updates"] == 26  # 20 of the MDLM, kept
    assert 0 < result["val/nll"] < 3

    made = generate(chain, name, "algo=im-redi", twin)
    assert made["algorithm"] == {"name": "im-redi", "as_mdlm": "True" in twin}
    assert (made["mask_noise"] is None) == ("True" in twin)
    assert rectify(chain, name, f"{name}2", twin, "trainer.max_steps=2")["steps"] == 2
    with pytest.raises(ValueError, match="reflow.save_path was .*pairs-mdlm, is .*pairs-redi"):
        rectify(chain, name, name, *both, f"training.finetune_path={chain}/mdlm/checkpoints/last.ckpt")


def test_missing_pairs_are_refused_or_made_first(tmp_path: Path) -> None:
    common = ("algo=im-redi", "trainer.max_steps=2", "reflow.num_reflow_samples=20", "sampling.steps=2,4")
    with pytest.raises(ValueError, match="data=synthetic-align: .*reflow.make_missing=True") as caught:
        run(*common, f"checkpointing.save_dir={tmp_path}/run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()
    assert run(*common, "reflow.make_missing=True", f"checkpointing.save_dir={tmp_path}/run")["steps"] == 2
    manifest = json.loads((tmp_path / "run" / "reflow_data" / "manifest.json").read_text())
    assert manifest["sampling"]["num_steps"] == 4 and manifest["rows"] == 20
