"""ReMDM, remasking masked diffusion (Wang et al., arXiv 2503.00307, sections 3 and 4): ``remdm``.

With sigma_max = min(1, (1 - alpha_s) / alpha_t) a token is remasked with probability

* cap: min(eta, sigma_max);
* rescale: eta sigma_max;
* conf: eta sigma_max, shared out among the tokens by the softmax of minus the probability that each had when
  it was written;
* loop: eta while time passes from t_on to t_off, where alpha stands still at alpha_on; before and behind the
  steps are those of the process, from alpha = 0 to alpha_on and from there to 1.

The default eta are those of the authors' scripts for OpenWebText; they sample with p_nucleus=0.9. For other
numbers of steps eta has to go with 1/steps, if as much is to be remasked. Shapes: B rows, L positions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffusion.noise import Schedule
from diffusion.parameterization import Denoiser
from errors import UserError
from samplers.base import SamplerSettings, State, setting
from samplers.registry import register
from samplers.remasking import Remasking

ETA = {"cap": 0.008, "rescale": 0.015, "conf": 1.0, "loop": 0.02}


@dataclass(frozen=True)
class Settings:
    """``sampling.remdm.*``."""

    schedule: str = setting("cap", "how much is remasked", choices=("cap", "rescale", "conf", "loop"))
    eta: float | None = setting(
        None, "null: 0.008 of cap, 0.015 of rescale, 1 of conf, 0.02 of loop", low=0, high=1, example=0.02
    )
    t_on: float = setting(0.55, "loop: time at which it begins", above=0, high=1)
    t_off: float = setting(0.05, "loop: time at which it ends", above=0, below=1)
    alpha_on: float = setting(0.9, "loop: share of tokens that are there meanwhile", above=0, below=1)

    def __post_init__(self) -> None:
        if self.t_off >= self.t_on:
            problem = f"not below sampling.remdm.t_on={self.t_on:g}, where the loop begins"
            raise UserError("sampling.remdm.t_off", self.t_off, problem, "use a smaller one")


@dataclass(frozen=True)
class Written:
    """The probability (B, L) float64 of each token when it was written; inf where it never was."""

    probability: Tensor

    def select(self, rows: Tensor) -> Written:
        return Written(self.probability[rows])

    def merge(self, rows: Tensor, part: Written) -> Written:
        return Written(self.probability.index_copy(0, rows, part.probability))


@register("remdm", claim="remasks what it wrote", exact="sharpens", rewrites=True)
class ReMDM(Remasking):
    """``num_steps`` calls on the grid of ``ancestral`` (loop: on a grid of its own, see the file's text)."""

    own: Settings

    def __init__(
        self, denoiser: Denoiser, schedule: Schedule, mask_id: int, settings: SamplerSettings
    ) -> None:
        super().__init__(denoiser, schedule, mask_id, settings)
        self._eta = ETA[self.own.schedule] if self.own.eta is None else self.own.eta
        self._loop = self._loop_times() if self.own.schedule == "loop" else None

    def begin(self, state: State) -> State:
        never = torch.full(state.x.shape, torch.inf, dtype=torch.float64, device=state.x.device)
        return replace(super().begin(state), memory=Written(never))

    def remask(self, step: int, state: State, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
        most = ((1 - alpha_s) / alpha_t).clamp(max=1)
        if self.own.schedule == "cap":
            return most.clamp(max=self._eta)
        if self.own.schedule == "rescale":
            return self._eta * most
        if self.own.schedule == "conf":
            assert isinstance(state.memory, Written) and state.fixed is not None
            written = (state.x != self.mask_id) & ~state.fixed
            score = torch.where(written, -state.memory.probability, -torch.inf)
            return self._eta * most * score.softmax(-1).nan_to_num(0.0)  # nan: nothing is written yet
        t = super()._grid(step)
        return torch.full_like(most, self._eta if self.own.t_off < t <= self.own.t_on else 0.0)

    def note(self, state: State, written: Tensor, log_probs: Tensor) -> State:
        assert isinstance(state.memory, Written)
        probability = torch.where(written, log_probs.exp(), state.memory.probability)
        return replace(state, memory=Written(probability))

    def _grid(self, step: int) -> float:
        return super()._grid(step) if self._loop is None else self._loop[step]

    def _loop_times(self) -> list[float]:
        """Times of the process at the grid of the loop, num_steps + 1 of them."""
        own = self.own
        t = torch.tensor([super(ReMDM, self)._grid(k) for k in range(self.settings.num_steps + 1)]).double()
        rising = (1 - t) * own.alpha_on / max(1 - own.t_on, 1e-9)
        alpha = torch.where(t > own.t_on, rising.clamp(max=own.alpha_on), own.alpha_on)
        alpha = torch.where(t <= own.t_off, 1 - t * (1 - own.alpha_on) / own.t_off, alpha)
        return self.schedule.inverse(alpha).clamp(max=1.0).tolist()
