"""mode=zero_shot: perplexity on data sets that the model was not trained on, in one run and one table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from config.cli import compose_config
from config.run import groups
from errors import UserError
from tasks.names import name_and_path
from tasks.ppl_eval import evaluating_trainer, measure_ppl
from tasks.processes import launch
from tasks.setup import build_evaluated, result_path
from utils import atomic_open, get_logger, write_json

log = get_logger("zero_shot")

KEY = "zero_shot.datasets"
# The model's own, or as typed for all: which ids, where eos stands, where files lie.
_KEPT = ("tokenizer_name_or_path", "vocab_size", "eos", "insert_valid_eos", "cache_dir", "source_root")


def zero_shot(cfg: DictConfig) -> dict[str, Any]:
    """Evaluate ``eval.checkpoint_path`` on the validation part of every set in ``zero_shot.datasets``.

    Returns (and writes to ``eval.generated_samples_path``, with a table beside it as .md) ``runs``, one
    object of mode=ppl_eval a data set. Where ``{data}`` is in the path each of them also gets a file of its
    own, and the name of the whole has zero_shot in that place.

    Raises:
        ValueError: at once for a name that means nothing; at the end for data sets that could not be read,
            whose messages are in the log and under ``failed`` in the file.
    """
    pattern = result_path(cfg)
    path = _named(pattern, "zero_shot")
    sections = [_section(cfg, text) for text in cfg.zero_shot.datasets]
    processes = launch(cfg)
    module = build_evaluated(cfg)
    trainer = evaluating_trainer(cfg, processes)
    result: dict[str, Any] = {"runs": [], "failed": {}}
    for section in sections:
        own = cfg.copy()
        own.data = section
        try:
            result["runs"].append(measure_ppl(own, module, trainer))
        except UserError as error:  # no network, no such file, too little text: the others go on
            result["failed"][section.name] = " ".join(str(error).split())
            log.error("%s: %s", section.name, result["failed"][section.name])
        if trainer.is_global_zero:
            if pattern != path and section.name not in result["failed"]:
                write_json(_named(pattern, section.name), result["runs"][-1])
            write_json(path, result)
            with atomic_open(path.with_suffix(".md")) as file:
                file.write(table(result["runs"]))
    if trainer.is_global_zero and result["runs"]:
        log.info("%s\n%s", path, table(result["runs"]).rstrip())
    if result["failed"]:
        names = ",".join(result["failed"])
        problem = f"not evaluated ({len(result['failed'])} of {len(sections)}; the lines above say why)"
        raise UserError(KEY, names, problem, "fix that, or leave them out")
    return result


def table(runs: list[dict[str, Any]]) -> str:
    """A markdown table, a row a data set; the interval is of two standard errors."""
    lines = ["| data | perplexity | bits per token | tokens |", "|---|---|---|---|"]
    for run in runs:
        bits = f"{run['bpd']:.4f} ± {run['bpd_stderr']:.4f}"
        lines.append(f"| {run['data']} | {run['perplexity']:.2f} | {bits} | {run['tokens']:,} |")
    return "\n".join(lines) + "\n"


def _named(pattern: Path, name: str) -> Path:
    return Path(str(pattern).replace("{data}", name))


def _section(cfg: DictConfig, text: str) -> DictConfig:
    """``cfg.data`` for one entry: a choice of the group data, a local path, or name:path (the rules of the
    choice ``name`` for the text at ``path``)."""
    name, path = name_and_path(text)
    if name is None:
        known = text in groups()["data"]
        name, path = (text, None) if known else (Path(text).stem, text)
    if path is not None and not Path(path).expanduser().exists():
        problem = "neither a choice of the group data nor a local path"
        raise UserError(KEY, text, problem, f"use a path, name:path, or one of {', '.join(groups()['data'])}")
    section = cfg.data.copy()
    if name in groups()["data"] and (path is not None or name != cfg.data.name):
        section = compose_config([f"data={name}"], warn=False).data
    changes = {key: cfg.data[key] for key in _KEPT} | {"name": name}
    if path is not None:
        nowhere_else = {place: dict.fromkeys(section[place]) for place in ("source", "valid_source")}
        changes |= {"valid": path, "valid_revision": None, **nowhere_else}
    return OmegaConf.merge(section, changes)
