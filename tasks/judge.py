"""mode=judge: score samples of any program, and of checkpoints, under one protocol (docs/protocol.md)."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from data.batching import permutation
from data.decoding import decode
from data.hub import hub_reachable
from dataloader import get_dataset, get_tokenizer
from errors import UserError
from eval_mauve import mauve
from evaluation.controls import make_controls
from evaluation.estimates import Estimate
from evaluation.features import HashedNGrams
from evaluation.mmd import bandwidth, mmd
from evaluation.samples import SampleSet, equal_names, of_run, read_samples
from evaluation.scores import PROTOCOL, Reference, length_statistics, text_metrics
from evaluation.units import joined, units
from models.featurizer import Featurizer
from tasks.frontier import own_settings
from tasks.judge_report import write_pages
from tasks.names import name_and_path
from tasks.prompts import REFERENCE_SEED
from tasks.sample_eval import sample_run
from tasks.scoring import GenerativePerplexity
from tasks.setup import build_evaluated, evaluation_device
from utils import get_logger, write_json

log = get_logger("judge")
KEY = "judge.files"
NGRAMS = "ngrams"
FEWEST = 8  # texts of a set: fewer have no interval worth a table
CEILINGS = 4  # divisions of the human texts that say how far MAUVE of equal distributions falls
Row = dict[str, Any]


def judge(cfg: DictConfig) -> dict[str, Any]:
    """Score every set of ``judge.files`` against human texts; write result.json, table.md, report.html.

    All sets have equal numbers of texts, cut to ``judge.length`` units; further human texts are scored as a
    set of their own, and with ``judge.controls`` so are texts that are bad by construction.

    Returns:
        What result.json holds: ``protocol`` (settings and versions), ``rows`` (one for each set).

    Raises:
        UserError: a file that cannot be read, or too few texts.
    """
    sets = list(_sample_sets(cfg))
    if shared := equal_names(sets):
        raise UserError(KEY, shared, "two sets have this name", "write name:path for each file")
    scorer = Scorer(cfg, sets)
    rows = [scorer.score(one, kind) for one, kind in scorer.all_sets(sets)]
    result = {"protocol": scorer.protocol(), "rows": rows}
    folder = Path(cfg.judge.path).expanduser()
    write_json(folder / "result.json", result)
    write_pages(result, folder)
    log.info("%d sets of %d texts -> %s/report.html, table.md, result.json", len(rows), scorer.number, folder)
    return result


def _sample_sets(cfg: DictConfig) -> Iterator[SampleSet]:
    """The sets that ``judge.files`` names: read from files, or written by checkpoints now."""
    for text in cfg.judge.files:
        name, path = name_and_path(text)
        if Path(path).suffix == ".ckpt" or Path(path).expanduser().is_dir():
            yield from _of_checkpoint(cfg, path, name)
        else:
            yield from read_samples(
                path, name, key=KEY, tokenizer=lambda: get_tokenizer(cfg), decoding=cfg.eval.decoding
            )


def _of_checkpoint(cfg: DictConfig, path: str, name: str | None) -> Iterator[SampleSet]:
    own = own_settings(cfg, path, KEY)
    place = Path(path)
    label = name or (place.parent.parent.name if place.parent.name == "checkpoints" else place.stem)
    module = build_evaluated(own).to(evaluation_device(cfg))
    for steps in module.generator.step_counts():
        yield of_run(sample_run(module, own, steps), f"{label}, {steps} step{'s' * (steps != 1)}")


def human_texts(cfg: DictConfig) -> list[str]:
    """All human texts that sets are compared with, in an order that depends on nothing of the run:
    ``judge.human``, or blocks of the validation set of ``data``."""
    if cfg.judge.human is not None:
        return _ordered(_texts_of(cfg, cfg.judge.human, "judge.human"))
    tokenizer = get_tokenizer(cfg)
    dataset = get_dataset(cfg, tokenizer, "validation")
    rows = permutation(len(dataset), REFERENCE_SEED, 0)
    return decode(tokenizer, dataset.fetch(rows)["input_ids"], cfg.eval.decoding)


def _texts_of(cfg: DictConfig, path: str, key: str) -> list[str]:
    found = read_samples(
        path, None, key=key, tokenizer=lambda: get_tokenizer(cfg), decoding=cfg.eval.decoding
    )
    return [text for one in found for text in one.texts]


def _ordered(texts: list[str]) -> list[str]:
    return [texts[row] for row in permutation(len(texts), REFERENCE_SEED, 0)]


class Scorer:
    """The human texts, divided; the evaluator and the features, loaded once; every set is scored alike.

    Args:
        sets: of which the smallest decides how many texts of each are scored.

    Attributes:
        number: texts of every set.
    """

    def __init__(self, cfg: DictConfig, sets: Sequence[SampleSet]) -> None:
        self.cfg, self.settings = cfg, cfg.judge
        human = [text for text in human_texts(cfg) if units(text, self.settings.units, 1)]
        parts = 2 if self.settings.train else 3
        self.number = self._number(sets, len(human) // parts)
        n = self.number
        self.reference, self.second = human[:n], human[n : 2 * n]
        source = _texts_of(cfg, self.settings.train, "judge.train") if self.settings.train else human[2 * n :]
        self.source = [self._units(text) for text in source]
        self.compared = Reference([self._units(text) for text in self.reference], self.source)
        self.featurizer = self._featurizer()
        self.features = self.featurizer(self._cut(self.reference))
        self.width = bandwidth(self.features)
        self.evaluator = GenerativePerplexity(cfg) if cfg.eval.compute_generative_perplexity else None
        self.device = evaluation_device(cfg)

    def _number(self, sets: Sequence[SampleSet], possible: int) -> int:
        smallest = min((len(one.texts) for one in sets), default=possible)
        number = min(smallest, possible, self.settings.num_texts or smallest)
        if number < FEWEST:
            problem = f"{number} texts of a set can be compared ({smallest} samples, {possible} human ones)"
            hint = f"give {FEWEST} or more samples, and three times as many human texts"
            raise UserError("judge.num_texts", self.settings.num_texts or "null", problem, hint)
        for one in sets:
            if len(one.texts) > number:
                log.info("%s: the first %d of its %d texts", one.name, number, len(one.texts))
        return number

    def _featurizer(self) -> HashedNGrams | Featurizer:
        if self.settings.featurizer == NGRAMS:
            return HashedNGrams(self.settings.units, self.settings.length)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        offline = not hub_reachable()
        return Featurizer(self.settings.featurizer, local_files_only=offline, device=device)

    def _units(self, text: str) -> list[str]:
        return units(text, self.settings.units, self.settings.length)

    def _cut(self, texts: Sequence[str]) -> list[str]:
        """Texts in the units of the protocol, joined again: what features are made of."""
        return [joined(self._units(text)) or "." for text in texts]

    def all_sets(self, sets: Sequence[SampleSet]) -> Iterator[tuple[SampleSet, str]]:
        """Every set with its kind: the second human texts, the samples, the controls."""
        yield SampleSet("human", self.second), "human"
        for one in sets:
            yield SampleSet(one.name, one.texts[: self.number], one.about), "samples"
        if self.settings.controls:
            lengths = [len(text) for text in self.compared.texts]
            for name, texts in make_controls(self.source, lengths, self.cfg.seed).items():
                yield SampleSet(name, texts), "control"

    def score(self, one: SampleSet, kind: str) -> Row:
        """All numbers of a set, as they stand in result.json."""
        log.info("scoring %s", one.name)
        texts = [self._units(text) for text in one.texts]
        row: Row = {"name": one.name, "kind": kind, "num_texts": len(one.texts), "about": one.about}
        metrics = {name: found.record() for name, found in text_metrics(texts, self.compared).items()}
        features = self.featurizer(self._cut(one.texts))
        distance = mmd(self.features, features, self.width, self.cfg.seed)
        metrics["mmd"] = distance.squared.record()
        row |= {"mmd_p_value": distance.p_value}
        if self.evaluator is not None:
            row |= self._perplexity(one.texts, metrics)
        if self.settings.mauve:
            row |= self._mauve(features, metrics, kind)
        lengths = length_statistics(one.texts, self.settings.units)
        return {**row, "metrics": metrics, "lengths": lengths, "texts": one.texts[:3]}

    def _perplexity(self, texts: Sequence[str], metrics: Row) -> Row:
        scores = self.evaluator.scores(texts, self.device, self.settings.length)
        ends = scores.bootstrap(self.cfg.seed) or (None, None, None)
        value = scores.perplexity
        metrics["generative_ppl"] = None if value is None else Estimate(value, *ends).record()
        return {"evaluator_tokens": int(scores.tokens.sum())}

    def _mauve(self, features: np.ndarray, metrics: Row, kind: str) -> Row:
        seeds = range(REFERENCE_SEED, REFERENCE_SEED + self.settings.num_seeds)
        found = mauve(self.features, features, seeds)
        metrics["mauve"] = Estimate(found["mauve"], found["mauve_std"]).record()
        row = {name: found[name] for name in ("mauve_star", "num_buckets", "mauve_by_seed")}
        if kind != "human":
            return row
        draws, both = np.random.default_rng(REFERENCE_SEED), np.concatenate([self.features, features])
        orders = [draws.permutation(len(both)) for _ in range(CEILINGS)]
        again = [mauve(both[at[: self.number]], both[at[self.number :]], seeds)["mauve"] for at in orders]
        return {**row, "mauve_ceilings": again, "mauve_lowest_ceiling": min(again + [found["mauve"]])}

    def protocol(self) -> dict[str, Any]:
        """By what the numbers were made: settings, evaluator, precision, versions."""
        names = ("torch", "transformers", "numpy", *(["mauve-text"] if self.settings.mauve else []))
        evaluator = self.evaluator and self.evaluator.scorer
        return {
            "version": PROTOCOL,
            "num_texts": self.number,
            "num_source_texts": len(self.source),
            "human": self.settings.human or f"validation part of {self.cfg.data.name}",
            "source": self.settings.train or "the other human texts",
            "units": self.settings.units,
            "length": self.settings.length,
            "featurizer": self.featurizer.name,
            "mmd_bandwidth": self.width,
            "mauve_seeds": self.settings.num_seeds if self.settings.mauve else 0,
            "evaluator": evaluator and evaluator.name,
            "evaluator_dtype": evaluator and evaluator.dtype,
            "evaluator_cut": self.settings.length if self.cfg.eval.gen_ppl_cut else None,
            "seed": self.cfg.seed,
            "versions": {"python": platform.python_version(), **{name: version(name) for name in names}},
        }
