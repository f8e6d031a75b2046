"""Two devices are one: data, noise, losses, gradients, weights, measures, samples, pairs; DDP and shards.

All jobs on two processes are done by one pair of them (tests/two_devices.py); here are those on one process.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from padded import LENGTH, read, weights, words, write_text
from two_devices import Rows, TwoProcesses, noted

from config.cli import compose_config
from tasks import MODES

pytestmark = pytest.mark.slow

STEPS, BATCH = 4, 8
# Micro-batches of two rows with dropout: 4 on one device, 2 on each of two. 13 validation rows, 4 at a time:
# the second device gets a batch more.
TRAIN = (
    "data.wrap=False",
    "model.dropout=0.1",
    "loader.batch_size=2",
    "loader.eval_global_batch_size=4",
    f"trainer.max_steps={STEPS}",
    "callbacks=[checkpoint_every_n_steps,grad_record]",
    "callbacks.checkpoint_every_n_steps.every_n_train_steps=2",
)
PACKED = ("data.wrap=True", "loader.batch_size=4")
TRAININGS = {
    "mdlm": ("algo=mdlm", "training.ignore_bos=True"),
    "imdm": ("algo=imdm", "eval.generate_samples=True", "eval.compute_generative_perplexity=True"),
    "sdtt": ("algo=im-sdtt", "algo.grow_dt_every=2", "algo.orig_num_sampling_steps=16"),
    "redi": ("algo=im-redi", *PACKED, "reflow.make_missing=True", "reflow.num_reflow_samples=11"),
    "duo_base": ("algo=duo_base",),
    "duo": ("algo=duo", "algo.curriculum_start=0", "algo.curriculum_end=3"),
    "d3pm": ("algo=d3pm", "algo.T=20"),
    "ar": ("algo=ar",),
    "norms": ("algo=imdm", "optim.ln_tune=norm"),
    "muon": ("algo=imdm", "optim.name=muon"),
    # One token in 30 is masked: many micro-batches have none.
    "few_masks": ("algo=imdm", "algo.alpha_min=0.95"),
}
STARTED = ("sdtt", "redi", "norms", "few_masks")  # from weights that make all parts of the network matter
STRATEGIES = {
    "ddp": ("mdlm", "imdm", "sdtt", "redi", "duo_base", "few_masks"),
    "fsdp": ("imdm", "sdtt", "duo", "d3pm", "ar", "norms", "few_masks", "muon"),
}
RUNS = [(strategy, name) for strategy, names in STRATEGIES.items() for name in names]
RESUMED = ("ddp-one", "fsdp-one", "one-ddp", "one-fsdp", "fsdp-ddp")


@dataclass
class Runs:
    """Where the runs on one process and those on two left their files."""

    folder: Path
    one: dict[str, dict[str, Any]]
    rows: dict[str, Rows]
    two: TwoProcesses


def typed(folder: Path, name: str, *more: str) -> list[str]:
    return words(folder, f"checkpointing.save_dir={folder}/{name}", f"data.valid={folder}/valid.txt", *more)


def training(folder: Path, run: str, name: str, *more: str, devices: int = 1) -> list[str]:
    judge = f"eval.gen_ppl_eval_model_name_or_path={folder}/one-ar/checkpoints/last.ckpt"
    start = (f"training.finetune_path={folder}/start.ckpt",) if name in STARTED else ()
    # Validations come after so many micro-batches of a device: here those of two steps.
    every = f"trainer.val_check_interval={2 * BATCH // devices // (4 if name == 'redi' else 2)}"
    return typed(folder, run, "sampling.steps=3", judge, every, *TRAIN, *TRAININGS[name], *start, *more)


def evaluations(folder: Path, side: str) -> dict[str, list[str]]:
    """Modes that use several devices, by the weights that one process trained."""

    def command(name: str, *more: str) -> list[str]:
        path = f"eval.generated_samples_path={folder}/{side}-{name}.json"
        start = (f"eval.checkpoint_path={folder}/start.ckpt", "data.wrap=True")
        return typed(folder, side, "algo=imdm", path, *start, *more)

    judged = f"eval.gen_ppl_eval_model_name_or_path={folder}/one-ar/checkpoints/last.ckpt"
    groups = ("sampling.duplicate=2", "sampling.steps=2,4", judged)
    made = ("reflow.num_reflow_samples=11", "sampling.steps=3", f"reflow.save_path={folder}/{side}-pairs")
    return {
        "ppl": command("ppl", "mode=ppl_eval", "data.wrap=False", "loader.eval_batch_size=3"),
        "samples": command(
            "samples",
            "mode=sample_eval_with_tc",
            "loader.eval_global_batch_size=4",
            "sampling.record_trajectories=3",
            *groups,
        ),
        "prefixes": command(
            "prefixes",
            "mode=cond_sample_eval_with_tc",
            "loader.eval_global_batch_size=4",
            "cond_sampling.prefix_len=4",
            f"cond_sampling.seq_len={LENGTH}",
            f"cond_sampling.min_seq_len={LENGTH}",
            "cond_sampling.num_cont_per_prefix=3",
            *groups,
        ),
        "pairs": command("pairs", "mode=generate_reflow_dataset", "loader.eval_batch_size=2", *made),
    }


def run(command: list[str]) -> tuple[dict[str, Any], Rows]:
    cfg = compose_config(command, warn=False)
    with noted() as rows:
        return MODES[cfg.mode](cfg), rows


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    folder = write_text(tmp_path_factory.mktemp("two"))
    (folder / "valid.txt").write_text("\n".join("abcd"[n % 4] * (2 + n * n % 14) for n in range(13)))
    one, rows = {}, {}
    for name in ("ar", "imdm"):
        one[name], rows[name] = run(training(folder, f"one-{name}", name))
    loud = read(folder / "one-imdm")
    generator = torch.Generator().manual_seed(0)
    for name, value in loud["state_dict"].items():
        if "inv_freq" not in name:
            value += 0.2 * torch.randn(value.shape, generator=generator)
    loud["ema"]["shadow_params"] = [loud["state_dict"][name].clone() for name in loud["ema"]["names"]]
    torch.save(loud, folder / "start.ckpt")
    for target in ("one-ddp", "one-fsdp"):  # their first halves
        run(training(folder, target, "imdm", "trainer.max_steps=2"))

    jobs: dict[str, list[str]] = {}
    for strategy, name in RUNS:
        saving = ("training.activation_checkpointing=True",) if (strategy, name) == ("fsdp", "imdm") else ()
        jobs[f"{strategy}-{name}"] = training(
            folder, f"{strategy}-{name}", name, f"strategy={strategy}", *saving, devices=2
        )
    for pair in RESUMED:
        first, then = pair.split("-")
        if first != "one":
            half = (f"strategy={first}", "trainer.max_steps=2")
            jobs[f"{pair}.1"] = training(folder, pair, "imdm", *half, devices=2)
        if then != "one":
            jobs[f"{pair}.2"] = training(folder, pair, "imdm", f"strategy={then}", devices=2)
    two = TwoProcesses(folder / "two", jobs | evaluations(folder, "two"))
    for name in sorted(set(TRAININGS) - set(one)):
        one[name], rows[name] = run(training(folder, f"one-{name}", name))
    one |= {name: run(command)[0] for name, command in evaluations(folder, "one").items()}
    two.finish()
    for pair in RESUMED:
        if pair.endswith("-one"):
            run(training(folder, pair, "imdm"))
    yield Runs(folder, one, rows, two)


def lines(folder: Path) -> list[dict[str, float]]:
    """The log; what a step saw and measured."""
    with (folder / "metrics.csv").open() as file:
        return [
            {name: float(value) for name, value in row.items() if value and "per_second" not in name}
            for row in csv.DictReader(file)
        ]


def assert_same_training(found: Path, expected: Path) -> None:
    """Sums of float32 terms in another order."""
    ours, theirs = lines(found), lines(expected)
    assert [row.keys() for row in ours] == [row.keys() for row in theirs]
    for one, other in zip(ours, theirs, strict=True):
        for name, value in other.items():
            assert one[name] == pytest.approx(value, rel=1e-4, abs=1e-8), name
    ours, theirs = weights(found), weights(expected)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=5e-5, atol=3e-6, msg=f"{name} of {found.name}")


# Training -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy, name", RUNS, ids=lambda part: part)
def test_two_devices_train_as_one(strategy: str, name: str, runs: Runs) -> None:
    """Losses, perplexities, gradient norms, part by part, weights, averages, validations, of all steps."""
    found, expected = runs.folder / f"{strategy}-{name}", runs.folder / f"one-{name}"
    assert_same_training(found, expected)
    log = lines(found)
    assert [row["step"] for row in log if "trainer/loss" in row] == [*range(STEPS)]
    assert [row["step"] for row in log if "val/nll" in row] == [1, 3]
    parts = [name for name in log[0] if name.startswith("train/grad_norm/")]
    assert f"train/grad_norm/{'block_00' if name == 'norms' else 'output'}" in parts
    for row in log:
        if "trainer/loss" in row:
            total = sum(row[part] ** 2 for part in parts)
            assert row["train/grad_norm"] ** 2 == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("name", ["mdlm", "imdm", "sdtt", "duo_base", "few_masks"])
def test_rows_see_the_same_text_times_masks_and_mask_noise(name: str, runs: Runs) -> None:
    expected = runs.rows[name]
    halves = [given["rows"] for given in runs.two.given(f"ddp-{name}")]
    assert expected.keys() == {(step, row) for step in range(STEPS) for row in range(BATCH)}
    assert not halves[0].keys() & halves[1].keys() and halves[0].keys() | halves[1].keys() == expected.keys()
    for (step, row), seen in (halves[0] | halves[1]).items():
        assert seen.keys() == expected[step, row].keys()
        for part, value in seen.items():
            assert torch.equal(value, expected[step, row][part]), (step, row, part)


def test_a_device_without_a_mask_does_not_stop_the_others(runs: Runs) -> None:
    """In some step one of two devices has no masked token in a micro-batch, and the other has."""
    masks = {
        (rank, step, row): int((seen["xt"] != seen["x0"]).sum())
        for rank, given in enumerate(runs.two.given("ddp-few_masks"))
        for (step, row), seen in given["rows"].items()
    }
    micro = {
        (step, part, rank): masks[rank, step, first] + masks[rank, step, first + 1]
        for step in range(STEPS)
        for part in range(2)
        for rank in range(2)
        for first in [(part * 2 + rank) * 2]
    }
    pairs = [(step, part) for step in range(STEPS) for part in range(2)]
    found = [(micro[(*pair, 0)] > 0, micro[(*pair, 1)] > 0) for pair in pairs]
    assert {(True, False), (False, True)} & set(found)


def test_students_and_teachers(runs: Runs) -> None:
    """A round of im-sdtt ended in step 2: files of students, and the teacher in the checkpoint."""
    for strategy in ("ddp", "fsdp"):
        found, expected = runs.folder / f"{strategy}-sdtt", runs.folder / "one-sdtt"
        ours, theirs = read(found)["teacher"], read(expected)["teacher"]
        assert ours["round"] == theirs["round"] > 0
        students = [folder / "checkpoints" / "student_checkpoints" / "2.ckpt" for folder in (found, expected)]
        saved = [torch.load(path, weights_only=True)["state_dict"] for path in students]
        for part, other in ((ours["state_dict"], theirs["state_dict"]), saved):
            assert part.keys() == other.keys()
            for name, value in other.items():
                torch.testing.assert_close(part[name], value, rtol=5e-5, atol=3e-6)


# Checkpoints --------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", RESUMED)
def test_another_number_of_devices_goes_on(pair: str, runs: Runs) -> None:
    """Two steps by one strategy, two by another: the trajectory of four steps by one process."""
    assert_same_training(runs.folder / pair, runs.folder / "one-imdm")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_checkpoints_have_one_layout(strategy: str, runs: Runs) -> None:
    """Names, order, shapes, dtypes and classes of all that is in the file."""

    def layout(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return type(value), value.shape, value.dtype, value.device
        if isinstance(value, dict):
            return [(name, layout(part)) for name, part in value.items()]
        return [layout(part) for part in value] if isinstance(value, list | tuple) else type(value)

    found, expected = read(runs.folder / f"{strategy}-imdm"), read(runs.folder / "one-imdm")
    for part in ("state_dict", "ema", "optimizer_states", "lr_schedulers", "train_nelbo"):
        assert layout(found[part]) == layout(expected[part]), part
    moments = [content["optimizer_states"][0]["state"] for content in (found, expected)]
    for number, state in moments[1].items():
        for name, value in state.items():
            torch.testing.assert_close(moments[0][number][name], value, rtol=1e-4, atol=1e-7)


def test_the_first_process_alone_writes(runs: Runs) -> None:
    def files(run: str) -> list[str]:
        return sorted(str(path.relative_to(runs.folder / run)) for path in (runs.folder / run).rglob("*"))

    assert files("ddp-imdm") == files("fsdp-imdm") == files("one-imdm")
    assert any(name.startswith("samples/") for name in files("ddp-imdm"))


# Evaluation ---------------------------------------------------------------------------------------


def both(runs: Runs, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The result of one process and of two, which gave the same to both and wrote it."""
    written = json.loads((runs.folder / f"two-{name}.json").read_text())
    for given in runs.two.given(name):
        assert untimed(json.loads(json.dumps(given["result"]))) == untimed(written)
    return untimed(runs.one[name]), untimed(written)


def untimed(result: Any) -> Any:
    """Without seconds, and what is of batches of another size or a file's name."""
    if isinstance(result, list):
        return [untimed(part) for part in result]
    left_out = {"total_generation_times", "forward_passes", "trajectories"}
    if not isinstance(result, dict):
        return result
    return {name: untimed(value) for name, value in result.items() if name not in left_out}


def test_perplexity_of_rows_that_two_does_not_divide(runs: Runs) -> None:
    one, two = both(runs, "ppl")
    assert one["tokens"] == two["tokens"] == sum(min(2 + n * n % 14 + 2, LENGTH) for n in range(13))
    for name in ("nll", "nll_stderr", "perplexity"):
        assert two[name] == pytest.approx(one[name], rel=1e-6)


@pytest.mark.parametrize("name", ["samples", "prefixes"])
def test_samples_and_their_measures(name: str, runs: Runs) -> None:
    """Texts, their judge, entropy, network calls, total correlation, trajectories."""
    one, two = both(runs, name)
    for ours, theirs in zip(two["runs"], one["runs"], strict=True):
        assert ours["generated_seqs"] == theirs["generated_seqs"] and len(set(ours["generated_seqs"])) > 2
        assert ours.keys() == theirs.keys()
        for key, expected in theirs.items():
            numbers = expected if isinstance(expected, list) else [expected]
            if all(isinstance(number, float) for number in numbers):
                expected = pytest.approx(expected, rel=1e-6)
            assert ours[key] == expected, key
    if name == "samples":
        assert one["runs"][0]["generative_ppl"] > 1
        files = [runs.folder / f"{side}-samples.trajectories.json" for side in ("one", "two")]
        ways = [json.loads(file.read_text()) for file in files]
        assert ways[0] == ways[1] and len(ways[0]["runs"][0]["samples"]) == 3


def test_pairs(runs: Runs) -> None:
    for name in ("xT", "x0", "ts", "seeds"):
        one, two = (np.load(runs.folder / f"{side}-pairs" / f"{name}.npy") for side in ("one", "two"))
        assert len(one) == 11 and np.array_equal(one, two), name
