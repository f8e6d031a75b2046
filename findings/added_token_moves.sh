#!/usr/bin/env bash
# Expected: a tokenizer that is saved and loaded gives every token the id that it had.
# What happens (transformers 5.23.0, tokenizers 0.23.3): where the vocabulary has gaps, a token that was added gets the
#   id behind the largest one, and another, a gap's, after save_pretrained and from_pretrained.
# What it means: padding, masks and special tokens added to such a vocabulary move when a model is exported; take the id
#   from the model's own configuration, and check it after loading.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet transformers==5.23.0 tokenizers==0.23.3
"$work/venv/bin/python" - "$work/saved" 2>/dev/null <<'PY'
import sys
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

words = Tokenizer(models.WordLevel({"a": 0, "b": 5, "[U]": 2}, unk_token="[U]"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="a", eos_token="b")
tokenizer.add_special_tokens({"pad_token": "[PAD]"})
tokenizer.save_pretrained(sys.argv[1])
before, after = tokenizer.pad_token_id, AutoTokenizer.from_pretrained(sys.argv[1]).pad_token_id
print(f"transformers {transformers.__version__}: [PAD] was {before}, is {after} after saving and loading")
raise SystemExit(0 if before != after else 1)
PY
