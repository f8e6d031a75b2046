"""Wrong values for every key: one line that names it, no other exception, no wrong type taken silently.

What ``compose_config`` does is done here step by step on one configuration per choice, because Hydra would
take minutes for so many: clean the word, set the value, derive, check; then the old value again.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import quick_compose
from omegaconf import DictConfig, OmegaConf

from config import cli
from config.cli import COMPOSE_ERRORS, _explain_value, clean_overrides, compose_config
from config.run import all_keys, check, derive, owner_choices
from errors import UserError
from settings import Key

HUGE = "1" + "0" * 30
NUMBERS = ("abc", "nan", "inf", "-inf", "[1,2]", "{a:1}", "", "true")
WRONG: dict[Any, tuple[str, ...]] = {
    int: (*NUMBERS, "1.5", HUGE),
    float: NUMBERS,
    bool: ("abc", "2", "nan", "[1]", "{a:1}", "", "1.5"),
    str: ("",),  # anything else is a text
    list: ("{a:1}",),
    Any: ("{a:1}", "[[1]]", "nan"),
}
OUT_OF_RANGE = ("low", "high", "above", "below")

# What is taken on purpose although it is of another type: key -> values.
TAKEN = {
    "algo.num_mask": {"-1"},  # as the official programs write 0
    "algo.curriculum_top_k": {"-1"},
    "noise.eps": {"0"},
    "frontier.predictors": {"nan"},  # names like any other
    "frontier.checkpoints": {"nan"},
    "judge.files": {"nan"},
    "zero_shot.datasets": {"nan"},
}


def words_for(name: str) -> list[str]:
    """The choices under which the key exists."""
    group = name.split(".")[0]
    if group == "callbacks":
        return [f"callbacks=[{name.split('.')[1]}]"]
    if group in ("algo", "lr_scheduler"):
        usual = {"algo": "mdlm", "lr_scheduler": "constant_warmup"}[group]
        owners = owner_choices(name)
        return [f"{group}={usual if usual in owners else owners[0]}"]
    return []


@functools.cache
def base(words: tuple[str, ...]) -> DictConfig:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "_compose", quick_compose.compose)
        return compose_config(words, warn=False)


def outcome(name: str, value: str) -> UserError | None:
    """The error about ``name=value``, or None: it is taken."""
    cfg = base(tuple(words_for(name)))
    try:
        (override,) = clean_overrides([*words_for(name), f"{name}={value}"]).parsed[-1:]
    except UserError as error:
        return error
    before = copy.deepcopy(OmegaConf.select(cfg, name))
    try:
        OmegaConf.update(cfg, name, copy.deepcopy(override.value()), merge=True)
    except COMPOSE_ERRORS as error:
        return _explain_value(cfg, override, error)
    try:
        derive(cfg)
        check(cfg)
    except UserError as error:
        return error
    finally:
        OmegaConf.update(cfg, name, before, merge=False)
    return None


def wrong_values(declared: tuple[Key, ...]) -> set[str]:
    """Values that are of no type that the key takes, and numbers outside its limits."""
    kinds = frozenset().union(*(one.types for one in declared)) - {type(None)}
    values = set.intersection(*(set(WRONG[kind]) for kind in kinds))
    if str in kinds and not declared[0].limits.choices and declared[0].default == "":
        values.discard("")
    if all(one.limits.choices for one in declared):
        values |= {"abc"}
    for bound in OUT_OF_RANGE:
        limits = [getattr(one.limits, bound) for one in declared]
        if kinds & {int, float} and None not in limits:
            step = 0 if bound in ("above", "below") else 1
            outside = max(limits) + step if bound in ("high", "below") else min(limits) - step
            values.add(str(int(outside) if int(outside) == outside else outside))
    return values


@pytest.mark.parametrize("section", sorted({name.split(".")[0] for name in all_keys()}))
def test_wrong_values_are_one_line_that_names_the_key(section: str) -> None:
    taken, unclear = [], []
    for name, declared in all_keys().items():
        if name.split(".")[0] != section:
            continue
        for value in sorted(wrong_values(declared) - TAKEN.get(name, set())):
            error = outcome(name, value)
            if error is None:
                taken.append(f"{name}={value}")
            elif error.key.split("=")[0] != name or "\n" in str(error) or not error.problem:
                unclear.append(f"{name}={value} -> {error}")
    assert not taken, "a wrong value is taken"
    assert not unclear, "the line names another key"
