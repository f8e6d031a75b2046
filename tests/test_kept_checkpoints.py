"""Which checkpoints a training keeps and where, and when it validates."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from callbacks.checkpoints import Checkpoints
from config.cli import compose_config
from data.batching import GlobalBatchSampler
from errors import UserError
from tasks.train import _checkpoints, validation_interval


class Training:
    """A trainer that steps and validates; its checkpoints hold their step."""

    is_global_zero, sanity_checking, should_stop, world_size = True, False, False, 1

    def __init__(self, *callbacks: Checkpoints) -> None:
        self.global_step, self.callback_metrics = 0, {"val/nll": 0.0}
        self.callbacks = callbacks
        for callback in callbacks:
            callback.folder.mkdir(parents=True, exist_ok=True)
            callback.on_fit_start(self, None)

    def save_checkpoint(self, path: Path, weights_only: bool) -> None:
        path.unlink(missing_ok=True)  # a new file: links keep the old one
        path.write_text(str(self.global_step))

    def step(self, score: float | None = None) -> None:
        """A step, and where there is a score a validation with it."""
        self.global_step += 1
        for callback in self.callbacks:
            callback.on_train_batch_start(self)
            if score is not None:
                self.callback_metrics["val/nll"] = score
                callback.on_validation_start(self, None)
                callback.on_validation_end(self, None)


def files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.glob("*.ckpt"))}


def test_the_newest_ones_are_kept(tmp_path: Path) -> None:
    for newest, kept in ((3, (4, 6, 8)), (1, (8,)), (-1, (2, 4, 6, 8)), (0, ())):
        folder = tmp_path / str(newest)
        training = Training(Checkpoints(folder, every=2, newest=newest))
        for _ in range(8):
            training.step()
        expected = {f"0-{step}.ckpt": str(step) for step in kept} | {"last.ckpt": "8"}
        assert files(folder) == expected


def test_the_newest_ones_are_counted_over_a_restart(tmp_path: Path) -> None:
    first = Checkpoints(tmp_path, every=1, newest=2)
    training = Training(first)
    for _ in range(3):
        training.step()
    second = Checkpoints(tmp_path, every=1, newest=2)
    second.load_state_dict(first.state_dict())
    training.callbacks = (second,)
    training.step()
    assert set(files(tmp_path)) == {"0-3.ckpt", "0-4.ckpt", "last.ckpt"}
    old = Checkpoints(tmp_path, every=1, newest=1)
    old.load_state_dict({"best_score": 0.5, "regular": "0-4.ckpt"})  # as earlier versions wrote it
    training.callbacks = (old,)
    training.step()
    assert "0-4.ckpt" not in files(tmp_path) and "0-5.ckpt" in files(tmp_path)


@pytest.mark.parametrize(
    ("top_k", "mode", "kept"),
    [
        (1, "min", {"best.ckpt": "4"}),
        (1, "max", {"best.ckpt": "1"}),
        (2, "min", {"best.ckpt": "4", "best-2.ckpt": "2", "best-4.ckpt": "4"}),
        (2, "max", {"best.ckpt": "1", "best-1.ckpt": "1", "best-3.ckpt": "3"}),
        (-1, "min", {"best.ckpt": "4", **{f"best-{step}.ckpt": str(step) for step in (1, 2, 3, 4)}}),
    ],
)
def test_the_best_ones_are_kept(top_k: int, mode: str, kept: dict[str, str], tmp_path: Path) -> None:
    place = tmp_path / "elsewhere" / "best.ckpt"
    training = Training(Checkpoints(tmp_path / "run", monitor="val/nll", mode=mode, top_k=top_k, best=place))
    for score in (5.0, 2.0, 3.0, 1.0):
        training.step(score)
    assert files(place.parent) == kept


def test_a_metric_that_is_not_logged_is_one_line(tmp_path: Path) -> None:
    training = Training(Checkpoints(tmp_path, monitor="val/accuracy"))
    with pytest.raises(UserError) as caught:
        training.step(1.0)
    key = "callbacks.checkpoint_monitor.monitor"
    assert str(caught.value) == f"{key}=val/accuracy: no validation logs it; use one of val/nll"


def composed(*words: str) -> Any:
    return compose_config(["algo=mdlm", "model=tiny", "wandb=null", *words], warn=False)


def test_settings_of_the_callbacks(tmp_path: Path) -> None:
    regular, best = "callbacks.checkpoint_every_n_steps", "callbacks.checkpoint_monitor"
    run: Any = SimpleNamespace(path=tmp_path / "run-2")
    usual = _checkpoints(composed(), run)
    assert usual.regular_folder == usual.best.parent == usual.folder == tmp_path / "run-2" / "checkpoints"
    assert (usual.newest, usual.top_k, usual.best.name) == (-1, 1, "best.ckpt")
    words = (f"{regular}.dirpath={tmp_path}/a", f"{best}.dirpath={tmp_path}/b", f"{best}.filename=top")
    own = _checkpoints(composed(*words, f"{regular}.save_top_k=3", f"{best}.monitor=val/ppl"), run)
    assert (own.regular_folder, own.best) == (tmp_path / "a", tmp_path / "b" / "top.ckpt")
    assert (own.newest, own.monitor, own.last) == (3, "val/ppl", tmp_path / "run-2/checkpoints/last.ckpt")
    assert _checkpoints(composed(f"{best}.save_top_k=0"), run).monitor is None


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("callbacks.checkpoint_monitor.monitor=val/gen_ppl_T8", "sampling.steps=1000 has no 8"),
        (
            "callbacks.checkpoint_monitor.monitor=val/gen_ppl_T8 sampling.steps=1,8 "
            "eval.compute_generative_perplexity=False",
            "no validation measures it; needs eval.generate_samples=True",
        ),
        (
            "callbacks.checkpoint_monitor.monitor=val/sample_entropy_T1000 sampling.num_sample_batches=0",
            "no validation measures it",
        ),
        ("callbacks.checkpoint_monitor.filename={epoch}", "not a plain name"),
        ("trainer.check_val_every_n_epoch=2", "trainer.val_check_interval=10000 says when already"),
        ("trainer.val_check_interval=2.0", "a fraction above 1; write 2 for batches"),
        ("data=openwebtext-streaming trainer.val_check_interval=0.5", "has no length"),
    ],
)
def test_settings_that_cannot_hold(words: str, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        composed(*words.split())
    assert problem in str(caught.value)
    composed("callbacks.checkpoint_monitor.monitor=val/gen_ppl_T8", "sampling.steps=1,8")


@pytest.mark.parametrize(
    ("words", "limit", "batches"),
    [
        ("trainer.val_check_interval=7", None, 8),  # whole steps
        ("trainer.val_check_interval=1.0", None, 40),
        ("trainer.val_check_interval=0.25", None, 8),
        ("trainer.val_check_interval=0.01", None, 4),
        ("trainer.val_check_interval=null", None, 40),
        ("trainer.val_check_interval=null trainer.check_val_every_n_epoch=3", None, 120),
        ("trainer.val_check_interval=1.0 trainer.check_val_every_n_epoch=2", 3, 24),
    ],
)
def test_when_there_is_a_validation(words: str, limit: int | None, batches: int) -> None:
    """Ten steps of 16 rows an epoch (or as many as are taken of it), each of 4 batches."""
    sampler = GlobalBatchSampler(165, 16, 4, cycle=limit)
    loader: Any = SimpleNamespace(batch_sampler=sampler)
    assert validation_interval(composed(*words.split()), loader, accumulate=4) == batches
