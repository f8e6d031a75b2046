"""Duo++'s short cut to P(gamma): alpha as a polynomial in the time of training.

The uniform process that argmax(w) follows (``diffusion.duality``) has alpha = (V P(gamma) - 1) / (V - 1), and
gamma is linear in t. Duo++ (Deschenaux, Gulcehre and Sahoo, 2026, arXiv 2602.21185) takes the polynomial in t
of least squares in its place, and the derivative of that for d alpha / dt. Exact values cost no more
here; the polynomials are for the same numbers. At the published gammas that of degree 9 is 3e-5 off in alpha,
and in d alpha / dt by 0.2 % of its largest value; that of degree 3 by 0.03 and by a third.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffusion.duality import Argmax, argmax_distribution
from errors import UserError

DEGREES = {"poly3": 3, "poly5": 5, "poly7": 7, "poly9": 9}
_POINTS = 2001  # evenly spaced, the ends by half; officially 100,000, within 2e-6 in alpha


@dataclass(frozen=True)
class LevelPolynomial:
    """alpha(t) = sum_i c_i (2 t - 1)^i on [0, 1].

    Attributes:
        vocab_size: V.
        speed: d gamma / dt.
        coefficients: (degree + 1,) float64, c_0 first.
    """

    vocab_size: int
    speed: float
    coefficients: Tensor

    @classmethod
    def of(cls, vocab_size: int, gamma_min: float, gamma_max: float, mode: str) -> LevelPolynomial:
        """That of ``mode`` (one of ``DEGREES``) for gamma from ``gamma_min`` at t = 0 to ``gamma_max`` at 1.

        Raises:
            UserError: it leaves (0, 1) and is no probability. (Officially the loss is then not a number.)
        """
        t = torch.linspace(0, 1, _POINTS, dtype=torch.float64)
        speed = gamma_max - gamma_min
        gammas = (gamma_min + speed * t).split(4096)
        leaves = torch.cat([argmax_distribution(part, vocab_size).leaves for part in gammas])
        alpha = (1 - leaves * (vocab_size / (vocab_size - 1))).numpy()
        ends = np.where((t == 0) | (t == 1), np.sqrt(0.5), 1.0)
        fit = np.polynomial.Polynomial.fit(t.numpy(), alpha, DEGREES[mode], domain=[0, 1], w=ends)
        fitted = fit(t.numpy())
        if fitted.min() <= 0 or fitted.max() >= 1:
            problem = f"for gamma from {gamma_min:g} to {gamma_max:g} and {vocab_size} ids its alpha "
            problem += f"runs from {fitted.max():.4g} to {fitted.min():.4g}"
            hint = "use simple, a higher degree or a narrower range of gamma"
            raise UserError("algo.curriculum_mode", mode, problem, hint)
        return cls(vocab_size, speed, torch.from_numpy(fit.coef))

    def at(self, t: Tensor) -> Argmax:
        """In place of the distribution of argmax(w) at times t (B,); see ``argmax_distribution``."""
        u, coefficients = 2 * t.to(torch.float64) - 1, self.coefficients.tolist()
        alpha, by_u = torch.zeros_like(u), torch.zeros_like(u)
        for coefficient in reversed(coefficients):
            alpha, by_u = alpha * u + coefficient, by_u * u + alpha
        others = (self.vocab_size - 1) / self.vocab_size
        leaves = (1 - alpha) * others
        return Argmax(1 - leaves, leaves, 2 * by_u * others / self.speed)
