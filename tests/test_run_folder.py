"""A run goes on with the settings, text and words that it began with, and past damage to its folder."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from config.cli import compose_config
from config.run import all_keys, path_keys
from data.dataset import TokenDataset
from data.reflow import ReflowDataset
from errors import UserError
from tasks import MODES
from tasks.run_folder import RunFolder
from tests.resume_runs import metrics

pytestmark = pytest.mark.slow

WORDS = ("the", "a", "cat", "dog", "sat", "ran", "on", "mat", "of", "grass")
TINY = (
    "algo=mdlm", "model=tiny", "model.hidden_size=32", "model.n_blocks=1", "model.n_heads=2",
    "model.cond_dim=8", "model.length=8", "loader.global_batch_size=4", "loader.eval_global_batch_size=4",
    "loader.num_workers=0", "trainer.val_check_interval=2", "trainer.limit_val_batches=1",
    "trainer.num_sanity_val_steps=0", "trainer.log_every_n_steps=1", "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=False", "trainer.precision=32", "eval.generate_samples=False",
    "lr_scheduler.num_warmup_steps=0", "wandb=null",
)  # fmt: skip


def text(seed: int) -> str:
    draw = np.random.default_rng(seed)
    return "\n".join(" ".join(draw.choice(WORDS, 12)) for _ in range(40)) + "\n"


def tokenizer_of(folder: Path, words: tuple[str, ...]) -> Path:
    vocabulary = {word: number for number, word in enumerate((*words, "[BOS]", "[EOS]", "[UNK]"))}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = WhitespaceSplit()
    special = {"bos_token": "[BOS]", "eos_token": "[EOS]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    return folder


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A folder with a text, another one for validation, and a tokenizer."""
    (tmp_path / "train.txt").write_text(text(1))
    (tmp_path / "valid.txt").write_text(text(2))
    tokenizer_of(tmp_path / "words", WORDS)
    return tmp_path


def train(world: Path, *more: str, steps: int) -> dict[str, Any]:
    places = {
        "data.train": world / "train.txt",
        "data.valid": world / "valid.txt",
        "data.tokenizer_name_or_path": world / "words",
        "data.cache_dir": world / "cache",
        "checkpointing.save_dir": world / "run",
    }
    kept = [word for word in TINY if "warmup" not in word or "lr_scheduler=cosine_decay_warmup" not in more]
    words = [*kept, *(f"{key}={value}" for key, value in places.items()), *more, f"trainer.max_steps={steps}"]
    return MODES["train"](compose_config(words, warn=False))


def complaint(world: Path, *more: str, steps: int) -> str:
    with pytest.raises(UserError) as caught:
        train(world, *more, steps=steps)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def last(world: Path) -> dict[str, Any]:
    return torch.load(world / "run" / "checkpoints" / "last.ckpt", weights_only=True)


# Places -----------------------------------------------------------------------------------------------------


def test_the_same_place_may_be_spelled_otherwise(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    monkeypatch.setenv("HOME", str(world))
    os.symlink(world, world / "link")
    train(world, "data.train=train.txt", "data.tokenizer_name_or_path=./words", steps=1)
    train(world, "data.train=~/train.txt", "checkpointing.save_dir=./run", steps=2)
    train(world, f"data.train={world}/link/train.txt", "checkpointing.save_dir=link/run/", steps=3)
    assert last(world)["global_step"] == 3
    assert OmegaConf.load(world / "run" / "config.yaml").data.train == f"{world}/link/train.txt"


def test_a_text_on_scratch_may_lie_elsewhere_every_time(
    world: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    train(world, steps=2)
    for number, name in enumerate(("train.txt", "valid.txt", "words")):
        (world / f"job{number}").mkdir()
        os.rename(world / name, world / f"job{number}" / name)
    moved = (
        f"data.train={world}/job0/train.txt",
        f"data.valid={world}/job1/valid.txt",
        f"data.tokenizer_name_or_path={world}/job2/words",
    )
    train(world, *moved, steps=3)
    said = [line for line in caplog.messages if line.endswith(", with the same content")]
    assert len(said) == 3 and f"data.train was {world}/train.txt, is {world}/job0/train.txt" in " ".join(said)
    assert OmegaConf.load(world / "run" / "config.yaml").data.train == f"{world}/job0/train.txt"
    # Another text is another training, wherever it lies, and nothing of the run is changed by the attempt.
    before = (world / "run" / "config.yaml").read_bytes()
    for key, name in (("data.train", "train.txt"), ("data.valid", "valid.txt")):
        (world / "other.txt").write_text(text(3))
        told = complaint(world, *moved, f"{key}={world}/other.txt", steps=4)
        assert (
            f"with other settings ({key} was {world}/job" in told and f"{name}, is {world}/other.txt)" in told
        )
    assert (world / "run" / "config.yaml").read_bytes() == before and last(world)["global_step"] == 3
    # What has other settings as well is refused as ever.
    assert "optim.lr was" in complaint(world, f"data.train={world}/other.txt", "optim.lr=1", steps=4)


def test_files_of_older_versions_do_not_say_what_was_read(
    world: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(world, steps=1)
    content = last(world)
    del content["inputs"]
    torch.save(content, world / "run" / "checkpoints" / "last.ckpt")
    (world / "other").mkdir()
    shutil.copy(world / "train.txt", world / "other")
    told = complaint(world, f"data.train={world}/other/train.txt", steps=2)
    assert f"data.train was {world}/train.txt, is {world}/other/train.txt" in told
    caplog.clear()
    train(world, steps=2)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert last(world)["global_step"] == 2 and set(last(world)["inputs"]) == {
        "vocabulary", "train", "validation"
    }  # fmt: skip


def test_every_path_knows_the_home_folder(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(world))
    monkeypatch.chdir(world / "words")
    train(world, "checkpointing.save_dir=~/home-run", "data.train=~/train.txt", steps=1)
    cfg = compose_config(
        [*TINY, "mode=ppl_eval", "data.valid=~/valid.txt", "data.tokenizer_name_or_path=~/words",
         "eval.checkpoint_path=~/home-run/checkpoints/last.ckpt", "eval.generated_samples_path=~/ppl.json",
         "data.cache_dir=~/cache"],
        warn=False,
    )  # fmt: skip
    MODES["ppl_eval"](cfg)
    assert (world / "ppl.json").exists() and not (world / "words" / "~").exists()
    named = {name for name in all_keys() if name.rsplit(".", 1)[-1].endswith(("path", "dir", "root", "file"))}
    named -= {"sampling.psi.time_profile"}
    inside = {"data.source.data_dir", "data.valid_source.data_dir"}  # of a data set
    assert named <= {*path_keys(), *inside}
    with pytest.raises(UserError, match=r"plan.path=~no-such-user/x: no such user"):
        compose_config([*TINY, "plan.path=~no-such-user/x"], warn=False)


# Content ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["train", "valid"])
def test_a_text_that_was_exchanged_is_warned_of(
    key: str, world: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(world, steps=1)
    file = world / f"{key}.txt"
    os.utime(file, (1, 1))  # touched only
    train(world, steps=2)
    assert not [line for line in caplog.messages if "has changed" in line]
    file.write_text(text(3))
    train(world, steps=3)
    (said,) = [line for line in caplog.messages if "has changed" in line]
    assert said.startswith(f"data.{key}={file}: the text has changed since step 2 was written")
    caplog.clear()
    train(world, steps=4)
    assert not [line for line in caplog.messages if "has changed" in line]


def test_a_streamed_text_that_was_exchanged_is_warned_of(
    world: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(world, "data.streaming=True", steps=1)
    train(world, "data.streaming=True", steps=2)
    assert not [line for line in caplog.messages if "has changed" in line]
    content = (world / "train.txt").read_text()
    (world / "train.txt").write_text(content.replace("cat", "dog", 1))
    train(world, "data.streaming=True", steps=3)
    assert sum("the text has changed since step 2" in line for line in caplog.messages) == 1


def test_another_vocabulary_is_refused(world: Path) -> None:
    train(world, steps=1)
    before = (world / "run" / "checkpoints" / "last.ckpt").read_bytes()
    tokenizer_of(world / "words", ("a", "the", *WORDS[2:]))
    told = complaint(world, steps=2)
    assert told.startswith(f"data.tokenizer_name_or_path={world}/words: its vocabulary is another one than")
    assert (world / "run" / "checkpoints" / "last.ckpt").read_bytes() == before
    tokenizer_of(world / "words", WORDS)
    train(world, steps=2)


def test_other_pairs_are_refused(tmp_path: Path) -> None:
    def pairs(name: str, seed: int) -> str:
        draw, folder = np.random.default_rng(seed), tmp_path / name
        folder.mkdir()
        for file in ("xT", "x0"):
            np.save(folder / f"{file}.npy", draw.integers(0, 9, (6, 4)).astype(np.int32))
        np.save(folder / "ts.npy", np.linspace(0.5, 1, 6))
        np.save(folder / "seeds.npy", np.arange(6))
        return ReflowDataset(folder).digest()

    assert pairs("a", 1) == pairs("b", 1) != pairs("c", 2)
    cfg = OmegaConf.create({"data": {"train": "reflow"}, "reflow": {"save_path": "p"}})
    run = RunFolder(tmp_path, Path("x.ckpt"), {"global_step": 3, "inputs": {"train": "1", "vocabulary": "2"}})
    run.compare_inputs(cfg, {"train": "1", "vocabulary": "2", "validation": "3"})
    with pytest.raises(UserError, match=r"reflow.save_path=p: holds other pairs than those that x.ckpt was"):
        run.compare_inputs(cfg, {"train": "4", "vocabulary": "2"})


def test_digests_see_large_arrays_by_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = np.arange(4000, dtype=np.int16).reshape(100, 40)
    whole = TokenDataset(tokens).digest()
    assert whole == TokenDataset(tokens.copy()).digest() != TokenDataset(tokens.reshape(200, 20)).digest()
    assert whole != TokenDataset(tokens, np.full(100, 40)).digest()
    for place in (0, 1999, 3999):
        other = tokens.copy()
        other.flat[place] += 1
        assert TokenDataset(other).digest() != whole
    monkeypatch.setattr("data.dataset._CHUNK", 100)
    parts = TokenDataset(tokens).digest()
    assert TokenDataset(np.roll(tokens, 1)).digest() != parts, "a word more moves all that follow"


# Schedules --------------------------------------------------------------------------------------------------


def warned(run: RunFolder, caplog: pytest.LogCaptureFixture, *words: str) -> list[str]:
    caplog.clear()
    run.warn_of_another_length(compose_config([*TINY[1:], *words], warn=False))
    return caplog.messages


def test_schedules_of_the_length_of_a_training_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    stored = {"config": {"trainer": {"max_steps": 10}}, "global_step": 10}
    run = RunFolder(Path("x"), Path("x.ckpt"), stored)
    without = [word for word in TINY if "warmup" not in word]
    cosine = [*without[1:], "lr_scheduler=cosine_decay_warmup", "optim.lr=1e-3", "lr_scheduler.min_lr=1e-6"]

    def said(*words: str) -> list[str]:
        caplog.clear()
        run.warn_of_another_length(compose_config([*cosine, "algo=mdlm", *words], warn=False))
        return caplog.messages

    (line,) = said("trainer.max_steps=20", "lr_scheduler.warmup_fraction=0")
    start = (
        "trainer.max_steps was 10, is 20, and what is a function of it jumps at step 10: the learning rate"
    )
    assert line == f"{start} from 1e-06 to 0.0005"
    (line,) = said("trainer.max_steps=100", "lr_scheduler.warmup_fraction=0.5")
    assert line.endswith("from 1e-06 to 0.000201 (it warms up until step 50)")
    assert not said("trainer.max_steps=10")
    assert not warned(run, caplog, "algo=mdlm", "trainer.max_steps=20"), "a constant rate knows no end"
    (line,) = warned(
        run, caplog, "algo=distillation", "algo.linear_growth_dt=True", "algo.linear_growth_min=0.1",
        "algo.linear_growth_max=0.3", "trainer.max_steps=20",
    )  # fmt: skip
    assert line.endswith("at step 10: the time step of the distillation from 0.3 to 0.2")


def test_a_longer_training_with_a_cosine(world: Path, caplog: pytest.LogCaptureFixture) -> None:
    cosine = "lr_scheduler=cosine_decay_warmup"
    for steps, number in ((2, 0), (4, 1), (4, 0)):
        caplog.clear()
        train(world, cosine, steps=steps)
        assert sum("jumps at step" in line for line in caplog.messages) == number
        (world / "run" / "result.json").unlink()


# Damage -----------------------------------------------------------------------------------------------------


def test_the_newest_intact_checkpoint_is_named(world: Path) -> None:
    every = "callbacks.checkpoint_every_n_steps.every_n_train_steps=1"
    train(world, every, steps=3)
    folder, key = world / "run" / "checkpoints", "checkpointing.resume_ckpt_path"

    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.unlink()
        path.write_bytes(content)

    assert (folder / "last.ckpt").samefile(folder / "0-3.ckpt")
    damage(folder / "last.ckpt")
    told = complaint(world, every, steps=4)
    assert told.startswith(f"{key}={folder}/last.ckpt: cannot be read as a checkpoint (damaged: ")
    assert told.endswith(f"; {key}={folder}/0-3.ckpt goes on from the newest intact one")
    damage(folder / "0-3.ckpt")
    told = complaint(world, every, f"{key}={folder}/0-3.ckpt", steps=4)
    assert told.endswith(f"; {key}={folder}/0-2.ckpt goes on from the newest intact one")
    for name in ("0-2.ckpt", "0-1.ckpt"):
        (folder / name).unlink()
    step = torch.load(folder / "best.ckpt", weights_only=True)["global_step"]
    assert step == 2, "the validation after two steps"
    told = complaint(world, every, steps=4)
    assert told.endswith(f"; {key}={folder}/best.ckpt goes on from the newest intact one")
    train(world, every, f"{key}={folder}/best.ckpt", steps=4)
    assert last(world)["global_step"] == 4


@pytest.mark.parametrize(
    "content",
    [
        "\0\0\0",
        "a: [b",
        "- a\n- b\n",
        "word",
        "name: ${nope}\n",
        "optim:\n  lr: ${oc.env:HOME}\n",
        "",
        "half",
    ],
)
def test_a_damaged_config_file(content: str, world: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The checkpoint knows the settings, too."""
    train(world, steps=1)
    file = world / "run" / "config.yaml"
    whole = file.read_text()
    lines = whole.splitlines(keepends=True)
    file.write_text("".join(lines[: len(lines) // 2]) if content == "half" else content)
    assert "optim.lr was" in complaint(world, "optim.lr=1", steps=2)
    train(world, steps=1)
    assert file.read_text() == whole
    warnings = [line for line in caplog.messages if "is damaged; it is written again" in line]
    assert len(warnings) == (0 if content in ("", "half", "word") else 2)


@pytest.mark.parametrize("content", ["\0", '{"steps": 1', "[]", "{}", "3", '{"steps": "1"}'])
def test_a_damaged_result_is_made_again(content: str, world: Path, caplog: pytest.LogCaptureFixture) -> None:
    result = train(world, steps=1)
    file = world / "run" / "result.json"
    whole = file.read_text()
    file.write_text(content)
    assert train(world, steps=1) == result
    assert file.read_text() == whole
    assert sum("result.json is damaged; it is made again" in line for line in caplog.messages) == 1


def test_damaged_lines_of_the_log_are_put_aside(world: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(world, steps=3)
    shutil.copytree(world / "run", world / "whole")
    file = world / "run" / "metrics.csv"
    head, first, *rest = file.read_text().splitlines()
    bad = [
        "\0\0\0\0",
        "word" + first[1:],
        first + ",7",
        "1",
        first.replace("0.", "0.x", 1),
        '"' + first,
        "9\u2028",
    ]
    file.write_text("\n".join([head, bad[0], first, *bad[1:], *rest]) + "\n")
    train(world, steps=4)
    assert file.with_name("metrics.csv.bad").read_text().split("\n")[:-1] == bad
    (said,) = [line for line in caplog.messages if "damaged lines" in line]
    assert said == f"{file}: {len(bad)} damaged lines, which are in {file}.bad now"
    found, expected = metrics(world / "run"), metrics(world / "whole")
    assert found[: len(expected)] == expected and len(found) == len(expected) + 2
    # A head that is none: what follows cannot be read.
    file.write_bytes(b"\xff\xfe" + file.read_bytes())
    lines = file.read_bytes().count(b"\n")
    train(world, steps=5)
    assert f"{lines} damaged lines" in caplog.text
    assert [row["step"] for row in metrics(world / "run") if row["trainer/loss"]] == ["4"]
