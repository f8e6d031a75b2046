"""What is reported: NELBO with its standard error, sample entropy, the share of real words.

Shapes: B sequences, L positions. All sums are kept in float64.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

import torch
from torch import Tensor
from torchmetrics import Metric


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
            "ppl": math.exp(min(nll, 700.0)),
            "nll_stderr": stderr,
            "bpd_stderr": stderr / math.log(2),
            "tokens": int(self.tokens),
        }


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
