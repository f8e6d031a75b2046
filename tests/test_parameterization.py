"""SUBS, and the lazy head: values, gradients, memory and precision against the plain way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffusion import NEG_INF
from diffusion.parameterization import Prediction

GOLDEN = Path(__file__).parent / "golden"
B, L, D, V = 3, 8, 5, 11


def problem(mask_id: int, dtype: torch.dtype = torch.float64, with_bias: bool = True) -> dict[str, Any]:
    """Random features and head, xt half masked, targets that are never the mask."""
    generator = torch.Generator().manual_seed(mask_id)
    normal = lambda *shape: torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()  # noqa: E731
    tokens = torch.randint(0, V - 1, (2, B, L), generator=generator)
    tokens = tokens + (tokens >= mask_id)
    is_masked = torch.rand(B, L, generator=generator) < 0.5
    return {
        "features": normal(B, L, D),
        "weight": normal(V, D),
        "bias": normal(V) if with_bias else None,
        "x0": tokens[0],
        "xt": tokens[1].masked_fill(is_masked, mask_id),
        "is_masked": is_masked,
        "weights": torch.rand(int(is_masked.sum()), generator=generator, dtype=dtype) * 3,
    }


def predict(world: dict[str, Any], mask_id: int, **options: Any) -> Prediction:
    return Prediction(
        world["features"],
        world["weight"],
        world["bias"],
        world["xt"],
        mask_id,
        **({"dtype": world["features"].dtype} | options),
    )


def plain_log_x_theta(world: dict[str, Any], mask_id: int) -> Tensor:
    """SUBS written out over (B, L, V)."""
    logits = F.linear(world["features"], world["weight"], world["bias"])
    logits = torch.where(torch.arange(V) == mask_id, NEG_INF, logits)
    one_hot = torch.where(F.one_hot(world["xt"], V) == 1, 0.0, NEG_INF).to(logits.dtype)
    return torch.where(world["is_masked"].unsqueeze(-1), logits.log_softmax(-1), one_hot)


def leaves(world: dict[str, Any]) -> list[Tensor]:
    return [world[name] for name in ("features", "weight", "bias") if world[name] is not None]


@pytest.mark.parametrize("mask_id", [0, 4, V - 1])
def test_full_and_at_are_subs(mask_id: int) -> None:
    world = problem(mask_id)
    expected = plain_log_x_theta(world, mask_id)
    prediction = predict(world, mask_id)
    torch.testing.assert_close(prediction.full(), expected)
    torch.testing.assert_close(prediction.at(world["is_masked"]), expected[world["is_masked"]])
    rows = torch.tensor([B * L - 1, 0, 7, 7])
    torch.testing.assert_close(prediction.at(rows), expected.flatten(0, 1)[rows])
    assert prediction.at(rows[:0]).shape == (0, V)


def test_at_is_differentiable() -> None:
    world = problem(4)
    probe = torch.randn(B, L, V, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    probe[..., 4] = 0.0
    ours = torch.autograd.grad((predict(world, 4).full() * probe).sum(), leaves(world))
    theirs = torch.autograd.grad((plain_log_x_theta(world, 4) * probe).sum(), leaves(world))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("chunk_elements", [1, 4 * V, None])
def test_nll_is_that_of_the_full_table(chunk_elements: int | None) -> None:
    world = problem(4)
    expected = -plain_log_x_theta(world, 4).gather(-1, world["x0"].unsqueeze(-1)).flatten()
    nll = predict(world, 4, chunk_elements=chunk_elements).nll(torch.arange(B * L), world["x0"].flatten())
    torch.testing.assert_close(nll, expected.detach())
    assert not nll.requires_grad


@pytest.mark.parametrize("mask_id", [0, 4, V - 1])
@pytest.mark.parametrize("chunk_elements", [1, 4 * V, None])
@pytest.mark.parametrize("with_bias", [True, False])
def test_weighted_nll_equals_autograd(mask_id: int, chunk_elements: int | None, with_bias: bool) -> None:
    world = problem(mask_id, with_bias=with_bias)
    targets = world["x0"][world["is_masked"]]
    table = plain_log_x_theta(world, mask_id)[world["is_masked"]]
    expected_nll = -table.gather(1, targets.unsqueeze(1)).squeeze(1)
    expected = (world["weights"] * expected_nll).sum()
    prediction = predict(world, mask_id, chunk_elements=chunk_elements)
    loss, nll = prediction.weighted_nll(world["is_masked"], targets, world["weights"])
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(nll, expected_nll.detach())
    assert not nll.requires_grad
    # A factor on the loss, as gradient accumulation puts there, must reach the gradients.
    ours = torch.autograd.grad(loss / 3, leaves(world))
    theirs = torch.autograd.grad(expected / 3, leaves(world))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_weighted_nll_gradcheck() -> None:
    world = problem(4)
    targets = world["x0"][world["is_masked"]]

    def loss(*parameters: Tensor) -> Tensor:
        altered = world | dict(zip(("features", "weight", "bias"), parameters, strict=True))
        prediction = predict(altered, 4, chunk_elements=5 * V)
        return prediction.weighted_nll(world["is_masked"], targets, world["weights"])[0]

    assert torch.autograd.gradcheck(loss, leaves(world))


def test_the_mask_column_gets_no_gradient() -> None:
    world = problem(4)
    loss, _ = predict(world, 4).weighted_nll(
        world["is_masked"], world["x0"][world["is_masked"]], world["weights"]
    )
    loss.backward()
    assert (world["weight"].grad[4] == 0).all() and world["bias"].grad[4] == 0
    assert (world["features"].grad[~world["is_masked"]] == 0).all()


def test_no_rows_give_a_zero_that_reaches_every_parameter() -> None:
    world = problem(4)
    nowhere = torch.zeros(B, L, dtype=torch.bool)
    loss, nll = predict(world, 4).weighted_nll(nowhere, torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    loss.backward()
    assert loss == 0 and nll.shape == (0,)
    for leaf in leaves(world):
        assert leaf.grad is not None and (leaf.grad == 0).all()


def test_without_gradients_none_are_made() -> None:
    world = problem(4)
    rows, targets = world["is_masked"], world["x0"][world["is_masked"]]
    expected, _ = predict(world, 4).weighted_nll(rows, targets, world["weights"])
    with torch.no_grad():
        loss, _ = predict(world, 4).weighted_nll(rows, targets, world["weights"])
    assert not loss.requires_grad
    torch.testing.assert_close(loss, expected.detach())


def test_frozen_parts_get_no_gradient() -> None:
    world = problem(4)
    world["weight"].requires_grad_(False)
    loss, _ = predict(world, 4).weighted_nll(
        world["is_masked"], world["x0"][world["is_masked"]], world["weights"]
    )
    loss.backward()
    assert world["weight"].grad is None and world["bias"].grad is not None


def test_precision_is_float32_or_better_under_autocast_and_bfloat16_features() -> None:
    world = problem(4, dtype=torch.float32)
    rows, targets = world["is_masked"], world["x0"][world["is_masked"]]
    expected, expected_nll = predict(world, 4).weighted_nll(rows, targets, world["weights"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = predict(world, 4).weighted_nll(rows, targets, world["weights"])
        assert predict(world, 4).full().dtype == torch.float32
        nll = predict(world, 4).nll(rows, targets)
    assert torch.equal(loss, expected) and torch.equal(nll, expected_nll)
    rounded = world | {"features": world["features"].detach().bfloat16().requires_grad_()}
    loss, _ = predict(rounded, 4, dtype=torch.float32).weighted_nll(rows, targets, world["weights"])
    loss.backward()
    assert loss.dtype == torch.float32 and rounded["features"].grad.dtype == torch.bfloat16


def test_float64_losses_on_float32_parameters() -> None:
    """Only the logits are float32 then; their rounding is all that separates the two ways."""
    world = problem(4, dtype=torch.float32)
    rows, targets = world["is_masked"], world["x0"][world["is_masked"]]
    logits = F.linear(world["features"], world["weight"], world["bias"]).detach()[rows].double()
    logits[:, 4] = NEG_INF
    expected = -logits.log_softmax(-1).gather(1, targets.unsqueeze(1)).squeeze(1)
    prediction = predict(world, 4, dtype=torch.float64)
    loss, nll = prediction.weighted_nll(rows, targets, world["weights"])
    # Logits are below 10 in size; matrix products of other shapes may round them by 1e-6.
    torch.testing.assert_close(nll, expected, rtol=0, atol=5e-6)
    assert loss.dtype == nll.dtype == prediction.at(rows).dtype == torch.float64
    from_table = -prediction.at(rows).gather(1, targets[:, None])[:, 0].detach()
    torch.testing.assert_close(from_table, nll, rtol=0, atol=5e-6)
    loss.backward()
    assert world["weight"].grad.dtype == torch.float32
    reference = problem(4, dtype=torch.float32)
    predict(reference, 4).weighted_nll(rows, targets, world["weights"])[0].backward()
    for ours, theirs in zip(leaves(world), leaves(reference), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_extreme_logits_stay_finite() -> None:
    """A target far below the best symbol: the nll is the gap, not the logarithm of a vanished probability."""
    weight = torch.tensor([[300.0], [-300.0], [0.0]], requires_grad=True)
    prediction = Prediction(torch.ones(1, 1, 1), weight, None, torch.tensor([[2]]), 2)
    loss, nll = prediction.weighted_nll(torch.tensor([0]), torch.tensor([1]), torch.ones(1))
    loss.backward()
    assert nll == 600.0 and weight.grad.flatten().tolist() == [1.0, -1.0, 0.0]


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor that any operation returned, in elements."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [
            leaf.untyped_storage().nbytes() // leaf.element_size()
            for leaf in tree_leaves(result)
            if isinstance(leaf, Tensor)
        ]
        self.largest = max(self.largest, *sizes, 0) if sizes else self.largest
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_tensor_is_larger_than_a_chunk(dtype: torch.dtype) -> None:
    """200 rows of 400 symbols in chunks of 4000 logits: 10 rows at a time, never the 80 000 of the whole."""
    weight = torch.randn(400, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    xt = torch.full((2, 100), 399)
    features = torch.ones(2, 100, 8, requires_grad=True)
    prediction = Prediction(features, weight, None, xt, 399, dtype=dtype, chunk_elements=4000)
    rows, targets = torch.arange(200), torch.arange(200)
    with LargestTensor() as record:
        loss, _ = prediction.weighted_nll(rows, targets, torch.ones(200))
        loss.backward()
        prediction.nll(rows, targets)
    assert record.largest <= 4000
    with LargestTensor() as record:
        prediction.full()
    assert record.largest == 80_000


def test_golden_subs_log_x_theta() -> None:
    """The golden logits pass through as features with the identity for a head."""
    golden = np.load(GOLDEN / "subs_log_x_theta.npz", allow_pickle=False)
    logits, xt = torch.from_numpy(golden["mdlm_logits_sigma0"]), torch.from_numpy(golden["xt"])
    expected = torch.from_numpy(golden["mdlm_log_x_theta"])
    ours = Prediction(logits, torch.eye(51), None, xt, mask_id=50).full()
    possible = expected > NEG_INF / 2
    assert torch.equal(ours > NEG_INF / 2, possible)
    torch.testing.assert_close(ours[possible], expected[possible], rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(ours[~possible], torch.full_like(ours[~possible], NEG_INF), rtol=1e-4, atol=0)
