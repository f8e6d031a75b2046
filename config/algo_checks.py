"""Settings of an algorithm that cannot hold: one line with key, value and hint."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from errors import UserError

# Algorithms without masks, whose noise is uniform.
UNIFORM = ("duo_base", "duo", "distillation", "rectification")


def refuse_algo(cfg: DictConfig) -> None:
    """Raise for settings under ``algo`` that exclude one another, or others that mean nothing to it."""
    _mask_noise(cfg)
    _distillation(cfg)
    _consistency(cfg)
    _integral(cfg)
    _discrete_time(cfg)
    _uniform_state(cfg)


def _mask_noise(cfg: DictConfig) -> None:
    algo = cfg.algo
    if "noise_type" not in algo:
        return
    if algo.noise_type == "learnable" and algo.num_mask > 0:
        raise UserError(
            "algo.num_mask",
            algo.num_mask,
            "a finite alphabet has no learnable noise",
            "use algo.num_mask=0 or algo.noise_type=rand",
        )
    if algo.noise_type == "learnable" and algo.noise_scale != 1:
        raise UserError(
            "algo.noise_scale",
            algo.noise_scale,
            "learnable noise learns its own scale",
            "use algo.noise_scale=1 or algo.noise_type=randn",
        )
    if algo.alpha_min >= algo.alpha_max:
        raise UserError(
            "algo.alpha_min",
            algo.alpha_min,
            f"not below algo.alpha_max={algo.alpha_max}",
            "give algo.alpha_min < algo.alpha_max",
        )


def _distillation(cfg: DictConfig) -> None:
    algo = cfg.algo
    if "grow_dt_every" not in algo:
        return
    first, last = algo.orig_num_sampling_steps, algo.min_num_sampling_steps
    if last > first:
        raise UserError(
            "algo.min_num_sampling_steps",
            last,
            f"above algo.orig_num_sampling_steps={first}: training would be over before it begins",
            "lower it",
        )
    if algo.use_ema_on_growth and cfg.training.ema == 0:
        raise UserError(
            "algo.use_ema_on_growth",
            True,
            "training.ema=0 keeps no average",
            "use algo.use_ema_on_growth=False, or a training.ema such as 0.9999",
        )


def _consistency(cfg: DictConfig) -> None:
    algo = cfg.algo
    if "update_teacher_every" not in algo:
        return
    if algo.teacher_ema and cfg.training.ema == 0:
        hint = "use algo.teacher_ema=False, or a training.ema such as 0.999"
        raise UserError("algo.teacher_ema", True, "training.ema=0 keeps no average", hint)
    if algo.linear_growth_min > algo.linear_growth_max:
        problem = f"above algo.linear_growth_max={algo.linear_growth_max}: the step would shrink"
        raise UserError("algo.linear_growth_min", algo.linear_growth_min, problem, "lower it")


def _integral(cfg: DictConfig) -> None:
    path = cfg.algo.get("integral_cache_path")
    if path and path.lower().endswith((".pkl", ".pickle", ".pt", ".pth")):
        problem = "a pickle, which may run code when it is read"
        hint = "leave it out (P is then computed), or give the npz of python -m integral --vocab_size ..."
        raise UserError("algo.integral_cache_path", path, problem, hint)


def _discrete_time(cfg: DictConfig) -> None:
    if "posterior" not in cfg.algo:
        return
    what = f"the loss of algo={cfg.algo.name} is a sum over algo.T={cfg.algo.T} times"
    for name, value, hint in (
        ("training.loss_type", "low_var", "nelbo"),
        ("training.mask_sampling", "count", "time"),
        ("eval.nelbo", "count", "time"),
    ):
        if OmegaConf.select(cfg, name) == value:
            raise UserError(name, value, what, f"use {name}={hint}")
    if cfg.algo.posterior == "official" and cfg.noise.name != "log-linear":
        raise UserError(
            "algo.posterior",
            "official",
            f"holds for noise=log-linear alone, not for noise={cfg.noise.name}",
            "use algo.posterior=exact",
        )


def _uniform_state(cfg: DictConfig) -> None:
    if cfg.algo.name not in UNIFORM:
        return
    for name, value, usual in (
        ("training.loss_type", "low_var", "nelbo"),
        ("training.mask_sampling", "count", "time"),
        ("eval.nelbo", "count", "time"),
    ):
        if OmegaConf.select(cfg, name) == value:
            problem = f"is about masks, of which algo={cfg.algo.name} has none"
            raise UserError(name, value, problem, f"use {name}={usual}")
    algo = cfg.algo
    if "gamma_min" in algo and algo.gamma_min >= algo.gamma_max:
        problem, hint = f"not below algo.gamma_max={algo.gamma_max}", "give algo.gamma_min < algo.gamma_max"
        raise UserError("algo.gamma_min", algo.gamma_min, problem, hint)
    if "curriculum_end" in algo and algo.curriculum_end < algo.curriculum_start:
        problem = f"before algo.curriculum_start={algo.curriculum_start}"
        raise UserError("algo.curriculum_end", algo.curriculum_end, problem, "give a later one")
