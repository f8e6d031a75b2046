"""Distillation in rounds: a student learns from its teacher, and then becomes the teacher.

Shapes: B sequences of a micro-batch, L positions.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor

from algorithms.objective import BoundDenoiser, Distilled, RoundObjective, Stage
from diffusion.objectives import LossOutput
from diffusion.parameterization import Prediction
from errors import UserError
from metrics import Nelbo
from models.checkpoint import restart_ema
from models.sharding import collected, copy_weights, whole_copy
from utils import get_logger

log = get_logger("distillation")


class Teacher(BoundDenoiser):
    """A frozen network beside the student. No module: optimizer, EMA, DDP and state_dict do not see it."""

    def denoise(self, xt: Tensor, sigma: Tensor, mask_seeds: Tensor | None = None) -> Prediction:
        with torch.inference_mode(False):  # its weights must stay ones that can be written
            self.backbone.to(xt.device)  # type: ignore[attr-defined]  # nobody else moves it
        return super().denoise(xt, sigma, mask_seeds)


class RoundDistillation:
    """The teacher of a training whose objective learns in rounds, and when the student takes its place.

    Validation reports the student's NELBO and, as val/distill_loss, the divergence from the teacher.

    Args:
        module: the training, a ``TrainerBase``; its backbone is the student.
        objective: of the module.

    Attributes:
        teacher: None until training begins.
        round: number of times that the student has become the teacher.
    """

    def __init__(self, module: Any, objective: RoundObjective) -> None:
        self._module = module
        self._objective = objective
        self.teacher: Teacher | None = None
        self.round = 0
        self.valid_divergence = Nelbo()

    @property
    def stage(self) -> Stage:
        """How far the training is."""
        return Stage(self.round, self._module.global_step)

    def get_teacher(self) -> Teacher:
        """The teacher; before training begins it is the student itself, as it is then."""
        if self.teacher is None:
            self.teacher = self._copy_of_student()
        return self.teacher

    def _copy_of_student(self) -> Teacher:
        student = self._module.backbone
        network = whole_copy(student, shares_frozen=True)
        return Teacher(self._objective, network.requires_grad_(False).eval())

    def distill(self, batch: dict[str, Tensor], *, step: int, num_rows: int, training: bool) -> Distilled:
        """Student against teacher; see ``RoundObjective.distill``."""
        return self._objective.distill(
            self._module.backbone,
            self.get_teacher(),
            batch,
            step=step,
            num_rows=num_rows,
            training=training,
            stage=Stage(self.round, step) if training else self.stage,
        )

    def logged(self) -> dict[str, float]:
        """Numbers for the log of the training."""
        return self._objective.logged(self.stage)

    # Validation -----------------------------------------------------------------------------------

    def validate(self, batch: dict[str, Tensor], num_rows: int) -> LossOutput:
        """The student's NELBO on a validation batch; its divergence is counted beside it."""
        output, divergence, where = self.distill(batch, step=0, num_rows=num_rows, training=False)
        self.valid_divergence.to(divergence.device).update(divergence, where)
        return output

    def log_validation(self) -> None:
        """Log the divergence of the validation that ends."""
        if self.teacher is not None:
            self._module.log("val/distill_loss", self.valid_divergence.compute()["nll"], sync_dist=True)

    # The rounds -----------------------------------------------------------------------------------

    def begin(self) -> None:
        """Before training: the student is the first teacher, unless the run was resumed."""
        self.get_teacher()
        self._announce()

    def end_if_due(self) -> None:
        """End the round, or the training, whose last optimizer step was made."""
        module = self._module
        if self.round < self._objective.round_at(module.global_step):
            self._end()
        if not module.trainer.should_stop and (reason := self._objective.finished(module.global_step)):
            log.info("step %d: training is over: %s", module.global_step, reason)
            module.trainer.should_stop = True

    def _end(self) -> None:
        """The student is written to a file and becomes the teacher."""
        self._save_student()
        self.promote()
        self.round += 1
        if not self._objective.finished(self._module.global_step):
            self._announce()

    def promote(self) -> None:
        """Give the teacher the student's weights, as the objective says."""
        how, module, teacher = self._objective.promotion(), self._module, self.get_teacher()
        averages = contextlib.nullcontext()
        if how.from_ema:
            assert module.ema is not None
            if how.replaces_student:
                module.ema.copy_to_model()
                restart_ema(module.ema)
            else:
                averages = module.ema.applied(module)
        with averages:
            copy_weights(module.backbone, teacher.backbone)
        if how.resets_optimizer:
            for optimizer in module.trainer.optimizers:
                optimizer.state.clear()

    def _save_student(self) -> None:
        module = self._module
        checkpoint = {
            "state_dict": collected(module.state_dict()),
            "global_step": module.global_step,
            "epoch": module.current_epoch,
            "pytorch-lightning_version": lightning.__version__,
        }
        module.check_finite()
        module.save_to(checkpoint)
        folder = Path(module.trainer.default_root_dir) / "checkpoints" / "student_checkpoints"
        path = folder / f"{module.global_step}.ckpt"
        module.trainer.strategy.save_checkpoint(checkpoint, path)
        log.info("step %d: student -> %s", module.global_step, path)

    def _announce(self) -> None:
        log.info("round %d: %s", self.round + 1, self._objective.describe_round(self.stage))

    # Checkpoints ----------------------------------------------------------------------------------

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Put the teacher into a checkpoint."""
        if self.teacher is not None:
            checkpoint["teacher"] = {"round": self.round, "state_dict": self.teacher.backbone.state_dict()}

    def check(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint without a teacher.

        Raises:
            UserError: it is one.
        """
        if "teacher" not in checkpoint:
            raise UserError(
                "checkpointing.resume_ckpt_path",
                str(self._module.config.checkpointing.resume_ckpt_path),
                "holds no teacher, so its distillation cannot go on",
                "start a run from it with training.finetune_path",
            )

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Take the teacher of a checkpoint."""
        self.round = checkpoint["teacher"]["round"]
        self.teacher = self._copy_of_student()
        self.teacher.backbone.load_state_dict(checkpoint["teacher"]["state_dict"])
