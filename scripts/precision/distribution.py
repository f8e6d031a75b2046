"""What steps in float32 write where everything can be enumerated: one mask under Zipf's distribution.

Shapes: G groups of equally likely tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion.gumbel import grid_distribution, truncated_distribution

DRAWS = ("exact", "float32", "truncated32")
Row = dict[str, Any]


def zipf_in_stairs(vocab_size: int = 50_257, stairs_per_octave: int = 2) -> tuple[Tensor, Tensor]:
    """Zipf's distribution, 1 / rank, whose ranks are put together: probability (G,) of one token of each
    group, and how many tokens (G,) it has."""
    number = int(math.log2(vocab_size) * stairs_per_octave) + 1
    edges = (2 ** (torch.arange(number + 1, dtype=torch.float64) / stairs_per_octave)).round()
    edges = torch.cat([edges[edges <= vocab_size], torch.tensor([vocab_size + 1.0])]).unique()
    masses = (1 / torch.arange(1, vocab_size + 1, dtype=torch.float64)).cumsum(0)
    masses = torch.cat([torch.zeros(1, dtype=torch.float64), masses])[edges.long() - 1].diff()
    return masses / masses.sum() / edges.diff(), edges.diff()


def step_distributions(distribution: str, probs: Tensor, counts: Tensor, most: int) -> Tensor:
    """What one step does to a mask with n steps to go, n = 1 ... ``most``: the probabilities (most, G) that a
    token of each group is written (log-linear schedule: exactly 1 / n in all).

    The distribution of the grid is enumerated at some n, and its ratio to the exact one is interpolated
    between them.
    """
    to_go = torch.arange(1, most + 1, dtype=torch.float64)
    exact = (probs * counts) / to_go.unsqueeze(-1)
    if distribution == "exact":
        return exact

    def joint(n: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and, last, the mask. In the last step the mask's probability is 0."""
        tokens = probs / n.unsqueeze(-1)
        return torch.cat([tokens, 1 - 1 / n.unsqueeze(-1)], -1), torch.cat([counts, torch.ones(1)])

    if distribution == "truncated32":
        return truncated_distribution(*joint(to_go))[:, :-1]
    knots = torch.logspace(0, math.log10(most), 40, dtype=torch.float64).round().unique()
    found = [grid_distribution(probs, counts)]
    found += [grid_distribution(p, joint(knots)[1])[:-1] for p in joint(knots[1:])[0]]
    ratios = (torch.stack(found) * knots.unsqueeze(-1) / (probs * counts)).numpy()
    between = [np.interp(to_go.log(), knots.log(), column) for column in ratios.T]
    return exact * torch.tensor(np.array(between).T)


def written(distributions: Tensor, num_steps: int) -> tuple[Tensor, float]:
    """The distribution (G,) of the token that ``num_steps`` steps write, whatever the step; and the
    probability that a mask is left to the last step, 1 / num_steps if draws are exact."""
    distributions = distributions[:num_steps].flip(0)
    stays = (1 - distributions.sum(-1)).clamp(min=0)
    before = torch.cat([torch.ones(1), stays.cumprod(0)[:-1]]).double()
    return (before.unsqueeze(-1) * distributions).sum(0), float(before[-1])


def enumerate_distribution(probs: Tensor, counts: Tensor, steps: Sequence[int]) -> list[Row]:
    """Entropy in nats, distance to the exact distribution, and mass of the rare tokens, by draws and
    steps.
    """
    rows, rare = [], probs < 1e-5
    for name in DRAWS:
        distributions = step_distributions(name, probs, counts, max(steps))
        for num_steps in steps:
            distribution, left = written(distributions, num_steps)
            rows.append(
                {
                    "draws": name,
                    "steps": num_steps,
                    "entropy": float(-torch.special.xlogy(distribution, distribution / counts).sum()),
                    "total_variation": float((distribution - probs * counts).abs().sum() / 2),
                    "rare": float(distribution[rare].sum()),
                    "left_to_last_step": left,
                    "ratio": (distribution / (probs * counts)).tolist(),
                }
            )
    return rows
