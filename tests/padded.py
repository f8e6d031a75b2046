"""Tiny runs on padded data: rows of very different lengths, through the whole program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from config.cli import compose_config
from tasks import MODES

LENGTH, STEPS = 16, 3
# A large eps makes AdamW's step nearly linear in the gradient: rounding is not blown up where that vanishes.
SETTINGS = {
    "data": "lm1b",
    "data.tokenizer_name_or_path": "text8",
    "model": "synthetic",
    "model.length": LENGTH,
    "algo": "mdlm",
    "model.hidden_size": 32,
    "model.cond_dim": 8,
    "model.n_blocks": 1,
    "model.n_heads": 2,
    "model.noise_dim": 8,
    "model.dropout": 0,
    "loader.global_batch_size": 8,
    "loader.num_workers": 0,
    "trainer.accelerator": "cpu",
    "trainer.precision": 32,
    "trainer.num_sanity_val_steps": 0,
    "trainer.enable_progress_bar": False,
    "trainer.log_every_n_steps": 1,
    "trainer.max_steps": STEPS,
    "trainer.val_check_interval": 100,
    "trainer.gradient_clip_val": 0.1,
    "optim.lr": 1,
    "optim.eps": 1,
    "lr_scheduler.num_warmup_steps": 2,
    "training.ema": 0.9,
    "eval.generate_samples": False,
    "wandb": "null",
}


def write_text(folder: Path) -> Path:
    """60 documents of very different lengths, a row each; returns the folder."""
    (folder / "text.txt").write_text("\n".join("abcd"[n % 4] * (1 + n * n % 14) for n in range(60)))
    return folder


def words(folder: Path, *overrides: str) -> list[str]:
    """SETTINGS and others as they are typed."""
    text = folder / "text.txt"
    where = {"data.train": text, "data.valid": text, "data.cache_dir": folder / "cache"}
    return [*(f"{key}={value}" for key, value in (SETTINGS | where).items()), *overrides]


def run(folder: Path, name: str, *overrides: str) -> dict[str, Any]:
    """Train in ``folder / name``; returns the result."""
    cfg = compose_config(
        words(folder, f"name={name}", f"checkpointing.save_dir={folder}/{name}", *overrides), warn=False
    )
    return MODES[cfg.mode](cfg)


def weights(run_folder: Path) -> dict[str, torch.Tensor]:
    """Weights and averages of the last checkpoint."""
    checkpoint = read(run_folder)
    averages = dict(zip(checkpoint["ema"]["names"], checkpoint["ema"]["shadow_params"], strict=True))
    return {**checkpoint["state_dict"], **{f"ema.{name}": value for name, value in averages.items()}}


def read(run_folder: Path) -> dict[str, Any]:
    """The last checkpoint."""
    return torch.load(run_folder / "checkpoints" / "last.ckpt", weights_only=True)
