"""Discrete consistency distillation (DCD) of uniform-state diffusion (Duo, arXiv 2506.10892, section 4).

Shapes: B rows of a micro-batch, L positions.
"""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import torch
from torch import Tensor

from algorithms.duo import GaussianDuo
from algorithms.mdlm import TRAIN_STREAMS, VALID_STREAMS
from algorithms.rounds import InRounds, Teacher
from diffusion.distillation import consistency_dt
from diffusion.duality import argmax_pair, discrete_level
from diffusion.objectives import LossOutput
from diffusion.parameterization import flat
from diffusion.randomness import row_keys, uniform


class Trajectory(NamedTuple):
    """Text at t and at s = t - dt under one noise: ids xt and xs (B, L), sigma_t and sigma_s (B,), and the
    tokens that count, ``loss_mask`` (B, L) bool."""

    xt: Tensor
    xs: Tensor
    sigma_t: Tensor
    sigma_s: Tensor
    loss_mask: Tensor


class Distillation(InRounds, GaussianDuo):
    """A student learns to say at t what its teacher says at t - dt, on the same path of noise.

    dt is 1/T in the first round and doubles with each (``algo.linear_growth_dt``: it grows evenly with the
    steps), and the student, or its average, becomes the teacher. It starts from a Duo checkpoint
    (``training.finetune_path``). trainer/loss is the divergence; train/nll is the student's NELBO on the
    batches of the steps that are logged, which validation reports as well.
    """

    def dt(self, step: int) -> float:
        """How much earlier the teacher is asked, in diffusion time, at optimizer step ``step``."""
        algo = self.config.algo
        if algo.linear_growth_dt:
            part = min(1.0, step / self.config.trainer.max_steps)
            return algo.linear_growth_min + part * (algo.linear_growth_max - algo.linear_growth_min)
        return min(1.0, consistency_dt(self.round, algo.T))

    # The objective --------------------------------------------------------------------------------

    def distill(
        self, batch: dict[str, Tensor], *, step: int, num_rows: int, training: bool
    ) -> tuple[LossOutput, Tensor, Tensor]:
        """Student at xt against teacher at xs, at every token; see ``InRounds.distill``."""
        x0 = batch["input_ids"]
        xt, xs, sigma_t, sigma_s, loss_mask = self.trajectory(batch, step, num_rows, training)
        with torch.no_grad():
            taught = self.present_teacher().denoise(xs, sigma_s, None)
        rows = flat(loss_mask)
        weight = self.num_tokens(batch, loss_mask).double().reciprocal()
        loss, values, _ = self.denoise(xt, sigma_t).weighted_divergence(
            rows, taught, self.config.algo.loss_type, x0.flatten()[rows], weight.expand(len(rows))
        )
        divergence = torch.zeros(xt.shape, dtype=values.dtype, device=xt.device)
        divergence = divergence.masked_scatter(loss_mask, values)
        if training and (step + 1) % self.config.trainer.log_every_n_steps:
            nothing = torch.zeros_like(loss_mask)
            return LossOutput(loss, torch.zeros_like(divergence), nothing), divergence, loss_mask
        with torch.no_grad():
            _, token_nll, counted = GaussianDuo.loss(
                self, batch, step=step, num_rows=num_rows, training=training
            )
        return LossOutput(loss, token_nll, counted), divergence, loss_mask

    def trajectory(self, batch: dict[str, Tensor], step: int, num_rows: int, training: bool) -> Trajectory:
        """Both ends of a step of length dt, of which no time is later than 1."""
        x0, rows = batch["input_ids"], batch["row"]
        streams = TRAIN_STREAMS if training else VALID_STREAMS
        time_keys, noise_keys = (row_keys(self.config.seed, s, step, rows) for s in streams[:2])
        dt = self.dt(step if training else self.global_step)
        t = (self.times(time_keys, rows, num_rows, training) + dt).clamp(max=1)
        law_t, law_s = self.argmax_law(t), self.argmax_law(t - dt)
        uniforms = uniform(noise_keys, 2 * x0.shape[1])
        xt, xs = argmax_pair(x0, law_t.stays, law_s.stays, uniforms, self.vocab_size)
        loss_mask = batch["attention_mask"]
        if self.config.training.ignore_bos:
            is_first = torch.arange(x0.shape[1], device=x0.device) == 0
            xt, xs = torch.where(is_first, x0, xt), torch.where(is_first, x0, xs)
            loss_mask = loss_mask & ~is_first
        sigma_t, sigma_s = (discrete_level(law, self.speed, self.vocab_size)[1] for law in (law_t, law_s))
        return Trajectory(xt, xs, sigma_t, sigma_s, loss_mask)

    # The rounds -----------------------------------------------------------------------------------

    def round_at(self, step: int) -> int:
        return step // self.config.algo.update_teacher_every

    def finished(self, step: int) -> str | None:
        algo = self.config.algo
        if algo.linear_growth_dt or consistency_dt(self.round_at(step), algo.T) <= 1:
            return None
        return f"a step of {2 ** self.round_at(step)}/algo.T={algo.T} is longer than all the time there is"

    def promote(self, teacher: Teacher) -> None:
        use_ema = self.config.algo.teacher_ema
        assert self.ema is not None or not use_ema
        with self.ema.applied(self) if use_ema else contextlib.nullcontext():
            super().promote(teacher)

    def describe_round(self) -> str:
        average = "the average of the student" if self.config.algo.teacher_ema else "the student"
        who = f"{average} of the round before" if self.round else "the network it starts from"
        length = "a growing step" if self.config.algo.linear_growth_dt else f"a step of {self.dt(0):.4g}"
        return f"the teacher is {who}, asked {length} earlier"

    def _log_training(self) -> None:
        super()._log_training()
        self.log("train/dt", self.dt(self.global_step))
