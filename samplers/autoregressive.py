"""Sampling token by token from the left (models that predict the next token).

Shapes: B rows, L positions, n ids, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from torch import Tensor

from diffusion.noise import Schedule
from diffusion.parameterization import Prediction
from samplers.base import OnStep, Sampler, SamplerSettings, Samples, State
from samplers.draws import Draws
from samplers.registry import register


class Decoder(Protocol):
    """Reads rows of ids from the left, each id once."""

    def read(self, ids: Tensor) -> Prediction:
        """Read the next n ids (B, n) of every row; the distribution of what follows, a prediction of shape
        (B, 1).
        """
        ...


class CausalDenoiser(Protocol):
    """All that this sampler sees of a model."""

    def decoder(self, length: int) -> Decoder:
        """A new decoder for rows of ``length`` ids."""
        ...


@register(
    "autoregressive",
    claim="exact, left to right",
    exact="exact",
    families=("autoregressive",),
    own_order=True,
    on_grid=False,
)
class Autoregressive(Sampler):
    """One token a network call, drawn from its distribution given all tokens to the left of it.

    Positions that are not masked at the start stay as they are and are conditioned on from the left; what is
    given in all rows at once is read without a call of its own. There is no time: ``num_steps``,
    ``noise_removal`` and the schedule play no part, and the time reached is the share of a row still masked.

    All rows walk together. The nfe of a row counts the calls that wrote a token of it, as many as it would
    take alone.
    """

    def __init__(
        self, denoiser: CausalDenoiser, schedule: Schedule, mask_id: int, settings: SamplerSettings
    ) -> None:
        super().__init__(denoiser, schedule, mask_id, settings)
        self._decoder: Decoder | None = None
        self._num_read = 0

    def sample(
        self,
        xt: Tensor,
        t: Tensor | float,
        mask_seeds: Tensor | None,
        draws: Draws,
        *,
        fixed: Tensor | None = None,
        on_step: OnStep | None = None,
    ) -> Samples:
        """As ``Sampler.sample``; ``t`` and ``mask_seeds`` say nothing here."""
        self._decoder, self._num_read = self.denoiser.decoder(xt.shape[1]), 0
        try:
            return super().sample(xt, t, mask_seeds, draws, fixed=fixed, on_step=on_step)
        finally:
            self._decoder = None  # it holds the memory of the whole batch

    def pending(self, step: int, state: State) -> Tensor:
        # A row that is finished stays: the decoder has all rows of the batch.
        return (state.x == self.mask_id).any().expand(len(state.x))

    def step(self, step: int, state: State, draws: Draws) -> tuple[State, Tensor]:
        is_masked = state.x == self.mask_id
        position = int(is_masked.any(0).int().argmax())
        prediction = self._decoder.read(state.x[:, self._num_read : position])
        self._num_read = position

        # Draws are keyed by the position: which step this is depends on the other rows of the batch.
        here = slice(position, position + 1)
        column = replace(state, x=state.x[:, here])
        column = self.unmask(position, column, is_masked[:, here], prediction, draws)
        x = state.x.clone()
        x[:, here] = column.x
        t = (x == self.mask_id).double().mean(-1)
        return replace(state, x=x, t=t), is_masked[:, position]
