"""Rectification of uniform-state diffusion on stored pairs (xt, t) -> x0 (ReDi, Yoo et al., 2025)."""

from __future__ import annotations

from torch import Tensor

from algorithms.duo import DUO_BASE
from algorithms.pairs import OnPairs
from diffusion.objectives import LossOutput, cross_entropy


class Rectification(OnPairs, DUO_BASE):
    """Trains a uniform-state model on pairs that such a model made, from the stored noised ids and times.

    The loss is the NELBO of ``DUO_BASE`` at the stored time. Its best x_theta at a position is the law of x0
    given xt in the pairs, divided by what the position's own token says of it, 1 + r onehot(xt) (see
    ``diffusion.uniform``), and normalised; of pairs of text and its noise this is the law given the other
    positions. The posterior puts that factor back, so one step from xt draws every position from its law in
    the pairs.

    With ``algo.use_simple_loss`` it is the cross-entropy at every position, whose best x_theta is that law
    itself: fit for a greedy last step, while a drawn one counts the own token twice. train/nll is then this
    cross-entropy, which bounds nothing.

    ``algo.onestep_mode`` trains the step from pure noise alone: pairs that start at t < 1 are refused as they
    are read. Ancestral sampling draws the ids of pure noise anew before it knows of any text, so such pairs
    tie text to its start by next to nothing; those from noised text are what rectification gains by.
    Sampling and validation are those of ``DUO_BASE``.
    """

    def loss(self, batch: dict[str, Tensor], *, step: int, num_rows: int, training: bool) -> LossOutput:
        if not training or not self.config.algo.use_simple_loss:
            return super().loss(batch, step=step, num_rows=num_rows, training=training)
        x0, xt, _, _, sigma, cond, loss_mask = self.noised(batch, step, num_rows, training)
        num_tokens = self.num_tokens(batch, loss_mask)
        return cross_entropy(self.denoise(xt, sigma, cond), x0, loss_mask, num_tokens)
