"""mode=generate_reflow_dataset: the pairs that algo=im-redi and algo=rectification train on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from algo import OBJECTIVES
from data.reflow import REFLOW, ReflowDataset
from data.reflow_parts import PairStore
from dataloader import data_settings
from errors import UserError
from tasks.processes import ALONE, Processes, launch
from tasks.reflow_pairs import PairMaker
from tasks.setup import build_algorithm, build_evaluated

_POLL_SECONDS = 2.0


def generate_reflow_dataset(cfg: DictConfig) -> dict[str, Any]:
    """Make ``reflow.num_reflow_samples`` pairs with the model of ``eval.checkpoint_path``.

    The same command goes on where it stopped; when all pairs are there it says so and does nothing.

    Returns (and writes to ``reflow.save_path``/manifest.json): all that made the pairs, and their mean number
    of network calls.
    """
    processes = launch(cfg)
    maker = PairMaker(cfg, build_evaluated(cfg).to(processes.device))
    store = PairStore(Path(cfg.reflow.save_path).expanduser(), maker.describe())
    return maker.fill(store, rank=processes.rank, world_size=processes.world_size)


def refuse_without_pairs(cfg: DictConfig) -> None:
    """Raise where a training is to read pairs that are not there, or needs pairs and may not make them."""
    needs_pairs = OBJECTIVES[cfg.algo.name].Settings.needs_pairs
    makes_them = needs_pairs and cfg.reflow.make_missing
    if cfg.data.train == REFLOW or (cfg.data.valid == REFLOW and not makes_them):
        ReflowDataset(Path(cfg.reflow.save_path).expanduser())
    if cfg.data.train != REFLOW and needs_pairs and not makes_them:
        raise UserError(
            "data",
            cfg.data.name,
            f"algo={cfg.algo.name} trains on stored pairs, and this data has none",
            "make them with mode=generate_reflow_dataset, then use data=reflow-dataset-general "
            "reflow.save_path=..., or let reflow.make_missing=True make them first",
        )


def with_pairs(cfg: DictConfig, folder: Path, processes: Processes = ALONE) -> DictConfig:
    """``cfg`` with all that the manifest of its pairs knows; missing pairs are made first.

    They are made in ``folder``/reflow_data by the weights of ``training.finetune_path`` (the averaged ones
    with ``training.load_ema``), in the largest of ``sampling.steps``. Without a path the weights are random:
    that tries out the machinery.
    """
    if cfg.data.train == REFLOW:
        return OmegaConf.merge(cfg, {"data": data_settings(cfg)})
    if not OBJECTIVES[cfg.algo.name].Settings.needs_pairs:
        return cfg
    start, target = cfg.training.finetune_path, folder / "reflow_data"
    evaluation = {"checkpoint_path": start, "disable_ema": not cfg.training.load_ema}
    making = OmegaConf.merge(cfg, {"eval": evaluation, "sampling": {"steps": [max(cfg.sampling.steps)]}})
    maker = PairMaker(making, build_evaluated(making) if start else build_algorithm(making))
    store = PairStore(target, maker.describe())
    maker.module.to(processes.device)
    maker.fill(store, rank=processes.rank, world_size=processes.world_size)
    while not store.complete:  # the other processes wait
        time.sleep(_POLL_SECONDS)
        store.refresh()
    return OmegaConf.merge(cfg, {"data": {"train": REFLOW}, "reflow": {"save_path": str(target)}})
