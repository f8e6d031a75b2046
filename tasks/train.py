"""mode=train: fit an algorithm, resume where the same command stopped, validate and sample on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from omegaconf import DictConfig, OmegaConf

from callbacks.checkpoints import checkpoint_callbacks
from callbacks.progress import StepProgressBar, Throughput
from callbacks.samples import SampleAtValidation
from dataloader import batch_sizes, get_train_dataloader, get_valid_dataloader
from models.checkpoint import read_checkpoint
from tasks.run_folder import open_run_folder
from tasks.setup import build_algorithm, build_from_checkpoint, build_trainer
from utils import get_logger, write_json

log = get_logger("train")


def train(cfg: DictConfig) -> dict[str, Any]:
    """Train to ``trainer.max_steps``; the same command again resumes from ``last.ckpt``.

    Returns (and writes to ``result.json`` of the run folder) the last value of every logged metric, the
    number of steps and the path of the last checkpoint.
    """
    folder, checkpoint = open_run_folder(cfg)
    start = cfg.training.finetune_path
    if checkpoint is None and start:
        use_ema = cfg.training.load_ema
        module = build_from_checkpoint(cfg, start, key="training.finetune_path", use_ema=use_ema)
    else:
        module = build_algorithm(cfg)
    throughput = Throughput(cfg.loader.global_batch_size * cfg.model.length)
    trainer = build_trainer(
        cfg,
        callbacks=_callbacks(cfg, folder, throughput),
        logger=_loggers(cfg, folder),
        default_root_dir=folder,
    )
    per_device, accumulate = batch_sizes(cfg, trainer.world_size)
    trainer.accumulate_grad_batches = accumulate
    start_step = (
        read_checkpoint(checkpoint, key="checkpointing.resume_ckpt_path")["global_step"] if checkpoint else 0
    )
    if start_step >= cfg.trainer.max_steps and (folder / "result.json").exists():
        log.info("%s: already trained for %d steps -> %s", cfg.name, start_step, folder)
        return json.loads((folder / "result.json").read_text())
    log.info(
        "%s: %s parameters, %s, %d sequences per step (%d per device x %d), from step %d -> %s",
        cfg.name,
        f"{sum(p.numel() for p in module.parameters()):,}",
        module.backbone.precision,
        cfg.loader.global_batch_size,
        per_device,
        accumulate,
        start_step,
        folder,
    )
    where = {"rank": trainer.global_rank, "world_size": trainer.world_size}
    trainer.fit(
        module,
        get_train_dataloader(cfg, module.tokenizer, **where, start_step=start_step),
        get_valid_dataloader(cfg, module.tokenizer, **where),
        ckpt_path=checkpoint,
        weights_only=True,
    )
    last = folder / "checkpoints" / "last.ckpt"
    trainer.save_checkpoint(last, weights_only=False)
    result = {
        "steps": trainer.global_step,
        "checkpoint": str(last),
        **{name: float(value) for name, value in trainer.callback_metrics.items()},
    }
    if trainer.is_global_zero:
        write_json(folder / "result.json", result)
    return result


def _callbacks(cfg: DictConfig, folder: Path, throughput: Throughput) -> list[Callback]:
    settings = OmegaConf.to_container(cfg.callbacks, resolve=True)
    made = [throughput, *checkpoint_callbacks(settings, folder / "checkpoints")]
    if cfg.trainer.enable_progress_bar:
        made.append(StepProgressBar(throughput))
    if cfg.eval.generate_samples:
        made.append(SampleAtValidation())
    monitor = settings.get("learning_rate_monitor")
    if monitor:
        made.append(LearningRateMonitor(logging_interval=monitor["logging_interval"]))
    return made


def _loggers(cfg: DictConfig, folder: Path) -> list[Logger]:
    """Always a CSV log (a new version a start: a resumed run keeps the earlier lines); wandb unless null."""
    loggers: list[Logger] = [CSVLogger(folder, name="csv", flush_logs_every_n_steps=1)]
    if cfg.wandb is None:
        return loggers
    import wandb  # a second or two, and only for those who use it

    settings = OmegaConf.to_container(cfg.wandb, resolve=True)
    if not settings["offline"] and wandb.api.api_key is None:
        log.warning(
            "wandb has no login: logging offline (wandb sync uploads later; wandb=null switches it off)"
        )
        settings["offline"] = True
    logged = OmegaConf.to_container(cfg, resolve=True)
    return [*loggers, WandbLogger(save_dir=folder, config=logged, **settings)]
