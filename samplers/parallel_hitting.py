"""First hitting with several masks a network call, plain and of second order (Zheng et al., ICLR 2025,
arXiv 2409.02908, sections on parallel decoding and high-order samplers).

Shapes: B rows, L positions, N positions that unmask, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffusion import NEG_INF
from diffusion.parameterization import Prediction
from samplers.base import Sampler, State
from samplers.draws import Draws
from samplers.first_hitting import next_hit
from samplers.registry import register


@dataclass(frozen=True)
class Hits:
    """What one call unmasks: ``where`` (B, L) bool; ``t`` (B, L) float64, the time at which each position
    is hit, 0 elsewhere; ``last`` (B,), the time of the call's last hit."""

    where: Tensor
    t: Tensor
    last: Tensor


@register(
    "first_hitting_parallel",
    claim="several tokens a call",
    exact="limit",
    removals=("ancestral", "greedy"),
)
class ParallelHitting(Sampler):
    """First hitting in ``num_steps`` network calls, each of which serves an equal share of the hits.

    A call is made at the time of the first of its hits, which is drawn exactly; the tokens of the others are
    drawn from the same prediction, at times and positions of their own. With n masks left and r calls to go a
    call takes ceil(n / r): min(num_steps, n) calls in all. With one hit a call this is ``first_hitting``,
    draw by draw. ``noise_removal=greedy`` takes the likeliest tokens in the last call.
    """

    def pending(self, step: int, state: State) -> Tensor:
        return (state.x == self.mask_id).any(-1)

    def step(self, step: int, state: State, draws: Draws) -> tuple[State, Tensor]:
        is_masked = state.x == self.mask_id
        first, masked_s = next_hit(is_masked, self.schedule.masked(state.t), draws.hits(step))
        state = self._wait(step, state, self.schedule.inverse(1 - masked_s), is_masked, draws)
        hits = self._further_hits(step, state, first, is_masked, draws)
        greedy: Tensor | bool = False
        if self.settings.noise_removal == "greedy":
            greedy = ~(is_masked & ~hits.where).any(-1)
        prediction = self.predict(state)
        state = self.write_hits(step, state, hits, prediction, draws, greedy)
        # Steps are below num_steps: this number keys draws of their own.
        later = self.settings.num_steps + step
        state = self._wait(later, state, hits.last, is_masked & ~hits.where, draws)
        return state, torch.ones_like(state.t, dtype=torch.bool)

    def write_hits(
        self,
        step: int,
        state: State,
        hits: Hits,
        prediction: Prediction,
        draws: Draws,
        greedy: Tensor | bool,
    ) -> State:
        """Write the tokens of a call; ``state.t`` is the time of ``prediction``."""
        return self.unmask(step, state, hits.where, prediction, draws, greedy=greedy)

    def _wait(self, step: int, state: State, s: Tensor, is_masked: Tensor, draws: Draws) -> State:
        """Let the process go on to ``s`` (B,) without a hit: masks keep or renew their noise."""
        keep = self.schedule.alpha(state.t) / self.schedule.alpha(s)
        resets = is_masked & (draws.actions(step, is_masked.shape[1]) >= keep.unsqueeze(-1))
        return self.refresh(step, replace(state, t=s), resets, draws)

    def _further_hits(self, step: int, state: State, first: Tensor, is_masked: Tensor, draws: Draws) -> Hits:
        """The hits of this call, the first one (B, L) at ``state.t`` included."""
        due = (is_masked.sum(-1) / (self.settings.num_steps - step)).ceil()
        where, masked_t = first, self.schedule.masked(state.t)
        t = torch.where(first, state.t.unsqueeze(-1), 0.0)
        for number in range(1, int(due.max())):
            rest = is_masked & ~where & (number < due).unsqueeze(-1)
            hit, masked_t = next_hit(rest, masked_t, draws.hits(step, number))
            where = where | hit
            t = torch.where(hit, self.schedule.inverse(1 - masked_t).unsqueeze(-1), t)
        last = torch.where(due > 1, self.schedule.inverse(1 - masked_t), state.t)
        return Hits(where, t, last)


@dataclass(frozen=True)
class Past:
    """The last call of each row: its ``prediction``, the ``row`` (B,) of it, its time ``t`` (B,). Rows
    without a call yet have row -1."""

    prediction: Prediction | None
    row: Tensor
    t: Tensor

    @classmethod
    def nothing(cls, state: State) -> Past:
        """No call yet."""
        return cls(None, torch.full_like(state.t, -1, dtype=torch.int64), state.t)

    @classmethod
    def of(cls, state: State, prediction: Prediction) -> Past:
        """A call of all rows of ``state`` at its times."""
        return cls(prediction, torch.arange(len(state.x), device=state.x.device), state.t)

    def at(self, rows: Tensor, columns: Tensor) -> Tensor:
        """What that call said (N, V), float64, at positions ``columns`` (N,) of the rows ``rows`` (N,)."""
        assert self.prediction is not None
        return self.prediction.at(self.row[rows] * self.prediction.xt.shape[1] + columns).double()

    def select(self, rows: Tensor) -> Past:
        return Past(self.prediction, self.row[rows], self.t[rows])

    def merge(self, rows: Tensor, part: Past) -> Past:
        # All rows that still have masks are called together: what is left out here is finished.
        return Past(
            part.prediction,
            self.row.index_copy(0, rows, part.row),
            self.t.index_copy(0, rows, part.t),
        )


@register(
    "first_hitting_extrapolated",
    claim="the same, second order",
    exact="limit",
    removals=("ancestral", "greedy"),
)
class ExtrapolatedHitting(ParallelHitting):
    """Parallel first hitting of second order: each token is drawn at its own time, not at that of the call.

    The log-probabilities of the last two calls are extrapolated linearly in time to the time of each hit and
    renormalised, by at most the time between the two calls. The first hit of a call, at the time of the call,
    is exact as it is.
    """

    def begin(self, state: State) -> State:
        return replace(state, memory=Past.nothing(state))

    def write_hits(
        self,
        step: int,
        state: State,
        hits: Hits,
        prediction: Prediction,
        draws: Draws,
        greedy: Tensor | bool,
    ) -> State:
        past = state.memory
        assert isinstance(past, Past)
        ahead = (state.t.unsqueeze(-1) - hits.t) / (past.t - state.t).unsqueeze(-1)
        ahead = ahead.nan_to_num(0.0).clamp(0, 1) * (past.row >= 0).unsqueeze(-1)
        length = hits.where.shape[1]

        def distribution(rows: Tensor, columns: Tensor) -> Tensor:
            log_probs = prediction.at(rows * length + columns).double()
            weight = ahead[rows, columns]
            some = (weight > 0).nonzero().squeeze(-1)
            if some.numel() == 0:
                return log_probs
            now, before = log_probs[some], past.at(rows[some], columns[some])
            change = torch.where((now > NEG_INF / 2) & (before > NEG_INF / 2), now - before, 0.0)
            ahead_of_now = (now + weight[some].unsqueeze(-1) * change).log_softmax(-1)
            return log_probs.index_copy(0, some, ahead_of_now)

        memory = Past.of(state, prediction)
        state = self.write(step, state, hits.where, distribution, prediction.vocab_size, draws, greedy=greedy)
        return replace(state, memory=memory)
