"""What steps in float32 do to the samples of a checkpoint: perplexity and entropy against exact draws.

Shapes: B rows, L positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from api import load
from data.decoding import decode
from diffusion.gumbel import gumbel_max
from diffusion.parameterization import Prediction
from diffusion.randomness import Stream, row_keys
from errors import UserError
from metrics import TextScores, mean_interval, sample_entropy
from samplers.draws import KeyedDraws
from samplers.study.joint import AncestralJoint
from samplers.study.truncated import Float32Draws, TruncatedDraws
from tasks.scoring import GenerativePerplexity
from trainer_base import TrainerBase

Row = dict[str, Any]


class Gumbel53(KeyedDraws):
    """Gumbel-max with all bits of float64, from the random numbers of the other two draws."""

    def categorical(self, log_probs: Tensor, keys: Tensor) -> Tensor:
        return gumbel_max(log_probs, keys, bits=53)


KINDS: dict[str, type[KeyedDraws]] = {
    "exact": Gumbel53,
    "float32": Float32Draws,
    "truncated32": TruncatedDraws,
}


class Remembering:
    """A model as a denoiser that calls its network only for rows that changed since the last call."""

    def __init__(self, module: TrainerBase) -> None:
        self.module, self.last = module, None
        self.draw_seeds, self.refresh_seeds = module.objective.draw_seeds, module.objective.refresh_seeds

    def denoise(self, xt: Tensor, sigma: Tensor, mask_seeds: Tensor | None) -> Prediction:
        noise = xt if mask_seeds is None else mask_seeds
        if self.last is None:
            prediction = self.module.denoiser.denoise(xt, sigma, mask_seeds)
        else:
            old_xt, old_noise, prediction = self.last
            rows = ((xt != old_xt) | (noise != old_noise)).any(-1).nonzero().squeeze(-1)
            features = prediction.features
            if rows.numel():
                part = self.module.denoiser.denoise(
                    xt[rows], sigma[rows], None if mask_seeds is None else mask_seeds[rows]
                )
                features = features.index_copy(0, rows, part.features)
            prediction = prediction.with_features(features, xt)
        self.last = (xt, noise, prediction)
        return prediction


@torch.no_grad()
def write_samples(module: TrainerBase, kind: str, num_steps: int, number: int, batch: int) -> Tensor:
    """``number`` samples (number, L) of the draws ``kind``; rows of the same number share random numbers."""
    parts = []
    for rows in torch.arange(number, device=module.device).split(batch):
        keys = row_keys(module.config.seed, Stream.SAMPLE, 0, rows)
        xt, mask_seeds = (
            module.generator.prior(len(rows)),
            module.objective.draw_seeds(keys, module.config.model.length),
        )
        settings = module.generator.sampler_settings(num_steps)
        sampler = AncestralJoint(Remembering(module), module.objective.schedule, module.mask_id, settings)
        parts.append(sampler.sample(xt, 1.0, mask_seeds, KINDS[kind](keys)).tokens)
    return torch.cat(parts).cpu()


def shift(scores: TextScores, exact: TextScores, seed: int) -> tuple[float, list[float]]:
    """By what factor perplexity differs from that of exact draws, and its 95 % interval: texts of the same
    random numbers are drawn anew together."""
    generator, found = torch.Generator().manual_seed(seed), []
    number = len(exact.nll)
    for k in range(1001):
        drawn = torch.arange(number)
        if k:
            drawn = torch.randint(number, (number,), generator=generator)
        means = [float(s.nll[drawn].sum() / s.tokens[drawn].sum()) for s in (scores, exact)]
        found.append(math.exp(means[0] - means[1]))
    return found[0], np.quantile(found[1:], [0.025, 0.975]).tolist()


def study_checkpoint(
    checkpoint: str, judge: str, steps: Sequence[int], number: int, batch: int, say: Callable[[str], None]
) -> list[Row]:
    """Perplexity and entropy of samples by draws and steps, and what differs from exact draws.

    Raises:
        ValueError: no such checkpoint, or its network sees the time and has to be called in every step.
    """
    model = load(checkpoint, eval__gen_ppl_eval_model_name_or_path=judge)
    module, cfg = model.module, model.module.config
    if module.objective.settings.family != "absorbing" or cfg.algo.time_conditioning:
        raise UserError("checkpoint", checkpoint, "not a masked model without time", "give an MDLM or IMDM")
    measure, rows = GenerativePerplexity(cfg), []
    for num_steps in steps:
        reference: tuple[Tensor, TextScores, Tensor] | None = None
        for kind in KINDS:
            with module.ema_weights():
                tokens = write_samples(module, kind, num_steps, number, batch)
            texts = decode(model.tokenizer, tokens, cfg.eval.decoding)
            scores = measure.scores(texts, module.device, cfg.model.length)
            entropy = sample_entropy(tokens)
            reference = reference or (tokens, scores, entropy)
            factor, interval = shift(scores, reference[1], cfg.seed)
            difference = entropy - reference[2]
            rows.append(
                {
                    "draws": kind,
                    "steps": num_steps,
                    "samples": number,
                    "generative_ppl": scores.perplexity,
                    "generative_ppl_interval": list(
                        (scores.bootstrap(cfg.seed) or (0, math.nan, math.nan))[1:]
                    ),
                    "entropy": float(entropy.mean()),
                    "entropy_interval": mean_interval(entropy, cfg.seed),
                    "ppl_factor": factor,
                    "ppl_factor_interval": interval,
                    "entropy_shift": float(difference.mean()),
                    "entropy_shift_interval": mean_interval(difference, cfg.seed),
                    "samples_that_differ": float((tokens != reference[0]).any(-1).double().mean()),
                }
            )
            say(
                f"steps {num_steps}, {kind}: perplexity {scores.perplexity:.3f}, entropy {entropy.mean():.4f}"
            )
    return rows
