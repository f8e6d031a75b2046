"""An optimizer step: one batch however it is divided, one clipping, one schedule step, finite numbers."""

from __future__ import annotations

import csv
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from padded import SETTINGS, STEPS, run, weights, words, write_text
from torch import Tensor

from algo import MDLM
from config.cli import compose_config
from dataloader import get_tokenizer, get_train_dataloader
from tasks import MODES
from trainer_base import TrainerBase

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
UNUSED = 0  # an id that the texts do not have
LOGGED = ("trainer/loss", "train/nll", "train/grad_norm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("padded"))


def logged(run_folder: Path) -> list[list[float]]:
    """The lines of the log, one a step: LOGGED."""
    with (run_folder / "metrics.csv").open() as file:
        return [
            [float(line[name]) for name in LOGGED] for line in csv.DictReader(file) if line.get(LOGGED[0])
        ]


def assert_same_run(one: Path, other: Path) -> None:
    """Sums of some hundred float32 terms in another order: a few 1e-7 of their size."""
    assert len(logged(one)) == STEPS
    torch.testing.assert_close(torch.tensor(logged(other)), torch.tensor(logged(one)), rtol=2e-5, atol=0)
    expected, found = weights(one), weights(other)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=2e-5, atol=2e-6, msg=name)


# One big batch ------------------------------------------------------------------------------------

CASES = {"imdm": ("algo=imdm",), "bos": ("algo=mdlm", "training.ignore_bos=True"), "ar": ("algo=ar",)}


@pytest.mark.parametrize("case", sorted(CASES))
def test_accumulation_over_padded_rows_changes_nothing(case: str, folder: Path) -> None:
    run(folder, f"{case}1", *CASES[case])
    assert all(norm > SETTINGS["trainer.gradient_clip_val"] for _, _, norm in logged(folder / f"{case}1"))
    for passes in (2, 4):
        run(folder, f"{case}{passes}", *CASES[case], f"loader.batch_size={8 // passes}")
        assert_same_run(folder / f"{case}1", folder / f"{case}{passes}")


def test_the_logged_loss_is_that_of_the_whole_step(folder: Path) -> None:
    """The first step, of start weights that predict every token alike, and from its global batch by hand."""
    run(folder, "whole", "loader.batch_size=1", "trainer.max_steps=1")
    cfg = compose_config(words(folder), warn=False)
    module = MDLM(cfg, get_tokenizer(cfg))
    batch = next(iter(get_train_dataloader(cfg, module.tokenizer)))
    output = module.loss(batch, step=0, num_rows=8, training=True)
    mean = float(output.token_nll.sum() / batch["attention_mask"].sum())
    loss, nll, norm = logged(folder / "whole")[0]
    assert loss == pytest.approx(mean, rel=1e-5) and nll == pytest.approx(mean, rel=1e-5)
    output.loss.backward()
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    assert norm == pytest.approx(float(torch.nn.utils.get_total_norm(gradients)), rel=1e-5)


TWO_PROCESSES = """
import os, sys
sys.path.insert(0, sys.argv[1])
from config.cli import compose_config
from tasks import MODES
from lightning.pytorch.utilities import rank_zero_only
child = os.fork()  # nothing was computed yet: both ranks share one import
rank_zero_only.rank = 1 if child == 0 else 0
os.environ["LOCAL_RANK"] = str(rank_zero_only.rank)
cfg = compose_config(sys.argv[2:], warn=False)
MODES[cfg.mode](cfg)
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_two_devices_equal_one(folder: Path) -> None:
    run(folder, "one", "algo=imdm")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    two = f"checkpointing.save_dir={folder}/two"
    arguments = words(folder, "algo=imdm", "trainer.devices=2", "loader.batch_size=2", two)
    done = subprocess.run(
        [sys.executable, "-c", TWO_PROCESSES, str(ROOT), *arguments],
        env=os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert_same_run(folder / "one", folder / "two")


# A number that is none ----------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["loss", "gradient", "weight"])
@pytest.mark.parametrize("seen_by", ["log", "checkpoint", "validation"])
def test_no_checkpoint_of_weights_that_are_no_numbers(
    wrong: str, seen_by: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes wrong in step 4; first to look is the log of every 6th step, a checkpoint or a validation."""
    original, last = TrainerBase.loss, {"log": 6, "checkpoint": 5, "validation": 4}[seen_by]

    def diverges(self: TrainerBase, batch: dict[str, Tensor], *, step: int, **where: Any) -> Any:
        output = original(self, batch, step=step, **where)
        if step != 3 or not where["training"]:
            return output
        if wrong == "weight":
            with torch.no_grad():
                self.backbone.vocab_embed.embedding[UNUSED, 0] = math.inf
            return output
        if wrong == "gradient":
            output.loss.register_hook(lambda grad: grad * math.inf)
        return output._replace(loss=output.loss + math.inf) if wrong == "loss" else output

    monkeypatch.setattr(TrainerBase, "loss", diverges)
    key = {"loss": "trainer/loss=", "gradient": "train/grad_norm=nan", "weight": "norm of the weights=inf"}
    # After a wrong gradient later losses are wrong as well, and named first; the wrong weight is of no use.
    first = "trainer/loss=nan" if wrong == "gradient" and last > 4 else key[wrong]
    name = f"{wrong}-{seen_by}"
    with pytest.raises(ValueError, match=f"{first}.*: not a finite number in .* to {last};") as caught:
        run(
            folder,
            name,
            "trainer.max_steps=20",
            "trainer.log_every_n_steps=6",
            f"trainer.val_check_interval={4 if seen_by == 'validation' else 100}",
            f"callbacks.checkpoint_every_n_steps.every_n_train_steps={5 if seen_by == 'checkpoint' else 3}",
        )
    assert "\n" not in str(caught.value)
    for path in (folder / name / "checkpoints").glob("*.ckpt"):
        saved = torch.load(path, weights_only=True)
        assert saved["global_step"] <= 3
        assert all(torch.isfinite(value).all() for value in saved["state_dict"].values())
    assert (folder / name / "checkpoints" / "last.ckpt").exists() == (seen_by != "checkpoint")


# Schedules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scheduler, factors",
    [
        (
            ("lr_scheduler=constant_warmup", "lr_scheduler.num_warmup_steps=4"),
            [0, 0.25, 0.5, 0.75, 1, 1, 1, 1],
        ),
        (
            (
                "lr_scheduler=cosine_decay_warmup",
                "lr_scheduler.warmup_fraction=0.25",
                "lr_scheduler.min_lr=0.1",
            ),
            [0.1, 0.55, *(0.1 + 0.45 * (1 + math.cos(math.pi * k / 6)) for k in range(6))],
        ),
        (
            (
                "lr_scheduler=step_scheduler",
                "lr_scheduler.num_warmup_steps=2",
                "lr_scheduler.decay_every=3",
                "lr_scheduler.decay_factor=0.5",
            ),
            [0, 0.5, 1, 1, 1, 0.5, 0.5, 0.5],
        ),
    ],
    ids=["constant", "cosine", "step"],
)
def test_schedules_step_once_per_optimizer_step_and_resume(
    scheduler: tuple[str, ...], factors: list[float], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two micro-batches a step; the run breaks off in its fifth step and goes on from the third."""
    rates: list[float] = []
    interrupted: list[float] = []
    original = TrainerBase.on_before_optimizer_step

    def noted(self: TrainerBase, optimizer: torch.optim.Optimizer) -> None:
        if len(rates) == 4 and not interrupted:
            interrupted.append(rates.pop())  # no checkpoint has the fourth step: it will be made again
            raise InterruptedError
        rates.append(optimizer.param_groups[0]["lr"])
        original(self, optimizer)

    monkeypatch.setattr(TrainerBase, "on_before_optimizer_step", noted)
    warmup = "lr_scheduler.num_warmup_steps"
    settings = [word for word in words(folder) if not word.startswith(warmup)]
    every = "callbacks.checkpoint_every_n_steps.every_n_train_steps=3"
    save_dir = f"checkpointing.save_dir={folder}/{scheduler[0].split('=')[1]}"
    settings += [*scheduler, every, save_dir, "loader.batch_size=4", "trainer.max_steps=8"]
    cfg = compose_config(settings, warn=False)
    with pytest.raises(InterruptedError):
        MODES[cfg.mode](cfg)
    assert len(rates) == 3
    MODES[cfg.mode](cfg)
    assert rates == pytest.approx(factors)
