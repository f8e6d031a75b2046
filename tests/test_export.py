"""mode=export: transformers loads the folder by itself, says the same as we do, and we load it again."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from config.cli import compose_config
from models.checkpoint import read_checkpoint
from models.export import modeling_mask_diffusion as template
from tasks import MODES
from tasks.setup import build_algorithm, build_evaluated
from trainer_base import TrainerBase

LENGTH = 12
TINY = {
    "algo": "mdlm",
    "data": "synthetic-align", "data.vocab_size": 15, "model": "synthetic", "model.length": LENGTH,
    "model.hidden_size": 32, "model.cond_dim": 16, "model.n_blocks": 2, "model.n_heads": 4,
    "loader.eval_global_batch_size": 256, "loader.num_workers": 0, "trainer.precision": 32,
    "trainer.accelerator": "cpu", "trainer.enable_progress_bar": False, "trainer.limit_val_batches": 1,
    "wandb": "null",
}  # fmt: skip
KINDS = {
    "mdlm": ("algo=mdlm",),
    "mdlm-all": ("algo=mdlm", "model.softcap=2", "model.qk_norm=True", "algo.time_conditioning=True"),
    "rand": ("algo=imdm", "model.noise_dim=6", "algo.noise_scale=0.3"),
    "randn": ("algo=imdm", "model.noise_dim=6", "algo.noise_type=randn"),
    "learnable": ("algo=imdm", "model.noise_dim=6", "algo.noise_type=learnable"),
    "5 masks": ("algo=imdm", "algo.num_mask=5"),
    "1 mask": ("algo=imdm", "algo.num_mask=1"),
    "ar": ("algo=ar",),
    "ar-all": ("algo=ar", "model.softcap=2", "model.qk_norm=True"),
}


def compose(folder: Path, *overrides: str) -> Any:
    words = [f"{key}={value}" for key, value in TINY.items()]
    places = (f"data.cache_dir={folder}/cache", f"eval.generated_samples_path={folder}/result.json")
    return compose_config([*words, *places, *overrides], warn=False)


def perturbed(cfg: Any, seed: int) -> TrainerBase:
    """A model whose every weight matters."""
    module, generator = build_algorithm(cfg).eval(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.15 * torch.randn(parameter.shape, generator=generator)
    return module


def checkpoint(cfg: Any, path: Path) -> Path:
    """A .ckpt whose averages differ from its raw weights."""
    raw, averaged = perturbed(cfg, seed=0), perturbed(cfg, seed=1)
    averages = [p.detach() for p in averaged.parameters() if p.requires_grad]
    ema = {"decay": 0.9, "num_updates": 1, "shadow_params": averages}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": raw.state_dict(), "ema": ema, "global_step": 5}, path)
    return path


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Load a folder as anybody would; copies of its code stay out of the user's cache."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])

    def _load(folder: Path, causal: bool = False) -> Any:
        auto = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForMaskedLM
        model, found = auto.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
        assert not any(found.values()), found
        return model.eval()

    return _load


def export(tmp_path: Path, *overrides: str) -> tuple[Path, Path]:
    """A checkpoint and the folder that mode=export makes of it."""
    path = checkpoint(compose(tmp_path, *overrides), tmp_path / "x.ckpt")
    words = ("mode=export", f"eval.checkpoint_path={path}", f"export.path={tmp_path}/deep/out")
    MODES["export"](compose(tmp_path, *overrides, *words))
    return path, tmp_path / "deep" / "out"


def states(module: TrainerBase) -> tuple[Tensor, Tensor, Tensor]:
    """Half masked ids (3, L), sigma (3,), and noise seeds of all int64."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(15, (3, LENGTH), generator=generator)
    masked = torch.rand(ids.shape, generator=generator) < 0.5
    seeds = torch.randint(-(2**63), 2**63 - 1, ids.shape, generator=generator)
    return torch.where(masked, module.mask_id, ids), torch.tensor([0.1, 0.7, 3.0]), seeds


@pytest.mark.parametrize("disable_ema", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_transformers_gives_our_logits(kind: str, disable_ema: bool, tmp_path: Path, load: Any) -> None:
    """Two ways of computing the same in float32: 1e-5 is some tens of roundings of logits of about 2."""
    ema = f"eval.disable_ema={disable_ema}"
    path, folder = export(tmp_path, *KINDS[kind], ema)
    ours = build_evaluated(
        compose(tmp_path, *KINDS[kind], ema, "mode=ppl_eval", f"eval.checkpoint_path={path}")
    )
    causal = ours.backbone.config.causal
    theirs = load(folder, causal)
    assert theirs.num_parameters() == sum(p.numel() for p in ours.backbone.parameters())
    ids, sigma, seeds = states(ours)
    with ours.ema_weights():
        if causal:
            expected = ours.backbone(ids, None)
            expected[..., ours.mask_id] = -1e6
            found = theirs(ids, labels=ids)
            per_token = torch.nn.functional.cross_entropy(
                expected[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
            )
            torch.testing.assert_close(found.loss, per_token)
        elif kind == "mdlm-all":
            expected, found = ours.backbone(ids, sigma), theirs(ids, sigma=sigma)
        else:
            expected, found = ours.backbone(ids, None, seeds), theirs(ids, noise_seeds=seeds)
    assert expected[..., : ours.mask_id].std() > 0.3, "weights that matter"
    torch.testing.assert_close(found.logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["mdlm", "rand", "ar"])
def test_the_folder_gives_the_numbers_of_the_checkpoint(kind: str, tmp_path: Path) -> None:
    path, folder = export(tmp_path, *KINDS[kind])
    few = ("sampling.steps=3", "sampling.num_sample_batches=1", "loader.eval_batch_size=8")
    common = (*KINDS[kind], *few, "eval.compute_generative_perplexity=False")
    results = []
    for source in (path, folder):
        where = (*common, f"eval.checkpoint_path={source}")
        measured = MODES["ppl_eval"](compose(tmp_path, *where, "mode=ppl_eval"))
        sampled = MODES["sample_eval"](compose(tmp_path, *where, "mode=sample_eval"))
        results.append((measured["nll"], sampled["generated_seqs"]))
    assert results[0] == results[1]
    where = (*common, f"eval.checkpoint_path={path}", "eval.disable_ema=True")
    assert MODES["ppl_eval"](compose(tmp_path, *where, "mode=ppl_eval"))["nll"] != results[0][0]


def test_noise_is_drawn_where_no_seeds_are_given(tmp_path: Path, load: Any) -> None:
    _, folder = export(tmp_path, *KINDS["rand"])
    model = load(folder)
    ids = torch.full((1, LENGTH), model.config.mask_token_id)
    draws = [model(ids, generator=torch.Generator().manual_seed(s)).logits for s in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1]) and not torch.allclose(draws[0], draws[2], atol=1e-2)
    assert not torch.allclose(model(ids).logits, model(ids).logits, atol=1e-2)


def test_a_fresh_python_without_this_program_loads_it(tmp_path: Path) -> None:
    _, folder = export(tmp_path, *KINDS["rand"])
    program = (
        "import sys, torch, transformers\n"
        "model = transformers.AutoModelForMaskedLM.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "ids = torch.tensor([tokenizer('3 1 4')['input_ids']])\n"
        "print(ids.tolist(), model(ids).logits.shape, model.dtype, model.config.num_hidden_layers)\n"
        "assert not {'models', 'utils', 'lightning', 'diffusion', 'flash_attn'} & set(sys.modules)\n"
    )
    environment = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)}
    command = [sys.executable, "-c", program, str(folder)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "[[3, 1, 4]] torch.Size([1, 3, 16]) torch.float32 2"


def test_what_the_folder_holds(tmp_path: Path) -> None:
    run, out, algo = tmp_path / "run", tmp_path / "out", ("algo=imdm", "model.noise_dim=6")
    path = checkpoint(compose(tmp_path, *algo), run / "checkpoints" / "last.ckpt")
    (run / "result.json").write_text(json.dumps({"val/ppl": 12.345, "val/bpd": 3.5}))
    words = (*algo, "mode=export", "name=my-model", f"eval.checkpoint_path={path}", f"export.path={out}")
    result = MODES["export"](compose(tmp_path, *words))
    config = json.loads((out / "config.json").read_text())
    assert config["auto_map"]["AutoModelForMaskedLM"] == "modeling_mask_diffusion.MaskDiffusionForMaskedLM"
    assert config["mask_noise"]["noise_dim"] == 6
    assert (config["mask_token_id"], config["vocab_size"], config["length"]) == (15, 16, LENGTH)
    card = (out / "README.md").read_text()
    facts = ("algorithm | imdm", "data | synthetic-align", f"length | {LENGTH} tokens", "training steps | 5")
    for words in ("license: apache-2.0", "# my-model", f"{result['parameters']:,}", "12.3", *facts):
        assert words in card, words
    assert {value.dtype for value in load_file(out / "model.safetensors").values()} == {torch.float32}
    assert out.stat().st_mode & 0o044, "as readable as other folders"
    assert read_checkpoint(out, key="x")["folder_settings"]["algo.name"] == "imdm"


def test_the_example_of_the_card_runs(tmp_path: Path, load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("mdlm", "ar"):
        _, folder = export(tmp_path / kind, *KINDS[kind])
        monkeypatch.chdir(folder)
        code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
        names: dict[str, Any] = {}
        exec(code, names)
        shown = names["log_probs" if kind == "ar" else "logits"]
        assert shown.shape[-1] == 16 and torch.isfinite(shown).all()


def test_only_an_earlier_export_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, folder = export(tmp_path, *KINDS["mdlm"])
    again = compose(tmp_path, "mode=export", f"eval.checkpoint_path={path}", f"export.path={folder}")
    before = load_file(folder / "model.safetensors")["backbone.output_layer.linear.bias"]
    again.eval.disable_ema = True
    MODES["export"](again)
    assert not torch.equal(
        load_file(folder / "model.safetensors")["backbone.output_layer.linear.bias"], before
    )
    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr(sys.modules["tasks.export"], "model_card", lambda *_: 1 / 0)
        MODES["export"](again)
    assert (folder / "README.md").is_file(), "a failed export changes nothing"
    for foreign, place in (("notes.txt", folder), ("thesis.tex", tmp_path / "other")):
        place.mkdir(exist_ok=True)
        (place / foreign).touch()
        again.export.path = str(place)
        with pytest.raises(ValueError, match=f"^export.path={place}: [^\n]*$"):
            MODES["export"](again)
        assert (place / foreign).exists()
    assert [path.name for path in folder.parent.iterdir()] == ["out"], "nothing is left beside it"


def test_the_exported_code_is_small_and_alone() -> None:
    source = Path(template.__file__).read_text()
    assert len(source.splitlines()) <= 300
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported |= {node.module} if isinstance(node, ast.ImportFrom) else {a.name for a in node.names}
    standard = {"__future__", "math", "typing"}
    assert {name.split(".")[0] for name in imported} <= standard | {"torch", "transformers"}
