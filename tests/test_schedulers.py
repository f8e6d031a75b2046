"""Learning-rate schedules at the points that the documentation names."""

from __future__ import annotations

import pytest

from schedulers import lr_multiplier


def test_constant_after_a_linear_warmup() -> None:
    factor = lr_multiplier({"name": "constant_warmup", "num_warmup_steps": 4}, 1e-3, 100)
    assert [factor(step) for step in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert lr_multiplier({"name": "constant_warmup", "num_warmup_steps": 0}, 1e-3, 100)(0) == 1.0


def test_cosine_starts_and_ends_at_its_floor() -> None:
    settings = {"name": "cosine_decay_warmup", "warmup_fraction": 0.1, "min_lr": 1e-6}
    factor = lr_multiplier(settings, 1e-3, 1000)
    assert factor(0) * 1e-3 == pytest.approx(1e-6)
    assert factor(100) == pytest.approx(1.0)
    assert factor(550) == pytest.approx(0.5, abs=1e-3)
    assert factor(1000) * 1e-3 == factor(5000) * 1e-3 == pytest.approx(1e-6)
    rising, falling = [factor(s) for s in range(100)], [factor(s) for s in range(100, 1000)]
    assert rising == sorted(rising) and falling == sorted(falling, reverse=True)


def test_the_cosine_in_steps() -> None:
    settings = {"name": "cosine_decay_warmup", "warmup_fraction": 0.1, "min_lr": 1e-6}
    own = settings | {"num_warmup_steps": 200, "decay_steps": 400, "first_lr": 0.0}
    factor = lr_multiplier(own, 1e-3, 1000)
    assert [factor(0), factor(100), factor(200)] == [0.0, 0.5, 1.0]
    assert factor(400) == pytest.approx(0.5, abs=1e-3)
    assert factor(600) == factor(999) == pytest.approx(1e-3)
    unset = dict.fromkeys(("num_warmup_steps", "decay_steps", "first_lr"))
    same = [lr_multiplier(s, 1e-3, 1000)(50) for s in (settings, settings | unset)]
    assert same[0] == same[1]


def test_steps_halve_the_rate() -> None:
    settings = {"name": "step_scheduler", "num_warmup_steps": 500, "decay_every": 10_000, "decay_factor": 0.5}
    factor = lr_multiplier(settings, 1e-3, 100_000)
    assert [factor(step) for step in (0, 250, 499)] == [0.0, 0.5, 499 / 500]
    decays = [factor(step) for step in (500, 10_499, 10_500, 20_499, 20_500)]
    assert decays == [1.0, 1.0, 0.5, 0.5, 0.25]
    no_warmup = lr_multiplier({**settings, "num_warmup_steps": 0}, 1e-3, 100_000)
    assert [no_warmup(step) for step in (0, 9_999, 10_000)] == [1.0, 1.0, 0.5]


def test_unknown_schedule_names_the_choices() -> None:
    with pytest.raises(ValueError, match="lr_scheduler.name=linear: no such schedule; use constant_warmup"):
        lr_multiplier({"name": "linear"}, 1e-3, 100)
