"""How a configuration key is declared: its default, its meaning and the values that it allows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any


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
    example: Any = None

    def complaint(self, value: Any) -> tuple[str, str] | None:
        """Problem and hint of a value that is not allowed, or None."""
        if value is None:
            return None
        if self.choices is not None and value not in self.choices:
            return "unknown value", f"one of {', '.join(str(choice) for choice in self.choices)}"
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
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
    example: Any = None,
) -> Any:
    """A dataclass field for one key.

    Args:
        default: its value when nobody sets it; ``${...}`` refers to other keys.
        help: one line for ``--help``.
        choices: the values that are allowed.
        low, high, above, below: limits of a number (>=, <=, >, <).
        auto: the word ``auto`` may be typed for null.
        example: shown by the message about a wrong type, where the default is no good example.
    """
    limits = Limits(help, tuple(choices) if choices else None, low, high, above, below, auto, example)
    metadata = {"limits": limits}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)
