"""The autoregressive baseline: exact likelihood, training, the modes; sampling is beside."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from algo import AR
from config.cli import compose_config
from data.tokenizers import _numbers_tokenizer, get_tokenizer
from diffusion import NEG_INF
from tasks import MODES
from tests.test_algo import LargestTensor
from tests.test_training import run, weights
from trainer_base import TrainerBase

pytestmark = pytest.mark.slow

LENGTH = 6


def build(*overrides: str, bos: bool = True, symbols: int = 3, noise: float = 0.5) -> TrainerBase:
    """A tiny model with random weights; with ``bos`` the symbol ``symbols`` begins and ends a row."""
    words = [
        "algo=ar", "data=synthetic-align", f"data.vocab_size={symbols}", "model=synthetic",
        f"model.length={LENGTH}", "model.hidden_size=16", "model.n_blocks=2", "model.n_heads=2",
        "loader.global_batch_size=8", "trainer.precision=32", "training.ema=0", "wandb=null", *overrides,
    ]  # fmt: skip
    ids = [*(str(i) for i in range(symbols)), "[BOS]"]
    with_bos = _numbers_tokenizer(ids, bos_token="[BOS]", eos_token="[BOS]")
    tokenizer = with_bos if bos else get_tokenizer("synthetic-align", symbols)
    module = AR(compose_config(words, warn=False), tokenizer)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += noise * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def batch(module: TrainerBase, size: int = 8, length: int = LENGTH) -> dict[str, Tensor]:
    ids = torch.randint(module.mask_id, (size, length), generator=torch.Generator().manual_seed(1))
    if module.objective.context.bos_id is not None:
        ids[:, 0] = module.objective.context.bos_id
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids, dtype=torch.bool)}


def loss(module: TrainerBase, data: dict[str, Tensor]) -> Any:
    return module.loss(data, step=0, num_rows=8, training=True)


def test_bos_is_the_one_of_the_data() -> None:
    module = build()
    assert module.generator.prior(2).tolist() == [[3] + [module.mask_id] * (LENGTH - 1)] * 2
    assert build(bos=False).objective.context.bos_id is None


# Likelihood ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bos", [True, False])
def test_the_loss_is_the_mean_of_the_direct_negative_log_likelihood(bos: bool) -> None:
    module = build(bos=bos)
    data = batch(module)
    data["attention_mask"][:4, 4:] = False
    x0, first = data["input_ids"], int(bos)
    seen = x0[:, :-1] if bos else torch.cat((torch.full((8, 1), module.mask_id), x0[:, :-1]), 1)
    logits = module.backbone(seen, None)
    logits[..., module.mask_id] = NEG_INF
    expected = -logits.log_softmax(-1).gather(-1, x0[:, first:, None]).squeeze(-1)
    counted = data["attention_mask"][:, first:]
    output = loss(module, data)
    torch.testing.assert_close(output.token_nll[:, first:], expected.detach() * counted)
    assert not output.loss_mask[:, :first].any() and torch.equal(output.loss_mask[:, first:], counted)
    torch.testing.assert_close(output.loss, expected[counted].mean())
    head = module.backbone.head.weight
    output.loss.backward()
    (wanted,) = torch.autograd.grad(expected[counted].mean(), head)
    torch.testing.assert_close(head.grad, wanted)
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_micro_batches_share_the_token_count_of_the_global_batch() -> None:
    """Rows of unequal lengths: the mean over micro-batches is the mean over all predicted tokens."""
    module = build()
    data = batch(module)
    data["attention_mask"][:4, 3:] = False
    parts = [{name: value[rows] for name, value in data.items()} for rows in (slice(0, 4), slice(4, 8))]
    share = data["attention_mask"].sum() / 2.0
    means = torch.stack([loss(module, {**part, "num_tokens": share}).loss for part in parts])
    torch.testing.assert_close(means.mean(), loss(module, data).loss)


def test_later_tokens_do_not_change_earlier_likelihoods() -> None:
    module = build()
    data = batch(module)
    before = loss(module, data).token_nll
    data["input_ids"][:, 4] = (data["input_ids"][:, 4] + 1) % 3
    after = loss(module, data).token_nll
    torch.testing.assert_close(after[:, :4], before[:, :4])
    assert not torch.allclose(after[:, 4:], before[:, 4:])


def test_a_batch_without_any_token_reaches_every_parameter() -> None:
    module = build()
    data = batch(module)
    data["attention_mask"][:, 1:] = False
    output = loss(module, data)
    output.loss.backward()
    assert output.loss == 0 and not output.loss_mask.any()
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize("bos", [True, False])
def test_scores_of_a_text_are_the_token_losses(bos: bool) -> None:
    """Of every token but the first, whatever stands behind the padding."""
    module = build(bos=bos)
    data = batch(module)
    data["attention_mask"][2:, 5:] = False
    expected = loss(module, data).token_nll[:, 1:]
    nll = module.objective.token_log_probs(module.backbone, data["input_ids"], data["attention_mask"])
    assert nll.shape == (8, LENGTH - 1) and not nll.requires_grad
    torch.testing.assert_close(nll, expected)
    data["input_ids"][2:, 5:] = 0
    seen = data["input_ids"], data["attention_mask"].long()
    torch.testing.assert_close(module.objective.token_log_probs(module.backbone, *seen), nll)


def test_scoring_holds_no_logits_of_all_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    import diffusion.linear_nll

    original = diffusion.linear_nll.LinearHead.__init__
    monkeypatch.setattr(
        diffusion.linear_nll.LinearHead,
        "__init__",
        lambda self, *args, **kwargs: original(self, *args, **{**kwargs, "chunk_elements": 2**15}),
    )
    module = build(symbols=5000)
    data = batch(module, size=40)
    with LargestTensor() as seen:
        module.objective.token_log_probs(module.backbone, data["input_ids"], data["attention_mask"])
    assert seen.largest < 40 * LENGTH * 5000 / 8


# The modes ----------------------------------------------------------------------------------------


def test_learns_the_distribution_of_its_data(tmp_path: Path) -> None:
    """A row repeats one of 8 symbols: ln(8) nats, all of them for the first token, an eighth per token."""
    run(tmp_path, "algo=ar", "trainer.max_steps=200", "trainer.val_check_interval=200",
        f"checkpointing.save_dir={tmp_path}/run")  # fmt: skip
    path = tmp_path / "result.json"
    evaluate = (
        "algo=ar",
        f"eval.checkpoint_path={tmp_path}/run/checkpoints/last.ckpt",
        f"eval.generated_samples_path={path}",
    )
    measured = run(tmp_path, *evaluate, "mode=ppl_eval")
    assert math.log(8) / 8 < measured["nll"] + 1e-3 < 1.05 * math.log(8) / 8
    assert measured["nelbo"] == "exact" and measured["tokens"] == 1024 * 8
    assert json.loads(path.read_text()) == measured
    samples = run(tmp_path, *evaluate, "mode=sample_eval", "sampling.num_sample_batches=1")
    assert (samples["predictor"], samples["steps"], samples["nfe"]) == ("autoregressive", 8, 8)
    rows = [text.split() for text in samples["generated_seqs"]]
    assert sum(len(set(row)) == 1 for row in rows) > 0.9 * len(rows)
    assert len({row[0] for row in rows}) == 8  # the first token is drawn as well


def test_text_with_bos_is_learnt_better_than_its_letters(tmp_path: Path) -> None:
    """The entropy of single letters of this text is 2.86 nats; perplexity is over all tokens but bos."""
    text = ("algo=ar", "data=pydoc", "data.vocab_size=null", "model.length=32")
    run(tmp_path, *text, "trainer.max_steps=120", "trainer.val_check_interval=120",
        "trainer.limit_val_batches=1", f"checkpointing.save_dir={tmp_path}/run")  # fmt: skip
    measured = run(
        tmp_path,
        *text,
        "mode=ppl_eval",
        f"eval.checkpoint_path={tmp_path}/run/checkpoints/last.ckpt",
        f"eval.generated_samples_path={tmp_path}/result.json",
    )
    rows = measured["tokens"] / 31
    assert rows == int(rows) > 1000
    assert measured["nll"] < 2.6


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    common = ("algo=ar", "model.dropout=0.2", "loader.batch_size=32", "trainer.val_check_interval=100")
    run(tmp_path, *common, "trainer.max_steps=6", f"checkpointing.save_dir={tmp_path}/whole")
    run(tmp_path, *common, "trainer.max_steps=4", f"checkpointing.save_dir={tmp_path}/parts")
    run(tmp_path, *common, "trainer.max_steps=6", f"checkpointing.save_dir={tmp_path}/parts")
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    assert not any("adaLN" in name or "sigma_map" in name for name in whole)  # official names, see golden


def test_debug_fast(tmp_path: Path) -> None:
    cfg = compose_config(
        ["debug=fast", "algo=ar", f"data.cache_dir={tmp_path}/cache",
         f"checkpointing.save_dir={tmp_path}/run", "trainer.enable_progress_bar=False"],
        warn=False,
    )  # fmt: skip
    result = MODES["train"](cfg)
    assert result["steps"] == 6 and math.isfinite(result["val/nll"])
    assert f"val/sample_entropy_T{cfg.model.length}" in result
