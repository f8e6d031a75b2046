"""How Lightning's Trainer spreads a training over devices: DDP, and shards (FSDP2) by ``strategy=fsdp``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, Strategy
from omegaconf import DictConfig
from torch.distributed.device_mesh import init_device_mesh
from torch.optim import Optimizer

from models.sharding import collected, shard_like


def strategy_for(cfg: DictConfig, world_size: int) -> Strategy | str:
    """What ``strategy`` means for so many devices; one has nothing to share."""
    if world_size == 1:
        return "auto"
    if cfg.strategy.name == "fsdp" and cfg.mode == "train":
        return ShardedStrategy()
    # Buffers are constants: there is nothing to send, and no device that waits for one without a batch.
    # Gradients that are views of the buckets which are sent need their memory once.
    return DDPStrategy(forward_sync_buffers=False, gradient_as_bucket_view=True)


class ShardedStrategy(DDPStrategy):
    """Weights, gradients, moments and averages in shards, by ``torch.distributed.fsdp.fully_shard``.

    Processes, collectives and data are those of DDP, and so are the checkpoints: shards are gathered, so that
    each of both goes on from the other's files, on any number of devices. Gradients are reduced with every
    micro-batch: holding them back, as DDP does, would keep them whole.
    """

    def configure_ddp(self) -> None:
        """Shard the module, which was restored and stands on its device, before its optimizer is made."""
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        self.lightning_module.shard(mesh)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return collected(super().lightning_module_state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return collected(super().optimizer_state(optimizer))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        states = checkpoint["optimizer_states"]
        sharded = [_sharded(o, state) for o, state in zip(self.optimizers, states, strict=True)]
        super().load_optimizer_state_dict({"optimizer_states": sharded})

    def teardown(self) -> None:
        # As in DDPStrategy, but that shards stay on the devices of their mesh.
        self.cluster_environment.teardown()
        self.precision_plugin.teardown()
        self.accelerator.teardown()
        self.checkpoint_io.teardown()


def _sharded(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """``state``, which numbers the parameters in their order, with moments in shards like theirs."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    shards = {
        number: {
            name: shard_like(value, parameters[number])
            if isinstance(value, torch.Tensor) and value.shape == parameters[number].shape
            else value
            for name, value in entries.items()
        }
        for number, entries in state["state"].items()
    }
    return {**state, "state": shards}
