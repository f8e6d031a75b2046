"""Small tokenizers laid out like well-known ones: where special tokens stand, what is put around."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

END = "<|endoftext|>"
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())  # 256


def _bytes(first: list[str], last: list[str], merges: list[tuple[str, str]]) -> Tokenizer:
    """Bytes between two lists of other tokens, and one more token for each merge."""
    words = [*first, *LETTERS, *(a + b for a, b in merges), *last]
    backend = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _saved(folder: Path, backend: Tokenizer, **special: str) -> str:
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    return str(folder)


def gpt2_like(folder: Path) -> str:
    """259 ids; the last is bos, eos and unknown; no mask, no padding; Ġa and Ġb hold their space."""
    backend = _bytes([], [END], [("Ġ", "a"), ("Ġ", "b")])
    return _saved(folder, backend, bos_token=END, eos_token=END, unk_token=END)


def llama3_like(folder: Path, **special: str) -> str:
    """256 ids in the vocabulary, then bos 256, eos 257 and a reserved token 258 behind it."""
    backend = _bytes([], [], [])
    backend.add_special_tokens(["<|begin|>", "<|end|>", "<|reserved|>"])
    return _saved(folder, backend, bos_token="<|begin|>", eos_token="<|end|>", **special)


def roberta_like(folder: Path) -> str:
    """<s> 0, <pad> 1, </s> 2, <unk> 3, <mask> 4, then bytes; <s> ... </s> are put around a text."""
    backend = _bytes(["<s>", "<pad>", "</s>", "<unk>", "<mask>"], [], [])
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    special = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "unk": "<unk>", "pad": "<pad>"}
    named = {f"{name}_token": token for name, token in special.items()}
    return _saved(folder, backend, **named, mask_token="<mask>")


def bert_like(folder: Path) -> str:
    """[PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4, then words; pieces of words begin with ##."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    marks = [*".?!,'\"[]", "'m", "n't"]
    words = ["don", "t", "it", "s", "is", "a", "test", "well", "i", "m", "rock", "n", "roll", "pad", "##s"]
    vocabulary = {word: i for i, word in enumerate([*special, *marks, *words])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    named = {f"{name.strip('[]').lower()}_token": name for name in special}
    return _saved(folder, backend, **named)
