"""The one exception that means "what was typed or given is wrong"; any other is a fault of this program."""

from __future__ import annotations

import errno


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


_FULL = "make room, then give the same command again"
_CLOSED = "choose another place, or change its permissions"
_HINTS = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _FULL,
    errno.EACCES: _CLOSED,
    errno.EPERM: _CLOSED,
    errno.EROFS: "choose another place",
    errno.EISDIR: "a folder is where a file is to be: give another path",
    errno.ENOTDIR: "a part of this path is a file: give another path",
    errno.EEXIST: "a file is where a folder is to be: give another path",
    errno.ENOENT: "nothing is there: correct the path",
    errno.ENAMETOOLONG: "give a shorter name",
}


def of_system(error: OSError) -> UserError | None:
    """What the operating system refused, as a line for the user; None where that says nothing to them.

    It is about a file with a name, or about a full disk; other errors are for programmers.
    """
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    if error.filename is None and not is_full:
        return None
    name = "" if error.filename is None else str(error.filename)
    problem = error.strerror or " ".join(map(str, error.args))
    return UserError(name, ABSENT, problem, _HINTS.get(error.errno, ""))
