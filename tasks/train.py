"""mode=train: fit an algorithm, resume where the same command stopped, validate and sample on the way."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader

from callbacks.checkpoints import Checkpoints
from callbacks.grad_record import GradRecord
from callbacks.metrics_file import MetricsFile
from callbacks.progress import StepProgressBar, Throughput
from callbacks.resumption import Resumption
from callbacks.samples import SampleAtValidation
from callbacks.stopping import Stopping, TrainingStopped, ignore_signals
from dataloader import batch_sizes, get_train_dataloader, get_valid_dataloader
from models.checkpoint import load_weights
from tasks.generate_reflow_dataset import refuse_without_pairs, with_pairs
from tasks.inputs import input_digests
from tasks.processes import Processes, launch
from tasks.run_folder import CHECKPOINTS, RESUME, RunFolder, open_run_folder, wandb_id
from tasks.scoring import GenerativePerplexity, NotFromHub
from tasks.setup import build_algorithm, build_from_checkpoint, build_trainer
from trainer_base import TrainerBase
from utils import get_logger, write_json

RESULT = "result.json"
log = get_logger("train")


def train(cfg: DictConfig) -> dict[str, Any]:
    """Train to ``trainer.max_steps``; the same command again resumes from ``last.ckpt``.

    Returns (and writes to ``result.json`` of the run folder) the last value of every logged metric, the
    number of steps and the path of the last checkpoint.

    Raises:
        SystemExit: a signal ended the training; the exit code is 128 + its number, as of other programs.
    """
    refuse_without_pairs(cfg)
    processes = launch(cfg)
    with open_run_folder(cfg, processes) as run:
        if cfg.checkpointing.link_when_done:
            run.refuse_foreign_link()
        cfg = with_pairs(cfg, run.path, processes)
        run.refuse_another_training(cfg)
        result = _train(cfg, run, processes)
        is_over = result["steps"] >= cfg.trainer.max_steps or "finished" in result
        if cfg.checkpointing.link_when_done and is_over:
            run.make_link()
        return result


def _train(cfg: DictConfig, run: RunFolder, processes: Processes) -> dict[str, Any]:
    module = _build(cfg, run)
    if result := _finished(cfg, run, module):
        return result
    run.warn_of_another_length(cfg)
    metrics = MetricsFile(run.path / "metrics.csv")
    checkpoints = _checkpoints(cfg, run)
    trainer = build_trainer(
        cfg,
        callbacks=_callbacks(cfg, checkpoints, metrics),
        logger=[metrics, *_wandb(cfg, run.path)],
        world_size=processes.world_size,
        default_root_dir=run.path,
        max_time=None,  # Stopping's
        limit_train_batches=1.0 if cfg.trainer.limit_train_batches != 0 else 0,  # the loader's
        enable_checkpointing=False,  # Checkpoints'
        val_check_interval=1,  # _fit's, which knows how long an epoch is
        check_val_every_n_epoch=None,
    )
    per_device, accumulate = batch_sizes(cfg, trainer.world_size)
    trainer.accumulate_grad_batches = accumulate
    log.info(
        "%s: %s parameters, %s, %d sequences per step (%d per device x %d), from step %d -> %s",
        cfg.name,
        f"{sum(p.numel() for p in module.parameters()):,}",
        module.backbone.precision,
        cfg.loader.global_batch_size,
        per_device,
        accumulate,
        run.step,
        run.path,
    )
    _fit(cfg, run, trainer, module, checkpoints)
    result = {
        "steps": trainer.global_step,
        "checkpoint": str(checkpoints.last),
        **(metrics.last_values() or {}),
    }
    if reason := module.objective.finished(trainer.global_step):
        result["finished"] = reason
    if trainer.is_global_zero:
        write_json(run.path / RESULT, result)
    return result


def _build(cfg: DictConfig, run: RunFolder) -> TrainerBase:
    start = cfg.training.finetune_path
    if run.checkpoint is None and start:
        use_ema = cfg.training.load_ema
        return build_from_checkpoint(cfg, start, key="training.finetune_path", use_ema=use_ema)
    module = build_algorithm(cfg)
    if run.checkpoint is not None:
        load_weights(module, run.state["state_dict"], key=RESUME, path=run.checkpoint)
    return module


def _finished(cfg: DictConfig, run: RunFolder, module: TrainerBase) -> dict[str, Any] | None:
    """The result of a run that has nothing left to do."""
    file = run.path / RESULT
    if not (run.step >= cfg.trainer.max_steps or module.objective.finished(run.step)) or not file.exists():
        return None
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        result = None
    if not isinstance(result, dict) or not isinstance(result.get("steps"), int):
        log.warning("%s is damaged; it is made again", file)
        return None
    if result["steps"] != run.step:  # of an earlier, shorter training
        return None
    if not run.moved:
        run.write_config()
    log.info("%s: already trained for %d steps -> %s", cfg.name, run.step, run.path)
    return result


def _fit(
    cfg: DictConfig, run: RunFolder, trainer: L.Trainer, module: TrainerBase, checkpoints: Checkpoints
) -> None:
    where = {"rank": trainer.global_rank, "world_size": trainer.world_size}
    loaders = (
        get_train_dataloader(cfg, module.tokenizer, **where, start_step=run.step),
        get_valid_dataloader(cfg, module.tokenizer, **where),
    )
    trainer.val_check_interval = validation_interval(cfg, loaders[0], trainer.accumulate_grad_batches)
    for loader in loaders:
        loader.worker_init_fn = ignore_signals
    checkpoints.inputs = input_digests(module.tokenizer, *loaders)
    run.compare_inputs(cfg, checkpoints.inputs)
    if run.checkpoint is not None:
        trainer.strategy.checkpoint_io.preload(run.checkpoint, run.take_state())
    try:
        trainer.fit(module, *loaders, ckpt_path=run.checkpoint, weights_only=True)
    except TrainingStopped as stopped:
        saved = checkpoints.saved_step
        log.info(
            "%s: stopped after step %d of %d; the same command %s",
            stopped.reason,
            trainer.global_step,
            cfg.trainer.max_steps,
            f"goes on from step {saved}" if saved else "starts anew: nothing was saved yet",
        )
        if stopped.signum is not None:
            raise SystemExit(128 + stopped.signum) from None
    finally:
        for loader in loaders:
            if loader._iterator is not None:  # Python would wait for ever for workers that ignore signals
                loader._iterator._shutdown_workers()


def validation_interval(cfg: DictConfig, loader: DataLoader[Any], accumulate: int) -> int:
    """Training batches between validations: ``trainer.val_check_interval`` in batches of whole steps.

    Args:
        loader: of the training data, of which a fraction may be meant.
        accumulate: batches of a step; a validation amid them would belong to no step.
    """
    batches = cfg.trainer.val_check_interval
    if not isinstance(batches, int):  # a part of an epoch, null: all of it
        steps = loader.batch_sampler.steps_per_epoch * (batches or 1.0)
        batches = max(1, int(steps)) * (cfg.trainer.check_val_every_n_epoch or 1) * accumulate
    return -(-batches // accumulate) * accumulate


def _checkpoints(cfg: DictConfig, run: RunFolder) -> Checkpoints:
    regular, best = cfg.callbacks.checkpoint_every_n_steps, cfg.callbacks.checkpoint_monitor
    usual = f"{cfg.checkpointing.save_dir}/{CHECKPOINTS}"

    def folder(chosen: str | None) -> Path:  # the run's own may be a fresh, numbered one
        return run.path / CHECKPOINTS if chosen in (None, usual) else Path(chosen).expanduser()

    own = {}
    if regular:
        own.update(every=regular.every_n_train_steps, newest=regular.save_top_k)
        own.update(regular_folder=folder(regular.dirpath))
    if best and best.save_top_k:
        own.update(monitor=best.monitor, mode=best.mode, top_k=best.save_top_k)
        own.update(best=folder(best.dirpath) / f"{best.filename.removesuffix('.ckpt')}.ckpt")
    return Checkpoints(run.path / CHECKPOINTS, **own)


def _callbacks(cfg: DictConfig, checkpoints: Checkpoints, metrics: MetricsFile) -> list[Callback]:
    """In the order in which they are called: a checkpoint comes before all that belongs to the next step."""
    throughput = Throughput(cfg.loader.global_batch_size * cfg.model.length)
    made = [checkpoints, Stopping(checkpoints, cfg.trainer.max_time), Resumption(metrics), throughput]
    if cfg.trainer.enable_progress_bar:
        made.append(StepProgressBar(throughput))
    if cfg.eval.generate_samples and cfg.sampling.num_sample_batches:
        made.append(SampleAtValidation(*_judge(cfg)))
    if cfg.callbacks.learning_rate_monitor:
        made.append(
            LearningRateMonitor(logging_interval=cfg.callbacks.learning_rate_monitor.logging_interval)
        )
    if cfg.callbacks.grad_record:
        made.append(GradRecord(cfg.callbacks.grad_record.every_n_steps))
    return made


def _judge(cfg: DictConfig) -> tuple[GenerativePerplexity | None, str | None]:
    """What judges the samples of validations, or None and, where it was wanted, why there is none.

    A wrong path stops at once; a model that the hub does not give costs this one measure only.
    """
    if not cfg.eval.compute_generative_perplexity:
        return None, None
    try:
        return GenerativePerplexity(cfg), None
    except NotFromHub as error:
        if (best := cfg.callbacks.checkpoint_monitor) and best.monitor.startswith("val/gen_ppl"):
            raise
        return None, str(error)


def _wandb(cfg: DictConfig, folder: Path) -> list[Logger]:
    """Weights & Biases, unless ``wandb=null``; a resumed run goes on under the id that it began with."""
    if cfg.wandb is None:
        return []
    import wandb  # a second or two, and only for those who use it

    settings = {k: v for k, v in OmegaConf.to_container(cfg.wandb, resolve=True).items() if v is not None}
    if settings.get("mode") == "disabled":
        return []
    wanted = settings.get("mode") or os.environ.get("WANDB_MODE", "online")
    if settings["offline"] and "mode" not in settings:
        wanted = "offline"
    if wanted == "online" and wandb.api.api_key is None:
        log.warning(
            "wandb has no login: logging offline (wandb sync uploads later; wandb=null switches it off)"
        )
        wanted = "offline"
    settings["offline"] = wanted in ("offline", "dryrun")
    if settings["offline"]:
        # Lightning's word, WANDB_MODE, comes too late: wandb settled its own when it was asked for the login.
        settings["mode"] = "offline"
    if "id" not in settings and rank_zero_only.rank == 0:
        settings["id"] = wandb_id(folder)
    logged = OmegaConf.to_container(cfg, resolve=True)
    return [WandbLogger(save_dir=folder, config=logged, **settings)]
