"""The table of samplers by name (``sampling.predictor``)."""

from __future__ import annotations

from collections.abc import Callable

from errors import UserError
from samplers.base import Sampler

SAMPLERS: dict[str, type[Sampler]] = {}
ORDERED: dict[tuple[str, str], type[Sampler]] = {}  # (predictor, order) -> what takes the predictor's place
IN_FAMILY: dict[tuple[str, str], type[Sampler]] = {}  # (predictor, family) -> the same for such models


def register(name: str) -> Callable[[type[Sampler]], type[Sampler]]:
    """Class decorator that enters a sampler under ``name``; a name can be taken once."""

    def enter(cls: type[Sampler]) -> type[Sampler]:
        assert name not in SAMPLERS, f"two samplers are called {name}"
        SAMPLERS[name] = cls
        cls.name = name
        return cls

    return enter


def register_for(family: str, predictor: str) -> Callable[[type[Sampler]], type[Sampler]]:
    """Class decorator: for models of ``family`` the sampler is what ``predictor`` means."""

    def enter(cls: type[Sampler]) -> type[Sampler]:
        IN_FAMILY[predictor, family] = cls
        cls.name = predictor
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
    able = {n: sampler for n, sampler in SAMPLERS.items() if family in sampler.families}
    able |= {n: sampler for (n, of), sampler in IN_FAMILY.items() if of == family}
    if name not in able:
        problem = f"not for {family} models" if name in SAMPLERS else "no such sampler"
        raise UserError("sampling.predictor", name, problem, f"use one of {', '.join(sorted(able))}")
    if order == "random":
        return able[name]
    if (name, order) not in ORDERED or family not in ORDERED[name, order].families:
        others = sorted(predictor for predictor, kind in ORDERED if kind == order)
        hint = f"use sampling.predictor={' or '.join(others)}" if family == "absorbing" else "use random"
        raise UserError("sampling.order", order, f"not an order of {name}", hint)
    return ORDERED[name, order]
