"""mode=frontier: generative perplexity against entropy, over steps, temperatures, samplers, checkpoints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from algo import OBJECTIVES
from data.cache import locked
from data.decoding import rule_of
from dataloader import AUTO, batch_sizes, get_tokenizer
from errors import UserError
from models.hf_layouts import PATTERNS
from models.precision import Precision
from reporting.equal_cost import cost_points, write_equal_cost
from reporting.read import is_number, point_problem
from samplers.registry import get_sampler
from tasks.call_schedule import set_schedule
from tasks.frontier_report import Point, write_report
from tasks.names import name_and_path
from tasks.processes import Processes
from tasks.sample_eval import sample_run
from tasks.scoring import GenerativePerplexity, gen_ppl_words
from tasks.setup import build_evaluated, evaluation_device
from tasks.stored import checked_settings
from tasks.weights import read_source, recorded_settings, refuse_unknown_algorithm
from trainer_base import TrainerBase
from utils import atomic_open, get_logger, to_json, write_json

log = get_logger("frontier")

KEY = "frontier.checkpoints"
# Of the section sampling, what changes no sample, or is a setting of the grid.
_LATER = ("schedule", "schedule_rows")  # points from before there was a choice say nothing of it
_BESIDE = (
    "steps",
    "predictor",
    "temperature",
    "num_sample_batches",
    "num_sample_log",
    "record_trajectories",
    "use_float64",
    "duplicate",
    "num_duplicate_batch",
    "prompt",
    "prompt_file",
)


@dataclass(frozen=True)
class Job:
    """One checkpoint of the grid: its own configuration, and the settings of all its points."""

    name: str
    cfg: DictConfig
    points: list[dict[str, Any]]


def frontier(cfg: DictConfig) -> dict[str, Any]:
    """Measure every point of ``frontier.*`` that ``frontier.path``/points.jsonl does not hold yet.

    A point is a function of its settings alone, in whatever order the points are made. Points of earlier
    runs stay, and stand in the table and the figure.

    Returns:
        ``points`` (all in the folder) and ``matched`` (``tasks.frontier_report.write_report``).
    """
    folder = Path(cfg.frontier.path).expanduser()
    store, device = PointStore(folder), evaluation_device(cfg)
    scorer = _digest(cfg.eval.gen_ppl_eval_model_name_or_path)
    jobs = [_job(cfg, name, path, scorer) for name, path in _named(cfg)]
    found = {point["key"] for point in store.read()}
    todo = {job.name: [p for p in job.points if key_of(p) not in found] for job in jobs}
    number = sum(map(len, todo.values()))
    log.info(
        "%d points, %d of them are there", sum(len(job.points) for job in jobs), len(found & _keys(jobs))
    )
    measure = GenerativePerplexity(cfg) if number else None
    with tqdm(total=number, desc="frontier", unit="point", leave=False, disable=None) as bar:
        for job in jobs:
            if not todo[job.name]:
                continue
            module = build_evaluated(job.cfg).to(device)
            for settings in todo[job.name]:
                _choose_sampler(module, settings["predictor"])
                store.add(_measured(module, settings, measure, device, folder))
                bar.update()
            del module
    points = store.read()
    matched = write_report(points, folder, cfg.frontier.entropy)
    if costs := cost_points((point["name"], point) for point in points):
        write_equal_cost(costs, folder / "cost")
    log.info("%d points -> %s, table.md, figure.png, cost.pdf and more beside it", len(points), store.path)
    return {"points": points, "matched": matched}


class PointStore:
    """``folder``/points.jsonl: one JSON object a line, each written as soon as it is measured.

    Several processes may fill one folder: a lock stands around each change, which replaces the whole file.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "points.jsonl"

    def read(self) -> list[Point]:
        """All points, in the order in which they were made.

        Raises:
            UserError: a line is no point.
        """
        if not self.path.exists():
            return []
        points = []
        text = self.path.read_text(encoding="utf-8", errors="replace")
        for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], 1):
            try:
                point = json.loads(line)
                problem = _problem(point)
            except (ValueError, RecursionError):
                problem = "it is no JSON"
            if problem:
                key, folder = "frontier.path", str(self.path.parent)
                problem = f"line {number} of points.jsonl is no point: {problem}"
                raise UserError(key, folder, problem, "remove that line, or give another folder")
            points.append(point)
        return points

    def add(self, point: Point) -> None:
        """Put a point behind the others, whole or not at all; one that is there already stays."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(Path(f"{self.path}.lock"), "adds points to this folder"):
            points = self.read()
            if point["key"] not in {other["key"] for other in points}:
                with atomic_open(self.path) as file:
                    file.writelines(to_json(p) + "\n" for p in [*points, point])


def _problem(point: Any) -> str | None:
    """Why a line is no point, of those that are written here; None when it is one."""
    if problem := point_problem(point):
        return problem
    if not isinstance(point.get("key"), str):
        return "key is no text"
    if not is_number(point.get("nfe")):
        return "nfe is no number"
    if not point.keys() >= {"generative_ppl", "generative_ppl_interval"}:
        return "it has no generative_ppl, or no interval"
    return None


def key_of(settings: dict[str, Any]) -> str:
    """What a point is known by: a digest of all that decides about it."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _keys(jobs: list[Job]) -> set[str]:
    return {key_of(settings) for job in jobs for settings in job.points}


def _named(cfg: DictConfig) -> Iterator[tuple[str, str]]:
    """Name and path of every checkpoint; two of one name could not be told apart."""
    seen: dict[str, str] = {}
    for text in cfg.frontier.checkpoints:
        name, path = name_and_path(text)
        if name is None:
            place = Path(path)
            run = place.parent.parent.name if place.parent.name == "checkpoints" else ""
            name = run or place.stem
        if name in seen:
            problem = f"both {seen[name]} and {path} are called {name}"
            raise UserError(KEY, text, problem, "write name:path")
        seen[name] = path
        yield name, path


def _job(cfg: DictConfig, name: str, path: str, scorer: str) -> Job:
    own = own_settings(cfg, path)
    algorithm, fixed = OBJECTIVES[own.algo.name].Settings, _fixed_settings(own, name, path, scorer)
    points = []
    for predictor in cfg.frontier.predictors or [algorithm.default_predictor]:
        sampler = get_sampler(predictor, algorithm.family, own.sampling.order)
        # Without a time grid the number of steps says nothing: one point, with a call a token.
        counts = cfg.frontier.steps if sampler.traits.on_grid else [own.model.length]
        points += [
            {**fixed, "predictor": predictor, "steps": steps, "temperature": temperature}
            for steps in counts
            for temperature in cfg.frontier.temperatures
        ]
    return Job(name, own, points)


def own_settings(cfg: DictConfig, path: str, key: str = KEY) -> DictConfig:
    """``cfg`` with the network of a checkpoint: as the checkpoint says where it does, else as typed."""
    own = OmegaConf.create(OmegaConf.to_container(cfg))  # untyped: the section of any algorithm fits
    own.eval.checkpoint_path = path
    checkpoint = read_source(path, key=key)
    refuse_unknown_algorithm(cfg, recorded_settings(checkpoint), key=key, path=path)
    stored = checked_settings(checkpoint, key=key, path=path)
    if stored is None:
        return own
    _validate_stored(stored, path, key)
    for section in ("model", "noise"):
        own[section] = OmegaConf.merge(own[section], stored[section])
    if "trust_remote_code" in own.model:  # as typed, whatever a checkpoint says
        own.model.trust_remote_code = cfg.model.get("trust_remote_code", False)
    same = stored["algo"]["name"] == own.algo.name
    own.algo = OmegaConf.merge(own.algo, stored["algo"]) if same else stored["algo"]
    own.training.ema = stored["training"]["ema"]
    if stored["data"]["tokenizer_name_or_path"] != AUTO:
        for name in ("tokenizer_name_or_path", "vocab_size", "eos"):
            own.data[name] = stored["data"].get(name, own.data[name])
    return own


def _validate_stored(stored: dict[str, Any], path: str, key: str) -> None:
    """Raise where the configuration in a checkpoint lacks what a model is built from."""
    needed = ("algo.name", "model.length", "noise.name", "training.ema", "data.tokenizer_name_or_path")
    for name in needed:
        section, leaf = name.split(".")
        if not isinstance(stored.get(section), dict) or leaf not in stored[section]:
            hint = "give a checkpoint of this program, or the folder that mode=export made of one"
            raise UserError(key, path, f"its stored configuration has no {name}", hint)
    algo = stored["algo"]["name"]
    if algo not in OBJECTIVES:
        hint = f"one of {', '.join(sorted(OBJECTIVES))} can be evaluated"
        raise UserError(key, path, f"was trained with algo={algo}, which is unknown here", hint)


def _fixed_settings(cfg: DictConfig, name: str, path: str, scorer: str) -> dict[str, Any]:
    """All that decides about the points of a checkpoint, but for the grid."""
    decoding = rule_of(get_tokenizer(cfg), cfg.eval.decoding)
    network = {part: OmegaConf.to_container(cfg[part]) for part in ("algo", "model", "noise")}
    sampling = OmegaConf.to_container(cfg.sampling)
    return {
        "name": name,
        "weights": _digest(path),
        "ema": not cfg.eval.disable_ema and cfg.training.ema > 0,
        "algo": cfg.algo.name,
        "network": key_of(network),
        "tokenizer": cfg.data.tokenizer_name_or_path,
        "length": cfg.model.length,
        "precision": str(Precision.resolve(cfg.trainer.precision, cfg.trainer.accelerator)),
        "seed": cfg.seed,
        "num_samples": cfg.sampling.num_sample_batches * batch_sizes(cfg, 1, evaluation=True)[0],
        "sampling": {
            key: value
            for key, value in sampling.items()
            if key not in _BESIDE and (key not in _LATER or sampling["schedule"] != "uniform")
        },
        "scorer": cfg.eval.gen_ppl_eval_model_name_or_path,
        "scorer_files": scorer,
        "gen_ppl_dtype": cfg.eval.gen_ppl_dtype,
        "gen_ppl_cut": cfg.eval.gen_ppl_cut,
        # Points from before there was a choice are of raw texts.
        **({} if decoding == "raw" else {"decoding": decoding}),
    }


def _digest(name: str) -> str:
    """Of the content of a file or a model's folder, so that a training that went on makes new points; a hub
    name stands for itself."""
    path = Path(name).expanduser()
    if not path.exists():
        return name
    files = [path] if path.is_file() else sorted({f for pattern in PATTERNS for f in path.glob(pattern)})
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:16]


def _choose_sampler(module: TrainerBase, predictor: str) -> None:
    """Let samples be made by ``predictor``; a measured schedule is of its order."""
    chosen = get_sampler(predictor, module.objective.settings.family, module.config.sampling.order)
    if chosen is not module.generator.sampler_class or module.generator.call_schedule is None:
        module.generator.sampler_class = chosen
        set_schedule(module, module.config)


def _measured(
    module: TrainerBase,
    settings: dict[str, Any],
    measure: GenerativePerplexity,
    device: torch.device,
    folder: Path,
) -> Point:
    """Sample and judge at one point of the grid."""
    cfg, key = module.config, key_of(settings)
    cfg.sampling.temperature = settings["temperature"]
    run = sample_run(module, cfg, settings["steps"])
    measure.judge(run, Processes(device=device))
    if cfg.frontier.keep_samples:
        write_json(folder / "samples" / f"{key}.json", run)
    log.info(
        "%s, %s, steps %d, temperature %g: %s",
        settings["name"],
        settings["predictor"],
        settings["steps"],
        settings["temperature"],
        gen_ppl_words(run),
    )
    del run["generated_seqs"]
    return {"key": key, "name": settings["name"], **run, "settings": settings}
