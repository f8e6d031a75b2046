"""The sections that are chosen as a group: ``model=small`` takes config/model/small.yaml, typed here.

A yaml file names its class in its defaults list (``/schema/model@_here_: base``); algorithms need no file.
Classes inherit: a key of the base belongs to every choice, a key of a subclass to its own choice alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from config.algorithms import algorithm_settings
from config.data_group import Data
from settings import key


@dataclass
class Model:
    """The diffusion transformer."""

    name: str = key(MISSING, "the size's name")
    hidden_size: int = key(MISSING, "width", low=1, high=2**17, example=768)
    cond_dim: int = key(128, "width of the time embedding", low=1, high=2**17)
    length: int = key(1024, "tokens in a sequence", low=3, high=2**20)
    n_blocks: int = key(MISSING, "transformer blocks", low=1, high=2**12, example=12)
    n_heads: int = key(MISSING, "attention heads", low=1, high=2**12, example=12)
    dropout: float = key(0.1, "on the residual branches", low=0, below=1)
    noise_dim: int | None = key(
        None, "size of a mask's noise (imdm); null: the width", low=1, high=2**17, auto=True, example=768
    )
    softcap: float = key(-1.0, "soft cap on attention logits; 0 or less: off", example=50)
    qk_norm: bool = key(False, "LayerNorm on queries and keys")
    attention: str = key(
        "auto",
        "its kernels; auto: sdpa, with softcap on a GPU flash-attn or FlexAttention",
        choices=("auto", "sdpa", "flash", "flex", "plain"),
    )
    compile: bool = key(False, "torch.compile the blocks: slow to start, then faster, most of all on GPUs")


@dataclass
class PretrainedModel(Model):
    """A pretrained masked language model of Hugging Face; its sizes are read from its config.json."""

    path: str = key(
        MISSING, "folder of the model, or its name on the hub", example="answerdotai/ModernBERT-base"
    )
    trust_remote_code: bool = key(False, "run the code that lies beside the model (LLaDA, Dream)")
    hidden_size: int = key(0, "width; 0: that of the model", low=0, high=2**17)
    n_blocks: int = key(0, "transformer blocks; 0: those of the model", low=0, high=2**12)
    n_heads: int = key(0, "attention heads; 0: those of the model", low=0, high=2**12)
    mask_token_id: int | None = key(
        None,
        "id of the mask, where its tokenizer names none; null: by its config.json",
        low=0,
        example=126336,
    )
    base_dtype: str = key(
        "float32", "of frozen weights behind adapters (lora.rank)", choices=("float32", "bf16")
    )


@dataclass
class Noise:
    """The schedule alpha(t)."""

    name: str = key(MISSING, "the schedule")
    eps: float = key(1e-3, "alpha(1) is about eps", above=0, below=1)


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
class Strategy:
    """How several devices share the work (with one device: not at all)."""

    name: str = key(MISSING, "the strategy")


@dataclass
class CheckpointEveryNSteps:
    """Regular checkpoints <epoch>-<step>.ckpt and last.ckpt."""

    every_n_train_steps: int = key(500, "optimizer steps between checkpoints", low=1)
    save_top_k: int = key(-1, "keep so many, the newest, besides last.ckpt; -1: all", low=-1)
    dirpath: str | None = key(
        None,
        "their folder; null: checkpoints/ of the run, where last.ckpt is in any case",
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
        None, "folder of best.ckpt; null: checkpoints/ of the run", example="/scratch/x"
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


@dataclass
class Wandb:
    """Weights & Biases; ``wandb=null`` switches it off, ``wandb=default`` on."""

    project: str = key("IMDM", "project")
    name: str = key("${name}", "run name; sets the key name too")
    id: str | None = key(None, "run id, to go on with a run")
    group: str | None = key(None, "group of runs")
    job_type: str | None = key(None, "kind of run")
    tags: list[str] = key([], "tags")
    notes: str | None = key(None, "free text")
    entity: str | None = key(None, "team or user")
    offline: bool = key(False, "keep the log on this machine")
    mode: str | None = key(
        None, "wandb's own word for it; null: by offline", choices=("online", "offline", "disabled")
    )
    resume: str | None = key(
        None, "whether to go on under id; null: allow", choices=("allow", "must", "never", "auto")
    )


# group -> schema name -> class; the yaml files refer to these names.
GROUP_SCHEMAS: dict[str, dict[str, type]] = {
    "algo": {**algorithm_settings()},
    "model": {"base": Model, "hf": PretrainedModel},
    "noise": {"base": Noise},
    "data": {"base": Data},
    "strategy": {"base": Strategy},
    "wandb": {"base": Wandb},
    "lr_scheduler": {
        "constant_warmup": ConstantWarmup,
        "cosine_decay_warmup": CosineDecayWarmup,
        "step_scheduler": StepScheduler,
    },
    "callbacks": {
        "checkpoint_every_n_steps": CheckpointEveryNSteps,
        "checkpoint_monitor": CheckpointMonitor,
        "learning_rate_monitor": LearningRateMonitor,
        "grad_record": GradRecord,
    },
}
