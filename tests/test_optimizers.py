"""What optim.ln_tune trains, and what training.loss_precision means."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from padded import STEPS, read, run, words, write_text

from algo import ALGORITHMS
from config.cli import compose_config
from dataloader import get_tokenizer, get_train_dataloader
from optimizers import train_only
from tasks.setup import build_evaluated


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("padded"))


# Norms alone --------------------------------------------------------------------------------------

NORMS = {
    "norm": ["blocks.0.norm1.weight", "blocks.0.norm2.weight"],  # of a network with all other norms as well
    "norm2": ["blocks.0.norm2.weight"],
}  # fmt: skip


@pytest.mark.parametrize("ln_tune", sorted(NORMS))
def test_norms_alone_are_trained(ln_tune: str, folder: Path) -> None:
    """From a full checkpoint with its averages, resumed once, then evaluated with and without the setting."""
    full, tuned = folder / f"full-{ln_tune}", folder / f"tuned-{ln_tune}"
    common = ("algo=imdm", "model.qk_norm=True", "optim.lr=0.01", "optim.eps=1e-8")
    run(folder, full.name, *common)
    start = (f"training.finetune_path={full}/checkpoints/last.ckpt", "training.load_ema=True")
    tune = (*common, f"optim.ln_tune={ln_tune}", *start)
    run(folder, tuned.name, *tune, "trainer.max_steps=2")
    run(folder, tuned.name, *tune)
    before, after = read(full), read(tuned)
    names = [f"backbone.{name}" for name in NORMS[ln_tune]]
    assert after["ema"]["names"] == names and after["ema"]["num_updates"] == 2 * STEPS
    assert len(after["optimizer_states"][0]["state"]) == len(names)
    averages = dict(zip(before["ema"]["names"], before["ema"]["shadow_params"], strict=True))
    for name, value in after["state_dict"].items():
        if name in names:
            assert not torch.equal(value, averages[name]), name
        elif name in averages:
            assert torch.equal(value, averages[name]), name
    whole = {**averages, **dict(zip(names, after["ema"]["shadow_params"], strict=True))}
    path = f"eval.checkpoint_path={tuned}/checkpoints/last.ckpt"
    for setting in (ln_tune, "none"):
        cfg = compose_config(
            words(folder, *common, f"optim.ln_tune={setting}", "mode=ppl_eval", path), warn=False
        )
        module = build_evaluated(cfg)
        with module.ema_weights():
            for name, parameter in module.named_parameters():
                torch.testing.assert_close(parameter.detach(), whole[name], rtol=0, atol=0, msg=name)


def test_nothing_left_to_train_is_one_line() -> None:
    with pytest.raises(ValueError, match="optim.ln_tune=norm: the network has no such norm to train;"):
        train_only(torch.nn.Linear(2, 2), "norm")


# Precision of the loss ----------------------------------------------------------------------------


@pytest.mark.parametrize("algo", ["mdlm", "imdm", "ar"])
def test_loss_precision_lifts_the_loss(algo: str, folder: Path) -> None:
    """float64 equals the same logits' loss in float64 to 1e-12; float32 differs from it, by its rounding."""
    found = {}
    for name in ("bf16", "float32", "float64"):
        cfg = compose_config(words(folder, f"algo={algo}", f"training.loss_precision={name}"), warn=False)
        module = ALGORITHMS[algo](cfg, get_tokenizer(cfg))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
        batch = next(iter(get_train_dataloader(cfg, module.tokenizer)))
        found[name] = module.loss(batch, step=0, num_rows=8, training=True)
    assert found["bf16"].loss.dtype is found["float32"].loss.dtype is torch.float32
    assert found["float64"].loss.dtype is found["float64"].token_nll.dtype is torch.float64
    assert torch.equal(found["bf16"].loss, found["float32"].loss)
    exact, rounded = (found[name].loss.item() for name in ("float64", "float32"))
    mean = float(found["float64"].token_nll.sum() / found["float64"].loss_mask.sum())
    assert exact == pytest.approx(mean, rel=1e-12)
    assert rounded != exact and rounded == pytest.approx(exact, rel=1e-5)
