"""The sections of the configuration: every key with its type, default, meaning and limits.

Sections that are chosen as a group (``algo=imdm``, ``model=small``, ...) are in config/groups.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from config.groups import Callbacks, Data, LrScheduler, Model, Noise, Strategy, Wandb
from config.samplers import REMOVALS, orders, with_own_settings
from settings import AlgorithmSettings, key

MODES = (
    "train",
    "ppl_eval",
    "sample_eval",
    "sample_eval_with_tc",
    "cond_sample_eval_with_tc",
    "generate_reflow_dataset",
    "gen_ppl_eval",
    "zero_shot",
    "frontier",
    "export",
    "plan",
)
# The others spread their work over trainer.devices.
ONE_DEVICE_MODES = ("frontier", "export")


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
        None, "worker processes; null or -1: by the machine", low=-1, high=1024, auto=True, example=4
    )
    pin_memory: bool | None = key(None, "page-locked host memory; null: with a GPU", auto=True)
    drop_last: bool = key(True, "drop the last incomplete batch of a training epoch")


@with_own_settings
@dataclass
class Sampling:
    """How sequences are generated."""

    predictor: str | None = key(None, "reverse process; null: the algorithm's own", example="ancestral_cache")
    steps: Any = key(1000, "network calls, a number or a list like 1,2,4,8,128")
    noise_removal: str = key(
        "ancestral",
        "the last step; tail, greedy_tail: one call more, behind all steps, as MDLM and Duo count them",
        choices=REMOVALS,
    )
    draws: str = key(
        "exact",
        "of tokens; float32: Gumbel-max that loses rare tokens, truncated32: its usual formula; for study",
        choices=("exact", "truncated32", "float32"),
    )
    use_float64: bool = key(True, "False: sampling.draws=float32, unless draws says what")
    temperature: float = key(1.0, "of the token distribution; below 1 sharpens", above=0)
    p_nucleus: float = key(
        1.0, "draw from the smallest set of tokens with this mass; 1: off", above=0, high=1
    )
    use_p_nucleus: bool | None = key(None, "switches p_nucleus; null: on when it is below 1", auto=True)
    prompt: str | None = key(
        None,
        "what a text begins with; every _ is a token to write, <end> at its end ends the text",
        example="'the ____ is'",
    )
    prompt_file: str | None = key(
        None, "prompts, one a line, or .jsonl with prompt; samples take them in turn", example="prompts.txt"
    )
    num_sample_batches: int = key(2, "batches per device; 0: no samples at validations", low=0)
    num_sample_log: int = key(2, "samples shown in the log", low=0)
    record_trajectories: int = key(
        0, "samples whose steps are written beside the result, for scripts/report.py", low=0
    )
    order: str = key(
        "random",
        "of unmasking; spread: what a call unmasks lies far apart, for fewer errors at few steps",
        choices=orders(),
    )
    semi_ar: bool = key(False, "write more than model.length tokens: a window that slides over the text")
    stride_length: int = key(1, "semi_ar: new tokens of a stride; the rest of the window is kept", low=1)
    num_strides: int = key(
        1, "semi_ar: strides; the text has model.length + num_strides * stride_length tokens", low=1
    )
    duplicate: int = key(
        1, "samples of a group with one start noise, whose total correlation is measured; 1: none", low=1
    )
    num_duplicate_batch: int = key(1, "batches of such groups, beside num_sample_batches", low=1)
    fix_eps: bool = key(False, "IMDM: a mask keeps its noise until it is unmasked")
    mdlm_posterior: bool = key(False, "IMDM: MDLM's reverse step, which never resets the noise")


@dataclass
class CondSampling:
    """mode=cond_sample_eval_with_tc: continuations of validation texts."""

    prefix_len: int = key(50, "tokens that are given, bos included", low=1)
    seq_len: int = key(100, "tokens that are kept and measured, those given included", low=2)
    num_cont_per_prefix: int = key(5, "continuations of each prefix", low=1)
    min_seq_len: int = key(1024, "prefixes are of validation blocks with at least so many tokens", low=1)
    fix_seed: int = key(
        -1, "IMDM: seed of one start noise for all continuations; -1: each its own", low=-1, high=2**63 - 1
    )
    official_workers: int | None = key(
        None, "the official program's prefixes, as so many processes prepare them there; null: our own", low=1
    )


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
    finetune_path: str = key("", "what training starts from: a .ckpt, a Hugging Face folder, or a hub name")
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
class Eval:
    """What evaluation reads, measures and writes."""

    checkpoint_path: str = key("", "what is evaluated: a .ckpt, a Hugging Face folder, or a hub name")
    disable_ema: bool = key(False, "take the raw weights of a .ckpt (a folder has one kind)")
    generate_samples: bool = key(True, "generate samples at every validation of a training")
    generated_samples_path: str = key(
        "./samples.json", "JSON result of an evaluation; mode=zero_shot: {data} in it makes a file a data set"
    )
    nelbo: str = key(
        "time",
        "NELBO by diffusion time or by number of masks (lower variance); auto: by number where it can be",
        choices=("time", "count", "auto"),
    )
    compute_generative_perplexity: bool = key(True, "let another language model judge the samples")
    gen_ppl_eval_model_name_or_path: str = key(
        "gpt2-large", "that model: hub name, folder, or an AR checkpoint of this program"
    )
    decoding: str = key(
        "default",
        "texts of ids; clean: no blanks in front of punctuation and in contractions; raw: as the tokenizer "
        "gives them; default: clean for WordPiece (bert), raw for others",
        choices=("default", "raw", "clean"),
    )
    gen_ppl_dtype: str = key(
        "auto", "its precision; auto: that of its files", choices=("auto", "float32", "bf16")
    )
    gen_ppl_cut: bool = key(
        True, "judge the first model.length of its tokens; False: all, in windows of its context"
    )
    perplexity_batch_size: int = key(8, "texts that it judges at once; the result is the same", low=1)
    compute_perplexity_on_sanity: bool = key(False, "sample and judge at the check before training, too")


@dataclass
class Lora:
    """Low-rank adapters of model=hf: the pretrained weights are frozen, and kept once."""

    rank: int = key(0, "rank of the adapters; 0: all weights are trained", low=0, high=2**14)
    alpha: float | None = key(
        None, "their update is scaled by alpha / rank; null: 2 * rank", above=0, example=32
    )
    targets: str = key("auto", "names of linear layers, like query,value; auto: all of the blocks")


@dataclass
class Optim:
    """AdamW."""

    lr: float = key(3e-4, "peak learning rate", above=0)
    weight_decay: float = key(0.0, "decoupled weight decay, of all parameters", low=0)
    beta1: float = key(0.9, "decay of the first moment", low=0, below=1)
    beta2: float = key(0.999, "decay of the second moment", low=0, below=1)
    eps: float = key(1e-8, "added to the denominator", above=0)
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

    save_path: str = key("./reflow_data/${data.name}/${name}", "folder of the pairs")
    num_reflow_samples: int = key(20_000, "pairs to make", low=1)
    perturbed_rect: bool = key(True, "start from noised training text; False: from pure noise")
    get_seed: bool = key(True, "one stored seed is the start noise of all masks of a pair")
    make_missing: bool = key(
        False, "let an algorithm on pairs, on data without, first make them from training.finetune_path"
    )


@dataclass
class Checkpointing:
    """The run folder and how the same command goes on with it."""

    save_dir: str = key("./outputs/${data.name}/${name}", "run folder")
    resume_from_ckpt: bool = key(
        True, "go on from resume_ckpt_path when it exists; False: a fresh numbered folder"
    )
    resume_ckpt_path: str | None = key("${.save_dir}/checkpoints/last.ckpt", "checkpoint to go on from")
    link_when_done: bool = key(
        False, "when training is over, link last.ckpt beside the run folder: <save_dir>.ckpt"
    )


@dataclass
class Export:
    """mode=export."""

    path: str = key("./exported/${name}", "folder for transformers; made whole or not at all")


@dataclass
class ZeroShot:
    """mode=zero_shot: perplexity on several data sets, one table."""

    datasets: Any = key(
        "ag_news,scientific_papers_pubmed,scientific_papers_arxiv,lambada,wikitext2,wikitext103,ptb,lm1b-gpt2",
        "choices of the group data, local paths, or name:path (a local text under the rules of that choice)",
    )


@dataclass
class Frontier:
    """mode=frontier: generative perplexity against entropy, a point for each choice of all lists."""

    path: str = key("./frontier", "folder of points, table, figure; points that are there are not made again")
    steps: Any = key("${sampling.steps}", "numbers of steps, like sampling.steps")
    temperatures: Any = key("0.8,0.9,1.0", "temperatures, which make the curves")
    predictors: Any = key("${sampling.predictor}", "samplers; null: the algorithm's own")
    checkpoints: Any = key(
        "${eval.checkpoint_path}", "checkpoints, each a path or name:path; their networks may differ"
    )
    entropy: float | None = key(
        None, "nats at which curves are compared; null: the middle of what they share", low=0, example=5.2
    )
    keep_samples: bool = key(False, "keep the texts of each point in samples/, for mode=gen_ppl_eval")


@dataclass
class Plan:
    """mode=plan: what a training takes, before anything is downloaded or started."""

    path: str = key("./plan.json", "JSON result")
    memory_gb: float = key(80.0, "memory of a device in GiB", above=0)
    reserve_gb: float = key(3.0, "of it what CUDA, its libraries and fragmentation take", low=0)
    tflops: float | None = key(
        None, "peak of a device; null: that of an H100, 989 in bf16, 494 in TF32", above=0, example=312
    )
    mfu: float = key(0.35, "part of the peak that is reached; nobody has measured it here", above=0, high=1)
    vocab_size: int | None = key(
        None, "size of the vocabulary, its mask included; null: by the tokenizer", low=2, example=50258
    )


@dataclass
class Config:
    """The whole configuration."""

    mode: str = key("train", "what to do", choices=MODES)
    name: str = key("${algo.name}", "names the run and its folder")
    seed: int = key(1, "keys every random draw, together with step and row", low=0, high=2**63 - 1)
    algo: AlgorithmSettings = field(default_factory=AlgorithmSettings)
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    noise: Noise = field(default_factory=Noise)
    lr_scheduler: LrScheduler = field(default_factory=LrScheduler)
    strategy: Strategy = field(default_factory=Strategy)
    callbacks: Callbacks = field(default_factory=Callbacks)
    loader: Loader = field(default_factory=Loader)
    sampling: Sampling = field(default_factory=Sampling)
    cond_sampling: CondSampling = field(default_factory=CondSampling)
    training: Training = field(default_factory=Training)
    eval: Eval = field(default_factory=Eval)
    export: Export = field(default_factory=Export)
    zero_shot: ZeroShot = field(default_factory=ZeroShot)
    frontier: Frontier = field(default_factory=Frontier)
    plan: Plan = field(default_factory=Plan)
    lora: Lora = field(default_factory=Lora)
    optim: Optim = field(default_factory=Optim)
    trainer: Trainer = field(default_factory=Trainer)
    wandb: Wandb | None = None
    checkpointing: Checkpointing = field(default_factory=Checkpointing)
    reflow: Reflow = field(default_factory=Reflow)
