"""The average of weights: official numbers, a context that always restores, loading by name."""

from __future__ import annotations

import pytest
import torch
from golden_weights import load_golden
from torch import nn

from models.dit import BackboneConfig, DiT, MaskNoiseConfig
from models.ema import ExponentialMovingAverage


def make() -> tuple[nn.Module, ExponentialMovingAverage]:
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.fill_(1.0)
        model.bias.fill_(1.0)
    ema = ExponentialMovingAverage(model.named_parameters(), 0.9999)
    with torch.no_grad():
        model.weight.fill_(3.0)
    ema.update()
    return model, ema


def test_follows_the_official_numbers() -> None:
    golden = {name: torch.from_numpy(value) for name, value in load_golden("ema").items()}
    parameters = [nn.Parameter(golden["init_0"].clone()), nn.Parameter(golden["init_1"].clone())]
    frozen = nn.Parameter(torch.ones(1), requires_grad=False)
    ema = ExponentialMovingAverage([("a", parameters[0]), ("frozen", frozen), ("b", parameters[1])], 0.9999)
    for step in range(1, 6):
        for i, p in enumerate(parameters):
            p.data.copy_(golden[f"params_{step}_{i}"])
        ema.update()
        for i, average in enumerate(ema.state_dict()["shadow_params"]):
            expected = golden[f"shadow_num_updates_True_{step}_{i}"]
            torch.testing.assert_close(average, expected, rtol=1e-5, atol=2e-5)
    assert ema.state_dict()["num_updates"] == 5 and len(ema.state_dict()["shadow_params"]) == 2


def test_small_decay_is_the_limit() -> None:
    p = nn.Parameter(torch.zeros(1))
    ema = ExponentialMovingAverage([("p", p)], 0.1)
    p.data.fill_(1.0)
    ema.update()
    # (1 + 1) / (10 + 1) = 0.18 is above 0.1.
    torch.testing.assert_close(ema.state_dict()["shadow_params"][0], torch.tensor([0.9]))
    with pytest.raises(ValueError, match="^training.ema="):
        ExponentialMovingAverage([("p", p)], 1.5)


def test_context_swaps_and_restores_also_after_an_exception() -> None:
    model, ema = make()
    parameter, average = model.weight, ema.state_dict()["shadow_params"][0].clone()
    with ema.applied(model):
        assert torch.equal(model.weight, average) and model.weight is parameter
        with ema.applied(model):
            assert torch.equal(model.weight, average)
        assert torch.equal(model.weight, average)
    assert torch.equal(model.weight, torch.full((1, 2), 3.0))
    with pytest.raises(KeyError), ema.applied(model):
        raise KeyError
    assert torch.equal(model.weight, torch.full((1, 2), 3.0))
    ema.update()
    assert torch.equal(ema.state_dict()["shadow_params"][0], average.lerp(model.weight.detach(), 1 - 3 / 12))


def test_training_goes_on_after_the_context() -> None:
    model, ema = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    with torch.inference_mode(), ema.applied(model):
        model(torch.ones(1, 2))
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    ema.update()
    assert float(model.weight.detach().max()) < 3.0


def test_state_round_trip_and_checks() -> None:
    model, ema = make()
    other = ExponentialMovingAverage(nn.Linear(2, 1).named_parameters(), 0.5)
    other.load_state_dict(ema.state_dict())
    assert other.decay == 0.9999 and other.num_updates == 1
    for a, b in zip(other.state_dict()["shadow_params"], ema.state_dict()["shadow_params"], strict=True):
        assert torch.equal(a, b)
    wrong = ExponentialMovingAverage(nn.Linear(3, 1).named_parameters(), 0.5)
    with pytest.raises(ValueError, match=r"^ema=weight: shape \(1, 2\), the model has \(1, 3\)"):
        wrong.load_state_dict(ema.state_dict())
    with pytest.raises(ValueError, match="^ema=1 averages: 2 parameters"):
        other.load_state_dict({"decay": 0.5, "num_updates": 1, "shadow_params": [torch.ones(1, 2)]})
    with pytest.raises(ValueError, match="^ema=foreign: "):
        other.load_state_dict(ema.state_dict(), names=["weight", "foreign"])
    with pytest.raises(ValueError, match="^ema=bias: missing"):
        other.load_state_dict(
            {"decay": 0.5, "num_updates": 1, "shadow_params": [torch.ones(1, 2)]}, names=["weight"]
        )
    with pytest.raises(ValueError, match="^ema=weight: the model has no such"), ema.applied(nn.Identity()):
        pass


def test_mdlm_average_goes_into_imdm_by_name() -> None:
    config = {"vocab_size": 5, "mask_id": 4, "hidden_size": 8, "cond_dim": 4, "n_blocks": 1, "n_heads": 2}
    mdlm = DiT(BackboneConfig(**config))
    imdm = DiT(BackboneConfig(**config, mask_noise=MaskNoiseConfig("rand", 3)))
    source = ExponentialMovingAverage(mdlm.named_parameters(), 0.9)
    target = ExponentialMovingAverage(imdm.named_parameters(), 0.9)
    target.load_state_dict(source.state_dict(), names=[name for name, _ in mdlm.named_parameters()])
    with source.applied(mdlm), target.applied(imdm):
        own = dict(imdm.named_parameters())
        for name, p in mdlm.named_parameters():
            assert torch.equal(own[name], p)
        assert not own["vocab_embed.imdm_mlp.2.weight"].any()
