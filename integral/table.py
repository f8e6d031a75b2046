"""A table of P(gamma) with its derivative: made, written, read and interpolated.

The file is an npz of ``vocab_size`` and four arrays (N,), float64: ``gammas`` (evenly spaced), ``pt``,
``leaves`` (1 - P, with all its digits) and ``grad_pt`` (dP/dgamma).
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusion.duality import Argmax, argmax_distribution
from errors import UserError
from utils import atomic_open

KEY = "algo.integral_cache_path"
_ARRAYS = ("gammas", "pt", "leaves", "grad_pt")
_ROWS_AT_ONCE = 4096


def command(vocab_size: int) -> str:
    """What makes the table of a vocabulary."""
    return f"python -m integral --vocab_size {vocab_size}"


@dataclass(frozen=True)
class Table:
    """P at evenly spaced gammas, between which it is interpolated.

    Attributes:
        vocab_size: V.
        gammas: (N,) float64, rising.
        nodes: the distribution of argmax(w) there, (N,) each.
    """

    vocab_size: int
    gammas: Tensor
    nodes: Argmax

    @classmethod
    def of(cls, vocab_size: int, gamma_min: float, gamma_max: float, num_points: int) -> Table:
        """Compute it, to nearly all digits."""
        gammas = torch.linspace(gamma_min, gamma_max, num_points, dtype=torch.float64)
        parts = [argmax_distribution(part, vocab_size) for part in gammas.split(_ROWS_AT_ONCE)]
        return cls(vocab_size, gammas, Argmax(*(torch.cat(values) for values in zip(*parts, strict=True))))

    def distribution(self, gamma: Tensor) -> Argmax:
        """The distribution at gamma (B,) inside the table: the cubic with the values and slopes of two
        points.
        """
        gammas, nodes = self.gammas.to(gamma.device), Argmax(*(x.to(gamma.device) for x in self.nodes))
        width = (gammas[-1] - gammas[0]) / (len(gammas) - 1)
        place = (gamma.to(torch.float64) - gammas[0]) / width
        left = place.floor().long().clamp(0, len(gammas) - 2)
        u, start, end = place - left, *(Argmax(*(x[i] for x in nodes)) for i in (left, left + 1))
        # P and 1 - P rise and fall alike; the smaller of them says by how much in more digits.
        rise = torch.where(start.stays < 0.5, end.stays - start.stays, start.leaves - end.leaves)
        before, after = start.slope * width, end.slope * width
        change = u * (rise + (1 - u) * ((1 - u) * (before - rise) + u * (rise - after)))
        slope = 6 * u * (1 - u) * rise + (1 - u) * (1 - 3 * u) * before + u * (3 * u - 2) * after
        return Argmax(start.stays + change, start.leaves - change, slope / width)


def write_table(path: str | Path, table: Table) -> None:
    """Write it, whole or not at all."""
    arrays = dict(zip(_ARRAYS, (table.gammas, *table.nodes), strict=True))
    with atomic_open(path, "wb") as file:
        np.savez(file, vocab_size=table.vocab_size, **{name: x.numpy() for name, x in arrays.items()})


def read_table(path: str, vocab_size: int, gammas: tuple[float, float]) -> Table:
    """Read the table of a vocabulary; no code in the file is run.

    Args:
        path: of an npz file.
        vocab_size: V that it must be for.
        gammas: the smallest and the largest gamma that it will be asked for.

    Raises:
        ValueError: one line: no such file, no table, or one of something else.
    """
    hint = f"leave {KEY} out (P is then computed), or make the table: {command(vocab_size)}"
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: torch.from_numpy(file[name]).double() for name in _ARRAYS}
            made_for = int(file["vocab_size"])
    except FileNotFoundError as error:
        raise UserError(KEY, path, "no such file", hint) from error
    except (OSError, KeyError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(KEY, path, "no npz table of P(gamma)", hint) from error
    if made_for != vocab_size:
        raise UserError(KEY, path, f"is for {made_for} ids, the tokenizer has {vocab_size}", hint)
    shapes = {tuple(array.shape) for array in found.values()}
    if len(shapes) > 1 or len(shape := shapes.pop()) != 1 or shape[0] < 2:
        problem = f"its arrays {', '.join(_ARRAYS)} are no columns of one length, 2 or more"
        raise UserError(KEY, path, problem, hint)
    if not all(bool(array.isfinite().all()) for array in found.values()):
        raise UserError(KEY, path, "holds numbers that are not finite", hint)
    steps = found["gammas"].diff()
    if not bool((steps > 0).all()) or float(steps.max()) > 1.001 * float(steps.min()):
        raise UserError(KEY, path, "its gammas do not rise evenly", hint)
    table = Table(vocab_size, found.pop("gammas"), Argmax(*found.values()))
    low, high = float(table.gammas[0]), float(table.gammas[-1])
    if low > gammas[0] or high < gammas[1]:
        problem = f"covers gamma from {low:g} to {high:g}, not from {gammas[0]:g} to {gammas[1]:g}"
        raise UserError(KEY, path, problem, f"{hint} --gamma_min {gammas[0]:g} --gamma_max {gammas[1]:g}")
    return table
