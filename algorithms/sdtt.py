"""SDTT (arXiv 2410.21035), also with infinite masks: a model learns to do in one step what it did in several.

Shapes: B rows of a micro-batch, L positions, N masked positions that count, K teacher steps.
"""

from __future__ import annotations

import torch
from omegaconf import DictConfig
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from algorithms.imdm import IMDM
from algorithms.mdlm import Noised
from algorithms.rounds import InRounds, Teacher
from diffusion.distillation import GrowthPlan, teacher_times
from diffusion.objectives import LossOutput
from diffusion.parameterization import Prediction
from diffusion.randomness import Stream, row_keys
from models.checkpoint import restart_ema
from samplers.ancestral import Ancestral
from samplers.base import SamplerSettings
from samplers.draws import KeyedDraws
from samplers.teacher import teacher_targets


class IMSDTT(InRounds, IMDM):
    """Self-distillation through time, with infinite masks or (``algo.as_mdlm``, SDTT) a single one.

    In each round the student learns to say at once what its teacher, the student of the round before, says
    in ``algo.num_distill_steps`` steps. Validation reports the student's NELBO and, as val/distill_loss, the
    divergence; trainer/loss is the divergence, train/nll the student's NELBO on the same noised text.
    """

    def __init__(self, config: DictConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(config, tokenizer)
        algo = config.algo
        self.plan = GrowthPlan(
            span=1 - config.training.sampling_eps,
            first_steps=algo.orig_num_sampling_steps,
            factor=algo.num_distill_steps,
            steps_per_round=algo.grow_dt_every,
            min_sampling_steps=algo.min_num_sampling_steps,
        )

    # The objective --------------------------------------------------------------------------------

    def distill(
        self, batch: dict[str, Tensor], *, step: int, num_rows: int, training: bool
    ) -> tuple[LossOutput, Tensor, Tensor]:
        """Student against teacher, at the same xt, times and mask noise; see ``InRounds.distill``."""
        noised = self.noised(batch, step, num_rows, training)
        x0, xt, _, weight, sigma, cond, loss_mask = noised
        stream = Stream.TRAIN_TEACHER if training else Stream.VALID_TEACHER
        draws = KeyedDraws(row_keys(self.config.seed, stream, step, batch["row"]))
        targets = self._targets(noised, draws)

        where = (xt == self.mask_id) & loss_mask
        rows = where.flatten().nonzero().squeeze(1)
        total = self._num_masked(batch, loss_mask, step, num_rows) if training else where.sum().clamp(min=1)
        weights = total.double().reciprocal()
        loss, values, nll = self.denoise(xt, sigma, cond).weighted_divergence(
            rows, targets, self.config.algo.distill_mode, x0.flatten()[rows], weights.expand(len(rows))
        )
        divergence, token_nll = (
            torch.zeros(xt.shape, dtype=part.dtype, device=xt.device).masked_scatter(where, part)
            for part in (values, nll)
        )
        token_nll *= weight.unsqueeze(1)
        return LossOutput(loss, token_nll, loss_mask), divergence, where

    def _targets(self, noised: Noised, draws: KeyedDraws) -> Prediction:
        algo, num_steps = self.config.algo, self.config.algo.num_distill_steps
        times = teacher_times(
            noised.t.double(),
            dt := self.plan.dt(self.round),
            num_steps,
            exact=algo.teacher_times == "exact",
            floor=self.config.training.sampling_eps,
        )
        settings = SamplerSettings(num_steps, reset=not algo.sdtt_fix_eps)
        sampler = Ancestral(self.present_teacher(), self.schedule, self.mask_id, settings)
        return teacher_targets(
            sampler, noised.xt, noised.cond, times, dt, draws, sees_time=algo.time_conditioning
        )

    def _num_masked(self, batch: dict[str, Tensor], loss_mask: Tensor, step: int, num_rows: int) -> Tensor:
        """Masked positions of the whole optimizer step that count, divided by its micro-batches; at least 1.

        A micro-batch has neighbouring times, so its own number would weigh late times against early ones,
        and differently for every accumulation. All rows' masks follow from their keys; of their padding only
        the total is known (``num_tokens``), and its share of the masks is taken to be that of the tokens.
        """
        ids = batch["input_ids"].new_full((num_rows, loss_mask.shape[1]), int(self.mask_id == 0))
        rows = torch.arange(num_rows, device=ids.device)
        whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids, dtype=torch.bool), "row": rows}
        noised = self.noised(whole, step, num_rows, training=True)
        num_masked = ((noised.xt == self.mask_id) & noised.loss_mask).sum().double()
        return (num_masked * self.num_tokens(batch, loss_mask) / noised.loss_mask.sum()).clamp(min=1)

    # The rounds -----------------------------------------------------------------------------------

    def round_at(self, step: int) -> int:
        return self.plan.round_at(step)

    def finished(self, step: int) -> str | None:
        if not self.plan.is_over(step):
            return None
        left = self.plan.sampling_steps(self.plan.round_at(step))
        least = self.plan.min_sampling_steps
        return f"a teacher of {left} steps is below algo.min_num_sampling_steps={least}"

    def promote(self, teacher: Teacher) -> None:
        if self.config.algo.use_ema_on_growth:
            assert self.ema is not None
            self.ema.copy_to_model()
            restart_ema(self.ema)
        super().promote(teacher)
        if self.config.algo.reset_optimizer_on_growth:
            for optimizer in self.trainer.optimizers:
                optimizer.state.clear()

    def describe_round(self) -> str:
        steps, factor = self.plan.sampling_steps(self.round), self.plan.factor
        return f"a teacher of {steps} steps, {factor} of them in one"

    def _log_training(self) -> None:
        super()._log_training()
        self.log("train/dt", self.plan.dt(self.round))
        self.log("train/num_sampling_steps", float(self.plan.sampling_steps(self.round)))
