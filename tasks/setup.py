"""What the modes share: the algorithm with its weights, Lightning's Trainer, where results go."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from omegaconf import DictConfig, OmegaConf

from algo import ALGORITHMS
from callbacks.checkpoints import AtomicCheckpointIO
from dataloader import get_tokenizer
from errors import ABSENT, UserError
from models.attention_backends import check_attention
from models.checkpoint import averaged_weights, load_ema, load_weights, refuse_not_finite, restart_ema
from models.compilation import check_compiler
from models.hf import refuse_other_base
from models.precision import allow_tf32
from tasks.strategies import strategy_for
from tasks.weights import (
    advice,
    read_source,
    recorded_settings,
    refuse_other_heads,
    refuse_other_process,
    refuse_unknown_algorithm,
    warn_of_differences,
)
from trainer_base import TrainerBase
from utils import get_logger

log = get_logger("setup")

FINETUNE = "training.finetune_path"


def build_algorithm(cfg: DictConfig) -> TrainerBase:
    """The algorithm of ``cfg.algo`` with fresh weights.

    Raises:
        ValueError: ``model.attention`` or ``model.compile`` asks for what this machine does not have.
    """
    module = ALGORITHMS[cfg.algo.name](cfg, get_tokenizer(cfg))
    _check_kernels(cfg, module)
    return module


def _check_kernels(cfg: DictConfig, module: TrainerBase) -> None:
    device, network = evaluation_device(cfg).type, module.backbone
    if cfg.model.compile:
        check_compiler(device)
    way = check_attention(
        cfg.model.attention,
        device,
        network.precision.dtype,
        cfg.model.hidden_size // cfg.model.n_heads,
        capped=network.config.score_cap > 0,
        training=cfg.mode == "train",
    )
    if way != "sdpa":
        log.info("attention: %s", way)


def build_from_checkpoint(cfg: DictConfig, path: str, *, key: str, use_ema: bool) -> TrainerBase:
    """The algorithm of ``cfg.algo`` with the weights of a checkpoint.

    Args:
        path: a Lightning .ckpt, a folder or a hub name of a Hugging Face model; it is read first, so that a
            wrong path is told before anything is made.
        key: the configuration key that named it, for error messages.
        use_ema: start from the averages: they become the weights, and the EMA goes on from its state. Without
            them that is an error (a folder's weights count as averages). Otherwise the raw weights are taken,
            and averaging starts anew from them.
    """
    return _build(cfg, read_source(path, key=key), path, key, use_ema)


def _build(cfg: DictConfig, checkpoint: dict[str, Any], path: str, key: str, use_ema: bool) -> TrainerBase:
    recorded = recorded_settings(checkpoint)
    if key != FINETUNE:
        refuse_unknown_algorithm(cfg, recorded, key=key, path=path)
    module = build_algorithm(cfg)
    weights, averaged = checkpoint["state_dict"], use_ema and "folder_settings" not in checkpoint
    if averaged:
        weights = averaged_weights(checkpoint, key=key, path=path)
    refuse_other_base(module.backbone, checkpoint, key=key, path=path)
    load_weights(module, weights, key=key, path=path, hint=advice(module, recorded))
    refuse_not_finite(weights, key=key, path=path)
    refuse_other_heads(cfg, recorded, key=key, path=path)
    if key != FINETUNE:  # a training may well change what it starts from
        refuse_other_process(module, recorded, key=key, path=path)
        warn_of_differences(cfg, recorded, path)
    if module.ema is not None:
        if averaged:
            load_ema(module.ema, checkpoint, key=key, path=path)
        else:
            restart_ema(module.ema)
    if use_ema and not averaged and key == FINETUNE:
        log.warning("%s: a folder holds no EMA; its weights serve as the averages", path)
    return module


def build_evaluated(cfg: DictConfig) -> TrainerBase:
    """The algorithm with the weights of ``eval.checkpoint_path``, ready to evaluate.

    The weights of a folder are taken as they are, whatever ``eval.disable_ema`` says.
    """
    key, path = "eval.checkpoint_path", cfg.eval.checkpoint_path
    checkpoint = read_source(path, key=key)
    module = _build(cfg, checkpoint, path, key, use_ema=not cfg.eval.disable_ema and cfg.training.ema > 0)
    if "ema" not in checkpoint:
        module.ema = None
    return module.eval()


def build_trainer(
    cfg: DictConfig,
    *,
    callbacks: list[Callback],
    logger: Logger | bool | list[Logger],
    world_size: int = 1,
    **overrides: Any,
) -> L.Trainer:
    """Lightning's Trainer from ``trainer.*`` for ``world_size`` processes (tasks/processes.py).

    Precision is the network's own affair (models/precision.py).
    """
    settings = OmegaConf.to_container(cfg.trainer, resolve=True)
    settings.pop("precision")
    allow_tf32()
    quiet_lightning()
    settings.update(overrides)
    if cfg.strategy.name == "single_device":
        settings.update(devices=1, num_nodes=1)
    try:
        return L.Trainer(
            **settings,
            precision="32-true",
            callbacks=callbacks,
            logger=logger,
            plugins=[AtomicCheckpointIO(), *cluster_plugins()],
            use_distributed_sampler=False,
            enable_model_summary=False,
            strategy=strategy_for(cfg, world_size),
            inference_mode=cfg.strategy.name != "fsdp",  # shards gathered in it could not be trained later
        )
    except (L.pytorch.utilities.exceptions.MisconfigurationException, ValueError) as error:
        raise UserError("trainer", ABSENT, " ".join(str(error).split())) from error


def cluster_plugins() -> list[SLURMEnvironment]:
    """On SLURM without Lightning's own requeueing, whose checkpoint would win over last.ckpt ever after:
    callbacks/stopping.py and scripts/slurm.sh do that."""
    if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return []
    return [SLURMEnvironment(auto_requeue=False)]


def evaluation_device(cfg: DictConfig) -> torch.device:
    """Where the modes that use one device compute."""
    use_cuda = torch.cuda.is_available() and cfg.trainer.accelerator != "cpu"
    return torch.device("cuda" if use_cuda else "cpu")


def result_path(cfg: DictConfig) -> Path:
    """Where an evaluation writes its JSON result; its parent folders are made on writing."""
    path = Path(cfg.eval.generated_samples_path)
    if path.is_dir():
        raise UserError(
            "eval.generated_samples_path", str(path), "is a folder", "give the name of a .json file"
        )
    return path


def quiet_lightning() -> None:
    """Keep Lightning's warnings, drop its chatter and a deprecation inside its own code."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
    # So it is with every run that resumes.
    warnings.filterwarnings("ignore", message=r"Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message=r"The '.*_dataloader' does not have many workers")
