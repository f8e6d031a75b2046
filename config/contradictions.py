"""Pairs of settings that cannot both hold: each check raises one line with key, value and hint."""

from __future__ import annotations

from collections.abc import Callable

from omegaconf import DictConfig

from config.algo_checks import refuse_algo
from config.data_checks import refuse_data
from errors import UserError


def _model(cfg: DictConfig) -> None:
    model = cfg.model
    if model.hidden_size % model.n_heads:
        raise UserError(
            "model.n_heads",
            model.n_heads,
            f"does not divide model.hidden_size={model.hidden_size}",
            "choose a divisor",
        )
    if model.hidden_size // model.n_heads % 2:
        raise UserError(
            "model.n_heads",
            model.n_heads,
            f"makes heads of odd width {model.hidden_size // model.n_heads}, which cannot rotate",
            "choose another divisor of model.hidden_size",
        )
    if model.attention == "sdpa" and model.softcap > 0:
        problem = f"has no soft cap, which model.softcap={model.softcap:g} asks for"
        raise UserError("model.attention", "sdpa", problem, "use auto")
    if model.attention == "flash" and str(cfg.trainer.precision).startswith("32"):
        problem = f"computes in bf16, not in trainer.precision={cfg.trainer.precision}"
        raise UserError("model.attention", "flash", problem, "use auto, or trainer.precision=bf16")


def _objective(cfg: DictConfig) -> None:
    training, by_count = cfg.training, []
    if training.mask_sampling == "count":
        by_count.append("training.mask_sampling")
        if training.loss_type == "low_var":
            raise UserError(
                "training.loss_type",
                "low_var",
                "has no meaning with training.mask_sampling=count",
                "use training.loss_type=nelbo",
            )
        if "alpha_min" in cfg.algo and (cfg.algo.alpha_min > 0 or cfg.algo.alpha_max < 1):
            raise UserError(
                "training.mask_sampling",
                "count",
                "draws no alpha that algo.alpha_min/alpha_max could narrow",
                "use training.mask_sampling=time",
            )
    if cfg.eval.nelbo == "count":
        by_count.append("eval.nelbo")
    if by_count and cfg.algo.time_conditioning:
        raise UserError(
            by_count[0],
            "count",
            "there is no time to condition on (algo.time_conditioning=True)",
            f"use {by_count[0]}=time",
        )


def _sampling(cfg: DictConfig) -> None:
    sampling = cfg.sampling
    if sampling.predictor == "first_hitting" and sampling.noise_removal != "ancestral":
        raise UserError(
            "sampling.noise_removal",
            sampling.noise_removal,
            "sampling.predictor=first_hitting has no last step",
            "use sampling.noise_removal=ancestral",
        )
    if (sampling.predictor or "").startswith("first_hitting_") and sampling.noise_removal == "none":
        raise UserError(
            "sampling.noise_removal",
            "none",
            f"sampling.predictor={sampling.predictor} leaves no mask",
            "use ancestral or greedy",
        )
    _order(cfg)
    if sampling.semi_ar and sampling.stride_length >= cfg.model.length:
        raise UserError(
            "sampling.stride_length",
            sampling.stride_length,
            f"keeps nothing of a window of model.length={cfg.model.length}",
            "use a smaller one",
        )


def _order(cfg: DictConfig) -> None:
    sampling = cfg.sampling
    if sampling.order == "random":
        return
    if sampling.predictor not in (None, "ancestral", "ancestral_cache"):
        raise UserError(
            "sampling.order",
            sampling.order,
            f"sampling.predictor={sampling.predictor} has an order of its own",
            "use sampling.order=random or sampling.predictor=ancestral",
        )
    if sampling.noise_removal == "none":
        raise UserError(
            "sampling.noise_removal",
            "none",
            f"sampling.order={sampling.order} leaves no mask",
            "use ancestral or greedy",
        )


def _pairs(cfg: DictConfig) -> None:
    if cfg.algo.name == "im-redi" and cfg.training.mask_sampling == "count":
        raise UserError(
            "training.mask_sampling",
            "count",
            "the pairs of algo=im-redi carry their times",
            "use training.mask_sampling=time",
        )
    makes_pairs = cfg.mode == "train" and cfg.data.train != "reflow" and cfg.reflow.make_missing
    if cfg.algo.get("onestep_mode", False) and makes_pairs and cfg.reflow.perturbed_rect:
        problem = "reflow.make_missing=True would make pairs that start at all times"
        raise UserError("algo.onestep_mode", True, problem, "use reflow.perturbed_rect=False")
    if cfg.mode == "generate_reflow_dataset" and cfg.data.train == "reflow":
        problem = "pairs are made from text, not from pairs"
        raise UserError("data", cfg.data.name, problem, "use the data that the model was trained on")
    if cfg.mode == "generate_reflow_dataset" and cfg.sampling.noise_removal == "none":
        raise UserError(
            "sampling.noise_removal", "none", "would leave masks or noise in the texts", "use ancestral"
        )


def _schedule(cfg: DictConfig) -> None:
    scheduler = cfg.lr_scheduler
    if scheduler.name == "cosine_decay_warmup" and scheduler.min_lr >= cfg.optim.lr:
        raise UserError(
            "lr_scheduler.min_lr", scheduler.min_lr, f"not below optim.lr={cfg.optim.lr}", "lower it"
        )


def _mode(cfg: DictConfig) -> None:
    if cfg.mode not in ("train", "gen_ppl_eval", "frontier", "plan") and not cfg.eval.checkpoint_path:
        raise UserError(
            "eval.checkpoint_path",
            "''",
            f"mode={cfg.mode} evaluates a checkpoint",
            "give eval.checkpoint_path=.../last.ckpt",
        )


def _prompts(cfg: DictConfig) -> None:
    if cfg.sampling.prompt is not None and cfg.sampling.prompt_file is not None:
        problem = "sampling.prompt is given as well"
        raise UserError("sampling.prompt_file", cfg.sampling.prompt_file, problem, "leave one of them out")


def _conditional(cfg: DictConfig) -> None:
    if cfg.mode != "cond_sample_eval_with_tc":
        return
    settings, length, sampling = cfg.cond_sampling, cfg.model.length, cfg.sampling
    written = length + (sampling.num_strides * sampling.stride_length if sampling.semi_ar else 0)
    checks = (
        ("prefix_len", settings.prefix_len >= length, f"leaves nothing to write of model.length={length}"),
        (
            "seq_len",
            settings.seq_len <= settings.prefix_len,
            f"keeps nothing behind cond_sampling.prefix_len={settings.prefix_len}",
        ),
        ("seq_len", settings.seq_len > written, f"only {written} tokens are written"),
        (
            "min_seq_len",
            settings.min_seq_len > length,
            f"no validation block is so long, they have model.length={length}",
        ),
        (
            "min_seq_len",
            settings.min_seq_len < settings.prefix_len,
            f"lets in texts shorter than cond_sampling.prefix_len={settings.prefix_len}",
        ),
    )
    hints = ("use a smaller one", "use a larger one", f"use at most {written}", f"use {length}", "raise it")
    for (name, is_wrong, problem), hint in zip(checks, hints, strict=True):
        if is_wrong:
            raise UserError(f"cond_sampling.{name}", settings[name], problem, hint)


def _frontier(cfg: DictConfig) -> None:
    if cfg.mode != "frontier":
        return
    if not cfg.frontier.checkpoints:
        hint = "give frontier.checkpoints=name:path,name:path or eval.checkpoint_path"
        raise UserError("frontier.checkpoints", "''", "mode=frontier evaluates checkpoints", hint)
    if not cfg.eval.compute_generative_perplexity:
        hint = "use True, with eval.gen_ppl_eval_model_name_or_path for the judge"
        raise UserError("eval.compute_generative_perplexity", False, "mode=frontier is about it", hint)
    for predictor in cfg.frontier.predictors:
        tried = cfg.copy()
        tried.sampling.predictor = predictor
        _sampling(tried)


def _zero_shot(cfg: DictConfig) -> None:
    if cfg.mode == "zero_shot" and not cfg.zero_shot.datasets:
        hint = "give names like wikitext2,ptb"
        raise UserError("zero_shot.datasets", "''", "mode=zero_shot evaluates data sets", hint)


CONTRADICTIONS: tuple[Callable[[DictConfig], None], ...] = (
    _model,
    refuse_algo,
    _objective,
    _sampling,
    _pairs,
    _schedule,
    _mode,
    _prompts,
    _conditional,
    _frontier,
    _zero_shot,
    refuse_data,
)
