"""Rectification of uniform-state diffusion on stored pairs (xt, t) -> x0 (ReDi, Yoo et al., 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from algorithms.duo import DUO_BASE, DuoBaseSettings
from algorithms.mdlm import Noised
from algorithms.objective import num_tokens
from algorithms.pairs import stored_pairs
from diffusion.backbone import Backbone
from diffusion.objectives import LossOutput, cross_entropy
from settings import AlgorithmSettings, UserError, key


@dataclass
class RectificationSettings(DuoBaseSettings):
    """Rectified uniform-state diffusion on pairs that a Duo model made."""

    name: str = key("rectification", "the algorithm")
    use_simple_loss: bool = key(False, "cross-entropy at every position in place of the NELBO")
    onestep_mode: bool = key(False, "train the step from pure noise alone: pairs with t < 1 are refused")

    needs_pairs: ClassVar[bool] = True

    def validate(self, run: Any) -> None:
        DuoBaseSettings.validate(self, run)
        makes_pairs = run.mode == "train" and run.data.train != "reflow" and run.reflow.make_missing
        if self.onestep_mode and makes_pairs and run.reflow.perturbed_rect:
            problem = "reflow.make_missing=True would make pairs that start at all times"
            raise UserError("algo.onestep_mode", True, problem, "use reflow.perturbed_rect=False")


class Rectification(DUO_BASE):
    """Trains a uniform-state model on pairs that such a model made, from the stored noised ids and times.

    The loss is the NELBO of ``DUO_BASE`` at the stored time. Its best x_theta at a position is the
    distribution of x0 given xt in the pairs, divided by what the position's own token says of it,
    1 + r onehot(xt) (see ``diffusion.uniform``), and normalised; of pairs of text and its noise this is the
    distribution given the other positions. The posterior puts that factor back, so one step from xt draws
    every position from its distribution in the pairs.

    With ``algo.use_simple_loss`` it is the cross-entropy at every position, whose best x_theta is that
    distribution itself: fit for a greedy last step, while a drawn one counts the own token twice. train/nll
    is then this cross-entropy, which bounds nothing.

    ``algo.onestep_mode`` trains the step from pure noise alone: pairs that start at t < 1 are refused as they
    are read. Ancestral sampling draws the ids of pure noise again before it knows of any text, so such pairs
    tie text to its start by next to nothing; those from noised text are what rectification gains by.
    Sampling and validation are those of ``DUO_BASE``.
    """

    Settings: ClassVar[type[AlgorithmSettings]] = RectificationSettings

    def noised(self, batch: dict[str, Tensor], step: int, num_rows: int, training: bool) -> Noised:
        """In training the pairs as they are stored: ``xt`` (B, L), ``t`` (B,)."""
        if not training:
            return super().noised(batch, step, num_rows, training)
        return stored_pairs(self, batch, None)

    def loss(
        self, backbone: Backbone, batch: dict[str, Tensor], *, step: int, num_rows: int, training: bool
    ) -> LossOutput:
        if not training or not self.settings.use_simple_loss:
            return super().loss(backbone, batch, step=step, num_rows=num_rows, training=training)
        x0, xt, _, _, sigma, mask_seeds, loss_mask = self.noised(batch, step, num_rows, training)
        prediction = self.denoise(backbone, xt, sigma, mask_seeds)
        return cross_entropy(prediction, x0, loss_mask, num_tokens(batch, loss_mask))
