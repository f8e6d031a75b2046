"""Pairs of settings that cannot both hold: each check raises one line with key, value and mend."""

from __future__ import annotations

from collections.abc import Callable

from omegaconf import DictConfig

from utils import user_error


def _model(cfg: DictConfig) -> None:
    model = cfg.model
    if model.hidden_size % model.n_heads:
        raise user_error(
            "model.n_heads",
            model.n_heads,
            f"does not divide model.hidden_size={model.hidden_size}",
            "choose a divisor",
        )
    if model.hidden_size // model.n_heads % 2:
        raise user_error(
            "model.n_heads",
            model.n_heads,
            f"makes heads of odd width {model.hidden_size // model.n_heads}, which cannot rotate",
            "choose another divisor of model.hidden_size",
        )


def _algo(cfg: DictConfig) -> None:
    algo = cfg.algo
    if "noise_type" not in algo:
        return
    if algo.noise_type == "learnable" and algo.num_mask > 0:
        raise user_error(
            "algo.num_mask",
            algo.num_mask,
            "a finite alphabet has no learnable noise",
            "use algo.num_mask=0 or algo.noise_type=rand",
        )
    if algo.noise_type == "learnable" and algo.noise_scale != 1:
        raise user_error(
            "algo.noise_scale",
            algo.noise_scale,
            "learnable noise learns its own scale",
            "use algo.noise_scale=1 or algo.noise_type=randn",
        )
    if algo.alpha_min >= algo.alpha_max:
        raise user_error(
            "algo.alpha_min",
            algo.alpha_min,
            f"not below algo.alpha_max={algo.alpha_max}",
            "give algo.alpha_min < algo.alpha_max",
        )


def _objective(cfg: DictConfig) -> None:
    training, by_count = cfg.training, []
    if training.mask_sampling == "count":
        by_count.append("training.mask_sampling")
        if training.loss_type == "low_var":
            raise user_error(
                "training.loss_type",
                "low_var",
                "has no meaning with training.mask_sampling=count",
                "use training.loss_type=nelbo",
            )
        if "alpha_min" in cfg.algo and (cfg.algo.alpha_min > 0 or cfg.algo.alpha_max < 1):
            raise user_error(
                "training.mask_sampling",
                "count",
                "draws no alpha that algo.alpha_min/alpha_max could narrow",
                "use training.mask_sampling=time",
            )
    if cfg.eval.nelbo == "count":
        by_count.append("eval.nelbo")
    if by_count and cfg.algo.time_conditioning:
        raise user_error(
            by_count[0],
            "count",
            "there is no time to condition on (algo.time_conditioning=True)",
            f"use {by_count[0]}=time",
        )


def _sampling(cfg: DictConfig) -> None:
    sampling = cfg.sampling
    if sampling.predictor == "first_hitting" and sampling.noise_removal != "ancestral":
        raise user_error(
            "sampling.noise_removal",
            sampling.noise_removal,
            "sampling.predictor=first_hitting has no last step",
            "use sampling.noise_removal=ancestral",
        )


def _schedule(cfg: DictConfig) -> None:
    scheduler = cfg.lr_scheduler
    if scheduler.name == "cosine_decay_warmup" and scheduler.min_lr >= cfg.optim.lr:
        raise user_error(
            "lr_scheduler.min_lr", scheduler.min_lr, f"not below optim.lr={cfg.optim.lr}", "lower it"
        )


def _mode(cfg: DictConfig) -> None:
    if cfg.mode != "train" and not cfg.eval.checkpoint_path:
        raise user_error(
            "eval.checkpoint_path",
            "''",
            f"mode={cfg.mode} evaluates a checkpoint",
            "give eval.checkpoint_path=.../last.ckpt",
        )


CONTRADICTIONS: tuple[Callable[[DictConfig], None], ...] = (
    _model,
    _algo,
    _objective,
    _sampling,
    _schedule,
    _mode,
)
