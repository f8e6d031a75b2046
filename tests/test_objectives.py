"""The NELBO: golden values, and on an enumerable world its equality with the entropy, in both forms."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from worlds import World, random_probs

from diffusion.noise import get_schedule
from diffusion.objectives import count_weight, masked_nelbo
from diffusion.parameterization import Prediction

GOLDEN = Path(__file__).parent / "golden"
NUM_SYMBOLS, LENGTH = 3, 3


@pytest.fixture(scope="module", params=[None, 1], ids=["mask last", "mask in the middle"])
def world(request: pytest.FixtureRequest) -> World:
    return World(random_probs(NUM_SYMBOLS, LENGTH, seed=2), mask_id=request.param)


def patterns(length: int) -> list[tuple[int, ...]]:
    """All non-empty sets of masked positions."""
    return [chosen for size in range(1, length + 1) for chosen in combinations(range(length), size)]


def sequence_losses(world: World, chosen: tuple[int, ...], weight: float) -> Tensor:
    """Loss of every sequence of the world with the same positions masked, (K**L,)."""
    is_masked = torch.zeros(LENGTH, dtype=torch.bool)
    is_masked[list(chosen)] = True
    x0 = world.sequences
    xt = x0.masked_fill(is_masked, world.mask_id)
    prediction = world.denoiser().denoise(xt, torch.zeros(len(xt)), None)
    weights = torch.full((len(x0),), weight, dtype=torch.float64)
    loss_mask = torch.ones_like(xt, dtype=torch.bool)
    output = masked_nelbo(prediction, x0, xt, world.mask_id, weights, loss_mask, num_tokens=1)
    torch.testing.assert_close(output.loss, output.token_nll.sum())
    return output.token_nll.sum(-1)


@pytest.mark.parametrize("name", ["log-linear", "cosine"])
def test_nelbo_by_time_of_the_exact_denoiser_is_the_entropy(world: World, name: str) -> None:
    """Integrated exactly: with a = alpha as variable the integrand is a polynomial of degree < L, for which
    Gauss-Legendre with 4 nodes is exact. What is left at t = 1 (alpha about 1e-9) is the only error."""
    schedule = get_schedule(name, eps=1e-9 if name == "log-linear" else 1e-5)
    end = float(schedule.alpha(torch.tensor(1.0, dtype=torch.float64)))
    nodes, node_weights = np.polynomial.legendre.leggauss(4)
    total = 0.0
    for node, node_weight in zip(nodes, node_weights, strict=True):
        alpha = torch.tensor(end + (1.0 - end) * (node + 1) / 2, dtype=torch.float64)
        t = schedule.inverse(alpha)
        dt = node_weight * (1.0 - end) / 2 / -float(schedule.dalpha(t))
        for chosen in patterns(LENGTH):
            probability = float((1 - alpha) ** len(chosen) * alpha ** (LENGTH - len(chosen)))
            losses = sequence_losses(world, chosen, float(schedule.weight(t)))
            total += dt * probability * float((world.probs * losses).sum())
    assert total == pytest.approx(world.entropy, abs=1e-7)


def test_nelbo_by_count_of_the_exact_denoiser_is_the_entropy(world: World) -> None:
    total = 0.0
    for size in range(1, LENGTH + 1):
        loss_mask = torch.ones(1, LENGTH, dtype=torch.bool)
        weight = float(count_weight(torch.tensor([size]), loss_mask))
        chosen_sets = [chosen for chosen in patterns(LENGTH) if len(chosen) == size]
        for chosen in chosen_sets:
            losses = sequence_losses(world, chosen, weight)
            total += float((world.probs * losses).sum()) / len(chosen_sets) / LENGTH
    assert total == pytest.approx(world.entropy, abs=1e-10)


def test_golden_token_nll() -> None:
    """The golden log-probabilities pass through as features with the identity for a head."""
    arrays = np.load(GOLDEN / "token_nll.npz", allow_pickle=False)
    golden = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    x0, xt, expected = golden["x0"], golden["xt"], golden["mdlm_nll"]
    # Features of carried-over rows are never read: the objective asks for masked rows alone.
    prediction = Prediction(golden["mdlm_log_x_theta"], torch.eye(51), None, xt, mask_id=50)
    weight = -golden["dalpha_t"][:, 0] / (1 - golden["alpha_t"][:, 0])
    loss_mask = torch.ones_like(xt, dtype=torch.bool)
    output = masked_nelbo(prediction, x0, xt, 50, weight, loss_mask, num_tokens=xt.numel())
    torch.testing.assert_close(output.token_nll, expected, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(output.loss, expected.mean(), rtol=1e-5, atol=2e-5)


def small_problem() -> tuple[Prediction, Tensor, Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 4, 3, generator=generator).requires_grad_()
    weight = torch.randn(6, 3, generator=generator).requires_grad_()
    bias = torch.randn(6, generator=generator).requires_grad_()
    x0 = torch.tensor([[0, 1, 2, 5], [3, 4, 0, 1]])  # the 5 is padding that shares the mask's id
    xt = torch.tensor([[5, 1, 5, 5], [3, 5, 5, 1]])
    return Prediction(features, weight, bias, xt, mask_id=5), x0, xt, [features, weight, bias]


def test_padding_and_unmasked_positions_do_not_count() -> None:
    prediction, x0, xt, leaves = small_problem()
    loss_mask = torch.tensor([[True, True, True, False], [True, True, True, True]])
    weight = torch.tensor([2.0, 3.0])
    output = masked_nelbo(prediction, x0, xt, 5, weight, loss_mask, num_tokens=loss_mask.sum())
    counted = (xt == 5) & loss_mask
    assert torch.equal(output.token_nll != 0, counted)
    nll = torch.zeros(2, 4)
    nll[counted] = prediction.nll(counted, x0[counted])
    torch.testing.assert_close(output.token_nll, weight[:, None] * nll)
    torch.testing.assert_close(output.loss, output.token_nll.sum() / 7)
    output.loss.backward()
    assert torch.equal(leaves[0].grad.abs().sum(-1) != 0, counted)
    assert not output.token_nll.requires_grad


def test_a_batch_without_masks_gives_a_zero_that_reaches_every_parameter() -> None:
    prediction, x0, xt, leaves = small_problem()
    nowhere = torch.zeros(2, 4, dtype=torch.bool)
    output = masked_nelbo(prediction, x0, xt, 5, torch.ones(2), nowhere, num_tokens=nowhere.sum())
    output.loss.backward()
    assert output.loss == 0 and (output.token_nll == 0).all()
    assert all(leaf.grad is not None and (leaf.grad == 0).all() for leaf in leaves)


def test_count_weight() -> None:
    loss_mask = torch.tensor([[True] * 4, [True, True, False, False]])
    assert count_weight(torch.tensor([1, 2]), loss_mask).tolist() == [4.0, 1.0]
    assert count_weight(torch.tensor([0, 0]), loss_mask).tolist() == [4.0, 2.0]
