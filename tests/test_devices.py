"""All that runs on a CPU runs where tensors are elsewhere, with the same numbers: see remote_device.py."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from remote_device import NAME, ROOT, on_both

from algo import ALGORITHMS

pytestmark = pytest.mark.slow

SMALL = (
    "debug=fast",
    "model.dropout=0",  # which each kind of device draws in its own way
    "trainer.precision=32",
    "trainer.enable_progress_bar=False",
    "trainer.max_steps=3",
    "sampling.steps=3",
)
# What may differ: clocks, and names of files.
APART = {
    "train/tokens_per_second",
    "total_generation_times",
    "checkpoint",
    "gen_ppl_scorer",
    "key",
    "settings",
}
VARIANTS = {
    "capped": ("algo=imdm", "model.softcap=30", "model.qk_norm=True", "algo.num_mask=4"),
    "counted": ("algo=mdlm", "training.mask_sampling=count", "eval.nelbo=count", "loader.batch_size=4"),
    "learnable": ("algo=imdm", "algo.noise_type=learnable", "training.activation_checkpointing=True"),
    "whole": ("algo=duo", "algo.curriculum_top_k=0"),
    "rounds": ("algo=im-sdtt", "algo.as_mdlm=True", "algo.grow_dt_every=1", "algo.distill_mode=kl-fwd"),
}
WRITTEN = {
    "ancestral": ("mdlm", "sampling.predictor=ancestral", "sampling.p_nucleus=0.9"),
    "analytic": ("sedd", "sampling.predictor=analytic"),
    "first_hitting": ("imdm", "sampling.predictor=first_hitting"),
    "parallel": ("mdlm", "sampling.predictor=first_hitting_parallel"),
    "extrapolated": ("mdlm", "sampling.predictor=first_hitting_extrapolated"),
    "spread": ("imdm", "sampling.order=spread", "sampling.temperature=0.8"),
    "joint": ("mdlm", "sampling.predictor=ancestral_joint", "sampling.draws=truncated32"),
    "strides": ("mdlm", "sampling.semi_ar=True", "sampling.stride_length=16", "sampling.num_strides=2"),
    "prompt": ("imdm", "sampling.prompt='the ____ is'", "sampling.record_trajectories=1"),
    "greedy": ("duo_base", "sampling.noise_removal=greedy"),
}
# Trainings that only train: how often the host waits for the device in a step, because it must know how many
# positions are masked. Nothing else is read, and nothing sent but the batch.
LENGTHS = (2, 4)
READS = {"ar": 1, "mdlm": 1, "imdm": 2, "im-sdtt": 7, "duo_base": 1}
QUIET = ("trainer.limit_val_batches=0", "eval.generate_samples=False", "trainer.log_every_n_steps=100")
BATCH = 3  # ids, attention mask, rows


def jobs(folder: Path) -> dict[str, list[str]]:
    """Trainings first; then what reads their checkpoints."""
    at = f"{folder}/{{device}}"

    def training(name: str, *words: str) -> list[str]:
        return [*SMALL, *words, f"checkpointing.save_dir={at}/{name}"]

    def of(algo: str, name: str, *words: str) -> list[str]:
        checkpoint = f"eval.checkpoint_path={at}/{algo}/checkpoints/last.ckpt"
        result = f"eval.generated_samples_path={at}/{name}.json"
        return [*SMALL, f"algo={algo}", checkpoint, result, *words]

    judged = (
        "eval.compute_generative_perplexity=True",
        f"eval.gen_ppl_eval_model_name_or_path={at}/ar/checkpoints/last.ckpt",
    )
    found = {f"train-{name}": training(name, f"algo={name}") for name in ALGORITHMS}
    found |= {f"train-{name}": training(name, *words) for name, words in VARIANTS.items()}
    start = f"training.finetune_path={at}/mdlm/checkpoints/last.ckpt"
    found["train-start"] = training(
        "start", "algo=imdm", start, "training.load_ema=True", "optim.ln_tune=norm"
    )
    found["train-resumed"] = training("start", "algo=imdm", "checkpointing.resume_from_ckpt=True", start)
    found["train-resumed"] += ["training.load_ema=True", "optim.ln_tune=norm", "trainer.max_steps=5"]
    for name, (algo, *words) in WRITTEN.items():
        found[f"write-{name}"] = of(algo, f"write-{name}", "mode=sample_eval", *words)
    found["write-judged"] = of("imdm", "judged", "mode=sample_eval_with_tc", *judged, "sampling.duplicate=2")
    found["continue"] = of(
        "imdm",
        "continued",
        "mode=cond_sample_eval_with_tc",
        "cond_sampling.prefix_len=8",
        "cond_sampling.seq_len=24",
        "cond_sampling.num_cont_per_prefix=2",
        "cond_sampling.min_seq_len=24",
        *judged,
    )
    found["judge-again"] = of("imdm", "judged", "mode=gen_ppl_eval", *judged)
    found["ppl"] = of("imdm", "ppl", "mode=ppl_eval")
    found["zero_shot"] = of("imdm", "zero-{{data}}", "mode=zero_shot", "zero_shot.datasets=pydoc")
    found["frontier"] = of("mdlm", "frontier", "mode=frontier", "frontier.steps=2", *judged)
    found["frontier"] += ["frontier.temperatures=1.0", f"frontier.path={at}/frontier"]
    for algo in READS:
        for steps in LENGTHS:
            found[f"{algo}-{steps}"] = training(f"{algo}-{steps}", f"algo={algo}", *QUIET)
            found[f"{algo}-{steps}"] += [f"trainer.max_steps={steps}"]
    return found


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("devices")
    return on_both(folder / "jobs", jobs(folder))


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    """Where two results differ by more than float rounding."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        parts = [differences(one[key], other[key], f"{name}/{key}") for key in one if key not in APART]
        return [line for part in parts for line in part]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [line for n, (a, b) in pairs for line in differences(a, b, f"{name}/{n}")]
    if isinstance(one, float) and isinstance(other, float):
        same = math.isclose(one, other, rel_tol=1e-4, abs_tol=1e-5) or (math.isnan(one) and math.isnan(other))
    else:
        same = one == other
    return [] if same else [f"{name}: {one} and {other}"]


@pytest.mark.parametrize("name", [name for name in jobs(Path()) if not name[-1].isdigit()])
def test_numbers_do_not_depend_on_the_device(name: str, given: dict[str, dict[str, Any]]) -> None:
    here, there = given[name]["cpu"], given[name][NAME]
    assert "error" not in here, here["error"]
    assert "error" not in there, there["error"]
    assert there["reads"], "it was not computed on the device"
    assert differences(here["result"], there["result"]) == []


@pytest.mark.parametrize("algo", READS)
def test_a_step_hardly_waits_for_the_device(algo: str, given: dict[str, dict[str, Any]]) -> None:
    runs = [given[f"{algo}-{steps}"][NAME] for steps in LENGTHS]
    assert not any("error" in run for run in runs)
    for what, expected in (("reads", READS[algo]), ("sent", BATCH)):
        short, long = (Counter(run[what]) for run in runs)
        each = {place: count / (LENGTHS[1] - LENGTHS[0]) for place, count in (long - short).items()}
        assert sum(each.values()) <= expected, each


def test_the_device_keeps_to_itself() -> None:
    """What a GPU refuses is refused, or the tests above would tell nothing."""
    script = """
import sys, torch
sys.path.insert(0, "tests")
from remote_device import RemoteDevice, register
register()
near = torch.arange(4.0)
with RemoteDevice() as mode:
    far = near.to("remote")
    refused = []
    for act in (lambda: far + near, lambda: far.numpy(), lambda: torch.where(far > 1, near, far)):
        try:
            act()
        except (RuntimeError, TypeError):
            refused.append(True)
    assert len(refused) == 3 and not mode.reads, refused
    assert (far + 1.0).device.type == "remote" and float(far.sum()) == 6 and mode.reads.total() == 1
    assert far[far > 1].shape == (2,) and torch.zeros(2, device="remote").tolist() == [0, 0]
    assert mode.reads.total() == 3
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
