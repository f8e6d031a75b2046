"""Weights in shards (FSDP2, ``torch.distributed.fsdp.fully_shard``): made, made whole for a while, gathered.

Every block is a unit whose weights exist whole only while it computes. All else (embeddings, time, final
norm, head) is the root unit: whole from the beginning of ``DiT.body`` to the end of the backward pass, so
that whoever got features can also run the head, in chunks or not. What is no shard stays as it is.

Weights, gradients, moments and averages are gathered and reduced in float32, as without shards.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Leave this device its shards of the weights of ``network``, which are the same on all devices.

    Args:
        network: a ``DiT``, on its device; its parameters are replaced by others.
        mesh: all devices, in one dimension.
    """
    for block in network.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
    register_fsdp_forward_method(network, "sharded_body")


def unshard_root(network: nn.Module) -> None:
    """Make what belongs to no block whole, until the backward pass that comes is over."""
    if isinstance(network, FSDPModule):
        network.unshard()


@contextlib.contextmanager
def gathered(network: nn.Module) -> Iterator[None]:
    """Inside the block all weights are whole, and devices need not call the network equally often.

    All devices must enter; gradients cannot be taken inside.
    """
    units = [unit for unit in network.modules() if isinstance(unit, FSDPModule)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.reshard()  # what is whole already may be of weights that have changed since
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()
            unit.set_reshard_after_forward(unit is not network, recurse=False)


def local(tensor: Tensor) -> Tensor:
    """This device's shard, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor; all devices must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole ``tensor``, the same on all devices, in shards like those of ``like``."""
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor):
        return tensor
    tensor = tensor.detach().to(like.device)
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def collected(value: Any) -> Any:
    """``value`` with all tensors in it whole, for a file: on the first device, in the memory of its host.

    All devices must ask; on the others shards are left out (empty tensors stand there).
    """
    if isinstance(value, DTensor):
        tensor = value.detach().full_tensor()
        return tensor.cpu() if dist.get_rank() == 0 else tensor.new_empty(0)
    if isinstance(value, dict):
        return {name: collected(part) for name, part in value.items()}
    if isinstance(value, list):
        return [collected(part) for part in value]
    return value


@torch.no_grad()
def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Give ``target``, which is whole, the weights of ``source``; all devices must ask."""
    own = target.state_dict()
    for name, value in source.state_dict().items():
        own[name].copy_(whole(value))


def whole_copy(network: nn.Module, *, shares_frozen: bool = False) -> nn.Module:
    """A copy of a network that is whole on every device; all of them must ask.

    Args:
        shares_frozen: weights that are not trained are the same tensors in the copy (not those of shards).
    """
    if not isinstance(network, FSDPModule):
        # What is frozen on both sides is there once: behind adapters that is nearly everything.
        frozen = {id(p): p for p in network.parameters() if not p.requires_grad} if shares_frozen else {}
        return copy.deepcopy(network, frozen)
    with torch.random.fork_rng(devices=[]):
        twin = _plain_class(network)(network.config)
    for mine, theirs in zip(twin.modules(), network.modules(), strict=True):
        for name, value in vars(theirs).items():  # precision and the like; not what PyTorch keeps there
            if name in vars(mine) and not name.startswith("_"):
                setattr(mine, name, value)
    copy_weights(network, twin)
    return twin.to(next(itertools.chain(network.buffers(), network.parameters())).device)


def _plain_class(network: nn.Module) -> type[nn.Module]:
    """The class that ``fully_shard`` made a subclass of."""
    return next(kind for kind in type(network).__mro__[1:] if not issubclass(kind, FSDPModule))
