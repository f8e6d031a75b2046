"""The numbers of the protocol: estimates that cover, n-gram models that sum to 1, MMD, files."""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from data.tokenizers import get_tokenizer
from errors import UserError
from evaluation import estimates
from evaluation.controls import CONTROLS, make_controls, unit_entropy
from evaluation.estimates import Estimate, differ
from evaluation.features import HashedNGrams
from evaluation.mmd import bandwidth, mmd
from evaluation.ngrams import NGrams, grams
from evaluation.samples import read_samples
from evaluation.scores import METRICS, Reference, length_statistics, text_metrics, verdict
from evaluation.units import joined, plain, units

TRIALS = 400
# Of 400 trials at 95 % a binomial count is inside with probability 0.9998.
MOST_OFF = 4 * math.sqrt(0.95 * 0.05 / TRIALS)


def covered(found: list[Estimate], truth: float) -> float:
    return float(np.mean([one.low <= truth <= one.high for one in found]))


def test_students_quantiles() -> None:
    for degrees, expected in ((4, 2.776445), (9, 2.262157), (30, 2.042272), (1000, 1.962339)):
        assert estimates.student(degrees) == pytest.approx(expected, rel=3e-3)


def test_the_interval_of_a_ratio_covers() -> None:
    """Texts of random lengths whose nats depend on the length: E[nats] / E[tokens] is known."""
    draws, found = np.random.default_rng(0), []
    for _ in range(TRIALS):
        tokens = draws.integers(5, 20, size=60)
        nats = tokens * 2.0 + draws.normal(size=60) * tokens**0.5 + 0.1 * tokens**2
        found.append(estimates.ratio(nats, tokens))
    truth = 2.0 + 0.1 * (np.arange(5, 20) ** 2).mean() / np.arange(5, 20).mean()
    assert abs(covered(found, truth) - 0.95) < MOST_OFF
    shown = estimates.ratio(nats, tokens, math.exp)
    assert shown.low == pytest.approx(math.exp(found[-1].low)) and shown.value > shown.low


def test_a_u_statistic_is_its_definition_and_covers() -> None:
    draws, found = np.random.default_rng(1), []
    for _ in range(TRIALS):
        values = draws.random(size=40)
        matrix = np.abs(values[:, None] - values)  # Gini's mean difference, 1/3 of a uniform number
        found.append(estimates.u_statistic(matrix.sum(1)))
    assert found[-1].value == pytest.approx(matrix[~np.eye(40, dtype=bool)].mean())
    assert abs(covered(found, 1 / 3) - 0.95) < MOST_OFF


def test_differences_are_seen_beyond_chance_alone() -> None:
    assert differ(Estimate(1.0, 0.1), Estimate(1.2, 0.1)) == 0
    assert differ(Estimate(1.0, 0.1), Estimate(1.4, 0.1)) == -1
    assert differ(Estimate(1.4, 0.1), Estimate(1.0, 0.1)) == 1
    assert differ(Estimate(9.0), Estimate(1.0, 0.1)) == 0, "without an error nothing is known"


def test_units_are_the_text_again() -> None:
    text = "<|endoftext|>Two  words,\nand don't [PAD] stop."
    assert joined(units(text, "words")) == plain(text) == "Two words, and don't stop."
    assert units("a b", "characters") == ["a", " ", "b"] and units("one two three", "words", 2) == [
        "one",
        " two",
    ]


def test_ngram_probabilities_sum_to_one_and_are_those_of_the_samples() -> None:
    source = [list("abab"), list("abcab"), list("bca")]
    model = NGrams(source, 3)
    for context in product(["a", "b", "\0", "z"], repeat=2):
        total = sum(model.prob(unit, context) for unit in (*model.vocabulary, "?"))
        assert total == pytest.approx(1)
    assert model.nll(["a"]) == pytest.approx(-math.log(model.prob("a", ["\0", "\0"])))
    counts: dict[str, int] = {}
    draws = np.random.default_rng(0)
    for _ in range(4000):
        (unit,) = model.sample(1, draws)
        counts[unit] = counts.get(unit, 0) + 1
    assert counts.keys() == {"a", "b"} and counts["a"] / 4000 == pytest.approx(2 / 3, abs=0.03)
    sharp = [model.sample(1, draws, temperature=0.5)[0] for _ in range(4000)]
    assert sharp.count("a") / 4000 == pytest.approx(0.8, abs=0.03), "4 : 1"


def test_mmd_of_equal_distributions_is_no_news_and_of_different_ones_is() -> None:
    draws = np.random.default_rng(0)
    sets = draws.normal(size=(60, 2, 30, 3))
    width = bandwidth(sets[0, 0])
    same = [mmd(one, other, width, seed, permutations=99) for seed, (one, other) in enumerate(sets)]
    assert 0 <= np.mean([found.p_value <= 0.1 for found in same]) <= 0.25, "6 of 60 are expected"
    assert abs(np.mean([found.squared.value for found in same])) < 0.01, "unbiased"
    moved = mmd(sets[0, 0], sets[0, 1] + 1.0, width, 0)
    assert moved.p_value == 1 / 500 and moved.squared.low > 0
    with pytest.raises(ValueError, match="equal numbers"):
        mmd(sets[0, 0], sets[0, 1][:20], width, 0)


def test_mmd_is_the_definition() -> None:
    draws = np.random.default_rng(3)
    x, y = draws.normal(size=(2, 5, 4))
    kernel = lambda a, b: math.exp(-((a - b) ** 2).sum() / (2 * 1.5**2))  # noqa: E731
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    expected = np.mean([kernel(x[i], x[j]) + kernel(y[i], y[j]) - 2 * kernel(x[i], y[j]) for i, j in pairs])
    assert mmd(x, y, 1.5, 0).squared.value == pytest.approx(expected)


def texts(number: int, seed: int, words: int = 60) -> list[str]:
    """A chain of 80 words with Zipf's frequencies, in which each word has a likely next one."""
    draws, found = np.random.default_rng(seed), []
    shares = 1 / np.arange(1, 81)
    for _ in range(number):
        text = [int(draws.choice(80, p=shares / shares.sum()))]
        while len(text) < words:
            fresh = int(draws.choice(80, p=shares / shares.sum()))
            text.append((text[-1] * 7 + 3) % 80 if draws.random() < 0.5 else fresh)
        found.append(" ".join(f"w{at}" for at in text))
    return found


def test_shared_grams_are_the_mean_over_pairs() -> None:
    three = [units(text, "words") for text in ("a b c d e", "a b c d f g", "h i j k")]
    found = text_metrics(three, Reference(three, three))["shared"]
    sets = [set(grams(text, 4)) for text in three]
    pairs = [(0, 1), (0, 2), (1, 2)]
    each = [len(sets[i] & sets[j]) * (1 / len(sets[i]) + 1 / len(sets[j])) / 2 for i, j in pairs]
    assert found.value == pytest.approx(np.mean(each)) and found.value > 0


def test_every_control_is_caught_by_the_metric_that_it_is_made_for() -> None:
    """Each control by the metrics that its construction says, at 40 texts; human texts by few."""
    human, source, second = texts(40, 0), texts(80, 1), texts(40, 2)
    in_units = lambda some: [units(text, "words") for text in some]  # noqa: E731
    reference = Reference(in_units(human), in_units(source))
    featurizer = HashedNGrams("words")
    features = featurizer(human)
    width = bandwidth(features)

    def row(some: list[str]) -> dict[str, object]:
        distance = mmd(features, featurizer(some), width, 0, permutations=99)
        metrics = {name: one.record() for name, one in text_metrics(in_units(some), reference).items()}
        metrics["mmd"] = distance.squared.record()
        return {"metrics": metrics, "mmd_p_value": distance.p_value}

    base = row(second)
    made = make_controls(in_units(source), [60] * 40, seed=1)
    assert made.keys() == CONTROLS.keys() and made == make_controls(in_units(source), [60] * 40, seed=1)
    rows = {name: row(some) for name, some in made.items()}
    caught = {name: {m for m in METRICS if verdict(m, one, base) == "caught"} for name, one in rows.items()}
    for name, metric in (
        ("unigram", "ngram_nll"),
        ("unigram", "mmd"),
        ("shuffled", "ngram_nll"),
        ("copies", "copied"),
        ("one text", "shared"),
        ("one text", "reverse_ngram_nll"),
        ("looped", "repeated"),
        ("listed", "distinct_2"),
        ("listed", "mmd"),
        ("tempered trigram", "copied"),
    ):
        assert metric in caught[name], (name, metric)
    assert "entropy" not in caught["shuffled"] | caught["copies"], "it does not see order"
    again = row(texts(40, 3))
    assert sum(verdict(m, again, base) == "caught" for m in METRICS) <= 1, "human texts are none"


def test_lengths_and_special_tokens() -> None:
    found = length_statistics(["<|endoftext|>one two", "", "one", "one"], "words")
    assert found["special_tokens_per_text"] == {"<|endoftext|>": 0.25}
    assert (found["mean_units"], found["empty"], found["duplicates"]) == (1.0, 1, 1)
    assert unit_entropy(["a", "a", "b", "b"]) == pytest.approx(math.log(2))


def test_files_of_every_format(tmp_path: Path) -> None:
    tokenizer = get_tokenizer("text8")
    ids = np.array(tokenizer(["one ", "two "], add_special_tokens=False)["input_ids"])
    np.save(tmp_path / "ids.npy", ids)
    (tmp_path / "a.txt").write_text("one\r\n\ntwo\u2028still two\n")
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n"two"\n\n{"completion": "three"}\n')
    (tmp_path / "c.json").write_text('["one", {"sample": "two"}]')
    runs = [{"steps": n, "nfe": 1.0 * n, "generated_seqs": ["one"]} for n in (1, 4)]
    (tmp_path / "d.json").write_text(json.dumps({"runs": runs}))

    def read(name: str) -> list:
        settings = {"key": "judge.files", "tokenizer": lambda: tokenizer, "decoding": "raw"}
        return read_samples(str(tmp_path / name), None, **settings)

    assert read("a.txt")[0].texts == ["one", "two\u2028still two"]
    assert read("b.jsonl")[0].texts == ["one", "two", "three"] and read("c.json")[0].texts == ["one", "two"]
    assert [(one.name, one.about["nfe"]) for one in read("d.json")] == [
        ("d, 1 step", 1.0),
        ("d, 4 steps", 4.0),
    ]
    (array,) = read("ids.npy")
    assert array.texts == ["one ", "two "] and array.about["retokenised_alike"] == 1.0
    np.save(tmp_path / "ids.npy", ids + 1000)
    (tmp_path / "e.json").write_text("[1]")
    (tmp_path / "f.txt").write_text("\n")
    for name, problem in (
        ("ids.npy", "has ids from"),
        ("e.json", "entry 1 is no text"),
        ("f.txt", "holds no text"),
        ("none.txt", "no such file"),
        ("g.csv", "is no file of samples"),
    ):
        with pytest.raises(UserError, match=problem):
            read(name)
