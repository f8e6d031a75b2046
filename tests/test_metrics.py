"""Metrics against goldens and hand-made cases."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from metrics import (
    Nelbo,
    TextScores,
    counted_tokens,
    mean_interval,
    perplexity,
    sample_entropy,
    score_texts,
    word_share,
)

GOLDEN = Path(__file__).parent / "golden"


def test_sample_entropy_matches_the_official_one() -> None:
    golden = np.load(GOLDEN / "metrics.npz", allow_pickle=False)
    entropy = sample_entropy(torch.from_numpy(golden["entropy_tokens"]))
    torch.testing.assert_close(
        entropy, torch.from_numpy(golden["entropy_per_sample"]).double(), rtol=1e-5, atol=2e-5
    )


def test_nelbo_is_the_token_mean_whatever_the_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    nll = torch.rand(10, 6, generator=generator)
    mask = torch.rand(10, 6, generator=generator) < 0.7
    metric = Nelbo()
    for part in (slice(0, 4), slice(4, 9), slice(9, 10)):  # the last partial batch counts
        metric.update(nll[part], mask[part])
    result = metric.compute()
    assert result["nll"] == pytest.approx(float(nll[mask].double().mean()), rel=1e-6)
    assert result["ppl"] == pytest.approx(math.exp(result["nll"]))
    assert result["bpd"] == pytest.approx(result["nll"] / math.log(2))
    assert result["tokens"] == int(mask.sum())


def test_standard_error_is_that_of_the_mean() -> None:
    """Over many draws of a set, the spread of the estimates is what each of them says its error is."""
    generator = torch.Generator().manual_seed(1)
    estimates, errors = [], []
    for _ in range(400):
        per_sequence = torch.randn(64, 1, generator=generator).exp().expand(64, 5)
        metric = Nelbo()
        metric.update(per_sequence, torch.ones(64, 5, dtype=torch.bool))
        result = metric.compute()
        estimates.append(result["nll"])
        errors.append(result["nll_stderr"])
    assert np.mean(errors) == pytest.approx(np.std(estimates), rel=0.15)  # 400 draws: about 4 % noise


def test_nothing_counted_is_nan_not_a_crash() -> None:
    metric = Nelbo()
    metric.update(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool))
    assert math.isnan(metric.compute()["nll"])


def test_word_share_ignores_cut_words() -> None:
    assert word_share(["ello the cat xx"], {"the", "cat"}) == 1.0
    assert word_share(["a the qqq b", "x cat y"], {"the", "cat"}) == pytest.approx(2 / 3)
    assert math.isnan(word_share(["one two"], {"one"}))


def test_counted_tokens_match_the_official_ones() -> None:
    golden = np.load(GOLDEN / "metrics.npz", allow_pickle=False)
    counted = counted_tokens(torch.from_numpy(golden["genppl_ids"]), int(golden["genppl_eos"]))
    assert torch.equal(counted, torch.from_numpy(golden["genppl_valid"]))


def test_without_an_eos_all_predicted_tokens_count() -> None:
    assert counted_tokens(torch.tensor([3, 3, 3]), None).tolist() == [True, True]
    assert counted_tokens(torch.tensor([3]), 3).tolist() == counted_tokens(torch.tensor([]), 3).tolist() == []


class Bigrams:
    """A scorer of letters (0 is eos) that sees one token back: windows and batches cannot matter to it."""

    name, dtype, eos_id = "bigrams", "float64", 0

    def __init__(self, context: int | None = None) -> None:
        self.context = context
        self.nll = torch.rand(27, 27, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.widths: list[tuple[int, int]] = []

    def encode(self, texts: Sequence[str], max_tokens: int | None) -> list[list[int]]:
        return [[ord(letter) - ord("`") for letter in text][:max_tokens] for text in texts]

    def token_nll(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        assert torch.equal(attention_mask, attention_mask.sort(-1, descending=True).values)
        self.widths.append(tuple(ids.shape))
        return self.nll[ids[:, :-1], ids[:, 1:]] + 1e3 * ~attention_mask[:, 1:]  # padding would be seen

    def exact(self, ids: list[int]) -> float:
        pairs = [(a, b) for i, (a, b) in enumerate(itertools.pairwise(ids)) if b or 0 not in ids[: i + 1]]
        return sum(float(self.nll[pair]) for pair in pairs)


# In Bigrams a backtick is the eos.
TEXTS = ["hello", "", "a", "`ab`c`", "ab`c`d``", "`", "``", "zz", "thequickbrownfox"]


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
@pytest.mark.parametrize("context", [None, 2, 3, 5, 16])
def test_every_text_counts_whatever_the_batches_and_windows(batch_size: int, context: int | None) -> None:
    scorer = Bigrams(context)
    scores = score_texts(TEXTS, scorer, batch_size=batch_size, max_tokens=None)
    encoded = scorer.encode(TEXTS, None)
    assert scores.nll.tolist() == pytest.approx([scorer.exact(ids) for ids in encoded], rel=1e-12)
    assert scores.tokens.tolist() == [4, 0, 0, 3, 4, 0, 0, 1, 15]
    assert scores.perplexity == pytest.approx(math.exp(scores.nll.sum() / 27))
    assert all(rows <= batch_size and width <= (context or 16) for rows, width in scorer.widths)


def test_texts_are_cut_where_that_is_asked_for() -> None:
    scorer = Bigrams(context=3)
    cut = score_texts(TEXTS, scorer, batch_size=4, max_tokens=4)
    short = score_texts([text[:4] for text in TEXTS], scorer, batch_size=4, max_tokens=None)
    assert torch.equal(cut.nll, short.nll) and torch.equal(cut.tokens, short.tokens)
    assert cut.tokens.tolist() == [3, 0, 0, 2, 3, 0, 0, 1, 3]


def test_nothing_to_score_is_none() -> None:
    for texts in ([], ["", "a", "``"]):
        scores = score_texts(texts, Bigrams(), batch_size=8, max_tokens=None)
        assert scores.perplexity is None and scores.bootstrap(0) is None
    assert perplexity(0.0, 0.0) is None and math.isfinite(perplexity(1e9, 1.0))


def test_bootstrap_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Over 200 sets: 95 % intervals cover in 0.88..0.99 (binomial noise 1.5 %, small sets cover less)."""
    generator = torch.Generator().manual_seed(2)
    covered, errors, estimates = 0, [], []
    for seed in range(200):
        tokens = torch.randint(5, 50, (100,), generator=generator).double()
        nll = tokens * (3 + 0.5 * torch.randn(100, generator=generator, dtype=torch.float64))
        scores = TextScores(nll, tokens)
        stderr, low, high = scores.bootstrap(seed, replicates=200)
        assert low < scores.perplexity < high
        covered += low < math.exp(3) < high
        errors.append(stderr)
        estimates.append(scores.perplexity)
    assert 0.88 <= covered / 200 <= 0.99
    assert np.mean(errors) == pytest.approx(np.std(estimates), rel=0.2)  # 200 sets: about 5 % noise
    assert scores.bootstrap(3) == scores.bootstrap(3) != scores.bootstrap(4)
    assert TextScores(nll[:1], tokens[:1]).bootstrap(0) is None


def test_intervals_of_means_cover_as_often_as_they_say() -> None:
    """Over 200 sets of 50: as above. Their width is that of a normal distribution, 2 x 1.96 standard
    errors.
    """
    generator = torch.Generator().manual_seed(3)
    covered, widths = 0, []
    for seed in range(200):
        values = 2 + torch.randn(50, generator=generator)
        low, high = mean_interval(values, seed, replicates=200)
        assert low < values.mean() < high
        covered += low < 2 < high
        widths.append(high - low)
    assert 0.88 <= covered / 200 <= 0.99
    assert np.mean(widths) == pytest.approx(2 * 1.96 / 50**0.5, rel=0.08)
    assert mean_interval(values[:1], 0) is None
    assert mean_interval(torch.full((4,), 7), 0) == [7, 7]


def test_intervals_of_continuations_are_those_of_their_prefixes() -> None:
    """Five copies of a value tell nothing new: the interval is that of the 40 different values."""
    values = torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    copies = values.repeat_interleave(5)
    assert mean_interval(copies, 3, group=5) == pytest.approx(mean_interval(values, 3))
    low, high = mean_interval(copies, 3)
    assert high - low < 0.6 * (mean_interval(values, 3)[1] - mean_interval(values, 3)[0])
    ones, nll = torch.ones(40, dtype=torch.float64), values.exp()
    alone, grouped = TextScores(nll, ones), TextScores(nll.repeat_interleave(5), ones.repeat_interleave(5))
    assert grouped.bootstrap(3, group=5) == pytest.approx(alone.bootstrap(3))
    assert TextScores(nll[:5], ones[:5]).bootstrap(3, group=5) is None
