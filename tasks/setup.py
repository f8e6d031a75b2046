"""What the modes share: the algorithm with its weights, Lightning's Trainer, where results go."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from algo import ALGORITHMS
from callbacks.checkpoints import AtomicCheckpointIO
from dataloader import get_tokenizer
from models.checkpoint import load_ema, load_weights, read_checkpoint
from models.precision import allow_tf32
from trainer_base import TrainerBase
from utils import get_logger, user_error

log = get_logger("setup")


def build_algorithm(cfg: DictConfig) -> TrainerBase:
    """The algorithm of ``cfg.algo`` with fresh weights."""
    return ALGORITHMS[cfg.algo.name](cfg, get_tokenizer(cfg))


def build_from_checkpoint(cfg: DictConfig, path: str, *, key: str, use_ema: bool) -> TrainerBase:
    """The algorithm of ``cfg.algo`` with the weights (and the EMA, where asked for) of a checkpoint.

    Args:
        path: a Lightning .ckpt; it is read first, so that a wrong path is told before anything is made.
        key: the configuration key that named it, for error messages.
        use_ema: the checkpoint's averaged weights are wanted; without them that is an error.
    """
    checkpoint = read_checkpoint(path, key=key)
    module = build_algorithm(cfg)
    load_weights(module, checkpoint["state_dict"], key=key, path=path)
    if use_ema and module.ema is not None:
        load_ema(module.ema, checkpoint, key=key, path=path)
    return module


def build_evaluated(cfg: DictConfig) -> TrainerBase:
    """The algorithm with the weights of ``eval.checkpoint_path``, ready to evaluate."""
    key, use_ema = "eval.checkpoint_path", not cfg.eval.disable_ema
    return build_from_checkpoint(cfg, cfg.eval.checkpoint_path, key=key, use_ema=use_ema).eval()


def build_trainer(
    cfg: DictConfig, *, callbacks: list[Callback], logger: Logger | bool | list[Logger], **overrides: Any
) -> L.Trainer:
    """Lightning's Trainer from ``trainer.*``; precision is the network's own affair (models/precision.py)."""
    settings = OmegaConf.to_container(cfg.trainer, resolve=True)
    settings.pop("precision")
    allow_tf32()
    _quiet_lightning()
    settings.update(overrides)
    if cfg.strategy.name == "single_device":
        settings.update(devices=1, num_nodes=1)
    try:
        return L.Trainer(
            **settings,
            precision="32-true",
            callbacks=callbacks,
            logger=logger,
            plugins=[AtomicCheckpointIO()],
            use_distributed_sampler=False,
            enable_model_summary=False,
            strategy="auto",  # DDP where there are several devices
        )
    except (L.pytorch.utilities.exceptions.MisconfigurationException, ValueError) as error:
        raise ValueError(f"trainer: {' '.join(str(error).split())}") from error


def result_path(cfg: DictConfig) -> Path:
    """Where an evaluation writes its JSON result; its parent folders are made on writing."""
    path = Path(cfg.eval.generated_samples_path)
    if path.is_dir():
        raise user_error(
            "eval.generated_samples_path", str(path), "is a folder", "give the name of a .json file"
        )
    return path


def _quiet_lightning() -> None:
    """Keep Lightning's warnings, drop its chatter and a deprecation inside its own code."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
    # So it is with every run that resumes.
    warnings.filterwarnings("ignore", message=r"Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message=r"The '.*_dataloader' does not have many workers")
