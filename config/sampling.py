"""Section ``sampling``, and what the files in samplers/ declare: traits (``@register``), keys (``Settings``).

These are read from their text: a sampler imports torch, which neither ``--help`` nor a mistyped key should
wait for. So both are literals there; tests compare what is read here with what is registered.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from config.algo import settings_of
from errors import UserError
from settings import key

FOLDER = Path(__file__).resolve().parent.parent / "samplers"
REMOVALS = ("ancestral", "greedy", "none", "tail", "greedy_tail")
SAMPLING_MODES = ("sample_eval", "sample_eval_with_tc", "cond_sample_eval_with_tc")
SCHEDULES = ("uniform", "cosine", "auto")
MOST_STEPS = 10**7
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
    scheduled: bool = False


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


@with_own_settings
@dataclass
class Sampling:
    """How sequences are generated."""

    predictor: str | None = key(None, "reverse process; null: the algorithm's own", example="ancestral_cache")
    steps: Any = key(1000, "network calls, a number or a list like 1,2,4,8,128")
    noise_removal: str = key(
        "ancestral",
        "the last step; tail, greedy_tail: one call more, behind all steps, as MDLM and Duo count them",
        choices=REMOVALS,
    )
    draws: str = key(
        "exact",
        "of tokens; float32: Gumbel-max that loses rare tokens, truncated32: its usual formula; for study",
        choices=("exact", "truncated32", "float32"),
    )
    use_float64: bool = key(True, "False: sampling.draws=float32, unless draws says what")
    temperature: float = key(1.0, "of the token distribution; below 1 sharpens", above=0)
    p_nucleus: float = key(
        1.0, "draw from the smallest set of tokens with this mass; 1: off", above=0, high=1
    )
    use_p_nucleus: bool | None = key(None, "switches p_nucleus; null: on when it is below 1", auto=True)
    prompt: str | None = key(
        None,
        "what a text begins with; every _ is a token to write, <end> at its end ends the text",
        example="'the ____ is'",
    )
    prompt_file: str | None = key(
        None,
        "prompts, one a line, or .jsonl with prompt; samples take them in turn",
        path=True,
        example="prompts.txt",
    )
    num_sample_batches: int = key(2, "batches per device; 0: no samples at validations", low=0)
    num_sample_log: int = key(2, "samples shown in the log", low=0)
    record_trajectories: int = key(
        0, "samples whose steps are written beside the result, for scripts/report.py", low=0
    )
    order: str = key(
        "random",
        "of unmasking; spread: what a call unmasks lies far apart, for fewer errors at few steps",
        choices=orders(),
    )
    schedule: str = key(
        "uniform",
        "masks of a call: as many each time, few at first, or what errs least on held-out text (auto)",
        choices=SCHEDULES,
    )
    schedule_rows: int = key(128, "held-out texts that schedule=auto is measured on, in 64 calls", low=1)
    semi_ar: bool = key(False, "write more than model.length tokens: a window that slides over the text")
    stride_length: int = key(1, "semi_ar: new tokens of a stride; the rest of the window is kept", low=1)
    num_strides: int = key(
        1, "semi_ar: strides; the text has model.length + num_strides * stride_length tokens", low=1
    )
    duplicate: int = key(
        1, "samples of a group with one start noise, whose total correlation is measured; 1: none", low=1
    )
    num_duplicate_batch: int = key(1, "batches of such groups, beside num_sample_batches", low=1)
    fix_eps: bool = key(False, "IMDM: a mask keeps its noise until it is unmasked")
    mdlm_posterior: bool = key(False, "IMDM: MDLM's reverse step, which never resets the noise")


def derive(cfg: DictConfig) -> None:
    """The numbers of steps as a list, and the switches that follow from other settings."""
    sampling = cfg.sampling
    sampling.steps = read_steps(sampling.steps)
    if sampling.use_p_nucleus is None:
        sampling.use_p_nucleus = sampling.p_nucleus < 1
    if not sampling.use_float64 and sampling.draws == "exact":
        sampling.draws = "float32"


def read_names(value: Any, name: str) -> list[str]:
    """``a``, ``"a,b"`` or ``[a, b]`` as a list of texts; null and empty ones are no names.

    Raises:
        UserError: a list in the list, or key: value pairs.
    """
    if OmegaConf.is_dict(value) or OmegaConf.is_list(value) and any(map(OmegaConf.is_config, value)):
        raise UserError(name, value, "not a list of names", "write a,b")
    parts = list(value) if OmegaConf.is_list(value) else str(value or "").strip(" []()").split(",")
    return [str(part).strip() for part in parts if str(part).strip()]


def read_steps(value: Any, name: str = "sampling.steps") -> list[int]:
    """``8``, ``"1,2,4"`` or ``[1, 2, 4]`` as a list of integers >= 1.

    Raises:
        UserError: for anything else, or an empty list.
    """
    shown = ",".join(str(part) for part in value) if OmegaConf.is_list(value) else value
    if OmegaConf.is_list(value) and any(map(OmegaConf.is_config, value)):
        shown = ""  # lists in the list
    try:
        steps = [int(part) for part in str(shown).strip(" []()").split(",")]
    except ValueError:
        steps = []
    if not steps or min(steps) < 1 or max(steps) > MOST_STEPS:
        hint = f"give integers from 1 to {MOST_STEPS}, like 128 or 1,2,4,8"
        raise UserError(name, shown, "not a number of steps", hint)
    return steps


def check(cfg: DictConfig) -> list[str]:
    """Raise for settings that cannot both hold; returns warnings."""
    validate_sampler(cfg)
    if cfg.sampling.prompt is not None and cfg.sampling.prompt_file is not None:
        problem = "sampling.prompt is given as well"
        raise UserError("sampling.prompt_file", cfg.sampling.prompt_file, problem, "leave one of them out")
    return [*_sampler_warnings(cfg), *_mode_warnings(cfg)]


def validate_sampler(cfg: DictConfig) -> None:
    """Raise for a sampler that does not exist, and for an order or a last step that it cannot make."""
    sampling = cfg.sampling
    if sampling.predictor is not None:
        samplers = named(sampling.predictor)
        if not samplers:
            hint = (
                f"use one of {', '.join(sorted({name for one in declared_samplers() for name in one.names}))}"
            )
            raise UserError("sampling.predictor", sampling.predictor, "no such sampler", hint)
        _validate_removal(sampling.noise_removal, f"sampling.predictor={sampling.predictor}", samplers)
    if sampling.order != "random":
        able = [one for one in declared_samplers() if one.order == sampling.order]
        names = [name for one in able for name in one.names]
        if sampling.predictor not in (None, *names):
            problem = f"sampling.predictor={sampling.predictor} has an order of its own"
            hint = f"use sampling.order=random or sampling.predictor={names[0]}"
            raise UserError("sampling.order", sampling.order, problem, hint)
        _validate_removal(sampling.noise_removal, f"sampling.order={sampling.order}", able)
    if sampling.schedule != "uniform":
        _validate_schedule(cfg)
    if sampling.semi_ar and sampling.stride_length >= cfg.model.length:
        problem = f"keeps nothing of a window of model.length={cfg.model.length}"
        raise UserError("sampling.stride_length", sampling.stride_length, problem, "use a smaller one")


def _validate_schedule(cfg: DictConfig) -> None:
    """Raise for a schedule of calls that the sampler or the mode cannot follow."""
    sampling = cfg.sampling
    able = [one for one in declared_samplers() if one.scheduled and settings_of(cfg).family in one.families]
    algorithm, order = settings_of(cfg), sampling.order
    predictor = sampling.predictor or algorithm.default_predictor
    if not any(predictor in one.names and one.order == order for one in able):
        names = sorted({name for one in able if one.order == order for name in one.names})
        problem = f"sampling.predictor={predictor} takes no schedule"
        other = f"sampling.predictor={' or '.join(names)}, or " if names else ""
        hint = f"use {other}sampling.schedule=uniform"
        raise UserError("sampling.schedule", sampling.schedule, problem, hint)
    if sampling.schedule == "auto" and cfg.mode not in (*SAMPLING_MODES, "frontier", "gen_ppl_eval", "plan"):
        problem = f"is measured on held-out text, which mode={cfg.mode} does not read"
        raise UserError("sampling.schedule", "auto", problem, "use cosine, or mode=sample_eval")


def _validate_removal(removal: str, which: str, samplers: list[Declared]) -> None:
    """The last step is one that ``samplers``, which the words ``which`` chose, can make."""
    able = [one for sampler in samplers for one in sampler.removals]
    if removal not in able:
        problem = f"{which} leaves no mask" if removal == "none" else f"{which} has no such last step"
        hint = f"use {' or '.join(dict.fromkeys(able))}"
        raise UserError("sampling.noise_removal", removal, problem, hint)


def _sampler_warnings(cfg: DictConfig) -> Iterator[str]:
    sampling, algorithm = cfg.sampling, settings_of(cfg)
    if sampling.use_p_nucleus and sampling.p_nucleus == 1:
        yield "sampling.use_p_nucleus=True has no effect while sampling.p_nucleus=1"
    if not sampling.use_p_nucleus and sampling.p_nucleus < 1:
        yield "sampling.p_nucleus has no effect while sampling.use_p_nucleus=False"
    if sampling.draws != "exact":
        warning = f"sampling.draws={sampling.draws} loses rare tokens, which flatters generative perplexity"
        masked = algorithm.has_masks and algorithm.name != "sedd"
        if masked and sampling.predictor != "ancestral_joint":
            warning += (
                "; of whole steps, as codes in float32 do, with sampling.predictor=ancestral_joint alone"
            )
        yield warning
    if sampling.schedule != "auto" and sampling.schedule_rows != 128:
        yield "sampling.schedule_rows has no effect without sampling.schedule=auto"
    if sampling.fix_eps and algorithm.has_masks and not hasattr(algorithm, "noise_type"):
        yield f"sampling.fix_eps=True has no effect with algo={cfg.algo.name}, whose masks carry no noise"
    samplers = named(sampling.predictor or "")
    if samplers and not any(one.on_grid for one in samplers) and len(sampling.steps) > 1:
        yield (
            f"sampling.steps has no effect: {sampling.predictor} samples once, "
            "with model.length network calls"
        )
    changed = (
        (file, field.name)
        for file, section in own_sections().items()
        for field in dataclasses.fields(section)
        if file not in {one.file for one in samplers} and sampling[file][field.name] != field.default
    )
    for file, name in itertools.islice(changed, 1):
        needed = sorted({name for one in declared_samplers() if one.file == file for name in one.names})
        yield f"sampling.{file}.{name} has no effect without sampling.predictor={' or '.join(needed)}"


def _mode_warnings(cfg: DictConfig) -> Iterator[str]:
    sampling, mode = cfg.sampling, cfg.mode
    if not sampling.semi_ar and (sampling.stride_length > 1 or sampling.num_strides > 1):
        yield "sampling.stride_length and sampling.num_strides have no effect without sampling.semi_ar=True"
    if sampling.duplicate > 1 and mode not in SAMPLING_MODES[1:]:
        yield f"sampling.duplicate has no effect in mode={mode}; use mode=sample_eval_with_tc"
    if sampling.duplicate == 1 and sampling.num_duplicate_batch > 1:
        yield "sampling.num_duplicate_batch has no effect while sampling.duplicate=1"
    typed = [name for name in ("prompt", "prompt_file") if sampling[name] is not None]
    if typed and mode not in SAMPLING_MODES[:2]:
        yield f"sampling.{typed[0]} has no effect in mode={mode}; use mode=sample_eval"
    if sampling.record_trajectories and mode not in SAMPLING_MODES:
        yield f"sampling.record_trajectories has no effect in mode={mode}; use mode=sample_eval"
