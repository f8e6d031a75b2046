"""What the files in samplers/ declare: names and traits (``@register``), keys of their own (``Settings``).

It is read from their text: a sampler imports torch, which neither ``--help`` nor a mistyped key should wait
for. So both are literals there; tests compare what is read here with what is registered.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
from pathlib import Path
from typing import Any

from settings import key

FOLDER = Path(__file__).resolve().parent.parent / "samplers"
REMOVALS = ("ancestral", "greedy", "none", "tail", "greedy_tail")
TYPES = {"bool": bool, "int": int, "float": float, "str": str}


@dataclasses.dataclass(frozen=True)
class Declared:
    """One ``@register``: the predictors ``names`` in ``file`` (its stem), and their ``samplers.Traits``."""

    file: str
    names: tuple[str, ...]
    claim: str
    exact: str
    families: tuple[str, ...] = ("absorbing",)
    order: str = "random"
    own_order: bool = False
    on_grid: bool = True
    removals: tuple[str, ...] = REMOVALS
    rewrites: bool = False
    asks_all: bool = False


@functools.cache
def declared_samplers() -> tuple[Declared, ...]:
    """All registered samplers, file by file."""
    found = []
    for path in sorted(FOLDER.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for call in getattr(node, "decorator_list", []):
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "register":
                    names = tuple(ast.literal_eval(name) for name in call.args)
                    found.append(Declared(path.stem, names, **_literals(call)))
    return tuple(found)


def named(predictor: str) -> list[Declared]:
    """What goes by the name ``predictor`` in the order of the process, for some family of models."""
    return [one for one in declared_samplers() if predictor in one.names and one.order == "random"]


def orders() -> tuple[str, ...]:
    """The values of ``sampling.order``."""
    return ("random", *sorted({one.order for one in declared_samplers()} - {"random"}))


@functools.cache
def own_sections() -> dict[str, type]:
    """The keys of samplers' own: a section of the schema for each file with ``Settings``, by its stem."""
    return {path.stem: made for path in sorted(FOLDER.rglob("*.py")) if (made := _settings(path))}


def with_own_settings(schema: type) -> type:
    """Class decorator of the section ``sampling``: a section inside it for each of ``own_sections``."""
    fields = [(name, cls, dataclasses.field(default_factory=cls)) for name, cls in own_sections().items()]
    made = dataclasses.make_dataclass(schema.__name__, fields, bases=(schema,))
    made.__doc__, made.__module__ = schema.__doc__, schema.__module__
    return made


def _settings(path: Path) -> type | None:
    """``Settings`` of a sampler file as a section of the schema, or None."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == "Settings":
            keys = [line for line in node.body if isinstance(line, ast.AnnAssign)]
            fields = [_field(line) for line in keys]
            return dataclasses.make_dataclass(f"{path.stem}_settings", fields)
    return None


def _field(line: ast.AnnAssign) -> tuple[str, Any, Any]:
    """``name: type = setting(default, help, **limits)`` as a field of a dataclass."""
    assert isinstance(line.target, ast.Name) and isinstance(line.value, ast.Call)
    kinds = [part.strip() for part in ast.unparse(line.annotation).split("|")]
    kind: Any = TYPES[kinds[0]]
    if "None" in kinds:
        kind = kind | None
    default, text = (ast.literal_eval(argument) for argument in line.value.args)
    return line.target.id, kind, key(default, text, **_literals(line.value))


def _literals(call: ast.Call) -> dict[str, Any]:
    return {word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg}
