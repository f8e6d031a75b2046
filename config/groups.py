"""The sections that are chosen as a group: ``algo=imdm`` takes config/algo/imdm.yaml, typed by a class here.

A yaml file names its class in its defaults list (``/schema/algo@_here_: imdm``). Classes inherit: a key of
the base belongs to every choice, a key of a subclass to its own choice alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from config.data_group import Data
from config.fields import key


@dataclass
class Algo:
    """What every algorithm has; MDLM needs no more."""

    name: str = key(MISSING, "the algorithm")
    time_conditioning: bool = key(False, "let the network see the noise level")
    T: int = key(0, "number of discrete times; 0: continuous time", choices=(0,))


@dataclass
class D3pmAlgo(Algo):
    """Discrete time."""

    T: int = key(1000, "number of discrete times", low=1)
    posterior: str = key(
        "exact",
        "the reverse step in the loss; official: as in the code of the published numbers, with alpha_s off",
        choices=("exact", "official"),
    )


@dataclass
class DuoAlgo(Algo):
    """Uniform noise, after a curriculum of Gaussian noise seen through a softmax."""

    gumbel_tau_log10_start: float = key(-1.0, "log10 of the softmax's temperature at curriculum_start")
    gumbel_tau_log10_end: float = key(-2.0, "the same at curriculum_end")
    gamma_min: float = key(-5.0, "log of noise over signal at t = 0, while the curriculum lasts")
    gamma_max: float = key(-1.0, "the same at t = 1")
    curriculum_start: int = key(100_000, "optimizer steps until the temperature begins to move", low=0)
    curriculum_end: int = key(200_000, "optimizer steps until the plain uniform noise", low=0)
    curriculum_top_k: int | None = key(
        None,
        "largest entries of the softmax that are drawn, the rest counts in its mean; 0: all; null: 64 of a "
        "vocabulary above 1024",
        low=0,
        auto=True,
        example=64,
    )
    integral_cache_path: str | None = key(
        None, "table of P(gamma), made by python -m integral; null: computed", example="integral/50258.npz"
    )


@dataclass
class DistillationAlgo(Algo):
    """Discrete consistency distillation of a uniform-state model."""

    T: int = key(64, "the first teacher is asked 1/T of the time earlier than the student", low=1)
    loss_type: str = key(
        "kl-bwd", "divergence: KL(student||teacher), KL(teacher||student)", choices=("kl-bwd", "kl-fwd")
    )
    update_teacher_every: int = key(
        10_000, "optimizer steps until the student becomes the teacher, and the step doubles", low=1
    )
    teacher_ema: bool = key(False, "its average becomes the teacher instead")
    linear_growth_dt: bool = key(False, "the step grows evenly until trainer.max_steps instead of doubling")
    linear_growth_min: float = key(1 / 512, "that step at the beginning", low=0, high=1)
    linear_growth_max: float = key(1 / 32, "and at the end", above=0, high=1)
    gamma_min: float = key(-4.0, "log of noise over signal at t = 0")
    gamma_max: float = key(-1.0, "the same at t = 1")
    integral_cache_path: str | None = key(
        None, "table of P(gamma), made by python -m integral; null: computed", example="integral/50258.npz"
    )


@dataclass
class ImdmAlgo(Algo):
    """Infinite masks: the random state that a mask carries."""

    noise_type: str = key(
        "rand", "U(-1,1), N(0,1), or N(mu, s^2) with trained mu and s", choices=("rand", "randn", "learnable")
    )
    noise_scale: float = key(1.0, "factor on the noise", above=0)
    num_mask: int = key(0, "number of different masks; 0: infinitely many", low=0)
    as_mdlm: bool = key(False, "one plain mask: the classical twin")
    alpha_min: float = key(0.0, "narrows alpha in training", low=0, high=1)
    alpha_max: float = key(1.0, "narrows alpha in training", low=0, high=1)


@dataclass
class ImRediAlgo(ImdmAlgo):
    """Rectification on stored pairs."""

    ignore_seed: bool = key(False, "draw fresh mask noise instead of the pairs' own")


@dataclass
class RectificationAlgo(Algo):
    """Rectification of a uniform-state model on stored pairs."""

    use_simple_loss: bool = key(False, "cross-entropy at every position in place of the NELBO")
    onestep_mode: bool = key(False, "train the step from pure noise alone: pairs with t < 1 are refused")


@dataclass
class ImSdttAlgo(ImdmAlgo):
    """Self-distillation through time; with as_mdlm=True SDTT."""

    distill_mode: str = key(
        "kl-bwd",
        "divergence: KL(student||teacher), KL(teacher||student), squared or absolute differences of "
        "log-probabilities, total variation",
        choices=("kl-bwd", "kl-fwd", "mse", "tvd", "tv"),
    )
    num_distill_steps: int = key(2, "teacher steps that the student learns to do in one", low=1)
    orig_num_sampling_steps: int = key(1024, "steps in which the first teacher samples", low=1)
    min_num_sampling_steps: int = key(8, "training ends when the teacher would sample in fewer steps", low=1)
    grow_dt_every: int = key(10_000, "optimizer steps until the student becomes the teacher", low=1)
    reset_optimizer_on_growth: bool = key(False, "the optimizer then forgets its moments")
    use_ema_on_growth: bool = key(False, "the student's average then replaces student and teacher")
    sdtt_fix_eps: bool = key(True, "masks keep their noise through the teacher's steps")
    teacher_times: str = key(
        "official",
        "when the teacher is asked: linear from t to t - num_distill_steps dt, or (exact) t, t - dt, ...",
        choices=("official", "exact"),
    )


@dataclass
class Model:
    """The diffusion transformer."""

    name: str = key(MISSING, "the size's name")
    hidden_size: int = key(MISSING, "width", low=1, example=768)
    cond_dim: int = key(128, "width of the time embedding", low=1)
    length: int = key(1024, "tokens in a sequence", low=4)
    n_blocks: int = key(MISSING, "transformer blocks", low=1, example=12)
    n_heads: int = key(MISSING, "attention heads", low=1, example=12)
    dropout: float = key(0.1, "on the residual branches", low=0, below=1)
    noise_dim: int | None = key(
        None, "size of a mask's noise (imdm); null: the width", low=1, auto=True, example=768
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
    min_lr: float = key(1e-6, "first and last learning rate", low=0)


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
    save_top_k: int = key(-1, "keep all (-1) or the newest (1) besides last.ckpt", choices=(-1, 1))


@dataclass
class CheckpointMonitor:
    """best.ckpt by a validation metric."""

    monitor: str = key("val/nll", "the metric", choices=("val/nll", "val/bpd", "val/ppl"))
    mode: str = key("min", "which is better", choices=("min", "max"))


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


# group -> schema name -> class; the yaml files refer to these names.
GROUP_SCHEMAS: dict[str, dict[str, type]] = {
    "algo": {
        "base": Algo,
        "d3pm": D3pmAlgo,
        "duo": DuoAlgo,
        "distillation": DistillationAlgo,
        "imdm": ImdmAlgo,
        "im-sdtt": ImSdttAlgo,
        "im-redi": ImRediAlgo,
        "rectification": RectificationAlgo,
    },
    "model": {"base": Model},
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
