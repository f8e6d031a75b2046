"""Cross-entropy of a wide linear head, in chunks of rows: neither logits nor their gradients are ever whole.

The gradient of sum_i w_i * nll_i needs nothing that comes after the loss, so it is made while a chunk's
logits are at hand: one buffer holds logits, then exponentials, then the gradient of the logits, chunk after
chunk. Other losses of a row's logits take the place of the cross-entropy (``RowLoss``).
Shapes: N rows, D width, V vocabulary, n rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from diffusion import NEG_INF

# A loss of each row's logits: takes which rows these are, their logits (n, V), which it may write over, and
# targets (n,); returns the losses (n,), (n, V) numbers, and a divisor (n, 1) that makes them the gradient.
RowLoss = Callable[[slice, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


class LinearHead:
    """A vocabulary head without its mask column, and how much of it may be in memory at once.

    Args:
        weight, bias: (V, D) and (V,) or None.
        mask_id: the column that gets no probability; None: there is none, the mask is a token like others.
        dtype: of softmax and losses, at least as wide as the weight's.
        chunk_elements: about how many logits exist at a time, counted in float32. None: 2**23 (32 MB) on a
            CPU, where more rows gain nothing; 2**24 elsewhere.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        mask_id: int | None,
        dtype: torch.dtype = torch.float32,
        chunk_elements: int | None = None,
    ) -> None:
        if chunk_elements is None:
            chunk_elements = 2**23 if weight.device.type == "cpu" else 2**24
        self.weight = weight
        self.bias = bias
        self.mask_id = mask_id
        self.dtype = dtype
        # The wider copy for the softmax counts as well.
        item_bytes = weight.element_size() + (dtype.itemsize if dtype != weight.dtype else 0)
        self.chunk_rows = max(1, 4 * chunk_elements // (item_bytes * max(1, weight.shape[0])))

    def chunks(self, features: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield (rows, logits of these rows); every chunk overwrites the one before."""
        num_rows = features.shape[0]
        buffer = features.new_empty((min(self.chunk_rows, num_rows), self.weight.shape[0]))
        for start in range(0, num_rows, self.chunk_rows):
            rows = slice(start, min(start + self.chunk_rows, num_rows))
            logits = buffer[: rows.stop - rows.start]
            if self.bias is None:
                torch.mm(features[rows], self.weight.t(), out=logits)
            else:
                torch.addmm(self.bias, features[rows], self.weight.t(), out=logits)
            if self.mask_id is not None:
                logits[:, self.mask_id] = NEG_INF
            yield rows, logits

    def nll_and_exponentials(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(nll (n,), exp(logits - max) (n, V), its sums (n, 1)); writes over ``logits`` if it can."""
        logits = logits.to(self.dtype)
        highest = logits.amax(-1, keepdim=True)
        gap = highest - logits.gather(1, targets.unsqueeze(1))
        exponentials = logits.sub_(highest).exp_()
        total = exponentials.sum(-1, keepdim=True)
        return (gap + total.log()).squeeze(1), exponentials, total

    def cross_entropy(self, rows: slice, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """-log softmax[target], a ``RowLoss``: softmax - onehot is (exponentials - total * onehot) / total,
        and the divisor goes to the narrow sides of the products."""
        nll, grad, total = self.nll_and_exponentials(logits, targets)
        return nll, grad.scatter_add_(1, targets.unsqueeze(1), -total), total


def linear_nll(features: Tensor, head: LinearHead, targets: Tensor) -> Tensor:
    """-log softmax(features @ weight.T + bias)[target], (N,) in ``head.dtype``, without gradients."""
    nll = torch.empty(features.shape[0], dtype=head.dtype, device=features.device)
    with torch.no_grad():
        for rows, logits in head.chunks(features):
            nll[rows] = head.nll_and_exponentials(logits, targets[rows])[0]
    return nll


def weighted_linear_nll(
    features: Tensor, head: LinearHead, targets: Tensor, weights: Tensor, loss: RowLoss | None = None
) -> tuple[Tensor, Tensor]:
    """(sum_i weights_i * nll_i, nll (N,) detached); see the module's text.

    Args:
        features: (N, D) in the head's dtype.
        head: its weight and bias get gradients if they require them.
        targets: (N,) int64.
        weights: (N,) constants in ``head.dtype``.
        loss: what stands in the place of nll.
    """
    loss = loss or head.cross_entropy
    if torch.is_grad_enabled():
        return _WeightedLinearNLL.apply(
            features, head.weight, head.bias, head, targets, weights.detach(), loss
        )
    values = torch.empty(features.shape[0], dtype=head.dtype, device=features.device)
    for rows, logits in head.chunks(features):
        values[rows] = loss(rows, logits.to(head.dtype), targets[rows])[0]
    return (weights * values).sum(), values


class _WeightedLinearNLL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: LinearHead,
        targets: Tensor,
        weights: Tensor,
        loss: RowLoss,
    ) -> tuple[Tensor, Tensor]:
        need_features, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_features = torch.empty_like(features) if need_features else None
        grad_weight = torch.zeros_like(weight) if need_weight else None
        grad_bias = torch.zeros_like(bias) if need_bias else None
        values = torch.empty(features.shape[0], dtype=head.dtype, device=features.device)
        for rows, logits in head.chunks(features):
            values[rows], grad, divisor = loss(rows, logits.to(head.dtype), targets[rows])
            scale = (weights[rows].unsqueeze(1) / divisor).to(features.dtype)
            if grad is not logits:
                grad = logits.copy_(grad)
            if grad_features is not None:
                torch.mm(grad, weight, out=grad_features[rows]).mul_(scale)
            if grad_weight is not None:
                grad_weight.addmm_(grad.t(), features[rows] * scale)
            if grad_bias is not None:
                grad_bias.addmv_(grad.t(), scale.squeeze(1))
        ctx.save_for_backward(grad_features, grad_weight, grad_bias)
        ctx.mark_non_differentiable(values)
        return (weights * values).sum(), values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grads = (None if grad is None else grad * grad_loss.to(grad.dtype) for grad in ctx.saved_tensors)
        return (*grads, None, None, None, None)
