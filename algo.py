"""The algorithms by name, each as a training built from a configuration; their code is in algorithms/."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path

import torch
from omegaconf import DictConfig
from transformers import PreTrainedTokenizerBase

import algorithms
from algorithms.objective import Context, Objective
from data.tokenizers import boundary_ids, mask_id_of, number_of_ids
from diffusion.noise import get_schedule
from trainer_base import TrainerBase

__all__ = [
    "ALGORITHMS",
    "OBJECTIVES",
    "AR",
    "DUO",
    "DUO_BASE",
    "IMDM",
    "IMSDTT",
    "MDLM",
    "D3PMAbsorb",
    "Distillation",
    "IMReDi",
    "ImCoupled",
    "Rectification",
    "SEDDAbsorb",
    "build",
    "build_objective",
]


def objective_classes() -> dict[str, type[Objective]]:
    """Name -> objective, of every file in algorithms/."""
    for path in sorted(Path(algorithms.__file__).parent.glob("*.py")):
        importlib.import_module(f"algorithms.{path.stem}")
    found, waiting = {}, list(Objective.__subclasses__())
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        # A class without settings of its own, or with nameless ones, is a part that nobody can type.
        if "Settings" in vars(cls) and cls.Settings().name:
            found[cls.Settings().name] = cls
    return found


OBJECTIVES = objective_classes()


def build(name: str, config: DictConfig, tokenizer: PreTrainedTokenizerBase) -> TrainerBase:
    """The training of the algorithm ``name``.

    Args:
        config: the composed configuration (config/run.py).
        tokenizer: gives the vocabulary size and the mask id.
    """
    return TrainerBase(build_objective(name, config, tokenizer), config, tokenizer)


def build_objective(name: str, config: DictConfig, tokenizer: PreTrainedTokenizerBase) -> Objective:
    """The objective of the algorithm ``name`` with the settings of a configuration."""
    cls = OBJECTIVES[name]
    settings = cls.Settings(**{f.name: config.algo[f.name] for f in dataclasses.fields(cls.Settings)})
    return cls(settings, context_of(cls, config, tokenizer))


def context_of(cls: type[Objective], config: DictConfig, tokenizer: PreTrainedTokenizerBase) -> Context:
    """What an objective of class ``cls`` knows of the run of ``config``."""
    mask_id, vocab_size = mask_id_of(tokenizer)
    if (
        cls.Settings.family == "uniform"
    ):  # as in the published weights, whose vocabulary has all special tokens
        vocab_size = number_of_ids(tokenizer)
    bos_id = None
    if cls.Settings.causal and tokenizer.bos_token_id is not None:
        bos_id = boundary_ids(tokenizer, eos=config.data.eos)[0]
    training = config.training
    return Context(
        vocab_size=vocab_size,
        mask_id=mask_id,
        bos_id=bos_id,
        schedule=get_schedule(config.noise.name, config.noise.eps),
        seed=config.seed,
        sampling_eps=training.sampling_eps,
        antithetic=training.antithetic_sampling,
        ignore_bos=training.ignore_bos,
        low_variance=training.loss_type == "low_var",
        train_by_count=training.mask_sampling == "count",
        valid_by_count=config.eval.nelbo == "count",
        dtype=torch.float64 if training.loss_precision == "float64" else torch.float32,
        max_steps=config.trainer.max_steps,
        log_every=config.trainer.log_every_n_steps,
    )


def _factory(name: str, cls: type[Objective]) -> Callable[[DictConfig, PreTrainedTokenizerBase], TrainerBase]:
    def make(config: DictConfig, tokenizer: PreTrainedTokenizerBase) -> TrainerBase:
        return build(name, config, tokenizer)

    make.__name__, make.__qualname__, make.__doc__ = cls.__name__, cls.__qualname__, cls.__doc__
    return make


ALGORITHMS = {name: _factory(name, cls) for name, cls in OBJECTIVES.items()}

AR = ALGORITHMS["ar"]
MDLM = ALGORITHMS["mdlm"]
SEDDAbsorb = ALGORITHMS["sedd"]
D3PMAbsorb = ALGORITHMS["d3pm"]
DUO_BASE = ALGORITHMS["duo_base"]
DUO = ALGORITHMS["duo"]
Distillation = ALGORITHMS["distillation"]
Rectification = ALGORITHMS["rectification"]
IMDM = ALGORITHMS["imdm"]
IMSDTT = ALGORITHMS["im-sdtt"]
IMReDi = ALGORITHMS["im-redi"]
ImCoupled = ALGORITHMS["im-coupled"]
