"""Checkpoints of others: nothing in them runs, names and shapes are checked, averages go by name."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import enum
import functools
import io
import json
import logging
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor, nn

import tasks.weights
from config.cli import compose_config
from data.tokenizers import get_tokenizer
from models import safe_unpickle
from models.checkpoint import averaged_weights, load_ema, load_weights, read_checkpoint, read_for_resuming
from models.dit import BackboneConfig, DiT, MaskNoiseConfig
from models.ema import ExponentialMovingAverage
from models.safe_unpickle import _ALLOWED, InertUnpickler, _Storage, read_torch_file
from tasks.setup import build_evaluated, build_from_checkpoint

KEY = "eval.checkpoint_path"
GOLDEN_KEYS = json.loads((Path(__file__).parent / "golden" / "state_dict_keys.json").read_text())
NOISE = {
    "imdm": MaskNoiseConfig("rand", 48),
    "imdm_m7": MaskNoiseConfig("rand", 48, num_mask=7),
    "imdm_learnable": MaskNoiseConfig("learnable", 48),
}
VARIANTS = ["mdlm", "mdlm_qk_norm", *NOISE]


class Color(enum.Enum):
    RED = 1


class Hostile:
    """Its state, once set, writes a file; or a call of ``function`` does, in place of rebuilding it."""

    def __init__(self, marker: Path, function: Any = None, arguments: tuple = ()) -> None:
        self.marker, self.function, self.arguments = str(marker), function, arguments

    def __reduce__(self) -> Any:
        if self.function is not None:
            return self.function, self.arguments
        return Hostile._blank, (), {"marker": self.marker}

    @staticmethod
    def _blank() -> Hostile:
        return Hostile.__new__(Hostile)

    def __setstate__(self, state: dict[str, Any]) -> None:
        Path(state["marker"]).touch()


def hostile(kind: str, marker: Path) -> Hostile:
    write = f"open({str(marker)!r}, 'w')"
    functions = {"system": (os.system, f"touch {marker}"), "eval": (eval, write), "exec": (exec, write)}
    if kind == "setstate":
        return Hostile(marker)
    function, argument = functions[kind]
    return Hostile(marker, function, (argument,))


def weights(variant: str = "mdlm", seed: int = 0) -> OrderedDict[str, Tensor]:
    """Random weights under the official names, in the official order."""
    generator = torch.Generator().manual_seed(seed)
    content = OrderedDict(
        (row["name"], torch.randn(row["shape"], generator=generator)) for row in GOLDEN_KEYS[variant]
    )
    content["backbone.rotary_emb.inv_freq"] = DiT(config(variant)).rotary_emb.inv_freq
    return content


def official(variant: str = "mdlm") -> dict[str, Any]:
    """A checkpoint as the official code writes it: averages without names, and not those of the buffer."""
    trainable = [row["name"] for row in GOLDEN_KEYS[variant] if row["trainable"]]
    averages = weights(variant, seed=1)
    ema = {"decay": 0.99, "num_updates": 7, "shadow_params": [averages[name] for name in trainable]}
    return {"state_dict": weights(variant), "ema": ema, "global_step": 7}


def config(variant: str = "mdlm", **changed: Any) -> BackboneConfig:
    sizes = {"vocab_size": 51, "hidden_size": 64, "cond_dim": 32, "n_blocks": 2, "n_heads": 4, "length": 16}
    settings = {"mask_id": 50, "qk_norm": variant == "mdlm_qk_norm", "mask_noise": NOISE.get(variant)}
    return BackboneConfig(**{**sizes, **settings, **changed})


class Module(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.backbone = DiT(config(**settings))


def save(content: Any, path: Path, *, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def complaint(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(ValueError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Nothing runs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", ["system", "eval", "exec", "setstate"])
def test_nothing_in_a_file_runs(kind: str, legacy: bool, tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "official.ckpt"
    bad = hostile(kind, marker)
    save({**official(), "hyper_parameters": {"config": {"deep": [bad, {"key": bad}]}}}, path, legacy=legacy)
    checkpoint = read_checkpoint(path, key=KEY)
    assert not marker.exists()
    assert "hyper_parameters" not in checkpoint
    assert all(torch.equal(checkpoint["state_dict"][name], value) for name, value in weights().items())
    for part, name in (("state_dict", "backbone.bad"), ("ema", "other")):
        content = official()
        content[part][name] = bad
        message = complaint(read_checkpoint, save(content, path, legacy=legacy), key=KEY)
        assert f"{part}.{name} is a pickled " in message and not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the file is as harmful as it is meant to be"


def test_a_pickle_changes_nothing_of_the_program() -> None:
    """BUILD sets attributes of whatever stands on the stack: no function or class of ours may be there."""
    state = b"N}X\x0c\x00\x00\x00__defaults__)s\x86b."  # (None, {"__defaults__": ()})
    before = torch._utils._rebuild_tensor_v2.__defaults__
    for module, name in [*_ALLOWED, ("os", "system"), ("builtins", "dict"), ("models.safe_unpickle", "Stub")]:
        program = b"\x80\x02c" + f"{module}\n{name}\n".encode() + state
        with contextlib.suppress(AttributeError, TypeError):  # dtypes have no attributes that could be set
            InertUnpickler(io.BytesIO(program), lambda key, size: None).load()
    assert torch._utils._rebuild_tensor_v2.__defaults__ == before
    for kept in (safe_unpickle.Stub, safe_unpickle._Builder, safe_unpickle._Ordered):
        assert "__defaults__" not in vars(kept)


def test_a_tensor_stays_inside_its_storage() -> None:
    build = _ALLOWED["torch._utils", "_rebuild_tensor_v2"]
    storage = _Storage(torch.zeros(4).untyped_storage(), torch.float32)
    assert build(storage, 1, (3,), (1,), False, OrderedDict()).shape == (3,)
    for offset, size, stride in ((2, (3,), (1,)), (0, (1000,), (1,)), (0, (2, 2), (3, 1)), (-1, (1,), (1,))):
        with pytest.raises(RuntimeError):
            build(storage, offset, size, stride, False, OrderedDict())
    assert storage.content.nbytes() == 16


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_of_all_kinds_are_read_as_pytorch_reads_them(legacy: bool, tmp_path: Path) -> None:
    base = torch.arange(24.0).view(4, 6)
    attributed = nn.Parameter(torch.randn(3))
    attributed.note = "kept by some optimizers"
    content = {
        "views": [base, base.t(), base[1:3, ::2], base[0]],
        "kinds": [torch.ones(2, dtype=getattr(torch, kind)) for kind in ("half", "bfloat16", "long", "bool")],
        "parameter": nn.Parameter(torch.randn(2, 2)),
        "attributed": attributed,
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(3.0),
        "plain": [1, 2.5, None, "x", (True,), {"size": torch.Size([1, 2])}, torch.float16],
    }  # fmt: skip
    found = read_torch_file(save(content, tmp_path / "x.pt", legacy=legacy))
    for name in ("views", "kinds"):
        for ours, theirs in zip(found[name], content[name], strict=True):
            assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    for name in ("parameter", "attributed", "empty", "scalar"):
        assert torch.equal(found[name], content[name])
    assert found["plain"] == [1, 2.5, None, "x", (True,), {"size": (1, 2)}, torch.float16]
    if legacy:  # of the newer format the tensors are views of the file itself
        assert found["views"][0].data_ptr() == found["views"][1].data_ptr()


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_damaged_and_foreign_files_are_one_line(tmp_path: Path) -> None:
    whole = save(official(), tmp_path / "whole.ckpt").read_bytes()
    old = save(official(), tmp_path / "old.ckpt", legacy=True).read_bytes()
    module = torch.jit.script(nn.Linear(1, 1))
    torch.jit.save(module, tmp_path / "script.pt")
    script = (tmp_path / "script.pt").read_bytes()
    contents = [b"", b"x", whole[:1000], whole[: len(whole) // 2], whole[1000:], old[:300], old[:-9], script]
    contents += [pickle.dumps([1]), pickle.dumps({"state_dict": 3})]
    for i, content in enumerate(contents):
        path = tmp_path / f"{i}.ckpt"
        path.write_bytes(content)
        assert complaint(read_checkpoint, path, key=KEY).startswith(f"{KEY}={path}: "), i
    for content in (
        [1],
        {"state_dict": 3},
        {"state_dict": {"a": 3}},
        {"state_dict": {}, "ema": {"shadow_params": 1}},
    ):
        assert complaint(read_checkpoint, save(content, path), key=KEY).startswith(f"{KEY}={path}: ")


# The official files --------------------------------------------------------------------------------


def test_objects_that_official_files_carry_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What MDLM, Duo and IMDM pickle: save_hyperparameters() keeps the configuration and the tokenizer."""
    tokenizer = get_tokenizer("text8")
    settings = OmegaConf.create({"a": {"b": [1, 2]}, "c": "${a.b}"})
    content = official() | {
        "hyper_parameters": {"config": settings, "tokenizer": tokenizer},
        "hparams_name": "kwargs",
        "callbacks": {"ModelCheckpoint": {"best": torch.tensor(1.0), "when": datetime.timedelta(seconds=3)}},
        "loops": [argparse.Namespace(x=1), functools.partial(print, 1), Color.RED],
        "sampler": {"random": np.random.RandomState(0).get_state(), "scalar": np.float64(2)},
        "metric": torchmetrics.MeanMetric(),
        "since": datetime.datetime(2024, 1, 1),
        "size": torch.Size([2]),
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1.0}]}],
    }  # fmt: skip
    content["state_dict"]["teacher.backbone.vocab_embed.embedding"] = torch.ones(2, 2)
    content["state_dict"]["valid_metrics.nll.total"] = torch.ones(())
    caplog.set_level(logging.INFO)
    checkpoint = read_checkpoint(save(content, tmp_path / "x.ckpt"), key=KEY)
    assert (
        checkpoint["global_step"] == 7
        and checkpoint["hparams_name"] == "kwargs"
        and checkpoint["size"] == (2,)
    )
    assert torch.equal(checkpoint["optimizer_states"][0]["state"][0]["exp_avg"], torch.ones(2))
    assert list(checkpoint["state_dict"]) == list(weights())
    assert len(caplog.messages) == 1
    for name in (
        "hyper_parameters",
        "loops",
        "sampler",
        "metric",
        "since",
        "callbacks",
        "teacher.*",
        "valid_metrics.*",
    ):
        assert name in caplog.messages[0]
    message = complaint(read_for_resuming, tmp_path / "x.ckpt", key="checkpointing.resume_ckpt_path")
    assert "training.finetune_path=" in message


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_official_weights_and_averages_go_by_name(variant: str, compiled: bool, tmp_path: Path) -> None:
    content, averages = official(variant), weights(variant, seed=1)
    if compiled:
        renamed = [
            (n.replace("backbone.", "backbone._orig_mod."), v) for n, v in content["state_dict"].items()
        ]
        content["state_dict"] = OrderedDict(renamed)
    checkpoint = read_checkpoint(save(content, tmp_path / "x.ckpt"), key=KEY)
    module = Module(variant=variant)
    ema = ExponentialMovingAverage(module.named_parameters(), 0.5)
    load_weights(module, checkpoint["state_dict"], key=KEY, path="x.ckpt")
    load_ema(ema, checkpoint, key=KEY, path="x.ckpt")
    for name, value in weights(variant).items():
        assert torch.equal(module.state_dict()[name], value), name
    assert (ema.decay, ema.num_updates) == (0.99, 7)
    with ema.applied(module):
        for name, parameter in module.named_parameters():
            assert torch.equal(parameter, averages[name]), name


@pytest.mark.parametrize("variant", NOISE)
def test_mdlm_goes_into_every_imdm(variant: str) -> None:
    module = Module(variant=variant)
    start = {name: value.clone() for name, value in module.named_parameters()}
    ema = ExponentialMovingAverage(module.named_parameters(), 0.5)
    load_weights(module, weights("mdlm"), key=KEY, path="x.ckpt")
    load_ema(ema, official("mdlm"), key=KEY, path="x.ckpt")
    averages = weights("mdlm", seed=1)
    with ema.applied(module):
        for name, parameter in module.named_parameters():
            assert torch.equal(parameter, averages.get(name, start[name])), name
    assert set(start) - set(averages)


def test_the_frozen_table_of_one_mask_has_no_average() -> None:
    one = Module(mask_noise=MaskNoiseConfig("rand", 48, num_mask=1))
    content = official()
    content["state_dict"] = OrderedDict(one.state_dict())
    ema = ExponentialMovingAverage(one.named_parameters(), 0.5)
    load_ema(ema, content, key=KEY, path="x.ckpt")
    with ema.applied(one):
        for name, value in weights("mdlm", seed=1).items():
            assert name.endswith("inv_freq") or torch.equal(dict(one.named_parameters())[name], value)


@pytest.mark.parametrize("part", ["norm", "norm2"])
def test_a_model_that_trains_some_norms_takes_their_averages(part: str) -> None:
    content, averages, module = official(), weights(seed=1), Module()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(part in name)
    ema = ExponentialMovingAverage(module.named_parameters(), 0.5)
    load_weights(module, averaged_weights(content, key=KEY, path="x"), key=KEY, path="x")
    load_ema(ema, content, key=KEY, path="x")
    assert all(part in name for name in ema.state_dict()["names"])
    with ema.applied(module):
        assert all(torch.equal(p, averages[name]) for name, p in module.named_parameters())
    # A file whose training had them alone: the rest of its weights are their own averages.
    content["ema"]["shadow_params"] = [averages[name] for name in averages if part in name]
    found = averaged_weights(content, key=KEY, path="x")
    raw = weights()
    assert all(torch.equal(found[name], (averages if part in name else raw)[name]) for name in raw)


def test_what_does_not_fit_is_named() -> None:
    def load(change: Any, **settings: Any) -> str:
        content = weights(**settings)
        change(content)
        return complaint(load_weights, Module(), content, key=KEY, path="x", hint="use another")

    norm = "backbone.blocks.1.norm1.weight"
    assert f"{norm} is missing; use another" in load(lambda w: w.pop(norm))
    assert "backbone.more is not part of the model" in load(
        lambda w: w.update({"backbone.more": torch.ones(1)})
    )
    assert "other.more is not part of the model" in load(lambda w: w.update({"other.more": torch.ones(1)}))
    assert f"{norm} is (3,) where the model has (64,)" in load(lambda w: w.update({norm: torch.ones(3)}))
    assert f"{norm} is of dtype torch.int64" in load(
        lambda w: w.update({norm: torch.ones(64, dtype=torch.int64)})
    )
    assert "imdm_mlp.0.weight is not part" in load(lambda w: None, variant="imdm")
    rotary = "backbone.rotary_emb.inv_freq"
    assert "other frequencies" in load(lambda w: w.update({rotary: torch.ones(8)}))

    def average(change: Any) -> str:
        content = official()
        change(content)
        return complaint(averaged_weights, content, key="training.finetune_path", path="x")

    count = len(official()["ema"]["shadow_params"])
    assert f"{count - 1} entries for {count} parameters" in average(lambda c: c["ema"]["shadow_params"].pop())
    swapped = average(lambda c: c["ema"]["shadow_params"].reverse())
    assert "its EMA has (128,) for backbone.vocab_embed.embedding, the weights have (51, 64)" in swapped
    assert average(lambda c: c.pop("ema")).endswith("training.load_ema=False")


# As the program uses them --------------------------------------------------------------------------

TINY = {
    "algo": "mdlm", "data": "synthetic-align", "data.vocab_size": 50,
    "model": "synthetic", "model.length": 16, "model.hidden_size": 64, "model.cond_dim": 32,
    "model.n_blocks": 2, "model.n_heads": 4,
    "trainer.precision": 32, "wandb": "null", "mode": "ppl_eval",
}  # fmt: skip


def compose(path: Path | str, *overrides: str) -> Any:
    words = [f"{key}={value}" for key, value in TINY.items()]
    return compose_config([*words, f"{KEY}={path}", *overrides], warn=False)


def published(folder: Path, *, dtype: torch.dtype = torch.float32, style: str = "one") -> Path:
    """A folder as those of MDLM and Duo on the hub; ``style``: one file, shards, or pickled weights."""
    folder.mkdir(parents=True)
    names = {
        "vocab_size": 51,
        "model_length": 16,
        "hidden_dim": 64,
        "cond_dim": 32,
        "n_blocks": 2,
        "n_heads": 4,
    }
    settings = {
        **names,
        "dropout": 0.1,
        "time_conditioning": False,
        "auto_map": {"AutoConfig": "evil.Config"},
    }
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "evil.py").write_text("raise AssertionError('remote code ran')")
    content = {n: v.to(dtype) for n, v in weights().items() if not n.endswith("inv_freq")}
    if style == "pickled":
        torch.save(content, folder / "pytorch_model.bin")
    elif style == "one":
        save_file(content, folder / "model.safetensors")
    else:
        parts = [dict(list(content.items())[i::2]) for i in range(2)]
        for i, part in enumerate(parts):
            save_file(part, folder / f"{i}.safetensors")
        index = {"weight_map": {name: f"{i}.safetensors" for i, part in enumerate(parts) for name in part}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("style", ["one", "shards", "pickled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("disable_ema", [True, False])
def test_published_folders(style: str, dtype: torch.dtype, disable_ema: bool, tmp_path: Path) -> None:
    folder = published(tmp_path / "mdlm-owt", dtype=dtype, style=style)
    module = build_evaluated(compose(folder, f"eval.disable_ema={disable_ema}", "algo.backbone=hf_dit"))
    assert not module.uses_ema
    with module.ema_weights():
        for name, value in weights().items():
            expected = value if name.endswith("inv_freq") else value.to(dtype).float()
            assert torch.equal(module.state_dict()[name], expected), name


def test_hub_names_are_fetched_when_they_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    folder, asked = published(tmp_path / "snapshot"), []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **how: asked.append((name, how)) or folder
    )
    monkeypatch.setattr(tasks.weights, "hub_reachable", lambda: True)
    build_evaluated(compose("kuleshov-group/mdlm-owt"))
    ((name, how),) = asked
    assert name == "kuleshov-group/mdlm-owt" and not how["local_files_only"]
    assert not any(pattern.endswith(".py") for pattern in how["allow_patterns"])
    monkeypatch.undo()
    monkeypatch.setattr(tasks.weights, "hub_reachable", lambda: False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    assert "the hub cannot be reached" in complaint(build_evaluated, compose("owner/nothing"))
    assert "no such file" in complaint(build_evaluated, compose("owner/nothing.ckpt"))
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "last.ckpt").touch()
    assert complaint(build_evaluated, compose(tmp_path / "run")).endswith(
        f"give {tmp_path}/run/checkpoints/last.ckpt"
    )


def test_files_of_a_hub_model_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    path, asked = save(official(), tmp_path / "blob"), []
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda *name, **how: asked.append((name, how)) or str(path)
    )
    monkeypatch.setattr(tasks.weights, "hub_reachable", lambda: True)
    monkeypatch.chdir(tmp_path)
    module = build_evaluated(compose("owner/model/mdlm.ckpt"))
    assert asked == [(("owner/model", "mdlm.ckpt"), {"local_files_only": False})]
    name = "backbone.vocab_embed.embedding"
    with module.ema_weights():
        assert torch.equal(module.state_dict()[name], weights(seed=1)[name])
    (tmp_path / "outputs").mkdir()
    for local in ("outputs/run/last.ckpt", "./owner/mdlm.ckpt", "a/b/c/last.ckpt"):
        assert "no such file" in complaint(build_evaluated, compose(local))
    assert len(asked) == 1
    monkeypatch.undo()
    monkeypatch.setattr(tasks.weights, "hub_reachable", lambda: False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    told = complaint(build_evaluated, compose("owner/model/mdlm.ckpt"))
    assert told.startswith(f"{KEY}=owner/model/mdlm.ckpt: no such path, and the hub cannot be reached")


def test_another_model_is_told_which_settings_to_use(tmp_path: Path) -> None:
    path = save(official(), tmp_path / "x.ckpt")
    message = complaint(
        build_evaluated, compose(path, "model.hidden_size=32", "model.n_heads=2", "model.cond_dim=8")
    )
    assert message.startswith(
        f"{KEY}={path}: backbone.vocab_embed.embedding is (51, 64) where the model has (51, 32)"
    )
    assert message.endswith("; use model.hidden_size=64 model.n_heads=4 model.cond_dim=32")
    message = complaint(build_evaluated, compose(path, "model.n_heads=8"))
    assert "inv_freq is (8,)" in message and message.endswith("; use model.n_heads=4")
    message = complaint(build_evaluated, compose(path, "data.vocab_size=20"))
    assert message.endswith("use the data.tokenizer_name_or_path that has its 51 tokens (this one gives 21)")
    imdm = {**official("imdm"), "config": {"algo": {"name": "imdm"}, "model": {"noise_dim": 48}}}
    message = complaint(build_evaluated, compose(save(imdm, path)))
    assert "use algo=imdm" in message and "model.noise_dim=48" in message
    folder = published(tmp_path / "folder")
    assert complaint(build_evaluated, compose(folder, "model.n_blocks=3")).endswith("; use model.n_blocks=2")
    message = complaint(build_evaluated, compose(folder, "model.n_heads=2"))
    assert message == f"{KEY}={folder}: a network of 4 heads, not 2; use model.n_heads=4"
    other = save({**official(), "config": {"algo": {"name": "duo"}}}, tmp_path / "other.ckpt")
    message = complaint(build_evaluated, compose(other))  # of another process, in the same shapes
    problem = "was trained with algo=duo, which algo=mdlm cannot evaluate"
    assert message == f"{KEY}={other}: {problem}; use algo=duo"


def test_no_algorithm_is_taken_that_nobody_named(tmp_path: Path) -> None:
    """No shape tells MDLM from the default (uniform noise, same vocabulary): the numbers would be wrong."""
    path = save(official(), tmp_path / "x.ckpt")
    words = [f"{key}={value}" for key, value in TINY.items() if key != "algo"]
    cfg = compose_config([*words, f"{KEY}={path}"], warn=False)
    said = complaint(build_evaluated, cfg)
    assert said == (
        f"{KEY}={path}: does not say of which algorithm it is, and no algo= was typed; "
        "type that of its training, like algo=mdlm, algo=imdm or algo=duo_base"
    )
    assert build_evaluated(compose_config([*words, "parameterization=subs", f"{KEY}={path}"], warn=False))
    known = save({**official(), "config": {"algo": {"name": "mdlm"}}}, tmp_path / "known.ckpt")
    said = complaint(build_evaluated, compose_config([*words, f"{KEY}={known}"], warn=False))
    assert "use algo=mdlm" in said and "no algo= was typed" not in said


@pytest.mark.parametrize(("kind", "algo"), [("mdlm", "mdlm"), ("DUO", "duo_base")])
def test_published_folders_say_of_which_algorithm_they_are(kind: str, algo: str, tmp_path: Path) -> None:
    folder = published(tmp_path / "folder")
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": kind}))
    other = {"mdlm": "duo_base", "duo_base": "mdlm"}[algo]
    assert f"use algo={algo}" in complaint(build_evaluated, compose(folder, f"algo={other}"))


def test_what_shapes_do_not_tell_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stored = {"model": {"softcap": 50.0, "n_heads": 4}, "data": {"tokenizer_name_or_path": "synthetic-align"}}
    path = save({**official(), "config": stored}, tmp_path / "x.ckpt")
    caplog.set_level("WARNING")
    build_evaluated(compose(path, "model.softcap=50"))
    assert not caplog.messages
    build_evaluated(compose(path))
    assert [line.split("with ")[1] for line in caplog.messages] == ["model.softcap=50.0 (here -1.0)"]


@pytest.mark.parametrize("averages", [True, False])
def test_evaluation_needs_averages_only_when_it_uses_them(averages: bool, tmp_path: Path) -> None:
    content = official()
    if not averages:
        del content["ema"]
    path = save(content, tmp_path / "x.ckpt")
    raw = build_evaluated(compose(path, "eval.disable_ema=True"))
    assert not raw.uses_ema
    if not averages:
        assert complaint(build_evaluated, compose(path)).endswith("eval.disable_ema=True")
        return
    module = build_evaluated(compose(path))
    name = "backbone.vocab_embed.embedding"
    with module.ema_weights(), raw.ema_weights():
        assert torch.equal(module.state_dict()[name], weights(seed=1)[name])
        assert torch.equal(raw.state_dict()[name], weights()[name])


@pytest.mark.parametrize("load_ema", [True, False])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_training_starts_from_the_averages_or_anew(
    kind: str, load_ema: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save(official(), tmp_path / "x.ckpt") if kind == "file" else published(tmp_path / "folder")
    module = build_from_checkpoint(compose(path), str(path), key="training.finetune_path", use_ema=load_ema)
    averaged = load_ema and kind == "file"
    expected = weights(seed=1 if averaged else 0)
    assert module.ema.num_updates == (7 if averaged else 0) and module.ema.decay == (
        0.99 if averaged else 0.9999
    )
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, expected[name])
    for name, average in zip(
        module.ema.state_dict()["names"], module.ema.state_dict()["shadow_params"], strict=True
    ):
        assert torch.equal(average, expected[name])
    warned = [line for line in caplog.messages if "serve as the averages" in line]
    assert len(warned) == (load_ema and kind == "folder")
