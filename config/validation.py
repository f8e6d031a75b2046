"""Settings that cannot hold: limits of single keys here, pairs and oddities in the files beside it."""

from __future__ import annotations

import math
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from config.algorithms import settings_of
from config.contradictions import CONTRADICTIONS
from config.devices import check_devices
from config.keys import Key, all_keys
from config.oddities import ODDITIES
from config.pretrained import fill_pretrained, refuse_pretrained
from errors import ABSENT, UserError

MOST_STEPS = 10**7


def fill_derived(cfg: DictConfig) -> None:
    """Settle, in place, what follows from other settings: ``sampling.steps`` as a list, and the like."""
    cfg.sampling.steps = read_steps(cfg.sampling.steps)
    if cfg.sampling.use_p_nucleus is None:
        cfg.sampling.use_p_nucleus = cfg.sampling.p_nucleus < 1
    if not cfg.sampling.use_float64 and cfg.sampling.draws == "exact":
        cfg.sampling.draws = "float32"
    fill_pretrained(cfg)
    if cfg.model.noise_dim is None:
        cfg.model.noise_dim = cfg.model.hidden_size
    if cfg.loader.num_workers == -1:
        cfg.loader.num_workers = None
    if cfg.eval.nelbo == "auto":
        timeless = settings_of(cfg).has_masks and not cfg.algo.time_conditioning and cfg.algo.T == 0
        cfg.eval.nelbo = "count" if timeless else "time"
    grid = cfg.frontier
    grid.steps = read_steps(grid.steps, "frontier.steps")
    grid.temperatures = read_temperatures(grid.temperatures)
    grid.predictors = read_names(grid.predictors, "frontier.predictors")
    grid.checkpoints = read_names(grid.checkpoints, "frontier.checkpoints")
    cfg.zero_shot.datasets = read_names(cfg.zero_shot.datasets, "zero_shot.datasets")
    for role in ("train", "valid"):
        if cfg.data[role] == "reflow-dataset":  # its name in the official configurations
            cfg.data[role] = "reflow"


def read_names(value: Any, name: str) -> list[str]:
    """``a``, ``"a,b"`` or ``[a, b]`` as a list of texts; null and empty ones are no names.

    Raises:
        UserError: a list in the list, or key: value pairs.
    """
    if OmegaConf.is_dict(value) or OmegaConf.is_list(value) and any(map(OmegaConf.is_config, value)):
        raise UserError(name, value, "not a list of names", "write a,b")
    parts = list(value) if OmegaConf.is_list(value) else str(value or "").strip(" []()").split(",")
    return [str(part).strip() for part in parts if str(part).strip()]


def read_temperatures(value: Any) -> list[float]:
    """``0.9``, ``"0.8,0.9"`` or ``[0.8, 0.9]`` as a list of numbers > 0.

    Raises:
        ValueError: for anything else, or an empty list.
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


def read_steps(value: Any, name: str = "sampling.steps") -> list[int]:
    """``8``, ``"1,2,4"`` or ``[1, 2, 4]`` as a list of integers >= 1.

    Raises:
        ValueError: for anything else, or an empty list.
    """
    shown = ",".join(str(part) for part in value) if OmegaConf.is_list(value) else value
    if OmegaConf.is_list(value) and any(map(OmegaConf.is_config, value)):
        shown = ""  # lists in the list
    try:
        steps = [int(part) for part in str(shown).strip(" []()").split(",")]
    except ValueError:
        steps = []
    if not steps or min(steps) < 1 or max(steps) > MOST_STEPS:
        hint = f"give integers from 1 to {MOST_STEPS}, like 128 or 1,2,4,8"
        raise UserError(name, shown, "not a number of steps", hint)
    return steps


def check(cfg: DictConfig) -> list[str]:
    """Refuse what cannot hold; ``cfg`` is resolved and derived.

    Returns:
        Warnings, one line each, about settings that have no effect.

    Raises:
        ValueError: one line with key, value and hint.
    """
    values = OmegaConf.to_container(cfg)
    for name, declared in all_keys().items():
        _check_key(cfg, values, name, declared)
    check_devices(cfg)
    algorithm = settings_of(cfg)
    refuse_pretrained(cfg)
    algorithm.validate(cfg)
    for refuse in CONTRADICTIONS:
        refuse(cfg)
    return [warning for warn in ODDITIES if (warning := warn(cfg))] + algorithm.warnings(cfg)


def _check_key(cfg: DictConfig, values: Any, name: str, declared: tuple[Key, ...]) -> None:
    *sections, leaf = name.split(".")
    for section in sections:
        values = values.get(section) if values is not None else None
    if values is None or leaf not in values:
        return
    value = values[leaf]
    if value == MISSING:
        raise UserError(name, ABSENT, "has no value", f"give {declared[0].type_words()}")
    mine = list(declared)
    if len(declared) > 1:
        # A class may declare a key of its base again: the class's own limits hold.
        kind = OmegaConf.get_type(OmegaConf.select(cfg, ".".join(sections)))
        owners = [d for d in declared if issubclass(kind, d.owner)]
        mine = [max(owners, key=lambda d: len(d.owner.__mro__))] if owners else mine
    complaints = [one.limits.complaint(value) or one.if_empty(value) for one in mine]
    if all(complaints):  # of settings without a class any declaration may be the one
        raise UserError(name, value, *complaints[0])
