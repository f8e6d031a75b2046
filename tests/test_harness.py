"""What lm-eval asks, answered by tiny models; lm-eval itself where it is installed."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest

import eval_harness
from api import Model
from errors import UserError
from eval_harness import Answers, accuracy_intervals, interval
from tests import test_ar
from tests.test_algo import build

HAS_LM_EVAL = importlib.util.find_spec("lm_eval") is not None


def answers(algo: str, **settings: Any) -> Answers:
    module = test_ar.build() if algo == "ar" else build(f"algo={algo}")
    return Answers(Model(module), **settings)


@pytest.mark.parametrize("algo", ["ar", "mdlm", "imdm", "sedd", "duo_base"])
def test_choices_of_a_document_have_one_way(algo: str) -> None:
    asked = answers(algo, draws=8, steps=4)
    pairs = [("1 2 ", "0 1"), ("1 2 ", "2"), ("", "2 2")]
    found = asked.document("task", 3, pairs)
    assert found == answers(algo, draws=8).document("task", 3, pairs), "a function of the document"
    kinds = {one.kind for one, _ in asked.likelihoods["task", 3]}
    assert kinds == {{"ar": "exact", "mdlm": "any-order", "sedd": "any-order"}.get(algo, "bound")}
    assert all(-100 < value < 0 for value, _ in found)
    assert asked.rolling("0 1 2", 0) < 0 and asked.report()["likelihoods"]
    text = asked.generate("1 2", [], 3)
    assert asked.nfe[0] >= 1 and text == answers(algo, steps=4).generate("1 2", [], 3)
    if text:
        assert answers(algo, steps=4).generate("1 2", [text[:1]], 3) == ""


def test_greedy_is_what_greedy_decoding_writes() -> None:
    for algo in ("ar", "mdlm"):
        asked, symbols = answers(algo), ["0", "1", "2"]
        greedy = [
            pair
            for pair in ((a, b) for a in symbols for b in symbols)
            if asked.is_greedy(*asked.row("1", f" {pair[0]} {pair[1]}"))
        ]
        first = [a for a in symbols if asked.is_greedy(*asked.row("1", f" {a}"))]
        assert len(greedy) <= 1 and len(first) <= 1 and all(pair[0] in first for pair in greedy)
        if algo == "ar":
            nats = {a: asked.model.nll([a], given="1")[0] for a in symbols}
            assert not first or min(nats, key=nats.__getitem__) == first[0]


def test_long_contexts_are_cut_on_the_left() -> None:
    asked = answers("mdlm")
    length = asked.module.config.model.length
    ids, is_open = asked.row("1 " * 3 * length, "2")
    assert len(ids) == length and int(is_open.sum()) == 1 and is_open[-1]
    with pytest.raises(UserError, match="is all there is"):
        asked.row("1", " 2" * 2 * length)


class FirstIsRight:
    """A task whose first choice is right."""

    def process_results(self, doc: object, results: list[tuple[float, bool]]) -> dict[str, float]:
        values = [value for value, _ in results]
        return {"acc": float(values[0] == max(values))}


def test_the_error_of_an_accuracy_has_that_of_the_draws() -> None:
    asked = answers("imdm", draws=8)
    documents = []
    for number in range(12):
        results = asked.document("own", number, [("1", " 2 0"), ("1", " 2 1")])
        acc = FirstIsRight().process_results(None, results)["acc"]
        documents.append({"doc_id": number, "doc": None, "metrics": ["acc"], "acc": acc})
    (found,) = accuracy_intervals({"own": documents}, asked, {"own": FirstIsRight()})["own"].values()
    assert found["stderr"] == pytest.approx(
        math.hypot(found["stderr_of_documents"], found["stderr_of_draws"])
    )
    low, high = found["interval"]
    assert 0 <= low <= found["value"] <= high <= 1 and found["documents"] == 12
    fixed = accuracy_intervals({"own": documents}, asked, {})["own"]["acc"]
    assert fixed["stderr_of_draws"] == 0.0
    spread = eval_harness._draw_spread(documents, asked, _Sharp(), "own")
    assert spread["value"] > 0


class _Sharp:
    def process_results(self, doc: object, results: list[tuple[float, bool]]) -> dict[str, float]:
        return {"value": results[0][0]}


def test_intervals_of_shares() -> None:
    assert interval(0.0, 0.0, 20)[0] == 0.0 < interval(0.0, 0.0, 20)[1] < 0.3
    low, high = interval(0.5, 0.05, 100)
    assert low == pytest.approx(0.5 - 0.0974, abs=3e-3) and high == pytest.approx(1 - low)
    assert interval(7.0, 1.0, 100)[0] < 7.0 - 1.9


@pytest.mark.skipif(HAS_LM_EVAL, reason="lm-eval is installed")
def test_without_lm_eval_one_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert eval_harness.main(["--model", "x.ckpt", "--tasks", "a"]) == 2
    assert "pip install lm-eval" in capsys.readouterr().err


@pytest.mark.skipif(not HAS_LM_EVAL, reason="lm-eval is not installed")
@pytest.mark.slow
def test_a_task_file_of_our_own(tmp_path: Path) -> None:
    asked = answers("mdlm", draws=8)
    rows = [{"question": "1 2", "choices": ["0 1", "2 0"], "answer": k % 2} for k in range(6)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "own.yaml").write_text(
        "task: own_choice\ndataset_path: json\noutput_type: multiple_choice\ntest_split: test\n"
        f"dataset_kwargs:\n  data_files: {{test: {tmp_path}/q.jsonl}}\n"
        'doc_to_text: "{{question}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: "{{answer}}"\n'
        "metric_list:\n  - metric: acc\n"
    )
    words = ["--model", "x", "--tasks", "own_choice", "--include_path", str(tmp_path), "--draws", "8"]
    result = eval_harness.evaluate(asked.model, eval_harness._options(words))
    assert (
        result["intervals"]["own_choice"]["acc"]["value"]
        == 0.5
        == result["results"]["own_choice"]["acc,none"]
    )
    assert result["made_by"]["likelihoods"] == {"any-order": 12}
