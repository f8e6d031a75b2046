"""Checkpoints that were damaged or made to do harm: a line that says so, or nothing is lost by it."""

from __future__ import annotations

import functools
import json
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

import models.safe_unpickle as safe_unpickle
from algo import OBJECTIVES
from api import load
from config.cli import compose_config
from config.run import groups
from errors import UserError
from models.checkpoint import UnreadableError, read_checkpoint, read_for_resuming
from tasks.frontier import frontier
from tasks.scoring import load_scorer
from tasks.setup import build_algorithm, build_evaluated, build_from_checkpoint
from tasks.stored import checked_settings, stored_configuration
from trainer_base import TrainerBase

TINY = (
    "data=synthetic-align", "data.vocab_size=20", "model=synthetic", "model.length=8", "model.hidden_size=32",
    "model.cond_dim=8", "model.n_blocks=1", "model.n_heads=2", "trainer.precision=32", "wandb=null",
)  # fmt: skip


def checkpoint_of(module: TrainerBase) -> dict[str, Any]:
    """What a training writes of a module, and something in the place of Lightning's own parts."""
    return {
        "global_step": 3,
        "pytorch-lightning_version": "2.6.0",
        "state_dict": dict(module.state_dict()),
        "loops": {"fit_loop": {}},
        "callbacks": {"Checkpoints": {"best_score": None, "regular": None}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(32)}}, "param_groups": [{"lr": 1.0}]}],
        "lr_schedulers": [{"last_epoch": 3}],
        "config": OmegaConf.to_container(module.config, resolve=True),
        "ema": module.ema.state_dict(),
    }


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    return checkpoint_of(build_algorithm(compose_config(["algo=ar", *TINY], warn=False)))


def save(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def changed(content: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """``content`` with another value for a dotted name of its settings."""
    config = json.loads(json.dumps(content["config"]))
    *path, leaf = name.split(".")
    section = config
    for part in path:
        section = section[part]
    section[leaf] = value
    return content | {"config": config}


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def complaint(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Damage -----------------------------------------------------------------------------------------------------


def test_a_flipped_bit_is_found_or_changes_nothing(tmp_path: Path) -> None:
    """Among the tensors, in the pickle, and in all of the directory."""
    values = {"config": {"training": {"ema": 0}}, "state_dict": {"a": torch.randn(40), "b": torch.randn(7)},
              "global_step": 3, "pytorch-lightning_version": "2", "loops": {"fit_loop": {}},
              "callbacks": {"x": 1}, "lr_schedulers": [{"last_epoch": 1}],
              "optimizer_states": [{"state": {0: {"exp_avg": torch.randn(40)}}}]}  # fmt: skip
    path = save(values, tmp_path / "x.ckpt")
    whole, before = path.read_bytes(), read_for_resuming(path, key="x")
    with zipfile.ZipFile(path) as archive:
        directory = archive.start_dir
        weights = next(info for info in archive.infolist() if info.filename.endswith("data/0"))
    places = {*range(0, directory, 17), *range(0, 700, 5), *range(directory, len(whole), 3)}
    found, missed = set(), set()
    for place in sorted(places):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        safe_unpickle._compare_checksums.cache_clear()  # two writes in one tick of the clock
        try:
            after = read_for_resuming(path, key="x")
        except UnreadableError as error:
            assert str(error).startswith(f"x={path}: cannot be read as a checkpoint (")
            found.add(place)
        else:
            assert equal(before, after), place
            missed.add(place)
    start = whole.index(values["state_dict"]["a"].numpy().tobytes())
    assert weights.header_offset < start
    assert found >= {place for place in places if start <= place < start + 160}
    assert missed, "the padding in front of tensors"


def test_a_file_is_checked_again_only_when_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, looked = save({"state_dict": {}}, tmp_path / "x.ckpt"), []
    original = zipfile.ZipFile.testzip
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda self: looked.append(1) or original(self))
    for _ in range(2):
        read_checkpoint(path, key="x")
    assert len(looked) == 1
    os.utime(path, (1, 1))
    read_checkpoint(path, key="x")
    assert len(looked) == 2


@pytest.mark.parametrize(
    "part",
    [
        "loops",
        "lr_schedulers",
        "global_step",
        "pytorch-lightning_version",
        "ema",
        "callbacks",
        "optimizer_states",
    ],
)
def test_a_part_that_would_silently_begin_again_is_missed(
    part: str, content: dict[str, Any], tmp_path: Path
) -> None:
    path = save({name: value for name, value in content.items() if name != part}, tmp_path / "x.ckpt")
    told = complaint(read_for_resuming, path, key="resume")
    assert told.startswith(f"resume={path}: ") and told.endswith(f"training.finetune_path={path}")
    assert part == "optimizer_states" or f"lacks {part}, without which" in told
    if part in ("callbacks", "optimizer_states", "lr_schedulers"):
        empty = save(content | {part: type(content[part])()}, tmp_path / "empty.ckpt")
        assert f"lacks {part}, without which" in complaint(read_for_resuming, empty, key="resume")
    assert read_for_resuming(save(content, path), key="resume")["global_step"] == 3


@pytest.mark.parametrize(
    ("states", "problem"),
    [
        (
            [{"state": {0: {"exp_avg": torch.ones(3, 5, 7)}}}],
            "hold exp_avg of shape [3, 5, 7], as no weight has",
        ),
        ([{"state": [1]}], "are no states of an optimizer"),
        (["x"], "are no states of an optimizer"),
        ([{"state": {0: 3}}], "are no states of an optimizer"),
    ],
)
def test_moments_that_are_not_of_the_weights_are_refused(
    states: Any, problem: str, content: dict[str, Any], tmp_path: Path
) -> None:
    path = save(content | {"optimizer_states": states}, tmp_path / "x.ckpt")
    said = complaint(read_for_resuming, path, key="resume")
    assert f"its optimizer_states {problem}" in said and said.endswith(f"training.finetune_path={path}")


def test_a_checkpoint_cannot_switch_on_code_beside_a_model(content: dict[str, Any]) -> None:
    stored = {**content, "config": {**content["config"], "model": {**content["config"]["model"],
              "path": "owner/model", "trust_remote_code": True}}}  # fmt: skip
    checked = checked_settings(stored, key="x", path="x.ckpt")
    assert checked["model"]["trust_remote_code"] is False and checked["model"]["path"] == "owner/model"
    assert stored["config"]["model"]["trust_remote_code"] is True  # nobody else's content changes


# Bombs ------------------------------------------------------------------------------------------------------


def rewritten(path: Path, name: str, data: bytes, how: int) -> Path:
    """The archive with another entry in the place of ``name``."""
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    target = path.with_name("rewritten.ckpt")
    with zipfile.ZipFile(target, "w") as archive:
        for entry, old in entries.items():
            is_it = entry.endswith(name)
            archive.writestr(entry, data if is_it else old, how if is_it else zipfile.ZIP_STORED)
    return target


@pytest.mark.parametrize("name", ["/byteorder", "/data.pkl", "/data/0", "/version"])
def test_a_compressed_entry_is_refused_before_it_is_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save({"state_dict": {"a": torch.zeros(500)}}, tmp_path / "x.ckpt")
    bomb = rewritten(path, name, b"little" * 1000, zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(zipfile.ZipFile, "open", None)
    assert "is compressed, which torch.save does not do" in complaint(read_checkpoint, bomb, key="x")


def test_an_entry_that_is_too_large_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save({"state_dict": {"a": torch.zeros(500)}}, tmp_path / "x.ckpt")
    large = rewritten(path, "/byteorder", b"little" * 200, zipfile.ZIP_STORED)
    told = complaint(read_checkpoint, large, key="x")
    assert "its part x/byteorder has 1,200 bytes, torch.save writes at most 1,024" in told
    with monkeypatch.context() as patch:
        patch.setattr(safe_unpickle, "LARGEST_PICKLE", 100)
        assert "its part x/data.pkl has" in complaint(read_checkpoint, path, key="x")
    # The directory says more than there is in the file.
    data = bytearray(path.read_bytes())
    at = data.rindex(b"x/data/0") - 46
    data[at + 20 : at + 28] = struct.pack("<II", 2**31, 2**31)
    path.write_bytes(data)
    assert "its part x/data/0 has 2,147,483,648 bytes" in complaint(read_checkpoint, path, key="x")


# The settings in a file -------------------------------------------------------------------------------------

SECRET = "word-of-this-test"


@functools.cache
def composed(mode: str) -> DictConfig:
    words = [f"mode={mode}", "eval.checkpoint_path=x", "frontier.checkpoints=x"]
    words.append("eval.compute_generative_perplexity=True")
    return compose_config(["algo=ar", *TINY, *words], warn=False)


def doors(path: Path, tmp_path: Path) -> dict[str, Any]:
    """Every way in for a checkpoint of somebody else's."""
    cfg, grid = composed("ppl_eval").copy(), composed("frontier").copy()
    cfg.eval.checkpoint_path, grid.frontier.checkpoints = str(path), [str(path)]
    grid.frontier.path = str(tmp_path / "points")
    return {
        "api": lambda: load(str(path)),
        "evaluation": lambda: build_evaluated(cfg),
        "fine-tuning": lambda: build_from_checkpoint(
            cfg, str(path), key="training.finetune_path", use_ema=True
        ),
        "evaluator": lambda: load_scorer(str(path), "float32"),
        "frontier": lambda: frontier(grid),
        "resumption": lambda: read_for_resuming(path, key="x"),
    }


@pytest.mark.parametrize(
    "name", ["data.tokenizer_name_or_path", "name", "model.length", "algo.name", "wandb", "more"]
)
def test_no_setting_of_a_file_is_looked_up(
    name: str, content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could put a variable of the environment into a name, for which a hub is asked."""
    monkeypatch.setenv("VARIABLE_OF_A_TEST", SECRET)
    value = "owner/${oc.env:VARIABLE_OF_A_TEST}"
    path = save(changed(content, name, value), tmp_path / "x.ckpt")
    for door, enter in doors(path, tmp_path).items():
        told = complaint(enter)
        assert SECRET not in told and "asks for ${...}, which is never looked up" in told, door
    nested = save(changed(content, "name", [{"a": {value: 1}}]), path)
    assert "asks for ${...}" in complaint(load, str(nested))


def test_no_setting_of_a_folder_is_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VARIABLE_OF_A_TEST", SECRET)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"algorithm": "${oc.env:VARIABLE_OF_A_TEST}"}))
    assert "asks for ${...}, which is never looked up" in complaint(load, str(tmp_path))


@pytest.mark.parametrize(
    "name, value, problem",
    [
        ("model.hidden_size", "many", "model.hidden_size='many' is not an integer"),
        ("model.hidden_size", 2**40, "is not that of its weights, 32"),
        ("model.n_blocks", 10**9, "is not that of its weights, 1"),
        ("model.length", 2**40, "is above 1048576, the most that is believed"),
        ("model.length", None, "cannot be null"),
        ("data.vocab_size", 10**12, "is above 21, the most that is believed"),
        ("model.dropout", [1], "is not a number"),
        ("model", "large", "model='large' is no section"),
        ("training", [1, 2], "is no section"),
        ("seed", {"a": 1}, "is no value but a section"),
        ("algo.name", "mdlm,imdm", "which is not known here"),
        ("algo.name", ["ar"], "is not text"),
        ("optim.lr", torch.zeros(2), "is no plain value"),
    ],
)
def test_settings_of_odd_types_and_sizes_are_one_line_at_once(
    name: str, value: Any, problem: str, content: dict[str, Any], tmp_path: Path
) -> None:
    config = json.loads(json.dumps(content["config"]))
    *path, leaf = name.split(".")
    (config[path[0]] if path else config)[leaf] = value
    file = save(content | {"config": config}, tmp_path / "x.ckpt")
    for enter in ("api", "frontier", "evaluator"):
        told = complaint(doors(file, tmp_path)[enter])
        assert problem in told or (enter == "evaluator" and "gives no likelihood" in told), (enter, told)
    assert doors(file, tmp_path)["evaluation"]() is not None, "the settings that were typed count there"


@pytest.mark.parametrize(
    "config, closed",
    [
        ([1], ("api", "evaluator", "frontier", "resumption")),
        ("text", ("api", "evaluator", "frontier", "resumption")),
        ({}, ("api", "evaluator", "frontier")),
        ({1: 2}, ("api", "evaluator", "frontier")),
        ({("a",): 1}, ("api", "evaluator", "frontier")),
        ({"algo": {"name": "ar"}}, ("frontier",)),
    ],
)
def test_settings_that_are_none(
    config: Any, closed: tuple[str, ...], content: dict[str, Any], tmp_path: Path
) -> None:
    path = save(content | {"config": config}, tmp_path / "x.ckpt")
    for door in closed:
        complaint(doors(path, tmp_path)[door])
    assert doors(path, tmp_path)["evaluation"]() is not None


def test_settings_that_grow_when_they_are_written_out(content: dict[str, Any], tmp_path: Path) -> None:
    """Each level holds the one below twice: 40 levels are some bytes in a file and 2**40 values."""
    level: Any = 1
    for _ in range(18):
        level = [level, level]
    path = save(changed(content, "name", "x") | {"config": {"name": level}}, tmp_path / "x.ckpt")
    assert "more settings than any training has" in complaint(read_checkpoint, path, key="x")
    for _ in range(40):
        level = {"a": level}
    path = save(content | {"config": level}, path)
    assert "more settings than any training has" in complaint(read_checkpoint, path, key="x")


@pytest.mark.parametrize("algo", sorted(groups()["algo"]))
def test_our_own_settings_are_believed(algo: str) -> None:
    words = [f"algo={algo}", *TINY]
    if OBJECTIVES[algo].Settings.needs_pairs:
        words.append("reflow.make_missing=True")
    content = checkpoint_of(build_algorithm(compose_config(words, warn=False)))
    assert checked_settings(content, key="x", path="x") == content["config"]
    cfg = stored_configuration(content, "x", {})
    assert cfg.model.hidden_size == 32 and cfg.algo.name == algo
