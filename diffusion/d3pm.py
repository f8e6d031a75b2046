"""Discrete-time absorbing diffusion, mean parameterization (D3PM, Austin et al., arXiv 2107.03006; formulas
as in MDLM, Sahoo et al., arXiv 2406.07524, appendix A.2).

The network gives a distribution p over all V ids, the mask included, with probability p_m. Put for x0 into
the
posterior of the forward process, from t to s < t, with a = 1 - alpha_t, b = 1 - alpha_s, it unmasks a masked
position to token y with (alpha_s - alpha_t) p_y / (alpha_t p_m + a), and leaves it a mask with
(alpha_s p_m + b) / (alpha_t p_m + a). The divergence of that from the true posterior is

    (a-b)/a [log(1 + alpha_t p_m / a) - log p_x0] + b/a [log(1 + alpha_t p_m / a) - log(1 + alpha_s p_m / b)]

An unmasked position stays what it is on both sides. The state before the first step is x0 itself, and the
network has to say so: -log p_x0 at sigma = 0, of every position. No column of its head can be left out there.
Shapes: B batch, L length, D width, V vocabulary with the mask, N chosen positions, n rows of a chunk.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.linear_nll import LinearHead, weighted_linear_nll
from diffusion.noise import Schedule
from diffusion.objectives import LossOutput
from diffusion.parameterization import TimedPrediction, flat
from errors import UserError

POSTERIORS = ("exact", "official")


class Posterior(NamedTuple):
    """The true reverse step of a masked position from t to s = t - 1/T; all (B,).

    Attributes:
        unmask: its probability to unmask, (a - b)/a.
        odds_t, odds_s: alpha/(1 - alpha) at t and at s; odds_s is odds_t at s = 0, where nothing reads it.
    """

    unmask: Tensor
    odds_t: Tensor
    odds_s: Tensor

    def select(self, rows: Tensor) -> Posterior:
        """Those of the sequences ``rows`` (N,) int64, repetitions allowed."""
        return Posterior(*(values[rows] for values in self))


def posterior(schedule: Schedule, t: Tensor, num_times: int, kind: str = "exact") -> Posterior:
    """The posterior at quantised times.

    Args:
        schedule: alpha(t); log-linear for the official kind.
        t: (B,) float64 in {1/T, ..., 1}.
        num_times: T.
        kind: exact; or official, as in the code that published numbers come from: dt = 1/T where
            (1 - eps)/T belongs, and alpha_s = 1 - alpha_t - dt, which makes odds_s equal to 1 everywhere.
            What comes out with it is no bound.

    Raises:
        ValueError: no such kind.
    """
    if kind not in POSTERIORS:
        raise UserError("algo.posterior", kind, "no such posterior", f"use one of {', '.join(POSTERIORS)}")
    alpha_t, masked_t = schedule.alpha(t), schedule.masked(t)
    odds_t = alpha_t / masked_t
    if kind == "official":
        return Posterior(1 / (num_times * masked_t), odds_t, torch.ones_like(odds_t))
    s = t - 1 / num_times
    s = torch.where(s < 0.5 / num_times, 0.0, s)  # 1/T - 1/T, whatever the rounding
    masked_s = schedule.masked(s)
    odds_s = torch.where(s > 0, schedule.alpha(s) / masked_s, odds_t)
    return Posterior((masked_t - masked_s) / masked_t, odds_t, odds_s)


class _MaskedTerms:
    """The divergence at N masked positions, a ``RowLoss`` of logits (n, V) over all ids.

    With o = alpha/(1 - alpha) and c the probability to unmask it is
    c (log(1 + o_t p_m) - log p_x0) - (1 - c) log((1 + o_s p_m)/(1 + o_t p_m)).
    """

    def __init__(self, steps: Posterior, mask_id: int, dtype: torch.dtype) -> None:
        self._mask_id = mask_id
        self._unmask, self._odds = (values.to(dtype).unsqueeze(1) for values in (steps.unmask, steps.odds_t))
        # Close to each other where T is large: subtracted before they are rounded.
        self._gap = (steps.odds_s - steps.odds_t).to(dtype).unsqueeze(1)

    def __call__(self, rows: slice, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        unmask, odds, gap = self._unmask[rows], self._odds[rows], self._gap[rows]
        targets = targets.unsqueeze(1)
        highest = logits.amax(-1, keepdim=True)
        log_target = logits.gather(1, targets) - highest
        exponentials = logits.sub_(highest).exp_()
        total = exponentials.sum(-1, keepdim=True)
        mask = exponentials[:, self._mask_id : self._mask_id + 1] / total
        late, early = 1 + odds * mask, 1 + (odds + gap) * mask
        stay = torch.log1p(gap * mask / late)
        loss = unmask * (late.log() - log_target + total.log()) - (1 - unmask) * stay
        # p_m times the derivative by p_m, log p_x0 apart; p_m (onehot_m - p) is the gradient of p_m itself.
        slope = mask / late * (unmask * odds - (1 - unmask) * gap / early)
        grad = exponentials.mul_(unmask - slope)
        grad[:, self._mask_id : self._mask_id + 1] += slope * total
        return loss.squeeze(1), grad.scatter_add_(1, targets, -unmask * total), total


class MeanPrediction(TimedPrediction):
    """What a network of the mean says about x0 given xt: a distribution over all ids, the mask included.

    As a ``Prediction`` it is that distribution given that x0 is no mask: every sampler of masked models can
    read it. The model's own reverse process, of which its loss is the bound, is that of the analytic sampler.
    """

    @cached_property
    def _whole_head(self) -> LinearHead:
        """The same head with the mask for a token."""
        return LinearHead(self._head.weight, self._head.bias, None, self.dtype)

    def log_score(self, rows: Tensor) -> Tensor:
        """log(p_t(y) / p_t(mask)) of the distribution at masked positions, (N, V), differentiable; 0 for
        the mask.

        With s_y = alpha_t p_y / (alpha_t p_m + 1 - alpha_t) the posterior's chance of y, from t to any time,
        is (alpha_s / alpha_t - 1) s_y, as in a model of the score.

        Args:
            rows: (N,) int64 indices into the flattened B*L positions.
        """
        log_p = self.logits(rows).log_softmax(-1)
        mask = torch.tensor([self.mask_id], device=rows.device)
        still_masked = log_p.index_select(1, mask).exp() + self.sigma(rows).expm1()  # times alpha_t
        return (log_p - still_masked.log()).index_fill(1, mask, 0.0)

    def masked_terms(
        self, rows: Tensor, targets: Tensor, weights: Tensor, steps: Posterior
    ) -> tuple[Tensor, Tensor]:
        """As ``weighted_nll``, with the divergence of the reverse step; ``steps`` are those of the N rows."""
        loss = _MaskedTerms(steps, self.mask_id, self.dtype)
        with self._full_precision():
            features, weights = self._features.index_select(0, rows), weights.to(self.dtype)
            return weighted_linear_nll(features, self._whole_head, targets, weights, loss)

    def reconstruction(self, rows: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """As ``weighted_nll``, with -log p over all ids, at positions masked or not."""
        with self._full_precision():
            features, weights = self._features.index_select(0, rows), weights.to(self.dtype)
            return weighted_linear_nll(features, self._whole_head, targets, weights)


def discrete_bound(
    prediction: MeanPrediction,
    clean: MeanPrediction,
    x0: Tensor,
    steps: Posterior,
    num_times: int,
    loss_mask: Tensor,
    num_tokens: Tensor | int,
) -> LossOutput:
    """The bound of the negative log-likelihood at one time each: T times a divergence, plus reconstruction.

    Averaged over t in {1/T, ..., 1} it bounds -log p(x0), up to what alpha(1) > 0 leaves of it.

    Args:
        prediction: the network's answer at xt.
        clean: its answer at x0 itself, sigma = 0.
        x0: (B, L) int64.
        steps: the reverse step of each sequence.
        num_times: T.
        loss_mask: (B, L) bool, False at padding.
        num_tokens: what the sum is divided by.
    """
    length = x0.shape[1]
    rows = ((prediction.xt == prediction.mask_id) & loss_mask).flatten().nonzero().squeeze(1)
    everywhere, ids = flat(loss_mask), x0.flatten()
    weight = torch.ones((), dtype=prediction.dtype, device=x0.device) / num_tokens
    loss, terms = prediction.masked_terms(
        rows, ids[rows], (num_times * weight).expand(len(rows)), steps.select(rows // length)
    )
    copy_loss, copied = clean.reconstruction(everywhere, ids[everywhere], weight.expand(len(everywhere)))
    token_nll = torch.zeros(x0.numel(), dtype=terms.dtype, device=x0.device)
    token_nll[everywhere] = copied
    token_nll[rows] += num_times * terms
    return LossOutput(loss + copy_loss, token_nll.view_as(x0), loss_mask)
