"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685) of linear layers, saved as ``peft`` names them.

Shapes: I inputs, O outputs, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from errors import UserError

AUTO = "auto"


@dataclass(frozen=True)
class LoraConfig:
    """Adapters of a frozen network.

    Args:
        rank: R.
        alpha: the update is scaled by alpha / R.
        targets: "auto" for all linear layers of the blocks, or names of layers joined by commas.
    """

    rank: int
    alpha: float
    targets: str = AUTO


class LoraLinear(nn.Module):
    """A frozen linear layer W and its trained update: (W + alpha / R * B A) x.

    Args:
        base_layer: the layer, I -> O; it is frozen here.
        config: rank and scale.
    """

    def __init__(self, base_layer: nn.Linear, config: LoraConfig) -> None:
        super().__init__()
        self.scale = config.alpha / config.rank
        self.base_layer = base_layer.requires_grad_(False)
        device = base_layer.weight.device
        self.lora_A = nn.Linear(base_layer.in_features, config.rank, bias=False, device=device)
        self.lora_B = nn.Linear(config.rank, base_layer.out_features, bias=False, device=device)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)  # at the start nothing changes

    @property
    def weight(self) -> Tensor:
        """The weight of the layer without its update; some models look at its dtype."""
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        """The bias of the layer."""
        return self.base_layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O), in the dtype that the layer alone gives."""
        out = self.base_layer(x)
        update = F.linear(F.linear(x.to(self.lora_A.weight.dtype), self.lora_A.weight), self.lora_B.weight)
        return out + (self.scale * update).to(out.dtype)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The layer with its update inside."""
        update = self.scale * self.lora_B.weight @ self.lora_A.weight
        self.base_layer.weight += update.to(self.base_layer.weight.dtype)
        return self.base_layer


def adapt(root: nn.Module, blocks: nn.ModuleList, config: LoraConfig) -> int:
    """Put adapters around linear layers of ``blocks``, which are inside ``root``; freezes all of ``root``.

    Returns:
        The number of layers.

    Raises:
        UserError: no layer has such a name.
    """
    root.requires_grad_(False)
    wanted = None if config.targets == AUTO else {name.strip() for name in config.targets.split(",")}
    found = [
        (module, name)
        for module in blocks.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.Linear) and (wanted is None or name in wanted)
    ]
    if not found:
        names = {n.split(".")[-1] for n, m in blocks.named_modules() if isinstance(m, nn.Linear)}
        hint = f"use auto, or some of {', '.join(sorted(names))}"
        raise UserError("lora.targets", config.targets, "no linear layer of the blocks has such a name", hint)
    for module, name in found:
        setattr(module, name, LoraLinear(getattr(module, name), config))
    return len(found)


def merge(root: nn.Module) -> nn.Module:
    """``root`` with every update inside its layer, and no adapter left."""
    for module, name, layer in list(_adapted(root)):
        setattr(module, name, layer.merged())
    return root


def adapter_weights(root: nn.Module) -> dict[str, Tensor]:
    """The adapters inside ``root`` under the names that ``peft`` gives them in adapter_model.safetensors."""
    found = {}
    for name, module in root.named_modules():
        if isinstance(module, LoraLinear):
            for part in ("lora_A", "lora_B"):
                found[f"base_model.model.{name}.{part}.weight"] = getattr(module, part).weight.detach()
    return found


def adapted_names(root: nn.Module) -> list[str]:
    """The full names of the layers with adapters: short ones could mean others elsewhere."""
    return sorted(name for name, module in root.named_modules() if isinstance(module, LoraLinear))


def _adapted(root: nn.Module) -> Iterator[tuple[nn.Module, str, LoraLinear]]:
    for module in root.modules():
        for name, child in module.named_children():
            if isinstance(child, LoraLinear):
                yield module, name, child
