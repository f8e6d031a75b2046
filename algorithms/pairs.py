"""What all algorithms on stored pairs (xt, t) -> x0 share, whatever the process."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from algorithms.mdlm import MDLM, Noised
from errors import UserError


class OnPairs(MDLM):
    """Takes noised ids, times and texts from pairs that another model made, in place of noising text.

    A mixin, named in front of the algorithm whose process, network and objective it is:
    ``class IMReDi(OnPairs, IMDM)``. Nothing is drawn in training but dropout. Validation noises text as that
    algorithm does.
    """

    needs_pairs: ClassVar[bool] = True

    def noised(self, batch: dict[str, Tensor], step: int, num_rows: int, training: bool) -> Noised:
        """In training the pairs as they are stored: ``xt`` (B, L), ``t`` and ``seed`` (B,).

        Raises:
            ValueError: the batch is text, without pairs.
        """
        if not training:
            return super().noised(batch, step, num_rows, training)
        if "xt" not in batch:
            problem = f"algo={self.config.algo.name} trains on stored pairs, and this data has none"
            raise UserError("data", self.config.data.name, problem, "use data=reflow-dataset-general")
        loss_mask = batch["attention_mask"].clone()
        if self.config.training.ignore_bos:
            loss_mask[:, 0] = False
        x0, xt, t = batch["input_ids"], batch["xt"], batch["t"]
        cond = self.pair_cond(batch, step)
        return Noised(x0, xt, t, self.schedule.weight(t), self.schedule.sigma(t), cond, loss_mask)

    def pair_cond(self, batch: dict[str, Tensor], step: int) -> Tensor | None:
        """The mask noise of the pairs, a seed for every position (B, L); None for models without."""
        return None
