"""Settings that have no effect where they stand: each check returns one line of warning, or None."""

from __future__ import annotations

from collections.abc import Callable

from omegaconf import DictConfig

from config.algorithms import settings_of
from config.data_checks import idle_data
from config.devices import several
from config.keys import all_keys
from config.samplers import declared_samplers, named, own_sections
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
    algorithm = settings_of(cfg)
    masked = algorithm.has_masks and algorithm.name != "sedd"
    if masked and cfg.sampling.predictor != "ancestral_joint":
        warning += "; of whole steps, as codes in float32 do, with sampling.predictor=ancestral_joint alone"
    return warning


def _one_mask(cfg: DictConfig) -> str | None:
    algorithm = settings_of(cfg)
    plain = algorithm.has_masks and not hasattr(algorithm, "noise_type")
    if plain and cfg.sampling.fix_eps:
        return f"sampling.fix_eps=True has no effect with algo={cfg.algo.name}, whose masks carry no noise"
    return None


def _steps(cfg: DictConfig) -> str | None:
    predictor = cfg.sampling.predictor
    samplers = named(predictor) if predictor else []
    if samplers and not any(one.on_grid for one in samplers) and len(cfg.sampling.steps) > 1:
        return f"sampling.steps has no effect: {predictor} samples once, with model.length network calls"
    return None


def _own_settings(cfg: DictConfig) -> str | None:
    """Keys of a sampler that was not chosen."""
    chosen = {one.file for one in named(cfg.sampling.predictor or "")}
    for file in own_sections():
        for name, value in cfg.sampling[file].items():
            if file not in chosen and value != all_keys()[f"sampling.{file}.{name}"][0].default:
                names = sorted(
                    {name for one in declared_samplers() if one.file == file for name in one.names}
                )
                needed = " or ".join(names)
                return f"sampling.{file}.{name} has no effect without sampling.predictor={needed}"
    return None


def _never_reached(cfg: DictConfig) -> str | None:
    warmup, last = cfg.lr_scheduler.get("num_warmup_steps") or 0, cfg.trainer.max_steps
    if cfg.mode == "train" and warmup >= last:
        return (
            f"lr_scheduler.num_warmup_steps={warmup} >= trainer.max_steps={last}: optim.lr is never reached"
        )
    return None


def _one_device(cfg: DictConfig) -> str | None:
    if cfg.mode in ONE_DEVICE_MODES and (several(cfg.trainer.devices) or cfg.trainer.num_nodes > 1):
        return f"trainer.devices and trainer.num_nodes have no effect: mode={cfg.mode} uses one device"
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
    algorithm = settings_of(cfg)
    noisy = algorithm.family == "uniform" or algorithm.mask_noise() is not None
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
    _own_settings,
    _strides,
    _groups,
    _prompts,
    _prefixes,
    _trajectories,
    _never_reached,
    idle_data,
)
