"""The table of samplers by name (``sampling.predictor``)."""

from __future__ import annotations

from collections.abc import Callable

from samplers.base import Sampler
from utils import user_error

SAMPLERS: dict[str, type[Sampler]] = {}


def register(name: str) -> Callable[[type[Sampler]], type[Sampler]]:
    """Class decorator that enters a sampler under ``name``; a name can be taken once."""

    def enter(cls: type[Sampler]) -> type[Sampler]:
        assert name not in SAMPLERS, f"two samplers are called {name}"
        SAMPLERS[name] = cls
        cls.name = name
        return cls

    return enter


def get_sampler(name: str) -> type[Sampler]:
    """The sampler class called ``name``.

    Raises:
        ValueError: no sampler has this name.
    """
    if name not in SAMPLERS:
        names = ", ".join(sorted(SAMPLERS))
        raise user_error("sampling.predictor", name, "no such sampler", f"use one of {names}")
    return SAMPLERS[name]
