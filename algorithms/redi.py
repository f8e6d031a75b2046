"""IM-ReDi: rectification of (infinite) masked diffusion on stored pairs (xt, t, seed) -> x0."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from algorithms.imdm import IMDM
from algorithms.mdlm import TRAIN_STREAMS, Noised
from diffusion.randomness import row_keys
from utils import user_error


class IMReDi(IMDM):
    """Trains on pairs that another model made: the NELBO at the stored time, from the stored noised ids.

    All masks of a pair carry the noise of its seed, which is what the pair was made from: the network can
    learn which text belongs to which noise. Without mask noise (``algo.as_mdlm``) this is ReDi. Nothing is
    drawn in training but dropout, and, with ``algo.ignore_seed``, fresh mask noise. Validation is the
    NELBO of text, as of any masked model.
    """

    needs_pairs: ClassVar[bool] = True

    def noised(self, batch: dict[str, Tensor], step: int, num_rows: int, training: bool) -> Noised:
        """The pairs as they are stored: ``xt`` (B, L), ``t`` and ``seed`` (B,).

        Raises:
            ValueError: the batch is text, without pairs.
        """
        if not training:
            return super().noised(batch, step, num_rows, training)
        if "xt" not in batch:
            problem = f"algo={self.config.algo.name} trains on stored pairs, and this data has none"
            raise user_error("data", self.config.data.name, problem, "use data=reflow-dataset-general")
        loss_mask = batch["attention_mask"].clone()
        if self.config.training.ignore_bos:
            loss_mask[:, 0] = False
        x0, xt, t = batch["input_ids"], batch["xt"], batch["t"]
        cond = self._mask_noise(batch, step)
        return Noised(x0, xt, self.schedule.weight(t), self.schedule.sigma(t), cond, loss_mask)

    def _mask_noise(self, batch: dict[str, Tensor], step: int) -> Tensor | None:
        """The seed of every position, (B, L): the pair's own, or fresh ones; None without noise."""
        length = batch["xt"].shape[1]
        if self.config.algo.as_mdlm or self.config.algo.ignore_seed:
            return self.draw_cond(row_keys(self.config.seed, TRAIN_STREAMS[2], step, batch["row"]), length)
        return batch["seed"].unsqueeze(-1).expand(-1, length)
