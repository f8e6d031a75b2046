"""Divergences of wide heads: golden values, gradients against autograd and finite differences.

Shapes: N rows, D width, V vocabulary with the mask.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from golden_weights import load_golden
from torch import Tensor

from diffusion import NEG_INF
from diffusion.divergences import DIVERGENCES, Divergences, weighted_linear_divergence
from diffusion.linear_nll import LinearHead
from diffusion.parameterization import Prediction

N, D, V, MASK = 11, 5, 13, 4

# The definitions once more, from log-probabilities (N, V - 1) without the mask's column.
PLAIN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kl-bwd": lambda q, p: (q.exp() * (q - p)).sum(-1),
    "kl-fwd": lambda q, p: (p.exp() * (p - q)).sum(-1),
    "mse": lambda q, p: (q - p).square().sum(-1),
    "tvd": lambda q, p: (q - p).abs().sum(-1),
    "tv": lambda q, p: 0.5 * (q.exp() - p.exp()).abs().sum(-1),
}


def problem(dtype: torch.dtype = torch.float64, rows: int = N) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Student and teacher, features, weight and bias each; and the rows' weights."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((rows, D), (V, D), (V,))
    student, teacher = (
        [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
        for _ in range(2)
    )
    weights = torch.rand(rows, generator=generator, dtype=torch.float64).to(dtype)
    return [leaf.requires_grad_() for leaf in student], teacher, weights


def run(
    kind: str,
    student: list[Tensor],
    teacher: list[Tensor],
    weights: Tensor,
    dtype: torch.dtype = torch.float64,
) -> Divergences:
    heads = [LinearHead(side[1], side[2], MASK, dtype, chunk_elements=4 * V) for side in (student, teacher)]
    assert len(weights) == 0 or heads[0].chunk_rows < len(weights)  # more chunks than one
    targets = torch.arange(len(weights)) % MASK
    return weighted_linear_divergence(
        kind, student[0], heads[0], teacher[0], heads[1], targets, weights.to(dtype)
    )


def log_probs(side: list[Tensor]) -> Tensor:
    features, weight, bias = side
    kept = torch.arange(V) != MASK
    return (features @ weight.T + bias)[:, kept].log_softmax(-1)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_values_and_gradients_are_those_of_the_definition(kind: str) -> None:
    student, teacher, weights = problem()
    output = run(kind, student, teacher, weights)
    expected = PLAIN[kind](log_probs(student), log_probs(teacher))
    torch.testing.assert_close(output.values, expected.detach())
    assert (output.values > 0).all()
    wanted = torch.autograd.grad(3 * (weights * expected).sum(), student)
    found = torch.autograd.grad(3 * output.loss, student)
    for grad, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(grad, want, rtol=1e-9, atol=1e-11)
    q = log_probs(student)  # the targets lie below the mask's id, so both count alike
    nll = -q[torch.arange(N), torch.arange(N) % MASK]
    torch.testing.assert_close(output.nll, nll.detach())
    assert not output.values.requires_grad and not output.nll.requires_grad


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_gradients_agree_with_finite_differences(kind: str) -> None:
    student, teacher, weights = problem()
    assert torch.autograd.gradcheck(
        lambda *leaves: run(kind, list(leaves), teacher, weights).loss, tuple(student)
    )


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_without_gradients_the_values_are_the_same(kind: str) -> None:
    student, teacher, weights = problem()
    with torch.no_grad():
        silent = run(kind, student, teacher, weights)
    for found, expected in zip(silent, run(kind, student, teacher, weights), strict=True):
        assert torch.equal(found, expected.detach())


@pytest.mark.parametrize("kind", ["kl-bwd", "mse"])
def test_golden(kind: str) -> None:
    """The golden log-probabilities as features before the identity, the mask's column added behind them."""
    golden = {name: torch.from_numpy(value) for name, value in load_golden("divergences").items()}
    size = golden["preds"].shape[-1]
    xt = torch.full(golden["preds"].shape[:2], size)
    head = torch.eye(size + 1, size)
    student, teacher = (
        Prediction(golden[name], head, None, xt, mask_id=size) for name in ("preds", "target")
    )
    rows = torch.ones_like(xt, dtype=torch.bool)
    zeros = torch.zeros(xt.numel(), dtype=torch.int64)
    output = student.weighted_divergence(rows, teacher, kind, zeros, torch.ones(xt.numel()))
    torch.testing.assert_close(output.values.view(xt.shape), golden[f"loss_{kind}"], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_the_mask_column_and_equal_distributions_count_nothing(kind: str) -> None:
    student, teacher, weights = problem()
    before = run(kind, student, teacher, weights)
    with torch.no_grad():
        student[1][MASK] += 100.0
        teacher[2][MASK] = -NEG_INF
    output = run(kind, student, teacher, weights)
    assert torch.equal(output.values, before.values)
    gradient = torch.autograd.grad(output.loss, student)
    assert (gradient[1][MASK] == 0).all() and gradient[2][MASK] == 0
    same = run(kind, student, [leaf.detach() for leaf in student], weights)
    torch.testing.assert_close(same.values, torch.zeros_like(same.values))


def test_total_variation_is_at_most_one_and_the_two_kl_differ() -> None:
    student, teacher, weights = problem()
    values = {kind: run(kind, student, teacher, weights).values for kind in DIVERGENCES}
    assert (values["tv"] <= 1).all()
    assert (values["kl-bwd"] - values["kl-fwd"]).abs().min() > 1e-3
    assert (2 * values["tv"] ** 2 <= values["kl-fwd"]).all()  # Pinsker


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_no_rows_give_a_zero_that_reaches_everything(kind: str) -> None:
    student, teacher, weights = problem(rows=0)
    output = run(kind, student, teacher, weights)
    output.loss.backward()
    assert output.loss == 0
    assert all(leaf.grad is not None and (leaf.grad == 0).all() for leaf in student)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_float64_losses_of_float32_networks(kind: str) -> None:
    """Up to the rounding of logits, about 1e-6 at values of order 1, the value is the exact one; gradients
    come back in the network's precision."""
    expected = run(kind, *problem()).values
    student, teacher, weights = problem(torch.float32)
    output = run(kind, student, teacher, weights, torch.float64)
    assert output.loss.dtype == output.values.dtype == torch.float64
    torch.testing.assert_close(output.values, expected, rtol=1e-5, atol=1e-5)
    output.loss.backward()
    assert all(leaf.grad is not None and leaf.grad.dtype == torch.float32 for leaf in student)


def test_float64_sees_divergences_that_float32_rounds_away() -> None:
    """A teacher almost equal to the student: a KL of about 1e-9, under float32 roundings of 1e-8."""
    student, _, weights = problem(torch.float32)
    teacher = [leaf.detach().clone() for leaf in student]
    teacher[2] += 1e-4 * torch.randn(V, generator=torch.Generator().manual_seed(1))
    lifted = [[leaf.detach().double() for leaf in side] for side in (student, teacher)]
    exact = run("kl-bwd", *lifted, weights.double()).values
    errors = [
        float((run("kl-bwd", student, teacher, weights, dtype).values - exact).abs().max() / exact.max())
        for dtype in (torch.float32, torch.float64)
    ]
    assert errors[1] < 0.1 < errors[0]


def test_an_unknown_divergence_is_one_line() -> None:
    with pytest.raises(
        ValueError, match=r"^algo.distill_mode=l2: no such divergence; use one of kl-bwd"
    ) as caught:
        run("l2", *problem())
    assert "\n" not in str(caught.value)
