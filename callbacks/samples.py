"""Samples at every validation: what another model thinks of them, their entropy, all of them in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from data.decoding import decode, rule_of
from metrics import TextScores, perplexity, sample_entropy
from trainer_base import TrainerBase
from utils import get_logger, write_json

log = get_logger("samples")


class Judge(Protocol):
    """Generative perplexity, ready to use (tasks/scoring.py)."""

    def scores(self, texts: list[str], device: torch.device, length: int) -> TextScores:
        """Judge samples of ``length`` tokens."""
        ...


class SampleAtValidation(Callback):
    """Samples ``sampling.num_sample_batches`` batches at every number of steps, with the averaged weights.

    Args:
        judge: gives val/gen_ppl_T<steps>; None: it is not measured.
        problem: why there is no judge although one was asked for; told once.
    """

    def __init__(self, judge: Judge | None = None, problem: str | None = None) -> None:
        self.judge = judge
        self.problem = problem

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        # All devices judge or none does: one without a scorer would leave the others waiting for its sums.
        judges = _sum_over_devices(trainer, [float(self.judge is not None)])[0]
        if judges < trainer.world_size:
            self.judge = None
            if judges or self.problem:
                self._warn(self.problem or "a device could not load the scorer")

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, TrainerBase)
        if trainer.sanity_checking and not module.config.eval.compute_perplexity_on_sanity:
            return
        batch = trainer.val_dataloaders.batch_sampler.batch_size
        number = batch * module.config.sampling.num_sample_batches
        length, rule = module.config.model.length, module.config.eval.decoding
        for num_steps in module.generator.step_counts():
            with module.ema_weights():
                samples = module.generator.sample(
                    number, num_steps, first_row=trainer.global_rank * number, batch_size=batch
                )
            texts = decode(module.tokenizer, samples.tokens, rule)
            everything = _of_all_devices(trainer, texts)
            sums = [float(sample_entropy(samples.tokens.cpu()).sum()), float(number), 0.0, 0.0]
            if self.judge is not None:
                scores = self.judge.scores(texts, module.device, length)
                sums[2:] = float(scores.nll.sum()), float(scores.tokens.sum())
            entropy, samples_made, nll, tokens = _sum_over_devices(trainer, sums)
            measured = {"generative_ppl": perplexity(nll, tokens), "entropy": entropy / samples_made}
            module.log(f"val/sample_entropy_T{num_steps}", measured["entropy"], sync_dist=True)
            if measured["generative_ppl"] is not None:
                module.log(f"val/gen_ppl_T{num_steps}", measured["generative_ppl"], sync_dist=True)
            run = {"steps": num_steps, **measured, "length": length}
            run["decoding"] = rule_of(module.tokenizer, rule)
            self._record(trainer, module, run, everything)

    @rank_zero_only
    def _warn(self, problem: str) -> None:
        log.warning("val/gen_ppl is not measured, training goes on without it: %s", problem)

    @rank_zero_only
    def _record(self, trainer: L.Trainer, module: TrainerBase, run: dict[str, Any], texts: list[str]) -> None:
        value = run["generative_ppl"]
        judged = "" if value is None else f"generative perplexity {value:.2f}, "
        log.info("samples, steps %d: %sentropy %.3f nats", run["steps"], judged, run["entropy"])
        for text in texts[: module.config.sampling.num_sample_log]:
            log.info("  %s", text)
        folder = Path(trainer.default_root_dir) / "samples"
        write_json(
            folder / f"step{trainer.global_step}-T{run['steps']}.json", {**run, "generated_seqs": texts}
        )


def _of_all_devices(trainer: L.Trainer, texts: list[str]) -> list[str]:
    """The texts in the order of their rows, as one device would have written them."""
    if trainer.world_size == 1:
        return texts
    parts: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(parts, texts)
    return [text for part in parts for text in part]


def _sum_over_devices(trainer: L.Trainer, values: list[float]) -> list[float]:
    # float32 where a device (Apple's) knows no float64
    dtype = torch.float32 if trainer.strategy.root_device.type == "mps" else torch.float64
    own = torch.tensor(values, dtype=dtype, device=trainer.strategy.root_device)
    return trainer.strategy.reduce(own, reduce_op="sum").tolist()
