"""Conditional likelihoods of masked and uniform-state models: of some positions of a row, given the others.

Shapes: L positions of a row, n of them open (asked for), K draws, B rows of a pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from diffusion.noise import Schedule
from diffusion.process import Absorbing
from diffusion.randomness import Stream, row_keys, uniform
from diffusion.uniform import Uniform, uniform_nelbo

MOST_EXACT = 8  # open positions up to which all 2^n - 1 states are computed
ROWS_AT_ONCE = 32


class Denoiser(Protocol):
    """An objective and its network (``algorithms.objective.BoundDenoiser``)."""

    def denoise(self, xt: Tensor, sigma: Tensor, mask_seeds: Tensor | None = None) -> Any: ...

    def draw_seeds(self, keys: Tensor, length: int) -> Tensor | None: ...


@dataclass(frozen=True)
class Likelihood:
    """-log p of the open positions of a row, given the others.

    Attributes:
        nll: nats; ``bound``: an estimate of an upper bound.
        stderr: of the estimate, by the draws; 0 where nothing is drawn.
        token_nll: (L,) float64, what each position adds, 0 where it is given; None where the sum alone is
            known (``any-order``).
        tokens: n.
        kind: ``exact`` (autoregressive), ``any-order`` (exactly what a sampler writes that unmasks one
            random position a call), ``bound`` (NELBO).
        draws: (K,) float64 of a bound, whose mean is ``nll``; neighbours 2j and 2j + 1 are of like strata.
    """

    nll: float
    stderr: float
    token_nll: Tensor | None
    tokens: int
    kind: str
    draws: Tensor | None = None


def any_order(
    denoiser: Denoiser, schedule: Schedule, ids: Tensor, is_open: Tensor, mask_id: int
) -> Likelihood:
    """-log of the exact probability of the open tokens when a masked model unmasks one position a call, all
    orders being equally likely.

    p(x_U) over sets U of unmasked positions: p(U + i) gains p(U) p(x_i | x_U) / (n - |U|). It takes 2^n - 1
    rows, so n is at most about 10. The mean over orders is inside the logarithm: it is a likelihood, not the
    NELBO, which is never smaller.

    Args:
        ids: (L,) int64 clean ids.
        is_open: (L,) bool.
        mask_id: what stands at masked positions. The model has a single mask, without random state.
    """
    where = is_open.nonzero().squeeze(1)
    count, length = len(where), len(ids)
    states = torch.arange(2**count - 1, device=ids.device)
    hidden = (states[:, None] >> torch.arange(count, device=ids.device) & 1) == 0  # (S, n): still masked
    log_probs = torch.zeros(len(states), count, dtype=torch.float64)
    for part in states.split(ROWS_AT_ONCE):
        xt = ids.repeat(len(part), 1)
        masked = torch.zeros_like(xt, dtype=torch.bool)
        masked[:, where] = hidden[part]
        xt[masked] = mask_id
        prediction = denoiser.denoise(xt, _sigma(schedule, masked.sum(1), length), None)
        nll = prediction.nll(masked, ids.expand_as(xt)[masked]).double().cpu()
        log_probs[part.cpu()] = torch.zeros(hidden[part].shape, dtype=torch.float64).masked_scatter(
            hidden[part].cpu(), -nll
        )
    reached = [-math.inf] * 2**count
    reached[0] = 0.0
    for state in range(2**count - 1):
        left = count - state.bit_count()
        for at in range(count):
            if not state >> at & 1:
                gain = reached[state] + float(log_probs[state, at]) - math.log(left)
                reached[state | 1 << at] = _logaddexp(reached[state | 1 << at], gain)
    return Likelihood(-reached[-1], 0.0, None, count, "any-order")


def bound(
    denoiser: Denoiser,
    schedule: Schedule,
    process: Absorbing | Uniform,
    ids: Tensor,
    is_open: Tensor,
    mask_id: int,
    *,
    draws: int,
    seed: int,
) -> Likelihood:
    """The NELBO of the open tokens given the others, by ``draws`` stratified draws.

    Masked models: by number of masks, (n / k) times the summed cross-entropy at k masked positions, k uniform
    on 1..n (Zheng et al., arXiv 2409.02908) and stratified over the draws; what is given is never masked.
    Uniform-state models: by time (Duo, equation 5), what is given never noised.

    Draw j has the same uniform numbers whatever the row: rows that share a beginning (the choices of a
    question) differ by their tokens and not by luck. The standard error is that of collapsed strata
    (Cochran, Sampling Techniques, section 5A.12): a little too large.

    Args:
        ids, is_open: (L,) as in ``any_order``.
        draws: K, even.
    """
    where = is_open.nonzero().squeeze(1)
    rows = torch.arange(draws, device=ids.device)
    times, ranks = (uniform(row_keys(seed, stream, 0, rows), n) for stream, n in
                    ((Stream.VALID_TIME, 1), (Stream.VALID_MASK, len(where))))  # fmt: skip
    levels = (rows.double() + times[:, 0].double()) / draws  # (K,) stratified on (0, 1)
    found = torch.zeros(draws, len(ids), dtype=torch.float64)
    for part in rows.split(ROWS_AT_ONCE):
        keys = row_keys(seed, Stream.VALID_NOISE, 0, part)
        pass_ = _Pass(denoiser, schedule, ids, where, levels[part], ranks[part], keys)
        token_nll = pass_.uniform(process) if isinstance(process, Uniform) else pass_.masked(mask_id)
        found[part.cpu()] = token_nll.double().cpu()
    sums = found.sum(1)
    pairs = sums.view(-1, 2)
    stderr = float((pairs[:, 0] - pairs[:, 1]).square().sum().sqrt()) / draws
    return Likelihood(float(sums.mean()), stderr, found.mean(0), len(where), "bound", sums)


@dataclass(frozen=True)
class _Pass:
    """B draws of one row: ``levels`` (B,) in (0, 1), ``ranks`` (B, n), ``keys`` (B,) of mask noise."""

    denoiser: Denoiser
    schedule: Schedule
    ids: Tensor
    where: Tensor
    levels: Tensor
    ranks: Tensor
    keys: Tensor

    def masked(self, mask_id: int) -> Tensor:
        """(B, L) token losses of a masked model, weights included."""
        count, length = len(self.where), len(self.ids)
        number = (self.levels * count).ceil().clamp(1, count).long()  # k of each draw
        masked = torch.zeros(len(number), length, dtype=torch.bool, device=self.ids.device)
        masked[:, self.where] = self.ranks.argsort(1).argsort(1) < number[:, None]
        x0 = self.ids.expand(len(number), -1)
        xt = torch.where(masked, mask_id, x0)
        seeds = self.denoiser.draw_seeds(self.keys, length)
        prediction = self.denoiser.denoise(xt, _sigma(self.schedule, number, length), seeds)
        nll = prediction.nll(masked, x0[masked]).double()
        each = torch.zeros(masked.shape, dtype=nll.dtype, device=nll.device).masked_scatter(masked, nll)
        return each * (count / number.double())[:, None]

    def uniform(self, process: Uniform) -> Tensor:
        """(B, L) token losses of a uniform-state model, weights included."""
        times = self.levels.clamp(1e-4, 1 - 1e-6)
        x0 = self.ids.expand(len(times), -1)
        is_open = torch.zeros_like(x0, dtype=torch.bool)
        is_open[:, self.where] = True
        uniforms = torch.zeros(x0.shape, dtype=self.ranks.dtype, device=x0.device)
        uniforms[:, self.where] = self.ranks
        xt = process.corrupt(x0, self.schedule.alpha(times), uniforms, ~is_open)
        sigma = self.schedule.sigma(times)
        prediction = self.denoiser.denoise(xt, sigma, None)
        weight = self.schedule.weight(times)
        return uniform_nelbo(prediction, x0, weight, sigma, is_open, 1).token_nll


def _sigma(schedule: Schedule, number: Tensor, length: int) -> Tensor:
    """Total noise (B,) of rows of ``length`` positions, ``number`` (B,) of them masked: what a network that
    knows the time is told."""
    return schedule.sigma(schedule.inverse(1 - number.double() / length).clamp(max=1))


def _logaddexp(one: float, other: float) -> float:
    high, low = max(one, other), min(one, other)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


def redrawn(choices: list[Likelihood], generator: torch.Generator) -> list[float]:
    """New values of bounds that share their draws, as other draws would have given: in each pair of like
    strata two draws are taken anew, the same for all choices. Values without draws stay."""
    known = next((one.draws for one in choices if one.draws is not None), None)
    if known is None:
        return [one.nll for one in choices]
    picks = torch.arange(0, len(known), 2)[:, None] + torch.randint(
        2, (len(known) // 2, 2), generator=generator
    )
    return [one.nll if one.draws is None else float(one.draws[picks.flatten()].mean()) for one in choices]
