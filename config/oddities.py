"""Settings that have no effect where they stand: each check returns one line of warning, or None."""

from __future__ import annotations

from collections.abc import Callable

from omegaconf import DictConfig

from config.devices import several

Check = Callable[[DictConfig], str | None]


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
    if cfg.mode == "sample_eval" and (several(cfg.trainer.devices) or cfg.trainer.num_nodes > 1):
        return "trainer.devices and trainer.num_nodes have no effect: mode=sample_eval uses one device"
    return None


ODDITIES: tuple[Check, ...] = (
    _one_device,
    _load_ema,
    _wrong_checkpoint_key,
    _nucleus,
    _float64,
    _one_mask,
    _steps,
    _never_reached,
)
