"""Tokenizers: ids as documented, plain text back, files that load again, the mask's id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import data.tokenizers
from config.cli import compose_config
from data.encoding import Encoder, UnknownText, fingerprint
from data.prepare import PreprocessingConfig, prepare
from data.tokenizers import boundary_ids, get_tokenizer, mask_id_of, number_of_ids, padding_id
from errors import UserError
from tests.layouts import bert_like, gpt2_like, llama3_like, roberta_like


def save_gpt2_like(folder: Path) -> str:
    """Bytes of a b c and a blank; one special token, at the end; no padding, like gpt2."""
    vocab = {"a": 0, "b": 1, "c": 2, "Ġ": 3, "Ġa": 4, "<|endoftext|>": 5}
    backend = Tokenizer(models.BPE(vocab, [("Ġ", "a")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=end, eos_token=end).save_pretrained(folder)
    return str(folder)


def save_bert_like(folder: Path) -> str:
    """Words with [CLS] ... [SEP] around, a mask in the middle of the vocabulary, no bos and no eos."""
    words = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", "red", "green", "blue"]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        unk_token="[UNK]",
    ).save_pretrained(folder)
    return str(folder)


def test_text8_has_the_documented_ids_and_gives_text_back() -> None:
    tokenizer = get_tokenizer("text8")
    special = ["[CLS]", "[SEP]", "[BOS]", "[EOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]"]
    assert tokenizer.convert_tokens_to_ids(special) == list(range(8))
    assert tokenizer("az  b")["input_ids"] == [8, 33, 34, 34, 9]
    assert tokenizer("aB\n")["input_ids"] == [8, 7, 7]
    assert tokenizer.vocab_size == len(tokenizer) == 35
    assert tokenizer.decode(tokenizer(" the quick  fox ")["input_ids"]) == " the quick  fox "
    assert tokenizer.decode([2, 8, 34, 9, 3], skip_special_tokens=True) == "a b"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 3, 5)
    assert boundary_ids(tokenizer, "official") == boundary_ids(tokenizer, "sep") == (2, 3)


@pytest.mark.parametrize(
    "name, text",
    [("text8", "a fox  runs"), ("synthetic", "[BOS] 3 12 253 [EOS]"), ("synthetic-align", "7 7 7")],
)
def test_saved_tokenizers_load_again(name: str, text: str, tmp_path: Path) -> None:
    tokenizer = get_tokenizer(name, 50 if name == "synthetic-align" else None)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer(text)["input_ids"]
    assert again(text)["input_ids"] == ids
    assert again.decode(ids) == tokenizer.decode(ids) == text
    assert mask_id_of(again) == mask_id_of(tokenizer)
    assert (again.bos_token_id, again.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)


def test_mask_id() -> None:
    assert mask_id_of(get_tokenizer("text8")) == (4, 35)
    assert mask_id_of(get_tokenizer("synthetic")) == (256, 257)
    assert mask_id_of(get_tokenizer("synthetic-align")) == (50_000, 50_001)
    assert mask_id_of(get_tokenizer("synthetic-align", 10)) == (10, 11)


def test_synthetic_borders() -> None:
    tokenizer = get_tokenizer("synthetic")
    assert boundary_ids(tokenizer, "official") == (254, 255)
    assert tokenizer("[BOS] 0 253 [EOS]")["input_ids"] == [254, 0, 253, 255]


def test_gpt2_like_folder_gets_a_pad_with_the_masks_id(tmp_path: Path) -> None:
    tokenizer = get_tokenizer(save_gpt2_like(tmp_path))
    assert tokenizer.vocab_size == 6
    assert mask_id_of(tokenizer) == (6, 7)
    assert (tokenizer.pad_token, tokenizer.pad_token_id, len(tokenizer)) == ("[PAD]", 6, 7)
    assert boundary_ids(tokenizer, "official") == (5, 5)


def test_bert_like_folder_takes_bos_and_eos_from_cls_and_sep(tmp_path: Path) -> None:
    tokenizer = get_tokenizer(save_bert_like(tmp_path))
    assert mask_id_of(tokenizer) == (3, 8)
    assert boundary_ids(tokenizer, "sep") == (1, 2)
    assert boundary_ids(tokenizer, "official") == (1, 1), "encode(eos)[0] is [CLS]"
    with pytest.raises(ValueError, match="data.eos=other"):
        boundary_ids(tokenizer, "other")


def test_mask_among_the_added_tokens_widens_the_vocabulary(tmp_path: Path) -> None:
    tokenizer = get_tokenizer(save_gpt2_like(tmp_path))
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    assert mask_id_of(tokenizer) == (7, 8)


def test_tokenizer_errors_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.tokenizers, "hub_reachable", lambda: False)
    borderless = tmp_path / "borderless"
    get_tokenizer("synthetic-align", 5).save_pretrained(borderless)
    (tmp_path / "empty").mkdir()
    for name, size, words in [
        (str(tmp_path / "empty"), None, "no tokenizer can be read there"),
        ("nobody/nothing", None, "hub cannot be reached"),
        (str(borderless), None, "neither a bos nor a cls"),
        ("text8", 36, "data.vocab_size=36"),
        ("synthetic-align", 0, "data.vocab_size=0"),
    ]:
        with pytest.raises(ValueError, match=words) as caught:
            get_tokenizer(name, size)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no bos or no eos"):
        boundary_ids(get_tokenizer("synthetic-align", 5), "official")


# Where special tokens stand -------------------------------------------------------------------------


def rows_of(tokenizer: Any, folder: Path, *, wrap: bool = True) -> np.ndarray:
    """Prepared rows of two documents of 20 letters, 12 positions each."""
    (folder / "text.txt").write_text("a" * 20 + "\n" + "b" * 20)
    name = str(folder / "text.txt")
    recipe = PreprocessingConfig(
        name, "validation", 12, wrap, True, "official", "text", None, folder / "cache"
    )
    dataset = prepare(recipe, tokenizer)
    return dataset.fetch(range(len(dataset)))["input_ids"].numpy()


def test_the_mask_has_an_id_that_nothing_else_has(tmp_path: Path) -> None:
    """Also where bos and eos stand behind the vocabulary."""
    tokenizer = get_tokenizer(llama3_like(tmp_path / "llama3"))
    assert tokenizer.vocab_size == 256 and boundary_ids(tokenizer, "official") == (256, 257)
    assert mask_id_of(tokenizer) == (259, 260) and number_of_ids(tokenizer) == 260
    assert tokenizer.get_vocab().get("[PAD]") == 259, "the added padding alone has it too"
    rows = rows_of(tokenizer, tmp_path)
    assert (rows[:, 0] == 256).all() and (rows[:, -1] == 257).all() and 257 in rows[:, 1:-1]
    assert (rows < 260).all() and (rows != 259).all()
    own = get_tokenizer(llama3_like(tmp_path / "own", pad_token="<pad>"))
    assert own.pad_token_id == 259 and mask_id_of(own) == (260, 261), "a padding token of its own counts"


def test_gpt2s_layout_is_the_official_one(tmp_path: Path) -> None:
    tokenizer = get_tokenizer(gpt2_like(tmp_path / "gpt2"))
    assert mask_id_of(tokenizer) == (259, 260) and number_of_ids(tokenizer) == 260
    assert boundary_ids(tokenizer, "official") == (258, 258) and padding_id(tokenizer, 258) == 259
    tokenizer.save_pretrained(tmp_path / "again")
    assert mask_id_of(get_tokenizer(str(tmp_path / "again"))) == (259, 260)


def test_ids_behind_the_vocabulary_belong_to_the_model(tmp_path: Path) -> None:
    """A tokenizer with a mask: V reaches to its last token, but for the [PAD] that is added here."""
    tokenizer = get_tokenizer(llama3_like(tmp_path, mask_token="<|reserved|>"))
    assert mask_id_of(tokenizer) == (258, 259) and tokenizer.pad_token_id == 259
    assert padding_id(tokenizer, 257) == 257, "[PAD] is no id of the model"
    assert (rows_of(tokenizer, tmp_path, wrap=False) < 259).all()


def test_an_own_eos_is_used(tmp_path: Path) -> None:
    tokenizer = get_tokenizer(roberta_like(tmp_path / "roberta"))
    assert tokenizer.encode("</s>")[0] == 0, "what stands in front of all texts"
    assert boundary_ids(tokenizer, "official") == boundary_ids(tokenizer, "sep") == (0, 2)
    rows = rows_of(tokenizer, tmp_path)
    assert (rows[:, 0] == 0).all() and (rows[:, -1] == 2).all() and (rows[:, 1:] != 0).all()
    bert = get_tokenizer(bert_like(tmp_path / "bert"))
    assert boundary_ids(bert, "official") == (2, 2) and boundary_ids(bert, "sep") == (2, 3)


@pytest.mark.parametrize("layout", [bert_like, save_bert_like])
def test_a_saved_tokenizer_keeps_the_eos_of_trained_weights(layout: Any, tmp_path: Path) -> None:
    tokenizer = get_tokenizer(layout(tmp_path / "first"))
    tokenizer.save_pretrained(tmp_path / "second")
    again = get_tokenizer(str(tmp_path / "second"))
    assert boundary_ids(again, "official") == boundary_ids(tokenizer, "official")
    assert boundary_ids(again, "official") != boundary_ids(again, "sep")


def test_rows_with_the_wrong_eos_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bert, roberta = (get_tokenizer(make(tmp_path / make.__name__)) for make in (bert_like, roberta_like))
    now = fingerprint(bert), fingerprint(roberta)
    monkeypatch.setattr("data.encoding.has_own_eos", lambda tokenizer: False)
    before = fingerprint(bert), fingerprint(roberta)
    assert now[0] == before[0] and now[1] != before[1]


def test_a_mask_that_is_a_border_is_refused(tmp_path: Path) -> None:
    tokenizer = get_tokenizer(llama3_like(tmp_path, mask_token="<|end|>"))
    with pytest.raises(
        UserError, match="^data.tokenizer_name_or_path=.*: its mask token, id 257, is its bos"
    ):
        boundary_ids(tokenizer, "official")


def test_tokenizers_that_cannot_serve_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^data.vocab_size=100000000: no size .*; use 1 to 1000000$"):
        get_tokenizer("synthetic-align", 100_000_000)
    with pytest.raises(UserError, match="^data.vocab_size=100000000: out of range"):
        compose_config(["data=synthetic-align", "data.vocab_size=100000000"])
    backend = Tokenizer(models.WordLevel({"word": 0, "[E]": 1}))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    one = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="[E]", eos_token="[E]")
    one.save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match="^data.tokenizer_name_or_path=.*: .* it has 1 token: there is no choice"
    ):
        get_tokenizer(str(tmp_path))
    message = "^data.tokenizer_name_or_path=synthetic: it cannot turn all of the text into tokens .*UNK"
    with pytest.raises(UnknownText, match=message) as error:
        Encoder(get_tokenizer("synthetic"))(["1 2 words"])
    assert "\n" not in str(error.value)
