#!/usr/bin/env bash
# Expected: the same ids of the same tokenizer decode to the same text in every release of transformers.
# What happens: blanks in front of punctuation and contractions are removed in both WordPiece and byte-level BPE by
#   4.38.2, in WordPiece alone by 4.49.0, and in WordPiece by half by 5.23.0 ("don ' t stop.").
# What it means: generative perplexity and MAUVE are of decoded texts, so numbers made with programs that pin other
#   releases are of other texts. Say which rule a number has.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
cat > "$work/words.txt" <<'TXT'
[PAD]
[UNK]
[CLS]
[SEP]
[MASK]
don
'
t
stop
.
TXT
cat > "$work/show.py" <<'PY'
import sys
import transformers
from transformers import BertTokenizerFast
tokenizer = BertTokenizerFast(vocab_file=sys.argv[1], vocab=sys.argv[1])
ids = tokenizer("don't stop.", add_special_tokens=False)["input_ids"]
print(transformers.__version__, repr(tokenizer.decode(ids)))
PY
found=""
for release in 4.38.2 4.49.0 5.23.0; do
    python3 -m venv "$work/$release"
    "$work/$release/bin/pip" install --quiet "transformers==$release" numpy==2.4.6 2>/dev/null
    line=$("$work/$release/bin/python" "$work/show.py" "$work/words.txt" 2>/dev/null)
    echo "$line"; found+="$line|"
done
[ "$found" = "4.38.2 \"don't stop.\"|4.49.0 \"don't stop.\"|5.23.0 \"don ' t stop.\"|" ]
