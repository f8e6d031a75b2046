"""Models with random weights, and whole optimizer steps over random ids, for the benchmarks here."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
from omegaconf import DictConfig  # noqa: E402

from algo import ALGORITHMS  # noqa: E402
from config.cli import compose_config  # noqa: E402
from dataloader import get_tokenizer  # noqa: E402
from optimizers import adamw  # noqa: E402
from trainer_base import TrainerBase  # noqa: E402


def configuration(words: Sequence[str], vocab: int) -> DictConfig:
    """The configuration of a command line over a vocabulary of ``vocab`` ids, the mask included."""
    data = ["data=synthetic-align", f"data.vocab_size={vocab - 1}", "wandb=null"]
    return compose_config([*data, *words], warn=False)


class Training:
    """Optimizer steps as training makes them: loss, backward, clipping, AdamW, averages."""

    def __init__(self, cfg: DictConfig, device: str = "cpu") -> None:
        self.module: TrainerBase = ALGORITHMS[cfg.algo.name](cfg, get_tokenizer(cfg)).to(device).train()
        self.optimizer = adamw(self.module.trainable(), dict(cfg.optim))
        self.rows, self.length, self.device = cfg.loader.global_batch_size, cfg.model.length, device

    @torch.no_grad()
    def fill_zeros(self) -> None:
        """Draw those weights, the same on every device, that a fresh network has at zero."""
        generator = torch.Generator().manual_seed(0)
        for parameter in self.module.trainable():
            if not parameter.any():
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))

    def batch(self, step: int) -> dict[str, torch.Tensor]:
        """Random ids, the same on every device."""
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(self.module.vocab_size - 1, (self.rows, self.length), generator=generator)
        mask = torch.ones_like(ids, dtype=torch.bool)
        batch = {"input_ids": ids, "attention_mask": mask, "row": torch.arange(self.rows)}
        return {name: value.to(self.device) for name, value in batch.items()}

    def loss(self, step: int) -> torch.Tensor:
        """Of one batch, 0-d, with its graph."""
        return self.module.loss(self.batch(step), step=step, num_rows=self.rows, training=True).loss

    def step(self, step: int) -> torch.Tensor:
        """A whole optimizer step; its loss."""
        loss = self.loss(step)
        loss.backward()
        parameters = self.module.trainable()
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        torch.nn.utils.clip_grads_with_norm_(parameters, 1.0, norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.module.ema is not None:
            self.module.ema.update()
        return loss.detach()
