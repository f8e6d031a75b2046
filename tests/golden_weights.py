"""The weights that the golden numbers were made with: pseudo-random numbers keyed by the parameter's name."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import torch
from torch import nn

GOLDEN = Path(__file__).resolve().parent / "golden"
NORMS = ("norm1.weight", "norm2.weight", "norm_final.weight")


def load_golden(name: str) -> dict[str, np.ndarray]:
    """All arrays of ``tests/golden/<name>.npz``."""
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def fill_golden(backbone: nn.Module, *, hot: bool = False) -> nn.Module:
    """Give a backbone the golden weights, in place; ``hot`` makes attention scores large.

    Names are those of the official state dict, that is with ``backbone.`` in front.
    """
    with torch.no_grad():
        for name, value in backbone.state_dict().items():
            if name.endswith("inv_freq"):
                continue
            rng = np.random.default_rng(zlib.crc32(f"backbone.{name}".encode()))
            weights = rng.standard_normal(tuple(value.shape)) * 0.05 + (1.0 if name.endswith(NORMS) else 0.0)
            factor = 10 if hot and name.endswith("attn_qkv.weight") else 1
            value.copy_(torch.from_numpy(weights.astype(np.float32) * factor))
    return backbone.eval()
