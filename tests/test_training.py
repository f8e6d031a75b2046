"""Training end to end on data whose entropy is known, resumption, and the modes with their result files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from config.cli import compose_config
from tasks import MODES
from trainer_base import TrainerBase

pytestmark = pytest.mark.slow

SYMBOLS, LENGTH = 8, 8
TINY = (
    "algo=mdlm",
    "data=synthetic-align",
    f"data.vocab_size={SYMBOLS}",
    "model=synthetic",
    f"model.length={LENGTH}",
    "model.hidden_size=32",
    "model.cond_dim=8",
    "model.n_blocks=2",
    "model.n_heads=2",
    "model.noise_dim=8",
    "loader.global_batch_size=64",
    "loader.eval_global_batch_size=256",
    "loader.num_workers=0",
    "trainer.accelerator=cpu",
    "trainer.precision=32",
    "trainer.num_sanity_val_steps=0",
    "trainer.enable_progress_bar=False",
    "trainer.log_every_n_steps=10",
    "lr_scheduler.num_warmup_steps=10",
    "optim.lr=5e-3",
    "training.ema=0.9",
    "eval.generate_samples=False",
    "eval.compute_generative_perplexity=False",
    "wandb=null",
)


def run(tmp_path: Path, *overrides: str) -> dict[str, Any]:
    cfg = compose_config([*TINY, f"data.cache_dir={tmp_path}/cache", *overrides], warn=False)
    return MODES[cfg.mode](cfg)


@pytest.fixture(scope="module", params=["mdlm", "imdm"])
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str, dict]:
    """A tiny model trained until it knows that all symbols of a sequence agree."""
    folder = tmp_path_factory.mktemp(request.param)
    result = run(
        folder,
        f"algo={request.param}",
        "trainer.max_steps=300",
        "trainer.val_check_interval=300",
        f"checkpointing.save_dir={folder}/run",
    )
    return folder, request.param, result


def test_reaches_the_entropy_of_the_data(trained: tuple[Path, str, dict]) -> None:
    """A sequence repeats one symbol: its entropy is ln(8) nats, an eighth of it per token."""
    folder, algo, _ = trained
    measured = run(
        folder,
        f"algo={algo}",
        "mode=ppl_eval",
        "eval.nelbo=count",
        f"eval.checkpoint_path={folder}/run/checkpoints/last.ckpt",
        f"eval.generated_samples_path={folder}/ppl.json",
    )
    entropy = math.log(SYMBOLS) / LENGTH
    assert measured["tokens"] == 1024 * LENGTH
    assert entropy - 4 * measured["nll_stderr"] < measured["nll"] < 1.1 * entropy
    assert measured["perplexity"] == pytest.approx(math.exp(measured["nll"]))
    low, high = measured["perplexity_interval"]
    assert low * high == pytest.approx(measured["perplexity"] ** 2)
    assert math.log(high / low) == pytest.approx(2 * 1.96 * measured["nll_stderr"], rel=1e-3)
    assert json.loads((folder / "ppl.json").read_text()) == measured


def test_samples_agree_when_there_is_a_step_for_each_token(trained: tuple[Path, str, dict]) -> None:
    folder, algo, _ = trained
    path = folder / "deep" / "samples.json"
    for predictor in ("first_hitting", "ancestral_cache"):
        result = run(
            folder,
            f"algo={algo}",
            "mode=sample_eval",
            f"sampling.predictor={predictor}",
            "sampling.steps=1,200",
            "sampling.num_sample_batches=1",
            f"eval.checkpoint_path={folder}/run/checkpoints/last.ckpt",
            f"eval.generated_samples_path={path}",
        )
        assert json.loads(path.read_text()) == result
        runs = result.get("runs", [result])
        agreeing = [len(set(text.split())) == 1 for text in runs[-1]["generated_seqs"]]
        assert sum(agreeing) / len(agreeing) > 0.8
        assert runs[-1]["entropy"] < 0.2
    # One step of ancestral sampling draws all tokens independently: agreement is out of reach.
    assert runs[0]["nfe"] == 1
    assert runs[0]["entropy"] > 1.0


def test_run_folder_holds_what_is_promised(trained: tuple[Path, str, dict]) -> None:
    folder, algo, result = trained
    run_folder = folder / "run"
    assert result["steps"] == 300
    assert OmegaConf.load(run_folder / "config.yaml").algo.name == algo
    assert {path.name for path in (run_folder / "checkpoints").iterdir()} >= {"last.ckpt", "best.ckpt"}
    header = (run_folder / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {
        "trainer/loss",
        "train/nll",
        "train/bpd",
        "train/ppl",
        "val/nll",
        "val/bpd",
        "val/ppl",
        "train/grad_norm",
        "train/tokens_per_second",
    } <= set(header)
    checkpoint = torch.load(run_folder / "checkpoints" / "last.ckpt", weights_only=True)  # no pickled objects
    assert checkpoint["global_step"] == 300
    assert checkpoint["ema"]["num_updates"] == 300
    assert checkpoint["config"]["algo"]["name"] == algo


def weights(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    shadow = {f"ema{i}": value for i, value in enumerate(checkpoint["ema"]["shadow_params"])}
    return {**checkpoint["state_dict"], **shadow}


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    """With dropout, mask noise, EMA and two micro-batches a step; stopped after 7 of 12 steps."""
    common = (
        "algo=imdm",
        "model.dropout=0.2",
        "loader.batch_size=32",
        "trainer.val_check_interval=5",
        "trainer.limit_val_batches=1",
    )
    run(tmp_path, *common, "trainer.max_steps=12", f"checkpointing.save_dir={tmp_path}/whole")
    run(tmp_path, *common, "trainer.max_steps=7", f"checkpointing.save_dir={tmp_path}/parts")
    run(tmp_path, *common, "trainer.max_steps=12", f"checkpointing.save_dir={tmp_path}/parts")
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name


def test_accumulated_batches_equal_one_big_batch(tmp_path: Path) -> None:
    common = ("algo=imdm", "trainer.max_steps=4", "trainer.val_check_interval=100")
    run(tmp_path, *common, f"checkpointing.save_dir={tmp_path}/big")
    run(tmp_path, *common, "loader.batch_size=16", f"checkpointing.save_dir={tmp_path}/small")
    big, small = weights(tmp_path / "big"), weights(tmp_path / "small")
    for name, value in big.items():
        torch.testing.assert_close(value, small[name], rtol=1e-4, atol=1e-5, msg=name)


def test_another_configuration_under_the_same_name_is_refused(tmp_path: Path) -> None:
    save_dir = f"checkpointing.save_dir={tmp_path}/run"
    short = ("trainer.max_steps=2", "trainer.val_check_interval=100", save_dir)
    run(tmp_path, *short)
    with pytest.raises(ValueError, match=r"optim.lr was 0.005, is 0.1") as caught:
        run(tmp_path, *short, "optim.lr=0.1")
    assert "\n" not in str(caught.value)
    run(tmp_path, *short, "optim.lr=0.1", "checkpointing.resume_from_ckpt=False")
    assert (tmp_path / "run-2" / "checkpoints" / "last.ckpt").exists()


def test_mdlm_weights_start_an_imdm(tmp_path: Path) -> None:
    """The noise MLP is missing in the file and keeps its zero start: both models say the same."""
    run(
        tmp_path,
        "algo=mdlm",
        "trainer.max_steps=3",
        "trainer.val_check_interval=100",
        f"checkpointing.save_dir={tmp_path}/mdlm",
    )
    evaluate = (
        "mode=ppl_eval",
        f"eval.checkpoint_path={tmp_path}/mdlm/checkpoints/last.ckpt",
        f"eval.generated_samples_path={tmp_path}/ppl.json",
    )
    as_mdlm, as_imdm = run(tmp_path, "algo=mdlm", *evaluate), run(tmp_path, "algo=imdm", *evaluate)
    assert as_imdm["nll"] == pytest.approx(as_mdlm["nll"], rel=1e-6)


@pytest.mark.parametrize("load_ema", [True, False])
def test_finetuning_starts_from_the_weights_of_the_file(load_ema: bool, tmp_path: Path) -> None:
    """From the averages, whose averaging goes on; or from the raw weights, averaged anew."""
    short = ("trainer.val_check_interval=100", "lr_scheduler.num_warmup_steps=0")
    run(tmp_path, "algo=mdlm", "trainer.max_steps=3", *short, f"checkpointing.save_dir={tmp_path}/mdlm")
    start = f"training.finetune_path={tmp_path}/mdlm/checkpoints/last.ckpt"
    run(tmp_path, "algo=imdm", "trainer.max_steps=1", "optim.lr=1e-9", *short, start,
        f"training.load_ema={load_ema}", f"checkpointing.save_dir={tmp_path}/imdm")  # fmt: skip
    before, after = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
        for name in ("mdlm", "imdm")
    )
    raw = before["state_dict"]
    averages = dict(zip(before["ema"]["names"], before["ema"]["shadow_params"], strict=True))
    assert any(not torch.allclose(averages[name], raw[name], atol=1e-4) for name in averages)
    for name, value in ({**raw, **averages} if load_ema else raw).items():
        torch.testing.assert_close(after["state_dict"][name], value, rtol=0, atol=1e-7)
    # A step with so small a rate changes nothing: the average is what training started from, too.
    for name, average in zip(after["ema"]["names"], after["ema"]["shadow_params"], strict=True):
        torch.testing.assert_close(average, after["state_dict"][name], rtol=0, atol=1e-7)
    assert after["ema"]["num_updates"] == (4 if load_ema else 1)


@pytest.mark.parametrize("override", ["algo.num_mask=1", "algo.num_mask=3", "algo.noise_type=learnable"])
def test_every_kind_of_mask_noise_is_saved_and_loaded(override: str, tmp_path: Path) -> None:
    run(
        tmp_path,
        "algo=imdm",
        override,
        "trainer.max_steps=2",
        "trainer.val_check_interval=2",
        f"checkpointing.save_dir={tmp_path}/run",
    )
    trained = json.loads((tmp_path / "run" / "result.json").read_text())
    evaluated = run(
        tmp_path,
        "algo=imdm",
        override,
        "mode=ppl_eval",
        f"eval.checkpoint_path={tmp_path}/run/checkpoints/last.ckpt",
        f"eval.generated_samples_path={tmp_path}/ppl.json",
    )
    assert evaluated["ema"] and evaluated["nll"] == pytest.approx(trained["val/nll"], rel=1e-6)


def test_a_loss_that_is_not_finite_stops_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    original = TrainerBase.loss

    def diverges(self: TrainerBase, batch: dict, *, step: int, **where: Any) -> Any:
        output = original(self, batch, step=step, **where)
        return output._replace(loss=output.loss * math.nan) if step >= 9 else output

    monkeypatch.setattr(TrainerBase, "loss", diverges)
    save_dir = f"checkpointing.save_dir={tmp_path}/run"
    every = "callbacks.checkpoint_every_n_steps.every_n_train_steps=5"
    with pytest.raises(ValueError, match="trainer/loss=nan: not a finite number in .* 6 to 10") as caught:
        run(tmp_path, "trainer.max_steps=20", "trainer.val_check_interval=100", every, save_dir)
    assert "\n" not in str(caught.value)
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "run").values())


@pytest.mark.parametrize(
    "content, problem",
    [
        (None, "no such file"),
        (b"not a checkpoint", "cannot be read as a checkpoint"),
    ],
)
def test_a_bad_checkpoint_is_one_line(tmp_path: Path, content: bytes | None, problem: str) -> None:
    path = tmp_path / "bad.ckpt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=problem) as caught:
        run(tmp_path, "mode=ppl_eval", f"eval.checkpoint_path={path}")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("eval.checkpoint_path=")


def test_another_model_size_names_the_parameter(tmp_path: Path) -> None:
    run(
        tmp_path,
        "trainer.max_steps=1",
        "trainer.val_check_interval=100",
        f"checkpointing.save_dir={tmp_path}/run",
    )
    with pytest.raises(ValueError, match="backbone.vocab_embed.embedding is"):
        run(
            tmp_path,
            "mode=ppl_eval",
            f"eval.checkpoint_path={tmp_path}/run/checkpoints/last.ckpt",
            "model.hidden_size=16",
        )
