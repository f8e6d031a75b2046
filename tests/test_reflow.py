"""Reflow pairs: their distribution, one row a function of (seed, row), killed and continued, and who may
read them.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from worlds import NoisyWorld, World, random_probs, total_variation, tv_noise

import tasks.reflow_pairs
from config.cli import compose_config
from data.dataset import TokenDataset
from data.reflow import FILES, ReflowDataset
from data.reflow_parts import PairStore
from dataloader import get_tokenizer, get_valid_dataloader, pair_settings
from diffusion.randomness import random_bits
from tasks.reflow_pairs import PairMaker
from tasks.setup import build_algorithm

pytestmark = pytest.mark.slow

SYMBOLS, LENGTH = 2, 4
TINY = (
    "algo=mdlm",
    "data=synthetic-align", f"data.vocab_size={SYMBOLS}", "model=synthetic", f"model.length={LENGTH}",
    "model.hidden_size=16", "model.cond_dim=8", "model.n_blocks=1", "model.n_heads=2", "model.noise_dim=4",
    "mode=generate_reflow_dataset", "eval.checkpoint_path=none", "reflow.num_reflow_samples=50",
    "loader.eval_batch_size=8", "trainer.accelerator=cpu", "trainer.precision=32", "sampling.steps=3",
    "training.ema=0", "wandb=null",
)  # fmt: skip


def maker(*overrides: str, world: Any = None) -> PairMaker:
    """A maker with random weights, or with a world's own denoiser in the network's place."""
    cfg = compose_config([*TINY, *overrides], warn=False)
    module = build_algorithm(cfg).eval()
    if world is not None:
        exact, objective = world.denoiser(), module.objective
        objective.denoise = lambda _, *seen: exact.denoise(*seen)
        objective.draw_seeds, objective.refresh_seeds = exact.draw_seeds, exact.refresh_seeds
    else:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return PairMaker(cfg, module)


def fill(folder: Path, made_by: PairMaker, **ranks: int) -> dict[str, np.ndarray]:
    made_by.fill(PairStore(folder, made_by.describe()), **ranks)
    return arrays(folder)


def arrays(folder: Path) -> dict[str, np.ndarray]:
    return {name: np.load(folder / file, allow_pickle=False) for name, file in FILES.items()}


def equal(first: dict[str, np.ndarray], second: dict[str, np.ndarray], rows: slice = slice(None)) -> bool:
    """Whether ``second`` is what ``first`` has at ``rows``."""
    return all(np.array_equal(first[name][rows], second[name]) for name in FILES)


# The distribution
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["log-linear", "cosine"])
def test_pairs_of_an_exact_model_have_the_distribution_of_data_and_its_noise(noise: str) -> None:
    """(xt, x0') must be distributed as (xt, x0), masks at the schedule's own rate, times uniform."""
    counts = (2000 * random_probs(SYMBOLS, LENGTH, seed=3, contrast=2.0)).round()
    world, num_pairs = World(counts), 20_000
    exact = maker(f"noise={noise}", "sampling.predictor=first_hitting", world=world)
    repeated = world.sequences.repeat_interleave(counts.flatten().long(), 0)
    exact._dataset = TokenDataset(repeated.numpy())
    made = exact.make(torch.arange(num_pairs))

    t = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    t = (t[1:] + t[:-1]) / 2
    masked = (world.digits == SYMBOLS).sum(-1)  # of the (K+1)**L visible words
    rate = exact.module.objective.schedule.masked(t)[:, None]
    pattern = (rate**masked * (1 - rate) ** (LENGTH - masked)).mean(0)
    fits = ((world.digits[:, None] == world.words) | (world.digits[:, None] == SYMBOLS)).all(-1)
    distribution = pattern[:, None] * fits * world.probs  # (words with masks, clean words)
    assert distribution.sum() == pytest.approx(1)

    xt, x0 = (torch.from_numpy(made[name]).long() for name in ("xt", "x0"))
    cell = world.encode(world.visible(xt), SYMBOLS + 1) * len(world.words) + world.encode(x0, SYMBOLS)
    found = torch.bincount(cell, minlength=distribution.numel()).double() / num_pairs
    assert total_variation(found, distribution.flatten()) < tv_noise(distribution, num_pairs)
    assert made["nfe"].tolist() == (xt == SYMBOLS).sum(-1).tolist()
    times = torch.from_numpy(made["t"])
    assert times.min() > 0 and times.max() <= 1
    for block in times[: 19 * 1024].split(1024):  # stratified: one time in each 1024th part
        assert sorted((block * 1024).ceil().tolist()) == list(range(1, 1025))

    one_step = maker(f"noise={noise}", "sampling.steps=1", "reflow.perturbed_rect=False", world=world)
    x0 = torch.from_numpy(one_step.make(torch.arange(num_pairs))["x0"])
    clean = total_variation(world.frequencies(x0.long()).double(), world.data_distribution)
    assert clean > 5 * tv_noise(world.data_distribution, num_pairs)  # what a wrong distribution looks like


@pytest.mark.parametrize("fix_eps", [False, True])
def test_all_masks_of_a_pair_start_with_the_noise_of_its_seed(fix_eps: bool) -> None:
    """(bit of the seed, x0') has the distribution of the enumerated chain that starts with this bit
    everywhere.
    """
    world, num_pairs, num_steps = NoisyWorld(SYMBOLS, LENGTH, seed=1), 20_000, 3
    noisy = maker(
        "algo=imdm",
        "reflow.perturbed_rect=False",
        f"sampling.fix_eps={fix_eps}",
        f"sampling.steps={num_steps}",
        world=world,
    )
    grid = torch.linspace(1, 1e-5, num_steps + 1, dtype=torch.float64)
    alphas = [*noisy.module.objective.schedule.alpha(grid)[:-1].tolist(), 1.0]
    made = noisy.make(torch.arange(num_pairs))
    assert (made["xt"] == SYMBOLS).all() and (made["t"] == 1).all()
    bits = random_bits(torch.from_numpy(made["seed"]), 1)[:, 0] & 1
    words = world.encode(world.digits.clamp(max=SYMBOLS), SYMBOLS + 1)
    for bit in (0, 1):
        distribution = (world.digits == SYMBOLS + bit).all(-1).double()
        for alpha_t, alpha_s in pairwise(alphas):
            distribution = distribution @ world.transition(alpha_t, alpha_s, reset=not fix_eps)
        distribution = torch.zeros((SYMBOLS + 1) ** LENGTH, dtype=torch.float64).index_add(
            0, words, distribution
        )
        found = world.frequencies(torch.from_numpy(made["x0"]).long()[bits == bit]).double()
        assert total_variation(found, distribution) < tv_noise(distribution, int((bits == bit).sum()))
        other = world.frequencies(torch.from_numpy(made["x0"]).long()[bits != bit]).double()
        assert total_variation(other, distribution) > 2 * tv_noise(distribution, num_pairs // 2)


def test_stored_seeds_replay_the_noise(tmp_path: Path) -> None:
    """The most likely text of one call is a function of (xt, t, seed): what is stored gives it back."""
    made_by = maker("algo=imdm", "algo.noise_scale=10", "sampling.steps=1", "sampling.noise_removal=greedy")
    made = {name: torch.from_numpy(value) for name, value in fill(tmp_path, made_by).items()}
    module, sigma = made_by.module, made_by.module.objective.schedule.sigma(made["t"])

    def text(seed: Tensor) -> Tensor:
        seeds = seed[:, None].expand(-1, LENGTH)
        return module.denoiser.denoise(made["xt"].long(), sigma, seeds).full().argmax(-1)

    assert torch.equal(text(made["seed"]), made["x0"].long())
    assert not torch.equal(text(made["seed"] + 1), made["x0"].long())


# Rows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["perturbed", "from noise"])
def test_a_row_is_a_function_of_seed_and_row(kind: str, tmp_path: Path) -> None:
    common = ("algo=imdm", f"reflow.perturbed_rect={kind == 'perturbed'}")
    whole = fill(tmp_path / "whole", maker(*common))
    assert whole["xt"].shape == whole["x0"].shape == (50, LENGTH) and whole["t"].shape == (50,)
    assert len(set(whole["seed"].tolist())) == 50
    visible = whole["xt"] != SYMBOLS
    assert (whole["x0"][visible] == whole["xt"][visible]).all() and (whole["x0"] != SYMBOLS).all()
    assert visible.any() == (kind == "perturbed")
    fewer = maker(*common, "reflow.num_reflow_samples=20", "loader.eval_batch_size=7")
    assert equal(whole, fill(tmp_path / "fewer", fewer), slice(20))
    other_seed = fill(tmp_path / "seed", maker(*common, "seed=2"))
    assert not set(whole["seed"].tolist()) & set(other_seed["seed"].tolist())


def test_more_rows_than_data_begin_a_new_order_and_new_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    made_by = maker()
    made_by._dataset = TokenDataset(np.arange(12)[:, None].repeat(LENGTH, 1) % 2)
    seen: list[list[int]] = []
    monkeypatch.setattr(
        made_by._dataset, "fetch", lambda i: seen.append(list(i)) or TokenDataset.fetch(made_by._dataset, i)
    )
    made = made_by.make(torch.arange(30))
    assert sorted(seen[0][:12]) == sorted(seen[0][12:24]) == list(range(12))
    assert seen[0][:12] != seen[0][12:24] and len(set(made["t"].tolist())) == 30


@pytest.mark.parametrize("algo", ["imdm", "duo_base"])
def test_ranks_make_disjoint_rows(algo: str, tmp_path: Path) -> None:
    alone = fill(tmp_path / "alone", maker(f"algo={algo}"))
    made_by = maker(f"algo={algo}")
    store = PairStore(tmp_path / "three", made_by.describe())
    for rank in (2, 1):
        made_by.fill(store, rank=rank, world_size=3)
        assert int(store.done().sum()) == (17, 34)[2 - rank]
    with pytest.raises(ValueError, match="unfinished pairs"):
        ReflowDataset(tmp_path / "three")
    made_by.fill(store, rank=0, world_size=3)
    assert equal(alone, arrays(tmp_path / "three"))


@pytest.mark.parametrize("algo", ["imdm", "duo_base"])
def test_a_killed_run_goes_on_and_a_finished_one_calls_no_network(
    algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fill(tmp_path / "whole", maker(f"algo={algo}"))
    made: list[list[int]] = []

    def killed_after(number: int) -> PairMaker:
        made_by = maker(f"algo={algo}")

        def make(rows: Tensor) -> dict[str, np.ndarray]:
            if len(made) == number:
                raise KeyboardInterrupt
            made.append(rows.tolist())
            return PairMaker.make(made_by, rows)

        monkeypatch.setattr(made_by, "make", make)
        return made_by

    for number in (3, 5):
        with pytest.raises(KeyboardInterrupt):
            fill(tmp_path / "parts", killed_after(number))
    monkeypatch.setattr(PairStore, "clear", lambda self: None)  # killed between joining and cleaning up
    fill(tmp_path / "parts", killed_after(1000))
    monkeypatch.undo()
    assert sum(made, []) == list(range(50))
    assert (tmp_path / "parts" / "parts").exists()
    fill(tmp_path / "parts", killed_after(0))
    for name in (*FILES.values(), "manifest.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == sorted(
        [*FILES.values(), "manifest.json"]
    )
    assert equal(whole, arrays(tmp_path / "parts"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("seed=7", "seed was 1, is 7"),
        ("sampling.steps=4", "sampling.num_steps was 3, is 4"),
        ("sampling.fix_eps=True", "sampling.reset was True, is False"),
        ("noise=cosine", "schedule.name was log-linear, is cosine"),
        ("reflow.num_reflow_samples=51", "rows was 50, is 51"),
        ("algo.noise_scale=2", "mask_noise.scale was 1.0, is 2.0"),
    ],
)
def test_other_settings_do_not_go_on_in_the_same_folder(change: str, words: str, tmp_path: Path) -> None:
    PairStore(tmp_path, maker("algo=imdm").describe())
    with pytest.raises(ValueError, match=words) as caught:
        PairStore(tmp_path, maker("algo=imdm", change).describe())
    assert str(caught.value).startswith(f"reflow.save_path={tmp_path}: ") and "\n" not in str(caught.value)


def test_what_makes_no_pairs_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="sampling.steps=1,2: pairs take one number of steps"):
        maker("sampling.steps=1,2")
    maker("sampling.steps=1,2", "sampling.predictor=first_hitting")
    with pytest.raises(ValueError, match="data=reflow-dataset-general: pairs are made from text"):
        compose_config([*TINY, "data=reflow-dataset-general"])
    padded = TokenDataset(np.zeros((4, LENGTH), dtype=np.int64), np.array([4, 3, 4, 4]))
    monkeypatch.setattr(tasks.reflow_pairs, "get_dataset", lambda *_: padded)
    with pytest.raises(ValueError, match="data.wrap=False: pairs cannot carry the padding"):
        maker().make(torch.arange(4))
    with pytest.raises(ValueError, match="noise_removal=none: would leave masks"):
        compose_config([*TINY, "sampling.noise_removal=none"])


# Reading --------------------------------------------------------------------------------------------


def reader(folder: Path, *overrides: str) -> Any:
    return compose_config(
        [*TINY, "mode=train", "algo=im-redi", "data=reflow-dataset-general", f"reflow.save_path={folder}",
         "data.vocab_size=null", *overrides],
        warn=False,
    )  # fmt: skip


def checked(cfg: Any) -> ReflowDataset:
    pairs = ReflowDataset(Path(cfg.reflow.save_path))
    pairs.check(pair_settings(cfg, get_tokenizer(cfg)), use_seeds=not cfg.algo.ignore_seed)
    return pairs


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    fill(folder, maker("algo=imdm"))
    return folder


def test_batches_are_the_stored_pairs(stored: Path) -> None:
    import pickle

    pairs, files = checked(reader(stored)), arrays(stored)
    for dataset in (pairs, pickle.loads(pickle.dumps(pairs))):
        batch = dataset.__getitems__([(0, 7), (1, 49)])
        assert batch["row"].tolist() == [0, 1] and batch["attention_mask"].all()
        for key, name in (("input_ids", "x0"), ("xt", "xt"), ("t", "t"), ("seed", "seed")):
            assert batch[key].tolist() == files[name][[7, 49]].tolist()
        assert {batch[key].dtype for key in ("input_ids", "xt", "seed")} == {torch.int64}


def test_tokenizer_and_validation_data_come_from_the_manifest(stored: Path) -> None:
    cfg = reader(stored)
    assert get_tokenizer(cfg).vocab_size == SYMBOLS
    assert len(get_valid_dataloader(cfg, get_tokenizer(cfg)).dataset) == 1024
    with pytest.raises(ValueError, match="data.tokenizer_name_or_path=auto: reflow.save_path=.* no manifest"):
        folder = stored.parent / "official"
        folder.mkdir()
        for name in FILES.values():
            (folder / name).write_bytes((stored / name).read_bytes())
        get_tokenizer(reader(folder))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["model.length=5"], "model.length=5: .* are 4 tokens long"),
        (
            ["data.tokenizer_name_or_path=text8"],
            "data.tokenizer_name_or_path=text8: .* made with synthetic-align",
        ),
        (["noise=cosine"], "noise=cosine: .* made with noise.name=log-linear"),
        (["noise.eps=1e-2"], "noise.eps=0.01: .* made with noise.eps=0.001"),
        (["algo.noise_type=randn"], "algo.noise_type=randn: .* not replay the same noise"),
        (["algo.noise_scale=2"], "algo.noise_scale=2.0: .* not replay the same noise"),
        (["model.noise_dim=8"], "model.noise_dim=8: .* not replay the same noise"),
        (["algo.num_mask=3"], "algo.num_mask=3: .* not replay the same noise"),
    ],
)
def test_pairs_that_do_not_fit_are_one_line(stored: Path, change: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        checked(reader(stored, *change))
    assert "\n" not in str(caught.value)
    if "replay" in words:
        checked(reader(stored, *change, "algo.ignore_seed=True"))


def test_pairs_without_seeds_say_so(tmp_path: Path) -> None:
    made = fill(tmp_path, maker("algo=imdm", "reflow.get_seed=False"))
    assert (made["seed"] == -1).all() and not json.loads((tmp_path / "manifest.json").read_text())["get_seed"]
    assert len(np.unique(made["x0"], axis=0)) > 1
    with pytest.raises(ValueError, match="algo.ignore_seed=False: .* carry no seeds"):
        checked(reader(tmp_path))
    checked(reader(tmp_path, "algo.ignore_seed=True"))


def test_folders_without_a_manifest(stored: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = arrays(stored)
    for name, file in FILES.items():
        np.save(tmp_path / file, files[name])
    typed = ("data.tokenizer_name_or_path=synthetic-align", f"data.vocab_size={SYMBOLS}")
    checked(reader(tmp_path, *typed))
    assert len([line for line in caplog.messages if "no manifest.json" in line]) == 1
    with pytest.raises(ValueError, match="pairs without a manifest"):
        PairStore(tmp_path, maker().describe())
    broken = (
        ("x0", np.where(files["xt"] == SYMBOLS, 3, files["x0"]), "x0.npy has ids"),
        ("x0", files["xt"], "x0.npy holds the mask"),
        ("t", files["t"] * 0, "t = 0 of row 0, which has masks"),
        ("t", files["t"] * 7, "outside"),
        ("t", files["t"] * float("nan"), "outside"),
        ("t", files["t"][:-1], r"have shapes \(50, 4\)"),
        ("seed", files["seed"].astype(float), "holds float64"),
    )
    for name, value, words in broken:
        np.save(tmp_path / FILES[name], value)
        with pytest.raises(ValueError, match=words) as caught:
            checked(reader(tmp_path, *typed))
        assert "\n" not in str(caught.value)
        np.save(tmp_path / FILES[name], files[name])
    np.save(tmp_path / "x0.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="no readable array"):
        checked(reader(tmp_path, *typed))
    (tmp_path / "x0.npy").unlink()
    with pytest.raises(ValueError, match="no pairs there .* mode=generate_reflow_dataset"):
        checked(reader(tmp_path, *typed))
