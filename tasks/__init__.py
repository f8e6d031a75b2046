"""One file a mode: each takes the composed configuration, returns its result and writes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig

from tasks.ppl_eval import ppl_eval
from tasks.sample_eval import sample_eval
from tasks.train import train

MODES: dict[str, Callable[[DictConfig], dict[str, Any]]] = {
    "train": train,
    "ppl_eval": ppl_eval,
    "sample_eval": sample_eval,
}
