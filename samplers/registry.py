"""The table of samplers by name (``sampling.predictor``)."""

from __future__ import annotations

from collections.abc import Callable

from samplers.base import Sampler
from utils import user_error

SAMPLERS: dict[str, type[Sampler]] = {}
ORDERED: dict[tuple[str, str], type[Sampler]] = {}  # (predictor, order) -> what takes the predictor's place


def register(name: str) -> Callable[[type[Sampler]], type[Sampler]]:
    """Class decorator that enters a sampler under ``name``; a name can be taken once."""

    def enter(cls: type[Sampler]) -> type[Sampler]:
        assert name not in SAMPLERS, f"two samplers are called {name}"
        SAMPLERS[name] = cls
        cls.name = name
        return cls

    return enter


def register_order(order: str, *predictors: str) -> Callable[[type[Sampler]], type[Sampler]]:
    """Class decorator: the sampler takes the place of ``predictors`` where ``sampling.order=order``."""

    def enter(cls: type[Sampler]) -> type[Sampler]:
        ORDERED.update({(predictor, order): cls for predictor in predictors})
        cls.name = order
        return cls

    return enter


def get_sampler(name: str, family: str = "absorbing", order: str = "random") -> type[Sampler]:
    """The sampler class called ``name``, for a model of ``family``, that unmasks in ``order``.

    Raises:
        ValueError: no sampler has this name, it makes no sense for such a model, or has no such order.
    """
    fitting = ", ".join(sorted(n for n, sampler in SAMPLERS.items() if family in sampler.families))
    if name not in SAMPLERS:
        raise user_error("sampling.predictor", name, "no such sampler", f"use one of {fitting}")
    if family not in SAMPLERS[name].families:
        raise user_error("sampling.predictor", name, f"not for {family} models", f"use one of {fitting}")
    if order == "random":
        return SAMPLERS[name]
    if (name, order) not in ORDERED:
        able = sorted(predictor for predictor, kind in ORDERED if kind == order)
        mend = f"use sampling.predictor={' or '.join(able)}" if family == "absorbing" else "use random"
        raise user_error("sampling.order", order, f"not an order of {name}", mend)
    return ORDERED[name, order]
