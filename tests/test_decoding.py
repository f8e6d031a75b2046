"""Texts of ids: by which rule, and that results say it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from config.cli import compose_config
from data.decoding import cleaned, decode, rule_of
from data.tokenizers import get_tokenizer
from tests.layouts import bert_like, gpt2_like

TEXT = (
    "don't stop. it's \"a\" test ! well , i ' m here . they 've we 're he isn't , ok ? rock ' n ' roll it ' s"
)
# bert-base-uncased of TEXT in transformers 4.49.0 (4.38.2 gives the same), without [CLS] and [SEP].
BERT = "don't stop. it's \" a \" test! well, i'm here. they've we're he isn't, ok? rock'n'roll it's"
# gpt2 of TEXT in 4.38.2; 4.49.0 gives TEXT back.
DUO = "don't stop. it's \"a\" test! well, i'm here. they've we're he isn't, ok? rock'n'roll it's"


def test_cleaned_texts_are_those_of_transformers_4() -> None:
    pieces = TEXT.replace("'", " ' ").replace('"', ' " ').replace(".", " . ").split()
    assert cleaned(" ".join(pieces)) == BERT
    assert cleaned(TEXT) == DUO
    assert cleaned(" .  a n't") == ".  an't" and cleaned("") == "" and cleaned("a . . . b") == "a... b"


def test_wordpiece_is_cleaned_and_bytes_are_not(tmp_path: Path) -> None:
    bert, gpt2 = get_tokenizer(bert_like(tmp_path / "bert")), get_tokenizer(gpt2_like(tmp_path / "gpt2"))
    text = "[CLS] don't rock'n'roll. it's \" a \" tests! well, i'm [SEP]"
    ids = [bert("don't rock'n'roll. it's \"a\" tests ! well , i'm")["input_ids"]] * 2
    assert decode(bert, ids, "default") == decode(bert, ids, "clean") == [text] * 2
    assert "don ' t rock ' n ' roll." in decode(bert, ids, "raw")[0]
    ids = gpt2([TEXT, "a ."])["input_ids"]
    assert decode(gpt2, ids, "default") == decode(gpt2, ids, "raw") == [TEXT, "a ."]
    assert decode(gpt2, ids, "clean") == [DUO, "a."]
    rules = [(rule_of(bert, rule), rule_of(gpt2, rule)) for rule in ("default", "raw", "clean")]
    assert rules == [("clean", "raw"), ("raw", "raw"), ("clean", "clean")]


def test_the_table_of_the_differences_holds_the_rules() -> None:
    table = (Path(__file__).parent.parent / "docs" / "differences.md").read_text()
    for rule in ("default", "raw", "clean"):
        assert f"eval.decoding={rule}" in table


def sample(cfg: Any) -> dict[str, Any]:
    from tasks.sample_eval import sample_run
    from tasks.setup import build_algorithm

    return sample_run(build_algorithm(cfg).eval(), cfg, 2)


@pytest.mark.parametrize(
    ("layout", "rule", "recorded"), [(bert_like, "default", "clean"), (gpt2_like, "raw", "raw")]
)
def test_results_say_how_they_were_decoded(layout: Any, rule: str, recorded: str, tmp_path: Path) -> None:
    cfg = compose_config(
        [
            "algo=mdlm", "model=tiny", "model.length=16", "model.hidden_size=32", "model.n_blocks=1",
            "model.n_heads=2", "loader.eval_global_batch_size=4", "sampling.num_sample_batches=1",
            "wandb=null", "sampling.num_sample_log=0", f"eval.decoding={rule}", "trainer.accelerator=cpu",
            f"data.tokenizer_name_or_path={layout(tmp_path)}",
        ],
        warn=False,
    )  # fmt: skip
    run = sample(cfg)
    assert run["decoding"] == recorded
    if recorded == "clean":
        assert not any(" . " in text or " ' " in text for text in run["generated_seqs"])
