"""Masked diffusion whose masks carry the noise of their own draw (``sampling.predictor=coupled``).

Shapes: B rows, L positions, N chosen positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from diffusion.coupling import Coupling
from diffusion.parameterization import Prediction
from samplers.base import State
from samplers.draws import Draws
from samplers.registry import register
from samplers.spread import Spread


@dataclass(frozen=True)
class OwnNoise:
    """Draws of tokens that the masks' own noise decides; ``others`` are all other draws.

    Attributes:
        seeds: (B, L) int64, the noise of every position.
        gain: (B, L) factor on the noise, None: 1.
    """

    others: Draws
    seeds: Tensor
    gain: Tensor | None

    def tokens(self, step: int, log_probs: Tensor, batch_index: Tensor, position: Tensor) -> Tensor:
        """As ``Draws.tokens``; the step has no part in it."""
        coupling = Coupling.of(log_probs.shape[1])
        noise = coupling.noise(self.seeds[batch_index, position], position, log_probs.dtype)
        gain = 1.0 if self.gain is None else self.gain[batch_index, position].to(noise.dtype).unsqueeze(1)
        return coupling.pick(log_probs, noise, gain)

    def actions(self, step: int, length: int) -> Tensor:
        return self.others.actions(step, length)

    def hits(self, step: int, number: int = 0) -> Tensor:
        return self.others.hits(step, number)

    def order(self, step: int, length: int) -> Tensor:
        return self.others.order(step, length)

    def cond_keys(self, step: int) -> Tensor:
        return self.others.cond_keys(step)

    def select(self, rows: Tensor) -> OwnNoise:
        gain = None if self.gain is None else self.gain[rows]
        return OwnNoise(self.others.select(rows), self.seeds[rows], gain)


@register(
    "coupled",
    claim="own noise decides",
    exact="limit",
    own_order=True,
    removals=("ancestral", "greedy"),
)
class Coupled(Spread):
    """``num_steps`` calls in spread order; the noise of each mask, fixed from the start, decides its token.

    With fresh noise the distribution is that of ``order=spread``, whatever the model. With known noise the
    text is a function of it: the teacher's of coupled distillation. A student (algo=im-coupled) also sees the
    noise of the other masks, and may weigh its own (``gain``). Models without mask noise draw from noise of
    the row's key.
    """

    def step(self, step: int, state: State, draws: Draws) -> tuple[State, Tensor]:
        if state.mask_seeds is not None:
            return super().step(step, state, draws)
        seeds = draws.cond_keys(0).unsqueeze(-1).expand_as(state.x)
        after, called = super().step(step, replace(state, mask_seeds=seeds), draws)
        return replace(after, mask_seeds=None), called

    def unmask(
        self,
        step: int,
        state: State,
        where: Tensor,
        prediction: Prediction,
        draws: Draws,
        *,
        greedy: Tensor | bool = False,
        noted: Tensor | None = None,
    ) -> State:
        assert state.mask_seeds is not None
        own = OwnNoise(draws, state.mask_seeds, getattr(prediction, "gain", None))
        return super().unmask(step, state, where, prediction, own, greedy=greedy, noted=noted)

    def refresh(self, step: int, state: State, where: Tensor, draws: Draws) -> State:
        """Masks keep their noise, for it is what their draw comes from."""
        return state
