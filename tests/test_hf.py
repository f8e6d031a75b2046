"""Pretrained masked language models as the network: what they say at the start, padding, adapters, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from config.cli import compose_config
from tasks.setup import build_algorithm
from tests.pretrained import CONFIGS, ROWS, save
from trainer_base import TrainerBase

LENGTH, SIZE = 12, 25  # ids of the tokenizer


def compose(folder: str, *words: str) -> Any:
    common = (
        "model=hf", f"model.path={folder}", f"model.length={LENGTH}", "trainer.precision=32", "wandb=null",
        "trainer.accelerator=cpu", "loader.global_batch_size=8", "loader.num_workers=0", "training.ema=0",
        "trainer.enable_progress_bar=False", "eval.compute_generative_perplexity=False",
    )  # fmt: skip
    return compose_config([*common, *words], warn=False)


def build(folder: str, *words: str) -> TrainerBase:
    return build_algorithm(compose(folder, *words)).eval()


def ids(rows: int = 3, length: int = LENGTH) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    found = torch.randint(4, SIZE - 1, (rows, length), generator=generator)
    return torch.where(torch.rand(found.shape, generator=generator) < 0.5, SIZE - 1, found)


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_the_first_step_says_what_the_pretrained_model_says(kind: str, tmp_path: Path) -> None:
    folder = save(tmp_path, kind)
    base = transformers.AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval()
    module = build(folder, "algo=imdm")
    x = ids()
    seeds = module.objective.draw_seeds(torch.arange(3), LENGTH)
    expected = base(input_ids=x).logits
    assert expected.std() > 0.3 and expected.shape[-1] == ROWS
    full = module.backbone
    wide = torch.nn.functional.linear(full.body(x, None, seeds), full._linear.weight, full._linear.bias)
    assert torch.equal(wide, expected)
    torch.testing.assert_close(full(x, None, seeds), expected[..., :SIZE], rtol=1e-5, atol=1e-5)
    # Noise that is not zero matters, at masks alone.
    torch.nn.init.normal_(full.vocab_embed.imdm_mlp[2].weight)
    assert not torch.equal(full(x, None, seeds), expected[..., :SIZE])
    assert torch.equal(full(x.clamp(max=SIZE - 2), None, seeds), full(x.clamp(max=SIZE - 2), None, seeds + 1))
