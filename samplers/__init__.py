"""Samplers: reverse processes from noise to data. Every module of this package registers what it offers."""

from importlib import import_module
from pkgutil import iter_modules

from samplers.base import Sampler, SamplerSettings, Samples, State
from samplers.draws import Draws, KeyedDraws
from samplers.registry import SAMPLERS, get_sampler, register, register_order

# A new sampler is one file here: importing the package imports all of them, so the registry is complete.
for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = [
    "SAMPLERS",
    "Draws",
    "KeyedDraws",
    "Sampler",
    "SamplerSettings",
    "Samples",
    "State",
    "get_sampler",
    "register",
    "register_order",
]
