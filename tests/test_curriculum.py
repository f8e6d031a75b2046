"""Duo's curriculum from the largest entries alone: their joint distribution, weights, embedding, against
all.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from test_algo import BATCH, batch, build
from torch import Tensor

from diffusion.duality import Relaxed, argmax_distribution, relaxed_embedding
from diffusion.largest import Largest, default_top_k, distinct_ids, largest_normals, top_k_embedding
from diffusion.randomness import uniform

GAMMAS = torch.tensor([-5.0, -3.5, -1.75, -1.0], dtype=torch.float64)


def relaxed(num: int, vocab_size: int, gamma: Tensor | float, tau: float, seed: int = 0) -> Relaxed:
    x0 = torch.arange(num) % vocab_size
    gamma = torch.as_tensor(gamma, dtype=torch.float64).expand(num)
    return Relaxed(x0, gamma, torch.arange(num) + seed * num, tau)


def everything(num: int, vocab_size: int) -> Tensor:
    """Independent N(0, 1), (num, vocab_size)."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(num, vocab_size, generator=generator, dtype=torch.float64)


def largest_of(noise: Tensor, x0: Tensor, k: int) -> Largest:
    """What the sparse form would have drawn, had it drawn ``noise`` (N, V)."""
    own = noise.gather(1, x0[:, None]).squeeze(1)
    values, ids = noise.scatter(1, x0[:, None], -torch.inf).topk(k, dim=-1)
    return Largest(own, values, ids)


# Draws --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "k"), [(50, 4), (3, 3), (30_000, 3)])
def test_largest_normals_have_the_joint_distribution_of_sorted_ones(size: int, k: int) -> None:
    """Their first two moments, all products included, within 4.5 standard errors of both samples."""
    num = 20_000 if size < 1000 else 500
    expected = everything(num, size).topk(k, dim=-1).values
    found = largest_normals(uniform(torch.arange(20_000), k), size)
    assert (found[:, :-1] >= found[:, 1:]).all()
    pairs = [(i, j) for i in range(k) for j in range(i, k)]
    for draws in ((lambda x: x), (lambda x: torch.stack([x[:, i] * x[:, j] for i, j in pairs], 1))):
        ours, theirs = draws(found), draws(expected)
        error = (ours.var(0) / len(ours) + theirs.var(0) / len(theirs)).sqrt()
        assert ((ours.mean(0) - theirs.mean(0)).abs() < 4.5 * error).all()


def test_the_largest_has_its_exact_distribution() -> None:
    """Phi(z)^n is uniform: Kolmogorov's distance of 20,000 draws, beyond 1.95/sqrt(N) once in a thousand."""
    z = largest_normals(uniform(torch.arange(20_000), 1), 30_521).squeeze(1)
    heights = (30_521 * torch.special.log_ndtr(z)).exp().sort().values
    steps = torch.arange(20_000).double() / 20_000
    assert max((heights - steps).max(), (steps + 1 / 20_000 - heights).max()) < 1.95 / 20_000**0.5
    assert largest_normals(torch.zeros(1, 2, dtype=torch.float64), 5).isfinite().all()


@pytest.mark.parametrize(("k", "size"), [(2, 4), (3, 3)])
def test_distinct_ids_are_uniform_over_ordered_choices(k: int, size: int) -> None:
    ids = distinct_ids(torch.arange(24_000), k, size)
    choices = list(itertools.permutations(range(size), k))
    codes = (ids * size ** torch.arange(k)).sum(-1)
    counts = torch.stack(
        [(codes == sum(c * size**i for i, c in enumerate(choice))).sum() for choice in choices]
    )
    assert counts.sum() == 24_000, "an id came twice"
    p = 1 / len(choices)
    assert ((counts / 24_000 - p).abs() < 4.5 * (p * (1 - p) / 24_000) ** 0.5).all()


def test_draws_of_a_row_depend_on_its_key_alone() -> None:
    keys = torch.arange(500)
    whole = distinct_ids(keys, 20, 60)  # some rows need more draws than others
    assert all(len(set(row)) == 20 for row in whole.tolist())
    assert torch.equal(whole[7:9], distinct_ids(keys[7:9], 20, 60))
    assert torch.equal(whole[:, :5], distinct_ids(keys, 5, 60))


# Weights and embedding ----------------------------------------------------------------------------


def test_all_entries_are_the_softmax() -> None:
    noise, gamma = everything(4, 9), GAMMAS
    data = relaxed(4, 9, GAMMAS, 0.3)
    largest = largest_of(noise, data.x0, 8)
    a, s = (torch.sigmoid(g).sqrt()[:, None] for g in (-gamma, gamma))
    soft = ((s * noise + a * torch.eye(9).double()[data.x0]) / 0.3).softmax(-1)
    weights, rest = largest.weights(gamma, 0.3, 9)
    expected = soft.gather(1, torch.cat((data.x0[:, None], largest.ids), 1))
    torch.testing.assert_close(weights, expected)
    assert (rest == 0).all()


def test_the_rest_has_its_mean() -> None:
    """exp(c z) summed over what lies below the k-th largest: 4,000 times, all with the same k largest."""
    size, k, gamma = 200, 5, torch.tensor([-3.0], dtype=torch.float64)
    values = torch.linspace(2.5, 1.5, k, dtype=torch.float64)[None]
    for tau in (0.2, 0.08):
        largest = Largest(torch.zeros(1, dtype=torch.float64), values, torch.arange(1, k + 1)[None])
        scale = torch.sigmoid(gamma).sqrt() / tau
        weights, rest = largest.weights(gamma, tau, size)
        found = rest / weights[:, 1] * (scale * values[:, 0]).exp()
        below = torch.special.ndtri(
            uniform(torch.arange(4000), size - 1 - k) * torch.special.ndtr(values[0, -1])
        )
        sums = (scale * below).exp().sum(-1)
        assert (sums.mean() - found).abs() < 4.5 * sums.std() / 4000**0.5


@pytest.mark.parametrize("tau", [0.1, 0.03, 0.01, 0.001])
def test_the_error_of_the_embedding_keeps_its_bound(tau: float) -> None:
    """With the same noise: mean 0, root mean square about sqrt(sum over the rest of p^2) embeddings."""
    size, k, num = 5000, 64, 400
    embedding = torch.randn(size, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = everything(num, size)
    for gamma in GAMMAS:
        data = relaxed(num, size, gamma, tau)
        w = torch.sigmoid(gamma).sqrt() * noise
        w[torch.arange(num), data.x0] += torch.sigmoid(-gamma).sqrt()
        soft = (w / tau).softmax(-1)
        largest = largest_of(noise, data.x0, k)
        found = largest.embed(embedding, data.x0, data.gamma, tau)
        error = found - soft @ embedding
        left = soft.scatter(1, torch.cat((data.x0[:, None], largest.ids), 1), 0.0)
        bound = left.square().sum(-1).mean().sqrt()
        rms = error.square().mean().sqrt()
        assert rms < 1.5 * bound + 1e-12
        assert rms < {0.1: 0.02, 0.03: 2e-3, 0.01: 1e-6, 0.001: 1e-12}[tau]
        assert error.mean(0).abs().max() < 4.5 * error.std(0).max() / num**0.5 + 1e-12


@pytest.mark.parametrize("k", [1, 3, 7])
def test_argmax_is_uniform_noise_whatever_k(k: int) -> None:
    """20,000 positions: within 4.5 standard deviations of sqrt(p (1 - p) / n)."""
    for gamma in (-3.0, -1.0):
        data = relaxed(20_000, 8, gamma, 0.05)._replace(x0=torch.full((20_000,), 3))
        ids = top_k_embedding(torch.zeros(8, 2), data, k)[1]
        p = argmax_distribution(data.gamma[:1], 8).stays.item()
        expected = torch.full((8,), (1 - p) / 7).double().index_fill(0, torch.tensor([3]), p)
        found = torch.bincount(ids, minlength=8) / 20_000
        assert ((found - expected).abs() < 4.5 * (expected * (1 - expected) / 20_000).sqrt()).all()


def test_sparse_and_dense_embeddings_have_one_distribution() -> None:
    """Mean and spread of the embedding, of the weight of x0 and of the largest entry, and their products."""
    size, num, tau, gamma = 300, 20_000, 0.05, -2.5
    embedding = torch.zeros(size, 4)
    embedding[0, 0], embedding[:, 1], embedding[::2, 2] = 1, 1, 1
    embedding[:, 3] = torch.randn(size, generator=torch.Generator().manual_seed(0))
    data = relaxed(num, size, gamma, tau)._replace(x0=torch.zeros(num, dtype=torch.int64))
    dense, sparse = relaxed_embedding(embedding, data)[0], top_k_embedding(embedding, data, 40)[0]
    torch.testing.assert_close(sparse[:, 1], torch.ones(num))
    for form in (lambda x: x, lambda x: x**2, lambda x: x[:, :1] * x, lambda x: (x[:, :1] > 0.5).float()):
        ours, theirs = form(sparse).double(), form(dense).double()
        error = ((ours.var(0) + theirs.var(0)) / num).sqrt()
        assert ((ours.mean(0) - theirs.mean(0)).abs() < 4.5 * error + 1e-6).all()


def test_gradient_of_the_embedding() -> None:
    size, data = 30, relaxed(5, 30, -2.0, 0.2)
    embedding = torch.randn(size, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    largest = Largest.of(data, 6, size)
    weights, rest = largest.weights(data.gamma, 0.2, size)
    rows = torch.full((5, size), 1.0) * (rest / (size - 7))[:, None].float()
    rows.scatter_(1, torch.cat((data.x0[:, None], largest.ids), 1), weights.float())
    torch.testing.assert_close(rows.sum(-1), torch.ones(5))
    found, expected = top_k_embedding(embedding, data, 6)[0], rows @ embedding
    torch.testing.assert_close(found, expected)
    factor = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    grads = [torch.autograd.grad((factor * x).sum(), embedding)[0] for x in (found, expected)]
    torch.testing.assert_close(*grads)


# The algorithm ------------------------------------------------------------------------------------


def test_the_default_is_dense_for_small_vocabularies_and_sparse_for_large_ones() -> None:
    assert [default_top_k(size) for size in (27, 1024, 1025, 30_522)] == [0, 0, 64, 64]
    large = ("algo=duo", "algo.gumbel_tau_log10_start=-2.5")
    for words, top_k in (((), 64), (("algo.curriculum_top_k=5",), 5), (("algo.curriculum_top_k=0",), 0)):
        assert build(*large, *words, symbols=2000).objective.top_k == top_k
    assert build("algo=duo", "algo.curriculum_top_k=64").objective.top_k == 0  # 12 ids have no 64 largest
    assert build("algo=duo", "algo.curriculum.top_k=4").objective.top_k == 4


def test_a_sparse_curriculum_trains_on_the_same_task() -> None:
    """Means of the loss over 100 steps, dense against sparse, within 4.5 standard errors."""
    means, errors = [], []
    for k in (0, 4):
        module = build("algo=duo", f"algo.curriculum_top_k={k}", "algo.gamma_min=-4", "algo.gamma_max=-1")
        with torch.no_grad():
            losses = [
                module.loss(batch(), step=n, num_rows=BATCH, training=True).loss.double() for n in range(100)
            ]
        means.append(torch.stack(losses).mean())
        errors.append(torch.stack(losses).std() / 100**0.5)
    assert abs(means[0] - means[1]) < 4.5 * (errors[0] ** 2 + errors[1] ** 2) ** 0.5
    module.loss(batch(), step=0, num_rows=BATCH, training=True).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
