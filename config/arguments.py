"""The command line as a whole: Hydra's flags apart from the overrides, one job or the jobs of a sweep."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.types import Override

from config.keys import all_keys, nearest
from config.overrides import Overrides, clean_overrides
from errors import ABSENT, UserError


@dataclass(frozen=True)
class CommandLine:
    """What was typed: ``flags`` for Hydra and clean ``overrides``."""

    flags: list[str]
    overrides: Overrides
    multirun: bool
    wants_help: bool

    @property
    def words(self) -> list[str]:
        """The clean command line for Hydra."""
        return [*self.flags, *self.overrides.words]

    def jobs(self) -> Iterator[Overrides]:
        """The overrides of every job: one, or one for each point of a sweep."""
        if not self.multirun:
            yield self.overrides
            return
        for words in itertools.product(*(_points(override) for override in self.overrides.parsed)):
            job = clean_overrides(words)
            job.claims = self.overrides.claims
            yield job


def read_command_line(words: Sequence[str]) -> CommandLine:
    """Split the words of a command line into Hydra's flags and overrides, and clean these.

    Raises:
        ValueError: one line about a flag that does not exist or an override that cannot be.
    """
    parser = get_args_parser()
    _refuse_unknown_flags(words, parser)

    def fail(message: str) -> NoReturn:
        raise UserError("", ABSENT, message, "python main.py --help shows what there is")

    parser.error = fail  # type: ignore[method-assign]
    arguments = parser.parse_args(list(words))
    for flag in ("config_path", "config_name", "config_dir", "experimental_rerun"):
        if getattr(arguments, flag) is not None:
            name = "--" + flag.replace("_", "-")
            hint = "put a file into config/experiment and type experiment=its_name"
            raise UserError(name, ABSENT, "not used here", hint)
    if arguments.multirun and (arguments.cfg or arguments.info):
        raise UserError("--multirun", ABSENT, "cannot go with --cfg or --info", "leave one of them out")
    overrides = clean_overrides(arguments.overrides, multirun=arguments.multirun)
    flags = _without(words, arguments.overrides)
    return CommandLine(flags, overrides, arguments.multirun, arguments.help)


def _refuse_unknown_flags(words: Sequence[str], parser: argparse.ArgumentParser) -> None:
    known = {option for action in parser._actions for option in action.option_strings}
    for word in words:
        name, _, value = word.partition("=")
        if word.startswith("--") and name not in known:
            key = name.lstrip("-").replace("-", "_")
            meant = key if key in all_keys() else nearest(key)
            hint = f"{meant}={value or '...'}" if meant else "key=value"
            raise UserError(name, ABSENT, "no such flag", f"settings are typed without dashes, like {hint}")


def _without(words: Sequence[str], overrides: Sequence[str]) -> list[str]:
    flags, left = [], list(overrides)
    for word in words:
        if word in left:
            left.remove(word)
        else:
            flags.append(word)
    return flags


def _points(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [f"{override.get_key_element()}={override.get_value_element_as_str()}"]
    if not override.is_discrete_sweep():
        raise UserError(override.input_line, ABSENT, "a sweep without single points", "list them, like 1,2,4")
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
