"""What users type, made into what Hydra understands: ``key=value`` words in, clean overrides out."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException

from config import official
from config.keys import Key, all_keys, groups, nearest, sections
from errors import ABSENT, UserError

# Keys that people will look for and that have another name here.
ELSEWHERE = {
    "trainer.accumulate_grad_batches": "it follows from loader.global_batch_size and loader.batch_size",
    "trainer.strategy": "use strategy=ddp, strategy=fsdp or strategy=single_device",
    "trainer.callbacks": "use the group callbacks, like callbacks=[checkpoint_every_n_steps]",
    "trainer.logger": "use wandb.*, or wandb=null; a CSV log is always written",
    "trainer.max_epochs": "use trainer.max_steps",
    "trainer.default_root_dir": "use checkpointing.save_dir",
    "trainer.fast_dev_run": "use debug=fast",
    "trainer.overfit_batches": "use debug=overfit",
    "trainer.enable_checkpointing": "use the group callbacks, like callbacks=[learning_rate_monitor]",
    "sampling.num_steps": "use sampling.steps",
    "data.save_dir": "use reflow.save_path",
    "lr": "use optim.lr",
    "batch_size": "use loader.global_batch_size",
}

LISTS = ("callbacks",)  # groups of which several choices can be taken
# group=null in Hydra's words: it knows no null choice. None: nothing to say, null is the default.
NULL_CHOICES = {"wandb": "wandb=none", "callbacks": "callbacks=[]", "experiment": None, "debug": None}

_WORD = re.compile(r"(?P<sign>\+\+|\+|~)?(?P<key>[^=\s]+?)=(?P<value>.*)", re.DOTALL)
_EXPONENT = re.compile(r"\d+(\.\d+)?[eE]\+?\d+")


@dataclass
class Overrides:
    """Clean words for Hydra and what they parse to, with what became of official ones.

    Attributes:
        dropped: official keys that mean nothing here.
        claims: official words about the algorithm (``config.official.claims``).
        remarks: what is to be said about translated words, one line each.
    """

    words: list[str] = field(default_factory=list)
    parsed: list[Override] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    claims: list[tuple[str, str, tuple[str, ...]]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def choose_algorithm(self) -> bool:
        """Whether somebody chose ``algo``, by itself or with an experiment; otherwise it is the default."""
        return any(override.key_or_group in ("algo", "experiment") for override in self.parsed)


def clean_overrides(words: Sequence[str], *, multirun: bool = False) -> Overrides:
    """Make the words of a command line into overrides that Hydra understands.

    ``+key=value`` becomes ``key=value``; keys without meaning here are dropped; text and lists are quoted
    where Hydra would read a sweep (outside ``multirun``), whole numbers like ``1e6`` become integers.

    Raises:
        ValueError: for a word that is no ``key=value``, an unknown key, an unknown choice of a group.
    """
    cleaned = Overrides()
    cleaned.claims, cleaned.remarks = list(official.claims(words)), official.remarks(words)
    words = _by_its_tokenizer(_name_the_run(official.in_our_words(words)))
    algo = official.typed_algorithm(words)
    for word in filter(str.strip, words):
        match = _WORD.fullmatch(word)
        if match is None or match["sign"] == "~":
            raise _no_assignment(word)
        key, value = match["key"], match["value"].strip()
        if official.is_dropped(key, value, algo):
            cleaned.dropped.append(key)
            continue
        if not key.startswith(("hydra.", "hydra/")):
            check_name(key)
            if value == "null" and key in NULL_CHOICES:
                key, _, value = (NULL_CHOICES[key] or "").partition("=")
                if not key:
                    continue
            word = f"{key}={_clean_value(key, value, multirun)}"
        try:
            override = parsed(word)
        except HydraException as error:
            raise UserError(key, value, "cannot be read", f"quote it, like {key}=\"'...'\"") from error
        _refuse_other_numbers(key, override)
        if override.is_sweep_override() and not multirun:
            raise UserError(key, value, "several values need --multirun", "give one value, or add --multirun")
        if key in groups():
            _check_choices(key, override)
        cleaned.words.append(word)
        cleaned.parsed.append(override)
    return cleaned


def _name_the_run(words: Sequence[str]) -> list[str]:
    """``wandb.name=x`` names the run too, unless ``name`` is typed."""
    typed = dict(word.lstrip("+").split("=", 1) for word in words if "=" in word)
    if "wandb.name" in typed and "name" not in typed:
        return [*words, f"name={typed['wandb.name']}"]
    return list(words)


def _by_its_tokenizer(words: Sequence[str]) -> list[str]:
    """A pretrained model (``model=hf``) reads text by the tokenizer beside it, unless another is typed."""
    typed = dict(word.lstrip("+").split("=", 1) for word in words if "=" in word)
    if typed.get("model") == "hf" and "data.tokenizer_name_or_path" not in typed:
        return [*words, "data.tokenizer_name_or_path=${model.path}"]
    return list(words)


def check_name(key: str) -> None:
    """Raise when ``key`` is neither a key, nor a section, nor a group; the message names the nearest one."""
    if key in all_keys() or key in groups() or key in sections():
        return
    if key in ELSEWHERE:
        raise UserError(key, ABSENT, "not a key here", ELSEWHERE[key])
    raise unknown_key(key)


def unknown_key(key: str) -> UserError:
    """The error about a key that nobody knows."""
    meant = nearest(key)
    hint = f"did you mean {meant}?" if meant else "python main.py --help lists all keys"
    return UserError(key, ABSENT, "unknown key", hint)


def _no_assignment(word: str) -> UserError:
    name = word.lstrip("+~").split("=", 1)[0].strip()
    if word.startswith("~"):
        return UserError(
            word, ABSENT, "settings cannot be removed", f"set {name}=null or choose another group"
        )
    owner = next((group for group, choices in groups().items() if name in choices), None)
    if name in all_keys()["mode"][0].limits.choices:
        owner = "mode"
    if "=" in word or not name:
        return UserError(word, ABSENT, "not of the form key=value", "write it without blanks around =")
    hint = f"did you mean {owner}={name}?" if owner else f"write {name}=... without blanks"
    return UserError(word, ABSENT, "not of the form key=value", hint)


@functools.lru_cache(maxsize=4096)
def parsed(word: str) -> Override:
    """``word`` as Hydra reads it; not to be changed, the same one is returned again.

    Raises:
        HydraException: it cannot be read.
    """
    return OverridesParser.create().parse_override(word)


def _clean_value(key: str, value: str, multirun: bool) -> str:
    """``value`` in Hydra's grammar, given the type of its key; wrong values are left for Hydra to refuse."""
    declared = all_keys().get(key, ())
    if not declared:
        return value
    if value.lower() == "auto" and any(d.limits.auto for d in declared):
        return "null"
    if int in _types(declared) and float not in _types(declared) and _EXPONENT.fullmatch(value):
        return str(int(float(value))) if float(value).is_integer() else value
    try:
        override = parsed(f"{key}={value}")
    except HydraException:
        return _quoted(value) if str in _types(declared) else value
    if override.is_sweep_override():
        if multirun:
            return value
        if list in _types(declared):
            return f"[{value}]"
        return _quoted(value) if _types(declared) & {str, Any} else value
    if _types(declared) <= {str, type(None)} and not isinstance(override.value(), (str, type(None))):
        return _quoted(value)  # 007, 1e5 or [a] typed for a text is that text
    return value


def _refuse_other_numbers(key: str, override: Override) -> None:
    """Raise for a number other than 0 and 1 in the place of True or False: OmegaConf takes it for True."""
    declared = all_keys().get(key, ())
    if not declared or override.is_sweep_override() or not _types(declared) <= {bool, type(None)}:
        return
    value = override.value()
    if isinstance(value, int) and value not in (0, 1):
        raise UserError(key, str(value), *declared[0].type_error(value))


def _types(declared: tuple[Key, ...]) -> frozenset[Any]:
    return frozenset().union(*(d.types for d in declared))


def _quoted(value: str) -> str:
    escaped = re.sub(r"(\\*)'", lambda m: m[1] * 2 + r"\'", value)
    escaped = re.sub(r"\\+$", lambda m: m[0] * 2, escaped)
    return f"'{escaped}'"


def _check_choices(group: str, override: Override) -> None:
    """Every choice must be a file of the group."""
    if override.type is not OverrideType.CHANGE:
        return
    if override.is_sweep_override():
        chosen: list[Any] = [str(value) for value in override.sweep_iterator()]
    elif isinstance(override.value(), list):
        chosen = override.value()
        if group not in LISTS:
            shown, hint = override.get_value_string(), f"give one of {', '.join(groups()[group])}"
            raise UserError(group, shown, "several choices where one is meant", hint)
    else:
        chosen = [override.value()]
    for choice in chosen:
        if str(choice) not in groups()[group]:
            raise UserError(group, str(choice), "unknown choice", f"one of {', '.join(groups()[group])}")
