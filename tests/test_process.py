"""The absorbing process forwards, and the three probabilities of a step backwards."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion.process import Absorbing, reverse_probabilities
from diffusion.randomness import uniform

MASK = 7
PROCESS = Absorbing(MASK)


def test_corrupt_masks_with_probability_one_minus_alpha() -> None:
    """Evenly spread uniforms: the masked share is exactly 1 - alpha up to one of 1000."""
    uniforms = ((torch.arange(1000).double() + 0.5) / 1000).expand(3, 1000)
    alpha = torch.tensor([1.0, 0.25, 0.0], dtype=torch.float64)
    x0 = torch.arange(1000).remainder(5).expand(3, 1000)
    xt = PROCESS.corrupt(x0, alpha, uniforms)
    assert (xt == MASK).sum(1).tolist() == [0, 750, 1000]
    assert torch.equal(xt[xt != MASK], x0[xt != MASK])


def test_corrupt_keeps_what_it_must() -> None:
    keep = torch.zeros(2, 6, dtype=torch.bool)
    keep[:, 0] = True
    x0 = torch.zeros(2, 6, dtype=torch.int64)
    xt = PROCESS.corrupt(x0, torch.zeros(2), uniform(torch.arange(2), 6), keep)
    assert (xt[:, 0] == 0).all() and (xt[:, 1:] == MASK).all()


def test_corrupt_count_masks_every_set_equally_often() -> None:
    """4000 draws of 2 of 4 positions: six sets, chi-square with 5 degrees of freedom below 25 (p = 1e-4)."""
    batch = 4000
    x0 = torch.zeros(batch, 4, dtype=torch.int64)
    everywhere = torch.ones(batch, 4, dtype=torch.bool)
    xt = PROCESS.corrupt_count(x0, torch.full((batch,), 2), uniform(torch.arange(batch), 4), everywhere)
    is_masked = xt == MASK
    assert (is_masked.sum(1) == 2).all()
    codes = (is_masked.long() * 2 ** torch.arange(4)).sum(1)
    counts = torch.stack([(codes == 2**i + 2**j).sum() for i, j in combinations(range(4), 2)]).double()
    assert float(((counts - batch / 6) ** 2 / (batch / 6)).sum()) < 25


def test_corrupt_count_takes_any_number_per_row() -> None:
    num_masked = torch.tensor([0, 1, 3, 6, 9])
    everywhere = torch.ones(5, 6, dtype=torch.bool)
    x0 = torch.zeros(5, 6, dtype=torch.int64)
    xt = PROCESS.corrupt_count(x0, num_masked, uniform(torch.arange(5), 6), everywhere)
    assert (xt == MASK).sum(1).tolist() == [0, 1, 3, 6, 6]


def test_corrupt_count_flips_coins_at_padding_and_never_touches_kept() -> None:
    """Padding is masked at rate n/N = 1/2; the share of 2000 x 3 coins has sd 0.0065, 5 sd are allowed."""
    batch = 2000
    maskable = torch.tensor([True] * 5 + [False] * 3).expand(batch, 8)
    keep = torch.tensor([True] + [False] * 7).expand(batch, 8)
    x0 = torch.zeros(batch, 8, dtype=torch.int64)
    uniforms = uniform(torch.arange(batch), 8)
    is_masked = PROCESS.corrupt_count(x0, torch.full((batch,), 2), uniforms, maskable, keep) == MASK
    assert not is_masked[:, 0].any()
    assert (is_masked[:, 1:5].sum(1) == 2).all()
    assert abs(float(is_masked[:, 5:].double().mean()) - 0.5) < 5 * 0.0065


def test_corrupt_count_without_maskable_positions() -> None:
    x0 = torch.zeros(1, 3, dtype=torch.int64)
    nowhere = torch.zeros(1, 3, dtype=torch.bool)
    xt = PROCESS.corrupt_count(x0, torch.zeros(1, dtype=torch.int64), uniform(torch.arange(1), 3), nowhere)
    assert (xt == 0).all()


def test_reverse_probabilities_sum_to_one_and_follow_the_formulas() -> None:
    alpha_t = torch.linspace(0.001, 0.9, 30, dtype=torch.float64)
    alpha_s = alpha_t + (1.0 - alpha_t) * torch.linspace(0.0, 0.99, 30, dtype=torch.float64)
    unmask, keep, reset = reverse_probabilities(alpha_t, alpha_s)
    alpha_ts = alpha_t / alpha_s
    close = {"rtol": 0, "atol": 1e-14}
    torch.testing.assert_close(unmask + keep + reset, torch.ones_like(unmask), **close)
    torch.testing.assert_close(unmask, (alpha_s - alpha_t) / (1 - alpha_t), **close)
    torch.testing.assert_close(keep, (alpha_ts - alpha_t) / (1 - alpha_t), **close)
    torch.testing.assert_close(reset, (1 - alpha_ts) * (1 - alpha_s) / (1 - alpha_t), **close)


@pytest.mark.parametrize("alpha_s", [1.0, 1.0 + 1e-12, 1.7])
@pytest.mark.parametrize("alpha_t", [0.001, 0.5, 1.0])
def test_the_last_step_unmasks_everything(alpha_t: float, alpha_s: float) -> None:
    assert [float(p) for p in reverse_probabilities(alpha_t, alpha_s)] == [1.0, 0.0, 0.0]


def test_two_steps_compose() -> None:
    """Chapman-Kolmogorov: staying masked, or keeping the noise, over t -> r -> s is the product of steps."""
    alpha_t, alpha_r, alpha_s = 0.1, 0.4, 0.7
    first, second = reverse_probabilities(alpha_t, alpha_r), reverse_probabilities(alpha_r, alpha_s)
    whole = reverse_probabilities(alpha_t, alpha_s)
    torch.testing.assert_close(first.keep * second.keep, whole.keep)
    torch.testing.assert_close((1 - first.unmask) * (1 - second.unmask), 1 - whole.unmask)


def test_golden_posterior() -> None:
    golden = np.load(Path(__file__).parent / "golden" / "imdm_posterior.npz", allow_pickle=False)
    x_prob, xt = torch.from_numpy(golden["x_prob"]), torch.from_numpy(golden["xt"])
    expected = torch.from_numpy(golden["imdm_f64"])
    mask_id = x_prob.shape[-1] - 1
    alphas = (torch.from_numpy(golden[name])[:, 0] for name in ("alpha_t", "alpha_s"))
    unmask, keep, reset = (p[:, None] for p in reverse_probabilities(*alphas))
    is_masked = xt == mask_id
    assert is_masked.any() and not is_masked.all()
    tolerance = {"rtol": 1e-5, "atol": 1e-6}
    posterior = expected[..., :mask_id]
    tokens = unmask[..., None] * x_prob[..., :mask_id].double()
    torch.testing.assert_close(tokens[is_masked], posterior[is_masked], **tolerance)
    for column, ours in ((mask_id, keep), (mask_id + 1, reset)):
        theirs = expected[..., column][is_masked]
        torch.testing.assert_close(ours.expand_as(xt)[is_masked], theirs, **tolerance)
