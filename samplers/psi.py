"""Psi-samplers of Duo (Deschenaux et al., "The Diffusion Duality, Chapter II", arXiv 2602.21185): ``psi``.

With probability kappa a position makes the step of the process, else it is drawn at t = 0 and noised again to
s; both leave the marginals as they are, for masks and for uniform noise. The time goes in three parts, high,
middle and low, each with a mode:

    pure-posterior       kappa = 1            pure-pc             kappa = 0
    constant-K           kappa = K            constant-remdm-ETA  sigma = ETA
    max-capped-ETA       sigma = min(ETA, (1 - alpha_s) / alpha_t)
    max-rescale-ETA      sigma = ETA min(ETA, (1 - alpha_s) / alpha_t)

where kappa = 1 - sigma / (1 - alpha_s). (So the authors' program has max-rescale; ReMDM's own, ``remdm``
with rescale, has 1 for the second ETA.) The time profile is linear, or linear-constant-linear-A: from 1 to A
in the high part, A in the middle one, and down in the low one; with -inv behind it A is an alpha, and the
time is where the schedule has it. Keys and modes are those of the authors' program, whose steps are N and a
call more: sampling.noise_removal=tail. Shapes: B rows, L positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.noise import Schedule
from diffusion.parameterization import Denoiser
from diffusion.uniform import UniformReverse, uniform_reverse
from errors import UserError
from samplers.base import SamplerSettings, State, setting
from samplers.registry import register
from samplers.remasking import Remasking
from samplers.uniform_ancestral import UniformAncestral

MODES = ("constant-remdm", "constant", "max-capped", "max-rescale")  # each with a number behind it
PURE = {"pure-posterior": 1.0, "pure-pc": 0.0}
PROFILE = "linear-constant-linear-"


@dataclass(frozen=True)
class Settings:
    """``sampling.psi.*``."""

    time_profile: str = setting("linear-constant-linear-0.9-inv", "of the steps; or linear")
    high_mode: str = setting("pure-posterior", "of the first steps; or pure-pc, constant-0.95")
    middle_mode: str = setting("constant-remdm-0.01", "of the middle steps; or max-capped-0.01")
    low_mode: str = setting("pure-posterior", "of the last steps; or max-rescale-0.05")
    high_frac: float = setting(0.45, "share of the steps that are high", low=0, high=1)
    middle_frac: float = setting(0.5, "share of the steps that are middle", low=0, high=1)

    def __post_init__(self) -> None:
        for name in ("high_mode", "middle_mode", "low_mode"):
            value = getattr(self, name)
            if value not in PURE and parse(value) is None:
                hint = f"use {', '.join([*PURE, *(f'{mode}-0.01' for mode in MODES)])}"
                raise UserError(f"sampling.psi.{name}", value, "no such mode", hint)
        if self.time_profile != "linear" and not 0 < self.plateau[0] < 1:
            hint = "use linear or linear-constant-linear-0.9-inv"
            raise UserError("sampling.psi.time_profile", self.time_profile, "no such profile", hint)
        if self.high_frac + self.middle_frac > 1:
            problem = f"more than all steps, with sampling.psi.high_frac={self.high_frac:g}"
            raise UserError("sampling.psi.middle_frac", self.middle_frac, problem, "use a smaller one")

    @property
    def plateau(self) -> tuple[float, bool]:
        """Where time stands still, and whether the number is an alpha; 0 where the text says nothing so."""
        text = self.time_profile.removeprefix(PROFILE)
        number = _number(text.removesuffix("-inv")) if text != self.time_profile else None
        return number or 0.0, text.endswith("-inv")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def parse(mode: str) -> tuple[str, float] | None:
    """A mode with a number in [0, 1] behind it; None for anything else."""
    for kind in MODES:
        number = _number(mode.removeprefix(f"{kind}-")) if mode.startswith(f"{kind}-") else None
        if number is not None and 0 <= number <= 1:
            return kind, number
    return None


def parts(own: Settings, count: int) -> tuple[int, int, int]:
    """How many of ``count`` times are high, middle and low."""
    high = round(own.high_frac * count)
    middle = min(round(own.middle_frac * count), count - high)
    return high, middle, count - high - middle


def times(own: Settings, schedule: Schedule, num_steps: int, eps: float) -> Tensor:
    """The grid, (num_steps + 1,) float64 from 1 to ``eps``."""
    if own.time_profile == "linear":
        return torch.linspace(1, eps, num_steps + 1, dtype=torch.float64)
    number, is_alpha = own.plateau
    here = float(schedule.inverse(torch.tensor(number).double())) if is_alpha else number
    high, middle, low = parts(own, num_steps + 1)
    first = torch.linspace(1, here, high, dtype=torch.float64)
    last = torch.linspace(here, eps, low, dtype=torch.float64)
    return torch.cat([first, torch.full((middle,), here, dtype=torch.float64), last])


def kappas(own: Settings, schedule: Schedule, grid: Tensor) -> Tensor:
    """kappa of the step from each time of ``grid`` (n,), in [0, 1]; the last of a part is 1 where it takes
    two times to know it."""
    found, start = [], 0
    modes = (own.high_mode, own.middle_mode, own.low_mode)
    for mode, count in zip(modes, parts(own, len(grid)), strict=True):
        found.append(_kappas(mode, schedule, grid[start : start + count]))
        start += count
    return torch.cat(found)


def _kappas(mode: str, schedule: Schedule, grid: Tensor) -> Tensor:
    if mode in PURE:
        return torch.full_like(grid, PURE[mode])
    chosen = parse(mode)
    assert chosen is not None
    kind, eta = chosen
    if kind == "constant":
        return torch.full_like(grid, eta)
    alpha_t, alpha_s = schedule.alpha(grid[:-1]), schedule.alpha(grid[1:])
    capped = ((1 - alpha_s) / alpha_t).clamp(max=eta)
    sigma = {"max-capped": capped, "max-rescale": eta * capped}.get(kind, torch.full_like(capped, eta))
    return torch.cat([(1 - sigma / (1 - alpha_s)).clamp(0, 1), torch.ones_like(grid[:1])])


class _Plan:
    """Times and kappas of the steps, known before sampling begins."""

    def __init__(self, own: Settings, schedule: Schedule, settings: SamplerSettings) -> None:
        grid = times(own, schedule, settings.num_steps, settings.grid_eps)
        self.times: list[float] = grid.tolist()
        self.kappas: list[float] = kappas(own, schedule, grid).tolist()
        self.kappas[-1] = 1.0  # of a tail

    @classmethod
    def of(cls, sampler: Psi | UniformPsi) -> _Plan:
        return cls(sampler.own, sampler.schedule, sampler.settings)


@register("psi", claim="Duo's predictor-corrector", exact="sharpens", rewrites=True)
class Psi(Remasking):
    """Of masks: ``remdm`` by other words."""

    own: Settings

    def __init__(
        self, denoiser: Denoiser, schedule: Schedule, mask_id: int, settings: SamplerSettings
    ) -> None:
        super().__init__(denoiser, schedule, mask_id, settings)
        self._plan = _Plan.of(self)

    def remask(self, step: int, state: State, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
        return (1 - self._plan.kappas[step]) * (1 - alpha_s)

    def _grid(self, step: int) -> float:
        return self._plan.times[step]


@register("psi", claim="Duo's predictor-corrector", exact="sharpens", families=("uniform",), rewrites=True)
class UniformPsi(UniformAncestral):
    """Of uniform noise."""

    own: Settings

    def __init__(
        self, denoiser: Denoiser, schedule: Schedule, mask_id: int, settings: SamplerSettings
    ) -> None:
        super().__init__(denoiser, schedule, mask_id, settings)
        self._plan = _Plan.of(self)

    def mixture(self, step: int, alphas: Tensor, p_xt: Tensor | float, vocab_size: int) -> UniformReverse:
        alpha_t, alpha_s = alphas
        kappa = self._plan.kappas[step]
        direct = uniform_reverse(alpha_t, alpha_s, p_xt, vocab_size)
        clean = uniform_reverse(alpha_t, torch.ones_like(alpha_s), p_xt, vocab_size)
        noised = UniformReverse(alpha_s * clean.keep, 1 - alpha_s + 0 * clean.keep, alpha_s * clean.draw)
        return UniformReverse(*(kappa * a + (1 - kappa) * b for a, b in zip(direct, noised, strict=True)))

    def _grid(self, step: int) -> float:
        return self._plan.times[step]
