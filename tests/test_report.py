"""scripts/report.py on toy results: numbers as in the files, texts escaped, mistakes in one line."""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.util
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from reporting import blocks
from reporting.blocks import Chart, Point, Section, Series
from reporting.find import Measured
from reporting.page import page
from reporting.sampled import pivoted
from reporting.svg import draw, ticks

ROOT = Path(__file__).resolve().parent.parent
HOSTILE = [
    "<script>alert('1')</script> & <b>bold</b>",
    '</script><img src=x onerror="alert(2)">',
    "a | pipe, a `tick`,\nand a new line  ",
]
VOID = {"meta", "input", "br", "img", "link"}

spec = importlib.util.spec_from_file_location("report", ROOT / "scripts" / "report.py")
report = importlib.util.module_from_spec(spec)
spec.loader.exec_module(report)


class Page(HTMLParser):
    """Tags must balance; collects cells with their titles, texts of samples, scripts and all attributes."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.exact: list[float] = []
        self.samples: list[str] = []
        self.scripts: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.svg_titles: list[str] = []
        self._into: list[str] | None = None
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        places = {"td": self.rows and self.rows[-1], "th": self.rows and self.rows[-1]}
        places |= {"script": self.scripts, "title": self.svg_titles if "svg" in self.open else None}
        if tag == "p" and found.get("class") == "sample":
            places["p"] = self.samples
        if tag in places and places[tag] is not None:
            self._into = places[tag]
            self._into.append("")
        if tag == "td" and found.get("title") is not None:
            self.exact.append(float(found["title"]))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes {self.open[-3:]}"
        if tag in ("td", "th", "script", "title", "p"):
            self._into = None

    def handle_data(self, data: str) -> None:
        if self._into is not None:
            self._into[-1] += data


def sample_run(steps: int, ppl: float, **more: Any) -> dict[str, Any]:
    return {
        "steps": steps, "predictor": "ancestral_cache", "generative_ppl": ppl, "entropy": 2.5 + ppl / 1e3,
        "entropy_stderr": 0.0125, "nfe": steps * 0.97, "total_generation_times": 0.25, "num_samples": 3,
        "length": 4, "temperature": 1.0, "checkpoint": "elsewhere/last.ckpt",
        "generative_ppl_interval": [ppl * 0.9, ppl * 1.1],
        "gen_ppl_scorer": "runs/judge/checkpoints/last.ckpt", **more,
        "generated_seqs": [f"{text} {steps}" for text in HOSTILE],
    }  # fmt: skip


WAYS = {
    "mask_id": 9,
    "pieces": {"0": "</script>", "1": " <b>", "2": "\n", "3": "&"},
    "runs": [
        {"steps": 4, "predictor": "ancestral_cache", "num_steps": 4, "samples": [
            {"start": [9, 3, 9, 9], "changes": [[1, 0.75, [0], [0], [2, 3]], [4, 0.0, [2, 3], [1, 2], []]]}]},
    ],
}  # fmt: skip
PPL = {"perplexity": 31.415926, "nll": 3.4473, "nll_stderr": 0.0123, "bpd": 4.97341, "bpd_stderr": 0.0177,
       "tokens": 12345, "nelbo": "count", "data": "pydoc<i>", "checkpoint": "x"}  # fmt: skip


def toy(folder: Path) -> Path:
    """A folder with two runs, evaluations of every kind, a frontier."""

    def write(name: str, content: Any) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))

    for name, factor in (("first", 1.0), ("second<i>", 0.5)):
        write(f"{name}/config.yaml", "algo: {name: imdm}\nmodel: {name: tiny}\n")
        write(
            f"{name}/metrics.csv",
            f"step,trainer/loss,val/bpd\n9,{4 * factor},\n19,{3 * factor},{2 * factor}\n",
        )
        runs = [sample_run(steps, 100.123456 * factor / steps) for steps in (1, 4, 16)]
        runs[1]["trajectories"] = "samples.trajectories.json"
        write(f"{name}/results/samples.json", {"runs": runs})
        write(f"{name}/results/samples.trajectories.json", WAYS)
        write(f"{name}/results/ppl.json", PPL | {"perplexity": PPL["perplexity"] * factor})
        write(f"{name}/samples/step20-T4.json", sample_run(4, 77777.0))  # results are there: not shown
    write("first/results/samples-mauve.json", {"runs": [{"mauve": 0.91, "mauve_std": 0.01, "steps": 4}]})
    write("first/results/zero.json", {"runs": [PPL | {"data": "ag"}], "failed": {"ptb": "gone"}})
    points = [
        {"key": f"{steps}{t}", "steps": steps, "temperature": t, "nfe": 4.0, "entropy": 2 + t,
         "generative_ppl": 50 * t, "generative_ppl_interval": [40 * t, 60 * t],
         "settings": {"name": "m", "predictor": "p", "steps": steps, "temperature": t}}
        for steps in (4, 16) for t in (0.8, 1.0)
    ]  # fmt: skip
    write("frontier/points.jsonl", "".join(json.dumps(point) + "\n" for point in points))
    row = {"steps": 4, "series": "m", "entropy": 2.9, "generative_ppl": 44.7, "generative_ppl_interval": None}
    write("frontier/matched.json", [row])
    write("frontier/samples/x.json", sample_run(4, 88888.0))
    write("first/checkpoints/not_this.json", sample_run(4, 99999.0))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page, str]:
    folder = tmp_path_factory.mktemp("report")
    toy(folder / "toy")
    assert report.main([str(folder / "toy"), "--out", str(folder / "out.html"), "--title", "<Toy>"]) == 0
    text = (folder / "out.html").read_text()
    return text, Page(text), (folder / "out.md").read_text()


def row_of(page: Page, *cells: str) -> list[str]:
    (found,) = [row for row in page.rows if [cell for cell in cells if cell in row] == list(cells)]
    return found


def test_numbers_are_those_of_the_files(made: tuple[str, Page, str]) -> None:
    _, page, _ = made
    ppl = 100.123456 / 4
    row = row_of(page, "first", "4", f"{ppl:.2f} ({ppl * 0.9:.2f} to {ppl * 1.1:.2f})")
    assert row == [
        "first",
        "ancestral_cache",
        "4",
        "3.9",
        row[4],
        f"{2.5 + ppl / 1e3:.3f} ± 0.013",
        "3",
        "0.2",
    ]
    for factor in (1, 0.5):
        for steps in (1, 4, 16):
            assert {100.123456 * factor / steps, steps * 0.97} <= set(page.exact)
        assert PPL["perplexity"] * factor in page.exact
    assert row_of(page, "second<i>", "4.9734 ± 0.0177")[:4] == [
        "second<i>",
        "pydoc<i>",
        "15.71",
        "4.9734 ± 0.0177",
    ]
    assert row_of(page, "first", "0.9100 ± 0.0100")[1] == "4"
    assert row_of(page, "ag") == ["ag", "31.42"]
    assert row_of(page, "4", "2.900", "44.70")
    assert row_of(page, "m", "16", "0.8", "40.00 (32.00 to 48.00)", "2.800")
    assert row_of(page, "first", "imdm", "tiny", "20", "3.0000", "2.0000")
    assert not {77777.0, 88888.0, 99999.0} & set(page.exact)


def test_texts_stay_texts(made: tuple[str, Page, str]) -> None:
    text, page, _ = made
    shown = sorted(set(page.samples))
    assert shown == sorted(f"{hostile} {steps}" for hostile in HOSTILE for steps in (1, 4, 16))
    assert len(page.samples) == 2 * 3 * 3
    assert page.tags.count("script") == 2 and not {"b", "img", "i", "link", "iframe"} & set(page.tags)
    assert not [a for a in page.attributes if a[1] in ("src", "style") or a[1].startswith("on")]
    assert all(value.startswith("#") for _, name, value in page.attributes if name == "href")
    assert "http:" not in text and "https:" not in text and "url(" not in text and "@import" not in text
    assert len(text) < 60_000 and "<title>&lt;Toy&gt;</title>" in text


def test_only_the_own_script_may_run(made: tuple[str, Page, str]) -> None:
    _, page, _ = made
    policy = next(value for tag, name, value in page.attributes if tag == "meta" and "default-src" in value)
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy
    assert "innerHTML" not in page.scripts[1] and "eval(" not in page.scripts[1]


def test_the_page_holds_the_trajectories(made: tuple[str, Page, str]) -> None:
    _, page, _ = made
    payload = json.loads(page.scripts[0])
    assert not set("<>&") & set(page.scripts[0])
    assert payload["pieces"] == [WAYS["pieces"]] and len(payload["walks"]) == 2
    for walk in payload["walks"]:
        recorded = WAYS["runs"][0]["samples"][0]
        assert (walk["mask"], walk["numSteps"]) == (9, 4)
        assert (walk["start"], walk["changes"]) == (recorded["start"], recorded["changes"])
    parts = {value for _, name, value in page.attributes if name == "data-part"}
    asked = set(re.findall(r'"(choice|slider|status|tokens|play|first|back|next|last)"', page.scripts[1]))
    assert asked <= parts and {"first", "back", "next", "last", "play", "choice"} <= parts


def test_markdown_has_the_same_tables(made: tuple[str, Page, str]) -> None:
    _, page, text = made
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [[html.unescape(cell) for cell in line.strip("| ").split(" | ")] for line in lines]
    assert cells == page.rows and "<i>" not in text


def test_narrow_and_dark_are_provided_for(made: tuple[str, Page, str]) -> None:
    text, page, _ = made
    assert "@media (prefers-color-scheme: dark)" in text and "width=device-width" in text
    used = set(re.findall(r"var\((--[\w-]+)\)", text))
    light, dark = (text.index("--back:"), text.rindex("--back:"))
    for part in (text[light:dark], text[dark:]):
        assert used <= set(re.findall(r"(--[\w-]+):", part.split("\n}")[0]))
    regions = [a for a in page.attributes if a[:2] == ("div", "class") and a[2] == "wide"]
    assert len(regions) == page.tags.count("table")  # what is too wide scrolls by itself


def test_points_stand_where_their_values_are() -> None:
    points = [Point(x, y, y / 2, y * 2, f"{x} <{y}>") for x, y in ((1, 100.0), (4, 20.0), (16, 10.0))]
    chart = Chart("t", "steps", [Series("a", 0, points)], log_x=True, log_y=True, ticks=(1, 4, 16))
    drawn = draw(chart)
    at = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', drawn)]
    assert at[1][0] - at[0][0] == pytest.approx(at[2][0] - at[1][0], abs=0.2)  # logarithmic
    share = (at[1][1] - at[0][1]) / (at[2][1] - at[0][1])
    assert share == pytest.approx(math.log(5) / math.log(10), abs=0.01)
    bars = re.findall(r'class="bar" d="M([\d.]+) ([\d.]+)V([\d.]+)', drawn)
    for (x, y), bar in zip(at, bars, strict=True):
        left, low, high = map(float, bar)
        assert left == x and low > y > high and low - y == pytest.approx(y - high, abs=0.2)
    assert "4 &lt;20.0&gt;" in drawn and "<20.0>" not in drawn


@pytest.mark.parametrize(
    ("low", "high", "log"),
    [(2.9, 300, True), (2.61, 2.83, False), (14.0, 15.0, True), (1e-6, 1e9, True), (-3, 4, False)],
)
def test_ticks_are_round_and_inside(low: float, high: float, log: bool) -> None:
    found = ticks(low, high, log)
    assert 2 <= len(found) <= 16 and sorted(set(found)) == list(found)
    assert low * (0.99 if low > 0 else 1.01) <= found[0] and found[-1] <= high * 1.01


# What is given --------------------------------------------------------------------------------------


def test_single_files_and_the_order_of_what_is_given(tmp_path: Path) -> None:
    folder = toy(tmp_path / "toy")
    files = [folder / "second<i>/results/samples.json", folder / "first/results/samples.json"]
    out = tmp_path / "o.html"
    assert report.main([*map(str, files), "--out", str(out), "--trajectories", "0", "--texts", "1"]) == 0
    page = Page(out.read_text())
    names = [row[0] for row in page.rows if row[0] != "model"]
    assert names == ["second<i>", "first"] + ["second<i>"] * 3 + ["first"] * 3, "pivoted, then all"
    assert len(page.scripts) == 1 and len(page.samples) == 6


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for place in ("a", "b"):
        toy(tmp_path / place)
    out = tmp_path / "o.html"
    given = [str(tmp_path / place / "first") for place in ("a", "b")]
    assert report.main([*given, *given, "--out", str(out)]) == 0
    names = {row[0] for row in Page(out.read_text()).rows}
    assert {"a/first", "b/first"} <= names and "first" not in names


def test_samples_of_validations_where_nothing_else_was_sampled(tmp_path: Path) -> None:
    folder = toy(tmp_path / "toy") / "first"
    for path in (folder / "results").iterdir():
        path.unlink()
    (folder / "results").rmdir()
    (folder / "samples" / "step10-T4.json").write_text(json.dumps(sample_run(4, 66666.0)))
    run = sample_run(4, 55.5)
    del run["predictor"]
    (folder / "samples" / "step30-T4.json").write_text(json.dumps(run))
    assert report.main([str(folder), "--out", str(tmp_path / "o.html")]) == 0
    page = Page((tmp_path / "o.html").read_text())
    assert 55.5 in page.exact and not {66666.0, 77777.0} & set(page.exact)
    assert row_of(page, "first", "validation, step 30")


def test_a_broken_file_in_a_folder_is_told_and_the_rest_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = toy(tmp_path / "toy")
    (folder / "first" / "results" / "cut.json").write_text('{"runs": [')
    (folder / "first" / "results" / "samples.trajectories.json").unlink()
    (folder / "manifest.json").write_text('{"files": 3}')  # of another kind: none of ours
    assert report.main([str(folder), "--out", str(tmp_path / "o.html")]) == 0
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and "cut.json: is no JSON" in told[0] and "No such file" in told[1]
    text = (tmp_path / "o.html").read_text()
    assert "cut.json" in text and "manifest" not in text
    assert len(json.loads(Page(text).scripts[0])["walks"]) == 1


WRONG = {
    "missing.json": (None, "no such file or folder"),
    "no.json": ("{", "is no JSON"),
    "other.json": ('{"a": 1}', "is no result that a report shows"),
    "list.json": ("[1, 2]", "is no result that a report shows"),
    "texts.json": ('{"generated_seqs": [1]}', "run 1: generated_seqs=[1] is no list of texts"),
    "number.json": ('{"generated_seqs": ["a"], "entropy": "<b>"}', "run 1: entropy='<b>' is no number"),
    "bars.json": ('{"generated_seqs": ["a"], "generative_ppl_interval": [1]}', "is no pair of numbers"),
    "ppl.json": ('{"perplexity": null}', "run 1: perplexity=None is no number"),
    "points.jsonl": (
        '{"steps": 1, "temperature": 1, "entropy": 2}\n',
        "line 1 is no point: settings is no object",
    ),
    "metrics.csv": ("step,loss\n1,2\nx,y\n", "line 3 of the file is no line of metrics"),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, problem = WRONG[name]
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    assert report.main([str(path), "--out", str(tmp_path / "o.html")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"RUN={path}: ") and problem in line and "; " in line
    assert not (tmp_path / "o.html").exists()


def test_an_empty_folder_and_a_wrong_name_of_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert report.main([str(tmp_path / "empty"), "--out", str(tmp_path / "o.html")]) == 2
    assert "holds no results" in capsys.readouterr().err
    assert report.main([str(toy(tmp_path / "toy")), "--out", str(tmp_path / "o.txt")]) == 2
    assert capsys.readouterr().err.startswith("--out=")


@pytest.mark.parametrize(
    "wrong",
    [{"changes": [[1, 0.5, [7], [0], []]]}, {"changes": [[1, 0.5, [0], [5], []]]}, {"changes": [[1]]},
     {"changes": [[1, 0.5, [-1], [0], []]]}, {"start": 3}],
)  # fmt: skip
def test_a_wrong_trajectory_is_left_out(
    wrong: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = toy(tmp_path / "toy") / "first" / "results"
    content = json.loads(json.dumps(WAYS))
    content["runs"][0]["samples"][0] |= wrong
    (folder / "samples.trajectories.json").write_text(json.dumps(content))
    assert report.main([str(folder / "samples.json"), "--out", str(tmp_path / "o.html")]) == 0
    assert "holds no recorded trajectories" in capsys.readouterr().err
    assert len(Page((tmp_path / "o.html").read_text()).scripts) == 1, "no payload"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("results/a.json", "null"),
        ("results/a.json", "[" * 100_000),
        ("results/a.json", '{"generated_seqs": ["a"], "steps": -1}'),
        ("results/a.json", '{"generated_seqs": ["a"], "steps": 1e308}'),
        ("results/a.json", json.dumps({"generated_seqs": ["a"], "steps": 10**400})),
        ("results/a.json", '{"generated_seqs": ["a"], "generative_ppl_interval": [2, -1]}'),
        ("results/a.json", '{"generated_seqs": ["half \\ud800"], "predictor": "\\ud800"}'),
        ("results/a.json", '{"generated_seqs": ["a"], "trajectories": ""}'),
        ("results/a.json", '{"generated_seqs": ["a"], "trajectories": "\\ud800\\u0000"}'),
        ("results/a.json", '{"mauve": "high"}'),
        ("metrics.csv", "step,x\n1e400,2\n"),
        ("metrics.csv", "x" * 200_000 + "\n1\n"),
        ("config.yaml", "algo: 5\nmodel: {name: [1]}\n"),
        ("config.yaml", "a: " + "[" * 3000),
        ("points.jsonl", "[1]\n"),
        ("matched.json", '[{"steps": "x", "series": 1, "entropy": [], "generative_ppl": {}, '
                         '"generative_ppl_interval": 3}]'),
    ],
)  # fmt: skip
def test_garbage_costs_its_own_line_alone(tmp_path: Path, name: str, content: str) -> None:
    """Files of other versions, and what is no result: the page of all others is made."""
    folder = toy(tmp_path / "toy")
    place = "frontier" if name in ("points.jsonl", "matched.json") else "first"
    (folder / place / name).write_text(content)
    problems = report.report([str(folder)], tmp_path / "out.html", title="t", texts=3, walks=2)
    page = Page((tmp_path / "out.html").read_text(encoding="utf-8"))
    assert {100.123456 * 0.5 / steps for steps in (1, 4, 16)} <= set(page.exact), "the other run is there"
    assert len(problems) <= 1 and not any("\n" in line for line in problems)
    assert (tmp_path / "out.md").is_file()


def test_the_ceiling_stands_beside_mauve(tmp_path: Path) -> None:
    content = {"mauve": 0.5, "mauve_std": None, "mauve_ceiling": 0.9612, "num_generated": 80}
    (tmp_path / "a-mauve.json").write_text(json.dumps(content))
    report.report([str(tmp_path)], tmp_path / "out.html", title="t", texts=3, walks=2)
    assert row_of(Page((tmp_path / "out.html").read_text()), "0.5000", "0.9612", "80")


def test_nothing_measured_is_no_zero(tmp_path: Path) -> None:
    runs = [
        sample_run(steps, 10.0, tc=tc, tc_groups=groups) for steps, tc, groups in ((1, 0.0, 0), (2, 0.125, 4))
    ]
    (tmp_path / "a.json").write_text(json.dumps({"runs": runs}))
    report.report([str(tmp_path)], tmp_path / "out.html", title="t", texts=3, walks=2)
    exact = Page((tmp_path / "out.html").read_text()).exact
    assert 0.125 in exact and 0.0 not in exact


def measured(label: str, nfe: float, ppl: float, half: float | None, **more: Any) -> Measured:
    run = {"nfe": nfe, "steps": 1, "generative_ppl": ppl, "entropy": 5.0, "generated_seqs": ["a"], **more}
    if half is not None:
        run["generative_ppl_interval"] = [ppl - half, ppl + half]
    return Measured(label, run)


def test_the_pivoted_table_has_the_best_within_intervals_in_bold() -> None:
    found = [
        measured("a", 1, 100.0, 3.0),
        measured("b", 1, 104.0, 3.0, entropy=4.5),
        measured("c", 1, 120.0, 3.0),
        measured("c", 4, 50.0, None),
    ]
    (one,) = pivoted(found)
    assert one.head == ("model", "1 call", "4 calls")
    assert [[(cell.text, cell.under, cell.best) for cell in row[1:]] for row in one.rows] == [
        [("100.00", "5.000", True), ("", "", False)],
        [("104.00", "4.500", True), ("", "", False)],
        [("120.00", "5.000", False), ("50.00", "5.000", True)],
    ]
    other = measured("a", 1, 7.0, None, gen_ppl_scorer="other")
    assert pivoted([*found, other])[0].rows == one.rows, "values of two evaluators do not stand together"


def test_runs_of_several_seeds_are_pooled() -> None:
    runs = [measured("a", 2, ppl, 1.0, seed=seed) for seed, ppl in enumerate((90.0, 100.0, 110.0))]
    (one,) = pivoted([*runs, measured("b", 2, 99.0, 0.1)])
    pooled = one.rows[0][1]
    assert pooled.exact == pytest.approx((90 * 100 * 110) ** (1 / 3)) and pooled.under == "5.000, 3 runs"
    assert pooled.best and one.rows[1][1].best, "three runs have a wide interval"


def test_long_tables_are_folded_and_all_can_be_sorted_and_copied() -> None:
    rows = [[blocks.number(float(k))] for k in range(9)]
    text = page("T", [Section("s", "S", [blocks.table("Long", ("x",), rows, folded=True)])], [])
    assert '<details class="table"><summary>Long (9 rows)</summary>' in text
    assert text.count('data-copy="') == 2 and '<th scope="col"><button type="button">x</button></th>' in text
    assert 'data-exact="8.0"' in text
