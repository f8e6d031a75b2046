"""IM-ReDi: rectification of (infinite) masked diffusion on stored pairs (xt, t, seed) -> x0."""

from __future__ import annotations

from torch import Tensor

from algorithms.imdm import IMDM
from algorithms.mdlm import TRAIN_STREAMS
from algorithms.pairs import OnPairs
from diffusion.randomness import row_keys


class IMReDi(OnPairs, IMDM):
    """Trains on pairs that another model made: the NELBO at the stored time, from the stored noised ids.

    All masks of a pair carry the noise of its seed, which is what the pair was made from: the network can
    learn which text belongs to which noise. Without mask noise (``algo.as_mdlm``) this is ReDi. Nothing is
    drawn in training but dropout, and, with ``algo.ignore_seed``, fresh mask noise. Validation is the
    NELBO of text, as of any masked model.
    """

    def pair_cond(self, batch: dict[str, Tensor], step: int) -> Tensor | None:
        """The seed of every position, (B, L): the pair's own, or fresh ones; None without noise."""
        length = batch["xt"].shape[1]
        if self.config.algo.as_mdlm or self.config.algo.ignore_seed:
            return self.draw_cond(row_keys(self.config.seed, TRAIN_STREAMS[2], step, batch["row"]), length)
        return batch["seed"].unsqueeze(-1).expand(-1, length)
