"""What optim.ln_tune trains, what training.loss_precision means, and Muon."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from padded import STEPS, read, run, words, write_text

from algo import ALGORITHMS
from config.cli import compose_config
from dataloader import get_tokenizer, get_train_dataloader
from errors import UserError
from muon import Muon
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


# Muon ---------------------------------------------------------------------------------------------

MUON = {"lr": 0.01, "adamw_lr": None, "weight_decay": 0.1, "muon_momentum": 0.9, "beta1": 0.9, "beta2": 0.99,
        "eps": 1e-8}  # fmt: skip


class Toy(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embed = torch.nn.Parameter(torch.randn(5, 4, generator=generator))
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(4, 6), torch.nn.Linear(6, 3)])
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def gradients(self, step: int) -> None:
        generator = torch.Generator().manual_seed(step + 1)
        for parameter in self.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_muon_is_both_of_torch(tmp_path: Path) -> None:
    """Each parameter as by its own optimizer, schedules included, and after a state was saved and loaded."""
    ours, theirs = Toy(), Toy()
    optimizer = Muon(ours.named_parameters(), {**MUON, "adamw_lr": 0.003})
    matrices = [block.weight for block in theirs.blocks]
    others = [theirs.embed, *(block.bias for block in theirs.blocks)]
    muon = torch.optim.Muon(matrices, 0.01, 0.1, 0.9, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, 0.003, (0.9, 0.99), 1e-8, 0.1)
    schedule = [
        torch.optim.lr_scheduler.LambdaLR(one, lambda k: 1 / (k + 1)) for one in (optimizer, muon, adamw)
    ]
    for step in range(6):
        ours.gradients(step)
        theirs.gradients(step)
        for one in (optimizer, muon, adamw):
            one.step()
        for one in schedule:
            one.step()
        if step == 2:
            torch.save((optimizer.state_dict(), schedule[0].state_dict()), tmp_path / "state")
            saved = torch.load(tmp_path / "state", weights_only=True)
            optimizer = Muon(ours.named_parameters(), {**MUON, "lr": 1.0})
            schedule[0] = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1 / (k + 1))
            optimizer.load_state_dict(saved[0])
            schedule[0].load_state_dict(saved[1])
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    assert (
        sorted(state.keys() == {"momentum_buffer"} for state in optimizer.state.values())
        == [False] * 3 + [True] * 2
    )


def test_muon_trains_and_resumes_bit_for_bit(folder: Path) -> None:
    common = ("algo=imdm", "optim.name=muon", "optim.lr=0.01")
    for name in ("muon", "muon-in-two"):
        if name == "muon-in-two":
            run(folder, name, *common, "trainer.max_steps=2")
        run(folder, name, *common)
    found, expected = read(folder / "muon-in-two"), read(folder / "muon")
    for part in ("state_dict", "optimizer_states"):
        assert str(found[part]) == str(expected[part])
    for name, value in found["state_dict"].items():
        assert torch.equal(value, expected["state_dict"][name]), name


def test_muon_needs_a_matrix() -> None:
    with pytest.raises(UserError) as caught:
        Muon([("norm.weight", torch.nn.Parameter(torch.ones(3)))], MUON)
    assert str(caught.value).startswith("optim.name=muon: none of the trained parameters is a matrix")
