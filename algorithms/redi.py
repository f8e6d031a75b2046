"""IM-ReDi: rectification of (infinite) masked diffusion on stored pairs (xt, t, seed) -> x0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from algorithms.imdm import IMDM, ImdmSettings
from algorithms.mdlm import TRAIN_STREAMS, Noised
from algorithms.pairs import stored_pairs
from diffusion.randomness import row_keys
from settings import AlgorithmSettings, UserError, key


@dataclass
class ImRediSettings(ImdmSettings):
    """Rectified (infinite) masked diffusion on stored pairs; ReDi with as_mdlm=True."""

    name: str = key("im-redi", "the algorithm")
    ignore_seed: bool = key(False, "draw fresh mask noise instead of the pairs' own")

    needs_pairs: ClassVar[bool] = True

    def validate(self, run: Any) -> None:
        ImdmSettings.validate(self, run)
        if run.training.mask_sampling == "count":
            problem = "the pairs of algo=im-redi carry their times"
            raise UserError("training.mask_sampling", "count", problem, "use training.mask_sampling=time")

    def warnings(self, run: Any) -> list[str]:
        found = ImdmSettings.warnings(self, run)
        if run.mode == "train" and (self.alpha_min, self.alpha_max) != (0.0, 1.0):
            found.append(
                "algo.alpha_min/alpha_max have no effect with algo=im-redi, whose pairs carry their times"
            )
        if run.mode == "train" and self.as_mdlm and self.ignore_seed:
            found.append("algo.ignore_seed has no effect while algo.as_mdlm=True, which has no mask noise")
        return found


class IMReDi(IMDM):
    """Trains on pairs that another model made: the NELBO at the stored time, from the stored noised ids.

    All masks of a pair carry the noise of its seed, which is what the pair was made from: the network can
    learn which text belongs to which noise. Without mask noise (``algo.as_mdlm``) this is ReDi. Nothing is
    drawn in training but dropout, and, with ``algo.ignore_seed``, fresh mask noise. Validation is the
    NELBO of text, as of any masked model.
    """

    Settings: ClassVar[type[AlgorithmSettings]] = ImRediSettings

    def noised(self, batch: dict[str, Tensor], step: int, num_rows: int, training: bool) -> Noised:
        """In training the pairs as they are stored: ``xt`` (B, L), ``t`` and ``seed`` (B,)."""
        if not training:
            return super().noised(batch, step, num_rows, training)
        return stored_pairs(self, batch, self.pair_seeds(batch, step))

    def pair_seeds(self, batch: dict[str, Tensor], step: int) -> Tensor | None:
        """The seed of every position, (B, L): the pair's own, or fresh ones; None without noise."""
        length = batch["input_ids"].shape[1]
        if self.settings.as_mdlm or self.settings.ignore_seed:
            keys = row_keys(self.context.seed, TRAIN_STREAMS[2], step, batch["row"])
            return self.draw_seeds(keys, length)
        return batch["seed"].unsqueeze(-1).expand(-1, length) if "seed" in batch else None
