"""Norms of the gradients of parts of the network: which part learns, and which one explodes."""

from __future__ import annotations

import re

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from models.ema import is_mask_noise
from models.sharding import local
from optimizers import WatchedModule

_BLOCK = re.compile(r"\.blocks\.(\d+)\.")
_PARTS = {"vocab_embed.": "embedding", "sigma_map.": "time", "output_layer.": "output"}


def part_of(name: str) -> str:
    """The part of the network that a parameter belongs to, by its name in checkpoints: embedding, mask_noise,
    time, block_00, block_01, ..., output, or the beginning of the name."""
    if is_mask_noise(name):
        return "mask_noise"
    if block := _BLOCK.search(name):
        return f"block_{int(block[1]):02d}"
    return next((part for start, part in _PARTS.items() if f".{start}" in name), name.split(".")[0])


class GradRecord(Callback):
    """Logs ``train/grad_norm/<part>``: of the whole batch, of all devices, before clipping.

    The squares of all of them add up to that of train/grad_norm.

    Args:
        every: optimizer steps between two records; None: as many as between lines of the log.
    """

    def __init__(self, every: int | None = None) -> None:
        self.every = every

    def on_before_optimizer_step(
        self, trainer: L.Trainer, module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if (trainer.global_step + 1) % (self.every or trainer.log_every_n_steps):
            return
        assert isinstance(module, WatchedModule)
        norms = gradient_norms(module)
        log_now = {f"train/grad_norm/{part}": norm for part, norm in norms.items()}
        for logger in trainer.loggers:  # also between lines of the log; step as of Lightning's other lines
            logger.log_metrics(log_now, step=trainer.global_step)


def gradient_norms(module: WatchedModule) -> dict[str, float]:
    """The norm of the gradients of every part, in the order of the network; all devices must ask."""
    found: dict[str, list[Tensor]] = {}
    is_sharded = False
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            own = local(parameter.grad)
            is_sharded |= own is not parameter.grad
            found.setdefault(part_of(name), []).append(own)
    squares = torch.stack(
        [torch.stack(torch._foreach_norm(own)).double().square().sum() for own in found.values()]
    )
    if is_sharded:
        squares = module.over_devices(squares)
    return dict(zip(found, squares.sqrt().tolist(), strict=True))
