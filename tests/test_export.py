"""mode=export: transformers loads the folder by itself, says the same as we do, and we load it again."""

from __future__ import annotations

import ast
import errno
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from file_operations import Killed, content, kill_before, watch
from safetensors.torch import load_file
from torch import Tensor

from config.cli import compose_config
from data.tokenizers import boundary_ids, get_tokenizer, mask_id_of
from errors import UserError, of_system
from models.checkpoint import read_checkpoint
from models.export import modeling_mask_diffusion as template
from tasks import MODES
from tasks.export_pretrained import with_sampler
from tasks.setup import build_algorithm, build_evaluated
from tests.layouts import bert_like, gpt2_like, roberta_like
from trainer_base import TrainerBase

pytestmark = pytest.mark.slow

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


GPT2 = ("data=openwebtext", "data.vocab_size=null")


def test_a_gpt2_export_fills_masks_and_pads(tmp_path: Path, load: Any) -> None:
    words = ("algo=mdlm", *GPT2, f"data.tokenizer_name_or_path={gpt2_like(tmp_path / 'gpt2')}")
    _, folder = export(tmp_path, *words)
    model, tokenizer = load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    config = model.config
    assert (tokenizer.mask_token, tokenizer.mask_token_id, config.mask_token_id) == ("<mask>", 259, 259)
    assert (tokenizer.pad_token_id, config.pad_token_id, config.eos_token_id) == (258, 258, 258)
    assert mask_id_of(get_tokenizer(str(folder))) == (259, 260), "it is read here as it was"
    assert tokenizer("b <mask> a")["input_ids"] == [
        *tokenizer("b")["input_ids"],
        259,
        *tokenizer(" a")["input_ids"],
    ]
    assert (
        "[PAD]" not in tokenizer.get_vocab()
        and tokenizer.decode(tokenizer("x[PAD]")["input_ids"]) == "x[PAD]"
    )
    fill = transformers.pipeline("fill-mask", model=model, tokenizer=tokenizer)
    found = fill("a <mask>", top_k=3)
    assert len(found) == 3 and all(0 < one["score"] < 1 for one in found)


@pytest.mark.parametrize("kind", ["mdlm", "mdlm-all", "ar", "ar-all"])
@torch.no_grad()
def test_padding_is_not_seen(kind: str, tmp_path: Path, load: Any) -> None:
    _, folder = export(tmp_path, *KINDS[kind])
    model = load(folder, causal=kind.startswith("ar"))
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    alone = model(ids).logits
    for left, right in ((3, 0), (0, 3)):
        row = torch.cat([torch.full((1, left), 7), ids, torch.full((1, right), 9)], 1)
        mask = torch.tensor([[0] * left + [1] * 5 + [0] * right])
        batch = model(torch.cat([row, row.flip(1)]), attention_mask=torch.cat([mask, torch.ones_like(mask)]))
        torch.testing.assert_close(batch.logits[:1, left : left + 5], alone, rtol=0, atol=1e-5)
        assert torch.isfinite(batch.logits).all()
        torch.testing.assert_close(batch.logits[1:], model(row.flip(1)).logits, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="attention_mask has shape"):
        model(ids, attention_mask=torch.ones(1, 4))


def test_an_ar_export_generates(tmp_path: Path, load: Any) -> None:
    words = ("algo=ar", *GPT2, f"data.tokenizer_name_or_path={gpt2_like(tmp_path / 'gpt2')}")
    _, folder = export(tmp_path, *words)
    model, tokenizer = load(folder, causal=True), transformers.AutoTokenizer.from_pretrained(folder)
    assert model.can_generate() and model.generate(max_length=5, do_sample=True)[0, 0] == 258
    ids = tokenizer("ab", return_tensors="pt")["input_ids"]
    greedy = model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None)[0].tolist()
    expected = ids[0].tolist()
    for _ in range(6):
        expected.append(int(model(torch.tensor([expected])).logits[0, -1].argmax()))
    assert greedy == expected and 259 not in greedy
    tokenizer.padding_side = "left"
    batch = tokenizer(["ab", "a longer text"], padding=True, return_tensors="pt")
    both = model.generate(**batch, max_new_tokens=6, do_sample=False, eos_token_id=None)
    assert both[0, -8:].tolist() == expected, "padding on the left changes nothing"
    for settings in ({"num_beams": 2}, {"use_cache": True}):
        assert model.generate(ids, max_new_tokens=3, do_sample=False, **settings).shape[1] <= 5


def test_the_eos_of_the_config_is_that_of_training(tmp_path: Path) -> None:
    for make, eos in ((bert_like, 2), (roberta_like, 2)):
        words = ("algo=mdlm", *GPT2, f"data.tokenizer_name_or_path={make(tmp_path / make.__name__)}")
        _, folder = export(tmp_path / make.__name__, *words)
        config = json.loads((folder / "config.json").read_text())
        assert (config["eos_token_id"], config["mask_token_id"]) == (eos, 4)
        assert config["pad_token_id"] == (0 if make is bert_like else 1)
        again = get_tokenizer(str(folder))
        assert boundary_ids(again, "official")[1] == eos and mask_id_of(again)[0] == 4
    assert config["bos_token_id"] == 0


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
        patched.setattr(EXPORT, "model_card", lambda *_: 1 / 0)
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
    source = with_sampler(Path(template.__file__).read_text())
    assert len(source.splitlines()) <= 500
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported |= {node.module} if isinstance(node, ast.ImportFrom) else {a.name for a in node.names}
    standard = {"__future__", "collections", "dataclasses", "functools", "math", "typing"}
    assert {name.split(".")[0] for name in imported} <= standard | {"torch", "transformers"}


# Kills and full disks -------------------------------------------------------------------------------


EXPORT = sys.modules["tasks.export"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, TrainerBase, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("built")
    path = checkpoint(compose(folder), folder / "x.ckpt")
    words = ("mode=export", f"eval.checkpoint_path={path}", "eval.disable_ema=True", "export.path=out")
    cfg = compose(folder, *words)
    return cfg, build_evaluated(cfg), read_checkpoint(path, key="x")


@pytest.fixture
def exporter(built: tuple, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Export a small model with one of two biases, without building it again each time."""
    cfg, module, read = built

    def build(cfg: Any) -> TrainerBase:
        with torch.no_grad():
            module.backbone.output_layer.linear.bias.fill_(float(cfg.seed))
        return module

    monkeypatch.setattr(EXPORT, "build_evaluated", build)
    monkeypatch.setattr(EXPORT, "read_source", lambda *_, **__: read)

    def _export(target: Path, bias: int) -> None:
        cfg.export.path, cfg.seed = str(target), bias
        MODES["export"](cfg)

    return _export


@pytest.mark.parametrize("swaps", [True, False])
def test_a_kill_before_any_operation_leaves_the_old_export_or_the_new_one(
    swaps: bool, exporter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not swaps:  # a file system that cannot exchange two folders
        monkeypatch.setattr(EXPORT, "_exchange", lambda one, other: False)
    known = {}
    for bias in (0, 1):
        exporter(tmp_path / f"known-{bias}" / "out", bias)
        known[bias] = content(tmp_path / f"known-{bias}")
    assert known[0] != known[1]
    more = ((safetensors.torch, "save_file"), (transformers.PreTrainedTokenizerBase, "save_pretrained"))
    kills, seen = 0, set()
    while True:
        place = tmp_path / str(kills)
        exporter(place / "out", 0)
        try:
            with pytest.MonkeyPatch.context() as patch:
                extra = (*more, (EXPORT, "_exchange"))
                kill_before(patch, kills, extra)
                exporter(place / "out", 1)
            break
        except Killed:
            left = {name: value for name, value in content(place).items() if not name.startswith(".")}
            if swaps:
                assert left in known.values(), kills
            assert left.keys() == known[1].keys()
            assert all(left[name] in (known[0][name], known[1][name]) for name in left)
            weights = load_file(place / "out" / "model.safetensors")
            seen.add(weights["backbone.output_layer.linear.bias"][0].item())
            exporter(place / "out", 1)
            assert content(place) == known[1], "nothing is left of the killed one"
            kills += 1
    assert kills > 15 and seen == {0.0, 1.0}


def test_an_export_replaces_what_another_one_put_there_meanwhile(exporter: Any, tmp_path: Path) -> None:
    exporter(tmp_path / "known" / "out", 1)
    with pytest.MonkeyPatch.context() as patch:
        begun: list[bool] = []

        def before(name: str) -> None:
            if name == "chmod" and not begun:
                begun.append(True)
                exporter(tmp_path / "place" / "out", 0)

        watch(patch, before)
        exporter(tmp_path / "place" / "out", 1)
    assert begun and content(tmp_path / "place") == content(tmp_path / "known")


@pytest.mark.parametrize("fault", ["weights", "tokenizer", "card"])
def test_a_full_disk_is_one_line_and_leaves_the_old_export(
    fault: str, exporter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:  # as the tokenizers library, and as the system
        if fault == "tokenizer":
            raise Exception("No space left on device (os error 28)")
        raise OSError(errno.ENOSPC, "No space left on device")

    place, limits = tmp_path / "place", resource.getrlimit(resource.RLIMIT_FSIZE)
    exporter(place / "out", 0)
    before = content(place)
    if fault == "weights":
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    elif fault == "tokenizer":
        monkeypatch.setattr(transformers.PreTrainedTokenizerBase, "save_pretrained", full)
    else:
        monkeypatch.setattr(Path, "write_text", full)
    try:
        with pytest.raises((UserError, OSError)) as caught:
            exporter(place / "out", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = caught.value
    shown = str(of_system(error) if isinstance(error, OSError) else error)
    assert str(place / "out") in shown and "make room" in shown and "\n" not in shown
    assert content(place) == before


@pytest.mark.parametrize("kind", ["mdlm-all", "rand", "5 masks"])
@torch.no_grad()
def test_a_folder_writes_token_for_token_as_our_sampler(kind: str, tmp_path: Path, load: Any) -> None:
    words = (*KINDS[kind], "noise=cosine", "sampling.temperature=0.9", "seed=7")
    path, folder = export(tmp_path, *words)
    ours = build_evaluated(compose(tmp_path, *words, "mode=sample_eval", f"eval.checkpoint_path={path}"))
    theirs = load(folder)
    given = torch.full((5, LENGTH), ours.mask_id)
    given[:, :3] = torch.tensor([1, 2, 3])
    with ours.ema_weights():
        free, prompted = ours.generator.sample(5, 4), ours.generator.sample(5, 4, given=given)
    settings = {"steps": 4, "temperature": 0.9, "seed": 7}
    assert torch.equal(theirs.generate(num_samples=5, **settings), free.tokens)
    assert torch.equal(theirs.generate(given[:, :3], **settings), prompted.tokens)
    # Padding is not seen and stays; the rest does not depend on what stands there.
    mask = torch.ones(5, 3, dtype=torch.int64)
    mask[2, 1:] = 0
    written = [theirs.generate(given[:, :3].masked_fill(mask == 0, pad), mask, **settings) for pad in (0, 9)]
    assert torch.equal(written[0][2, 3:], written[1][2, 3:]) and written[1][2, 1:3].tolist() == [9, 9]
