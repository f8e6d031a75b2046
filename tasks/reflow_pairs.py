"""Making pairs of noise and the text that a model makes of it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import platform
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from tqdm import tqdm

from data.batching import permutation
from data.dataset import TokenDataset
from data.reflow import NO_SEED, ReflowDataset
from data.reflow_parts import PairStore
from dataloader import batch_sizes, get_dataset, pair_settings
from diffusion.coupling import Coupling
from diffusion.randomness import Stream, fold_in, random_bits, row_keys, uniform
from diffusion.time_sampling import spread_rows, training_times
from errors import UserError
from trainer_base import TrainerBase
from utils import get_logger

log = get_logger("reflow")

# What is drawn from a row's key, beside the draws of the sampler (samplers/draws.py).
_TIME, _MASK, _SEED, _NOISE, _START = range(5)
_STRATA = 1024  # the times of so many consecutive rows are spread evenly
_LOG_SECONDS = 60.0
_POLL_SECONDS = 2.0


class PairMaker:
    """Makes pairs with a model: row r is a function of (seed, r) alone, whatever the batches and devices.

    Args:
        cfg: ``reflow.*``, ``sampling.*``, ``data.*`` and ``seed``.
        module: a masked or a uniform-state model with its weights, on its device.

    Raises:
        ValueError: this model, or this data, makes no pairs.
    """

    def __init__(self, cfg: DictConfig, module: TrainerBase) -> None:
        if module.objective.settings.family not in ("absorbing", "uniform"):
            problem = f"pairs are made by diffusion models, not by {module.objective.settings.family} ones"
            raise UserError("algo", cfg.algo.name, problem, "use mdlm, imdm, duo or one distilled from them")
        counts = module.generator.step_counts()
        if len(counts) > 1:
            shown = ",".join(map(str, counts))
            raise UserError("sampling.steps", shown, "pairs take one number of steps", "give one number")
        self.cfg, self.module, self.num_steps = cfg, module, counts[0]
        # Read on first use: finished pairs, and pairs from pure noise, need none.
        self._dataset: TokenDataset | None = None
        self._orders: dict[int, np.ndarray] = {}

    def describe(self) -> dict[str, Any]:
        """The manifest: all that shapes the pairs, and what a reader has to share with their maker."""
        cfg, module = self.cfg, self.module
        settings = dataclasses.asdict(module.generator.sampler_settings(self.num_steps))
        if settings["own"] is None:
            del settings["own"]
        if cfg.sampling.draws != "exact":
            settings["draws"] = cfg.sampling.draws
        if not module.generator.sampler_class.traits.on_grid:
            settings["num_steps"] = None  # it plays no part
        coupling = Coupling.of(module.vocab_size)
        coupled = {"order": "spread", "calls": self.num_steps, "tree_levels": coupling.levels}
        if module.generator.sampler_class.name != "coupled" or not cfg.reflow.get_seed:
            coupled = None
        return {
            "rows": cfg.reflow.num_reflow_samples,
            "seed": cfg.seed,
            "perturbed_rect": cfg.reflow.perturbed_rect,
            "get_seed": cfg.reflow.get_seed,
            "ignore_bos": cfg.training.ignore_bos,
            **pair_settings(cfg, module.tokenizer),
            "algorithm": {"name": cfg.algo.name, "as_mdlm": cfg.algo.get("as_mdlm", False)},
            "checkpoint": {
                "path": cfg.eval.checkpoint_path,
                "weights_sha256": _digest(module),
                "ema": module.uses_ema,
            },
            "sampling": {"predictor": module.generator.sampler_class.name, **settings},
            **({} if coupled is None else {"coupled": coupled}),
            "precision": str(module.backbone.precision),
            "data": OmegaConf.to_container(cfg.data, resolve=True),
            "versions": {
                "python": platform.python_version(),
                "torch": str(torch.__version__),
                "numpy": np.__version__,
            },
        }

    def make(self, rows: Tensor) -> dict[str, np.ndarray]:
        """The pairs number ``rows`` (n,): xt, x0 (n, L) int32, t (n,) float64, seed and nfe (n,) int64."""
        cfg, module, device = self.cfg, self.module, self.module.device
        keys = row_keys(cfg.seed, Stream.REFLOW, 0, rows)
        if cfg.reflow.perturbed_rect:
            strata = spread_rows(rows % _STRATA, _STRATA)
            u = training_times(fold_in(keys, _TIME), strata, _STRATA, sampling_eps=0.0, antithetic=True)
            t = (1 - u).clamp(min=2.0**-53)  # in (0, 1]
            xt, fixed = (part.to(device) for part in self._noised_text(rows, t, fold_in(keys, _MASK)))
        else:
            t = torch.ones(len(rows), dtype=torch.float64)
            xt, fixed = module.objective.start(
                module.generator.prior(len(rows)), fold_in(keys, _START).to(device)
            )
        seeds = random_bits(fold_in(keys, _SEED), 1).squeeze(-1)
        mask_seeds = module.objective.draw_seeds(fold_in(keys, _NOISE).to(device), xt.shape[1])
        coupled = module.generator.sampler_class.name == "coupled"
        if cfg.reflow.get_seed and (coupled or mask_seeds is not None):
            mask_seeds = seeds.to(device).unsqueeze(-1).expand_as(xt)
        made = module.generator.reverse(
            xt, t.to(device), mask_seeds, keys.to(device), self.num_steps, fixed=fixed
        )
        return {
            "xt": xt.int().cpu().numpy(),
            "x0": made.tokens.int().cpu().numpy(),
            "t": t.numpy(),
            "seed": (seeds if cfg.reflow.get_seed else torch.full_like(seeds, NO_SEED)).numpy(),
            "nfe": made.nfe.cpu().numpy(),
        }

    def fill(self, store: PairStore, *, rank: int = 0, world_size: int = 1) -> dict[str, Any]:
        """Make what is missing of this rank's share; rank 0 waits for all and joins the parts.

        Of several commands with the same folder one works at a time, the others wait for it. Arrays that are
        there already are looked at.

        Returns:
            the manifest (of ranks above 0: as it was before joining).

        Raises:
            UserError: the pairs that are there are damaged, or something else made them.
        """
        first, last = (store.rows * r // world_size for r in (rank, rank + 1))
        size = self.cfg.loader.eval_batch_size or self.cfg.loader.batch_size
        size = size or batch_sizes(self.cfg, world_size, evaluation=True)[0]
        started = time.perf_counter()
        with store.alone() if rank == 0 else contextlib.nullcontext():
            was_complete = store.complete
            self._make_missing(store, first, last, size, show=rank == 0)
            while rank == 0 and not store.join():  # the other processes' rows
                time.sleep(_POLL_SECONDS)
                self._make_missing(store, first, last, size, show=True)
        if not store.complete:
            return store.manifest
        if rank == 0:
            tokenizer = store.manifest["tokenizer"]
            ReflowDataset(store.folder).check_values(tokenizer["vocab_size"], tokenizer["mask_id"])
        store.clear()
        if was_complete:
            log.info("all %d pairs are there already -> %s", store.rows, store.folder)
        else:
            seconds, calls, place = time.perf_counter() - started, store.manifest["nfe"], store.folder
            log.info("%d pairs, %.1f network calls each, %.0f s -> %s", store.rows, calls, seconds, place)
        return store.manifest

    def _make_missing(self, store: PairStore, first: int, last: int, size: int, *, show: bool) -> None:
        """Make those rows of first..last - 1 that nobody has made, ``size`` at a time."""
        if not (batches := store.batches(first, last, size)):
            return
        with self.module.ema_weights():
            for start, stop in _progress(batches, last - first, show=show):
                if not store.has(start, stop):
                    store.write(start, self.make(torch.arange(start, stop)))

    def _noised_text(self, rows: Tensor, t: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Training rows (n, L), corrupted at the times ``t`` (n,), and what noise never touches (n, L)."""
        if self._dataset is None:
            self._dataset = get_dataset(self.cfg, self.module.tokenizer, "train")
        batch = self._dataset.fetch(self._shuffled(rows.numpy(), len(self._dataset)))
        if not batch["attention_mask"].all():
            problem = "pairs cannot carry the padding of its rows"
            raise UserError("data.wrap", self.cfg.data.wrap, problem, "use packed data (data.wrap=True)")
        x0 = batch["input_ids"]
        keep = torch.zeros_like(x0, dtype=torch.bool)
        keep[:, 0] = self.cfg.training.ignore_bos
        alpha_t = self.module.objective.schedule.alpha(t)
        return self.module.objective.process.corrupt(x0, alpha_t, uniform(keys, x0.shape[1]), keep), keep

    def _shuffled(self, rows: np.ndarray, num_rows: int) -> np.ndarray:
        """Which rows of the data the pairs ``rows`` (n,) begin with: each epoch has an order of its own."""
        epochs, places = np.divmod(rows, num_rows)
        kept, self._orders = self._orders, {}
        for epoch in np.unique(epochs).tolist():
            order = kept.get(epoch)
            self._orders[epoch] = permutation(num_rows, self.cfg.seed, epoch) if order is None else order
        return np.array([self._orders[e][p] for e, p in zip(epochs.tolist(), places.tolist(), strict=True)])


def _digest(module: TrainerBase) -> str:
    """A digest of the weights that generate: the averaged ones, unless they are switched off."""
    digest = hashlib.sha256()
    with module.ema_weights():
        for name, parameter in sorted(module.named_parameters()):
            digest.update(f"{name} {tuple(parameter.shape)}".encode())
            digest.update(parameter.detach().float().cpu().contiguous().numpy())
    return digest.hexdigest()


def _progress(batches: list[tuple[int, int]], total: int, *, show: bool) -> Iterator[tuple[int, int]]:
    """Yield the batches with a bar on a terminal, with a line a minute in a log file."""
    done = total - sum(stop - start for start, stop in batches)
    bar = tqdm(total=total, initial=done, desc="pairs", unit="pair", disable=None if show else True)
    started = logged = time.perf_counter()
    made = 0
    with bar:
        for start, stop in batches:
            yield start, stop
            made += stop - start
            bar.update(stop - start)
            now = time.perf_counter()
            if show and bar.disable and now - logged > _LOG_SECONDS:
                left = (total - done - made) / made * (now - started) / 60
                log.info("%d of %d pairs, %.0f minutes left", done + made, total, left)
                logged = now
