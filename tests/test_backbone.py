"""The diffusion transformer against the official one's numbers, and against itself in other precisions."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from golden_weights import GOLDEN, fill_golden, load_golden

from models.attention import Rotary, attention, plain_attention, rotate_qkv
from models.dit import BackboneConfig, DiT, MaskNoiseConfig
from models.embeddings import timestep_features, timestep_frequencies
from models.layers import drop, linear
from models.precision import Precision

RAND = MaskNoiseConfig("rand", 48)
VARIANTS = {
    "mdlm": {},
    "imdm": {"mask_noise": RAND},
    "imdm_m7": {"mask_noise": MaskNoiseConfig("rand", 48, num_mask=7)},
    "imdm_learnable": {"mask_noise": MaskNoiseConfig("learnable", 48)},
    "duo_base": {"vocab_size": 50, "mask_id": None},
    "ar": {"causal": True},
    "mdlm_qk_norm": {"qk_norm": True},
}


def build(**changes) -> DiT:
    settings = {
        "vocab_size": 51,
        "mask_id": 50,
        "hidden_size": 64,
        "cond_dim": 32,
        "n_blocks": 2,
        "n_heads": 4,
        "length": 16,
        "dropout": 0.0,
    }
    return DiT(BackboneConfig(**(settings | changes)))


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in load_golden("backbone_logits").items()}


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_state_dict_is_the_official_one(variant: str) -> None:
    model = build(**VARIANTS[variant])
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    ours = [
        {"name": f"backbone.{name}", "shape": list(value.shape), "trainable": name in trainable}
        for name, value in model.state_dict().items()
    ]
    assert ours == json.loads((GOLDEN / "state_dict_keys.json").read_text())[variant]
    # The order of the EMA's list is that of the parameters.
    order = [f"backbone.{name}" for name, _ in model.named_parameters()]
    assert order == [entry["name"] for entry in ours if entry["trainable"]]


@torch.no_grad()
def test_logits_mdlm(golden: dict[str, torch.Tensor]) -> None:
    model = fill_golden(build())
    close(model(golden["x"], golden["sigma"]), golden["mdlm_sc-1"])
    close(model(golden["x"], None), golden["mdlm_sigma0_sc-1"])
    # Zeros given as a tensor of the batch's size are the same function, shared or not.
    close(model(golden["x"], torch.zeros(3)), golden["mdlm_sigma0_sc-1"])


@torch.no_grad()
def test_shared_sigma_is_the_same_function(golden: dict[str, torch.Tensor]) -> None:
    model = fill_golden(build())
    one_by_one = [model(golden["x"][i : i + 1], golden["sigma"][i : i + 1]) for i in range(3)]
    close(torch.cat(one_by_one), golden["mdlm_sc-1"])


def test_shared_sigma_has_the_same_gradients(golden: dict[str, torch.Tensor]) -> None:
    grads = []
    for sigma in (torch.full((3,), 0.7), torch.tensor([0.7, 0.7, 0.7 + 1e-7])):
        model = fill_golden(build())
        model(golden["x"], sigma).square().sum().backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    for name, grad in grads[0].items():
        # Sums of 48 float32 terms in another order, relative to the largest entry.
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-4, atol=1e-4 * float(grad.abs().max()))


@torch.no_grad()
def test_logits_imdm(golden: dict[str, torch.Tensor]) -> None:
    model = fill_golden(build(mask_noise=RAND))
    close(model(golden["x"], golden["sigma"], golden["epsilon"]), golden["imdm_sc-1"])


@torch.no_grad()
def test_logits_softcap(golden: dict[str, torch.Tensor]) -> None:
    close(fill_golden(build(), hot=True)(golden["x"], golden["sigma"]), golden["mdlm_sc-1_hot"])
    close(fill_golden(build(softcap=50.0), hot=True)(golden["x"], golden["sigma"]), golden["mdlm_sc50_hot"])


@torch.no_grad()
def test_logits_causal(golden: dict[str, torch.Tensor]) -> None:
    close(fill_golden(build(causal=True))(golden["x_clean"], None), golden["ar_sc-1"])
    # The official causal blocks are not given the cap; with these weights it would change some logits by 0.2.
    plain, capped = (fill_golden(build(causal=True, softcap=cap), hot=True) for cap in (-1.0, 1.0))
    assert torch.equal(capped(golden["x_clean"], None), plain(golden["x_clean"], None))


@torch.no_grad()
def test_no_mask_and_qk_norm_run(golden: dict[str, torch.Tensor]) -> None:
    logits = fill_golden(build(vocab_size=50, mask_id=None))(golden["x_duo"], golden["sigma"])
    assert logits.shape == (3, 16, 50) and logits.isfinite().all()
    model = fill_golden(build(qk_norm=True), hot=True)
    for block in model.blocks:
        for norm in (block.q_norm, block.k_norm):
            norm.weight.fill_(1.0)
            norm.bias.zero_()
    expected = model(golden["x"], None)
    # Normalised queries and keys do not see the size of their projection.
    for block in model.blocks:
        block.attn_qkv.weight[:128].mul_(3)
    torch.testing.assert_close(model(golden["x"], None), expected, rtol=1e-3, atol=1e-3)


def test_timestep_features(golden: dict[str, torch.Tensor]) -> None:
    frequencies = timestep_frequencies()
    assert torch.equal(frequencies, golden["freqs_bf16_as_f32"])
    close(timestep_features(golden["sigma"], frequencies), golden["t_freq_sigma"])


@pytest.mark.parametrize("variant", ["mdlm", "imdm"])
def test_bfloat16_is_close_to_float32(golden: dict[str, torch.Tensor], variant: str) -> None:
    model = fill_golden(build(**VARIANTS[variant]))
    results = []
    for precision in (Precision(), Precision(torch.bfloat16)):
        model.precision = precision
        model.zero_grad()
        features = model.body(golden["x"], golden["sigma"], golden["epsilon"])
        assert features.dtype == torch.float32
        features.square().mean().backward()
        grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        results.append((features.detach(), grads))
    (exact, exact_grads), (rounded, grads) = results
    # bfloat16 keeps 8 bits: 2**-9 per rounding, two blocks of about four roundings in a row.
    assert 0 < (rounded - exact).norm() / exact.norm() < 0.01
    assert F.cosine_similarity(grads, exact_grads, dim=0) > 0.999


def test_outer_autocast_changes_nothing(golden: dict[str, torch.Tensor]) -> None:
    model = fill_golden(build())
    plain = model(golden["x"], golden["sigma"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model(golden["x"], golden["sigma"]), plain)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_backends_agree(causal: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 10, 8, generator=generator) for _ in range(3))
    fused = attention(q, k, v, causal=causal)
    torch.testing.assert_close(plain_attention(q, k, v, causal=causal), fused, rtol=1e-5, atol=1e-6)
    # A cap far above all scores is no cap: s - cap * tanh(s / cap) is about s^3 / (3 cap^2).
    torch.testing.assert_close(attention(q, k, v, causal=causal, softcap=1e3), fused, rtol=1e-4, atol=1e-4)
    assert (attention(q, k, v, causal=causal, softcap=0.5) - fused).abs().max() > 0.01
    low = attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), causal=causal)
    torch.testing.assert_close(low.float(), fused, rtol=0.05, atol=0.05)


def test_rotary_depends_on_distance_only_and_has_right_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    cos, sin = Rotary(8, 4)(6, torch.float64)
    same = torch.randn(1, 1, 3, 1, 8, generator=generator, dtype=torch.float64).expand(1, 6, 3, 1, 8)
    q, k, v = rotate_qkv(same, cos, sin)
    scores = (q @ k.transpose(-1, -2))[0, 0]
    for distance in range(-5, 6):
        diagonal = scores.diagonal(distance)
        # The tables were made in float32.
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-5, atol=1e-5)
    assert torch.equal(v, same[:, :, 2].transpose(1, 2))
    qkv = torch.randn(2, 6, 3, 2, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, 2, 2, 6, 8, generator=generator, dtype=torch.float64)

    def total(x: torch.Tensor) -> torch.Tensor:
        return sum((w * part).sum() for w, part in zip(weights, rotate_qkv(x, cos, sin), strict=True))

    (grad,) = torch.autograd.grad(total(qkv), qkv)
    step = 1e-6 * torch.randn(qkv.shape, generator=generator, dtype=torch.float64)
    # The map is linear: the difference is exact up to rounding, and the tables' distance from a rotation.
    torch.testing.assert_close(total(qkv + step) - total(qkv), (grad * step).sum(), rtol=1e-5, atol=1e-10)


@pytest.mark.parametrize("shape", [(200, 24), (3, 70, 24), (2, 2, 60, 24), (5, 24), (0, 24)])
def test_linear_agrees_with_pytorch(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(s, generator=generator, requires_grad=True) for s in (shape, (40, 24), (40,))]
    ours, theirs = linear(*inputs), F.linear(*inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    weights = torch.randn(theirs.shape, generator=generator)
    pairs = zip(*(torch.autograd.grad(y, inputs, weights) for y in (ours, theirs)), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_dropout_rate_and_scale() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dropped = drop(torch.ones(400_001), 0.1)
        again = drop(torch.ones(400_001), 0.1)
    # 400,001 coins: the rate's standard error is 0.0005.
    assert abs(float((dropped == 0).float().mean()) - 0.1) < 0.0025
    assert abs(float(dropped.mean()) - 1) < 0.003 and not torch.equal(dropped, again)
    assert drop(dropped, 0.0) is dropped


def test_dropout_acts_in_training_only(golden: dict[str, torch.Tensor]) -> None:
    model = fill_golden(build(dropout=0.5))
    close(model(golden["x"], golden["sigma"]), golden["mdlm_sc-1"])
    model.train()
    assert (model(golden["x"], golden["sigma"]) - golden["mdlm_sc-1"]).abs().max() > 0.01


def test_fresh_model_predicts_uniformly_and_repeats() -> None:
    models = []
    for _ in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            models.append(build(mask_noise=RAND))
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))
    x = torch.randint(0, 51, (2, 16), generator=torch.Generator().manual_seed(0))
    assert torch.equal(models[0](x, None, torch.zeros_like(x)), torch.zeros(2, 16, 51))
    assert abs(float(models[0].blocks[0].attn_qkv.weight.detach().std()) - 0.02) < 0.001


def test_rotary_tables_grow() -> None:
    rotary = Rotary(8, 4)
    short, low = rotary(3, torch.float32), rotary(4, torch.bfloat16)
    long = rotary(9, torch.float32)
    assert all(torch.equal(a, b[:3]) for a, b in zip(short, long, strict=True))
    assert torch.equal(rotary(9, torch.bfloat16)[0][:4], low[0])
    assert list(rotary.state_dict()) == ["inv_freq"]


def test_inference_mode_first_then_training(golden: dict[str, torch.Tensor]) -> None:
    model = fill_golden(build())
    with torch.inference_mode():
        model(golden["x"], None)
    model(golden["x"], None).sum().backward()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"n_heads": 5}, "model.hidden_size"),
        ({"dropout": 1.0}, "model.dropout"),
        ({"mask_id": 51}, "mask_id"),
        ({"causal": True, "mask_noise": RAND}, "mask_noise"),
        ({"n_blocks": 0}, "model.n_blocks"),
    ],
)
def test_wrong_settings_are_named(changes: dict, key: str) -> None:
    with pytest.raises(ValueError, match=f"^{key}="):
        build(**changes)


def test_precision_names() -> None:
    assert Precision.resolve("32", "cpu") == Precision.resolve(32, "cuda") == Precision(None)
    assert Precision.resolve("bf16-mixed", "cpu") == Precision(torch.bfloat16)
    assert Precision.resolve("bf16", "cpu") == Precision(torch.bfloat16)
    assert str(Precision.resolve("auto", "cpu")) in {"32", "bf16"} and Precision().dtype == torch.float32
    assert Precision.resolve("auto", "mps") == Precision(None)
    with pytest.raises(ValueError, match="^trainer.precision=16: "):
        Precision.resolve("16", "cpu")
