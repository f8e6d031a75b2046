"""Tokenizers: ids as documented, plain text back, files that load again, the mask's id."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import data.tokenizers
from data.tokenizers import boundary_ids, get_tokenizer, mask_id_of


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
