"""The table of samplers: what ``sampling.predictor`` and ``sampling.order`` name, and what each claims.

A sampler file registers its classes with ``@register(name, ...)``. The arguments are literals: config/ reads
them from the file's text (``config.sampling``), because importing a sampler means importing torch, which
neither ``--help`` nor a mistyped key should wait for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Literal

from errors import UserError
from samplers.base import REMOVALS, Sampler, Traits

Key = tuple[str, str, str]  # predictor, family of models, order

REGISTRY: dict[Key, type[Sampler]] = {}


def register(
    *names: str,
    claim: str,
    exact: Literal["exact", "limit", "sharpens"],
    families: tuple[str, ...] = ("absorbing",),
    order: str = "random",
    own_order: bool = False,
    on_grid: bool = True,
    removals: tuple[str, ...] = REMOVALS,
    rewrites: bool = False,
    asks_all: bool = False,
    scheduled: bool = False,
) -> Callable[[type[Sampler]], type[Sampler]]:
    """Class decorator that enters a sampler under ``names``; ``order`` other than random: in place of them.

    Each name can be taken once for a family of models and an order. The other arguments are the ``Traits``.
    """

    def enter(cls: type[Sampler]) -> type[Sampler]:
        for name in names:
            for family in families:
                assert (name, family, order) not in REGISTRY, f"two samplers are called {name}"
                REGISTRY[name, family, order] = cls
        cls.name = names[0] if order == "random" else order
        traits = (claim, exact, families, order, own_order, on_grid, removals, rewrites, asks_all, scheduled)
        cls.traits = Traits(*traits)
        cls.own_settings = getattr(sys.modules[cls.__module__], "Settings", None)
        return cls

    return enter


def sampler_names(family: str = "absorbing") -> list[str]:
    """The predictors for models of ``family``, sorted."""
    return sorted({name for name, of, order in REGISTRY if of == family and order == "random"})


def get_sampler(name: str, family: str = "absorbing", order: str = "random") -> type[Sampler]:
    """The sampler class called ``name``, for a model of ``family``, that unmasks in ``order``.

    Raises:
        UserError: no sampler has this name, it makes no sense for such a model, or has no such order.
    """
    able = sampler_names(family)
    if name not in able:
        is_known = any(name == other for other, _, _ in REGISTRY)
        problem = f"not for {family} models" if is_known else "no such sampler"
        raise UserError("sampling.predictor", name, problem, f"use one of {', '.join(able)}")
    if (name, family, order) not in REGISTRY:
        others = sorted(other for other, of, its in REGISTRY if of == family and its == order)
        hint = f"use sampling.predictor={' or '.join(others)}" if others else "use random"
        raise UserError("sampling.order", order, f"not an order of {name}", hint)
    return REGISTRY[name, family, order]
