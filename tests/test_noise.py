"""Schedules: derivative, inverse, accuracy at the ends, golden values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion.noise import Schedule, get_schedule

NAMES = ("log-linear", "cosine")
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(params=NAMES)
def schedule(request: pytest.FixtureRequest) -> Schedule:
    return get_schedule(request.param, eps=1e-3)


def test_dalpha_is_the_derivative(schedule: Schedule) -> None:
    t = torch.linspace(0.0, 1.0, 101, dtype=torch.float64, requires_grad=True)
    (derivative,) = torch.autograd.grad(schedule.alpha(t).sum(), t)
    torch.testing.assert_close(schedule.dalpha(t), derivative, rtol=1e-12, atol=1e-14)


def test_inverse_undoes_alpha(schedule: Schedule) -> None:
    t = torch.linspace(0.0, 1.0, 101, dtype=torch.float64)
    torch.testing.assert_close(schedule.inverse(schedule.alpha(t)), t, rtol=0, atol=1e-12)


def test_alpha_falls_from_one_to_almost_zero(schedule: Schedule) -> None:
    t = torch.linspace(0.0, 1.0, 101, dtype=torch.float64)
    alpha = schedule.alpha(t)
    assert (alpha.diff() < 0).all() and alpha[0] == 1.0 and 0.0 < alpha[-1] < 1.001e-3
    torch.testing.assert_close(schedule.masked(t), 1.0 - alpha, rtol=0, atol=1e-15)


def test_float32_agrees_with_float64_to_relative_precision_at_both_ends(schedule: Schedule) -> None:
    """The ends are where a careless formula cancels: 1 - alpha at small t, alpha and sigma at t near 1."""
    t = torch.tensor([1e-3, 1e-2, 0.5, 0.99, 1.0])
    for name in ("alpha", "masked", "dalpha", "sigma", "weight"):
        function = getattr(schedule, name)
        if name == "sigma":  # -log(alpha) carries alpha's absolute rounding (6e-8) at small t
            torch.testing.assert_close(function(t).double(), function(t.double()), rtol=1e-4, atol=1e-7)
            continue
        # 1 - u = 1e-3 at t = 1 has a relative error of 6e-8 / 1e-3, twice that when squared.
        torch.testing.assert_close(function(t).double(), function(t.double()), rtol=2e-4, atol=0)


def test_dtype_and_shape_are_kept(schedule: Schedule) -> None:
    for dtype in (torch.float32, torch.float64):
        t = torch.full((2, 3), 0.3, dtype=dtype)
        for name in ("alpha", "masked", "dalpha", "sigma", "weight", "inverse"):
            value = getattr(schedule, name)(t)
            assert value.dtype == dtype and value.shape == t.shape, name


def test_sigma_and_weight_are_what_their_names_say(schedule: Schedule) -> None:
    t = torch.linspace(0.01, 1.0, 50, dtype=torch.float64)
    alpha = schedule.alpha(t)
    torch.testing.assert_close(schedule.sigma(t), -alpha.log())
    torch.testing.assert_close(schedule.weight(t), -schedule.dalpha(t) / (1.0 - alpha))


def test_log_linear_weight_is_one_over_t() -> None:
    t = torch.linspace(1e-3, 1.0, 50, dtype=torch.float64)
    torch.testing.assert_close(get_schedule("log-linear").weight(t), 1.0 / t)


def test_golden_log_linear() -> None:
    golden = np.load(GOLDEN / "token_nll.npz", allow_pickle=False)
    schedule = get_schedule("log-linear", eps=1e-3)
    t = torch.from_numpy(golden["t"])
    for name in ("alpha", "dalpha"):
        expected = torch.from_numpy(golden[f"loglinear_{name}"])
        torch.testing.assert_close(getattr(schedule, name)(t), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(("name", "eps"), [("linear", 1e-3), ("cosine", 0.0), ("log-linear", 1.0)])
def test_bad_settings_are_one_clear_line(name: str, eps: float) -> None:
    with pytest.raises(ValueError, match=r"^noise\.\w+=\S+: .*; [^\n]*$"):
        get_schedule(name, eps)
