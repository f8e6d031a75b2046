"""SDTT (arXiv 2410.21035), also with infinite masks: a model learns to do in one step what it did in several.

Shapes: B sequences of a micro-batch, L positions, N masked positions that count, K teacher steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from algorithms.imdm import IMDM, ImdmSettings
from algorithms.mdlm import Noised
from algorithms.objective import (
    BoundDenoiser,
    Context,
    Distilled,
    Promotion,
    RoundObjective,
    Stage,
    num_tokens,
)
from diffusion.backbone import Backbone
from diffusion.distillation import GrowthPlan, teacher_times
from diffusion.objectives import LossOutput
from diffusion.parameterization import Prediction
from diffusion.randomness import Stream, row_keys
from samplers.ancestral import Ancestral
from samplers.base import SamplerSettings
from samplers.draws import KeyedDraws
from samplers.teacher import teacher_targets
from settings import AlgorithmSettings, ForwardProfile, UserError, key


@dataclass
class ImSdttSettings(ImdmSettings):
    """Self-distillation through time with infinite masks; with as_mdlm=True SDTT (arXiv 2410.21035)."""

    name: str = key("im-sdtt", "the algorithm")
    distill_mode: str = key(
        "kl-bwd",
        "divergence: KL(student||teacher), KL(teacher||student), squared or absolute differences of "
        "log-probabilities, total variation",
        choices=("kl-bwd", "kl-fwd", "mse", "tvd", "tv"),
    )
    num_distill_steps: int = key(2, "teacher steps that the student learns to do in one", low=1)
    orig_num_sampling_steps: int = key(1024, "steps in which the first teacher samples", low=1)
    min_num_sampling_steps: int = key(1, "training ends when the teacher would sample in fewer steps", low=1)
    grow_dt_every: int = key(10_000, "optimizer steps until the student becomes the teacher", low=1)
    reset_optimizer_on_growth: bool = key(False, "the optimizer then forgets its moments")
    use_ema_on_growth: bool = key(False, "the student's average then replaces student and teacher")
    sdtt_fix_eps: bool = key(True, "masks keep their noise through the teacher's steps")
    loss_average: str = key(
        "slices",
        "mean over slices of the times, each the mean over its masked positions, or over all positions alike",
        choices=("slices", "positions"),
    )
    loss_slice_rows: int | None = key(
        "${loader.batch_size}",
        "rows of the global batch in a slice; null: all of them",
        low=1,
        auto=True,
        example=16,
    )
    teacher_times: str = key(
        "official",
        "when the teacher is asked: linear from t to t - num_distill_steps dt, or (exact) t, t - dt, ...",
        choices=("official", "exact"),
    )

    in_rounds: ClassVar[bool] = True

    def profile(self) -> ForwardProfile:
        return ForwardProfile(chunks=4, teacher_passes=self.num_distill_steps)

    def validate(self, run: Any) -> None:
        ImdmSettings.validate(self, run)
        first, last = self.orig_num_sampling_steps, self.min_num_sampling_steps
        if last > first:
            problem = f"above algo.orig_num_sampling_steps={first}: training would be over before it begins"
            raise UserError("algo.min_num_sampling_steps", last, problem, "lower it")
        if self.use_ema_on_growth and run.training.ema == 0:
            hint = "use algo.use_ema_on_growth=False, or a training.ema such as 0.9999"
            raise UserError("algo.use_ema_on_growth", True, "training.ema=0 keeps no average", hint)

    def warnings(self, run: Any) -> list[str]:
        found = ImdmSettings.warnings(self, run)
        if run.mode != "train":
            return found
        if (self.alpha_min, self.alpha_max) != (0.0, 1.0):
            found.append(
                "algo.alpha_min/alpha_max have no effect with algo=im-sdtt, which distils at all times"
            )
        if self.loss_average == "positions" and self.loss_slice_rows != run.loader.batch_size:
            found.append(
                "algo.loss_slice_rows has no effect with algo.loss_average=positions, which knows no slices"
            )
        if not run.training.finetune_path:
            found.append("training.finetune_path is empty: the first teacher is an untrained network")
        elif run.training.loss_type != "nelbo":
            found.append(
                f"training.loss_type has no effect with algo={self.name}: algo.distill_mode is the loss"
            )
        elif self.teacher_times == "exact" and self.num_distill_steps <= 2 and not self.time_conditioning:
            found.append(
                "algo.teacher_times=exact makes no difference to two steps of a network that sees no time"
            )
        elif self.as_mdlm and not self.sdtt_fix_eps:
            found.append(
                "algo.sdtt_fix_eps=False has no effect with algo.as_mdlm=True, whose masks carry no noise"
            )
        elif self.num_distill_steps == 1:
            found.append(
                "algo.num_distill_steps=1 teaches the student what it says already, and dt never grows"
            )
        return found


class IMSDTT(IMDM, RoundObjective):
    """Self-distillation through time, with infinite masks or (``algo.as_mdlm``, SDTT) a single one.

    In each round the student learns to say at once what its teacher, the student of the round before, says
    in ``algo.num_distill_steps`` steps. Validation reports the student's NELBO and, as val/distill_loss, the
    divergence; trainer/loss is the divergence, train/nll the student's NELBO on the same noised text.
    """

    Settings: ClassVar[type[AlgorithmSettings]] = ImSdttSettings

    def __init__(self, settings: Any, context: Context) -> None:
        super().__init__(settings, context)
        own = self.settings
        self.plan = GrowthPlan(
            span=1 - context.sampling_eps,
            first_steps=own.orig_num_sampling_steps,
            factor=own.num_distill_steps,
            steps_per_round=own.grow_dt_every,
            min_sampling_steps=own.min_num_sampling_steps,
        )

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
        """Student against teacher, at the same xt, times and mask noise; see ``RoundObjective.distill``."""
        noised = self.noised(batch, step, num_rows, training)
        x0, xt, _, weight, sigma, _, loss_mask = noised
        stream = Stream.TRAIN_TEACHER if training else Stream.VALID_TEACHER
        draws = KeyedDraws(row_keys(self.context.seed, stream, step, batch["row"]))
        targets, mask_seeds = self._targets(teacher, noised, draws, self.plan.dt(stage.round))

        where = (xt == self.mask_id) & loss_mask
        rows = where.flatten().nonzero().squeeze(1)
        if training:
            weights = self.row_weights(batch, where, loss_mask, step, num_rows)
        else:
            weights = where.sum().clamp(min=1).double().reciprocal().expand(len(where))
        loss, values, nll = self.denoise(backbone, xt, sigma, mask_seeds).weighted_divergence(
            rows, targets, self.settings.distill_mode, x0.flatten()[rows], weights[rows // where.shape[1]]
        )
        divergence, token_nll = (
            torch.zeros(xt.shape, dtype=part.dtype, device=xt.device).masked_scatter(where, part)
            for part in (values, nll)
        )
        token_nll *= weight.unsqueeze(1)
        return Distilled(LossOutput(loss, token_nll, loss_mask), divergence, where)

    def alpha_limits(self, training: bool) -> tuple[float, float]:
        """Distillation takes place at all times, as officially."""
        return 0.0, 1.0

    def _targets(
        self, teacher: BoundDenoiser, noised: Noised, draws: KeyedDraws, dt: float
    ) -> tuple[Prediction, Tensor | None]:
        """What the student is to say, and the noise of the masks that it sees: the teacher's latest.

        Without resets (``algo.sdtt_fix_eps``) that is the noise at the start.
        """
        own = self.settings
        times = teacher_times(
            noised.t.double(),
            dt,
            own.num_distill_steps,
            exact=own.teacher_times == "exact",
            floor=self.context.sampling_eps,
        )
        settings = SamplerSettings(own.num_distill_steps, reset=not own.sdtt_fix_eps)
        sampler = Ancestral(teacher, self.schedule, self.mask_id, settings)
        return teacher_targets(
            sampler, noised.xt, noised.mask_seeds, times, dt, draws, sees_time=own.time_conditioning
        )

    def row_weights(
        self, batch: dict[str, Tensor], where: Tensor, loss_mask: Tensor, step: int, num_rows: int
    ) -> Tensor:
        """What the divergence at a masked position of each row counts, (B,) float64.

        Times are stratified over the rows of the global batch, so that neighbouring rows have neighbouring
        times. The loss is the mean over slices of ``slice_rows`` rows of the mean over a slice's masked
        positions: every slice of the times weighs the same, however few its masks are. The mean over
        micro-batches, which Lightning and DDP take, of the losses with these weights is that loss, whatever
        rows a micro-batch has. A slice without masks adds nothing and still counts as a slice (officially
        its mean is 0/0).

        Args:
            where: (B, L) bool, the masked positions that count.
            loss_mask: (B, L) bool, the tokens that count.
        """
        size, rows = self.slice_rows(num_rows), batch["row"]
        num_slices, index = -(-num_rows // size), rows // size
        if size < num_rows and len(rows) % size == 0:  # micro-batches of whole slices
            counts = torch.zeros(num_slices, dtype=torch.float64, device=where.device)
            counts.index_add_(0, index, where.sum(1).double())
        else:
            counts = self._slice_counts(batch, loss_mask, step, num_rows)
        num_micro_batches = num_rows / len(rows)
        return num_micro_batches / num_slices / counts.clamp(min=1)[index]

    def slice_rows(self, num_rows: int) -> int:
        """Rows of a slice of the global batch; ``num_rows``, when all masked positions count alike."""
        size = self.settings.loss_slice_rows
        if self.settings.loss_average == "positions" or size is None:
            return num_rows
        return min(num_rows, size)

    def _slice_counts(self, batch: dict[str, Tensor], loss_mask: Tensor, step: int, num_rows: int) -> Tensor:
        """Masked positions that count in each slice of the global batch, float64.

        All rows' masks follow from their keys; of their padding only the total is known (``num_tokens``), and
        its share of the masks is taken to be that of the tokens.
        """
        ids = batch["input_ids"].new_full((num_rows, loss_mask.shape[1]), int(self.mask_id == 0))
        rows = torch.arange(num_rows, device=ids.device)
        whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids, dtype=torch.bool), "row": rows}
        noised = self.noised(whole, step, num_rows, training=True)
        masked = ((noised.xt == self.mask_id) & noised.loss_mask).sum(1).double()
        size = self.slice_rows(num_rows)
        counts = torch.zeros(-(-num_rows // size), dtype=torch.float64, device=ids.device)
        tokens = num_tokens(batch, loss_mask) * (num_rows / len(batch["row"]))
        return counts.index_add_(0, rows // size, masked) * tokens / noised.loss_mask.sum()

    # The rounds -----------------------------------------------------------------------------------

    def round_at(self, step: int) -> int:
        return self.plan.round_at(step)

    def finished(self, step: int) -> str | None:
        if not self.plan.is_over(step):
            return None
        left = self.plan.sampling_steps(self.plan.round_at(step))
        least = self.plan.min_sampling_steps
        return f"a teacher of {left} steps is below algo.min_num_sampling_steps={least}"

    def promotion(self) -> Promotion:
        own = self.settings
        return Promotion(own.use_ema_on_growth, own.use_ema_on_growth, own.reset_optimizer_on_growth)

    def describe_round(self, stage: Stage) -> str:
        steps, factor = self.plan.sampling_steps(stage.round), self.plan.factor
        return f"a teacher of {steps} steps, {factor} of them in one"

    def logged(self, stage: Stage) -> dict[str, float]:
        steps = float(self.plan.sampling_steps(stage.round))
        return {"train/dt": self.plan.dt(stage.round), "train/num_sampling_steps": steps}
