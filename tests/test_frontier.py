"""mode=frontier: points that depend on their settings alone, interpolation on known curves, the report."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_scoring import SMALL, gpt2, save

from config.cli import compose_config
from errors import UserError
from reporting.entropy_curves import at_entropy, by_entropy, make_curves, match, shared_entropy
from reporting.find import find
from tasks import MODES
from tasks.frontier import PointStore
from tasks.frontier_report import write_report

pytestmark = pytest.mark.slow

TIMES = {"total_generation_times"}


def point(
    entropy: float, ppl: float | None, *, steps: int = 8, temperature: float = 1.0, **more: Any
) -> dict:
    settings = {"name": "m", "predictor": "p", "seed": 1, "steps": steps, "temperature": temperature, **more}
    interval = None if ppl is None else [ppl / 2, ppl * 2]
    return {
        "key": str((entropy, ppl, settings)),
        "steps": steps,
        "temperature": temperature,
        "nfe": float(steps),
        "entropy": entropy,
        "generative_ppl": ppl,
        "generative_ppl_interval": interval,
        "settings": settings,
    }


# Interpolation -------------------------------------------------------------------------------------


def test_log_perplexity_is_linear_in_entropy() -> None:
    """On log ppl = 3 + 2 (H - 5) the reading is exact everywhere, and so are the ends of the intervals."""
    curve = by_entropy([point(h, math.exp(3 + 2 * (h - 5))) for h in (5.0, 4.0, 4.6, 5.5)])
    for entropy in (4.0, 4.1, 4.6, 4.99, 5.0, 5.5):
        found = at_entropy(curve, entropy)
        assert found.ppl == pytest.approx(math.exp(3 + 2 * (entropy - 5)), rel=1e-12)
        assert (found.low, found.high) == pytest.approx((found.ppl / 2, found.ppl * 2), rel=1e-12)
    assert at_entropy(curve, 3.99) is None and at_entropy(curve, 5.51) is None, "no extrapolation"


def test_kinks_ties_and_points_without_a_perplexity() -> None:
    curve = by_entropy([point(2.0, 10.0), point(1.0, 100.0), point(1.5, None), point(2.0, 20.0)])
    assert at_entropy(curve, 1.5).ppl == pytest.approx(math.sqrt(1000))
    assert at_entropy(curve, 2.0).ppl == pytest.approx(10.0), "of a tie the first"
    assert at_entropy(by_entropy([point(1.0, 7.0)]), 1.0).ppl == pytest.approx(7.0)
    assert at_entropy([], 1.0) is None


def test_shared_entropy() -> None:
    curves = [[point(1, 1), point(3, 1)], [point(2, 1), point(5, 1)]]
    assert shared_entropy(curves) == 2.5
    assert shared_entropy([*curves, [point(4, 1), point(5, 1)]]) is None
    assert shared_entropy([]) is None


def test_series_are_called_by_what_sets_them_apart() -> None:
    points = [
        point(h, 10.0 * h, steps=steps, temperature=h, name=name, predictor=predictor, seed=seed)
        for steps in (4, 8)
        for h in (0.9, 1.0)
        for name, predictor, seed in [("a", "p", 1), ("b", "p", 1), ("b", "q", 1), ("b", "q", 2)]
    ]
    curves = make_curves(points)
    assert list(curves) == ["a, p, seed=1", "b, p, seed=1", "b, q, seed=1", "b, q, seed=2"]
    assert all(list(by_steps) == [4, 8] for by_steps in curves.values())
    assert list(make_curves(points[:1])) == ["a"]
    retrained = [
        point(1.0, 10.0, name=name, weights=weights)
        for name, weights in [("a", "1" * 9), ("b", "2"), ("b", "3")]
    ]
    assert list(make_curves(retrained)) == ["a", "b, weights 2", "b, weights 3"]
    matched = match(curves, None)
    assert matched[4][0] == pytest.approx(0.95)
    assert match(curves, 2.0)[8] == (2.0, dict.fromkeys(curves))


def test_the_report_is_a_table_and_a_picture(tmp_path: Path) -> None:
    points = [
        point(4 + t + 0.1 * k, 100 * math.exp(t) / s, steps=s, temperature=t, name=name)
        for s in (4, 8)
        for t in (0.8, 0.9, 1.0)
        for k, name in enumerate("ab")
    ]
    rows = write_report(points, tmp_path, None)
    assert json.loads((tmp_path / "matched.json").read_text()) == rows and len(rows) == 4
    text = (tmp_path / "table.md").read_text()
    # At 4.95, the middle of 4.9 to 5.0, series a has the temperature 0.95 and series b 0.85.
    cells = [
        f"{ppl:.2f} ({ppl / 2:.2f} to {ppl * 2:.2f})" for ppl in (25 * math.exp(t) for t in (0.95, 0.85))
    ]
    assert f"| 4 | 4.950 | {cells[0]} | {cells[1]} |" in text
    assert text.count("\n| a |") == text.count("\n| b |") == 6
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    write_report([point(1.0, None)], tmp_path / "none", None)
    assert not (tmp_path / "none" / "figure.png").exists()


# The mode ------------------------------------------------------------------------------------------


def run(folder: Path, *overrides: str) -> dict[str, Any]:
    places = (f"data.cache_dir={folder}/cache", f"checkpointing.save_dir={folder}/run")
    cfg = compose_config([*SMALL, *places, *overrides], warn=False)
    return MODES[cfg.mode](cfg)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An MDLM, an IMDM of another width, and a judge."""
    root, quick = tmp_path_factory.mktemp("frontier"), ("eval.generate_samples=False", "optim.lr=1e-2")
    run(root / "mdlm", "algo=mdlm", *quick)
    run(root / "imdm", "algo=imdm", "model.hidden_size=16", *quick)
    paths = {name: str(root / name / "run" / "checkpoints" / "last.ckpt") for name in ("mdlm", "imdm")}
    return {**paths, "judge": save(root / "judge", gpt2())}


def frontier(world: dict[str, str], folder: Path, *overrides: str) -> dict[str, Any]:
    judge = f"eval.gen_ppl_eval_model_name_or_path={world['judge']}"
    words = ("mode=frontier", "eval.compute_generative_perplexity=True", judge, f"frontier.path={folder}")
    return run(folder.parent, *words, *overrides)


def both(world: dict[str, str]) -> str:
    return f"frontier.checkpoints=[a:{world['mdlm']},b:{world['imdm']}]"


def values(points: list[dict[str, Any]]) -> dict[str, Any]:
    return {p["key"]: {name: v for name, v in p.items() if name not in TIMES} for p in points}


def test_points_are_those_of_their_settings_in_any_order_and_company(
    world: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = frontier(world, tmp_path / "whole", both(world), "frontier.temperatures=0.7,1.0")["points"]
    assert len(whole) == 2 * 2 * 2  # checkpoints, steps 2 and 4, temperatures
    parts = tmp_path / "parts"
    frontier(world, parts, f"frontier.checkpoints=b:{world['imdm']}", "frontier.steps=4", "algo=imdm")
    frontier(world, parts, both(world), "frontier.steps=4,2", "frontier.temperatures=1.0,0.7")
    lines = [json.loads(line) for line in (parts / "points.jsonl").read_text().splitlines()]
    found = values(lines)
    assert found.keys() > values(whole).keys() and list(found) != list(values(whole))
    assert {key: found[key] for key in values(whole)} == values(whole)

    monkeypatch.setattr(sys.modules["tasks.frontier"], "sample_run", lambda *a: pytest.fail("sampled again"))
    monkeypatch.setattr(
        sys.modules["tasks.frontier"], "GenerativePerplexity", lambda *a: pytest.fail("loaded")
    )
    again = frontier(world, parts, both(world), "frontier.temperatures=0.7,1.0")
    assert again["points"] == lines


def test_a_point_is_what_sample_eval_says(world: dict[str, str], tmp_path: Path) -> None:
    judge = f"eval.gen_ppl_eval_model_name_or_path={world['judge']}"
    result = frontier(
        world, tmp_path / "f", f"frontier.checkpoints={world['mdlm']}", "frontier.keep_samples=True",
        "frontier.temperatures=0.7", "frontier.predictors=ancestral,first_hitting", "frontier.steps=2,3",
    )  # fmt: skip
    assert [(p["predictor"], p["steps"]) for p in result["points"]] == [
        ("ancestral", 2), ("ancestral", 3), ("first_hitting", 32)
    ]  # fmt: skip
    assert {p["name"] for p in result["points"]} == {"run"}, "the run folder's name"
    for p, predictor in ((result["points"][1], "ancestral"), (result["points"][2], "first_hitting")):
        expected = run(
            tmp_path, "mode=sample_eval", "eval.compute_generative_perplexity=True", judge,
            "sampling.steps=3", f"sampling.predictor={predictor}", "sampling.temperature=0.7",
            f"eval.checkpoint_path={world['mdlm']}", f"eval.generated_samples_path={tmp_path}/s.json",
        )  # fmt: skip
        kept = json.loads((tmp_path / "f" / "samples" / f"{p['key']}.json").read_text())
        for name, value in expected.items():
            if name not in TIMES:
                assert kept[name] == value and (name == "generated_seqs" or p[name] == value), name


def test_a_training_that_went_on_makes_new_points(world: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "moving.ckpt"
    shutil.copy(world["mdlm"], path)
    one = ("frontier.steps=2", "frontier.temperatures=1.0", f"frontier.checkpoints=m:{path}")
    before = frontier(world, tmp_path / "f", *one)["points"]
    stored = torch.load(path, weights_only=True)
    stored["ema"]["shadow_params"] = [average * 1.5 for average in stored["ema"]["shadow_params"]]
    torch.save(stored, path)
    after = frontier(world, tmp_path / "f", *one)["points"]
    assert len(after) == 2 and after[0] == before[0] and after[1]["key"] != after[0]["key"]
    assert len(make_curves(after)) == 2


def test_mistakes_are_one_line(world: dict[str, str], tmp_path: Path) -> None:
    mdlm = f"frontier.checkpoints={world['mdlm']}"
    for words, message in [
        (("frontier.checkpoints=''",), "frontier.checkpoints='': mode=frontier evaluates checkpoints"),
        ((mdlm, "frontier.temperatures=1,0"), "frontier.temperatures=1,0: not temperatures"),
        ((mdlm, "frontier.steps=x"), "frontier.steps=x: not a number of steps"),
        ((mdlm, "frontier.predictors=ancestor"), "sampling.predictor=ancestor: no such sampler"),
        (
            (mdlm, "frontier.predictors=first_hitting", "sampling.noise_removal=greedy"),
            "sampling.noise_removal=greedy",
        ),
        ((mdlm, "eval.compute_generative_perplexity=False"), "eval.compute_generative_perplexity=False"),
        (("frontier.checkpoints=nowhere.ckpt",), "frontier.checkpoints=nowhere.ckpt: no such file"),
        (
            (f"frontier.checkpoints=a:{world['mdlm']},a:{world['imdm']}",),
            f"frontier.checkpoints=a:{world['imdm']}: both",
        ),
    ]:
        with pytest.raises(ValueError) as caught:
            frontier(world, tmp_path / "f", *words)
        assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "points.jsonl").write_text('{"key": 1')
    with pytest.raises(UserError, match="line 1 of points.jsonl is no point"):
        frontier(world, tmp_path / "f", mdlm)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("{", "it is no JSON"),
        ("[]", "it is no object"),
        ({"settings": "x"}, "settings is no object"),
        ({"settings": {"predictor": "p"}}, "settings.name is no text"),
        ({"steps": "8"}, "steps is no number"),
        ({"steps": {"a": 1}}, "steps is no number"),
        ({"temperature": None}, "temperature is no number"),
        ({"entropy": math.nan}, "entropy is no number"),
        ({"nfe": [1]}, "nfe is no number"),
        ({"key": 7}, "key is no text"),
        ({"generative_ppl": -1.0}, "generative_ppl is no number above 0"),
        (
            {"generative_ppl_interval": [1.0]},
            "generative_ppl_interval is no pair of numbers above 0, the smaller first",
        ),
    ],
)
def test_lines_of_other_shape_are_one_line(tmp_path: Path, change: Any, problem: str) -> None:
    good = point(1.0, 2.0)
    line = change if isinstance(change, str) else json.dumps(good | change)
    (tmp_path / "points.jsonl").write_text(f"{json.dumps(good)}\n{line}\n")
    with pytest.raises(UserError) as caught:
        PointStore(tmp_path).read()
    message = f"line 2 of points.jsonl is no point: {problem}; remove that line, or give another folder"
    assert str(caught.value) == f"frontier.path={tmp_path}: {message}"


@pytest.mark.parametrize("change", ["{", "[]", {"settings": {}}, {"steps": "8"}, {"generative_ppl": -1.0}])
def test_a_report_of_lines_of_other_shape_is_one_line(tmp_path: Path, change: Any) -> None:
    good, path = point(1.0, 2.0), tmp_path / "points.jsonl"
    line = change if isinstance(change, str) else json.dumps(good | change)
    path.write_text(f"{json.dumps(good)}\n{line}\n")
    with pytest.raises(UserError, match="points.jsonl"):
        find([str(path)])


def test_a_point_keeps_line_separators_and_no_nan(tmp_path: Path) -> None:
    """What a line is is said by line feeds alone, and a number that is not finite is no JSON."""
    store = PointStore(tmp_path)
    store.add(point(1.0, 2.0, note="a\u2028b") | {"entropy_stderr": math.nan})
    store.add(point(1.5, 2.0))
    first, second = store.read()
    assert first["settings"]["note"] == "a\u2028b" and first["entropy_stderr"] is None
    assert first["not_finite"] == {"entropy_stderr": "nan"} and second["entropy"] == 1.5
    assert "NaN" not in store.path.read_text() and find([str(store.path)]).frontiers[0].points == [
        first,
        second,
    ]


def test_points_are_kept_where_files_cannot_be_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    store = PointStore(tmp_path)
    store.add(point(1.0, 2.0))
    assert len(store.read()) == 1 and "is on a file system without locks" in caplog.text


@pytest.mark.parametrize("missing", ["model", "noise", "training", "data", "algo", "name", "unknown"])
def test_a_checkpoint_with_half_a_configuration(world: dict[str, str], tmp_path: Path, missing: str) -> None:
    stored = torch.load(world["mdlm"], weights_only=True)
    if missing == "name":
        del stored["config"]["algo"]["name"]
    elif missing == "unknown":
        stored["config"]["algo"]["name"] = "alien"
    else:
        del stored["config"][missing]
    torch.save(stored, tmp_path / "half.ckpt")
    with pytest.raises(UserError) as caught:
        frontier(world, tmp_path / "f", f"frontier.checkpoints={tmp_path}/half.ckpt")
    what = {"name": "has no algo.name", "unknown": "an algorithm 'alien', which is not known here"}.get(
        missing, f"no {missing}."
    )
    assert str(caught.value).startswith(f"frontier.checkpoints={tmp_path}/half.ckpt: ")
    assert what in str(caught.value) and "; " in str(caught.value)
