"""Objectives of masked diffusion: the NELBO by time and by number of masks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.parameterization import Prediction, flat


class LossOutput(NamedTuple):
    """What an objective says of a micro-batch.

    Attributes:
        loss: differentiable scalar.
        token_nll: (B, L) detached, weights included, 0 where no loss is.
        loss_mask: (B, L) bool, the tokens that a mean over ``token_nll`` counts.
    """

    loss: Tensor
    token_nll: Tensor
    loss_mask: Tensor


def masked_nelbo(
    prediction: Prediction,
    x0: Tensor,
    xt: Tensor,
    mask_id: int,
    weight: Tensor,
    loss_mask: Tensor,
    num_tokens: Tensor | int,
    loss_weight: Tensor | None = None,
) -> LossOutput:
    """Weighted cross-entropy over masked positions, the head run on those alone (MDLM, Sahoo et al. 2024).

    loss = sum over masked positions inside ``loss_mask`` of weight_b * (-log x_theta[x0]) / num_tokens.
    The weight decides the form: ``Schedule.weight(t)`` gives the NELBO by time, ``count_weight`` the NELBO by
    number of masks. Without any such position the loss is a zero that still reaches every parameter, so that
    distributed training does not hang.

    Args:
        prediction: the network's answer at ``xt``.
        x0, xt: (B, L) int64 clean and noised ids.
        weight: (B,) per sequence.
        loss_mask: (B, L) bool, False at padding.
        num_tokens: what the sum is divided by, usually the number of True in ``loss_mask`` over the batch.
        loss_weight: (B,) weights of the loss where they are to differ from the NELBO's, which ``token_nll``
            keeps (ones: the low-variance loss).
    """
    batch_size, length = xt.shape
    rows = ((xt == mask_id) & loss_mask).flatten().nonzero().squeeze(1)
    sequence = rows // length
    trained = weight if loss_weight is None else loss_weight
    loss, nll = prediction.weighted_nll(rows, x0.flatten()[rows], (trained / num_tokens)[sequence])
    token_nll = torch.zeros(batch_size * length, dtype=nll.dtype, device=nll.device)
    token_nll[rows] = weight.to(nll.dtype)[sequence] * nll
    return LossOutput(loss, token_nll.view(batch_size, length), loss_mask)


def cross_entropy(
    prediction: Prediction, x0: Tensor, loss_mask: Tensor, num_tokens: Tensor | int
) -> LossOutput:
    """-log x_theta[x0] at every position inside ``loss_mask``, summed and divided by ``num_tokens``.

    It is for models without masks: no position carries its token over.

    Args:
        prediction: the network's answer at xt.
        x0: (B, L) int64 clean ids.
        loss_mask: (B, L) bool, False at padding.
        num_tokens: as in ``masked_nelbo``.
    """
    rows = flat(loss_mask)
    weight = torch.as_tensor(1 / num_tokens, dtype=prediction.dtype, device=rows.device)
    loss, nll = prediction.weighted_nll(rows, x0.flatten()[rows], weight.expand(len(rows)))
    token_nll = torch.zeros(x0.shape, dtype=nll.dtype, device=x0.device).masked_scatter(loss_mask, nll)
    return LossOutput(loss, token_nll, loss_mask)


def count_weight(num_masked: Tensor, loss_mask: Tensor) -> Tensor:
    """Weights N/n of the NELBO by number of masks (Zheng et al., arXiv 2409.02908), (B,) float64.

    With n uniform on 1..N and n random positions masked, N/n times their summed cross-entropy has the NELBO
    of the sequence as its expectation.

    Args:
        num_masked: (B,) int64 n.
        loss_mask: (B, L) bool, the N positions that could be masked and count.
    """
    return loss_mask.sum(-1).to(torch.float64) / num_masked.clamp(min=1)
