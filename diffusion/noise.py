"""Noise schedules alpha(t): the probability that a token is still clean at time t in [0, 1].

All methods are pure, work on any shape and keep the dtype of their argument. Quantities that vanish at an
end (alpha at t = 1, 1 - alpha at t = 0) are computed without cancellation.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from errors import UserError


@dataclass(frozen=True)
class Schedule(ABC):
    """A falling alpha(t) with its derivative and inverse.

    ``eps`` in (0, 1) sets how much of the data is left at t = 1, so that -log(alpha) stays finite.

    Raises:
        ValueError: ``eps`` outside (0, 1).
    """

    eps: float = 1e-3

    def __post_init__(self) -> None:
        if not 0.0 < self.eps < 1.0:
            raise UserError("noise.eps", self.eps, "must lie between 0 and 1", "the usual value is 1e-3")

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Probability that a token is clean at ``t``."""

    @abstractmethod
    def masked(self, t: Tensor) -> Tensor:
        """1 - alpha(t), accurate where it is small."""

    @abstractmethod
    def dalpha(self, t: Tensor) -> Tensor:
        """d alpha / dt, negative."""

    @abstractmethod
    def inverse(self, alpha: Tensor) -> Tensor:
        """The time t at which ``alpha(t)`` has the given value."""

    def sigma(self, t: Tensor) -> Tensor:
        """Total noise -log(alpha(t)), what a time-conditioned network sees."""
        return -torch.log(self.alpha(t))

    def weight(self, t: Tensor) -> Tensor:
        """Weight of the cross-entropy in the NELBO, -dalpha(t) / (1 - alpha(t)), positive."""
        return -self.dalpha(t) / self.masked(t)


@dataclass(frozen=True)
class LogLinear(Schedule):
    """alpha = 1 - (1 - eps) t (MDLM, Sahoo et al. 2024); the NELBO's weight is then 1/t."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1.0 - self.masked(t)

    def masked(self, t: Tensor) -> Tensor:
        return (1.0 - self.eps) * t

    def dalpha(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.eps - 1.0)

    def inverse(self, alpha: Tensor) -> Tensor:
        return (1.0 - alpha) / (1.0 - self.eps)


@dataclass(frozen=True)
class Cosine(Schedule):
    """alpha = 1 - cos(pi/2 (1 - u)), u = (1 - eps) t (MDLM, Sahoo et al. 2024, with the true derivative)."""

    def alpha(self, t: Tensor) -> Tensor:
        # 1 - cos(x) = 2 sin(x/2)^2 keeps its digits near t = 1, where alpha is about 1e-6.
        late = 2.0 * torch.sin(math.pi / 4 * (1.0 - (1.0 - self.eps) * t)).square()
        return torch.where(t < 0.5, 1.0 - self.masked(t), late)

    def masked(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * (1.0 - self.eps) * t)

    def dalpha(self, t: Tensor) -> Tensor:
        # sin(pi/2 (1 - u)), not cos(pi/2 u): the latter cancels near t = 1.
        return -(1.0 - self.eps) * math.pi / 2 * torch.sin(math.pi / 2 * (1.0 - (1.0 - self.eps) * t))

    def inverse(self, alpha: Tensor) -> Tensor:
        angle = 2.0 * torch.asin(torch.sqrt(alpha / 2.0))
        return (1.0 - angle / (math.pi / 2)) / (1.0 - self.eps)


_SCHEDULES: dict[str, type[Schedule]] = {"log-linear": LogLinear, "cosine": Cosine}


def get_schedule(name: str, eps: float = 1e-3) -> Schedule:
    """The schedule of that name.

    Raises:
        ValueError: unknown name, or ``eps`` outside (0, 1).
    """
    if name not in _SCHEDULES:
        names = ", ".join(sorted(_SCHEDULES))
        raise UserError("noise.name", name, "no such schedule", f"choose one of {names}")
    return _SCHEDULES[name](eps=eps)
