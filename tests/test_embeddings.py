"""Mask noise: the official hash, finite masks, and what a fresh IMDM equals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from golden_weights import fill_golden, load_golden

from models.dit import BackboneConfig, DiT, MaskNoiseConfig
from models.embeddings import VocabEmbedding
from models.noise import finite_mask_ids, seeded_noise

MASK = 10
X = torch.tensor([[MASK, 3, MASK, 1], [2, MASK, MASK, MASK]])
SEEDS = torch.tensor([[5, 6, 7, 8], [2**62, -9, 11, 12]])


def embed(noise: MaskNoiseConfig | None, *, random_weights: bool = True) -> VocabEmbedding:
    generator = torch.Generator().manual_seed(0)
    module = VocabEmbedding(11, 6, MASK, noise)
    if random_weights:
        for p in module.parameters():
            p.data = torch.randn(p.shape, generator=generator)
    return module


def python_hash(seed: int, index: int) -> tuple[float, float]:
    """The two uniforms in Python's integers, wrapped to 64 bits with a sign by hand."""
    m1, m2 = 0xD251125F, 0xCD9E8D57

    def wrap(x: int) -> int:
        return (x + 2**63) % 2**64 - 2**63

    def mix(s: int, a: int, b: int) -> float:
        s = wrap((s ^ (s >> 15)) * a)
        s = wrap((s ^ (s >> 13)) * b)
        return float(np.float32((s ^ (s >> 16)) & 0xFFFFFFFF)) / 2**32

    first = mix(wrap(seed * m1) ^ wrap(index * m2), m1, m2)
    return first, mix(wrap(seed * m2) ^ wrap((index + 12345) * m1), m2, m1)


def test_seeded_noise_is_the_official_one() -> None:
    golden = load_golden("seeded_noise")
    positions = torch.arange(5)
    for row, seed in enumerate(golden["seeds"]):
        seeds = torch.full((5,), int(seed))
        rand = seeded_noise(seeds, positions, 7, "rand")
        torch.testing.assert_close(rand, torch.from_numpy(2 * golden["rand"][row] - 1), rtol=0, atol=2e-7)
        randn = seeded_noise(seeds, positions, 7, "randn")
        torch.testing.assert_close(randn, torch.from_numpy(golden["randn"][row]), rtol=1e-6, atol=1e-6)


def test_seeded_noise_with_large_seeds_and_in_any_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = torch.tensor([2**62 + 3, -(2**61), 123456789012345])
    positions = torch.tensor([0, 1000, 7])
    rand, randn = (seeded_noise(seeds, positions, 4, kind) for kind in ("rand", "randn"))
    for n, (seed, position) in enumerate(zip(seeds.tolist(), positions.tolist(), strict=True)):
        for channel in range(4):
            u1, u2 = python_hash(seed, position * 4 + channel)
            assert abs(float(rand[n, channel]) - (2 * u1 - 1)) < 3e-7
            normal = math.sqrt(-2 * math.log(max(u1, 1e-8))) * math.cos(2 * math.pi * max(u2, 1e-8))
            assert abs(float(randn[n, channel]) - normal) < 1e-5
    order = torch.tensor([2, 0])
    assert torch.equal(seeded_noise(seeds[order], positions[order], 4, "randn"), randn[order])
    monkeypatch.setattr("models.noise._CPU_CHUNK", 5)
    assert torch.equal(seeded_noise(seeds, positions, 4, "randn"), randn)
    assert seeded_noise(seeds[:0], positions[:0], 4, "rand").shape == (0, 4)


def test_seeded_noise_has_the_right_moments() -> None:
    seeds = torch.randint(0, 2**62, (2000,), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(2000) % 100
    # 64,000 draws: standard errors 0.0023 and 0.0024 (rand), 0.004 and 0.0056 (randn); 5 of each.
    rand = seeded_noise(seeds, positions, 32, "rand")
    assert abs(float(rand.mean())) < 0.0115 and abs(float(rand.square().mean()) - 1 / 3) < 0.006
    randn = seeded_noise(seeds, positions, 32, "randn")
    assert abs(float(randn.mean())) < 0.02 and abs(float(randn.square().mean()) - 1) < 0.028


@pytest.mark.parametrize("kind", ["rand", "randn"])
def test_noise_enters_at_masked_positions_only(kind: str) -> None:
    module = embed(MaskNoiseConfig(kind, 5, noise_scale=0.5))
    out = module(X, SEEDS)
    for b in range(2):
        for i in range(4):
            expected = module.embedding[X[b, i]]
            if X[b, i] == MASK:
                noise = 0.5 * seeded_noise(SEEDS[b, i : i + 1], torch.tensor([i]), 5, kind)
                expected = expected + module.imdm_mlp(noise)[0]
            torch.testing.assert_close(out[b, i], expected, rtol=1e-5, atol=1e-5)
    # Noise of a masked position depends on nothing but its own seed, place and channel.
    torch.testing.assert_close(module(X[1:], SEEDS[1:])[0], out[1], rtol=1e-5, atol=1e-5)


def test_explicit_noise() -> None:
    module = embed(MaskNoiseConfig("rand", 5, noise_scale=3.0))
    noise = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(1))
    out = module(X, noise)
    torch.testing.assert_close(out[0, 2], module.embedding[MASK] + module.imdm_mlp(noise[0, 2]))
    assert torch.equal(out[0, 1], module.embedding[3])


def test_learnable_noise_moves_the_normal_draw() -> None:
    module = embed(MaskNoiseConfig("learnable", 5))
    out = module(X, SEEDS)
    normal = seeded_noise(SEEDS[1, 3:], torch.tensor([3]), 5, "randn")
    noise = module.learnable_noise_mu[0] + module.learnable_noise_sigma[0] * normal
    torch.testing.assert_close(out[1, 3], module.embedding[MASK] + module.imdm_mlp(noise)[0])
    out.square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in module.parameters())
    with pytest.raises(ValueError, match="^algo.noise_scale="):
        MaskNoiseConfig("learnable", 5, noise_scale=2.0)


def test_finite_masks() -> None:
    seeds = torch.randint(0, 2**62, (7000,), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(7000) % 64
    ids = finite_mask_ids(seeds, positions, 5, 7)
    uniforms = (seeded_noise(seeds, positions, 5, "rand")[:, 0].double() + 1) / 2
    assert (ids == (uniforms * 7).floor()).float().mean() > 0.999
    # 1000 expected of each, standard deviation 29.
    assert ids.bincount(minlength=7).sub(1000).abs().max() < 150
    assert finite_mask_ids(seeds, positions, 5, 2**24).max() < 2**24
    module = embed(MaskNoiseConfig("rand", 5, num_mask=7))
    chosen = finite_mask_ids(SEEDS[0, 2:3], torch.tensor([2]), 5, 7)
    expected = module.embedding[MASK] + module.imdm_mlp.weight[chosen[0]]
    torch.testing.assert_close(module(X, SEEDS)[0, 2], expected)
    sixth = module.embedding[MASK] + module.imdm_mlp.weight[6]
    torch.testing.assert_close(module(X, torch.full((2, 4, 1), 6.0))[0, 2], sixth)


@pytest.mark.parametrize("num_mask", [0, 1, 7])
def test_fresh_imdm_is_the_mdlm_whose_weights_it_has(num_mask: int) -> None:
    config = {
        "vocab_size": 11,
        "mask_id": MASK,
        "hidden_size": 16,
        "cond_dim": 8,
        "n_blocks": 1,
        "n_heads": 2,
    }
    mdlm = fill_golden(DiT(BackboneConfig(**config)))
    imdm = DiT(BackboneConfig(**config, mask_noise=MaskNoiseConfig("randn", 24, num_mask=num_mask))).eval()
    missing = imdm.load_state_dict(mdlm.state_dict(), strict=False)
    assert not missing.unexpected_keys and all("imdm_mlp" in name for name in missing.missing_keys)
    assert torch.equal(imdm(X, None, SEEDS), mdlm(X, None))
    trainable = [p.requires_grad for name, p in imdm.named_parameters() if "imdm_mlp" in name]
    assert all(t == (num_mask != 1) for t in trainable)


@pytest.mark.parametrize(
    "noise",
    [
        MaskNoiseConfig("rand", 5),
        MaskNoiseConfig("learnable", 5),
        MaskNoiseConfig("rand", 5, num_mask=7),
    ],
)
def test_parameters_get_gradients_without_any_mask(noise: MaskNoiseConfig) -> None:
    module = embed(noise)
    module(torch.tensor([[1, 2]]), torch.tensor([[1, 2]])).sum().backward()
    for name, p in module.named_parameters():
        assert p.grad is not None, name
        assert name == "embedding" or not p.grad.any()


def test_start_of_the_noise_mlp() -> None:
    module = VocabEmbedding(11, 64, MASK, MaskNoiseConfig("rand", 200))
    first, _, last = module.imdm_mlp
    assert not last.weight.any() and not first.bias.any() and last.bias is None
    # Cut at two standard deviations a normal of 0.02 has 0.02 * 0.8796; 51,200 weights.
    assert first.weight.abs().max() <= 0.04 and abs(float(first.weight.detach().std()) - 0.01759) < 0.0003


def test_missing_noise_is_an_error_and_superfluous_noise_is_not() -> None:
    with pytest.raises(ValueError, match="^mask_seeds=None: "):
        embed(MaskNoiseConfig("rand", 5))(X)
    with pytest.raises(ValueError, match="^mask_seeds="):
        embed(MaskNoiseConfig("rand", 5))(X, SEEDS[:, :2])
    plain = embed(None)
    assert torch.equal(plain(X, SEEDS), plain(X))
    for wrong in ({"noise_type": "cauchy"}, {"noise_dim": 0}, {"num_mask": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
            MaskNoiseConfig(**wrong)
