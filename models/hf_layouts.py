"""Folders of Hugging Face models, read by name: safetensors (or pickled weights, inertly), never their code.

Ours (mode=export), and those published for MDLM (kuleshov-group/mdlm-owt, mdlm-no_flashattn-fp32-owt) and Duo
(s-sahoo/duo, duo-distilled): their wrappers keep the network as ``backbone``, named as in Lightning
checkpoints.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from models.safe_unpickle import read_torch_file

CONFIG_FILE = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = "pytorch_model.bin"
PATTERNS = (CONFIG_FILE, "*.safetensors", INDEX, PICKLED)  # what is needed of a repository

# Names in config.json -> ours: those of our export, then those of the published wrappers.
_SETTINGS = {
    "hidden_size": "model.hidden_size",
    "hidden_dim": "model.hidden_size",
    "cond_dim": "model.cond_dim",
    "n_blocks": "model.n_blocks",
    "n_heads": "model.n_heads",
    "length": "model.length",
    "model_length": "model.length",
    "softcap": "model.softcap",
    "qk_norm": "model.qk_norm",
    "time_conditioning": "algo.time_conditioning",
    "algorithm": "algo.name",
}
_NOISE_SETTINGS = {
    "noise_type": "algo.noise_type",
    "noise_dim": "model.noise_dim",
    "noise_scale": "algo.noise_scale",
    "num_mask": "algo.num_mask",
}
# What the published wrappers call themselves -> their algorithm.
_PUBLISHED = {"mdlm": "mdlm", "duo": "duo_base"}


def is_model_folder(folder: Path) -> bool:
    """Whether weights of a Hugging Face model lie there."""
    return any((folder / name).is_file() for name in (WEIGHTS, INDEX, PICKLED))


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The weights by name (whatever their dtype), and config.json (empty when there is none).

    Raises:
        Exception: of many kinds, when a file is damaged or missing.
    """
    config = folder / CONFIG_FILE
    settings = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    return _read_weights(folder), settings if isinstance(settings, dict) else {}


def _read_weights(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    if (folder / WEIGHTS).is_file():
        return load_file(folder / WEIGHTS)
    if (folder / INDEX).is_file():
        names: dict[str, str] = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        weights: dict[str, Tensor] = {}
        for shard in sorted(set(names.values())):
            if Path(shard).name != shard:
                raise ValueError(f"the index names {shard}, which is outside the folder")
            weights.update(load_file(folder / shard))
        return weights
    return read_torch_file(folder / PICKLED)


def settings_of(config_json: dict[str, Any]) -> dict[str, Any]:
    """What config.json says, under our keys: {"model.hidden_size": 768, ...}."""
    found = {ours: config_json[name] for name, ours in _SETTINGS.items() if name in config_json}
    if published := _PUBLISHED.get(str(config_json.get("model_type")).lower()):
        found.setdefault("algo.name", published)
    noise = config_json.get("mask_noise")
    if isinstance(noise, dict):
        found |= {ours: noise[name] for name, ours in _NOISE_SETTINGS.items() if name in noise}
    return found
