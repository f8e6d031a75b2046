"""Worlds small enough to enumerate: exact denoisers and distributions that samplers and objectives are
judged by.

Shapes: K symbols, L positions, V = K + 1 ids (one of them the mask), S = states of a chain.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from diffusion.parameterization import Prediction
from diffusion.randomness import fold_in, random_bits
from diffusion.uniform import UniformPrediction

NEG_INF = -1e6


def random_probs(num_symbols: int, length: int, seed: int = 0, contrast: float = 1.5) -> Tensor:
    """A dependent distribution over all sequences, shape (K,) * L: softmax of Gaussian logits times
    ``contrast``.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_symbols**length, generator=generator, dtype=torch.float64)
    return (contrast * logits).softmax(0).view((num_symbols,) * length)


def total_variation(p: Tensor, q: Tensor) -> float:
    """Half the L1 distance of two distributions on the same outcomes."""
    return 0.5 * float((p - q).abs().sum())


def tv_noise(distribution: Tensor, num_samples: int, sigmas: float = 4.5) -> float:
    """A bound that the total variation of an empirical distribution of ``num_samples`` draws stays below.

    Mean: E|f - p| <= sqrt(p (1-p) / n) for every outcome. Deviation: one sample moves the distance by at most
    1/n, so by McDiarmid P(TV > mean + e) <= exp(-2 n e^2); e = sigmas / (2 sqrt n) gives exp(-sigmas^2 / 2),
    4e-5 by default.
    """
    mean = 0.5 * float((distribution * (1 - distribution)).clamp(min=0).sqrt().sum()) / num_samples**0.5
    return mean + 0.5 * sigmas / num_samples**0.5


class _Chain:
    """The reverse chain on explicit states: a digit 0..K-1 is a symbol, K + r a mask whose noise is r < R.

    ``table`` (S, L, K) holds the denoiser's probabilities in every state; with R = 1 (MDLM) masks are alike.
    """

    def __init__(self, num_symbols: int, length: int, mask_id: int | None, num_noise: int) -> None:
        self.num_symbols, self.length, self.num_noise = num_symbols, length, num_noise
        self.mask_id = num_symbols if mask_id is None else mask_id
        ids = torch.arange(num_symbols + 1)
        self.symbols = ids[ids != self.mask_id]
        self.digits = _all_words(num_symbols + num_noise, length)
        self.table = torch.zeros(len(self.digits), length, num_symbols, dtype=torch.float64)

    @property
    def vocab_size(self) -> int:
        return self.num_symbols + 1

    def visible(self, xt: Tensor) -> Tensor:
        """Ids (B, L) -> digits in which every mask is K."""
        return torch.where(xt == self.mask_id, self.num_symbols, xt - (xt > self.mask_id).long())

    def encode(self, digits: Tensor, base: int) -> Tensor:
        """Digits (B, L) -> index (B,), first position most significant."""
        powers = base ** torch.arange(self.length - 1, -1, -1)
        return (digits * powers).sum(-1)

    def frequencies(self, xt: Tensor) -> Tensor:
        """Empirical distribution of ids (B, L) over all (K+1)**L visible words, masks included."""
        base = self.num_symbols + 1
        return torch.bincount(self.encode(self.visible(xt), base), minlength=base**self.length) / len(xt)

    def prediction(self, states: Tensor, xt: Tensor) -> Prediction:
        """Exact log-probabilities as features and the identity as head; ``states`` (B,) index the table."""
        log_probs = torch.full((*xt.shape, self.vocab_size), NEG_INF, dtype=torch.float64)
        log_probs[..., self.symbols] = self.table[states].log().clamp(min=NEG_INF)
        head = torch.eye(self.vocab_size, dtype=torch.float64)
        return Prediction(log_probs, head, None, xt, self.mask_id, dtype=torch.float64)

    def distribution(
        self, alphas: list[float], *, reset: bool = True, start: list[int] | None = None
    ) -> Tensor:
        """Distribution over the (K+1)**L visible words after ancestral steps alphas[0] -> alphas[1] -> ... .

        ``start`` are ids (default: all masked); the noise of its masks starts uniform. The formulas are those
        of the IMDM posterior written out once more, so that they check the code under test.
        """
        first = self.visible(torch.tensor(start)) if start else torch.full((self.length,), self.num_symbols)
        agrees = (self.digits.clamp(max=self.num_symbols) == first).all(-1)
        distribution = agrees / agrees.sum().double()
        for alpha_t, alpha_s in pairwise(alphas):
            distribution = distribution @ self.transition(alpha_t, alpha_s, reset)
        words = self.encode(self.digits.clamp(max=self.num_symbols), self.num_symbols + 1)
        return torch.zeros((self.num_symbols + 1) ** self.length, dtype=distribution.dtype).index_add(
            0, words, distribution
        )

    def transition(self, alpha_t: float, alpha_s: float, reset: bool) -> Tensor:
        """Dense (S, S) matrix of one step: given the state the positions move independently."""
        alpha_ts = alpha_t / alpha_s
        unmask = (alpha_s - alpha_t) / (1 - alpha_t)
        fresh = (1 - alpha_ts) * (1 - alpha_s) / (1 - alpha_t) if reset else 0.0
        eye = torch.eye(self.num_symbols + self.num_noise, dtype=torch.float64)[self.digits]  # (S, L, K+R)
        noise = torch.full((*eye.shape[:2], self.num_noise), fresh / self.num_noise)
        moves = torch.cat([unmask * self.table, noise], -1) + (1 - unmask - fresh) * eye
        moves = torch.where((self.digits < self.num_symbols).unsqueeze(-1), eye, moves)
        matrix = torch.ones(len(eye), 1, dtype=torch.float64)
        for position in range(self.length):
            matrix = (matrix.unsqueeze(-1) * moves[:, position].unsqueeze(1)).flatten(1)
        return matrix


class World(_Chain):
    """A distribution ``probs`` (K,) * L over sequences with its exact posterior. ``mask_id`` may lie
    anywhere.

    sequences (K**L, L) ids; probs (K**L,) float64; entropy in nats per sequence.
    """

    def __init__(self, probs: Tensor, mask_id: int | None = None) -> None:
        super().__init__(probs.shape[0], probs.ndim, mask_id, num_noise=1)
        self.probs = probs.double().flatten() / probs.double().sum()
        self.words = _all_words(self.num_symbols, self.length)
        self.sequences = self.symbols[self.words]
        self.entropy = -float(torch.special.xlogy(self.probs, self.probs).sum())
        self.data_distribution = torch.zeros((self.num_symbols + 1) ** self.length, dtype=torch.float64)
        self.data_distribution[self.encode(self.words, self.num_symbols + 1)] = self.probs
        for position in range(self.length):
            self.table[:, position] = self._marginals(position)

    def _marginals(self, position: int) -> Tensor:
        """Posterior of one position in all contexts, (S, K); uniform in contexts of probability 0."""
        others = (self.digits[:, None] == self.words) | (self.digits[:, None] == self.num_symbols)
        weights = others.all(-1) * self.probs  # (S, K**L)
        sums = weights @ torch.eye(self.num_symbols, dtype=torch.float64)[self.words[:, position]]
        total = sums.sum(-1, keepdim=True)
        return torch.where(total > 0, sums / total, 1 / self.num_symbols)

    def denoiser(self) -> ExactDenoiser:
        """The exact denoiser (what a perfect MDLM would predict); it needs no sigma and no noise."""
        return ExactDenoiser(self)

    def total_variation(self, samples: Tensor) -> float:
        """Distance of samples (B, L) to the data distribution; words with masks in them count as errors."""
        return total_variation(self.frequencies(samples).double(), self.data_distribution)

    def total_correlation(self, start: list[int] | None = None) -> float:
        """sum_j H(x_j | start) - H(x | start) in nats: the price of unmasking everything at once."""
        first = self.visible(torch.tensor(start)) if start else torch.full((self.length,), self.num_symbols)
        weights = self.probs * ((first == self.num_symbols) | (self.words == first)).all(-1)
        weights = weights / weights.sum()
        joint = -torch.special.xlogy(weights, weights).sum()
        table = self.table[self.encode(first, self.num_symbols + 1)][first == self.num_symbols]
        return float(-torch.special.xlogy(table, table).sum() - joint)


class ExactDenoiser:
    """Posterior marginals of a world as a ``Denoiser``; without mask noise."""

    def __init__(self, world: World) -> None:
        self.world = world

    def denoise(self, xt: Tensor, sigma: Tensor, mask_seeds: Tensor | None) -> Prediction:
        return self.world.prediction(self.world.encode(self.world.visible(xt), self.world.vocab_size), xt)

    def draw_seeds(self, keys: Tensor, length: int) -> Tensor | None:
        return None

    def refresh_seeds(self, mask_seeds: Tensor | None, where: Tensor, keys: Tensor) -> Tensor | None:
        return None


class NoisyWorld(_Chain):
    """A toy infinite-mask model: each mask carries a seed, and one bit of it is what the model sees.

    Predictions are an arbitrary table over (visible word, bits of its masks) in which all masks lean
    towards a symbol chosen by the bit of the last mask. A bit that is kept therefore ties symbols drawn at
    different times together, and a reset unties them: keep and reset shape the distribution, which
    ``distribution`` computes.
    """

    def __init__(
        self, num_symbols: int = 3, length: int = 3, seed: int = 0, mask_id: int | None = None
    ) -> None:
        super().__init__(num_symbols, length, mask_id, num_noise=2)
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(self.table.shape, generator=generator, dtype=torch.float64)
        is_masked = self.digits >= num_symbols
        last = torch.where(is_masked, torch.arange(length), -1).amax(-1).clamp(min=0)
        bit = (self.digits.gather(1, last[:, None])[:, 0] - num_symbols).clamp(min=0)
        logits[torch.arange(len(bit)), :, bit * (num_symbols - 1)] += 4
        self.table = logits.softmax(-1)

    def denoiser(self) -> NoisyDenoiser:
        return NoisyDenoiser(self)


class NoisyDenoiser:
    """The model of a ``NoisyWorld``; ``mask_seeds`` are int64 seeds (B, L), as for an infinite-mask
    network.
    """

    def __init__(self, world: NoisyWorld) -> None:
        self.world = world

    def denoise(self, xt: Tensor, sigma: Tensor, mask_seeds: Tensor | None) -> Prediction:
        assert mask_seeds is not None and mask_seeds.shape == xt.shape
        bits = random_bits(mask_seeds, 1)[..., 0] & 1
        digits = self.world.visible(xt) + torch.where(xt == self.world.mask_id, bits, 0)
        return self.world.prediction(self.world.encode(digits, self.world.num_symbols + 2), xt)

    def draw_seeds(self, keys: Tensor, length: int) -> Tensor:
        return fold_in(keys[:, None], torch.arange(length))

    def refresh_seeds(self, mask_seeds: Tensor | None, where: Tensor, keys: Tensor) -> Tensor:
        assert mask_seeds is not None
        return torch.where(where, self.draw_seeds(keys, mask_seeds.shape[1]), mask_seeds)


class UniformWorld:
    """A distribution over words of L ids below V with its exact denoiser: x_theta of a position is the
    distribution of its
    token given all other positions. States and words are numbered alike, S = V**L of them."""

    def __init__(self, size: int = 3, length: int = 3, seed: int = 2) -> None:
        self.size, self.length = size, length
        self.words = torch.cartesian_prod(*[torch.arange(size)] * length)  # (S, L)
        self.probs = random_probs(size, length, seed).flatten()
        self.entropy = -float(torch.special.xlogy(self.probs, self.probs).sum())

    def channel(self, alpha: Tensor | float) -> Tensor:
        """q(xt_i | x0_i), (V, V): a row for each x0."""
        return alpha * torch.eye(self.size).double() + (1 - alpha) / self.size

    def likelihoods(self, alpha: Tensor | float) -> Tensor:
        """q(xt_i | x0_i) of every position, state and word: (L, S of xt, S of x0)."""
        channel = self.channel(alpha)
        return torch.stack([channel[w][:, w].T for w in self.words.T])

    def table(self, alpha: Tensor | float, *, others_only: bool = True) -> Tensor:
        """p(x0_i | xt), or given the other positions of xt alone: (S, L, V)."""
        each, columns = self.likelihoods(alpha), []
        for i in range(self.length):
            seen = [each[j] for j in range(self.length) if j != i or not others_only]
            joint = torch.stack(seen).prod(0) * self.probs
            columns.append(joint @ torch.eye(self.size).double()[self.words[:, i]])
        table = torch.stack(columns, 1)
        return table / table.sum(-1, keepdim=True)

    def encode(self, xt: Tensor) -> Tensor:
        return (xt * self.size ** torch.arange(self.length - 1, -1, -1)).sum(-1)

    def frequencies(self, xt: Tensor) -> Tensor:
        return torch.bincount(self.encode(xt), minlength=len(self.words)).double() / len(xt)

    def denoiser(self) -> UniformWorld:
        return self

    def denoise(self, xt: Tensor, sigma: Tensor, mask_seeds: Tensor | None) -> UniformPrediction:
        if (sigma == sigma[:1]).all():
            distribution = self.table(torch.exp(-sigma[0].double()))[self.encode(xt)]
        else:  # the table's rows at each row's own time
            alpha = torch.exp(-sigma.double())[:, None, None]
            each = alpha * (xt[:, None] == self.words) + (1 - alpha) / self.size  # (B, S, L)
            eye, others = torch.eye(self.size).double(), 1 - torch.eye(self.length).long()
            joint = [each[..., seen > 0].prod(-1) * self.probs for seen in others]
            distribution = torch.stack([joint[i] @ eye[self.words[:, i]] for i in range(self.length)], 1)
        log_probs = (distribution / distribution.sum(-1, keepdim=True)).log()
        return UniformPrediction(log_probs, torch.eye(self.size).double(), None, xt, torch.float64)

    def draw_seeds(self, keys: Tensor, length: int) -> None:
        return None

    def refresh_seeds(self, mask_seeds: Tensor | None, where: Tensor, keys: Tensor) -> None:
        return None

    def distribution(
        self, alphas: list[float], temperature: float = 1.0, start: Tensor | None = None
    ) -> Tensor:
        """Distribution over the states after ancestral steps through ``alphas``, from uniform ids or
        ``start`` (L,), of which those >= 0 are given."""
        start = torch.full((self.length,), -1) if start is None else start
        distribution = ((self.words == start) | (start < 0)).all(-1).double()
        for moves in self.moves(alphas, temperature, given=start >= 0):
            distribution = distribution @ moves
        return distribution / distribution.sum()

    def moves(
        self, alphas: list[float], temperature: float = 1.0, given: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Dense (S, S) matrices of the steps, by the posterior as the paper writes it."""
        for alpha_t, alpha_s in pairwise(alphas):
            x = self.table(alpha_t) ** (1 / temperature)
            moves = posterior(x / x.sum(-1, keepdim=True), self.words, alpha_t, alpha_s)
            if given is not None:
                moves[:, given] = torch.eye(self.size).double()[self.words][:, given]
            yield torch.stack([moves[:, i][:, w] for i, w in enumerate(self.words.T)]).prod(0)


def posterior(x: Tensor, xt: Tensor, alpha_t: Tensor | float, alpha_s: Tensor | float) -> Tensor:
    """(B, L, V), as in Duo: from x_theta (B, L, V)."""
    size, alpha_ts, here = x.shape[-1], alpha_t / alpha_s, torch.eye(x.shape[-1]).double()[xt]
    at_xt = x.gather(-1, xt.unsqueeze(-1))
    numerator = (
        alpha_t * size * x * here
        + (alpha_ts - alpha_t) * here
        + (alpha_s - alpha_t) * x
        + (1 - alpha_ts) * (1 - alpha_s) / size
    )
    return numerator / (alpha_t * size * at_xt + 1 - alpha_t)


def _all_words(base: int, length: int) -> Tensor:
    """All words of ``length`` digits below ``base``, (base**length, length), first most significant."""
    return torch.cartesian_prod(*[torch.arange(base)] * length).view(-1, length)
