"""Divergences between a student and its teacher over a wide vocabulary, in chunks of rows.

Both heads run chunk after chunk, and the gradient of sum_i w_i * divergence_i is made while a chunk's
log-probabilities are at hand, as in linear_nll.py: nothing of size (N, V) is ever kept.
Shapes: N rows, D and D' widths of student and teacher, V vocabulary, n rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffusion import NEG_INF
from diffusion.linear_nll import LinearHead
from errors import UserError


class Divergences(NamedTuple):
    """``loss`` is sum_i weights_i * values_i, differentiable; ``values`` and the student's ``nll`` of the
    targets are (N,), detached."""

    loss: Tensor
    values: Tensor
    nll: Tensor


# Each takes the log-probabilities of the student and of the teacher, (n, V), which it may write over, and
# returns the divergence (n,) and its gradient with respect to the student's logits, (n, V). Where q is the
# student's distribution, a function of the log q_j with derivatives g_j has the gradient g - q sum(g).
Formula = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def _kl_backward(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    gap, q = torch.sub(log_q, log_p, out=log_p), log_q.exp_()
    value = _row_dot(q, gap)
    return value, gap.sub_(value.unsqueeze(1)).mul_(q)


def _kl_forward(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    p = log_p.exp()
    value = _row_dot(p, log_p.sub_(log_q))
    return value, log_q.exp_().sub_(p)


def _mse(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    gap, q = torch.sub(log_q, log_p, out=log_p), log_q.exp_()
    value, slope = _row_dot(gap, gap), gap.mul_(2)
    return value, slope.sub_(q.mul_(slope.sum(-1, keepdim=True)))


def _tvd(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    gap, q = torch.sub(log_q, log_p, out=log_p), log_q.exp_()
    value, slope = gap.abs().sum(-1), gap.sign_()
    return value, slope.sub_(q.mul_(slope.sum(-1, keepdim=True)))


def _tv(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    q, gap = log_q.exp_(), log_p.exp_().neg_()
    gap += q
    value, slope = 0.5 * gap.abs().sum(-1), gap.sign_().mul_(0.5)
    return value, slope.sub_(_row_dot(slope, q).unsqueeze(1)).mul_(q)


def _row_dot(a: Tensor, b: Tensor) -> Tensor:
    """sum_v a[:, v] b[:, v], (n,), without their product."""
    return torch.bmm(a.unsqueeze(1), b.unsqueeze(2)).view(-1)


DIVERGENCES: dict[str, Formula] = {
    "kl-bwd": _kl_backward,  # KL(student || teacher)
    "kl-fwd": _kl_forward,  # KL(teacher || student)
    "mse": _mse,  # sum of squared differences of log-probabilities
    "tvd": _tvd,  # sum of absolute differences of log-probabilities
    "tv": _tv,  # total variation, half the sum of absolute differences of probabilities
}


def weighted_linear_divergence(
    kind: str,
    features: Tensor,
    head: LinearHead,
    teacher_features: Tensor,
    teacher_head: LinearHead,
    targets: Tensor,
    weights: Tensor,
) -> Divergences:
    """Divergences of two heads' predictions (Deschenaux and Gulcehre, arXiv 2410.21035, section 3.2).

    The mask's column, which has no probability on either side, counts in none of them. No rows give a zero
    that still reaches the features and the head.

    Args:
        kind: a key of ``DIVERGENCES``.
        features: (N, D) in the dtype of ``head``, whose weight and bias get gradients if they require them.
        teacher_features: (N, D') in the dtype of ``teacher_head``; both are constants.
        targets: (N,) int64, ids whose -log q is wanted as well; it costs next to nothing here.
        weights: (N,) constants in ``head.dtype``.

    Raises:
        ValueError: no divergence has this name.
    """
    if kind not in DIVERGENCES:
        names = ", ".join(DIVERGENCES)
        raise UserError("algo.distill_mode", kind, "no such divergence", f"use one of {names}")
    pair = _Pair(DIVERGENCES[kind], head, teacher_head, teacher_features.detach(), targets)
    weights = weights.detach()
    if torch.is_grad_enabled():
        loss, values, nll = _WeightedLinearDivergence.apply(features, head.weight, head.bias, pair, weights)
        return Divergences(loss, values, nll)
    values, nll = pair.empty(), pair.empty()
    for rows, _, value, chunk_nll in pair.chunks(features):
        values[rows], nll[rows] = value, chunk_nll
    return Divergences((weights * values).sum(), values, nll)


class _Pair:
    """Student and teacher before the same N rows."""

    def __init__(
        self,
        formula: Formula,
        head: LinearHead,
        teacher_head: LinearHead,
        teacher_features: Tensor,
        targets: Tensor,
    ) -> None:
        assert head.chunk_rows == teacher_head.chunk_rows, "two heads over one vocabulary, in one precision"
        assert head.mask_id == teacher_head.mask_id and head.dtype == teacher_head.dtype
        self.formula, self.head, self.teacher_head = formula, head, teacher_head
        self.teacher_features, self.targets = teacher_features, targets

    def empty(self) -> Tensor:
        """(N,) to be filled, in the dtype of losses."""
        return torch.empty(len(self.targets), dtype=self.head.dtype, device=self.targets.device)

    def chunks(self, features: Tensor) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Yield (rows, gradient of the logits (n, V), divergence (n,), nll (n,)), without autograd."""
        with torch.no_grad():
            student = self.head.chunks(features.detach())
            teacher = self.teacher_head.chunks(self.teacher_features)
            for (rows, logits), (_, teacher_logits) in zip(student, teacher, strict=True):
                log_q = self._log_probs(logits)
                nll = -log_q.gather(1, self.targets[rows].unsqueeze(1)).squeeze(1)
                value, grad = self.formula(log_q, self._log_probs(teacher_logits))
                yield rows, grad, value, nll

    def _log_probs(self, logits: Tensor) -> Tensor:
        log_probs = torch.log_softmax(logits, dim=-1, dtype=self.head.dtype)
        if self.head.mask_id is not None:
            # The same on both sides: neither KL, where its probability is 0, nor a difference sees it.
            log_probs[:, self.head.mask_id] = NEG_INF
        return log_probs


class _WeightedLinearDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None, pair: _Pair, weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        need_features, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_features = torch.empty_like(features) if need_features else None
        grad_weight = torch.zeros_like(weight) if need_weight else None
        grad_bias = torch.zeros_like(bias) if need_bias else None
        values, nll = pair.empty(), pair.empty()
        for rows, grad, value, chunk_nll in pair.chunks(features):
            values[rows], nll[rows] = value, chunk_nll
            grad, scale = grad.to(features.dtype), weights[rows].unsqueeze(1).to(features.dtype)
            if grad_features is not None:
                torch.mm(grad, weight, out=grad_features[rows]).mul_(scale)
            if grad_weight is not None:
                grad_weight.addmm_(grad.t(), features[rows] * scale)
            if grad_bias is not None:
                grad_bias.addmv_(grad.t(), scale.squeeze(1))
        ctx.save_for_backward(grad_features, grad_weight, grad_bias)
        ctx.mark_non_differentiable(values, nll)
        return (weights * values).sum(), values, nll

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grads = (None if grad is None else grad * grad_loss.to(grad.dtype) for grad in ctx.saved_tensors)
        return (*grads, None, None)
