"""Metrics against goldens and hand-made cases."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from metrics import Nelbo, sample_entropy, word_share

GOLDEN = Path(__file__).parent / "golden"


def test_sample_entropy_matches_the_official_one() -> None:
    golden = np.load(GOLDEN / "metrics.npz", allow_pickle=False)
    entropy = sample_entropy(torch.from_numpy(golden["entropy_tokens"]))
    torch.testing.assert_close(
        entropy, torch.from_numpy(golden["entropy_per_sample"]).double(), rtol=1e-5, atol=2e-5
    )


def test_nelbo_is_the_token_mean_whatever_the_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    nll = torch.rand(10, 6, generator=generator)
    mask = torch.rand(10, 6, generator=generator) < 0.7
    metric = Nelbo()
    for part in (slice(0, 4), slice(4, 9), slice(9, 10)):  # the last partial batch counts
        metric.update(nll[part], mask[part])
    result = metric.compute()
    assert result["nll"] == pytest.approx(float(nll[mask].double().mean()), rel=1e-6)
    assert result["ppl"] == pytest.approx(math.exp(result["nll"]))
    assert result["bpd"] == pytest.approx(result["nll"] / math.log(2))
    assert result["tokens"] == int(mask.sum())


def test_standard_error_is_that_of_the_mean() -> None:
    """Over many draws of a set, the spread of the estimates is what each of them says its error is."""
    generator = torch.Generator().manual_seed(1)
    estimates, errors = [], []
    for _ in range(400):
        per_sequence = torch.randn(64, 1, generator=generator).exp().expand(64, 5)
        metric = Nelbo()
        metric.update(per_sequence, torch.ones(64, 5, dtype=torch.bool))
        result = metric.compute()
        estimates.append(result["nll"])
        errors.append(result["nll_stderr"])
    assert np.mean(errors) == pytest.approx(np.std(estimates), rel=0.15)  # 400 draws: about 4 % noise


def test_nothing_counted_is_nan_not_a_crash() -> None:
    metric = Nelbo()
    metric.update(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool))
    assert math.isnan(metric.compute()["nll"])


def test_word_share_ignores_cut_words() -> None:
    assert word_share(["ello the cat xx"], {"the", "cat"}) == 1.0
    assert word_share(["a the qqq b", "x cat y"], {"the", "cat"}) == pytest.approx(2 / 3)
    assert math.isnan(word_share(["one two"], {"one"}))
