"""Compositions without waiting for Hydra's: choices of groups are composed once, values set on a copy."""

from __future__ import annotations

import copy
import functools

from omegaconf import DictConfig, OmegaConf

from config import cli
from config.cli import parsed
from config.run import groups

hydra_composes = cli._compose


@functools.cache
def _chosen(words: tuple[str, ...]) -> DictConfig:
    return hydra_composes(list(words))


def compose(words: list[str]) -> DictConfig:
    """What ``cli._compose`` gives (``monkeypatch.setattr(cli, "_compose", compose)``)."""
    choices = tuple(word for word in words if word.partition("=")[0] in groups())
    cfg = copy.deepcopy(_chosen(choices))
    for override in map(parsed, (word for word in words if word not in choices)):
        if not override.key_or_group.startswith("hydra."):
            OmegaConf.update(cfg, override.key_or_group, copy.deepcopy(override.value()), merge=True)
    return cfg
