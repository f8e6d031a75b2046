"""bench/gpu.py at toy size on the CPU: sections give rows, one that fails is noted and the rest goes on."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytestmark = pytest.mark.slow

BENCH = Path(__file__).resolve().parent.parent / "bench"
ARGUMENTS = ["gpu.py", "--device", "cpu", "--tiny", "--quick", "--name", "toy"]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCH))
    yield importlib.import_module("gpu")
    for name in ("gpu", "gpu_sections", "steps"):
        sys.modules.pop(name, None)


def test_every_section_gives_rows(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [*ARGUMENTS, "--output", str(tmp_path)])
    assert bench.main() == 0
    written = json.loads((tmp_path / "gpu_toy.json").read_text())
    assert list(written["results"]) == list(bench.SECTIONS)
    text = (tmp_path / "gpu_toy.md").read_text()
    for name, rows in written["results"].items():
        assert rows and f"## {name}\n" in text
        failed = [row for row in rows if "error" in row]
        if name == "attention":  # without a GPU
            assert {row["backend"] for row in failed} == {"flash", "flex"}
            errors = [row["error of outputs"] for row in rows if row["backend"] in ("plain", "sdpa")]
            assert len(errors) == 6 and max(errors) < 0.05
        else:
            assert not failed
    assert {row["algo"] for row in written["results"]["training"]} == {"imdm", "im-sdtt"}
    assert all(0 < row["largest relative difference"] < 0.05 for row in written["results"]["precision"])
    assert capsys.readouterr().out.endswith("gpu_toy.md\n")


def test_a_section_that_fails_is_noted(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def breaks(setting: object) -> Iterator[dict]:
        """Breaks."""
        yield {"first": 1}
        raise torch.OutOfMemoryError("out of memory\nand more")

    monkeypatch.setitem(bench.SECTIONS, "attention", breaks)
    monkeypatch.setattr(sys, "argv", [*ARGUMENTS, "--sections", "attention,head", "--output", str(tmp_path)])
    assert bench.main() == 0
    results = json.loads((tmp_path / "gpu_toy.json").read_text())["results"]
    assert results["attention"] == [{"first": 1}, {"error": "OutOfMemoryError: out of memory"}]
    assert len(results["head"]) == 2 and not any("error" in row for row in results["head"])


def test_wrong_arguments_are_told(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--sections", "speed"])
    with pytest.raises(SystemExit):
        bench.main()
    assert "--sections: speed: unknown" in capsys.readouterr().err
    if not torch.cuda.is_available():
        monkeypatch.setattr(sys, "argv", ["gpu.py"])
        with pytest.raises(SystemExit):
            bench.main()
        assert "no CUDA device; --device cpu --tiny tries the script itself" in capsys.readouterr().err


def test_peaks_by_name(bench: ModuleType) -> None:
    assert bench.peak_of("NVIDIA H100 80GB HBM3") == 989 and bench.peak_of("NVIDIA H100 PCIe") == 756
    assert bench.peak_of("NVIDIA A100-SXM4-80GB") == 312 and bench.peak_of("x86_64") is None
