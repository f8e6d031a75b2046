"""Section ``algo``: the algorithms, found in algorithms/ by the source of their settings classes.

Importing an algorithm imports torch, seconds that nobody waits for who mistyped a key. So the classes called
``...Settings`` are taken out of the files and made alone; tests hold them equal to the imported ones.
"""

from __future__ import annotations
import __future__

import ast
import dataclasses
import functools
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

import settings as vocabulary
from settings import AlgorithmSettings

_BY_DEFAULT = "algo_by_default"  # a flag of the node, not a key: it changes no stored configuration
FOLDER = Path(__file__).resolve().parent.parent / "algorithms"


@functools.cache
def algorithm_settings() -> dict[str, type[AlgorithmSettings]]:
    """The settings class of every algorithm by its name, ``{"mdlm": MdlmSettings, ...}``."""
    found = [cls for cls in settings_classes(FOLDER).values() if cls().name]
    return {cls().name: cls for cls in sorted(found, key=lambda cls: cls().name)}


def settings_classes(folder: Path) -> dict[str, type[AlgorithmSettings]]:
    """All settings classes in the files of ``folder`` by the name of the class, bases before subclasses.

    Raises:
        NameError: a class is based on one that no file has.
    """
    waiting = []
    for path in sorted(folder.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name.endswith("Settings"):
                waiting.append((node, path))
    names: dict[str, Any] = dict(vars(vocabulary))
    made: dict[str, type[AlgorithmSettings]] = {}
    while waiting:
        later = []
        for node, path in waiting:
            if all(base.id in names for base in node.bases if isinstance(base, ast.Name)):
                flags = __future__.annotations.compiler_flag
                exec(compile(ast.Module([node], []), str(path), "exec", flags=flags), names)
                made[node.name] = names[node.name]
            else:
                later.append((node, path))
        if len(later) == len(waiting):
            node, path = later[0]
            raise NameError(f"{path}: {node.name} is based on a class that no file in {folder} has")
        waiting = later
    return made


def settings_of(cfg: Any) -> AlgorithmSettings:
    """The settings object of ``cfg.algo``, resolved; its methods are the algorithm's own checks."""
    cls = algorithm_settings()[cfg.algo.name]
    return cls(**{field.name: cfg.algo[field.name] for field in dataclasses.fields(cls)})


def check(cfg: DictConfig) -> list[str]:
    """Raise for settings that cannot hold together; returns warnings."""
    settings = settings_of(cfg)
    settings.validate(cfg)
    return settings.warnings(cfg)


def mark_default(cfg: DictConfig) -> None:
    """Note that nobody chose ``cfg.algo``."""
    cfg._set_flag(_BY_DEFAULT, True)


def is_default(cfg: DictConfig) -> bool:
    """Whether ``cfg.algo`` is the default that nobody chose; a configuration from elsewhere was chosen."""
    return bool(cfg._get_flag(_BY_DEFAULT))
