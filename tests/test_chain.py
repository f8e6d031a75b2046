"""Chains of scripts from training to table, at toy size: the commands that they print, run in one process."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_scoring import gpt2, save
from transformers import PreTrainedTokenizerFast

import eval_mauve
import main
from tests.shell import PYTHON, dry_run

pytestmark = pytest.mark.slow

LENGTH = 16
TOY = (
    "model.hidden_size=16", "model.n_blocks=1", "model.n_heads=2", "model.cond_dim=8", "model.noise_dim=8",
    f"model.length={LENGTH}", "trainer.accelerator=cpu", "trainer.precision=32", "wandb=null",
    "trainer.enable_progress_bar=False", "sampling.num_sample_log=0",
)  # fmt: skip
TRAINING = (
    "trainer.max_steps=2", "trainer.val_check_interval=2", "trainer.num_sanity_val_steps=0",
    "loader.global_batch_size=8", "loader.batch_size=8", "loader.eval_batch_size=4", "loader.num_workers=0",
    "eval.generate_samples=False", "sampling.num_sample_batches=1", "training.ema=0.5",
)  # fmt: skip
SENTENCES = (
    "the cat sat on the mat",
    "a dog ran to the red house",
    "the man saw a cat and a dog in the house",
)


class User:
    """Types scripts in a folder of their own, on local text, with a local tokenizer and a local judge."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.judge = save(folder / "judge", gpt2())
        self.text = str(folder / "text.txt")
        lines = [SENTENCES[k % 3] + f" {SENTENCES[k % 2]}" * (k % 4) for k in range(300)]
        Path(self.text).write_text("\n".join(lines))
        tokenizer = PreTrainedTokenizerFast.from_pretrained(self.judge)
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        self.tokenizer = str(folder / "tokenizer")
        tokenizer.save_pretrained(self.tokenizer)
        self.data = tuple(f"data.{key}={self.text}" for key in ("train", "valid"))
        self.data += (f"data.tokenizer_name_or_path={self.tokenizer}", f"data.cache_dir={folder}/cache")

    def types(self, script: str, *words: str) -> int:
        """The exit code of ``scripts/<script>.sh <words>`` with what makes it small; commands run here."""
        name = script.split("/")[1]
        small = (*TOY, f"eval.gen_ppl_eval_model_name_or_path={self.judge}")
        if name.startswith("train_"):
            small += TRAINING
        if "redi" not in name and "rectified" not in name or not name.startswith("train_"):
            small += self.data
        arguments = [word for word in words if "=" not in word]
        settings = [word for word in words if "=" in word]
        if name.startswith("eval_mauve"):
            small = ()
        for command in dry_run(script, *arguments, *small, *settings):
            assert command[0] == PYTHON
            program = {"main.py": main.main, "eval_mauve.py": eval_mauve.main}[command[1]]
            if code := program(command[2:]):
                return code
        return 0

    def reads(self, path: str) -> dict[str, Any]:
        return json.loads((self.folder / path).read_text())


@pytest.fixture()
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> User:
    monkeypatch.chdir(tmp_path)
    return User(tmp_path)


def assert_judged(run: dict[str, Any], samples: int) -> None:
    assert len(run["generated_seqs"]) == run["num_samples"] == samples
    assert 1 < run["generative_ppl"] < math.inf and 0 < run["entropy"] < math.log(LENGTH)


def test_lm1b_from_mdlm_to_rectified_students(user: User, capsys: pytest.CaptureFixture[str]) -> None:
    rounds = ("algo.orig_num_sampling_steps=8", "algo.min_num_sampling_steps=4", "algo.grow_dt_every=1")
    few = ("loader.eval_batch_size=16", "sampling.num_sample_batches=1")
    assert user.types("lm1b/train_lm1b_imsdtt_uniform") == main.USER_MISTAKE
    assert "outputs/lm1b/mdlm.ckpt: no such file" in capsys.readouterr().err

    sampled = ("eval.generate_samples=True", "sampling.steps=1,2")
    assert user.types("lm1b/train_lm1b_mdlm", *sampled) == 0
    link = user.folder / "outputs" / "lm1b" / "mdlm.ckpt"
    assert link.is_symlink() and link.samefile(link.parent / "mdlm" / "checkpoints" / "last.ckpt")
    assert user.reads("outputs/lm1b/mdlm/result.json")["val/gen_ppl_T2"] > 1

    for student in ("imsdtt_uniform", "sdtt"):
        assert user.types(f"lm1b/train_lm1b_{student}", *rounds) == 0
    result = user.reads("outputs/lm1b/imsdtt_uniform/result.json")
    assert result["finished"] and result["steps"] == 2, "rounds of 8 and 4 steps"
    for teacher in ("mdlm", "imsdtt_uniform"):
        assert user.types(f"lm1b/datagen_lm1b_{teacher}", "", "", "4", "64") == 0
        pairs = user.folder / "reflow_data" / "lm1b" / teacher
        assert np.load(pairs / "xT.npy").shape == np.load(pairs / "x0.npy").shape == (64, LENGTH)
    for student in ("imredi1", "redi1", "imsdtt_uniform_redi1"):
        assert user.types(f"lm1b/train_lm1b_{student}") == 0
        assert (link.parent / f"{student}.ckpt").exists()

    for model, name, steps in (
        ("mdlm", "MDLM", "4"),
        ("imsdtt_uniform_redi1", "IMSDTT_uniform_ReDi1", "1,4"),
    ):
        assert user.types(f"lm1b/gen_ppl_lm1b_{model}", steps, *few) == 0
        for count in steps.split(","):
            run = user.reads(f"results/lm1b/samples/{count}-{name}-gpt2.json")
            assert_judged(run, 16)
            assert (run["steps"], run["seed"], run["ema"]) == (int(count), 42, True)
            assert run["checkpoint"] == f"outputs/lm1b/{model}.ckpt"
    assert user.types("lm1b/eval_lm1b_mdlm", "trainer.limit_val_batches=2") == 0
    found = user.reads("results/lm1b/ppl/MDLM-LM1B-gpt2.json")
    assert 1 < found["perplexity"] < math.inf and found["data"] == "lm1b-wrap"


def test_openwebtext_from_mdlm_to_tables(user: User, capsys: pytest.CaptureFixture[str]) -> None:
    conditions = (
        "cond_sampling.prefix_len=4", "cond_sampling.seq_len=12", f"cond_sampling.min_seq_len={LENGTH}",
        "sampling.num_sample_batches=2",
    )  # fmt: skip
    assert user.types("owt/train_owt_mdlm") == 0
    assert user.types("owt/cond_gen_ppl_owt_mdlm", "2", *conditions) == 0
    run = user.reads("results/owt/cond_samples/2-MDLM-gpt2.json")
    assert_judged(run, 2 * 8 * 5)
    assert len(run["prefixes"]) == 16 and run["seq_len"] == 12
    capsys.readouterr()
    flags = {"human_path": user.text, "tokenizer": user.tokenizer, "length": LENGTH, "seq_len": 12}
    flags |= {"sample_num": 16, "featurizer": user.judge, "cache_dir": user.folder / "cache", "num_seeds": 1}
    assert user.types("owt/eval_mauve_owt", "2", "MDLM", *(f"{k}={v}" for k, v in flags.items())) == 0
    assert "MAUVE: 0." in capsys.readouterr().out
    found = user.reads("results/owt/cond_samples/2-MDLM-mauve.json")
    assert (found["num_human"], found["num_generated"], found["human_with_a_prefix_of_the_run"]) == (
        16,
        80,
        16,
    )

    sets = f"zero_shot.datasets=ag_news:{user.text},wikitext2:{user.text}"
    assert user.types("owt/zero_shot_mdlm", sets, "trainer.limit_val_batches=2") == 0
    whole = user.reads("results/owt/ppl/MDLM-zero_shot-gpt2.json")
    assert [run["data"] for run in whole["runs"]] == ["ag_news", "wikitext2"]
    for run in whole["runs"]:
        assert user.reads(f"results/owt/ppl/MDLM-{run['data']}-gpt2.json") == run
    assert (user.folder / "results/owt/ppl/MDLM-zero_shot-gpt2.md").read_text().count("\n") == 4


def test_duo_and_its_students(user: User) -> None:
    assert user.types("lm1b/train_lm1b_duo", "algo.curriculum_end=1") == 0
    assert user.types("lm1b/train_lm1b_duo_dcd") == 0
    assert user.types("lm1b/datagen_lm1b_duo", "", "", "2", "32") == 0
    assert user.types("lm1b/train_lm1b_duo_rectified") == 0
    for algo, name in (("duo_dcd", "Duo_DCD"), ("duo_rectified", "Duo_rectified")):
        few = ("loader.eval_batch_size=8", "sampling.num_sample_batches=1")
        assert user.types("lm1b/gen_ppl_lm1b_baseline", algo, "2", *few) == 0
        assert_judged(user.reads(f"results/lm1b/samples/2-{name}-gpt2.json"), 8)


def test_a_checkpoint_from_elsewhere_is_not_replaced(user: User, capsys: pytest.CaptureFixture[str]) -> None:
    place = user.folder / "outputs" / "lm1b" / "mdlm.ckpt"
    place.parent.mkdir(parents=True)
    place.write_text("published")
    assert user.types("lm1b/train_lm1b_mdlm") == main.USER_MISTAKE
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: checkpointing.link_when_done=True: outputs/lm1b/mdlm.ckpt is there")
    assert place.read_text() == "published" and not (place.parent / "mdlm" / "metrics.csv").exists()
    assert user.types("lm1b/train_lm1b_mdlm", "name=mine", "trainer.max_time=00:00:00:00") == 0
    assert not (place.parent / "mine.ckpt").exists(), "its training is not over"
    assert user.types("lm1b/train_lm1b_mdlm", "name=mine") == 0
    assert user.types("lm1b/train_lm1b_mdlm", "name=mine") == 0
    assert "already trained for 2 steps" in capsys.readouterr().err
    assert (place.parent / "mine.ckpt").exists() and place.read_text() == "published"
