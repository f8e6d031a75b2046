"""The one exception that means "what was typed or given is wrong"; any other is a fault of this program."""

from __future__ import annotations


class _Absent:
    """The value of an error about a key itself, or about a file, rather than about a value."""

    def __repr__(self) -> str:
        return ""

    def __reduce__(self) -> str:
        return "ABSENT"  # pickled by name, so that it stays one object


ABSENT = _Absent()


class UserError(ValueError):
    """A mistake that the user can correct: shown as one line, ``key=value: problem; hint``, with exit code 2.

    Any other exception, a plain ValueError included, is a fault of this program and shows its traceback.

    Attributes:
        key: the setting, flag or file that is wrong; "" when there is none to name.
        value: what it was set to; ``ABSENT`` when the key itself is wrong.
        problem: what is wrong with it.
        hint: what to type or do instead; "" when there is nothing to add.
    """

    def __init__(self, key: str, value: object = ABSENT, problem: str = "", hint: str = "") -> None:
        super().__init__(key, value, problem, hint)  # all of them, so that the error can be pickled
        self.key, self.value, self.problem, self.hint = key, value, problem, hint

    def __str__(self) -> str:
        shown = self.value if isinstance(self.value, str) else repr(self.value)
        name = self.key if self.value is ABSENT else f"{self.key}={shown}"
        said = f"{self.problem}; {self.hint}" if self.hint else self.problem
        return f"{name}: {said}" if name else said


class RankZeroError(UserError):
    """A mistake that the first of several processes met and reports; the others just end."""
