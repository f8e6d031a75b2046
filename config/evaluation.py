"""Sections ``eval``, ``cond_sampling``, ``export``, ``zero_shot``, ``frontier``, ``judge``, ``plan``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from config.algo import settings_of
from config.official import official_sampler
from config.sampling import SAMPLING_MODES, read_names, read_steps, validate_sampler
from errors import UserError
from settings import key


@dataclass
class Eval:
    """What evaluation reads, measures and writes."""

    checkpoint_path: str = key(
        "", "what is evaluated: a .ckpt, a Hugging Face folder, or a hub name", path=True
    )
    disable_ema: bool = key(False, "take the raw weights of a .ckpt (a folder has one kind)")
    generate_samples: bool = key(True, "generate samples at every validation of a training")
    generated_samples_path: str = key(
        "./samples.json",
        "JSON result of an evaluation; mode=zero_shot: {data} in it makes a file a data set",
        path=True,
    )
    nelbo: str = key(
        "time",
        "NELBO by diffusion time or by number of masks (lower variance); auto: by number where it can be",
        choices=("time", "count", "auto"),
    )
    compute_generative_perplexity: bool = key(True, "let another language model judge the samples")
    gen_ppl_eval_model_name_or_path: str = key(
        "gpt2-large", "that model: hub name, folder, or an AR checkpoint of this program", path=True
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
class Export:
    """mode=export."""

    path: str = key("./exported/${name}", "folder for transformers; made whole or not at all", path=True)


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

    path: str = key(
        "./frontier", "folder of points, table, figure; points that are there are not made again", path=True
    )
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
class Judge:
    """mode=judge: samples of any program and checkpoints, scored under one protocol (docs/protocol.md)."""

    path: str = key("./judged", "folder of result.json, table.md, report.html", path=True)
    files: Any = key(
        "",
        "samples (.json, .jsonl, .txt, .npy of ids) and checkpoints, each a path or name:path",
        example="a.json",
    )
    human: str | None = key(
        None,
        "human texts in one of these formats; null: the validation set of data",
        path=True,
        example="human.jsonl",
    )
    train: str | None = key(
        None,
        "training texts, for controls and copies; null: human texts beside those compared",
        path=True,
        example="train.txt",
    )
    controls: bool = key(True, "score texts that are bad by construction as well")
    num_texts: int | None = key(
        None, "texts of each set; null: as many as the smallest has", low=8, auto=True, example=256
    )
    length: int = key(
        "${model.length}", "units, and tokens of the evaluator, that texts are cut to", low=2, example=1024
    )
    units: str = key("words", "what n-grams, entropy and lengths count", choices=("words", "characters"))
    featurizer: str = key(
        "ngrams",
        "features of MMD and MAUVE: ngrams (hashed, no download), or a model's folder or hub name",
        path=True,
    )
    mauve: bool = key(True, "MAUVE, with what human texts reach (needs mauve-text, which is under the GPL)")
    num_seeds: int = key(3, "k-means that MAUVE is the mean of", low=1)


@dataclass
class Plan:
    """mode=plan: what a training takes, before anything is downloaded or started."""

    path: str = key("./plan.json", "JSON result", path=True)
    memory_gb: float = key(80.0, "memory of a device in GiB", above=0)
    reserve_gb: float = key(3.0, "of it what CUDA, its libraries and fragmentation take", low=0)
    tflops: float | None = key(
        None, "peak of a device; null: that of an H100, 989 in bf16, 494 in TF32", above=0, example=312
    )
    mfu: float = key(0.35, "part of the peak that is reached; nobody has measured it here", above=0, high=1)
    vocab_size: int | None = key(
        None, "size of the vocabulary, its mask included; null: by the tokenizer", low=2, example=50258
    )


def derive(cfg: DictConfig) -> None:
    """How the NELBO is measured, and lists of what is evaluated."""
    if cfg.eval.nelbo == "auto":
        timeless = settings_of(cfg).has_masks and not cfg.algo.time_conditioning and cfg.algo.T == 0
        cfg.eval.nelbo = "count" if timeless else "time"
    grid = cfg.frontier
    grid.steps = read_steps(grid.steps, "frontier.steps")
    grid.temperatures = read_temperatures(grid.temperatures)
    names = read_names(grid.predictors, "frontier.predictors")
    grid.predictors = [official_sampler(name) for name in names]
    grid.checkpoints = read_names(grid.checkpoints, "frontier.checkpoints")
    cfg.judge.files = read_names(cfg.judge.files, "judge.files")
    cfg.zero_shot.datasets = read_names(cfg.zero_shot.datasets, "zero_shot.datasets")


def read_temperatures(value: Any) -> list[float]:
    """``0.9``, ``"0.8,0.9"`` or ``[0.8, 0.9]`` as a list of numbers > 0.

    Raises:
        UserError: for anything else, or an empty list.
    """
    try:
        found = [float(part) for part in read_names(value, "frontier.temperatures")]
    except ValueError:
        found = []
    if not found or not all(0 < temperature < math.inf for temperature in found):
        hint = "give numbers > 0, like 0.8,0.9,1.0"
        shown = ",".join(map(str, value)) if OmegaConf.is_list(value) else value
        raise UserError("frontier.temperatures", shown, "not temperatures", hint)
    return found


def check(cfg: DictConfig) -> list[str]:
    """Raise for a mode without what it needs; returns warnings."""
    _validate_mode(cfg)
    if cfg.mode == "cond_sample_eval_with_tc":
        _validate_conditional(cfg)
    if cfg.mode == "frontier":
        _validate_frontier(cfg)
    return list(_warnings(cfg))


def _validate_mode(cfg: DictConfig) -> None:
    if cfg.mode in (*SAMPLING_MODES, "frontier") and not cfg.sampling.num_sample_batches:
        problem = f"mode={cfg.mode} is there to sample"
        raise UserError("sampling.num_sample_batches", 0, problem, "give a number >= 1")
    without = ("train", "gen_ppl_eval", "frontier", "judge", "plan")
    if cfg.mode not in without and not cfg.eval.checkpoint_path:
        problem, hint = f"mode={cfg.mode} evaluates a checkpoint", "give eval.checkpoint_path=.../last.ckpt"
        raise UserError("eval.checkpoint_path", "''", problem, hint)
    if cfg.mode == "judge" and not cfg.judge.files:
        hint = "give judge.files=name:samples.json,other:samples.txt or checkpoints"
        raise UserError("judge.files", "''", "mode=judge scores samples", hint)
    if cfg.mode == "zero_shot" and not cfg.zero_shot.datasets:
        hint = "give names like wikitext2,ptb"
        raise UserError("zero_shot.datasets", "''", "mode=zero_shot evaluates data sets", hint)


def _validate_conditional(cfg: DictConfig) -> None:
    settings, length, sampling = cfg.cond_sampling, cfg.model.length, cfg.sampling
    prefix, kept, least = settings.prefix_len, settings.seq_len, settings.min_seq_len
    written = length + (sampling.num_strides * sampling.stride_length if sampling.semi_ar else 0)
    nothing, too_long = "leaves nothing to write of", "no validation block is so long, they have"
    nothing_kept, too_short = "keeps nothing behind", "lets in texts shorter than"
    checks = (
        ("prefix_len", prefix >= length, f"{nothing} model.length={length}", "use a smaller one"),
        ("seq_len", kept <= prefix, f"{nothing_kept} cond_sampling.prefix_len={prefix}", "use a larger one"),
        ("seq_len", kept > written, f"only {written} tokens are written", f"use at most {written}"),
        ("min_seq_len", least > length, f"{too_long} model.length={length}", f"use {length}"),
        ("min_seq_len", least < prefix, f"{too_short} cond_sampling.prefix_len={prefix}", "raise it"),
    )
    for name, is_wrong, problem, hint in checks:
        if is_wrong:
            raise UserError(f"cond_sampling.{name}", settings[name], problem, hint)


def _validate_frontier(cfg: DictConfig) -> None:
    if not cfg.frontier.checkpoints:
        hint = "give frontier.checkpoints=name:path,name:path or eval.checkpoint_path"
        raise UserError("frontier.checkpoints", "''", "mode=frontier evaluates checkpoints", hint)
    if not cfg.eval.compute_generative_perplexity:
        hint = "use True, with eval.gen_ppl_eval_model_name_or_path for the judge"
        raise UserError("eval.compute_generative_perplexity", False, "mode=frontier is about it", hint)
    for predictor in cfg.frontier.predictors:
        tried = cfg.copy()
        tried.sampling.predictor = predictor
        validate_sampler(tried)


def _warnings(cfg: DictConfig) -> Iterator[str]:
    changed = [name for name, value in cfg.cond_sampling.items() if value != getattr(CondSampling, name)]
    if changed and cfg.mode != "cond_sample_eval_with_tc":
        name = changed[0]
        yield f"cond_sampling.{name} has no effect in mode={cfg.mode}; use mode=cond_sample_eval_with_tc"
    elif "fix_seed" in changed:
        algorithm = settings_of(cfg)
        if algorithm.family != "uniform" and algorithm.mask_noise() is None:
            yield "cond_sampling.fix_seed has no effect on a model whose masks carry no noise"
