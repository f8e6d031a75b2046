"""Draws by inverse CDF, temperature and nucleus."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import diffusion.categorical as categorical
from diffusion import NEG_INF
from diffusion.categorical import nucleus, sample_categorical, temper


def log_probs(*probs: float) -> Tensor:
    return torch.tensor(probs, dtype=torch.float64).log().clamp(min=NEG_INF)


def test_probabilities_down_to_1e_9_are_reproduced() -> None:
    """A symbol's probability is the length of the interval of uniforms that draw it: bisect for its edges."""
    probs = torch.tensor([1e-9, 0.3, 0.0, 2e-9, 0.25, 3e-7, 0.0], dtype=torch.float64)
    probs[-1] = 1.0 - probs.sum()
    table = probs.log().clamp(min=NEG_INF)
    low, high = torch.zeros(6, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
    for _ in range(60):  # low draws a symbol <= k, high one > k
        middle = (low + high) / 2
        below = sample_categorical(table.expand(6, 7), middle) <= torch.arange(6)
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    edges = torch.cat([torch.zeros(1), high, torch.ones(1)]).double()
    # Edges near 1 carry a few roundings of 1.1e-16.
    torch.testing.assert_close(edges.diff(), probs, rtol=0, atol=1e-15)


def test_stratified_uniforms_reproduce_a_distribution() -> None:
    probs = torch.tensor([0.001, 0.499, 0.3, 0.2], dtype=torch.float64)
    uniforms = (torch.arange(10000).double() + 0.5) / 10000
    drawn = sample_categorical(probs.log().expand(10000, 4), uniforms)
    assert drawn.dtype == torch.int64
    assert drawn.bincount(minlength=4).tolist() == [10, 4990, 3000, 2000]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_symbols_without_mass_are_never_drawn(dtype: torch.dtype) -> None:
    table = log_probs(0.0, 0.5, 0.0, 0.5, 0.0, 0.0).to(dtype)
    uniforms = torch.tensor([0.0, 0.5, 0.5 - 2**-53, 1.0 - 2**-53], dtype=torch.float64)
    assert sample_categorical(table.expand(4, 6), uniforms).tolist() == [1, 3, 1, 3]


def test_the_highest_uniform_stays_inside_whatever_the_normalisation() -> None:
    """At and just below 1 the last symbol with mass must come out."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(2000, 5, generator=generator, dtype=torch.float64)
    table[:, 3:] = NEG_INF
    for highest in (1.0 - 2**-53, 1.0):
        drawn = sample_categorical(table, torch.full((2000,), highest, dtype=torch.float64))
        assert (drawn == 2).all()


def test_chunks_do_not_change_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(50, 9, generator=generator).log_softmax(-1)
    uniforms = torch.rand(50, generator=generator, dtype=torch.float64)
    whole = sample_categorical(table, uniforms)
    monkeypatch.setattr(categorical, "_CHUNK_ELEMENTS", 30)
    assert torch.equal(whole, sample_categorical(table, uniforms))
    assert sample_categorical(table[:0], uniforms[:0]).shape == (0,)


def test_float32_tails_survive() -> None:
    """Where Gumbel-max in float32 loses mass: a symbol of 1e-8 beside one of almost 1 keeps its interval."""
    table = log_probs(1.0 - 1e-8, 1e-8).float()
    uniforms = torch.tensor([1.0 - 1.1e-8, 1.0 - 0.9e-8], dtype=torch.float64)
    assert sample_categorical(table.expand(2, 2), uniforms).tolist() == [0, 1]


def test_temper_raises_probabilities_to_a_power() -> None:
    table = log_probs(0.1, 0.2, 0.7, 0.0)
    for temperature in (0.5, 2.0):
        powered = table.exp() ** (1 / temperature)
        torch.testing.assert_close(temper(table, temperature).exp(), powered / powered.sum())
    assert temper(table, 1.0) is table


def test_nucleus_keeps_the_smallest_sufficient_set() -> None:
    table = log_probs(0.1, 0.4, 0.15, 0.35).expand(2, 4)
    sets = {0.3: [1], 0.4: [1], 0.41: [1, 3], 0.74: [1, 3], 0.76: [1, 2, 3], 0.91: [0, 1, 2, 3]}
    for p, kept in sets.items():
        probs = nucleus(table, p).exp()
        assert probs[0].nonzero().squeeze(1).tolist() == kept, p
        expected = table[0, kept].exp()
        torch.testing.assert_close(probs[1, kept], expected / expected.sum())
    assert nucleus(table, 1.0) is table


def test_nucleus_takes_one_of_two_equals() -> None:
    assert sorted(nucleus(log_probs(0.5, 0.5)[None], 0.5).exp()[0].tolist()) == [0.0, 1.0]


def test_nucleus_of_wide_rows_equals_a_full_sort() -> None:
    """Rows from peaked to flat: from one symbol to most of 3000, more than the search looks at first."""
    logits = torch.randn(12, 3000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    table = (logits * torch.logspace(1, -2, 12)[:, None]).log_softmax(-1)
    ordered, index = table.exp().sort(dim=-1, descending=True)
    sizes = (ordered.cumsum(-1) < 0.9).sum(-1) + 1
    expected = torch.zeros_like(table, dtype=torch.bool)
    for row, size in enumerate(sizes.tolist()):
        expected[row, index[row, :size]] = True
    assert sizes.min() < 256 and sizes.max() > 2000
    assert torch.equal(nucleus(table, 0.9).exp() > 0, expected)


BAD = [(temper, 0.0), (temper, -1.0), (nucleus, 0.0), (nucleus, 1.1)]


@pytest.mark.parametrize(("function", "value"), BAD)
def test_bad_settings_are_one_clear_line(function: Callable[[Tensor, float], Tensor], value: float) -> None:
    with pytest.raises(ValueError, match=r"^sampling\.\w+=\S+: .*; [^\n]*$"):
        function(log_probs(0.5, 0.5)[None], value)
