"""Perplexity at equal cost: pooling, domination, and what is written."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from reporting.equal_cost import as_csv, as_latex, cost_points
from scripts import equal_cost


def run(nfe: float, ppl: float, entropy: float = 5.0, **more: Any) -> dict[str, Any]:
    return {"steps": int(nfe), "nfe": nfe, "generative_ppl": ppl, "entropy": entropy, **more}


def test_a_point_is_dominated_by_one_that_is_nowhere_worse() -> None:
    found = cost_points(
        [
            ("a", run(2, 50.0)),
            ("b", run(4, 60.0)),  # dearer and worse
            ("c", run(2, 70.0, entropy=5.2)),  # worse at a higher entropy
            ("d", run(1, 90.0)),  # cheaper
            ("e", run(4, 60.0, gen_ppl_scorer="another")),
            ("f", {"nfe": 2.0, "entropy": 5.0}),
        ]
    )
    assert [one.model for one in found] == ["a", "b", "c", "d", "e"], "without a perplexity there is no point"
    assert [one.dominated for one in found] == [False, True, False, False, False]
    twins = cost_points([("a", run(2, 50.0)), ("b", run(2, 50.0))])
    assert not any(one.dominated for one in twins)


def test_seeds_of_a_checkpoint_are_pooled() -> None:
    same = {"checkpoint": "x.ckpt", "total_generation_times": 6.0, "num_samples": 3}
    (one,) = cost_points(
        [(f"seed{k}", run(2, ppl, seed=k, **same)) for k, ppl in enumerate((40.0, 50.0, 60.0))]
    )
    assert one.runs == 3 and one.ppl == pytest.approx((40 * 50 * 60) ** (1 / 3)) and one.seconds == 2.0
    logs = [math.log(p) for p in (40.0, 50.0, 60.0)]
    mean = sum(logs) / 3
    spread = math.sqrt(sum((x - mean) ** 2 for x in logs) / 2 / 3)
    assert math.log(one.high) == pytest.approx(mean + 4.303 * spread)
    (alone,) = cost_points([("a", run(2, 40.0, generative_ppl_interval=[39.0, 41.0]))])
    assert (alone.low, alone.high, alone.seconds) == (39.0, 41.0, None)


def test_the_command_writes_figure_and_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        {
            **run(n, 100.0 / n, predictor="a_b", total_generation_times=2.0 * n, num_samples=4),
            "generated_seqs": ["t"],
        }
        for n in (1, 2, 4)
    ]
    (tmp_path / "samples.json").write_text(json.dumps({"runs": runs}))
    assert equal_cost.main([str(tmp_path / "samples.json"), "--out", str(tmp_path / "cost")]) == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "cost.csv").read_text())))
    assert [float(row["generative_ppl"]) for row in rows] == [100.0, 50.0, 25.0]
    assert [row["dominated"] for row in rows] == ["False"] * 3 and rows[1]["seconds_per_text"] == "1.0"
    assert r"a\_b & 4 & 2 & 25.0 & 5.00 & 1 \\" in (tmp_path / "cost.tex").read_text()
    assert (tmp_path / "cost.pdf").read_bytes()[:4] == b"%PDF" and (
        tmp_path / "cost.png"
    ).stat().st_size > 5000
    points = cost_points([("a", run(2, 50.0)), ("b", run(4, 60.0))])
    assert r"\textcolor{gray}{b}" in as_latex(points) and as_csv(points).count("\n") == 3
    (tmp_path / "samples.json").write_text(json.dumps({"generated_seqs": ["t"]}))
    assert equal_cost.main([str(tmp_path / "samples.json"), "--out", str(tmp_path / "x")]) == 2
    assert "nothing there has a cost" in capsys.readouterr().err
