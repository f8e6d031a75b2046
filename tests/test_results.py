"""What is written and shown: JSON that every reader takes, texts that no terminal obeys."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

import main
from callbacks.samples import SampleAtValidation
from errors import UserError
from reporting.blocks import Section, Table
from reporting.markdown import markdown
from tasks.sample_eval import _tell
from utils import get_logger, printable, setup_logging, to_json, well_formed, write_json

EVIL = "a\x1b[2Jb\x07c\rd\x9be\u202ef\ud800g\th\ni\u00a0j\U0001f600"
SHOWN = "a\\x1b[2Jb\\x07c\\rd\\x9be\\u202ef\\ud800g\th\ni\u00a0j\U0001f600"


def strict(text: str) -> object:
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_numbers_that_are_not_finite_are_null_with_a_reason(tmp_path: Path) -> None:
    value = {"nll": 1.5, "runs": [{"bpd": math.nan}, {"bpd": [1, -math.inf, (math.inf,)]}], 3: None}
    write_json(tmp_path / "result.json", value)
    found = strict((tmp_path / "result.json").read_text())
    assert found == {
        "nll": 1.5,
        "runs": [{"bpd": None}, {"bpd": [1, None, [None]]}],
        "3": None,
        "not_finite": {"runs.0.bpd": "nan", "runs.1.bpd.1": "-inf", "runs.1.bpd.2.0": "inf"},
    }
    assert math.isnan(value["runs"][0]["bpd"]), "what was given stays as it is"
    assert to_json([1.0, math.nan]) == "[1.0, null]" and to_json({"a": 1}, separators=(",", ":")) == '{"a":1}'
    write_json(tmp_path / "fine.json", {"a": [1, 2.5, None, "x", True]})
    assert strict((tmp_path / "fine.json").read_text()) == {"a": [1, 2.5, None, "x", True]}


def test_half_surrogates_are_no_unicode(tmp_path: Path) -> None:
    write_json(tmp_path / "result.json", {"text": EVIL})
    written = strict((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert written == {"text": EVIL.replace("\ud800", "\ufffd")}, "all else is kept raw"
    assert well_formed("a\ud83d\ude00b \U0001f600") == "a\U0001f600b \U0001f600", "a whole pair"


def test_control_characters_are_shown_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    assert printable(EVIL) == SHOWN
    assert printable("plain text, \u4f60\u597d, \u05e9\u05dc\u05d5\u05dd") == (
        "plain text, \u4f60\u597d, \u05e9\u05dc\u05d5\u05dd"
    )
    setup_logging()
    run = {
        "steps": 1, "predictor": "p", "entropy": 0.0, "nfe": 1.0, "total_generation_times": 0.0,
        "num_samples": 2, "generated_seqs": [EVIL, "b"],
    }  # fmt: skip
    _tell(run, 2)
    shown = capsys.readouterr().err
    assert f"  {SHOWN}\n" in shown and run["generated_seqs"][0] == EVIL
    assert not set(shown) & {"\x1b", "\x07", "\r", "\x9b"}
    get_logger("x").warning("%s", EVIL)
    assert SHOWN in capsys.readouterr().err


def test_samples_of_a_validation_are_shown_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging()
    module = SimpleNamespace(config=SimpleNamespace(sampling=SimpleNamespace(num_sample_log=1)))
    trainer = SimpleNamespace(default_root_dir=str(tmp_path), global_step=7)
    run = {"steps": 4, "generative_ppl": None, "entropy": 1.0}
    SampleAtValidation()._record(trainer, module, run, ["\x1b]0;title\x07", "b"])
    assert capsys.readouterr().err.endswith("[INFO]   \\x1b]0;title\\x07\n")
    written = json.loads((tmp_path / "samples" / "step7-T4.json").read_text())
    assert written["generated_seqs"] == ["\x1b]0;title\x07", "b"], "the file keeps what was sampled"


def test_an_error_about_a_hostile_file_is_shown_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main._tell(UserError("eval.checkpoint_path", "x\x1b[31m.ckpt", "no such file", "correct it"), 0) == 2
    )
    assert (
        capsys.readouterr().err == "error: eval.checkpoint_path=x\\x1b[31m.ckpt: no such file; correct it\n"
    )


def test_tables_in_markdown_are_text() -> None:
    table = Table("a\x1b[2J", ["<b>|"], [], "note\x07")
    text = markdown("t", [Section("s", "title", [table])], [])
    assert "\x1b" not in text and "\x07" not in text and "&lt;b>\\|" in text
