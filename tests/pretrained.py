"""Tiny pretrained models in folders: one of each architecture, with a tokenizer beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WORDS = ["the", "a", "cat", "dog", "man", "house", "mat", "sat", "ran", "saw", "on", "to", "in", "and", "red", "big", "old", "is", "was", "it"]
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
ROWS = 32  # of the embedding; the tokenizer has fewer ids
COMMON = {
    "vocab_size": ROWS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 40, "pad_token_id": 0,
}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "bert": lambda: tf.BertConfig(**COMMON),
    "roberta": lambda: tf.RobertaConfig(**COMMON, bos_token_id=1, eos_token_id=2),
    "xlm-roberta": lambda: tf.XLMRobertaConfig(**COMMON, bos_token_id=1, eos_token_id=2),
    "distilbert": lambda: tf.DistilBertConfig(
        vocab_size=ROWS, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=40, pad_token_id=0
    ),
    "modernbert": lambda: tf.ModernBertConfig(
        **COMMON, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2, local_attention=8,
        global_attn_every_n_layers=2,
    ),
    "eurobert": lambda: tf.EuroBertConfig(**COMMON, bos_token_id=1, eos_token_id=2, num_key_value_heads=2),
}  # fmt: skip


def tokenizer(mask: bool = True) -> PreTrainedTokenizerFast:
    """24 words and special tokens, and a mask behind them."""
    words = [*SPECIAL, *WORDS, *(["<mask>"] if mask else [])]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    special |= {"cls_token": "<s>", "sep_token": "</s>"} | ({"mask_token": "<mask>"} if mask else {})
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def save(folder: Path, kind: str = "bert", *, mask: bool = True, **changes: Any) -> str:
    """A model with weights that matter, and its tokenizer; returns the folder."""
    config = CONFIGS[kind]()
    for name, value in changes.items():
        setattr(config, name, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = tf.AutoModelForMaskedLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer(mask).save_pretrained(folder)
    return str(folder)


def text(folder: Path, lines: int = 300) -> str:
    """A file of short sentences."""
    path = folder / "text.txt"
    path.write_text(
        "\n".join(
            f"the {WORDS[2 + i % 5]} {WORDS[7 + i % 3]} on a {WORDS[14 + i % 3]} mat" for i in range(lines)
        )
    )
    return str(path)
