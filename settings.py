"""How settings are declared: a key with its default, meaning and limits; and what every algorithm declares.

Nothing here imports torch. An algorithm is one file of algorithms/: a settings class whose name ends in
``Settings``, and an objective (``algorithms.objective.Objective``) that points to it. config/algorithms.py
finds the settings classes by their source, so that a wrong key is reported without importing torch: their
bodies may use literals, the names of this module, and other settings classes, nothing else.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from errors import UserError

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
