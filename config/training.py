"""Section ``training``, and what goes with it: optimizer, schedule, trainer, callbacks, checkpoints, pairs.

A class that inherits declares keys of its own choice alone: ``LrScheduler`` those of every schedule.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from errors import UserError
from settings import MISSING, key


@dataclass
class Training:
    """The training objective and where training starts from."""

    ema: float = key(0.9999, "decay of the averaged weights; 0: no averaging", low=0, below=1)
    antithetic_sampling: bool = key(True, "spread the diffusion times of a step evenly")
    sampling_eps: float = key(1e-3, "smallest diffusion time", low=0, below=1)
    loss_precision: str = key(
        "bf16",
        "float64 lifts the loss from float32 (which bf16, the official name, means too)",
        choices=("bf16", "float32", "float64"),
    )
    finetune_path: str = key(
        "", "what training starts from: a .ckpt, a Hugging Face folder, or a hub name", path=True
    )
    load_ema: bool = key(
        False, "start from its averaged weights, and let averaging go on; False: the raw ones, anew"
    )
    mask_sampling: str = key(
        "time", "noise by diffusion time or by number of masks", choices=("time", "count")
    )
    loss_type: str = key(
        "nelbo", "weights of the loss; low_var: all 1, in training only", choices=("nelbo", "low_var")
    )
    ignore_bos: bool = key(False, "never mask the first token, and leave it out of the loss")
    activation_checkpointing: bool = key(
        False, "compute the blocks again in the backward pass: far less memory, about a third more time"
    )


@dataclass
class Optim:
    """AdamW, or Muon for the matrices of the blocks and AdamW for the rest."""

    name: str = key("adamw", "the optimizer", choices=("adamw", "muon"))
    lr: float = key(3e-4, "peak learning rate", above=0)
    weight_decay: float = key(0.0, "decoupled weight decay, of all parameters", low=0)
    beta1: float = key(0.9, "decay of the first moment", low=0, below=1)
    beta2: float = key(0.999, "decay of the second moment", low=0, below=1)
    eps: float = key(1e-8, "added to the denominator", above=0)
    muon_momentum: float = key(0.95, "muon: of its momentum", low=0, below=1)
    adamw_lr: float | None = key(
        None, "muon: peak rate of what AdamW trains; null: optim.lr", above=0, example=1e-3
    )
    ln_tune: str = key(
        "none",
        "train only the norms in front of attention and MLPs (norm), or of the MLPs (norm2)",
        choices=("none", "norm", "norm2"),
    )


@dataclass
class Trainer:
    """Arguments of Lightning's Trainer, under its own names (the network reads ``precision``)."""

    accelerator: str = key("auto", "hardware", choices=("auto", "cpu", "gpu", "cuda", "mps"))
    devices: Any = key("auto", "number of devices, or a list of indices like [0,1]")
    num_nodes: int = key(1, "machines", low=1, high=2**16)
    precision: str = key(
        "auto",
        "of the blocks; auto: bf16 where the device has it",
        choices=("auto", "32", "32-true", "bf16", "bf16-mixed"),
    )
    max_steps: int = key(1_000_000, "optimizer steps", low=1)
    max_time: str | None = key(None, "stop after DD:HH:MM:SS")
    gradient_clip_val: float | None = key(1.0, "largest gradient norm; null: no clipping", low=0)
    gradient_clip_algorithm: str | None = key(None, "what is clipped", choices=("norm", "value"))
    val_check_interval: int | float | None = key(
        10_000,
        "training batches between validations, across epochs; a fraction of an epoch, 1.0: all of it; null: "
        "by check_val_every_n_epoch",
        above=0,
    )
    check_val_every_n_epoch: int | None = key(
        None, "epochs between validations, where val_check_interval is null or 1.0; null: 1", low=1
    )
    limit_train_batches: int | float | None = key(
        1.0, "global batches (int) or fraction (float) of an epoch, over and over", low=0
    )
    limit_val_batches: int | float | None = key(1.0, "validation batches (int) or fraction (float)", low=0)
    num_sanity_val_steps: int = key(2, "validation batches before training starts; -1: all", low=-1)
    log_every_n_steps: int = key(100, "steps between lines of the log", low=1)
    enable_progress_bar: bool = key(True, "show progress")
    deterministic: bool | str | None = key(
        None, "deterministic kernels: True, False or warn", choices=(True, False, "warn")
    )
    benchmark: bool | None = key(None, "let cuDNN choose its kernels by timing them")
    detect_anomaly: bool = key(False, "autograd's anomaly detection (slow)")
    profiler: str | None = key(None, "Lightning's profiler", choices=("simple", "advanced", "pytorch"))


@dataclass
class Reflow:
    """Pairs of noise and generated text, for algo=im-redi and algo=rectification."""

    save_path: str = key("./reflow_data/${data.name}/${name}", "folder of the pairs", path=True)
    num_reflow_samples: int = key(20_000, "pairs to make", low=1)
    perturbed_rect: bool = key(True, "start from noised training text; False: from pure noise")
    get_seed: bool = key(True, "one stored seed is the start noise of all masks of a pair")
    make_missing: bool = key(
        False, "let an algorithm on pairs, on data without, first make them from training.finetune_path"
    )


@dataclass
class Checkpointing:
    """The run folder and how the same command goes on with it."""

    save_dir: str = key("./outputs/${data.name}/${name}", "run folder", path=True)
    resume_from_ckpt: bool = key(
        True, "go on from resume_ckpt_path when it exists; False: a fresh numbered folder"
    )
    resume_ckpt_path: str | None = key(
        "${.save_dir}/checkpoints/last.ckpt", "checkpoint to go on from", path=True
    )
    link_when_done: bool = key(
        False, "when training is over, link last.ckpt beside the run folder: <save_dir>.ckpt"
    )


@dataclass
class LrScheduler:
    """The learning rate over optimizer steps."""

    name: str = key(MISSING, "the schedule")


@dataclass
class ConstantWarmup(LrScheduler):
    """Linear warm-up, then constant."""

    num_warmup_steps: int = key(2500, "steps until optim.lr is reached", low=0)


@dataclass
class CosineDecayWarmup(LrScheduler):
    """Linear warm-up from the floor, then a cosine back to it at trainer.max_steps."""

    warmup_fraction: float = key(0.1, "part of trainer.max_steps", low=0, below=1)
    num_warmup_steps: int | None = key(
        None, "steps until optim.lr is reached; null: by warmup_fraction", low=0, example=10_000
    )
    decay_steps: int | None = key(
        None, "steps of the cosine; null: until trainer.max_steps", low=1, example=900_000
    )
    min_lr: float = key(1e-6, "last learning rate", low=0)
    first_lr: float | None = key(None, "first learning rate; null: min_lr", low=0, example=1e-6)


@dataclass
class StepScheduler(LrScheduler):
    """Linear warm-up, then steps down."""

    num_warmup_steps: int = key(500, "steps until optim.lr is reached", low=0)
    decay_every: int = key(10_000, "steps between two decays", low=1)
    decay_factor: float = key(0.5, "factor of a decay", above=0, high=1)


@dataclass
class CheckpointEveryNSteps:
    """Regular checkpoints <epoch>-<step>.ckpt and last.ckpt."""

    every_n_train_steps: int = key(500, "optimizer steps between checkpoints", low=1)
    save_top_k: int = key(-1, "keep so many, the newest, besides last.ckpt; -1: all", low=-1)
    dirpath: str | None = key(
        None,
        "their folder; null: checkpoints/ of the run, where last.ckpt is in any case",
        path=True,
        example="/scratch/x",
    )


@dataclass
class CheckpointMonitor:
    """best.ckpt by a validation metric."""

    monitor: str = key("val/nll", "the metric: any that a validation logs, like val/gen_ppl_T8")
    mode: str = key("min", "which is better", choices=("min", "max"))
    save_top_k: int = key(
        1, "1: best.ckpt alone; more: the best ones as best-<step>.ckpt too; -1: all; 0: none", low=-1
    )
    dirpath: str | None = key(
        None, "folder of best.ckpt; null: checkpoints/ of the run", path=True, example="/scratch/x"
    )
    filename: str = key("best", "its name without .ckpt")


@dataclass
class LearningRateMonitor:
    """The learning rate in the log."""

    logging_interval: str = key("step", "when it is logged", choices=("step", "epoch"))


@dataclass
class GradRecord:
    """Norms of the gradients of parts of the network in the log, before clipping."""

    every_n_steps: int | None = key(
        None, "optimizer steps between them; null: with every line of the log", low=1, auto=True, example=100
    )


@dataclass
class Callbacks:
    """``callbacks=[checkpoint_every_n_steps,...]``; a callback that is not chosen is null."""

    checkpoint_every_n_steps: CheckpointEveryNSteps | None = None
    checkpoint_monitor: CheckpointMonitor | None = None
    learning_rate_monitor: LearningRateMonitor | None = None
    grad_record: GradRecord | None = None


def check(cfg: DictConfig) -> list[str]:
    """Raise for settings that cannot both hold; returns warnings."""
    _validate_objective(cfg)
    _validate_schedule(cfg)
    _validate_intervals(cfg)
    _validate_monitor(cfg)
    _validate_pairs(cfg)
    return list(_warnings(cfg))


def _validate_objective(cfg: DictConfig) -> None:
    training, by_count = cfg.training, []
    if training.mask_sampling == "count":
        by_count.append("training.mask_sampling")
        if training.loss_type == "low_var":
            problem = "has no meaning with training.mask_sampling=count"
            raise UserError("training.loss_type", "low_var", problem, "use training.loss_type=nelbo")
    if cfg.eval.nelbo == "count":
        by_count.append("eval.nelbo")
    if by_count and cfg.algo.time_conditioning:
        problem = "there is no time to condition on (algo.time_conditioning=True)"
        raise UserError(by_count[0], "count", problem, f"use {by_count[0]}=time")


def _validate_pairs(cfg: DictConfig) -> None:
    if cfg.mode == "generate_reflow_dataset" and cfg.data.train == "reflow":
        problem = "pairs are made from text, not from pairs"
        raise UserError("data", cfg.data.name, problem, "use the data that the model was trained on")
    if cfg.mode == "generate_reflow_dataset" and cfg.sampling.noise_removal == "none":
        problem = "would leave masks or noise in the texts"
        raise UserError("sampling.noise_removal", "none", problem, "use ancestral")


def _validate_schedule(cfg: DictConfig) -> None:
    scheduler = cfg.lr_scheduler
    if scheduler.name != "cosine_decay_warmup":
        return
    for name in ("min_lr", "first_lr"):
        if scheduler[name] is not None and scheduler[name] >= cfg.optim.lr:
            problem = f"not below optim.lr={cfg.optim.lr}"
            raise UserError(f"lr_scheduler.{name}", scheduler[name], problem, "lower it")


def _validate_intervals(cfg: DictConfig) -> None:
    trainer = cfg.trainer
    interval, epochs = trainer.val_check_interval, trainer.check_val_every_n_epoch
    if (epochs or 1) > 1 and interval not in (None, 1.0):
        problem = f"trainer.val_check_interval={interval} says when already"
        hint = "use trainer.val_check_interval=null with it"
        raise UserError("trainer.check_val_every_n_epoch", epochs, problem, hint)
    if cfg.data.streaming and cfg.mode == "train" and not isinstance(interval, int):
        problem = "data.streaming=True has no length of which this could be a part"
        shown = "null" if interval is None else interval
        raise UserError("trainer.val_check_interval", shown, problem, "give a number of batches")


def _validate_monitor(cfg: DictConfig) -> None:
    best = cfg.callbacks.checkpoint_monitor
    if best is None or cfg.mode != "train":
        return
    if "/" in best.filename or "{" in best.filename:
        key = "callbacks.checkpoint_monitor.filename"
        hint = "give one like best, and dirpath for a folder"
        raise UserError(key, best.filename, "not a plain name", hint)
    kind, _, steps = best.monitor.rpartition("_T")
    if kind in ("val/gen_ppl", "val/sample_entropy"):
        _validate_measured(cfg, best.monitor, kind, steps)


def _validate_measured(cfg: DictConfig, monitor: str, kind: str, steps: str) -> None:
    """Raise when the samples that are to decide on best.ckpt are not made or not judged."""
    key = "callbacks.checkpoint_monitor.monitor"
    if steps not in map(str, (*cfg.sampling.steps, cfg.model.length)):  # the last: one call a token
        problem = f"sampling.steps={','.join(map(str, cfg.sampling.steps))} has no {steps}"
        raise UserError(key, monitor, problem, "monitor one of these")
    is_made = cfg.eval.generate_samples and cfg.sampling.num_sample_batches
    if not is_made or kind == "val/gen_ppl" and not cfg.eval.compute_generative_perplexity:
        wanted = "eval.generate_samples=True, sampling.num_sample_batches >= 1"
        if kind == "val/gen_ppl":
            wanted += ", eval.compute_generative_perplexity=True"
        raise UserError(key, monitor, "no validation measures it", f"needs {wanted}")


def _warnings(cfg: DictConfig) -> Iterator[str]:
    training, checkpointing, trains = cfg.training, cfg.checkpointing, cfg.mode == "train"
    if training.load_ema and not training.finetune_path and trains:
        yield "training.load_ema=True has no effect without training.finetune_path"
    if trains and cfg.eval.checkpoint_path:
        yield "eval.checkpoint_path has no effect in mode=train; training.finetune_path names where to start"
    if cfg.mode not in ("train", "plan") and training.finetune_path:
        yield f"training.finetune_path has no effect in mode={cfg.mode}; eval.checkpoint_path is evaluated"
    named = checkpointing.resume_ckpt_path not in (None, f"{checkpointing.save_dir}/checkpoints/last.ckpt")
    if named and not checkpointing.resume_from_ckpt and trains:
        yield "checkpointing.resume_ckpt_path has no effect while checkpointing.resume_from_ckpt=False"
    if cfg.optim.name != "muon" and (cfg.optim.adamw_lr is not None or cfg.optim.muon_momentum != 0.95):
        name = "adamw_lr" if cfg.optim.adamw_lr is not None else "muon_momentum"
        yield f"optim.{name} has no effect without optim.name=muon"
    if trains and cfg.optim.ln_tune != "none" and not training.finetune_path:
        yield f"optim.ln_tune={cfg.optim.ln_tune} without training.finetune_path: the rest stays random"
    warmup, last = cfg.lr_scheduler.get("num_warmup_steps") or 0, cfg.trainer.max_steps
    if trains and warmup >= last:
        yield (
            f"lr_scheduler.num_warmup_steps={warmup} >= trainer.max_steps={last}: optim.lr is never reached"
        )
