"""Conditional likelihoods: against enumerated worlds and brute force, through the door of notebooks."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch

from api import Model
from diffusion.noise import get_schedule
from diffusion.parameterization import Prediction
from diffusion.process import Absorbing
from diffusion.uniform import Uniform
from errors import UserError
from evaluation.conditional import Likelihood, any_order, bound, redrawn
from tests import test_ar
from tests.test_algo import build
from tests.worlds import UniformWorld, World, random_probs

SCHEDULE = get_schedule("log-linear", 1e-3)
ABSORBING = Absorbing(3)


def truth(world: World, word: int, is_open: torch.Tensor) -> float:
    """-log p(open symbols | the others) of word number ``word``."""
    same = (world.words == world.words[word]) | is_open
    return -math.log(float(world.probs[word] / world.probs[same.all(1)].sum()))


@pytest.mark.parametrize("is_open", [[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 1, 0]])
def test_an_exact_denoiser_has_the_worlds_own_conditionals(is_open: list[int]) -> None:
    world, where = World(random_probs(3, 4, seed=3)), torch.tensor(is_open, dtype=torch.bool)
    for word in (0, 17, 80):
        ids = world.sequences[word]
        exact = any_order(world.denoiser(), SCHEDULE, ids, where, world.mask_id)
        assert exact.nll == pytest.approx(truth(world, word, where)) and exact.kind == "any-order"
        found = bound(world.denoiser(), SCHEDULE, ABSORBING, ids, where, world.mask_id, draws=1024, seed=word)
        assert abs(found.nll - exact.nll) < 4 * found.stderr + 1e-9
        assert float(found.token_nll.sum()) == pytest.approx(found.nll)
        assert not found.token_nll[~where].any() and found.tokens == sum(is_open)


class Crooked:
    """A denoiser that no distribution has: its predictions depend on which positions are masked."""

    def denoise(
        self, xt: torch.Tensor, sigma: torch.Tensor, mask_seeds: torch.Tensor | None = None
    ) -> Prediction:
        positions = torch.arange(xt.shape[1])
        base = (xt * (positions + 1)).sum(1, keepdim=True) + 2 * positions
        logits = torch.sin(base[..., None] * torch.tensor([1.0, 2.0, 3.0, 0.0])).double()
        return Prediction(logits, torch.eye(4).double(), None, xt, 3, dtype=torch.float64)

    def draw_seeds(self, keys: torch.Tensor, length: int) -> None:
        return None


def orders(ids: torch.Tensor, where: list[int]) -> list[float]:
    """-log p of the positions ``where`` in every order, by brute force."""
    found = []
    for order in itertools.permutations(where):
        xt, nats = ids.clone(), 0.0
        xt[where] = 3
        for at in order:
            nats -= float(Crooked().denoise(xt[None], torch.zeros(1)).full()[0, at, ids[at]])
            xt[at] = ids[at]
        found.append(nats)
    return found


def test_any_order_and_the_bound_are_the_two_means_over_orders() -> None:
    ids, where = torch.tensor([2, 0, 1, 1, 0]), [0, 2, 4]
    is_open = torch.zeros(5, dtype=torch.bool)
    is_open[where] = True
    nats = torch.tensor(orders(ids, where), dtype=torch.float64)
    exact = any_order(Crooked(), SCHEDULE, ids, is_open, 3)
    assert exact.nll == pytest.approx(-float(nats.neg().exp().mean().log()), abs=1e-6)
    found = bound(Crooked(), SCHEDULE, ABSORBING, ids, is_open, 3, draws=2000, seed=0)
    assert found.nll > exact.nll and abs(found.nll - float(nats.mean())) < 4 * found.stderr


def test_the_standard_error_is_that_of_other_seeds() -> None:
    ids, is_open = torch.tensor([2, 0, 1, 1, 0]), torch.tensor([True, True, False, True, True])
    each = [
        bound(Crooked(), SCHEDULE, ABSORBING, ids, is_open, 3, draws=16, seed=seed) for seed in range(200)
    ]
    spread = torch.tensor([one.nll for one in each]).std()
    told = torch.tensor([one.stderr**2 for one in each]).mean().sqrt()
    assert 0.9 < float(told / spread) < 1.5, "collapsed strata: a little too large"


def test_uniform_states_have_their_bound_by_time() -> None:
    """With the exact denoiser the bound of all positions is near the world's own value."""
    world = UniformWorld()
    is_open = torch.ones(world.length, dtype=torch.bool)
    for word in (3, 20):
        found = bound(
            world, SCHEDULE, Uniform(world.size), world.words[word], is_open, 0, draws=1024, seed=word
        )
        assert abs(found.nll + math.log(float(world.probs[word]))) < 4 * found.stderr + 0.02


def test_draws_are_the_same_for_all_choices_of_a_question() -> None:
    ids = torch.tensor([2, 0, 1, 1, 0])
    is_open = torch.tensor([False, False, True, True, True])
    one, again = (bound(Crooked(), SCHEDULE, ABSORBING, ids, is_open, 3, draws=8, seed=5) for _ in range(2))
    assert torch.equal(one.draws, again.draws)
    generator = torch.Generator().manual_seed(0)
    first, second = redrawn([one, again], generator)
    assert first == second != one.nll
    fixed = Likelihood(1.0, 0.0, None, 1, "exact")
    assert redrawn([fixed], generator) == [1.0]


# Through the door ----------------------------------------------------------------------------------


def test_an_autoregressive_model_obeys_the_chain_rule() -> None:
    model = Model(test_ar.build())
    whole = model.likelihoods(["0 1 2"], given="")[0]
    parts = model.nll(["0 1"], given="")[0] + model.nll(["2"], given=["0 1"])[0]
    assert whole.nll == pytest.approx(parts, rel=1e-5) and whole.kind == "exact" and whole.stderr == 0
    tokens = model.token_nll("2", given="0 1")
    assert [nats is None for _, nats in tokens] == [True, True, True, False]
    with pytest.raises(UserError, match="no likelihood of blanks"):
        model.nll(["0 1 2"], given="0 _ 2")


@pytest.mark.parametrize("algo", ["mdlm", "imdm", "sedd", "d3pm", "duo_base"])
def test_every_family_has_a_conditional_likelihood(algo: str) -> None:
    model = Model(build(f"algo={algo}"))
    found = model.likelihoods(["7 3", "1 4"], given="5 2", draws=8)
    has_exact = algo in ("mdlm", "sedd", "d3pm")
    assert [one.kind for one in found] == ["any-order" if has_exact else "bound"] * 2
    assert all(0 < one.nll < 100 and one.tokens == 2 for one in found)
    (filled,) = model.likelihoods(["7 3 5"], given="7 _ 5", draws=8)
    assert filled.tokens == 1
    tokens = dict(enumerate(model.token_nll("7 3 5", given="7 _ 5", draws=8)))
    assert sum(nats is not None for _, nats in tokens.values()) == 1
    if has_exact:
        bounds = model.likelihoods(["7 3"], given="5 2", draws=64, exact=False)[0]
        assert bounds.nll > found[0].nll - 4 * bounds.stderr
    else:
        with pytest.raises(UserError, match="no exact likelihood of 2 tokens"):
            model.likelihoods(["7 3"], given="5 2", exact=True)


def test_a_long_choice_makes_all_bounds(tmp_path: Path) -> None:
    model = Model(build("algo=mdlm", "model.length=32"))
    found = model.likelihoods(["1 2", "1 2 3 4 5 6 7 1 2"], given="3", draws=8)
    assert [one.kind for one in found] == ["bound", "bound"], "one way for all choices"
    for call, problem in (
        (
            lambda: (
                model.nll(["1"], given="3", draws=3)
                and model.likelihoods(["1"], given="3", exact=False, draws=3)
            ),
            "pairs",
        ),
        (lambda: model.nll(["1"], given=["3", "4"]), "there are 1 to judge"),
        (lambda: model.nll(["1 2"], given="3 _"), "do not fit"),
        (lambda: model.nll(["1 " * 40], given="3"), "tokens with what is given"),
    ):
        with pytest.raises(UserError, match=problem):
            call()
    (tmp_path / "a.json").write_text(json.dumps(["1 2 3", "3 2"]))
    (scored,) = model.score(str(tmp_path / "a.json"))
    assert scored["perplexity"] == pytest.approx(math.exp(scored["nats"] / scored["tokens"]))
    assert scored["likelihood"] == "bound" and scored["interval"][0] < scored["perplexity"]
