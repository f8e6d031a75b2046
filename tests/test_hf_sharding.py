"""Pretrained models in shards and with blocks computed twice: the same network, on one process and on two."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from test_hf import ids, padded_batch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from two_devices import TwoProcesses

from config.cli import compose_config
from models.dit import MaskNoiseConfig
from models.hf import HfBackbone, HfConfig
from models.lora import LoraConfig
from models.sharding import copy_weights, shard, whole, whole_copy
from tasks import MODES
from tests.pretrained import CONFIGS, save, text

KINDS = ["bert", "modernbert"]


def build(folder: str, lora: bool = False) -> HfBackbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = HfConfig(
            25, 24, 16, n_blocks=2, n_heads=2, length=12, dropout=0.0, mask_noise=MaskNoiseConfig("rand", 4),
            path=folder, lora=LoraConfig(2, 4.0) if lora else None,
        )  # fmt: skip
        network = HfBackbone(config).train()
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return network


def gradients(network: HfBackbone) -> dict[str, torch.Tensor]:
    """Of a loss that runs the head outside, on padded rows."""
    network.zero_grad()
    x = ids(4)
    with network.attending(padded_batch()["attention_mask"]):
        features = network.body(x, None, torch.zeros_like(x))
        head = network.head
        torch.nn.functional.linear(features, head.weight, head.bias).square().mean().backward()
    return {name: whole(p.grad) for name, p in network.named_parameters() if p.grad is not None}


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("lora", [False, True], ids=["all", "adapters"])
@pytest.mark.parametrize("kind", KINDS)
def test_shards_are_the_same_network(kind: str, lora: bool, mesh: DeviceMesh, tmp_path: Path) -> None:
    folder = save(tmp_path, kind)
    plain, sharded = build(folder, lora), build(folder, lora)
    shard(sharded, mesh)
    assert [*plain.state_dict()] == [*sharded.state_dict()]
    expected = gradients(plain)
    found = gradients(sharded)
    assert found.keys() == expected.keys() and expected
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6, msg=name)
    copied = whole_copy(sharded)
    x = ids(4)
    assert torch.equal(copied(x, None, torch.zeros_like(x)), plain(x, None, torch.zeros_like(x)))
    copy_weights(sharded, copied)


@pytest.mark.parametrize("kind", CONFIGS)
def test_blocks_computed_twice_give_the_same_gradients(kind: str, tmp_path: Path) -> None:
    network = build(save(tmp_path, kind))
    expected = gradients(network)
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    network.checkpointing = True
    # Hooks of the block itself stand outside of what transformers computes again.
    inner = next(part for part in network.blocks[0].modules() if isinstance(part, torch.nn.Linear))
    inner.register_forward_pre_hook(count)
    for name, value in gradients(network).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7, msg=name)
    assert calls == 2


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    folder, words = save(tmp_path / "m", "modernbert"), text(tmp_path)

    def command(name: str) -> list[str]:
        return [
            "model=hf", f"model.path={folder}", "model.length=12", f"data.train={words}",
            f"data.valid={words}", f"data.cache_dir={tmp_path}/cache", "trainer.accelerator=cpu",
            "trainer.precision=32", "wandb=null",
            "trainer.enable_progress_bar=False", "loader.num_workers=0", "loader.global_batch_size=8",
            "trainer.max_steps=2", "trainer.val_check_interval=2", "trainer.num_sanity_val_steps=0",
            "eval.generate_samples=False", "training.ema=0.5", "algo=imdm", "optim.lr=1e-2",
            "lr_scheduler.num_warmup_steps=0", "training.activation_checkpointing=True", "data.wrap=False",
            f"checkpointing.save_dir={tmp_path}/{name}",
        ]  # fmt: skip

    cfg = compose_config([*command("one"), "strategy=single_device"], warn=False)
    one = MODES["train"](cfg)
    two = TwoProcesses(tmp_path / "two", {"fsdp": [*command("fsdp"), "strategy=fsdp"]})
    two.finish(200)
    found = two.given("fsdp")[0]["result"]
    assert found["val/nll"] == pytest.approx(one["val/nll"], rel=1e-4)
    files = [
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=False)
        for name in ("one", "fsdp")
    ]
    assert files[0]["state_dict"].keys() == files[1]["state_dict"].keys()
    for name, value in files[0]["state_dict"].items():
        torch.testing.assert_close(files[1]["state_dict"][name], value, rtol=1e-3, atol=1e-4, msg=name)
