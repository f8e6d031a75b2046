"""SDTT (arXiv 2410.21035), also with infinite masks: a model learns to do in one step what it did in several.

Shapes: B rows of a micro-batch, L positions, N masked positions that count, K teacher steps.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from omegaconf import DictConfig
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from algorithms.imdm import IMDM
from diffusion.distillation import GrowthPlan, teacher_times
from diffusion.objectives import LossOutput
from diffusion.parameterization import Prediction
from diffusion.randomness import Stream, row_keys
from metrics import Nelbo
from models.checkpoint import restart_ema
from models.dit import DiT
from samplers.ancestral import Ancestral
from samplers.base import SamplerSettings
from samplers.draws import KeyedDraws
from samplers.teacher import teacher_targets
from utils import get_logger, user_error

log = get_logger("sdtt")


@dataclass(frozen=True, eq=False, repr=False)
class Teacher:
    """A frozen network as a ``Denoiser``. No module: optimizer, EMA, DDP and state_dict do not see it."""

    algorithm: IMDM
    backbone: DiT

    @classmethod
    def of(cls, algorithm: IMDM) -> Teacher:
        """A copy of the algorithm's present weights."""
        return cls(algorithm, copy.deepcopy(algorithm.backbone).requires_grad_(False).eval())

    def denoise(self, xt: Tensor, sigma: Tensor, cond: Tensor | None) -> Prediction:
        with torch.inference_mode(False):  # its weights must stay ones that can be written
            self.backbone.to(xt.device)  # nobody else moves it
        return self.algorithm.denoise_by(self.backbone, xt, sigma, cond)

    def draw_cond(self, keys: Tensor, length: int) -> Tensor | None:
        return self.algorithm.draw_cond(keys, length)

    def refresh_cond(self, cond: Tensor | None, where: Tensor, keys: Tensor) -> Tensor | None:
        return self.algorithm.refresh_cond(cond, where, keys)


class IMSDTT(IMDM):
    """Self-distillation through time, with infinite masks or (``algo.as_mdlm``, SDTT) a single one.

    In each round the student learns to say at once what its teacher, the student of the round before, says
    in ``algo.num_distill_steps`` steps. Validation reports the student's NELBO and, as val/distill_loss, the
    divergence; trainer/loss is the divergence, train/nll the student's NELBO on the same noised text.

    Attributes:
        teacher: None until training begins.
        round: number of times that the student has become the teacher.
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
        self.teacher: Teacher | None = None
        self.round = 0
        self.valid_divergence = Nelbo()

    # The objective --------------------------------------------------------------------------------

    def loss(self, batch: dict[str, Tensor], *, step: int, num_rows: int, training: bool) -> LossOutput:
        """In training the divergence from the teacher; else the NELBO."""
        if training:
            return self.distill(batch, step=step, num_rows=num_rows, training=True)[0]
        return super().loss(batch, step=step, num_rows=num_rows, training=False)

    def distill(
        self, batch: dict[str, Tensor], *, step: int, num_rows: int, training: bool
    ) -> tuple[LossOutput, Tensor, Tensor]:
        """Student against teacher, at the same xt, times and mask noise.

        Returns:
            The mean divergence as ``loss`` with the student's own NELBO as ``token_nll``; the divergences
            (B, L), 0 where none is; and the positions (B, L) bool that have one.
        """
        if self.teacher is None:
            self.teacher = Teacher.of(self)
        x0, xt, weight, sigma, cond, loss_mask = self.noised(batch, step, num_rows, training)
        stream = Stream.TRAIN_TEACHER if training else Stream.VALID_TEACHER
        draws = KeyedDraws(row_keys(self.config.seed, stream, step, batch["row"]))
        targets = self._targets(xt, sigma, cond, draws)

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

    def _targets(self, xt: Tensor, sigma: Tensor, cond: Tensor | None, draws: KeyedDraws) -> Prediction:
        algo, num_steps = self.config.algo, self.config.algo.num_distill_steps
        assert self.teacher is not None
        times = teacher_times(
            self.schedule.inverse(torch.exp(-sigma.double())),
            dt := self.plan.dt(self.round),
            num_steps,
            exact=algo.teacher_times == "exact",
            floor=self.config.training.sampling_eps,
        )
        settings = SamplerSettings(num_steps, reset=not algo.sdtt_fix_eps)
        sampler = Ancestral(self.teacher, self.schedule, self.mask_id, settings)
        return teacher_targets(sampler, xt, cond, times, dt, draws, sees_time=algo.time_conditioning)

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

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        if self.teacher is None:
            return super().validation_step(batch, batch_idx)
        with self.ema_weights():
            output, divergence, where = self.distill(
                batch, step=0, num_rows=self.num_valid_rows(), training=False
            )
        self.valid_nelbo.update(output.token_nll, output.loss_mask)
        self.valid_divergence.update(divergence, where)

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.valid_divergence.reset()

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        if self.teacher is not None:
            self.log("val/distill_loss", self.valid_divergence.compute()["nll"], sync_dist=True)

    # The rounds -----------------------------------------------------------------------------------

    def finished(self, step: int) -> str | None:
        if not self.plan.is_over(step):
            return None
        left = self.plan.sampling_steps(self.plan.round_at(step))
        least = self.plan.min_sampling_steps
        return f"a teacher of {left} steps is below algo.min_num_sampling_steps={least}"

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.teacher is None:  # not resumed
            self.teacher = Teacher.of(self)
        self._announce()

    def on_train_start(self) -> None:
        super().on_train_start()
        self._end_round_if_due()  # a checkpoint at the end of a round is written before the round ends

    def on_train_batch_end(self, *args: Any) -> None:
        super().on_train_batch_end(*args)
        self._end_round_if_due()

    def _end_round_if_due(self) -> None:
        if self.round < self.plan.round_at(self.global_step):
            self._end_round()
        if not self.trainer.should_stop and (reason := self.finished(self.global_step)):
            log.info("step %d: training is over: %s", self.global_step, reason)
            self.trainer.should_stop = True

    def _end_round(self) -> None:
        """The student is written to a file and becomes the teacher."""
        assert self.teacher is not None
        self._save_student()
        if self.config.algo.use_ema_on_growth:
            assert self.ema is not None
            self.ema.copy_to_model()
            restart_ema(self.ema)
        self.teacher.backbone.load_state_dict(self.backbone.state_dict())
        if self.config.algo.reset_optimizer_on_growth:
            for optimizer in self.trainer.optimizers:
                optimizer.state.clear()
        self.round += 1
        if not self.finished(self.global_step):
            self._announce()

    def _save_student(self) -> None:
        checkpoint = {
            "state_dict": self.state_dict(),
            "global_step": self.global_step,
            "epoch": self.current_epoch,
            "pytorch-lightning_version": lightning.__version__,
        }
        super().on_save_checkpoint(checkpoint)
        folder = Path(self.trainer.default_root_dir) / "checkpoints" / "student_checkpoints"
        path = folder / f"{self.global_step}.ckpt"
        self.trainer.strategy.save_checkpoint(checkpoint, path)
        log.info("step %d: student -> %s", self.global_step, path)

    def _announce(self) -> None:
        steps, factor = self.plan.sampling_steps(self.round), self.plan.factor
        log.info("round %d: a teacher of %d steps, %d of them in one", self.round + 1, steps, factor)

    def _log_training(self) -> None:
        super()._log_training()
        self.log("train/dt", self.plan.dt(self.round))
        self.log("train/num_sampling_steps", float(self.plan.sampling_steps(self.round)))

    # Checkpoints ----------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.teacher is not None:
            checkpoint["teacher"] = {"round": self.round, "state_dict": self.teacher.backbone.state_dict()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "teacher" not in checkpoint:
            raise user_error(
                "checkpointing.resume_ckpt_path",
                str(self.config.checkpointing.resume_ckpt_path),
                "holds no teacher, so its distillation cannot go on",
                "start a run from it with training.finetune_path",
            )
        super().on_load_checkpoint(checkpoint)
        self.round = checkpoint["teacher"]["round"]
        self.teacher = Teacher.of(self)
        self.teacher.backbone.load_state_dict(checkpoint["teacher"]["state_dict"])
