"""Weights in shards, and blocks computed twice, are the same network: in a group of one process.

Two processes: tests/test_distributed.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from callbacks.grad_record import part_of
from models.dit import BackboneConfig, DiT, MaskNoiseConfig
from models.ema import ExponentialMovingAverage
from models.precision import Precision
from models.sharding import collected, copy_weights, gathered, local, shard, shard_like, whole, whole_copy

B, L, V = 3, 8, 11
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def build(dropout: float = 0.0, device: str = "cpu") -> DiT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        noise = MaskNoiseConfig("rand", 4)
        network = DiT(
            BackboneConfig(
                V, V - 1, 32, 8, n_blocks=2, n_heads=2, length=L, dropout=dropout, mask_noise=noise
            )
        )
        for parameter in network.parameters():
            parameter.data.normal_(0, 0.2)
    return network.to(device)


def batch(device: str) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(V, (B, L), generator=generator)
    seeds = torch.randint(2**60, (B, L), generator=generator)
    return ids.to(device), torch.rand(B, generator=generator).to(device), seeds.to(device)


def loss(network: DiT, *, twice: bool = False, embed: bool = False) -> Tensor:
    """What algorithms do: the head outside, the body twice (D3PM), embeddings before the body (Duo)."""
    ids, sigma, seeds = batch(str(next(network.parameters()).device))
    given = {"embedded": network.embedding[ids].tanh()} if embed else {"mask_seeds": seeds}
    features = network.body(ids, sigma, **given)
    head = network.head
    value = torch.nn.functional.linear(features, head.weight, head.bias).square().mean()
    return value + network.body(ids, None, seeds).mean() if twice else value


def gradients(network: DiT) -> dict[str, Tensor]:
    return {name: whole(p.grad) for name, p in network.named_parameters() if p.grad is not None}


@pytest.fixture
def mesh(request: pytest.FixtureRequest) -> Iterator[DeviceMesh]:
    device = request.node.callspec.params["device"]
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield init_device_mesh(device, (1,))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", [{}, {"twice": True}, {"embed": True}], ids=["once", "twice", "embed"])
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_same_loss_and_gradients(mesh: DeviceMesh, way: dict[str, bool], bf16: bool, device: str) -> None:
    plain, sharded = build(device=device), build(device=device)
    shard(sharded, mesh)
    assert all(isinstance(p, DTensor) for p in sharded.parameters())
    assert [*plain.state_dict()] == [*sharded.state_dict()]
    for network in (plain, sharded):
        network.precision = Precision.resolve("bf16" if bf16 else "32")
        for _ in range(2):  # accumulated
            loss(network, **way).backward()
    expected = gradients(plain)
    assert gradients(sharded).keys() == expected.keys()
    for name, value in gradients(sharded).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("device", DEVICES)
def test_evaluation_with_averages(mesh: DeviceMesh, device: str) -> None:
    """Shards change places with their averages, whole weights follow, and all is as before afterwards."""
    networks, averages = [build(device=device) for _ in range(2)], []
    for network in networks:
        ema = ExponentialMovingAverage(network.named_parameters(), 0.5)
        if network is networks[1]:
            shard(network, mesh)
            ema.follow_shards(network.named_parameters())
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(1.5)
        ema.update()
        averages.append(ema)
    plain, sharded = networks
    with torch.no_grad():
        weights = loss(plain)
        torch.testing.assert_close(loss(sharded), weights)  # leaves the root whole
        with averages[0].applied(plain):
            expected = loss(plain)
        with averages[1].applied(sharded), gathered(sharded):
            torch.testing.assert_close(loss(sharded), expected)
            with averages[1].applied(sharded):
                torch.testing.assert_close(loss(sharded), expected)
        assert not torch.allclose(weights, expected)
    loss(sharded).backward()
    loss(plain).backward()
    for name, value in gradients(sharded).items():
        torch.testing.assert_close(value, gradients(plain)[name], rtol=1e-4, atol=1e-6, msg=name)
    states = [collected(ema.state_dict()) for ema in averages]
    assert states[0]["names"] == states[1]["names"]
    for one, other in zip(*(state["shadow_params"] for state in states), strict=True):
        assert not isinstance(other, DTensor)
        torch.testing.assert_close(one.cpu(), other)


@pytest.mark.parametrize("device", DEVICES)
def test_copies_and_files(mesh: DeviceMesh, device: str) -> None:
    plain, sharded = build(device=device), build(device=device)
    sharded.precision = Precision.resolve("bf16")
    shard(sharded, mesh)
    before = torch.get_rng_state()
    twin = whole_copy(sharded)
    assert torch.equal(before, torch.get_rng_state())
    assert not isinstance(twin, FSDPModule) and twin.precision is sharded.precision
    assert loss(twin).device.type == device
    files = [collected(network.state_dict()) for network in (sharded, twin, plain)]
    for name, value in files[2].items():
        assert torch.equal(files[0][name].cpu(), value.cpu()) and torch.equal(files[1][name], value), name
    with torch.no_grad():
        for parameter in sharded.parameters():
            local(parameter).add_(1)
    copy_weights(sharded, twin)
    for name, value in twin.named_parameters():
        assert torch.equal(value, plain.get_parameter(name) + 1), name
    some = sharded.blocks[0].attn_qkv.weight
    assert torch.equal(whole(shard_like(plain.blocks[0].attn_qkv.weight + 1, some)), whole(some))


# Blocks computed twice ----------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("is_sharded", [False, True], ids=["whole", "sharded"])
def test_activation_checkpointing(mesh: DeviceMesh, is_sharded: bool, device: str) -> None:
    """The same dropout in both passes: the same gradients, bit by bit on a CPU. And far less is kept."""
    kept, found = [], []
    for again in (False, True):
        network = build(dropout=0.3, device=device).train()
        network.checkpointing = again
        if is_sharded:
            shard(network, mesh)
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(3)
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                value = loss(network)
            torch.rand(5, device=device)  # the generator goes on before the blocks are computed again
            value.backward()
        kept.append(sum(sizes.values()))
        found.append(gradients(network))
    for name, gradient in found[0].items():
        torch.testing.assert_close(
            found[1][name],
            gradient,
            rtol=0 if device == "cpu" else 1e-5,
            atol=0 if device == "cpu" else 1e-7,
            msg=name,
        )
    if not is_sharded:  # beside activations there are the weights
        weights = sum(p.numel() * 4 for p in network.parameters())
        assert kept[1] < kept[0] - weights / 4 or kept[1] < 0.6 * kept[0]


# Parts of the network -----------------------------------------------------------------------------


def test_every_parameter_belongs_to_a_part() -> None:
    parts = {}
    for name, _ in build().named_parameters():
        parts.setdefault(part_of(f"backbone.{name}"), []).append(name)
    assert [*parts] == ["embedding", "mask_noise", "time", "block_00", "block_01", "output"]
    assert parts["embedding"] == ["vocab_embed.embedding"] and len(parts["mask_noise"]) == 3
    assert all(name.startswith("blocks.1.") for name in parts["block_01"])
