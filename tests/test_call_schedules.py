"""``sampling.schedule``: the calls that err least, against enumeration; and what samplers make of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from worlds import NoisyWorld, World, total_variation, tv_noise

from config.cli import compose_config
from diffusion.noise import get_schedule
from diffusion.randomness import row_keys
from errors import UserError
from samplers.base import SamplerSettings, Samples
from samplers.draws import KeyedDraws
from samplers.registry import get_sampler
from samplers.schedules import Cosine, Dependence, Measured, Uniform, counts, measure, points
from samplers.spread import spread_calls
from tasks import MODES

SCHEDULE = get_schedule("log-linear", 1e-3)
LENGTH = 6
NUM_SAMPLES = 40_000


def chain() -> Tensor:
    """A Markov chain of two symbols that hardly ever change, and rather begin with the first."""
    words = torch.cartesian_prod(*[torch.arange(2)] * LENGTH)
    changes = (words[:, 1:] != words[:, :-1]).sum(-1)
    probs = 0.1**changes * 0.9 ** (LENGTH - 1 - changes) * torch.where(words[:, 0] == 0, 0.7, 0.3)
    return probs.double().view((2,) * LENGTH)


@pytest.fixture(scope="module")
def world() -> World:
    return World(chain())


@pytest.fixture(scope="module")
def dependence(world: World) -> Dependence:
    """Measured on all words, each by its probability."""
    sampler = get_sampler("ancestral", order="spread")(world.denoiser(), SCHEDULE, world.mask_id, settings())
    total = torch.zeros(LENGTH, LENGTH, dtype=torch.float64)
    for word, probability in zip(world.sequences, world.probs, strict=True):
        known, cost = measure(sampler, word[None], None, draws(1))
        total += probability * cost
    return Dependence(known, total)


def settings(num_steps: int = 1, **more: Any) -> SamplerSettings:
    return SamplerSettings(num_steps=num_steps, **more)


def draws(num: int) -> KeyedDraws:
    return KeyedDraws(row_keys(0, 2, 0, torch.arange(num)))


def compositions(number: int, most: int) -> Iterator[tuple[int, ...]]:
    """``number`` as sums of at most ``most`` positive parts, in order."""
    if number == 0:
        yield ()
    elif most:
        for first in range(1, number + 1):
            yield from ((first, *rest) for rest in compositions(number - first, most - 1))


def written(world: World, parts: tuple[int, ...]) -> Tensor:
    """The distribution over the words that calls of these numbers write in spread order, (K**L,)."""
    ranks = torch.tensor(spread_calls(LENGTH, LENGTH))
    probs, begin = torch.ones(len(world.words), dtype=torch.float64), 0
    for end in accumulate(parts):
        seen = torch.where(ranks < begin, world.words, world.num_symbols)
        table = world.table[world.encode(seen, world.num_symbols + 1)]
        each = table.gather(2, world.words[..., None]).squeeze(2)
        probs *= torch.where((ranks >= begin) & (ranks < end), each, 1).prod(-1)
        begin = end
    return probs


def test_costs_are_conditional_entropies(world: World, dependence: Dependence) -> None:
    """And written in one token a call, the text costs its entropy."""
    assert dependence.known == tuple(range(LENGTH))
    torch.testing.assert_close(float(dependence.cost.diagonal().sum()), world.entropy)
    marginals = world.table[world.encode(torch.full((LENGTH,), world.num_symbols), world.num_symbols + 1)]
    alone = -torch.special.xlogy(marginals, marginals).sum(-1)
    ranks = torch.tensor(spread_calls(LENGTH, LENGTH))
    torch.testing.assert_close(dependence.cost[0, ranks], alone)
    assert (dependence.cost.tril(-1) == 0).all()


@pytest.mark.parametrize("num_calls", range(1, LENGTH + 1))
def test_the_optimum_is_that_of_enumeration(world: World, dependence: Dependence, num_calls: int) -> None:
    def divergence(parts: tuple[int, ...]) -> float:
        return float((world.probs * (world.probs / written(world, parts)).log()).sum())

    errors = {parts: divergence(parts) for parts in compositions(LENGTH, num_calls)}
    found = counts(Measured(dependence), LENGTH, LENGTH, num_calls)
    assert errors[found] == pytest.approx(min(errors.values()), abs=1e-12)
    for parts, error in errors.items():
        assert dependence.of_counts(parts) - world.entropy == pytest.approx(error, abs=1e-12)
    if 2 < num_calls < LENGTH:
        assert errors[found] < 0.95 * divergence(counts(Uniform(), LENGTH, LENGTH, num_calls))


@pytest.mark.parametrize("num_given", [1, 2, 4])
def test_with_given_tokens_the_rest_is_the_optimum(dependence: Dependence, num_given: int) -> None:
    left = LENGTH - num_given
    for num_calls in range(1, left + 1):
        tails = [(num_given, *parts) for parts in compositions(left, num_calls)]
        found = (num_given, *counts(Measured(dependence), left, LENGTH, num_calls))
        assert dependence.of_counts(found) == pytest.approx(min(map(dependence.of_counts, tails)), abs=1e-12)


def test_spread_writes_what_was_enumerated(world: World, dependence: Dependence) -> None:
    schedule = Measured(dependence)
    samples = run(world, "ancestral", "spread", settings(3, schedule=schedule))
    parts = counts(schedule, LENGTH, LENGTH, 3)
    assert (samples.nfe == 3).all() and parts != counts(Uniform(), LENGTH, LENGTH, 3)
    exact = torch.zeros_like(world.data_distribution)
    exact[world.encode(world.words, world.num_symbols + 1)] = written(world, parts)
    found = world.frequencies(samples.tokens).double()
    assert total_variation(found, exact) < tv_noise(exact, NUM_SAMPLES)


def run(
    world: World | NoisyWorld, name: str, order: str, how: SamplerSettings, on_step: Any = None
) -> Samples:
    denoiser = world.denoiser()
    xt = torch.full((NUM_SAMPLES, world.length), world.mask_id)
    seeds = denoiser.draw_seeds(row_keys(0, 1, 0, torch.arange(NUM_SAMPLES)), world.length)
    sampler = get_sampler(name, order=order)(denoiser, SCHEDULE, world.mask_id, how)
    return sampler.sample(xt, 1.0, seeds, draws(NUM_SAMPLES), on_step=on_step)


class Half:
    """Half of the masks in every call."""

    def due(self, num_masked: int, length: int, step: int, num_calls: int) -> int:
        return num_masked if step + 1 == num_calls else -(-num_masked // 2)


@pytest.mark.parametrize("removal", ["ancestral", "none", "tail"])
@pytest.mark.parametrize("name", ["ancestral", "ancestral_cache"])
def test_the_process_unmasks_as_many_on_average(world: World, name: str, removal: str) -> None:
    """Each mask by itself, with the same probability; at the end nothing is left."""
    seen: list[tuple[Tensor, Tensor]] = []

    def watch(step: int, before: Any, after: Any) -> None:
        seen.append(((before.x == world.mask_id).sum(-1), (after.x == world.mask_id).sum(-1)))

    samples = run(world, name, "random", settings(3, noise_removal=removal, schedule=Half()), watch)
    assert len(seen) == (4 if removal == "tail" else 3)
    before, after = seen[0]
    assert (before == LENGTH).all()
    share = (before - after).double() / LENGTH
    assert float(share.mean()) == pytest.approx(0.5, abs=4.5 * 0.5 / (LENGTH * NUM_SAMPLES) ** 0.5)
    assert float(share.std()) == pytest.approx(0.5 / LENGTH**0.5, rel=0.05)
    if removal != "none":
        assert (samples.tokens != world.mask_id).all()


class First:
    """One mask, then all that are left."""

    def due(self, num_masked: int, length: int, step: int, num_calls: int) -> int:
        return num_masked if step + 1 == num_calls else 1


def test_mask_noise_is_reset_as_at_these_times() -> None:
    """An infinite-mask model in two calls: the distribution of the process by the times of the schedule."""
    world = NoisyWorld()
    samples = run(world, "ancestral", "random", settings(2, schedule=First()))
    start = 1 - SCHEDULE.alpha(torch.tensor(1.0).double()).item()
    exact = world.distribution([1 - start, 1 - start * (world.length - 1) / world.length, 1.0])
    assert total_variation(world.frequencies(samples.tokens).double(), exact) < tv_noise(exact, NUM_SAMPLES)


@pytest.mark.parametrize("schedule", [Uniform(), Cosine()])
@pytest.mark.parametrize(("length", "num_calls"), [(128, 1), (128, 4), (128, 16), (5, 4), (3, 8), (1, 1)])
def test_closed_forms_write_all(schedule: Any, length: int, num_calls: int) -> None:
    numbers = counts(schedule, length, length, num_calls)
    assert sum(numbers) == length and 1 <= len(numbers) <= num_calls and min(numbers) >= 1


def test_cosine_is_that_of_maskgit() -> None:
    assert counts(Cosine(), 1000, 1000, 4) == (77, 217, 324, 382)
    left = [1000 - end for end in accumulate(counts(Cosine(), 1000, 1000, 4))]
    expected = [923.9, 707.1, 382.7, 0]  # 1000 cos(pi/8 k)
    assert all(abs(a - b) < 1.2 for a, b in zip(left, expected, strict=True))


def test_more_calls_than_measured_numbers() -> None:
    known = points(400, most=32)
    assert len(known) <= 32 and known[-1] < 400 and known[:4] == (0, 1, 2, 3) and {100, 200, 300} < set(known)
    cost = torch.rand(len(known), 400, dtype=torch.float64).sort(0, descending=True).values
    schedule = Measured(Dependence(known, cost))
    for num_calls in (1, 2, 5, 31, 32, 33, 100, 399, 400, 1000):
        numbers = counts(schedule, 400, 400, num_calls)
        assert sum(numbers) == 400 and len(numbers) <= num_calls
    best = min(
        schedule.dependence.of_counts((a, b - a, 400 - b)) for a, b in itertools.combinations(known[1:], 2)
    )
    assert schedule.dependence.of_counts(counts(schedule, 400, 400, 3)) == pytest.approx(best)


# Commands ---------------------------------------------------------------------------------------------------

TINY = (
    "algo=imdm", "data=synthetic-align", "model=synthetic", "model.hidden_size=32", "model.cond_dim=8",
    "model.n_blocks=1", "model.n_heads=2", "trainer.precision=32", "wandb=null",
    "trainer.accelerator=cpu", "loader.global_batch_size=8", "loader.eval_batch_size=8",
    "trainer.enable_progress_bar=False",
)  # fmt: skip


def command(folder: Path, *words: str) -> dict[str, Any]:
    cfg = compose_config([*TINY, f"data.cache_dir={folder}/cache", *words], warn=False)
    return MODES[cfg.mode](cfg)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("schedule")
    quiet = ("eval.generate_samples=False", "trainer.limit_val_batches=1")
    command(folder, "trainer.max_steps=2", f"checkpointing.save_dir={folder}/run", *quiet)
    return folder / "run" / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize("words", [("sampling.order=spread",), ("sampling.predictor=confidence",), ()])
def test_sample_eval_measures_and_says_so(checkpoint: Path, words: tuple[str, ...], tmp_path: Path) -> None:
    sampling = ("mode=sample_eval", "sampling.steps=2", "sampling.num_sample_batches=1", *words)
    place = (f"eval.checkpoint_path={checkpoint}", f"eval.generated_samples_path={tmp_path}/s.json")
    rows = ("sampling.schedule=auto", "sampling.schedule_rows=16")
    found = [command(checkpoint.parents[2], *sampling, *place, *rows) for _ in range(2)]
    length = found[0]["length"]
    assert found[0]["schedule"] == "auto" and sum(found[0]["schedule_counts"]) == length
    assert found[0]["schedule_nll"] <= found[0]["schedule_uniform_nll"] + 1e-9
    assert found[0]["generated_seqs"] == found[1]["generated_seqs"]
    plain = command(checkpoint.parents[2], *sampling, *place)
    assert "schedule" not in plain and max(plain["nfe"], found[0]["nfe"]) <= 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("sampling.schedule=auto", "mode=train"),
            "sampling.schedule=auto: is measured on held-out text, which mode=train does not read",
        ),
        (
            ("sampling.schedule=cosine", "sampling.predictor=p2"),
            "sampling.schedule=cosine: sampling.predictor=p2 takes no schedule; use sampling.predictor=",
        ),
        (("sampling.schedule=cosine", "algo=duo_base"), "takes no schedule"),
        (("sampling.schedule=linear",), "sampling.schedule=linear: unknown value; one of"),
    ],
)
def test_mistakes_are_one_line(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as caught:
        compose_config([*TINY, "eval.checkpoint_path=x.ckpt", *words], warn=False)
    assert message in str(caught.value) and "\n" not in str(caught.value)
