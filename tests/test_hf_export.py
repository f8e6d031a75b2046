"""Exported folders write by themselves: token for token as our sampler; pretrained models and ours."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from test_hf import LENGTH, SIZE, build, compose, ids, perturb

from errors import UserError
from tasks import MODES
from tests.pretrained import save, save_remote, tokenizer
from trainer_base import TrainerBase


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])


def export(tmp_path: Path, folder: str, *words: str) -> tuple[TrainerBase, Path]:
    """A trained-looking model, and the folder that mode=export makes of its checkpoint."""
    module = build(folder, *words)
    perturb(module)
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict(), "global_step": 1}
    if module.backbone.base_hash is not None:
        checkpoint["base"] = {"path": folder, "hash": module.backbone.base_hash}
    torch.save(checkpoint, tmp_path / "x.ckpt")
    out = tmp_path / "out"
    given = ("mode=export", f"eval.checkpoint_path={tmp_path}/x.ckpt", f"export.path={out}")
    MODES["export"](compose(folder, *words, *given))
    return module, out


def code_of(folder: Path) -> Any:
    """The folder's own file, imported as anybody would."""
    spec = importlib.util.spec_from_file_location("mask_diffusion", folder / "mask_diffusion.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


KINDS = {
    "mdlm": ("bert", ("algo=mdlm", "noise=cosine")),
    "imdm": ("modernbert", ("algo=imdm", "algo.noise_scale=3.0")),
    "adapters": ("roberta", ("algo=imdm", "algo.noise_type=randn", "lora.rank=2")),
    "alphabet": ("distilbert", ("algo=imdm", "algo.num_mask=5")),
    "llada": ("llada", ("algo=imdm", "algo.noise_type=learnable", "model.trust_remote_code=True")),
    "Dream": ("Dream", ("algo=mdlm", "model.trust_remote_code=True")),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_a_folder_says_and_writes_what_we_do(name: str, tmp_path: Path) -> None:
    kind, words = KINDS[name]
    remote = kind in ("llada", "Dream")
    folder = save_remote(tmp_path / "m", kind) if remote else save(tmp_path / "m", kind)
    ours, out = export(tmp_path, folder, *words)
    model, found = code_of(out).load(out, trust_remote_code=remote)
    assert found.mask_token_id == SIZE - 1 and found.pad_token_id == 0
    x, seeds = ids(), ours.objective.draw_seeds(torch.arange(3), LENGTH)
    expected = ours.backbone(x, None, seeds)
    torch.testing.assert_close(model(x, noise_seeds=seeds), expected, rtol=1e-5, atol=2e-5)
    samples = ours.generator.sample(6, 4)
    assert torch.equal(model.generate(num_samples=6, steps=4, seed=1), samples.tokens)
    assert not torch.equal(model.generate(num_samples=6, steps=4, seed=2), samples.tokens)
    # Without that file: the model with merged adapters, and with masks that have no state.
    auto = transformers.AutoModel if remote else transformers.AutoModelForMaskedLM
    plain, info = auto.from_pretrained(out, trust_remote_code=remote, output_loading_info=True)
    assert not any(info.values())
    clean = x.clamp(max=SIZE - 2)
    if name != "Dream":
        logits = plain.eval()(input_ids=clean).logits[..., :SIZE]
        torch.testing.assert_close(logits, ours.backbone(clean, None, seeds), rtol=1e-5, atol=2e-5)
    # And here again, as what another training starts from.
    again = build(str(out), *(word for word in words if not word.startswith("lora")))
    torch.testing.assert_close(again.backbone(x, None, seeds), expected, rtol=1e-5, atol=2e-5)


@torch.no_grad()
def test_prompts_of_unequal_length_are_each_alone(tmp_path: Path) -> None:
    _, out = export(tmp_path, save(tmp_path / "m", "bert"), "algo=imdm")
    model, _ = code_of(out).load(out)
    given = torch.tensor([[5, 6, 7, 8], [9, 10, SIZE - 1, SIZE - 1]])
    together = model.generate(given, steps=3)
    assert torch.equal(together[:, :2], given[:, :2]) and torch.equal(together[0, :4], given[0])
    assert (together != SIZE - 1).all() and together.shape == (2, LENGTH)
    assert torch.equal(model.generate(given[:1, :4], steps=3), together[:1])
    # Padding is not seen, whatever stands there, and stays.
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    padded = [model.generate(torch.where(mask.bool(), given, pad), mask, steps=3) for pad in (0, 3)]
    seen = torch.ones(2, LENGTH, dtype=torch.bool)
    seen[1, 2:4] = False
    assert torch.equal(padded[0][seen], padded[1][seen]) and padded[0][1, 2:4].tolist() == [0, 0]


def test_pipelines_fill_masks(tmp_path: Path) -> None:
    _, out = export(tmp_path, save(tmp_path / "m", "bert"), "algo=mdlm")
    card = (out / "README.md").read_text()
    assert 'pipeline("fill-mask"' in card and "model.generate(" in card
    filled = transformers.pipeline("fill-mask", model=str(out))("the <mask> sat on a mat")
    assert len(filled) == 5 and all(one["token_str"] in tokenizer().get_vocab() for one in filled)


def test_adapters_are_written_as_peft_names_them(tmp_path: Path) -> None:
    module, out = export(tmp_path, save(tmp_path / "m", "bert"), "algo=mdlm", "lora.rank=2", "lora.alpha=6")
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (2, 6.0, "LORA")
    weights = load_file(out / "adapter" / "adapter_model.safetensors")
    name = "bert.encoder.layer.1.attention.self.query"
    assert name in config["target_modules"] and len(weights) == 2 * len(config["target_modules"])
    a, b = (weights[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    merged = load_file(out / "model.safetensors")[f"{name}.weight"]
    base = load_file(tmp_path / "m" / "model.safetensors")[f"{name}.weight"]
    torch.testing.assert_close(merged, base + 3 * b @ a, rtol=1e-5, atol=1e-5)


def test_an_export_replaces_an_export_alone(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", "bert")
    _, out = export(tmp_path, folder, "algo=mdlm")
    export(tmp_path, folder, "algo=mdlm")
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds notes.txt, which no export writes"):
        export(tmp_path, folder, "algo=mdlm")
