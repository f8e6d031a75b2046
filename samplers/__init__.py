"""Samplers: reverse processes from noise to data. Every module of this package registers what it offers."""

from importlib import import_module
from pkgutil import walk_packages

from samplers.base import Sampler, SamplerSettings, Samples, State, setting
from samplers.draws import Draws, KeyedDraws
from samplers.registry import REGISTRY, get_sampler, register, sampler_names

# A new sampler is one file here: importing the package imports all of them, so the registry is complete.
for _module in walk_packages(__path__, f"{__name__}."):
    import_module(_module.name)

__all__ = [
    "REGISTRY",
    "Draws",
    "KeyedDraws",
    "Sampler",
    "SamplerSettings",
    "Samples",
    "State",
    "get_sampler",
    "register",
    "sampler_names",
    "setting",
]
