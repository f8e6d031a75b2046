"""The distribution of a sampler's words on a world that can be enumerated, and the calls it takes.

Every state, a word of symbols and masks, is stepped with every outcome of the draws, weighted by its
probability. Shapes: S states, L positions, K symbols, N pairs of a state and the tokens drawn in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from diffusion.randomness import row_keys
from samplers import KeyedDraws, State
from samplers.ancestral import Ancestral
from samplers.base import Sampler
from samplers.planned import Planned
from samplers.remasking import Remasking
from tests.worlds import World

Distribution = tuple[Tensor, float]  # over all words, masks included (S,), and the mean number of calls


class GivenTokens(KeyedDraws):
    """Draws whose tokens (N, L) are given; the others follow from ``keys`` (N,)."""

    def __init__(self, tokens: Tensor, keys: Tensor) -> None:
        super().__init__(keys)
        self._tokens = tokens

    def tokens(self, step: int, log_probs: Tensor, batch_index: Tensor, position: Tensor) -> Tensor:
        return self._tokens[batch_index, position]


def start(world: World) -> Tensor:
    """All mass on the word of masks, (S,)."""
    return (world.digits == world.num_symbols).all(-1).double()


def words(world: World) -> Tensor:
    """The ids (S, L) of all states."""
    return torch.cat([world.symbols, torch.tensor([world.mask_id])])[world.digits]


def outcomes(world: World, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """All states (N,) with all tokens (N, L) that their masks can draw, and the probabilities (N,)."""
    states, tokens, weights = [], [], []
    table = world.table ** (1 / temperature)
    table = table / table.sum(-1, keepdim=True)
    for state, digits in enumerate(world.digits):
        masks = (digits == world.num_symbols).nonzero().squeeze(1)
        for drawn in itertools.product(range(world.num_symbols), repeat=len(masks)):
            symbols = torch.zeros(world.length, dtype=torch.int64)
            symbols[masks] = torch.tensor(drawn, dtype=torch.int64)
            states.append(state)
            tokens.append(world.symbols[symbols])
            weights.append(table[state, masks, symbols[masks]].prod())
    return torch.tensor(states), torch.stack(tokens), torch.stack(weights)


def planned_distribution(world: World, sampler: Planned, repeats: int = 8) -> Distribution:
    """Of samplers whose step follows from the visible ids and the tokens drawn; where positions are equal to
    them, the mean over ``repeats`` orders of those in each state."""
    ids = words(world)
    states, tokens, weights = outcomes(world, sampler.settings.temperature)
    keys = torch.cat([states * repeats + number for number in range(repeats)])
    states, tokens = states.repeat(repeats), tokens.repeat(repeats, 1)
    weights = weights.repeat(repeats) / repeats
    distribution, calls = start(world), 0.0
    first = sampler.begin(State(ids[-1:], torch.ones(1, dtype=torch.float64), None))
    assert (first.x == world.mask_id).all()
    for step in range(sampler.settings.num_steps):
        rows = torch.zeros_like(states)
        state = replace(first.select(rows), x=ids[states], t=torch.full((len(rows),), 0.5).double())
        busy = sampler.pending(step, state)
        busy &= distribution[states] > 0  # the others are not asked: some cannot be there at this step
        if not busy.any():
            break
        rows = busy.nonzero().squeeze(1)
        after, _ = sampler.step(step, state.select(rows), GivenTokens(tokens[rows], keys[rows]))
        calls += float((distribution[states] * weights)[rows].sum())
        moved = distribution.index_fill(0, states[rows].unique(), 0.0)
        target = world.encode(world.visible(after.x), world.num_symbols + 1)
        distribution = moved.index_add(0, target, distribution[states[rows]] * weights[rows])
    return distribution, calls


def independent_distribution(world: World, sampler: Ancestral) -> Distribution:
    """Of samplers in which, given the state, the positions move independently of each other: the process
    with or without remasking."""
    distribution, num_steps = start(world), sampler.settings.num_steps
    eye = torch.eye(world.num_symbols + 1, dtype=torch.float64)
    clean = torch.cat([world.table, torch.zeros_like(world.table[..., :1])], -1)
    t = torch.ones(1, dtype=torch.float64)
    for step in range(num_steps):
        s, alpha_s, _ = sampler.target(step, t)
        alpha_t, sigma = sampler.schedule.alpha(t), torch.zeros(1, dtype=torch.float64)
        if isinstance(sampler, Remasking):
            state = State(words(world)[:1], t, None)
            sigma = sampler.remask(step, state, alpha_t[:, None], alpha_s[:, None])[0]
            sigma = torch.minimum(sigma, (1 - alpha_s) / alpha_t).clamp(max=1)
        stay = (1 - alpha_s - sigma * alpha_t) / (1 - alpha_t)
        of_masks = (1 - stay) * clean + stay * eye[-1]
        of_tokens = (1 - sigma) * eye[world.digits] + sigma * eye[-1]
        is_symbol = (world.digits < world.num_symbols).unsqueeze(-1)
        distribution, t = distribution @ product(torch.where(is_symbol, of_tokens, of_masks)), s
    return distribution, float(num_steps)


def parallel_distribution(world: World, num_steps: int) -> Distribution:
    """Of first hitting with ceil(n / r) positions a call, drawn at random."""
    distribution, left, calls = start(world), world.length, 0
    eye = torch.eye(world.num_symbols + 1, dtype=torch.float64)[world.digits]
    clean = torch.cat([world.table, torch.zeros_like(world.table[..., :1])], -1)
    is_masked = world.digits == world.num_symbols
    while left:
        due = -(-left // (num_steps - calls))
        mean, subsets = torch.zeros(len(distribution), len(distribution), dtype=torch.float64), 0
        for chosen in itertools.combinations(range(left), due):
            rank = (is_masked.cumsum(-1) - 1).masked_fill(~is_masked, -1)
            where = torch.isin(rank, torch.tensor(chosen)).unsqueeze(-1)
            mean += product(torch.where(where, clean, eye))
            subsets += 1
        distribution, left, calls = distribution @ (mean / subsets), left - due, calls + 1
    return distribution, float(calls)


def product(moves: Tensor) -> Tensor:
    """(S, S) from what each position does, (S, L, K + 1)."""
    matrix = torch.ones(len(moves), 1, dtype=torch.float64)
    for position in range(moves.shape[1]):
        matrix = (matrix.unsqueeze(-1) * moves[:, position].unsqueeze(1)).flatten(1)
    return matrix


def sampled_distribution(world: World, make: Callable[[], Sampler], num_samples: int) -> Distribution:
    """Of samplers that remember: frequencies of ``num_samples`` words."""
    xt = torch.full((num_samples, world.length), world.mask_id)
    samples = make().sample(xt, 1.0, None, KeyedDraws(row_keys(0, 2, 0, torch.arange(num_samples))))
    return world.frequencies(samples.tokens).double(), float(samples.nfe.double().mean())
