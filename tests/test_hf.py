"""Pretrained masked language models as the network: what they say at the start, padding, adapters, errors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from config.cli import compose_config
from errors import UserError
from models.lora import merge
from tasks.setup import build_algorithm
from tests.pretrained import CONFIGS, ROWS, save, save_remote
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


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Copies of code beside models stay out of the user's cache."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.mark.parametrize("kind", ["llada", "Dream"])
@torch.no_grad()
def test_models_with_code_of_their_own(kind: str, tmp_path: Path, modules: None) -> None:
    folder = save_remote(tmp_path / "model", kind)
    with pytest.raises(UserError, match="code lies beside its weights"):
        build(folder, "algo=imdm")
    module = build(folder, "algo=imdm", "model.trust_remote_code=True")
    assert (module.mask_id, module.vocab_size) == (SIZE - 1, SIZE)
    base = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    x = ids()
    logits = base(input_ids=x).logits
    if kind == "Dream":  # position i is told by the features in front of it
        logits = torch.cat((logits[:, :1], logits[:, :-1]), dim=1)
    seeds = module.objective.draw_seeds(torch.arange(3), LENGTH)
    wide = torch.nn.functional.linear(module.backbone.body(x, None, seeds), module.backbone._linear.weight)
    assert torch.equal(wide, logits) and logits.std() > 0.3


@pytest.mark.parametrize("kind", [*CONFIGS, "llada", "Dream"])
@torch.no_grad()
def test_unequal_texts_in_a_batch_are_each_alone(kind: str, tmp_path: Path, modules: None) -> None:
    if kind in CONFIGS:
        network = build(save(tmp_path / "model", kind), "algo=mdlm").backbone
    else:
        folder = save_remote(tmp_path / "model", kind)
        network = build(folder, "algo=mdlm", "model.trust_remote_code=True").backbone
    x = ids()
    lengths = (5, LENGTH, 9)
    mask = torch.arange(LENGTH) < torch.tensor(lengths)[:, None]
    padded = torch.where(mask, x, 0)
    with network.attending(mask):
        together = network.body(padded, None)
    for row, length in enumerate(lengths):
        alone = network.body(x[row : row + 1, :length], None)
        torch.testing.assert_close(together[row : row + 1, :length], alone, rtol=1e-4, atol=1e-4)
    assert (network.body(padded, None)[0, :5] - together[0, :5]).abs().max() > 0.01  # without the mask


def padded_batch() -> dict[str, Tensor]:
    mask = torch.arange(LENGTH) < torch.tensor([5, LENGTH, 9, 7])[:, None]
    words = torch.randint(4, SIZE - 1, mask.shape, generator=torch.Generator().manual_seed(1))
    return {"input_ids": torch.where(mask, words, 0), "attention_mask": mask, "row": torch.arange(4)}


@pytest.mark.parametrize("algo", ["mdlm", "im-sdtt"])
def test_padding_is_neither_seen_nor_in_the_loss(algo: str, tmp_path: Path) -> None:
    module = build(save(tmp_path), f"algo={algo}", "loader.global_batch_size=4")
    batch, other = padded_batch(), padded_batch()
    other["input_ids"] = torch.where(batch["attention_mask"], batch["input_ids"], 7)
    outputs = [module.loss(b, step=0, num_rows=4, training=True) for b in (batch, other)]
    assert torch.equal(outputs[0].loss_mask, batch["attention_mask"])
    torch.testing.assert_close(outputs[0].token_nll, outputs[1].token_nll, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(outputs[0].loss, outputs[1].loss, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_tokenizer_without_a_mask_gets_one_id_and_row(tmp_path: Path) -> None:
    folder = save(tmp_path, mask=False, vocab_size=SIZE - 1)
    module = build(folder, "algo=mdlm")
    assert (module.mask_id, module.vocab_size) == (SIZE - 1, SIZE)
    embedding = module.backbone.embedding
    assert embedding.shape[0] == SIZE and module.backbone.head.weight.shape[0] == SIZE
    torch.testing.assert_close(embedding[-1], embedding[:-1].mean(0))
    # Where the matrix has more rows than the tokenizer has ids, one of those is the mask.
    wide = build(save(tmp_path / "wide", mask=False), "algo=mdlm")
    assert wide.mask_id == SIZE - 1 and wide.backbone.base.get_input_embeddings().weight.shape[0] == ROWS
    with pytest.raises(UserError, match=r"model.path=.*has 20 embeddings, the tokenizer 25 ids"):
        build(save(tmp_path / "narrow", vocab_size=20), "algo=mdlm")


@pytest.mark.parametrize("words", [(), ("lora.rank=2",), ("lora.rank=2", "model.base_dtype=bf16")])
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_sixteen_bits_are_close(precision: str, words: tuple[str, ...], tmp_path: Path) -> None:
    folder = save(tmp_path, "modernbert")
    exact = build(folder, "algo=imdm", *words[:1])
    low = build(folder, "algo=imdm", f"trainer.precision={precision}", *words)
    for module in (exact, low):
        torch.nn.init.normal_(module.backbone.vocab_embed.imdm_mlp[2].weight, generator=torch.manual_seed(0))
    seeds = exact.objective.draw_seeds(torch.arange(3), LENGTH)
    features = [module.backbone.body(ids(), None, seeds) for module in (exact, low)]
    features[1].square().mean().backward()
    assert features[1].dtype == torch.float32
    error = (features[0] - features[1]).norm() / features[0].norm()
    is_low = precision == "bf16" or len(words) == 2
    assert 1e-4 < error < 0.03 if is_low else error == 0
    assert all(
        p.grad.isfinite().all() and p.grad.dtype == torch.float32
        for p in low.trainable()
        if p.grad is not None
    )


# Adapters ---------------------------------------------------------------------------------------------


def perturb(module: TrainerBase) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.trainable():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def test_adapters_change_nothing_at_first_and_can_be_merged(tmp_path: Path) -> None:
    folder, x = save(tmp_path), ids()
    plain = build(folder, "algo=mdlm").backbone(x, None)
    module = build(folder, "algo=mdlm", "lora.rank=3")
    assert torch.equal(module.backbone(x, None), plain)
    trained = [name for name, p in module.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    perturb(module)
    expected = module.backbone(x, None)
    assert (expected - plain).abs().max() > 0.05
    merge(module.backbone.base)
    assert not any("lora_" in name for name, _ in module.named_parameters())
    torch.testing.assert_close(module.backbone(x, None), expected, rtol=1e-5, atol=1e-5)


def test_teacher_and_student_share_the_frozen_weights(tmp_path: Path) -> None:
    module = build(save(tmp_path), "algo=im-sdtt", "lora.rank=3")
    teacher = module.rounds.get_teacher().backbone
    own = {id(p) for p in module.parameters() if p.requires_grad}
    shared = {p.data_ptr() for p in module.backbone.parameters() if not p.requires_grad}
    apart = [name for name, p in teacher.named_parameters() if p.data_ptr() not in shared]
    assert apart and all("lora_" in name or "vocab_embed" in name for name in apart)
    assert not own & {id(p) for p in teacher.parameters()}
    before = teacher(ids(), None, torch.zeros_like(ids()))
    perturb(module)
    assert torch.equal(teacher(ids(), None, torch.zeros_like(ids())), before)
    module.rounds.promote()
    after = teacher(ids(), None, torch.zeros_like(ids()))
    assert torch.equal(after, module.backbone(ids(), None, torch.zeros_like(ids())))
    assert not torch.equal(after, before)


def test_checkpoints_hold_what_is_trained(tmp_path: Path) -> None:
    folder = save(tmp_path)
    module = build(folder, "algo=imdm", "lora.rank=3")
    perturb(module)
    state = module.state_dict()
    assert all("lora_" in name or "vocab_embed" in name for name in state)
    again = build(folder, "algo=imdm", "lora.rank=3")
    again.load_state_dict(state)
    seeds = module.objective.draw_seeds(torch.arange(3), LENGTH)
    assert torch.equal(again.backbone(ids(), None, seeds), module.backbone(ids(), None, seeds))
    full = build(folder, "algo=imdm").state_dict()
    assert not any("cls.predictions.decoder.weight" in name for name in full), "tied to the embedding"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("model.path=/nowhere/at/all",), "model.path=/nowhere/at/all: no such folder"),
        (("model.length=41",), "model.length=41: the model at .* has 40 positions; use at most 40"),
        (("algo=ar",), "algo=ar: does not write by unmasking"),
        (("algo=duo_base",), "algo=duo_base: does not write by unmasking"),
        (("algo=d3pm",), "algo.time_conditioning=True: a pretrained model does not see"),
        (("model.hidden_size=32",), "model.hidden_size=32: the model at .* has 16; leave it out"),
        (("lora.rank=2", "lora.targets=quary"), "lora.targets=quary: no linear layer .* key, query, value"),
        (("model.base_dtype=bf16",), "model.base_dtype=bf16: weights that are trained are float32"),
        (("training.activation_checkpointing=True", "model.path={remote}", "model.trust_remote_code=True"),
         "training.activation_checkpointing=True: StandIn does not offer it"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(words: tuple[str, ...], problem: str, tmp_path: Path, modules: None) -> None:
    folder, remote = save(tmp_path / "model"), save_remote(tmp_path / "remote", "llada")
    words = tuple(word.format(remote=remote) for word in words)
    first = () if any(word.startswith("algo=") for word in words) else ("algo=mdlm",)
    with pytest.raises(UserError, match=f"^{problem}"):
        build(folder, *first, *words)


def test_a_causal_model_says_what_to_use(tmp_path: Path) -> None:
    transformers.GPT2Config(n_layer=1, architectures=["GPT2LMHeadModel"]).save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match="is no masked language model but a causal one .* use one like ModernBERT"
    ):
        build(str(tmp_path), "algo=mdlm")
    with pytest.raises(UserError, match=r"^lora.rank=2: adapters are for pretrained models"):
        compose_config(["algo=mdlm", "lora.rank=2"])
