"""Distillation in rounds: a student learns from its teacher, and then becomes the teacher.

Shapes: B rows of a micro-batch, L positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from omegaconf import DictConfig
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from algorithms.mdlm import MDLM
from diffusion.objectives import LossOutput
from diffusion.parameterization import Prediction
from errors import UserError
from metrics import Nelbo
from models.dit import DiT
from models.sharding import collected, copy_weights, whole_copy
from utils import get_logger

log = get_logger("distillation")


@dataclass(frozen=True, eq=False, repr=False)
class Teacher:
    """A frozen network as a ``Denoiser``. No module: optimizer, EMA, DDP and state_dict do not see it."""

    algorithm: MDLM
    backbone: DiT

    @classmethod
    def of(cls, algorithm: MDLM) -> Teacher:
        """A copy of the algorithm's present weights."""
        return cls(algorithm, whole_copy(algorithm.backbone).requires_grad_(False).eval())

    def denoise(self, xt: Tensor, sigma: Tensor, cond: Tensor | None) -> Prediction:
        with torch.inference_mode(False):  # its weights must stay ones that can be written
            self.backbone.to(xt.device)  # nobody else moves it
        return self.algorithm.denoise_by(self.backbone, xt, sigma, cond)

    def draw_cond(self, keys: Tensor, length: int) -> Tensor | None:
        return self.algorithm.draw_cond(keys, length)

    def refresh_cond(self, cond: Tensor | None, where: Tensor, keys: Tensor) -> Tensor | None:
        return self.algorithm.refresh_cond(cond, where, keys)


class InRounds(MDLM):
    """What algorithms share that learn from the student of the round before; it stands before their base.

    Subclasses say what a student is taught (``distill``), when a round ends (``round_at``), when there is
    nothing left to learn (``finished``), and how the student becomes the teacher (``promote``). Validation
    reports the student's NELBO and, as val/distill_loss, the divergence from the teacher.

    Attributes:
        teacher: None until training begins.
        round: number of times that the student has become the teacher.
    """

    def __init__(self, config: DictConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(config, tokenizer)
        self.teacher: Teacher | None = None
        self.round = 0
        self.valid_divergence = Nelbo()

    # What an algorithm says of itself -------------------------------------------------------------

    def distill(
        self, batch: dict[str, Tensor], *, step: int, num_rows: int, training: bool
    ) -> tuple[LossOutput, Tensor, Tensor]:
        """Student against teacher.

        Returns:
            The mean divergence as ``loss`` with the student's own NELBO as ``token_nll``; the divergences
            (B, L), 0 where none is; and the positions (B, L) bool that have one.
        """
        raise NotImplementedError

    def round_at(self, step: int) -> int:
        """The round, from 0, that optimizer step ``step`` (from 0) belongs to."""
        raise NotImplementedError

    def describe_round(self) -> str:
        """What is learnt in the present round, for the log."""
        raise NotImplementedError

    def promote(self, teacher: Teacher) -> None:
        """Give the teacher the student's weights."""
        copy_weights(self.backbone, teacher.backbone)

    # The objective --------------------------------------------------------------------------------

    def loss(self, batch: dict[str, Tensor], *, step: int, num_rows: int, training: bool) -> LossOutput:
        """In training the divergence from the teacher; else the NELBO."""
        if training:
            return self.distill(batch, step=step, num_rows=num_rows, training=True)[0]
        return super().loss(batch, step=step, num_rows=num_rows, training=False)

    def present_teacher(self) -> Teacher:
        """The teacher; before training begins it is the student itself."""
        if self.teacher is None:
            self.teacher = Teacher.of(self)
        return self.teacher

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

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.present_teacher()  # unless the run was resumed
        self._announce()

    def on_train_start(self) -> None:
        super().on_train_start()
        self._end_round_if_due()  # a checkpoint at the end of a round is written before the round ends

    def on_train_batch_end(self, *args: Any) -> None:
        super().on_train_batch_end(*args)
        self._end_round_if_due()

    def _end_round_if_due(self) -> None:
        if self.round < self.round_at(self.global_step):
            self._end_round()
        if not self.trainer.should_stop and (reason := self.finished(self.global_step)):
            log.info("step %d: training is over: %s", self.global_step, reason)
            self.trainer.should_stop = True

    def _end_round(self) -> None:
        """The student is written to a file and becomes the teacher."""
        assert self.teacher is not None
        self._save_student()
        self.promote(self.teacher)
        self.round += 1
        if not self.finished(self.global_step):
            self._announce()

    def _save_student(self) -> None:
        checkpoint = {
            "state_dict": collected(self.state_dict()),
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
        log.info("round %d: %s", self.round + 1, self.describe_round())

    # Checkpoints ----------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.teacher is not None:
            checkpoint["teacher"] = {"round": self.round, "state_dict": self.teacher.backbone.state_dict()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "teacher" not in checkpoint:
            raise UserError(
                "checkpointing.resume_ckpt_path",
                str(self.config.checkpointing.resume_ckpt_path),
                "holds no teacher, so its distillation cannot go on",
                "start a run from it with training.finetune_path",
            )
        super().on_load_checkpoint(checkpoint)
        self.round = checkpoint["teacher"]["round"]
        self.teacher = Teacher.of(self)
        self.teacher.backbone.load_state_dict(checkpoint["teacher"]["state_dict"])
