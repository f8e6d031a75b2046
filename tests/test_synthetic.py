"""The experiment on agreeing symbols: its exact values, its measures, and all of it once at toy size."""

from __future__ import annotations

import json
import math
import re
import subprocess
from pathlib import Path

import pytest
import torch

from config.cli import compose_config
from diffusion.noise import get_schedule
from scripts.synthetic import measure, report
from tasks import MODES
from tests.test_samplers import grid_alphas
from tests.worlds import World

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "synthetic" / "run_all.sh"
TOY = (
    "data.cache_dir=./cache", "trainer.accelerator=cpu", "trainer.precision=32", "trainer.max_steps=2",
    "model.hidden_size=16", "model.n_blocks=1", "model.n_heads=2", "model.noise_dim=4",
    "loader.global_batch_size=16", "trainer.limit_val_batches=1", "trainer.log_every_n_steps=2",
    "callbacks.checkpoint_every_n_steps.every_n_train_steps=1",
)  # fmt: skip


@pytest.mark.parametrize("num_steps", [1, 2, 3, 8])
def test_exact_agreement_is_that_of_the_enumerated_chain(num_steps: int) -> None:
    probs = torch.zeros(3, 3, 3, dtype=torch.float64)
    probs[range(3), range(3), range(3)] = 1 / 3
    world = World(probs)
    distribution = world.distribution(grid_alphas(get_schedule("log-linear", 1e-3), num_steps))
    agreeing = distribution[world.data_distribution > 0].sum()
    assert report.exact_agreement(3, 3, num_steps) == pytest.approx(float(agreeing), abs=1e-6)


def test_one_step_of_one_mask_is_at_the_bound() -> None:
    distributions = torch.full((5, 8, 32), -math.log(32), dtype=torch.float64)
    found = measure.of_one_step(iter([distributions[:2], distributions[2:]]))
    assert found["agreement"] == pytest.approx(32.0**-7) and found["pairs"] == pytest.approx(1 / 32)
    assert found["factorisation_error"] == pytest.approx(report.bound_in_bits(8, 32)) == pytest.approx(35)
    assert found["entropy"] == pytest.approx(1) and found["bits_left_to_chance"] == pytest.approx(5)


def test_one_step_where_the_noise_decides_or_half_decides() -> None:
    decided = torch.eye(4, dtype=torch.float64).clamp(min=1e-300).log()[:, None].expand(4, 3, 4)
    found = measure.of_one_step(iter([decided]))
    assert found["agreement"] == pytest.approx(1) and found["factorisation_error"] == pytest.approx(
        0, abs=1e-9
    )
    assert found["entropy"] == pytest.approx(1) and found["bits_left_to_chance"] == pytest.approx(0)
    # Two kinds of noise, each leaves two symbols: a_v = 1/2 * (1/2)^3, error -2 + 4 bits.
    half = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]).double().clamp(min=1e-300).log()
    found = measure.of_one_step(iter([half[:, None].expand(2, 3, 4)]))
    assert found["agreement"] == pytest.approx(0.25) and found["pairs"] == pytest.approx(0.5)
    assert found["factorisation_error"] == pytest.approx(2) and found["bits_left_to_chance"] == 1


def test_measures_of_samples_by_hand() -> None:
    found = measure.of_samples(torch.tensor([[0, 0, 0], [1, 1, 1], [2, 2, 3], [0, 1, 2]]), 4)
    assert found["agreement"] == 0.5 and found["agreement_stderr"] == pytest.approx((1 / 3 / 4) ** 0.5)
    assert found["pairs"] == pytest.approx((1 + 1 + 1 / 3 + 0) / 4)
    distribution = torch.tensor([4, 4, 3, 1]) / 12
    assert found["entropy"] == pytest.approx(float(-(distribution * distribution.log2()).sum()) / 2)
    assert found["agreeing_entropy"] == pytest.approx(0.5)
    assert measure.of_samples(torch.tensor([[0, 1], [1, 2]]), 4)["agreeing_entropy"] is None


def test_step_counts() -> None:
    assert measure.step_counts(8) == [1, 2, 4, 8] and measure.step_counts(10) == [1, 2, 4, 8, 10]


def one(folder: Path, name: str, experiment: str, *words: str) -> None:
    """One command of the script, at toy size; the validation comes at the last step."""
    given = [f"experiment=align_{experiment}", f"name={name}", f"checkpointing.save_dir={folder / name}"]
    cfg = compose_config([*given, *TOY, "trainer.val_check_interval=2", *words], warn=False)
    MODES[cfg.mode](cfg)


def test_all_of_it_at_toy_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint, pairs = f"{tmp_path}/mdlm/checkpoints/last.ckpt", f"reflow.save_path={tmp_path}/pairs"
    start = f"training.finetune_path={checkpoint}"
    one(tmp_path, "mdlm", "mdlm")
    one(tmp_path, "imsdtt", "imsdtt", start, "algo.grow_dt_every=1")
    making = ("mode=generate_reflow_dataset", f"eval.checkpoint_path={checkpoint}", "sampling.steps=8")
    pure = ("reflow.perturbed_rect=False", "reflow.num_reflow_samples=32", "sampling.predictor=first_hitting")
    one(tmp_path, "mdlm", "mdlm", *making, *pure, pairs)
    one(tmp_path, "redi", "imredi", start, pairs, "algo.as_mdlm=True")
    one(tmp_path, "imredi", "imredi", start, pairs)
    one(tmp_path, "imredi_2", "imredi", start, pairs, "algo.num_mask=2")
    for name in ("mdlm", "imsdtt", "redi", "imredi", "imredi_2"):
        measure.main(tmp_path / name, 64)
    found = json.loads((tmp_path / "imredi" / "results" / "agreement.json").read_text())
    assert found["pairs"] == 32 and [point["step"] for point in found["curve"]] == [1, 2]
    assert list(found["ancestral"]) == list(found["greedy"]) == ["1", "2", "4", "8"]
    assert found["curve"][-1]["agreement"] == found["one_step"]["agreement"]
    redi = json.loads((tmp_path / "redi" / "results" / "agreement.json").read_text())["one_step"]
    assert redi["agreement_stderr"] < 1e-12 < redi["agreement"], "without mask noise all rows are alike"

    capsys.readouterr()
    report.main(tmp_path)
    table = (tmp_path / "summary" / "table.md").read_text()
    assert table in capsys.readouterr().out and "32 pairs, 2 updates of 16 (1 passes)" in table
    assert table.count("| IM-ReDi |") == 3 and "| one mask, exact | 2.9e-09 | 3.12 | 1 | 35.00 |" in table
    assert all((tmp_path / "summary" / f"{name}.png").stat().st_size > 10_000 for name in ("steps", "masks"))


def test_script_and_report_know_the_same_models() -> None:
    text = SCRIPT.read_text()
    named = set(re.findall(r"^train (\w+)", text, flags=re.MULTILINE)) | {"imredi_2", "imredi_8", "imredi_64"}
    assert "for masks in 2 8 64" in text and named == set(report.MODELS) | set(report.MASKS)
    expand = re.search(r"^models=.*$", text, flags=re.MULTILINE).group() + '; echo "${models[@]}"'
    listed = subprocess.run(["bash", "-c", expand], capture_output=True, text=True, check=True)
    assert set(listed.stdout.split()) == named
    shown = subprocess.run(["bash", str(SCRIPT), "--help"], capture_output=True, text=True, check=True)
    assert "--paper" in shown.stdout and "-euo" not in shown.stdout
