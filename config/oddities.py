"""Settings that have no effect where they stand: each check returns one line of warning, or None."""

from __future__ import annotations

from collections.abc import Callable

from omegaconf import DictConfig, OmegaConf

from config.algo_checks import UNIFORM
from config.data_checks import idle_data
from config.devices import several
from config.keys import all_keys
from config.schema import ONE_DEVICE_MODES

Check = Callable[[DictConfig], str | None]
SAMPLING_MODES = ("sample_eval", "sample_eval_with_tc", "cond_sample_eval_with_tc")


def _load_ema(cfg: DictConfig) -> str | None:
    if cfg.training.load_ema and not cfg.training.finetune_path and cfg.mode == "train":
        return "training.load_ema=True has no effect without training.finetune_path"
    return None


def _wrong_checkpoint_key(cfg: DictConfig) -> str | None:
    if cfg.mode == "train" and cfg.eval.checkpoint_path:
        return "eval.checkpoint_path has no effect in mode=train; training.finetune_path names where to start"
    if cfg.mode not in ("train", "plan") and cfg.training.finetune_path:
        return f"training.finetune_path has no effect in mode={cfg.mode}; eval.checkpoint_path is evaluated"
    return None


def _no_resumption(cfg: DictConfig) -> str | None:
    checkpointing = cfg.checkpointing
    named = checkpointing.resume_ckpt_path not in (None, f"{checkpointing.save_dir}/checkpoints/last.ckpt")
    if named and not checkpointing.resume_from_ckpt and cfg.mode == "train":
        return "checkpointing.resume_ckpt_path has no effect while checkpointing.resume_from_ckpt=False"
    return None


def _norms_alone(cfg: DictConfig) -> str | None:
    if cfg.mode == "train" and cfg.optim.ln_tune != "none" and not cfg.training.finetune_path:
        return f"optim.ln_tune={cfg.optim.ln_tune} without training.finetune_path: the rest stays random"
    return None


def _nucleus(cfg: DictConfig) -> str | None:
    if cfg.sampling.use_p_nucleus and cfg.sampling.p_nucleus == 1:
        return "sampling.use_p_nucleus=True has no effect while sampling.p_nucleus=1"
    if not cfg.sampling.use_p_nucleus and cfg.sampling.p_nucleus < 1:
        return "sampling.p_nucleus has no effect while sampling.use_p_nucleus=False"
    return None


def _truncated(cfg: DictConfig) -> str | None:
    if cfg.sampling.draws == "exact":
        return None
    warning = f"sampling.draws={cfg.sampling.draws} loses rare tokens, which flatters generative perplexity"
    masked = cfg.algo.name in ("mdlm", "imdm", "im-sdtt", "im-redi", "d3pm")
    if masked and cfg.sampling.predictor != "ancestral_joint":
        warning += "; of whole steps, as codes in float32 do, with sampling.predictor=ancestral_joint alone"
    return warning


def _one_mask(cfg: DictConfig) -> str | None:
    resets = cfg.sampling.fix_eps or cfg.sampling.mdlm_posterior
    if cfg.algo.name in UNIFORM and resets:
        which = "fix_eps" if cfg.sampling.fix_eps else "mdlm_posterior"
        return f"sampling.{which}=True has no effect with algo={cfg.algo.name}, which has no masks"
    if cfg.algo.name in ("mdlm", "sedd", "d3pm") and cfg.sampling.fix_eps:
        return f"sampling.fix_eps=True has no effect with algo={cfg.algo.name}, whose masks carry no noise"
    if "as_mdlm" in cfg.algo and cfg.algo.as_mdlm and cfg.algo.num_mask > 0:
        return "algo.num_mask has no effect while algo.as_mdlm=True"
    if "as_mdlm" in cfg.algo and not cfg.algo.as_mdlm and cfg.algo.num_mask == 1 and not resets:
        return "algo.num_mask=1 is a single frozen mask, which equals algo=mdlm"
    return None


def _steps(cfg: DictConfig) -> str | None:
    if cfg.sampling.predictor == "first_hitting" and len(cfg.sampling.steps) > 1:
        return "sampling.steps has no effect: first_hitting samples once, with model.length network calls"
    return None


# What is about noise and its removal, of which an autoregressive model has none.
ABOUT_NOISE = (
    "algo.time_conditioning",
    "noise.name",
    "training.antithetic_sampling",
    "training.ignore_bos",
    "training.loss_type",
    "training.mask_sampling",
    "training.sampling_eps",
    "eval.nelbo",
    "sampling.noise_removal",
    "sampling.fix_eps",
    "sampling.mdlm_posterior",
)


def _without_noise(cfg: DictConfig) -> str | None:
    if cfg.algo.name != "ar":
        return None
    usual = {name: all_keys()[name][0].default for name in ABOUT_NOISE} | {"noise.name": "log-linear"}
    typed = {name: OmegaConf.select(cfg, name) for name in ABOUT_NOISE}
    idle = [f"{name}={value}" for name, value in typed.items() if value != usual[name]]
    if len(cfg.sampling.steps) > 1:
        idle.append(f"sampling.steps={','.join(map(str, cfg.sampling.steps))}")
    if not idle:
        return None
    verb = "have" if len(idle) > 1 else "has"
    return f"{', '.join(idle)} {verb} no effect with algo=ar: no noise, and one call a token"


def _pairs(cfg: DictConfig) -> str | None:
    if cfg.algo.name != "im-redi" or cfg.mode != "train":
        return None
    if (cfg.algo.alpha_min, cfg.algo.alpha_max) != (0.0, 1.0):
        return "algo.alpha_min/alpha_max have no effect with algo=im-redi, whose pairs carry their times"
    if cfg.algo.as_mdlm and cfg.algo.ignore_seed:
        return "algo.ignore_seed has no effect while algo.as_mdlm=True, which has no mask noise"
    return None


def _discrete_time(cfg: DictConfig) -> str | None:
    usual = all_keys()["training.sampling_eps"][0].default
    if cfg.mode == "train" and "posterior" in cfg.algo and cfg.training.sampling_eps != usual:
        return f"training.sampling_eps has no effect with algo.T={cfg.algo.T} discrete times"
    return None


def _never_reached(cfg: DictConfig) -> str | None:
    warmup, last = cfg.lr_scheduler.get("num_warmup_steps", 0), cfg.trainer.max_steps
    if cfg.mode == "train" and warmup > last:
        return f"lr_scheduler.num_warmup_steps={warmup} > trainer.max_steps={last}: optim.lr is never reached"
    return None


def _distillation(cfg: DictConfig) -> str | None:
    algo = cfg.algo
    if "grow_dt_every" not in algo or cfg.mode != "train":
        return None
    if not cfg.training.finetune_path:
        return "training.finetune_path is empty: the first teacher is an untrained network"
    if cfg.training.loss_type != "nelbo":
        return f"training.loss_type has no effect with algo={algo.name}: algo.distill_mode is the loss"
    if algo.teacher_times == "exact" and algo.num_distill_steps <= 2 and not algo.time_conditioning:
        return "algo.teacher_times=exact makes no difference to two steps of a network that sees no time"
    if algo.as_mdlm and not algo.sdtt_fix_eps:
        return "algo.sdtt_fix_eps=False has no effect with algo.as_mdlm=True, whose masks carry no noise"
    if algo.num_distill_steps == 1:
        return "algo.num_distill_steps=1 teaches the student what it says already, and dt never grows"
    return None


def _consistency(cfg: DictConfig) -> str | None:
    algo = cfg.algo
    if "update_teacher_every" not in algo or cfg.mode != "train":
        return None
    if not cfg.training.finetune_path:
        return "training.finetune_path is empty: the first teacher is an untrained network"
    for name in ("linear_growth_min", "linear_growth_max"):
        if algo[name] != all_keys()[f"algo.{name}"][0].default and not algo.linear_growth_dt:
            return f"algo.{name} has no effect without algo.linear_growth_dt=True"
    return None


def _one_device(cfg: DictConfig) -> str | None:
    if cfg.mode in ONE_DEVICE_MODES and (several(cfg.trainer.devices) or cfg.trainer.num_nodes > 1):
        return f"trainer.devices and trainer.num_nodes have no effect: mode={cfg.mode} uses one device"
    return None


def _corrector(cfg: DictConfig) -> str | None:
    if cfg.sampling.predictor == "first_hitting_corrected":
        return (
            "sampling.predictor=first_hitting_corrected asks the network about tokens it sees, which masked "
            "models are not trained for: expect worse texts than from first_hitting_extrapolated"
        )
    return None


def _strides(cfg: DictConfig) -> str | None:
    if not cfg.sampling.semi_ar and (cfg.sampling.stride_length > 1 or cfg.sampling.num_strides > 1):
        return "sampling.stride_length and sampling.num_strides have no effect without sampling.semi_ar=True"
    return None


def _groups(cfg: DictConfig) -> str | None:
    if cfg.sampling.duplicate > 1 and cfg.mode not in SAMPLING_MODES[1:]:
        return f"sampling.duplicate has no effect in mode={cfg.mode}; use mode=sample_eval_with_tc"
    if cfg.sampling.duplicate == 1 and cfg.sampling.num_duplicate_batch > 1:
        return "sampling.num_duplicate_batch has no effect while sampling.duplicate=1"
    return None


def _prompts(cfg: DictConfig) -> str | None:
    typed = [name for name in ("prompt", "prompt_file") if cfg.sampling[name] is not None]
    if typed and cfg.mode not in SAMPLING_MODES[:2]:
        return f"sampling.{typed[0]} has no effect in mode={cfg.mode}; use mode=sample_eval"
    return None


def _trajectories(cfg: DictConfig) -> str | None:
    if cfg.sampling.record_trajectories and cfg.mode not in SAMPLING_MODES:
        return f"sampling.record_trajectories has no effect in mode={cfg.mode}; use mode=sample_eval"
    return None


def _prefixes(cfg: DictConfig) -> str | None:
    usual = {name: all_keys()[f"cond_sampling.{name}"][0].default for name in cfg.cond_sampling}
    idle = [name for name, value in usual.items() if cfg.cond_sampling[name] != value]
    if idle and cfg.mode != SAMPLING_MODES[2]:
        return f"cond_sampling.{idle[0]} has no effect in mode={cfg.mode}; use mode={SAMPLING_MODES[2]}"
    noisy = cfg.algo.name in UNIFORM or ("as_mdlm" in cfg.algo and not cfg.algo.as_mdlm)
    if "fix_seed" in idle and not noisy:
        return "cond_sampling.fix_seed has no effect on a model whose masks carry no noise"
    return None


ODDITIES: tuple[Check, ...] = (
    _one_device,
    _load_ema,
    _wrong_checkpoint_key,
    _no_resumption,
    _norms_alone,
    _nucleus,
    _truncated,
    _one_mask,
    _steps,
    _corrector,
    _strides,
    _groups,
    _prompts,
    _prefixes,
    _trajectories,
    _pairs,
    _without_noise,
    _discrete_time,
    _never_reached,
    _distillation,
    idle_data,
    _consistency,
)
