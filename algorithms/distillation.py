"""Discrete consistency distillation (DCD) of uniform-state diffusion (Duo, arXiv 2506.10892, section 4).

Shapes: B sequences of a micro-batch, L positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from algorithms.duo import GaussianDuo, GaussianDuoSettings
from algorithms.mdlm import TRAIN_STREAMS, VALID_STREAMS
from algorithms.objective import BoundDenoiser, Distilled, Promotion, RoundObjective, Stage, num_tokens
from diffusion.backbone import Backbone
from diffusion.distillation import consistency_dt
from diffusion.duality import argmax_pair, discrete_level
from diffusion.objectives import LossOutput
from diffusion.parameterization import flat
from diffusion.randomness import row_keys, uniform
from settings import AlgorithmSettings, ForwardProfile, UserError, key


@dataclass
class DistillationSettings(GaussianDuoSettings):
    """Discrete consistency distillation of a uniform-state model (Duo). Give training.finetune_path."""

    name: str = key("distillation", "the algorithm")
    T: int = key(64, "the first teacher is asked 1/T of the time earlier than the student", low=1)
    loss_type: str = key(
        "kl-bwd", "divergence: KL(student||teacher), KL(teacher||student)", choices=("kl-bwd", "kl-fwd")
    )
    update_teacher_every: int = key(
        10_000, "optimizer steps until the student becomes the teacher, and the step doubles", low=1
    )
    teacher_ema: bool = key(False, "its average becomes the teacher instead")
    linear_growth_dt: bool = key(False, "the step grows evenly until trainer.max_steps instead of doubling")
    linear_growth_min: float = key(0.001, "that step at the beginning", low=0, high=1)
    linear_growth_max: float = key(0.25, "and at the end", above=0, high=1)
    gamma_min: float = key(-4.0, "log of noise over signal at t = 0", low=-30, high=30)

    in_rounds: ClassVar[bool] = True

    def profile(self) -> ForwardProfile:
        return ForwardProfile(everywhere=True, chunks=4, teacher_passes=1)

    def validate(self, run: Any) -> None:
        GaussianDuoSettings.validate(self, run)
        if self.teacher_ema and run.training.ema == 0:
            hint = "use algo.teacher_ema=False, or a training.ema such as 0.999"
            raise UserError("algo.teacher_ema", True, "training.ema=0 keeps no average", hint)
        if self.linear_growth_min > self.linear_growth_max:
            problem = f"above algo.linear_growth_max={self.linear_growth_max}: the step would shrink"
            raise UserError("algo.linear_growth_min", self.linear_growth_min, problem, "lower it")

    def warnings(self, run: Any) -> list[str]:
        found = GaussianDuoSettings.warnings(self, run)
        if run.mode != "train":
            return found
        if not run.training.finetune_path:
            return [*found, "training.finetune_path is empty: the first teacher is an untrained network"]
        usual = {"linear_growth_min": 0.001, "linear_growth_max": 0.25}
        idle = [name for name, value in usual.items() if getattr(self, name) != value]
        if idle and not self.linear_growth_dt:
            found.append(f"algo.{idle[0]} has no effect without algo.linear_growth_dt=True")
        return found


class Trajectory(NamedTuple):
    """Text at t and at s = t - dt under one noise: ids xt and xs (B, L), sigma_t and sigma_s (B,), and the
    tokens that count, ``loss_mask`` (B, L) bool."""

    xt: Tensor
    xs: Tensor
    sigma_t: Tensor
    sigma_s: Tensor
    loss_mask: Tensor


class Distillation(GaussianDuo, RoundObjective):
    """A student learns to say at t what its teacher says at t - dt, on the same path of noise.

    dt is 1/T in the first round and doubles with each (``algo.linear_growth_dt``: it grows evenly with the
    steps), and the student, or its average, becomes the teacher. It starts from a Duo checkpoint
    (``training.finetune_path``). trainer/loss is the divergence; train/nll is the student's NELBO on the
    batches of the steps that are logged, which validation reports as well.
    """

    Settings: ClassVar[type[AlgorithmSettings]] = DistillationSettings

    def dt(self, stage: Stage) -> float:
        """How much earlier the teacher is asked, in diffusion time."""
        own = self.settings
        if own.linear_growth_dt:
            part = min(1.0, stage.step / self.context.max_steps)
            return own.linear_growth_min + part * (own.linear_growth_max - own.linear_growth_min)
        return min(1.0, consistency_dt(stage.round, own.T))

    # The objective --------------------------------------------------------------------------------

    def distill(
        self,
        backbone: Backbone,
        teacher: BoundDenoiser,
        batch: dict[str, Tensor],
        *,
        step: int,
        num_rows: int,
        training: bool,
        stage: Stage,
    ) -> Distilled:
        """Student at xt against teacher at xs, at every token; see ``RoundObjective.distill``."""
        x0 = batch["input_ids"]
        path = self.trajectory(batch, step, num_rows, training, self.dt(stage))
        with torch.no_grad():
            taught = teacher.denoise(path.xs, path.sigma_s, None)
        rows = flat(path.loss_mask)
        weight = num_tokens(batch, path.loss_mask).double().reciprocal()
        prediction = self.denoise(backbone, path.xt, path.sigma_t)
        loss, values, _ = prediction.weighted_divergence(
            rows, taught, self.settings.loss_type, x0.flatten()[rows], weight.expand(len(rows))
        )
        divergence = torch.zeros(x0.shape, dtype=values.dtype, device=x0.device)
        divergence = divergence.masked_scatter(path.loss_mask, values)
        if training and (step + 1) % self.context.log_every:
            nothing = torch.zeros_like(path.loss_mask)
            return Distilled(
                LossOutput(loss, torch.zeros_like(divergence), nothing), divergence, path.loss_mask
            )
        with torch.no_grad():
            nelbo = self.loss(backbone, batch, step=step, num_rows=num_rows, training=training)
        return Distilled(LossOutput(loss, nelbo.token_nll, nelbo.loss_mask), divergence, path.loss_mask)

    def trajectory(
        self, batch: dict[str, Tensor], step: int, num_rows: int, training: bool, dt: float
    ) -> Trajectory:
        """Both ends of a step of length dt, of which no time is later than 1."""
        x0, rows = batch["input_ids"], batch["row"]
        streams = TRAIN_STREAMS if training else VALID_STREAMS
        time_keys, noise_keys = (row_keys(self.context.seed, s, step, rows) for s in streams[:2])
        t = (self.times(time_keys, rows, num_rows, training) + dt).clamp(max=1)
        distribution_t, distribution_s = self.argmax_distribution(t), self.argmax_distribution(t - dt)
        uniforms = uniform(noise_keys, 2 * x0.shape[1])
        xt, xs = argmax_pair(x0, distribution_t.stays, distribution_s.stays, uniforms, self.vocab_size)
        loss_mask = batch["attention_mask"]
        if self.context.ignore_bos:
            is_first = torch.arange(x0.shape[1], device=x0.device) == 0
            xt, xs = torch.where(is_first, x0, xt), torch.where(is_first, x0, xs)
            loss_mask = loss_mask & ~is_first
        sigma_t, sigma_s = (
            discrete_level(distribution, self.speed, self.vocab_size)[1]
            for distribution in (distribution_t, distribution_s)
        )
        return Trajectory(xt, xs, sigma_t, sigma_s, loss_mask)

    # The rounds -----------------------------------------------------------------------------------

    def round_at(self, step: int) -> int:
        return step // self.settings.update_teacher_every

    def finished(self, step: int) -> str | None:
        own = self.settings
        if own.linear_growth_dt or consistency_dt(self.round_at(step), own.T) <= 1:
            return None
        return f"a step of {2 ** self.round_at(step)}/algo.T={own.T} is longer than all the time there is"

    def promotion(self) -> Promotion:
        return Promotion(from_ema=self.settings.teacher_ema)

    def describe_round(self, stage: Stage) -> str:
        average = "the average of the student" if self.settings.teacher_ema else "the student"
        who = f"{average} of the round before" if stage.round else "the network it starts from"
        growing = self.settings.linear_growth_dt
        length = "a growing step" if growing else f"a step of {self.dt(Stage(stage.round, 0)):.4g}"
        return f"the teacher is {who}, asked {length} earlier"

    def logged(self, stage: Stage) -> dict[str, float]:
        return {"train/dt": self.dt(stage)}
