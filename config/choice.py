"""Whether the algorithm of a configuration was chosen by somebody, or is the one that nobody typed.

The mark is a flag of the node, not a key: it changes no run folder, no stored configuration.
"""

from __future__ import annotations

from omegaconf import DictConfig

_FLAG = "algo_by_default"


def mark_default(cfg: DictConfig) -> None:
    """Note that nobody chose ``cfg.algo``."""
    cfg._set_flag(_FLAG, True)


def is_default(cfg: DictConfig) -> bool:
    """Whether ``cfg.algo`` is the default that nobody chose; a configuration from elsewhere was chosen."""
    return bool(cfg._get_flag(_FLAG))
