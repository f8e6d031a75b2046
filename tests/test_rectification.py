"""Pairs that uniform-state models make, and rectification on them: distributions, optima, readers, whole
trainings.

Shapes: S = V**L states of an enumerable world, numbered as its words are.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_redi import TINY, build, run, weights
from test_reflow import arrays, checked, equal, fill, maker
from torch import Tensor
from worlds import UniformWorld, total_variation, tv_noise

from algo import OBJECTIVES
from config.cli import compose_config
from data.dataset import TokenDataset
from data.reflow import FILES, ReflowDataset
from data.reflow_parts import PairStore
from dataloader import get_tokenizer, pair_settings
from diffusion.noise import get_schedule
from diffusion.randomness import Stream, row_keys
from diffusion.uniform import UniformPrediction, uniform_nelbo

pytestmark = pytest.mark.slow

SCHEDULE = get_schedule("log-linear")
SYMBOLS, LENGTH, BATCH, NUM_PAIRS = 2, 4, 16, 20_000


@pytest.fixture(scope="module")
def world() -> UniformWorld:
    """Its distribution is one of 2000 texts, so that data can have it exactly."""
    world = UniformWorld(SYMBOLS, LENGTH)
    counts = (2000 * world.probs).round()
    world.probs = counts / counts.sum()
    return world


def onehot(world: UniformWorld, ids: Tensor) -> Tensor:
    return torch.eye(world.size).double()[ids]


def alpha_at(t: float) -> Tensor:
    return SCHEDULE.alpha(torch.tensor(t, dtype=torch.float64))


def grid(t: float, num_steps: int) -> list[float]:
    """alpha on the grid of ``num_steps`` steps from ``t``, at whose end nothing is noise."""
    times = t * torch.linspace(1, 1e-5, num_steps + 1, dtype=torch.float64)
    return [*SCHEDULE.alpha(times)[:-1].tolist(), 1.0]


def chain(world: UniformWorld, t: float, num_steps: int, *, greedy: bool = False) -> Tensor:
    """The distribution of x0' given xt, (S, S), of the exact model in ``num_steps`` steps from ``t``."""
    alphas, distribution = grid(t, num_steps), torch.eye(len(world.words)).double()
    for moves in world.moves(alphas[:-1] if greedy else alphas):
        distribution = distribution @ moves
    if greedy:
        ends = world.encode(world.table(alphas[-2]).argmax(-1))
        distribution = distribution @ torch.eye(len(ends)).double()[ends]
    return distribution


def noised(world: UniformWorld, t: float) -> Tensor:
    """The joint distribution of xt and x0, (S, S)."""
    return world.likelihoods(alpha_at(t)).prod(0) * world.probs


def joint_frequencies(world: UniformWorld, xt: Tensor, x0: Tensor) -> Tensor:
    size = len(world.words)
    cell = world.encode(xt.long()) * size + world.encode(x0.long())
    return torch.bincount(cell, minlength=size**2).double().view(size, size) / len(xt)


# The pairs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("removal", ["ancestral", "greedy"])
@pytest.mark.parametrize("perturbed", [True, False])
def test_pairs_of_an_exact_model_have_its_distribution(
    world: UniformWorld, perturbed: bool, removal: str
) -> None:
    """(xt, x0') against the enumerated chain: from noised text at uniform times, or from pure noise."""
    num_steps, greedy = 3, removal == "greedy"
    exact = maker(
        "algo=duo_base", f"reflow.perturbed_rect={perturbed}", f"sampling.steps={num_steps}",
        f"sampling.noise_removal={removal}", world=world,
    )  # fmt: skip
    exact._dataset = TokenDataset(world.words.repeat_interleave((2000 * world.probs).long(), 0).numpy())
    made = {name: torch.from_numpy(array) for name, array in exact.make(torch.arange(NUM_PAIRS)).items()}
    times = ((torch.arange(200).double() + 0.5) / 200).tolist() if perturbed else [1.0]
    assert ((made["t"] == 1) == (not perturbed)).all()
    distributions: dict[bool, Tensor] = {}
    for kind in (False, True):
        parts = []
        for t in times:
            start = noised(world, t).sum(1) if perturbed else torch.full((16,), 1 / 16).double()
            parts.append(start[:, None] * chain(world, t, num_steps, greedy=kind))
        distributions[kind] = torch.stack(parts).mean(0)
    found, distribution = joint_frequencies(world, made["xt"], made["x0"]), distributions[greedy]
    assert total_variation(found, distribution) < tv_noise(distribution, NUM_PAIRS)
    assert total_variation(distributions[True], distributions[False]) > 4 * tv_noise(distribution, NUM_PAIRS)


def test_many_steps_make_pairs_of_text_and_its_noise(world: UniformWorld) -> None:
    """So the exact teacher's pairs have the distribution of the data; few steps, or greedy ones, have
    another.
    """
    data = noised(world, 0.7)
    start = data.sum(1, keepdim=True)
    errors = [total_variation(start * chain(world, 0.7, n), data) for n in (1, 16, 64, 256)]
    assert errors[0] > 10 * errors[2] and errors[1] > 3 * errors[2] > 9 * errors[3] and errors[3] < 2e-3
    assert total_variation(start * chain(world, 0.7, 256, greedy=True), data) > 2 * errors[3]


@pytest.mark.parametrize("kind", ["perturbed", "from noise"])
def test_a_row_is_a_function_of_seed_and_row(kind: str, tmp_path: Path) -> None:
    common = ("algo=duo_base", f"reflow.perturbed_rect={kind == 'perturbed'}", "training.ignore_bos=True")
    whole = fill(tmp_path / "whole", maker(*common))
    assert whole["xt"].max() < SYMBOLS and whole["x0"].max() < SYMBOLS
    kept = (whole["xt"][:, 0] == whole["x0"][:, 0]).all()
    assert kept == (kind == "perturbed")  # a given first token stays, pure noise has none
    fewer = maker(*common, "reflow.num_reflow_samples=20", "loader.eval_batch_size=7")
    assert equal(whole, fill(tmp_path / "fewer", fewer), slice(20))
    assert not equal(whole, fill(tmp_path / "seed", maker(*common, "seed=2")))


def test_the_configuration_knows_the_uniform_models() -> None:
    uniform = [name for name, cls in OBJECTIVES.items() if cls.Settings.family == "uniform"]
    assert len(uniform) == 4
    for name in ("mdlm", *uniform):
        module = build(f"algo={name}")
        settings = pair_settings(module.config, module.tokenizer)
        assert settings["process"] == module.objective.settings.family
        assert settings["tokenizer"]["vocab_size"] == module.vocab_size


# The objective --------------------------------------------------------------------------------------


def batch(size: int = BATCH) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x0, xt = (torch.randint(3, (size, LENGTH), generator=generator) for _ in range(2))
    return {
        "input_ids": x0,
        "attention_mask": torch.ones_like(x0, dtype=torch.bool),
        "row": torch.arange(size),
        "xt": xt,
        "t": torch.linspace(0.2, 1, size, dtype=torch.float64),
        "seed": torch.randint(2**62, (size,), generator=generator),
    }


def test_the_loss_is_a_pure_function_of_the_pair() -> None:
    """The NELBO of duo_base at the stored time, or the cross-entropy; the seed says nothing."""
    data = batch()
    for simple in (False, True):
        module = build("algo=rectification", f"algo.use_simple_loss={simple}", "training.ignore_bos=True")
        output = module.loss(data, step=0, num_rows=BATCH, training=True)
        other = module.loss({**data, "seed": data["seed"] + 1}, step=9, num_rows=BATCH, training=True)
        assert torch.equal(output.token_nll, other.token_nll)
        loss_mask = data["attention_mask"].clone()
        loss_mask[:, 0] = False
        schedule = module.objective.schedule
        sigma, weight = schedule.sigma(data["t"]), schedule.weight(data["t"])
        prediction = module.denoiser.denoise(data["xt"], sigma)
        if simple:
            log_probs = prediction.full().gather(-1, data["input_ids"].unsqueeze(-1)).squeeze(-1)
            expected = -log_probs.detach() * loss_mask
        else:
            expected = uniform_nelbo(
                prediction, data["input_ids"], weight, sigma, loss_mask, num_tokens=1
            ).token_nll
        torch.testing.assert_close(output.token_nll, expected)
        torch.testing.assert_close(output.loss.detach(), expected.sum() / loss_mask.sum())
        output.loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_validation_is_the_plain_nelbo_and_text_is_no_pair() -> None:
    data = {name: value for name, value in batch().items() if name not in ("xt", "t", "seed")}
    modules = (build("algo=rectification", "algo.use_simple_loss=True"), build("algo=duo_base"))
    ours, plain = (m.loss(data, step=0, num_rows=BATCH, training=False).token_nll for m in modules)
    assert torch.equal(ours, plain)
    with pytest.raises(ValueError, match="data: algo=rectification trains on stored pairs"):
        modules[0].loss(data, step=0, num_rows=BATCH, training=True)


class Table:
    """The freest network at one time: logits for every state."""

    def __init__(self, world: UniformWorld, probs: Tensor) -> None:
        self.world, self.logits = world, probs.log().requires_grad_()

    def denoise(self, xt: Tensor, sigma: Tensor, mask_seeds: Tensor | None) -> UniformPrediction:
        head = torch.eye(self.world.size).double()
        return UniformPrediction(self.logits[self.world.encode(xt)], head, None, xt, torch.float64)


def best_tables(world: UniformWorld, joint: Tensor, alpha: Tensor) -> dict[str, Tensor]:
    """What the two losses lead to on pairs of the distribution ``joint`` (S, S): x_theta in all states (S,
    L, V).
    """
    distribution = torch.stack([joint @ onehot(world, world.words[:, i]) for i in range(world.length)], 1)
    distribution = distribution / distribution.sum(-1, keepdim=True)
    others = distribution / (1 + world.size * alpha / (1 - alpha) * onehot(world, world.words))
    return {"cross-entropy": distribution, "nelbo": others / others.sum(-1, keepdim=True)}


def test_of_text_and_its_noise_the_best_is_the_leave_one_out_posterior(world: UniformWorld) -> None:
    alpha = alpha_at(0.6)
    best = best_tables(world, noised(world, 0.6), alpha)
    torch.testing.assert_close(best["nelbo"], world.table(alpha))
    torch.testing.assert_close(best["cross-entropy"], world.table(alpha, others_only=False))


@pytest.mark.parametrize("t", [0.6, 1.0])
def test_the_targets_on_pairs(world: UniformWorld, t: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its own optimum each loss has no gradient, at the other's it has, on pairs that no noise made; and
    one drawn step from the NELBO's optimum gives every position its distribution in the pairs, whatever the
    token."""
    counts = 1 + torch.randint(1, 9, (16, 16), generator=torch.Generator().manual_seed(0))
    cells = torch.arange(256).repeat_interleave(counts.flatten())
    states, x0 = cells // 16, world.words[cells % 16]
    data = {
        "input_ids": x0,
        "attention_mask": torch.ones_like(x0, dtype=torch.bool),
        "row": torch.arange(len(x0)),
        "xt": world.words[states],
        "t": torch.full((len(x0),), t, dtype=torch.float64),
        "seed": torch.zeros_like(states),
    }
    alpha, joint = alpha_at(t), counts / counts.sum().double()
    best, losses, slopes = best_tables(world, joint, alpha), {}, {}
    for name in best:
        simple = f"algo.use_simple_loss={name == 'cross-entropy'}"
        module = build("algo=rectification", f"data.vocab_size={SYMBOLS}", simple)
        for at, probs in best.items():
            table = Table(world, probs.clone())
            answer = lambda _, *seen, table=table: table.denoise(*seen)  # noqa: E731
            monkeypatch.setattr(module.objective, "denoise", answer)
            output = module.loss(data, step=0, num_rows=len(x0), training=True)
            output.loss.backward()
            losses[name, at] = output.loss.item()
            slopes[name, at] = table.logits.grad.abs().max().item()
        other = next(at for at in best if at != name)
        assert losses[name, name] < losses[name, other]
        assert slopes[name, name] < 1e-6 * slopes[name, other]

    start = joint.sum(1)
    distribution = start[:, None] * torch.stack(
        [best["cross-entropy"][:, i][:, world.words[:, i]] for i in range(LENGTH)]
    ).prod(0)
    tokens = {}
    repeated = world.words[states].repeat(NUM_PAIRS // len(states) + 1, 1)
    keys = row_keys(1, Stream.SAMPLE, 0, torch.arange(len(repeated)))
    for name, probs in best.items():
        table = Table(world, probs)
        answer = lambda _, *seen, table=table: table.denoise(*seen)  # noqa: E731
        monkeypatch.setattr(module.objective, "denoise", answer)
        tokens[name] = module.generator.reverse(repeated, t, None, keys, 1).tokens
    found = {name: joint_frequencies(world, repeated, drawn) for name, drawn in tokens.items()}
    assert total_variation(found["nelbo"], distribution) < tv_noise(distribution, len(repeated))
    if t < 1:  # at t = 1 the own token says next to nothing
        assert total_variation(found["cross-entropy"], distribution) > 2 * tv_noise(
            distribution, len(repeated)
        )


def total_correlation(world: UniformWorld, joint: Tensor) -> float:
    """E over xt of TC(x0 | xt) in nats, of a joint distribution (S, S): what one step loses at its best."""
    start = joint.sum(1)
    given = joint / start[:, None]
    each = torch.stack([given @ onehot(world, world.words[:, i]) for i in range(world.length)], 1)
    entropies = [-torch.special.xlogy(p, p).flatten(1).sum(1) for p in (each, given)]
    return float((start * (entropies[0] - entropies[1])).sum())


def test_what_rectification_can_gain(world: UniformWorld) -> None:
    """Enumerated, so there is no noise. From noised text, pairs made in k steps lose less in a single step
    than text itself, the less the fewer steps. From pure noise a pair says next to nothing: the reverse
    process draws the ids of its start anew before it knows of any text."""
    data = noised(world, 0.7)
    start = data.sum(1, keepdim=True)
    lost = [total_correlation(world, start * chain(world, 0.7, k)) for k in (1, 2, 8, 64)]
    assert lost[0] == pytest.approx(0, abs=1e-12)
    assert 0.05 < lost[1] < lost[2] < lost[3] < total_correlation(world, data)
    for k in (1, 8, 64):
        pairs = chain(world, 1.0, k) / len(world.words)
        assert total_variation(pairs.sum(1, keepdim=True) * pairs.sum(0), pairs) < 1e-3


# Readers --------------------------------------------------------------------------------------------


def reader(folder: Path, *overrides: str, algo: str = "rectification") -> Any:
    where = f"reflow.save_path={folder}"
    words = ["mode=train", f"algo={algo}", "data=reflow-dataset-general", "data.vocab_size=null", where]
    return compose_config([*TINY, *words, *overrides], warn=False)


def read(cfg: Any) -> ReflowDataset:
    pairs = ReflowDataset(Path(cfg.reflow.save_path))
    from_noise = cfg.algo.get("onestep_mode", False)
    pairs.check(pair_settings(cfg, get_tokenizer(cfg)), use_seeds=False, from_noise=from_noise)
    return pairs


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of both processes, with their manifests and without; uniform ones from pure noise as well."""
    folder = tmp_path_factory.mktemp("pairs")
    for algo in ("mdlm", "duo_base"):
        fill(folder / algo, maker(f"algo={algo}"))
        (folder / f"bare-{algo}").mkdir()
        for file in FILES.values():
            (folder / f"bare-{algo}" / file).write_bytes((folder / algo / file).read_bytes())
    fill(folder / "noise", maker("algo=duo_base", "reflow.perturbed_rect=False"))
    return folder


TYPED = ("data.tokenizer_name_or_path=synthetic-align", f"data.vocab_size={SYMBOLS}")


def test_fitting_pairs_are_read(stored: Path) -> None:
    assert (read(reader(stored / "duo_base")).times < 1).all()
    assert (read(reader(stored / "noise", "algo.onestep_mode=True")).times == 1).all()
    read(reader(stored / "bare-duo_base", *TYPED))
    checked(reader(stored / "mdlm", "algo.ignore_seed=True", algo="im-redi"))
    manifest = json.loads((stored / "noise" / "manifest.json").read_text())
    assert manifest["process"] == "uniform" and manifest["tokenizer"]["mask_id"] is None
    assert manifest["tokenizer"]["vocab_size"] == SYMBOLS and manifest["complete"]


@pytest.mark.parametrize(
    ("folder", "algo", "change", "words"),
    [
        ("mdlm", "rectification", (), "pairs of algo=mdlm are for a masked model, .* or algo=im-redi"),
        ("duo_base", "im-redi", (), "pairs of algo=duo_base are for a uniform-state model, .*rectification"),
        ("bare-mdlm", "rectification", TYPED, "id 2 stands for all noise, like a mask"),
        ("bare-duo_base", "im-redi", TYPED, "text changes where no mask is are for a uniform-state model"),
        ("duo_base", "rectification", ("algo.onestep_mode=True",), "algo.onestep_mode=True: .* start at"),
        ("duo_base", "rectification", ("model.length=5",), "model.length=5: .* are 4 tokens long"),
        (
            "duo_base", "rectification", ("data.tokenizer_name_or_path=text8",),
            r"made with synthetic-align \(2 ids\), this one has 35 ids, or other words",
        ),
        ("duo_base", "rectification", ("noise=cosine",), "noise=cosine: .* noise.name=log-linear"),
    ],
)  # fmt: skip
def test_wrong_pairs_are_one_line(
    stored: Path, folder: str, algo: str, change: tuple[str, ...], words: str
) -> None:
    cfg = reader(stored / folder, *change, algo=algo)
    if algo == "im-redi":
        cfg.algo.ignore_seed = True
    with pytest.raises(ValueError, match=words) as caught:
        read(cfg)
    assert "\n" not in str(caught.value)


def test_pairs_of_an_older_version_lack_keys(stored: Path, tmp_path: Path) -> None:
    made_by = maker("algo=mdlm")
    manifest = json.loads((stored / "mdlm" / "manifest.json").read_text())
    assert manifest.pop("process") == "absorbing" and manifest["data"].pop("streaming") is False
    for file in FILES.values():
        (tmp_path / file).write_bytes((stored / "mdlm" / file).read_bytes())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert PairStore(tmp_path, made_by.describe()).complete
    read(reader(tmp_path, "algo.ignore_seed=True", algo="im-redi"))
    with pytest.raises(ValueError, match="holds pairs made with other settings"):
        PairStore(tmp_path, maker("algo=duo_base").describe())


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("algo.onestep_mode=True reflow.make_missing=True", "algo.onestep_mode=True: reflow.make_missing"),
        ("training.loss_type=low_var", "training.loss_type=low_var: is about masks"),
        ("algo.ignore_seed=True", "algo.ignore_seed: unknown key with algo=rectification"),
        ("sampling.predictor=first_hitting", "sampling.predictor=first_hitting: not for uniform models"),
    ],
)
def test_what_has_no_meaning_is_refused(typed: str, words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}"):
        build("algo=rectification", *typed.split())


# The chain ------------------------------------------------------------------------------------------


def generate(folder: Path, name: str, *overrides: str, source: str) -> dict[str, Any]:
    return run(
        "mode=generate_reflow_dataset", f"eval.checkpoint_path={folder}/{source}/checkpoints/last.ckpt",
        f"reflow.save_path={folder}/{name}", "reflow.num_reflow_samples=40", "sampling.steps=4", *overrides,
    )  # fmt: skip


def rectify(folder: Path, name: str, pairs: str, *overrides: str, source: str) -> dict[str, Any]:
    return run(
        "algo=rectification", "data=reflow-dataset-general", "data.vocab_size=null", "model.dropout=0.2",
        f"training.finetune_path={folder}/{source}/checkpoints/last.ckpt", "training.load_ema=True",
        f"reflow.save_path={folder}/{pairs}", f"checkpointing.save_dir={folder}/{name}", *overrides,
    )  # fmt: skip


def test_rounds_of_rectification(tmp_path: Path) -> None:
    """Duo, pairs of both kinds, both losses, resumed as if never stopped, and one more round."""
    run("algo=duo_base", "trainer.max_steps=20", "optim.lr=1e-2", f"checkpointing.save_dir={tmp_path}/duo")
    made = generate(tmp_path, "text", "algo=duo_base", source="duo")
    assert made["process"] == "uniform" and made["sampling"]["predictor"] == "ancestral_cache"
    noise = ("reflow.perturbed_rect=False", "sampling.noise_removal=greedy")
    generate(tmp_path, "noise", "algo=duo_base", *noise, source="duo")
    assert (arrays(tmp_path / "noise")["t"] == 1).all()

    both = ("loader.batch_size=8",)
    rectify(tmp_path, "whole", "text", *both, "trainer.max_steps=6", source="duo")
    rectify(tmp_path, "one", "text", *both, "trainer.max_steps=4", source="duo")
    result = rectify(tmp_path, "one", "text", *both, "trainer.max_steps=6", source="duo")
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "one")
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
    checkpoint = torch.load(tmp_path / "one" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["ema"]["num_updates"] == 26  # 20 of Duo, kept
    assert 0 < result["train/nll"] < 3

    simple = ("algo.use_simple_loss=True", "algo.onestep_mode=True", "trainer.max_steps=2")
    assert rectify(tmp_path, "step", "noise", *simple, source="duo")["steps"] == 2
    again = generate(tmp_path, "again", "algo=rectification", *noise, source="step")
    assert again["algorithm"]["name"] == "rectification" and again["process"] == "uniform"
    assert not np.array_equal(arrays(tmp_path / "again")["x0"], arrays(tmp_path / "noise")["x0"])
    assert np.array_equal(arrays(tmp_path / "again")["xt"], arrays(tmp_path / "noise")["xt"])
    assert rectify(tmp_path, "two", "again", *simple, source="step")["steps"] == 2
    missing = ("reflow.make_missing=True", "reflow.num_reflow_samples=20", "sampling.steps=2")
    folder = f"checkpointing.save_dir={tmp_path}/made"
    assert run("algo=rectification", *missing, "trainer.max_steps=1", folder)["steps"] == 1
