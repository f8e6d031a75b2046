"""How settings are declared: a key with its default, meaning and limits; and what every algorithm declares.

Nothing here imports torch. An algorithm is one file of algorithms/: a settings class whose name ends in
``Settings``, and an objective (``algorithms.objective.Objective``) that points to it. config/algo.py
finds the settings classes by their source, so that a wrong key is reported without importing torch: their
bodies may use literals, the names of this module, and other settings classes, nothing else.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from errors import ABSENT, UserError

__all__ = [
    "AlgorithmSettings",
    "Any",
    "ClassVar",
    "ForwardProfile",
    "Limits",
    "UserError",
    "dataclass",
    "key",
]

MISSING = "???"  # OmegaConf's word for a key that must be given a value
LARGEST = 2**31 - 1  # of a whole number that has no limit of its own


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a key allows beyond its type; ``None`` means no limit."""

    help: str
    choices: tuple[Any, ...] | None = None
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    auto: bool = False
    path: bool = False
    example: Any = None

    def complaint(self, value: Any) -> tuple[str, str] | None:
        """Problem and hint of a value that is not allowed, or None."""
        if value is None:
            return None
        if self.choices is not None and value not in self.choices:
            return "unknown value", f"one of {', '.join(str(choice) for choice in self.choices)}"
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        if not math.isfinite(value):
            return "not a finite number", f"give a number {self.range()}".rstrip()
        if isinstance(value, int) and self.high is None and value > LARGEST:
            return "out of range", f"give a number <= {LARGEST}"
        inside = (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )
        return None if inside else ("out of range", f"give a number {self.range()}")

    def range(self) -> str:
        """The allowed numbers in words, e.g. ``>= 0 and < 1``."""
        bounds = ((">=", self.low), (">", self.above), ("<=", self.high), ("<", self.below))
        return " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)


def key(
    default: Any,
    help: str,
    *,
    choices: Sequence[Any] | None = None,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    auto: bool = False,
    path: bool = False,
    example: Any = None,
) -> Any:
    """A dataclass field for one key.

    Args:
        default: its value when nobody sets it; ``${...}`` refers to other keys.
        help: one line for ``--help``.
        choices: the values that are allowed.
        low, high, above, below: limits of a number (>=, <=, >, <).
        auto: the word ``auto`` may be typed for null.
        path: a path, in which a leading ``~`` is the home folder.
        example: shown by the message about a wrong type, where the default is no good example.
    """
    limits = Limits(help, tuple(choices) if choices else None, low, high, above, below, auto, path, example)
    metadata = {"limits": limits}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Key:
    """One key: dotted ``name``, the plain types it takes, and the class that declares it."""

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

    def complaint(self, value: object) -> tuple[str, str] | None:
        """Problem and hint of a value outside the limits, or of an empty text that is not the default."""
        if found := self.limits.complaint(value):
            return found
        if not isinstance(value, str) or value.strip() or self.default == "" or Any in self.types:
            return None
        return "is empty", "give text, or null" if self.optional else "give text"

    def type_words(self) -> str:
        """The types in words, with an example."""
        words = {bool: "True or False", int: "an integer", float: "a number", str: "text", list: "a list"}
        kinds = [word for kind, word in words.items() if kind in self.types] or ["a value"]
        if bool in self.types:
            return " or ".join(kinds)
        example = self.limits.example
        if example is None and not str(self.default).startswith("${"):
            example = self.default
        return " or ".join(kinds) + ("" if example in (None, "", MISSING, ()) else f" like {example}")


Table = Mapping[str, tuple[Key, ...]]


def table_of(declared: Iterable[tuple[str, type]]) -> Table:
    """The keys of dataclasses and the dataclasses inside them, by dotted name.

    Args:
        declared: prefixes like ``"model."`` with the classes that declare the keys; a name that several
            classes declare has several keys.
    """
    found: dict[str, dict[Key, None]] = {}
    for prefix, schema in declared:
        for one in _keys_of(schema, prefix):
            found.setdefault(one.name, {})[one] = None
    return {name: tuple(keys) for name, keys in found.items()}


def _keys_of(schema: type, prefix: str) -> list[Key]:
    hints, found = typing.get_type_hints(schema), []
    for field in dataclasses.fields(schema):
        kinds = _plain_types(hints[field.name])
        section = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
        if section is not None:
            found += _keys_of(section, f"{prefix}{field.name}.")
        else:
            default = () if field.default is dataclasses.MISSING else field.default
            found.append(Key(prefix + field.name, kinds, default, field.metadata["limits"], schema))
    return found


def _plain_types(annotation: Any) -> frozenset[Any]:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return frozenset().union(*(_plain_types(part) for part in typing.get_args(annotation)))
    return frozenset({origin or annotation})


def check_values(values: Any, table: Table, kinds: Mapping[str, type]) -> None:
    """Raise for the first key of ``table`` whose value in the nested ``values`` is outside its limits.

    Args:
        kinds: the class of each section that is chosen, whose own limits hold where several declare a key.

    Raises:
        UserError: the key has no value, or one that it does not allow.
    """
    for name, declared in table.items():
        *sections, leaf = name.split(".")
        inside = values
        for section in sections:
            inside = inside.get(section) if inside is not None else None
        if inside is None or leaf not in inside:
            continue
        if inside[leaf] == MISSING:
            raise UserError(name, ABSENT, "has no value", f"give {declared[0].type_words()}")
        if len(declared) > 1:
            # A class may declare a key of its base again: the class's own limits hold.
            # By name: a process of a sweep may hold copies of the classes.
            bases = {base.__qualname__ for base in kinds[".".join(sections)].__mro__}
            owners = [one for one in declared if one.owner.__qualname__ in bases]
            declared = (max(owners, key=lambda one: len(one.owner.__mro__)),) if owners else declared
        complaints = [one.complaint(inside[leaf]) for one in declared]
        if all(complaints):  # of settings without a class any declaration may be the one
            raise UserError(name, inside[leaf], *complaints[0])


@dataclass(frozen=True)
class ForwardProfile:
    """How a loss asks its network, which is what mode=plan counts.

    Attributes:
        everywhere: the head runs at all positions, not at masked ones alone.
        chunks: buffers as large as a chunk of logits that the loss holds at a time.
        passes: calls of the network with gradients.
        teacher_passes: calls of a teacher, without gradients.
    """

    everywhere: bool = False
    chunks: float = 1
    passes: int = 1
    teacher_passes: int = 0


@dataclass
class AlgorithmSettings:
    """The keys ``algo.*`` that every algorithm has, and its traits; ``run`` is the whole configuration."""

    name: str = key("", "the algorithm")
    time_conditioning: bool = key(False, "let the network see the noise level")
    T: int = key(0, "number of discrete times; 0: continuous time", choices=(0,))

    family: ClassVar[str] = "absorbing"  # which samplers make sense (Sampler.families)
    default_predictor: ClassVar[str] = "ancestral_cache"
    causal: ClassVar[bool] = False  # positions see those before them alone
    needs_pairs: ClassVar[bool] = False  # trains on stored pairs (data/reflow.py), not on text
    needs_coupled_pairs: ClassVar[bool] = False  # pairs whose noise decided every draw
    exact_likelihood: ClassVar[bool] = False  # the loss is no bound, and eval.nelbo has no say
    in_rounds: ClassVar[bool] = False  # a student that becomes its own teacher (training/rounds.py)

    @property
    def has_masks(self) -> bool:
        """Whether text becomes masks, rather than other text or nothing."""
        return self.family == "absorbing"

    def mask_noise(self) -> dict[str, Any] | None:
        """Fields of ``diffusion.mask_noise.MaskNoise`` but its width; None for a single plain mask."""
        return None

    def validate(self, run: Any) -> None:
        """Refuse settings that cannot hold together.

        Raises:
            UserError: naming the first of them.
        """

    def warnings(self, run: Any) -> list[str]:
        """Settings that have no effect, or an unexpected one: a line each."""
        return []

    def profile(self) -> ForwardProfile:
        """How the loss asks its network."""
        return ForwardProfile()
