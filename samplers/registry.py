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


def get_sampler(name: str, family: str = "absorbing") -> type[Sampler]:
    """The sampler class called ``name``, for a model of ``family``.

    Raises:
        ValueError: no sampler has this name, or it makes no sense for such a model.
    """
    fitting = ", ".join(sorted(n for n, sampler in SAMPLERS.items() if family in sampler.families))
    if name not in SAMPLERS:
        raise user_error("sampling.predictor", name, "no such sampler", f"use one of {fitting}")
    if family not in SAMPLERS[name].families:
        raise user_error("sampling.predictor", name, f"not for {family} models", f"use one of {fitting}")
    return SAMPLERS[name]
