"""Settings that cannot hold: limits of single keys, pairs that contradict each other, harmless oddities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, OmegaConf

from config.keys import Key, all_keys
from utils import user_error

Check = Callable[[DictConfig], str | None]


def fill_derived(cfg: DictConfig) -> None:
    """Settle, in place, what follows from other settings: ``sampling.steps`` as a list, and the like."""
    cfg.sampling.steps = read_steps(cfg.sampling.steps)
    if cfg.sampling.use_p_nucleus is None:
        cfg.sampling.use_p_nucleus = cfg.sampling.p_nucleus < 1
    if cfg.model.noise_dim is None:
        cfg.model.noise_dim = cfg.model.hidden_size
    if cfg.loader.num_workers == -1:
        cfg.loader.num_workers = None


def read_steps(value: Any) -> list[int]:
    """``8``, ``"1,2,4"`` or ``[1, 2, 4]`` as a list of integers >= 1.

    Raises:
        ValueError: for anything else, or an empty list.
    """
    shown = ",".join(str(part) for part in value) if OmegaConf.is_list(value) else value
    try:
        steps = [int(part) for part in str(shown).strip(" []()").split(",")]
    except ValueError:
        steps = []
    if not steps or min(steps) < 1:
        raise user_error(
            "sampling.steps", shown, "not a number of steps", "give integers >= 1, like 128 or 1,2,4,8"
        )
    return steps


def check(cfg: DictConfig) -> list[str]:
    """Refuse what cannot hold; ``cfg`` is resolved and derived.

    Returns:
        Warnings, one line each, about settings that have no effect.

    Raises:
        ValueError: one line with key, value and mend.
    """
    for name, declared in all_keys().items():
        _check_key(cfg, name, declared)
    _check_devices(cfg)
    for refuse in (_model, _algo, _objective, _sampling, _schedule, _mode):
        refuse(cfg)
    return [warning for warn in WARNINGS if (warning := warn(cfg))]


def _check_key(cfg: DictConfig, name: str, declared: tuple[Key, ...]) -> None:
    node = cfg
    *sections, leaf = name.split(".")
    for section in sections:
        node = node.get(section) if node is not None and section in node else None
    if node is None or leaf not in node:
        return
    if OmegaConf.is_missing(node, leaf):
        raise ValueError(f"{name}: has no value; give {declared[0].type_words()}")
    kind = OmegaConf.get_type(node)
    mine = next((d for d in declared if issubclass(kind, d.owner)), declared[0])
    complaint = mine.limits.complaint(node[leaf])
    if complaint:
        problem, mend = complaint.split("; ", 1)
        raise user_error(name, node[leaf], problem, mend)


def _check_devices(cfg: DictConfig) -> None:
    devices = cfg.trainer.devices
    if OmegaConf.is_list(devices):
        wrong = not devices or any(not isinstance(d, int) or d < 0 for d in devices)
    elif isinstance(devices, str):
        wrong = devices != "auto" and not all(part.strip().isdigit() for part in devices.split(","))
    else:
        wrong = isinstance(devices, bool) or not isinstance(devices, int) or devices < -1 or devices == 0
    if wrong:
        raise user_error(
            "trainer.devices", devices, "no devices", "give auto, a number, or indices like [0,1]"
        )
    if cfg.strategy.name == "single_device" and (_several(devices) or cfg.trainer.num_nodes > 1):
        key, value = (
            ("trainer.devices", devices)
            if _several(devices)
            else ("trainer.num_nodes", cfg.trainer.num_nodes)
        )
        raise user_error(key, value, "strategy=single_device runs on one", f"use strategy=ddp or {key}=1")
    for name in ("limit_train_batches", "limit_val_batches"):
        value = cfg.trainer[name]
        if isinstance(value, float) and value > 1:
            raise user_error(
                f"trainer.{name}", value, "a fraction above 1", f"write {int(value)} for batches"
            )


def _several(devices: Any) -> bool:
    if OmegaConf.is_list(devices) or isinstance(devices, str):
        return devices != "auto" and len(devices if OmegaConf.is_list(devices) else devices.split(",")) > 1
    return devices > 1 or devices == -1


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


def _load_ema(cfg: DictConfig) -> str | None:
    if cfg.training.load_ema and not cfg.training.finetune_path and cfg.mode == "train":
        return "training.load_ema=True has no effect without training.finetune_path"
    return None


def _wrong_checkpoint_key(cfg: DictConfig) -> str | None:
    if cfg.mode == "train" and cfg.eval.checkpoint_path:
        return "eval.checkpoint_path has no effect in mode=train; training.finetune_path names where to start"
    if cfg.mode != "train" and cfg.training.finetune_path:
        return f"training.finetune_path has no effect in mode={cfg.mode}; eval.checkpoint_path is evaluated"
    return None


def _nucleus(cfg: DictConfig) -> str | None:
    if cfg.sampling.use_p_nucleus and cfg.sampling.p_nucleus == 1:
        return "sampling.use_p_nucleus=True has no effect while sampling.p_nucleus=1"
    if not cfg.sampling.use_p_nucleus and cfg.sampling.p_nucleus < 1:
        return "sampling.p_nucleus has no effect while sampling.use_p_nucleus=False"
    return None


def _float64(cfg: DictConfig) -> str | None:
    return (
        None
        if cfg.sampling.use_float64
        else "sampling.use_float64=False is ignored: draws are exact in float64"
    )


def _one_mask(cfg: DictConfig) -> str | None:
    resets = cfg.sampling.fix_eps or cfg.sampling.mdlm_posterior
    if cfg.algo.name == "mdlm" and cfg.sampling.fix_eps:
        return "sampling.fix_eps=True has no effect with algo=mdlm, whose masks carry no noise"
    if "as_mdlm" in cfg.algo and cfg.algo.as_mdlm and cfg.algo.num_mask > 0:
        return "algo.num_mask has no effect while algo.as_mdlm=True"
    if "as_mdlm" in cfg.algo and not cfg.algo.as_mdlm and cfg.algo.num_mask == 1 and not resets:
        return "algo.num_mask=1 is a single frozen mask, which equals algo=mdlm"
    return None


def _steps(cfg: DictConfig) -> str | None:
    if cfg.sampling.predictor == "first_hitting" and len(cfg.sampling.steps) > 1:
        return "sampling.steps has no effect: first_hitting samples once, with model.length network calls"
    return None


def _never_reached(cfg: DictConfig) -> str | None:
    warmup, last = cfg.lr_scheduler.get("num_warmup_steps", 0), cfg.trainer.max_steps
    if cfg.mode == "train" and warmup > last:
        return f"lr_scheduler.num_warmup_steps={warmup} > trainer.max_steps={last}: optim.lr is never reached"
    return None


def _one_device(cfg: DictConfig) -> str | None:
    if cfg.mode == "sample_eval" and (_several(cfg.trainer.devices) or cfg.trainer.num_nodes > 1):
        return "trainer.devices and trainer.num_nodes have no effect: mode=sample_eval uses one device"
    return None


WARNINGS: tuple[Check, ...] = (
    _one_device,
    _load_ema,
    _wrong_checkpoint_key,
    _nucleus,
    _float64,
    _one_mask,
    _steps,
    _never_reached,
)
