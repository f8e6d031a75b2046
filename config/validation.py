"""Settings that cannot hold: limits of single keys here, pairs and oddities in the files beside it."""

from __future__ import annotations

import math
from typing import Any

from omegaconf import DictConfig, OmegaConf

from config.algo_checks import UNIFORM
from config.contradictions import CONTRADICTIONS
from config.devices import check_devices
from config.keys import Key, all_keys
from config.oddities import ODDITIES
from errors import ABSENT, UserError


def fill_derived(cfg: DictConfig) -> None:
    """Settle, in place, what follows from other settings: ``sampling.steps`` as a list, and the like."""
    cfg.sampling.steps = read_steps(cfg.sampling.steps)
    if cfg.sampling.use_p_nucleus is None:
        cfg.sampling.use_p_nucleus = cfg.sampling.p_nucleus < 1
    if not cfg.sampling.use_float64 and cfg.sampling.draws == "exact":
        cfg.sampling.draws = "float32"
    if cfg.model.noise_dim is None:
        cfg.model.noise_dim = cfg.model.hidden_size
    if cfg.loader.num_workers == -1:
        cfg.loader.num_workers = None
    if cfg.eval.nelbo == "auto":
        has_masks = cfg.algo.name not in ("ar", *UNIFORM)
        timeless = has_masks and not cfg.algo.time_conditioning and cfg.algo.T == 0
        cfg.eval.nelbo = "count" if timeless else "time"
    grid = cfg.frontier
    grid.steps = read_steps(grid.steps, "frontier.steps")
    grid.temperatures = read_temperatures(grid.temperatures)
    grid.predictors, grid.checkpoints = read_names(grid.predictors), read_names(grid.checkpoints)
    cfg.zero_shot.datasets = read_names(cfg.zero_shot.datasets)


def read_names(value: Any) -> list[str]:
    """``a``, ``"a,b"`` or ``[a, b]`` as a list of texts; null and empty ones are no names."""
    parts = list(value) if OmegaConf.is_list(value) else str(value or "").strip(" []()").split(",")
    return [str(part).strip() for part in parts if str(part).strip()]


def read_temperatures(value: Any) -> list[float]:
    """``0.9``, ``"0.8,0.9"`` or ``[0.8, 0.9]`` as a list of numbers > 0.

    Raises:
        ValueError: for anything else, or an empty list.
    """
    try:
        found = [float(part) for part in read_names(value)]
    except ValueError:
        found = []
    if not found or not all(0 < temperature < math.inf for temperature in found):
        hint = "give numbers > 0, like 0.8,0.9,1.0"
        raise UserError("frontier.temperatures", ",".join(read_names(value)), "not temperatures", hint)
    return found


def read_steps(value: Any, name: str = "sampling.steps") -> list[int]:
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
        raise UserError(name, shown, "not a number of steps", "give integers >= 1, like 128 or 1,2,4,8")
    return steps


def check(cfg: DictConfig) -> list[str]:
    """Refuse what cannot hold; ``cfg`` is resolved and derived.

    Returns:
        Warnings, one line each, about settings that have no effect.

    Raises:
        ValueError: one line with key, value and hint.
    """
    for name, declared in all_keys().items():
        _check_key(cfg, name, declared)
    check_devices(cfg)
    for refuse in CONTRADICTIONS:
        refuse(cfg)
    return [warning for warn in ODDITIES if (warning := warn(cfg))]


def _check_key(cfg: DictConfig, name: str, declared: tuple[Key, ...]) -> None:
    node = cfg
    *sections, leaf = name.split(".")
    for section in sections:
        node = node.get(section) if node is not None and section in node else None
    if node is None or leaf not in node:
        return
    if OmegaConf.is_missing(node, leaf):
        raise UserError(name, ABSENT, "has no value", f"give {declared[0].type_words()}")
    kind = OmegaConf.get_type(node)
    # A class may declare a key of its base again: the class's own limits hold.
    owners = [d for d in declared if issubclass(kind, d.owner)]
    mine = max(owners, key=lambda d: len(d.owner.__mro__), default=declared[0])
    complaint = mine.limits.complaint(node[leaf])
    if complaint:
        raise UserError(name, node[leaf], *complaint)
