"""The quickstart and the comparison of baselines as a user runs them, at toy size: tables, figures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "scripts" / "baselines")]

from compare import Baselines  # noqa: E402
from quickstart import Quickstart, main  # noqa: E402

TOY = (
    "trainer.max_steps=2", "trainer.val_check_interval=2", "trainer.log_every_n_steps=1",
    "model.hidden_size=16", "model.n_blocks=1", "model.n_heads=2", "model.length=16",
    "loader.eval_batch_size=32", "sampling.num_sample_batches=1", "trainer.limit_val_batches=1",
    "reflow.num_reflow_samples=64",
)  # fmt: skip


def quickstart(
    folder: Path, *overrides: str, script: str = "quickstart.sh"
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "QUICKSTART_DIR": str(folder)}
    command = ["bash", str(ROOT / "scripts" / script), *overrides]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def in_process(
    kind: type[Quickstart], folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> str:
    """The same commands without starts of Python: the parts in turn. Returns what stderr got."""
    monkeypatch.setenv("QUICKSTART_DIR", str(folder))
    monkeypatch.setattr(kind, "side_by_side", lambda self: [part() for part in self.parts().values()])
    capfd.readouterr()
    assert main([*TOY], kind) == 0
    return capfd.readouterr().err


@pytest.mark.skipif(not (ROOT / ".venv" / "requirements.installed").exists(), reason="would install .venv")
def test_both_end_with_tables_and_figures_and_the_second_takes_up_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    first = quickstart(tmp_path, *TOY)
    assert first.returncode == 0, first.stderr[-2000:]
    table = (tmp_path / "summary" / "table.md").read_text()
    assert table in first.stdout
    for model in ("MDLM", "SDTT", "IM-SDTT", "SDTT + ReDi", "IM-SDTT + IM-ReDi"):
        assert table.count(f"| {model} |") == 3  # in each table
    assert (tmp_path / "summary" / "figure.png").stat().st_size > 10_000
    assert "IM-SDTT + IM-ReDi, steps 64" in (tmp_path / "summary" / "samples.txt").read_text()
    checkpoint = tmp_path / "imredi" / "checkpoints" / "last.ckpt"
    before = checkpoint.stat().st_mtime_ns
    printed = in_process(Quickstart, tmp_path, monkeypatch, capfd)
    assert printed.count("already trained for 2 steps") == 6
    assert checkpoint.stat().st_mtime_ns == before
    printed = in_process(Baselines, tmp_path, monkeypatch, capfd)
    assert printed.count("already trained for 2 steps") == 6  # the quickstart's models are taken
    assert (tmp_path / "summary" / "table.md").read_text() == table  # of the second quickstart
    table = (tmp_path / "baselines" / "table.md").read_text()
    for model in (
        "IMDM",
        "SEDD",
        "D3PM",
        "Duo",
        "Duo + DCD",
        "Duo + DCD + rectification",
        "IM-SDTT + IM-ReDi",
    ):
        assert f"| {model} |" in table
    assert (tmp_path / "baselines" / "figure.png").stat().st_size > 10_000


def test_a_wrong_override_stops_it_at_once(tmp_path: Path) -> None:
    if not (ROOT / ".venv" / "requirements.installed").exists():
        pytest.skip("would install .venv")
    done = quickstart(tmp_path, "trainer.max_stps=3")
    assert done.returncode == 2 and "trainer.max_stps: unknown key" in done.stderr


def test_its_commands_share_several_devices_one_after_another(tmp_path: Path) -> None:
    """In one process a second group of devices would meet the first."""
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(ROOT / "scripts")!r})
from quickstart import Quickstart
start = Quickstart(Path({str(tmp_path)!r}), False, ("trainer.devices=2", *{TOY!r}))
start.judge()
start.train("mdlm")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("(16 per device x 1)") == 2
    assert (tmp_path / "mdlm" / "checkpoints" / "last.ckpt").exists()
