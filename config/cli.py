"""From a command line to a checked configuration, or one line that says what is wrong; and ``--help``."""

from __future__ import annotations

import argparse
import copy
import difflib
import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    GrammarParseError,
    OmegaConfBaseException,
    ValidationError,
)

from config import official
from config.algo import mark_default
from config.run import (
    CONFIG_DIR,
    GROUP_SCHEMAS,
    Config,
    all_keys,
    check,
    derive,
    expand_home,
    groups,
    owner_choices,
    sections,
)
from config.sampling import declared_samplers
from errors import ABSENT, UserError
from settings import Key
from utils import get_logger

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

PLUGINS = ("hydra/launcher", "hydra/sweeper")  # groups whose choices are packages of their own
LISTS = ("callbacks",)  # groups of which several choices can be taken
# group=null in Hydra's words: it knows no null choice. None: nothing to say, null is the default.
NULL_CHOICES = {"wandb": "wandb=none", "callbacks": "callbacks=[]", "experiment": None, "debug": None}

_WORD = re.compile(r"(?P<sign>\+\+|\+|~)?(?P<key>[^=\s]+?)=(?P<value>.*)", re.DOTALL)
_EXPONENT = re.compile(r"\d+(\.\d+)?[eE]\+?\d+")
# What a composition can fail with; OmegaConf asserts where a key is set inside a section that is null.
COMPOSE_ERRORS = (HydraException, OmegaConfBaseException, AssertionError, TypeError, ValueError)
log = get_logger("config")


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

    @property
    def searches(self) -> bool:
        """Whether a sweeper was typed that chooses points by itself, like ``hydra/sweeper=optuna``."""
        chosen = [o.value() for o in self.overrides.parsed if o.key_or_group == "hydra/sweeper"]
        return bool(chosen) and chosen[-1] != "basic"

    def jobs(self) -> Iterator[Overrides]:
        """The overrides of every job: one, or one for each point of a sweep (of a search: for one point)."""
        if not self.multirun:
            yield self.overrides
            return
        search, typed = self.searches, self.overrides.parsed
        for words in itertools.product(*(_first(one) if search else _points(one) for one in typed)):
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


def _first(override: Override) -> list[str]:
    """A point of a search: the first choice, or the lower end of an interval."""
    if override.is_sweep_override() and not override.is_discrete_sweep():
        return [f"{override.get_key_element()}={override.value().start}"]
    return _points(override)[:1]


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


def _by_its_tokenizer(words: Sequence[str]) -> list[str]:
    """A pretrained model (``model=hf``) reads text by the tokenizer beside it, unless another is typed."""
    typed = dict(word.lstrip("+").split("=", 1) for word in words if "=" in word)
    if typed.get("model") == "hf" and "data.tokenizer_name_or_path" not in typed:
        return [*words, "data.tokenizer_name_or_path=${model.path}"]
    return list(words)


def _name_the_run(words: Sequence[str]) -> list[str]:
    """``wandb.name=x`` names the run too, unless ``name`` is typed."""
    typed = dict(word.lstrip("+").split("=", 1) for word in words if "=" in word)
    if "wandb.name" in typed and "name" not in typed:
        return [*words, f"name={typed['wandb.name']}"]
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


def compose_config(overrides: Sequence[str] = (), *, warn: bool = True) -> DictConfig:
    """The configuration of a command line: cleaned, composed, derived, resolved and validated.

    Args:
        overrides: words like ``"algo=imdm"``, ``"+loader.num_workers=0"``, ``"sampling.steps=1,2,4"``.
        warn: log settings that have no effect and official keys that mean nothing here.

    Raises:
        ValueError: one line that names the key.
    """
    cleaned = clean_overrides(overrides)
    cfg = compose_clean(cleaned)
    warnings = finish_typed(cfg, cleaned)
    if warn:
        for line in [*dropped_warning(cleaned), *warnings]:
            log.warning(line)
    return cfg


def dropped_warning(cleaned: Overrides) -> list[str]:
    """What is to be said about official words: one line on those that mean nothing here, then the others."""
    dropped = ", ".join(sorted(set(cleaned.dropped)))
    return [*([f"no meaning here, ignored: {dropped}"] if dropped else []), *cleaned.remarks]


def compose_clean(cleaned: Overrides) -> DictConfig:
    """Compose cleaned overrides; Hydra's errors become one line that names the key."""
    register_schema()
    try:
        return _compose(cleaned.words)
    except COMPOSE_ERRORS as error:
        raise explain(cleaned, error) from error


def finish_typed(cfg: DictConfig, cleaned: Overrides) -> list[str]:
    """``finish`` what ``cleaned`` composed to, which may speak of another algorithm than ``algo``."""
    official.refuse_other_claims(cleaned.claims, cfg.algo.name)
    return finish(cfg, algo_is_chosen=cleaned.choose_algorithm)


def sweep_folder(cleaned: Overrides) -> Path:
    """``hydra.sweep.dir`` of a command line."""
    words = [word for word in cleaned.words if word.startswith("hydra.sweep.")]
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3", job_name="main"):
        return Path(compose("config", overrides=words, return_hydra_config=True).hydra.sweep.dir).absolute()


def finish(cfg: DictConfig, *, algo_is_chosen: bool = True) -> list[str]:
    """Derive, resolve and validate ``cfg`` in place; returns warnings.

    Args:
        algo_is_chosen: somebody chose the algorithm; otherwise ``config.algo.is_default`` says so.
    """
    if not algo_is_chosen:
        mark_default(cfg)
    try:
        derive(cfg)
        OmegaConf.resolve(cfg)
    except OmegaConfBaseException as error:
        raise _explain_interpolation(cfg, error) from error
    expand_home(cfg)
    return check(cfg)


def _explain_interpolation(cfg: DictConfig, error: OmegaConfBaseException) -> UserError:
    """The error about the first key that refers to nothing."""
    for name in all_keys():
        try:
            OmegaConf.select(cfg, name)
        except OmegaConfBaseException as broken:
            return UserError(name, ABSENT, _one_line(broken), "name a key that exists inside ${...}")
    return UserError("config", ABSENT, _one_line(error))


@functools.cache
def register_schema() -> None:
    """Make the schema known to Hydra, once."""
    store = ConfigStore.instance()
    store.store(group="schema", name="config", node=Config)
    for group, schemas in GROUP_SCHEMAS.items():
        for name, schema in schemas.items():
            store.store(group=group if group == "algo" else f"schema/{group}", name=name, node=schema)


def _compose(words: list[str]) -> DictConfig:
    if GlobalHydra.instance().is_initialized():  # inside a job that Hydra runs, of the same folder
        return compose("config", overrides=words)
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3", job_name="main"):
        return compose("config", overrides=words)


def explain(cleaned: Overrides, error: Exception) -> UserError:
    """The error of a failed composition: apply the overrides one by one and name the first that fails."""
    chosen = [word for word, o in zip(cleaned.words, cleaned.parsed, strict=True) if _is_group(o)]
    try:
        cfg = _compose(chosen)
    except COMPOSE_ERRORS as broken:
        plugins = [o for o in cleaned.parsed if o.key_or_group in PLUGINS and "Could not find" in str(broken)]
        if plugins:
            key, value = plugins[0].key_or_group, plugins[0].get_value_string()
            return UserError(key, value, "not installed", "pip install -r requirements-sweeps.txt")
        return UserError("config", ABSENT, _one_line(broken))
    for override in cleaned.parsed:
        name = override.key_or_group
        if _is_group(override) or name.startswith("hydra."):
            continue
        try:
            OmegaConf.update(cfg, name, copy.deepcopy(override.value()), merge=True)
        except COMPOSE_ERRORS as broken:
            return _explain_value(cfg, override, broken)
    return UserError("config", ABSENT, _one_line(error))


def _is_group(override: Override) -> bool:
    return override.key_or_group in groups() or "/" in override.key_or_group


def _explain_value(cfg: DictConfig, override: Override, error: Exception) -> UserError:
    name, value = override.key_or_group, override.value()
    shown = override.get_value_string()
    if name in sections():
        inside = next(key for key in all_keys() if key.startswith(f"{name}."))
        return UserError(name, shown, "a section, not a value", f"set its keys, like {inside}=...")
    if name.startswith("callbacks.") and _is_null(cfg, name.rsplit(".", 1)[0]):
        return UserError(name, ABSENT, "this callback is not chosen", "add it to callbacks=[...]")
    if name.startswith("wandb.") and cfg.wandb is None:
        return UserError(name, ABSENT, "wandb is switched off", "add wandb=default")
    declared = all_keys().get(name)
    if declared and isinstance(error, ValidationError):
        return UserError(name, shown, *declared[0].type_error(value))
    if isinstance(error, GrammarParseError):
        return UserError(name, shown, "${...} is not closed or has no key in it", "write ${section.key}")
    if declared and isinstance(error, (ConfigAttributeError, ConfigKeyError)):
        group = name.split(".", 1)[0]
        owners = " or ".join(f"{group}={choice}" for choice in owner_choices(name))
        problem = f"unknown key with {group}={cfg[group].name}"
        return UserError(name, ABSENT, problem, f"it belongs to {owners}")
    return unknown_key(name) if not declared else UserError(name, shown, _one_line(error))


def _is_null(cfg: DictConfig, name: str) -> bool:
    return OmegaConf.select(cfg, name, throw_on_missing=False) is None


def _one_line(error: BaseException) -> str:
    """The text of an error without line breaks and without Hydra's hints for programmers."""
    text = f"{error} {error.__cause__ or ''}" if isinstance(error, HydraException) else str(error)
    text = re.sub(r"(full_key|object_type|reference_type)[:=]\S*", "", text)
    return " ".join(text.replace("Available options in", "; available options in").split())


HEADER = """python main.py key=value ...          train, evaluate, sample; e.g.

  python main.py experiment=pydoc_mdlm                        train a small model, no download
  python main.py algo=mdlm mode=ppl_eval eval.checkpoint_path=F ...     perplexity of a checkpoint
  python main.py algo=mdlm mode=sample_eval eval.checkpoint_path=F sampling.steps=8,64 ...

--cfg job shows the composed configuration, --multirun optim.lr=1e-3,3e-4 name=... runs one job per value."""


def help_text() -> str:
    """Usage, the groups with their choices, every key with its default and meaning."""
    lines = [HEADER, "", "Groups (group=choice):"]
    lines += [f"  {group:13} {', '.join(choices)}" for group, choices in groups().items()]
    lines += ["", *_samplers()]
    lines += ["", "Keys (key=default: meaning):"]
    for name, declared in all_keys().items():
        different: dict[tuple[Any, str], Key] = {}
        for one in declared:
            different.setdefault((one.default, one.limits.help), one)
        lines += [_line(name, one, len(different) > 1) for one in different.values()]
    return "\n".join(lines)


def _samplers() -> list[str]:
    """Predictors and orders with what they claim; names that stand for several families of models once."""
    lines = ["Samplers (sampling.predictor=name; exact, in the limit of many steps, or sharpening):"]
    ways = {"exact": "exact", "limit": "in the limit", "sharpens": "sharpens"}
    found: dict[tuple[str, str, str], list[str]] = {}
    for one in declared_samplers():
        for name in one.names if one.order == "random" else (f"order={one.order}",):
            found.setdefault((name, one.claim, ways[one.exact]), []).extend(one.families)
    for (name, claim, way), families in sorted(found.items()):
        lines.append(f"  {name:26} {claim} ({way}; {', '.join(families)})")
    return lines


def _line(name: str, declared: Key, several: bool) -> str:
    """One key; where choices of a group differ about it (``several``), with the choice that means this."""
    limits = declared.limits
    shown = {None: "null", "???": "", (): "[]"}.get(declared.default, declared.default)
    allowed = f" ({', '.join(map(str, limits.choices))})" if limits.choices else ""
    group = name.split(".")[0]
    owners = [n for n, schema in GROUP_SCHEMAS.get(group, {}).items() if schema is declared.owner]
    which = f" [{group}={owners[0]}]" if several and owners and owners[0] != "base" else ""
    return f"  {name}={shown}: {limits.help}{allowed}{which}"
