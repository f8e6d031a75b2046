"""What is reported: NELBO, generative perplexity, sample entropy, the share of real words.

Shapes: B sequences, L positions, N texts. All sums are kept in float64.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torchmetrics import Metric
from tqdm import tqdm

_LARGEST_EXPONENT = 700.0  # exp of more is no float64


class Nelbo(Metric):
    """Token-weighted mean of the negative log-likelihood bound, over any number of batches and devices.

    ``compute`` returns nats per token (``nll``), bits per token (``bpd``), perplexity (``ppl``), the
    standard error of ``nll`` and the number of tokens. The standard error is that of a ratio estimator
    with sequences as the independent units (Cochran, Sampling Techniques, eq. 6.13).
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        for name in ("sequences", "nll_sum", "tokens", "nll_squares", "token_squares", "products"):
            self.add_state(name, default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, token_nll: Tensor, loss_mask: Tensor) -> None:
        """Add a batch: ``token_nll`` (B, L) in nats; ``loss_mask`` (B, L) bool, what counts."""
        nll = (token_nll.double() * loss_mask).sum(-1)
        tokens = loss_mask.sum(-1).double()
        self.sequences += nll.numel()
        self.nll_sum += nll.sum()
        self.tokens += tokens.sum()
        self.nll_squares += (nll * nll).sum()
        self.token_squares += (tokens * tokens).sum()
        self.products += (nll * tokens).sum()

    def compute(self) -> dict[str, float]:
        """See the class; nan where nothing was counted."""
        if self.tokens == 0:
            return {
                "nll": math.nan,
                "bpd": math.nan,
                "ppl": math.nan,
                "nll_stderr": math.nan,
                "bpd_stderr": math.nan,
                "tokens": 0,
            }
        nll = float(self.nll_sum / self.tokens)
        residual = self.nll_squares - 2 * nll * self.products + nll * nll * self.token_squares
        n = float(self.sequences)
        variance = float(residual.clamp(min=0)) * n / max(n - 1, 1)
        stderr = math.sqrt(variance) / float(self.tokens) if n > 1 else math.nan
        return {
            "nll": nll,
            "bpd": nll / math.log(2),
            "ppl": math.exp(min(nll, _LARGEST_EXPONENT)),
            "nll_stderr": stderr,
            "bpd_stderr": stderr / math.log(2),
            "tokens": int(self.tokens),
        }


class Scorer(Protocol):
    """The language model that generative perplexity asks, handed over by tasks/.

    Attributes:
        name, dtype: which model, in which precision; both are reported.
        context: most tokens of an input; None: any number.
        eos_id: the token that ends a text; None: there is none.
    """

    name: str
    dtype: str
    context: int | None
    eos_id: int | None

    def encode(self, texts: Sequence[str], max_tokens: int | None) -> list[list[int]]:
        """The ids of every text, cut behind ``max_tokens`` of them where that is a number."""
        ...

    def token_nll(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        """-log p(ids[:, j + 1] | ids[:, : j + 1]) in nats, (B, L - 1); 0 at padding.

        Args:
            ids: (B, L) int64 on the CPU, L >= 2.
            attention_mask: (B, L) bool, False at padding, which is on the right.
        """
        ...


@dataclass(frozen=True)
class TextScores:
    """What a scorer says of N texts.

    Attributes:
        nll: (N,) float64, nats, summed over the tokens that count.
        tokens: (N,) float64, the number of these.
    """

    nll: Tensor
    tokens: Tensor

    @property
    def perplexity(self) -> float | None:
        """exp(sum of nll / number of tokens); None when nothing counts."""
        return perplexity(float(self.nll.sum()), float(self.tokens.sum()))

    def bootstrap(
        self, seed: int, *, replicates: int = 1000, group: int = 1
    ) -> tuple[float, float, float] | None:
        """Standard error, and both ends of the 95 % interval, of the perplexity.

        Texts, or ``group`` neighbours that are alike (continuations of a prefix), are the independent units:
        they are drawn anew, with replacement, ``replicates`` times (the percentile bootstrap; Efron and
        Tibshirani, 1993, chapter 13). None where there are fewer than two.
        """
        number = len(self.nll)
        if number < 2 * group or self.tokens.sum() == 0:
            return None
        found = [
            perplexity(float(self.nll[drawn].sum()), float(self.tokens[drawn].sum()))
            for drawn in _resamples(number, seed, replicates, group)
        ]
        values = torch.tensor([value for value in found if value is not None], dtype=torch.float64)
        return float(values.std()), *_percentiles(values)


def perplexity(nll: float, tokens: float) -> float | None:
    """exp(nll / tokens), nll in nats summed over tokens; None when there are none."""
    return math.exp(min(nll / tokens, _LARGEST_EXPONENT)) if tokens else None


def mean_interval(values: Tensor, seed: int, *, replicates: int = 1000, group: int = 1) -> list[float] | None:
    """Both ends of the 95 % interval of a mean of ``values`` (N,), by the same bootstrap and with the same
    units as ``TextScores.bootstrap``; None where there are fewer than two."""
    if len(values) < 2 * group:
        return None
    values = values.double().cpu()
    means = torch.stack([values[drawn].mean() for drawn in _resamples(len(values), seed, replicates, group)])
    return list(_percentiles(means))


def _resamples(number: int, seed: int, replicates: int, group: int) -> Iterator[Tensor]:
    """Indices (number,): whole groups of neighbours drawn with replacement, ``replicates`` times."""
    assert number % group == 0, "groups are complete"
    generator = torch.Generator().manual_seed(seed)
    for _ in range(replicates):
        drawn = torch.randint(number // group, (number // group, 1), generator=generator)
        yield (drawn * group + torch.arange(group)).flatten()


def _percentiles(values: Tensor) -> tuple[float, float]:
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def counted_tokens(ids: Tensor, eos_id: int | None) -> Tensor:
    """Which predicted tokens of whole texts count: ids (..., L) -> (..., L - 1) bool for ids[..., 1:].

    All that are not eos, and of the text's own eos tokens the first. An eos at the very beginning is the
    first one; it is given and not predicted, so that none counts then.
    """
    if eos_id is None:
        return torch.ones_like(ids[..., 1:], dtype=torch.bool)
    is_eos = ids == eos_id
    first = is_eos & (is_eos.cumsum(-1) == 1)
    return (~is_eos | first)[..., 1:]


def score_texts(
    texts: Sequence[str], scorer: Scorer, *, batch_size: int, max_tokens: int | None
) -> TextScores:
    """Negative log-likelihood of texts under ``scorer``; every text counts, however they are batched.

    Args:
        texts: N texts, their special tokens included.
        batch_size: windows that the scorer sees at once; it changes the cost alone.
        max_tokens: texts are cut behind so many scorer tokens; None: they are scored whole. What does not
            fit into the scorer's context is scored in windows that share one token, so that every token
            but the first is predicted once.
    """
    encoded = [torch.tensor(ids, dtype=torch.int64) for ids in scorer.encode(texts, max_tokens)]
    counted = [counted_tokens(ids, scorer.eos_id) for ids in encoded]
    windows = [(n, part) for n, ids in enumerate(encoded) for part in _windows(len(ids), scorer.context)]
    # Equal lengths together waste no padding; the longest come first: too little memory shows at once.
    windows.sort(key=lambda window: window[1].start - window[1].stop)
    sums = torch.zeros(len(encoded), dtype=torch.float64)
    starts = range(0, len(windows), batch_size)
    for start in tqdm(starts, desc="scoring", unit="batch", leave=False, disable=None):
        rows, parts = zip(*windows[start : start + batch_size], strict=True)
        shape = (len(rows), max(part.stop - part.start for part in parts))
        ids, attention_mask = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.bool)
        counts = torch.zeros(shape[0], shape[1] - 1, dtype=torch.bool)
        for row, (n, part) in enumerate(zip(rows, parts, strict=True)):
            length = part.stop - part.start
            ids[row, :length] = encoded[n][part]
            attention_mask[row, :length] = True
            counts[row, : length - 1] = counted[n][part.start : part.stop - 1]
        nll = scorer.token_nll(ids, attention_mask).cpu().double()
        sums.index_add_(0, torch.tensor(rows), torch.where(counts, nll, 0.0).sum(-1))
    tokens = torch.tensor([int(which.sum()) for which in counted], dtype=torch.float64)
    return TextScores(sums, tokens)


def _windows(length: int, context: int | None) -> Iterator[slice]:
    """Parts of a text of ``length`` tokens, each of 2 to ``context``; neighbours share one token."""
    size = length if context is None else context
    for start in range(0, length - 1, max(size - 1, 1)):
        yield slice(start, min(start + size, length))


def sample_entropy(tokens: Tensor) -> Tensor:
    """Entropy in nats of the unigram frequencies inside each sequence: ids (B, L) -> (B,) float64."""
    ordered = tokens.sort(dim=-1).values
    batch, length = ordered.shape
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    group = starts.cumsum(-1) - 1
    counts = torch.zeros(batch, length, dtype=torch.float64, device=tokens.device)
    counts.scatter_add_(1, group, torch.ones_like(counts))
    share = counts / length
    return -torch.special.xlogy(share, share).sum(-1)


def word_share(texts: Iterable[str], known_words: Collection[str]) -> float:
    """Share of the white-space separated words of ``texts`` that occur in ``known_words``.

    The first and the last word of a text are left out: a sample may begin or end inside a word.
    nan when no word is left.
    """
    known = known_words if isinstance(known_words, (set, frozenset)) else set(known_words)
    words = [word for text in texts for word in text.split()[1:-1]]
    return sum(word in known for word in words) / len(words) if words else math.nan


def total_correlation(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """How far the positions of a group's samples are from independent of each other, by plug-in counts.

    TC = sum_j H(x_j) - H(x). The joint entropy of N samples cannot exceed log2 N, and reaches it when all
    of them differ: it then says nothing of the truth but that this is larger, and TC is mostly too high.

    Args:
        tokens: (G, N, L), G groups of N samples.

    Returns:
        TC and H(x), (G,) float64 each, in bits.
    """
    joint, marginal = [], []
    for group in tokens:
        which = group.unique(dim=0, return_inverse=True)[1]
        joint.append(sample_entropy(which[None])[0])
        marginal.append(sample_entropy(group.T).sum())
    entropies = [torch.stack(parts) / math.log(2) for parts in (joint, marginal)]
    return entropies[1] - entropies[0], entropies[0]


def exact_total_correlation(distribution: Tensor) -> float:
    """TC = sum_j H(x_j) - H(x) in bits of a distribution (K,) * L over all sequences of L symbols."""

    def entropy(probs: Tensor) -> Tensor:
        return -torch.special.xlogy(probs, probs).sum() / math.log(2)

    distribution = distribution.double()
    others = [[k for k in range(distribution.ndim) if k != j] for j in range(distribution.ndim)]
    marginals = [distribution.sum(dims) if dims else distribution for dims in others]
    return float(sum(entropy(probs) for probs in marginals) - entropy(distribution))
