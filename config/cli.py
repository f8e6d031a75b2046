"""From a command line to a validated, resolved configuration, or one line that says what is wrong."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    GrammarParseError,
    OmegaConfBaseException,
    ValidationError,
)

from config.choice import mark_default
from config.groups import GROUP_SCHEMAS
from config.keys import CONFIG_DIR, all_keys, groups, owner_choices, sections
from config.official import refuse_other_claims
from config.overrides import Overrides, clean_overrides, unknown_key
from config.paths import expand_home
from config.schema import Config
from config.validation import check, fill_derived
from errors import ABSENT, UserError
from utils import get_logger

log = get_logger("config")

# What a composition can fail with; OmegaConf asserts where a key is set inside a section that is null.
COMPOSE_ERRORS = (HydraException, OmegaConfBaseException, AssertionError, TypeError, ValueError)


def compose_config(overrides: Sequence[str] = (), *, warn: bool = True) -> DictConfig:
    """The configuration of a command line: cleaned, composed, derived, resolved and validated.

    Args:
        overrides: words like ``"algo=imdm"``, ``"+loader.num_workers=0"``, ``"sampling.steps=1,2,4"``.
        warn: log settings that have no effect and official keys that mean nothing here.

    Raises:
        ValueError: one line that names the key.
    """
    cleaned = clean_overrides(overrides)
    cfg = compose_clean(cleaned)
    warnings = finish(cfg, algo_is_chosen=cleaned.choose_algorithm)
    if warn:
        for line in [*dropped_warning(cleaned), *warnings]:
            log.warning(line)
    return cfg


def dropped_warning(cleaned: Overrides) -> list[str]:
    """What is to be said about official words: one line on those that mean nothing here, then the others."""
    dropped = ", ".join(sorted(set(cleaned.dropped)))
    return [*([f"no meaning here, ignored: {dropped}"] if dropped else []), *cleaned.remarks]


def compose_clean(cleaned: Overrides) -> DictConfig:
    """Compose cleaned overrides; Hydra's errors become one line that names the key."""
    register_schema()
    try:
        cfg = _compose(cleaned.words)
    except COMPOSE_ERRORS as error:
        raise _explain(cleaned, error) from error
    refuse_other_claims(cleaned.claims, cfg.algo.name)
    return cfg


def finish(cfg: DictConfig, *, algo_is_chosen: bool = True) -> list[str]:
    """Derive, resolve and validate ``cfg`` in place; returns warnings.

    Args:
        algo_is_chosen: somebody chose the algorithm; otherwise ``config.choice`` knows it for a default.
    """
    if not algo_is_chosen:
        mark_default(cfg)
    try:
        fill_derived(cfg)
        OmegaConf.resolve(cfg)
    except OmegaConfBaseException as error:
        raise _explain_interpolation(cfg, error) from error
    expand_home(cfg)
    return check(cfg)


def _explain_interpolation(cfg: DictConfig, error: OmegaConfBaseException) -> UserError:
    """The error about the first key that refers to nothing."""
    for name in all_keys():
        try:
            OmegaConf.select(cfg, name)
        except OmegaConfBaseException as broken:
            return UserError(name, ABSENT, _one_line(broken), "name a key that exists inside ${...}")
    return UserError("config", ABSENT, _one_line(error))


@functools.cache
def register_schema() -> None:
    """Make the schema known to Hydra, once."""
    store = ConfigStore.instance()
    store.store(group="schema", name="config", node=Config)
    for group, schemas in GROUP_SCHEMAS.items():
        for name, schema in schemas.items():
            store.store(group=group if group == "algo" else f"schema/{group}", name=name, node=schema)


def _compose(words: list[str]) -> DictConfig:
    if GlobalHydra.instance().is_initialized():  # inside a job that Hydra runs, of the same folder
        return compose("config", overrides=words)
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3", job_name="main"):
        return compose("config", overrides=words)


def _explain(cleaned: Overrides, error: Exception) -> UserError:
    """The error of a failed composition: apply the overrides one by one and name the first that fails."""
    chosen = [word for word, o in zip(cleaned.words, cleaned.parsed, strict=True) if _is_group(o)]
    try:
        cfg = _compose(chosen)
    except COMPOSE_ERRORS as broken:
        return UserError("config", ABSENT, _one_line(broken))
    for override in cleaned.parsed:
        name = override.key_or_group
        if _is_group(override) or name.startswith("hydra."):
            continue
        try:
            OmegaConf.update(cfg, name, copy.deepcopy(override.value()), merge=True)
        except COMPOSE_ERRORS as broken:
            return _explain_value(cfg, override, broken)
    return UserError("config", ABSENT, _one_line(error))


def _is_group(override: Override) -> bool:
    return override.key_or_group in groups() or "/" in override.key_or_group


def _explain_value(cfg: DictConfig, override: Override, error: Exception) -> UserError:
    name, value = override.key_or_group, override.value()
    shown = override.get_value_string()
    if name in sections():
        inside = next(key for key in all_keys() if key.startswith(f"{name}."))
        return UserError(name, shown, "a section, not a value", f"set its keys, like {inside}=...")
    if name.startswith("callbacks.") and _is_null(cfg, name.rsplit(".", 1)[0]):
        return UserError(name, ABSENT, "this callback is not chosen", "add it to callbacks=[...]")
    if name.startswith("wandb.") and cfg.wandb is None:
        return UserError(name, ABSENT, "wandb is switched off", "add wandb=default")
    declared = all_keys().get(name)
    if declared and isinstance(error, ValidationError):
        return UserError(name, shown, *declared[0].type_error(value))
    if isinstance(error, GrammarParseError):
        return UserError(name, shown, "${...} is not closed or has no key in it", "write ${section.key}")
    if declared and isinstance(error, (ConfigAttributeError, ConfigKeyError)):
        group = name.split(".", 1)[0]
        owners = " or ".join(f"{group}={choice}" for choice in owner_choices(name))
        problem = f"unknown key with {group}={cfg[group].name}"
        return UserError(name, ABSENT, problem, f"it belongs to {owners}")
    return unknown_key(name) if not declared else UserError(name, shown, _one_line(error))


def _is_null(cfg: DictConfig, name: str) -> bool:
    return OmegaConf.select(cfg, name, throw_on_missing=False) is None


def _one_line(error: BaseException) -> str:
    """The text of an error without line breaks and without Hydra's hints for programmers."""
    text = f"{error} {error.__cause__ or ''}" if isinstance(error, HydraException) else str(error)
    text = re.sub(r"(full_key|object_type|reference_type)[:=]\S*", "", text)
    return " ".join(text.replace("Available options in", "; available options in").split())
