"""A prediction whose draws the masks' own noise decides, and the loss that teaches it which.

scores = log p + gain * Gumbel noise; the draw is their argmax (``diffusion.coupling``), the loss their
cross-entropy with the token that the same noise gave a teacher. Shapes: B batch, L length, D width,
V vocabulary, C channels of noise, N chosen positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion.coupling import EULER_GAMMA, GUMBEL_STD, Coupling
from diffusion.linear_nll import RowLoss, weighted_linear_nll
from diffusion.parameterization import Prediction, flat


class CoupledPrediction(Prediction):
    """As ``Prediction``, with the noise of every mask.

    Args:
        features, weight, bias, xt, mask_id, dtype: see ``Prediction``.
        coupling: how noise decides a draw.
        inputs: (B, L, 1 + C) what the network saw, see ``mask_inputs``.
        gain: (B, L) factor on the noise, differentiable.
    """

    def __init__(
        self,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        xt: Tensor,
        mask_id: int,
        *,
        coupling: Coupling,
        inputs: Tensor,
        gain: Tensor,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(features, weight, bias, xt, mask_id, dtype)
        self.coupling, self.gain = coupling, gain
        self._inputs = inputs.flatten(0, 1)

    def weighted_score_nll(
        self, positions: Tensor, targets: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The scalar sum_i weights_i * nll_i of the scores, differentiable, and the nll (N,), detached.

        With a tree nll is the sum of the levels' cross-entropies. Chunk by chunk, as ``weighted_nll``.

        Args:
            positions: as in ``at``; all at masked positions.
            targets: (N,) int64.
            weights: (N,), treated as constants.
        """
        with self._full_precision():
            positions = flat(positions)
            gain = self.gain.flatten()[positions].to(self.dtype)
            weights, slope = weights.to(self.dtype).detach(), torch.zeros_like(gain)
            row_loss = self._row_loss(positions, gain.detach(), slope)
            features = self._features.index_select(0, positions)
            loss, nll = weighted_linear_nll(features, self._head, targets, weights, row_loss)
            # Zero, with the gradient by the gain, which the head's own chunks do not reach.
            return loss + (weights * slope.detach() * (gain - gain.detach())).sum(), nll

    def _row_loss(self, positions: Tensor, gain: Tensor, slope: Tensor) -> RowLoss:
        """The loss of a chunk of logits; writes d nll / d gain to ``slope`` (N,)."""

        def of_chunk(rows: slice, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            noise = self._inputs[positions[rows], 1:].to(logits.dtype).mul_(GUMBEL_STD).add_(EULER_GAMMA)
            factor = gain[rows].unsqueeze(1)
            if self.coupling.levels:
                exponentials = logits.sub_(logits.amax(-1, keepdim=True)).exp_()
                nll, grad, slope[rows] = self.coupling.tree_loss(exponentials, noise, factor, targets)
                return nll, grad, torch.ones_like(factor)
            nll, grad, total = self._head.cross_entropy(rows, logits.addcmul_(noise, factor), targets)
            slope[rows] = ((grad * noise).sum(1, keepdim=True) / total).squeeze(1)
            return nll, grad, total

        return of_chunk


@torch.no_grad()
def mask_inputs(
    coupling: Coupling, xt: Tensor, mask_id: int, mask_seeds: Tensor, proposal: Tensor | None
) -> Tensor:
    """What a network sees of the masks' noise, (B, L, 1 + C) float32; zeros where there is no mask.

    Channel 0 is the id of the token that the noise would draw from ``proposal``, the others are the Gumbels
    with mean 0 and deviation 1.

    Args:
        xt, mask_seeds: (B, L) int64.
        proposal: (V,) log-probabilities; None: channel 0 is the mask itself.
    """
    inputs = torch.zeros(xt.numel(), 1 + coupling.channels, device=xt.device)
    where = (xt == mask_id).flatten().nonzero().squeeze(1)
    noise = coupling.noise(mask_seeds.flatten()[where], where % xt.shape[1], torch.float32)
    proposed = mask_id if proposal is None else coupling.pick_shared(proposal.float(), noise).float()
    inputs[where, 0] = proposed
    inputs[where, 1:] = noise.sub_(EULER_GAMMA).div_(GUMBEL_STD)
    return inputs.view(*xt.shape, -1)
