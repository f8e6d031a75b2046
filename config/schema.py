"""The sections of the configuration: every key with its type, default, meaning and limits.

Sections that are chosen as a group (``algo=imdm``, ``model=small``, ...) are in config/groups.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from config.fields import key
from config.groups import Algo, Callbacks, Data, LrScheduler, Model, Noise, Strategy, Wandb

MODES = ("train", "ppl_eval", "sample_eval")


@dataclass
class Loader:
    """Batches and their workers."""

    global_batch_size: int = key(512, "sequences per optimizer step, over all devices", low=1)
    eval_global_batch_size: int = key("${.global_batch_size}", "the same for evaluation", low=1, example=512)
    batch_size: int | None = key(
        None, "per device and pass; null: all of it at once", low=1, auto=True, example=64
    )
    eval_batch_size: int | None = key(None, "the same for evaluation", low=1, auto=True, example=64)
    num_workers: int | None = key(
        None, "worker processes; null or -1: by the machine", low=-1, auto=True, example=4
    )
    pin_memory: bool | None = key(None, "page-locked host memory; null: with a GPU", auto=True)
    drop_last: bool = key(True, "drop the last incomplete batch of a training epoch")


@dataclass
class Sampling:
    """How sequences are generated."""

    predictor: str | None = key(None, "reverse process; null: the algorithm's own", example="ancestral_cache")
    steps: Any = key(1000, "network calls, a number or a list like 1,2,4,8,128")
    noise_removal: str = key("ancestral", "the last step", choices=("ancestral", "greedy", "none"))
    use_float64: bool = key(True, "categorical draws are exact in float64 whatever this says")
    temperature: float = key(1.0, "of the token distribution; below 1 sharpens", above=0)
    p_nucleus: float = key(
        1.0, "draw from the smallest set of tokens with this mass; 1: off", above=0, high=1
    )
    use_p_nucleus: bool | None = key(None, "switches p_nucleus; null: on when it is below 1", auto=True)
    num_sample_batches: int = key(2, "batches per device", low=1)
    num_sample_log: int = key(2, "samples shown in the log", low=0)
    fix_eps: bool = key(False, "IMDM: a mask keeps its noise until it is unmasked")
    mdlm_posterior: bool = key(False, "IMDM: MDLM's reverse step, which never resets the noise")


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
    finetune_path: str = key("", "checkpoint whose weights training starts from")
    load_ema: bool = key(False, "start from that checkpoint's averaged weights")
    mask_sampling: str = key(
        "time", "noise by diffusion time or by number of masks", choices=("time", "count")
    )
    loss_type: str = key(
        "nelbo", "weights of the loss; low_var: all 1, in training only", choices=("nelbo", "low_var")
    )
    ignore_bos: bool = key(False, "never mask the first token, and leave it out of the loss")


@dataclass
class Eval:
    """What evaluation reads, measures and writes."""

    checkpoint_path: str = key("", "the checkpoint to evaluate")
    disable_ema: bool = key(False, "evaluate the raw weights")
    generate_samples: bool = key(True, "generate samples at every validation of a training")
    generated_samples_path: str = key("./samples.json", "JSON result of an evaluation")
    nelbo: str = key(
        "time", "NELBO by diffusion time or by number of masks (lower variance)", choices=("time", "count")
    )


@dataclass
class Optim:
    """AdamW."""

    lr: float = key(3e-4, "peak learning rate", above=0)
    weight_decay: float = key(0.0, "decoupled weight decay", low=0)
    beta1: float = key(0.9, "decay of the first moment", low=0, below=1)
    beta2: float = key(0.999, "decay of the second moment", low=0, below=1)
    eps: float = key(1e-8, "added to the denominator", above=0)


@dataclass
class Trainer:
    """Arguments of Lightning's Trainer, under its own names (the network reads ``precision``)."""

    accelerator: str = key("auto", "hardware", choices=("auto", "cpu", "gpu", "cuda", "mps"))
    devices: Any = key("auto", "number of devices, or a list of indices like [0,1]")
    num_nodes: int = key(1, "machines", low=1)
    precision: str = key(
        "auto",
        "of the blocks; auto: bf16 where the device has it",
        choices=("auto", "32", "32-true", "bf16", "bf16-mixed"),
    )
    max_steps: int = key(1_000_000, "optimizer steps", low=1)
    max_time: str | None = key(None, "stop after DD:HH:MM:SS")
    gradient_clip_val: float | None = key(1.0, "largest gradient norm; null: no clipping", low=0)
    gradient_clip_algorithm: str | None = key(None, "what is clipped", choices=("norm", "value"))
    val_check_interval: int = key(10_000, "training batches between validations", low=1)
    check_val_every_n_epoch: int | None = key(None, "null: val_check_interval counts across epochs", low=1)
    limit_train_batches: int | float | None = key(1.0, "batches (int) or fraction (float) of an epoch", low=0)
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
class Checkpointing:
    """The run folder and how the same command goes on with it."""

    save_dir: str = key("./outputs/${data.name}/${name}", "run folder")
    resume_from_ckpt: bool = key(
        True, "go on from resume_ckpt_path when it exists; False: a fresh numbered folder"
    )
    resume_ckpt_path: str | None = key("${.save_dir}/checkpoints/last.ckpt", "checkpoint to go on from")


@dataclass
class Config:
    """The whole configuration."""

    mode: str = key("train", "what to do", choices=MODES)
    name: str = key("${algo.name}", "names the run and its folder")
    seed: int = key(1, "keys every random draw, together with step and row", low=0)
    algo: Algo = field(default_factory=Algo)
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    noise: Noise = field(default_factory=Noise)
    lr_scheduler: LrScheduler = field(default_factory=LrScheduler)
    strategy: Strategy = field(default_factory=Strategy)
    callbacks: Callbacks = field(default_factory=Callbacks)
    loader: Loader = field(default_factory=Loader)
    sampling: Sampling = field(default_factory=Sampling)
    training: Training = field(default_factory=Training)
    eval: Eval = field(default_factory=Eval)
    optim: Optim = field(default_factory=Optim)
    trainer: Trainer = field(default_factory=Trainer)
    wandb: Wandb | None = None
    checkpointing: Checkpointing = field(default_factory=Checkpointing)
