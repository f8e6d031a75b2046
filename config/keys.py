"""The table of all keys, built from the schema: for suggestions, types in words, and ``--help``."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from pathlib import Path
from typing import Any

from config.algorithms import algorithm_settings
from config.groups import GROUP_SCHEMAS
from config.schema import Config
from settings import Limits

CONFIG_DIR = Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True)
class Key:
    """One key: dotted ``name``, the plain types it takes, and the schema class that declares it."""

    name: str
    types: frozenset[type]
    default: Any
    limits: Limits
    owner: type

    @property
    def optional(self) -> bool:
        return type(None) in self.types or Any in self.types

    def type_error(self, value: object) -> tuple[str, str]:
        """Problem and hint of a value of another type."""
        if value is None:
            return "cannot be null", f"give {self.type_words()}"
        return f"not {self.type_words().split(' like ')[0]}", f"give {self.type_words()}"

    def if_empty(self, value: object) -> tuple[str, str] | None:
        """Problem and hint of an empty text, where that is not the default."""
        if not isinstance(value, str) or value.strip() or self.default == "" or Any in self.types:
            return None
        return "is empty", "give text, or null" if self.optional else "give text"

    def type_words(self) -> str:
        words = {bool: "True or False", int: "an integer", float: "a number", str: "text", list: "a list"}
        kinds = [word for kind, word in words.items() if kind in self.types] or ["a value"]
        if bool in self.types:
            return " or ".join(kinds)
        example = self.limits.example
        if example is None and not str(self.default).startswith("${"):
            example = self.default
        return " or ".join(kinds) + ("" if example in (None, "", "???", ()) else f" like {example}")


@functools.cache
def all_keys() -> dict[str, tuple[Key, ...]]:
    """Dotted name -> its declarations (several where choices of a group declare the same key)."""
    found: dict[str, dict[Key, None]] = {}
    for declared in _walk(Config, ""):
        found.setdefault(declared.name, {})[declared] = None
    for group, schemas in GROUP_SCHEMAS.items():
        for name, schema in schemas.items():
            for declared in _walk(schema, f"{group}.{name}." if group == "callbacks" else f"{group}."):
                found.setdefault(declared.name, {})[declared] = None
    return {name: tuple(declared) for name, declared in found.items()}


def _walk(schema: type, prefix: str) -> list[Key]:
    """All keys of a dataclass and the dataclasses inside it."""
    hints, found = typing.get_type_hints(schema), []
    for field in dataclasses.fields(schema):
        kinds = _plain_types(hints[field.name])
        section = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
        if section is not None:
            found += _walk(section, f"{prefix}{field.name}.")
        else:
            default = () if field.default is dataclasses.MISSING else field.default
            found.append(Key(prefix + field.name, kinds, default, field.metadata["limits"], schema))
    return found


def _plain_types(annotation: Any) -> frozenset[Any]:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return frozenset().union(*(_plain_types(part) for part in typing.get_args(annotation)))
    return frozenset({origin or annotation})


def sections() -> set[str]:
    """Dotted names that hold keys rather than values, like ``loader`` or ``callbacks.checkpoint_monitor``."""
    return {name[:at] for name in all_keys() for at, letter in enumerate(name) if letter == "."}


@functools.cache
def groups() -> dict[str, list[str]]:
    """The groups with their choices: the yaml files in config/, and the algorithms in algorithms/."""
    found: dict[str, list[str]] = {}
    for path in sorted(CONFIG_DIR.glob("*/*.yaml")):
        found.setdefault(path.parent.name, []).append(path.stem)
    found["algo"] = sorted({*found.get("algo", []), *algorithm_settings()})
    return dict(sorted(found.items()))


def nearest(name: str) -> str | None:
    """The known key that somebody who typed ``name`` probably meant."""
    known = list(all_keys()) + list(groups())
    leaf = name.rsplit(".", 1)[-1]
    same_leaf = [key for key in known if key.rsplit(".", 1)[-1] == leaf]
    if same_leaf:
        return difflib.get_close_matches(name, same_leaf, n=1, cutoff=0.0)[0]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    if close:
        return close[0]
    leaves = {key.rsplit(".", 1)[-1]: key for key in reversed(known)}
    close = difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.75)
    return leaves[close[0]] if close else None


def owner_choices(name: str) -> list[str]:
    """The choices of its group that have the key ``name``: ``algo.noise_type`` -> ["imdm"]."""
    group = name.split(".", 1)[0]
    having = {
        schema
        for schema, cls in GROUP_SCHEMAS.get(group, {}).items()
        if any(
            declared.name == name
            for declared in _walk(cls, f"{group}.{schema}." if group == "callbacks" else f"{group}.")
        )
    }
    if group == "algo":
        return [choice for choice in algorithm_settings() if choice in having]
    choices = []
    for choice in groups().get(group, []):
        text = (CONFIG_DIR / group / f"{choice}.yaml").read_text(encoding="utf-8")
        if any(f"/schema/{group}/{schema}@" in text for schema in having):
            choices.append(choice)
    return choices
