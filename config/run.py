"""The whole configuration: the root keys, the strategy, Weights & Biases, all sections, and their checks.

A section is one file of this folder: its keys, what follows from them (``derive``), what cannot be and what
has no effect (``check``). Nothing here imports torch.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from config import algo, data, evaluation, model, sampling, training
from config.algo import algorithm_settings
from config.data import Data, Loader
from config.evaluation import CondSampling, Eval, Export, Frontier, Judge, Plan, ZeroShot
from config.model import Lora, Model, Noise, PretrainedModel
from config.sampling import Sampling
from config.training import (
    Callbacks,
    CheckpointEveryNSteps,
    Checkpointing,
    CheckpointMonitor,
    ConstantWarmup,
    CosineDecayWarmup,
    GradRecord,
    LearningRateMonitor,
    LrScheduler,
    Optim,
    Reflow,
    StepScheduler,
    Trainer,
    Training,
)
from errors import UserError
from settings import MISSING, AlgorithmSettings, Table, check_values, key, table_of

CONFIG_DIR = Path(__file__).resolve().parent
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
    "judge",
    "export",
    "plan",
)
# The others spread their work over trainer.devices.
ONE_DEVICE_MODES = ("frontier", "judge", "export")


@dataclass
class Strategy:
    """How several devices share the work (with one device: not at all)."""

    name: str = key(MISSING, "the strategy")


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
    mode: str | None = key(
        None, "wandb's own word for it; null: by offline", choices=("online", "offline", "disabled")
    )
    resume: str | None = key(
        None, "whether to go on under id; null: allow", choices=("allow", "must", "never", "auto")
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
    judge: Judge = field(default_factory=Judge)
    plan: Plan = field(default_factory=Plan)
    lora: Lora = field(default_factory=Lora)
    optim: Optim = field(default_factory=Optim)
    trainer: Trainer = field(default_factory=Trainer)
    wandb: Wandb | None = None
    checkpointing: Checkpointing = field(default_factory=Checkpointing)
    reflow: Reflow = field(default_factory=Reflow)


# group -> schema name -> class; the yaml files refer to these names.
GROUP_SCHEMAS: dict[str, dict[str, type]] = {
    "algo": {**algorithm_settings()},
    "model": {"base": Model, "hf": PretrainedModel},
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

SECTIONS = (algo, model, training, sampling, evaluation, data)  # in the order of their checks


@functools.cache
def all_keys() -> Table:
    """Dotted name -> its declarations (several where choices of a group declare the same key)."""
    chosen = [(_prefix(g, name), schema) for g in GROUP_SCHEMAS for name, schema in GROUP_SCHEMAS[g].items()]
    return table_of([("", Config), *chosen])


def _prefix(group: str, schema: str) -> str:
    return f"callbacks.{schema}." if group == "callbacks" else f"{group}."


def sections() -> set[str]:
    """Dotted names that hold keys rather than values, like ``loader`` or ``callbacks.checkpoint_monitor``."""
    return {name[:at] for name in all_keys() for at, letter in enumerate(name) if letter == "."}


@functools.cache
def groups() -> dict[str, list[str]]:
    """The groups with their choices: the yaml files in config/, and the algorithms in algorithms/."""
    found: dict[str, list[str]] = {}
    for path in sorted(CONFIG_DIR.glob("*/*.yaml")):
        found.setdefault(path.parent.name, []).append(path.stem)
    found["algo"] = sorted({*found.get("algo", []), *algorithm_settings()})
    return dict(sorted(found.items()))


def owner_choices(name: str) -> list[str]:
    """The choices of its group that have the key ``name``: ``algo.noise_type`` -> ["imdm"]."""
    group = name.split(".", 1)[0]
    schemas = GROUP_SCHEMAS.get(group, {})
    having = [schema for schema, cls in schemas.items() if name in table_of([(_prefix(group, schema), cls)])]
    if group == "algo":
        return [choice for choice in algorithm_settings() if choice in having]
    choices = []
    for choice in groups().get(group, []):
        text = (CONFIG_DIR / group / f"{choice}.yaml").read_text(encoding="utf-8")
        if any(f"/schema/{group}/{schema}@" in text for schema in having):
            choices.append(choice)
    return choices


def derive(cfg: DictConfig) -> None:
    """Settle, in place, what follows from other settings: ``sampling.steps`` as a list, and the like."""
    for section in (model, data, sampling, evaluation):
        section.derive(cfg)


def expand_home(cfg: DictConfig) -> None:
    """Put the home folder in the place of ``~`` and ``~user`` at the front of paths; ``cfg`` is resolved.

    Shells do so where a word begins with it, and leave ``key=~/x`` alone. Names of a hub do not begin with
    ``~``. Lists of paths (``name:path``) are expanded where they are taken apart.

    Raises:
        UserError: there is no such user.
    """
    for name in path_keys():
        value = OmegaConf.select(cfg, name)
        if isinstance(value, str) and value.startswith("~"):
            expanded = os.path.expanduser(value)
            if expanded.startswith("~"):
                problem = "no such user, whose home folder it would begin with"
                raise UserError(name, value, problem, "write the whole path, or ./~... for a name like that")
            OmegaConf.update(cfg, name, expanded)


def path_keys() -> list[str]:
    """The keys that name one file or folder."""
    return [name for name, declared in all_keys().items() if declared[0].limits.path]


def check(cfg: DictConfig) -> list[str]:
    """Raise for what cannot hold; ``cfg`` is resolved and derived.

    Returns:
        Warnings, one line each, about settings that have no effect.

    Raises:
        UserError: with key, value and hint.
    """
    kinds = {name: OmegaConf.get_type(cfg, name) for name in GROUP_SCHEMAS}
    check_values(OmegaConf.to_container(cfg), all_keys(), kinds)
    _validate_devices(cfg)
    warnings = []
    several = is_multi_device(cfg.trainer.devices) or cfg.trainer.num_nodes > 1
    if cfg.mode in ONE_DEVICE_MODES and several:
        warnings += [f"trainer.devices and trainer.num_nodes have no effect: mode={cfg.mode} uses one device"]
    for section in SECTIONS:
        warnings += section.check(cfg)
    return warnings


def _validate_devices(cfg: DictConfig) -> None:
    """Raise for devices that cannot be, and for batch limits that are no fraction."""
    devices, nodes = cfg.trainer.devices, cfg.trainer.num_nodes
    if OmegaConf.is_list(devices):
        wrong = not devices or any(isinstance(d, bool) or not isinstance(d, int) or d < 0 for d in devices)
    elif isinstance(devices, str):
        wrong = devices != "auto" and not all(part.strip().isdecimal() for part in devices.split(","))
    else:
        wrong = isinstance(devices, bool) or not isinstance(devices, int) or not -1 <= devices <= 2**16
        wrong = wrong or devices == 0
    if wrong:
        hint = "give auto, a number, or indices like [0,1]"
        raise UserError("trainer.devices", devices, "no devices", hint)
    if len(set(_listed(devices))) < len(_listed(devices)):
        raise UserError("trainer.devices", devices, "names a device twice", "name each once")
    if cfg.strategy.name == "single_device" and (is_multi_device(devices) or nodes > 1):
        several = is_multi_device(devices)
        key, value = ("trainer.devices", devices) if several else ("trainer.num_nodes", nodes)
        raise UserError(key, value, "strategy=single_device runs on one", f"use strategy=ddp or {key}=1")
    for name in ("limit_train_batches", "limit_val_batches", "val_check_interval"):
        value = cfg.trainer[name]
        if isinstance(value, float) and value > 1:
            raise UserError(f"trainer.{name}", value, "a fraction above 1", f"write {int(value)} for batches")


def _listed(devices: Any) -> list[int]:
    """The indices that ``trainer.devices`` lists; none where it is a number or auto."""
    if OmegaConf.is_list(devices):
        return list(devices)
    return [int(part) for part in devices.split(",")] if isinstance(devices, str) and "," in devices else []


def is_multi_device(devices: Any) -> bool:
    """Whether ``trainer.devices`` names more than one device."""
    if OmegaConf.is_list(devices) or isinstance(devices, str):
        return devices != "auto" and len(devices if OmegaConf.is_list(devices) else devices.split(",")) > 1
    return devices > 1 or devices == -1
