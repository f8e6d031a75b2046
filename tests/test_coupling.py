"""Draws that noise decides: exact when the noise is fresh, with one Gumbel a symbol and with a tree."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor

from diffusion import coupling
from diffusion.coupling import BRANCHING, Coupling, gumbel
from diffusion.randomness import row_keys


def distribution(size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    log_probs = 2 * torch.randn(size, generator=generator, dtype=torch.float64)
    log_probs[size // 2] = -1e6  # a mask
    return log_probs.log_softmax(-1)


def chance_of_each(tree: Coupling, log_probs: Tensor) -> Tensor:
    """The distribution of a tree's draws, by the product of its children's shares, written out once more."""
    probs, found = log_probs.exp(), torch.zeros_like(log_probs)
    ids = torch.arange(len(probs))
    for token in range(len(probs)):
        inside, chance = torch.ones_like(ids, dtype=torch.bool), torch.tensor(1.0, dtype=torch.float64)
        for level in range(tree.levels):
            below = inside & ((ids // BRANCHING**level) % BRANCHING == token // BRANCHING**level % BRANCHING)
            total = probs[inside].sum()
            chance = chance * (probs[below].sum() / total if total > 0 else 0)
            inside = below
        found[token] = chance
    return found


def test_the_tree_is_exact() -> None:
    """Its path probabilities are p to 1e-12, and 200,000 draws are p to 1e-3 beyond what chance allows."""
    log_probs, number = distribution(40), 200_000
    tree = Coupling(40, 2)
    torch.testing.assert_close(chance_of_each(tree, log_probs), log_probs.exp(), rtol=1e-12, atol=1e-12)
    for how in (tree, Coupling(40)):
        noise = how.noise(row_keys(0, 3, 0, torch.arange(number)), torch.zeros(number, dtype=torch.int64))
        drawn = torch.bincount(how.pick_shared(log_probs, noise), minlength=40) / number
        expected = 0.5 * float((log_probs.exp() / number).sqrt().sum())  # of a right sampler, at most
        assert 0.5 * float((drawn - log_probs.exp()).abs().sum()) < 1e-3 + expected
        assert drawn[20] == 0


@pytest.mark.parametrize("how", [Coupling(40), Coupling(40, 2), Coupling(700, 3), Coupling(4096, 3)])
def test_pick_is_the_argmax_level_by_level(how: Coupling) -> None:
    size = how.vocab_size
    log_probs = torch.stack([distribution(size, seed) for seed in range(30)])
    noise = how.noise(torch.arange(30), torch.arange(30))
    picked = how.pick(log_probs, noise)
    for row in range(30):
        inside = list(range(size))
        for level in range(how.levels):
            groups = [[i for i in inside if i // BRANCHING**level % BRANCHING == c] for c in range(BRANCHING)]
            scores = [
                float(log_probs[row, g].logsumexp(0) + noise[row, BRANCHING * level + c]) if g else -1e30
                for c, g in enumerate(groups)
            ]
            inside = groups[max(range(BRANCHING), key=scores.__getitem__)]
        best = inside[0] if how.levels else int((log_probs[row] + noise[row]).argmax())
        assert picked[row] == best
        assert how.pick_shared(log_probs[row], noise[row : row + 1]) == best
    assert torch.equal(how.pick(log_probs, noise, 0.0)[:5], how.pick(log_probs, 0 * noise)[:5])


def test_noise_belongs_to_seed_and_position() -> None:
    how, seeds = Coupling(40), torch.tensor([5, 5, 6])
    noise = how.noise(seeds, torch.tensor([0, 1, 0]))
    assert torch.equal(noise[1:2], how.noise(seeds[1:2], torch.tensor([1])))
    assert len({tuple(row) for row in noise.tolist()}) == 3
    many = gumbel(torch.arange(20_000), 10)
    assert abs(float(many.mean()) - coupling.EULER_GAMMA) < 0.015  # standard error 0.003
    assert abs(float(many.std()) - coupling.GUMBEL_STD) < 0.015


@pytest.mark.parametrize("how", [Coupling(40, 2), Coupling(700, 3)])
def test_the_gradient_of_the_tree_loss(how: Coupling) -> None:
    """Against autograd through the definition: sums of levels' cross-entropies by masks of ids."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(6, how.vocab_size, generator=generator, dtype=torch.float64).requires_grad_()
    gain = torch.rand(6, 1, generator=generator, dtype=torch.float64).requires_grad_()
    targets = torch.randint(how.vocab_size, (6,), generator=generator)
    noise, ids = how.noise(torch.arange(6), torch.arange(6)), torch.arange(how.vocab_size)
    expected = []
    for row in range(6):
        inside, loss = torch.ones_like(ids, dtype=torch.bool), torch.zeros((), dtype=torch.float64)
        for level in range(how.levels):
            digit = ids // BRANCHING**level % BRANCHING
            scores = torch.full((BRANCHING,), -1e9, dtype=torch.float64)
            for c in digit[inside].unique().tolist():
                scores[c] = logits[row, inside & (digit == c)].logsumexp(0)
            scores = scores + gain[row] * noise[row, BRANCHING * level : BRANCHING * (level + 1)]
            own = targets[row] // BRANCHING**level % BRANCHING
            loss = loss - scores.log_softmax(-1)[own]
            inside = inside & (digit == own)
        expected.append(loss)
    grads = torch.autograd.grad(torch.stack(expected).sum(), (logits, gain))
    loss, by_logits, by_gain = how.tree_loss(logits.detach().exp(), noise, gain.detach(), targets)
    torch.testing.assert_close(loss, torch.stack(expected).detach())
    torch.testing.assert_close(by_logits, grads[0])
    torch.testing.assert_close(by_gain, grads[1].squeeze(1))


def test_a_draw_from_a_large_vocabulary_costs_less_than_plain_gumbel_max() -> None:
    size, rows = 50_257, 16
    tree = Coupling.of(size)
    assert tree.levels == 4 and Coupling.of(70).levels == 0
    log_probs = torch.stack([distribution(size, seed) for seed in range(rows)])
    seeds, places = torch.arange(rows), torch.arange(rows)
    seconds = []
    for how in (tree, Coupling(size)):
        times = []
        for _ in range(4):
            start = time.perf_counter()
            how.pick(log_probs, how.noise(seeds, places))
            times.append(time.perf_counter() - start)
        seconds.append(min(times))
    assert seconds[0] < seconds[1]
