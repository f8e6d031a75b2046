"""Sections ``model`` and ``noise``: the network and the schedule."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import DictConfig

from errors import UserError
from settings import MISSING, key


@dataclass
class Model:
    """The diffusion transformer."""

    name: str = key(MISSING, "the size's name")
    hidden_size: int = key(MISSING, "width", low=1, high=2**17, example=768)
    cond_dim: int = key(128, "width of the time embedding", low=1, high=2**17)
    length: int = key(1024, "tokens in a sequence", low=3, high=2**20)
    n_blocks: int = key(MISSING, "transformer blocks", low=1, high=2**12, example=12)
    n_heads: int = key(MISSING, "attention heads", low=1, high=2**12, example=12)
    dropout: float = key(0.1, "on the residual branches", low=0, below=1)
    noise_dim: int | None = key(
        None, "size of a mask's noise (imdm); null: the width", low=1, high=2**17, auto=True, example=768
    )
    softcap: float = key(-1.0, "soft cap on attention logits; 0 or less: off", example=50)
    qk_norm: bool = key(False, "LayerNorm on queries and keys")
    attention: str = key(
        "auto",
        "its kernels; auto: sdpa, with softcap on a GPU flash-attn or FlexAttention",
        choices=("auto", "sdpa", "flash", "flex", "plain"),
    )
    compile: bool = key(False, "torch.compile the blocks: slow to start, then faster, most of all on GPUs")


@dataclass
class Noise:
    """The schedule alpha(t)."""

    name: str = key(MISSING, "the schedule")
    eps: float = key(1e-3, "alpha(1) is about eps", above=0, below=1)


def derive(cfg: DictConfig) -> None:
    """A mask's noise is as wide as the network, where nobody says otherwise."""
    if cfg.model.noise_dim is None:
        cfg.model.noise_dim = cfg.model.hidden_size


def check(cfg: DictConfig) -> list[str]:
    """Raise for a network that cannot be; returns no warnings."""
    _validate_attention(cfg)
    _validate_size(cfg)
    return []


def _validate_attention(cfg: DictConfig) -> None:
    model = cfg.model
    if model.hidden_size % model.n_heads:
        problem = f"does not divide model.hidden_size={model.hidden_size}"
        raise UserError("model.n_heads", model.n_heads, problem, "choose a divisor")
    if model.hidden_size // model.n_heads % 2:
        problem = f"makes heads of odd width {model.hidden_size // model.n_heads}, which cannot rotate"
        raise UserError(
            "model.n_heads", model.n_heads, problem, "choose another divisor of model.hidden_size"
        )
    if model.attention == "sdpa" and model.softcap > 0 and cfg.algo.name != "ar":
        problem = f"has no soft cap, which model.softcap={model.softcap:g} asks for"
        raise UserError("model.attention", "sdpa", problem, "use auto")
    if model.attention == "flash" and str(cfg.trainer.precision).startswith("32"):
        problem = f"computes in bf16, not in trainer.precision={cfg.trainer.precision}"
        raise UserError("model.attention", "flash", problem, "use auto, or trainer.precision=bf16")


def _validate_size(cfg: DictConfig) -> None:
    """Raise for a network that no machine holds, before an allocator says so."""
    model = cfg.model
    width, symbols = model.hidden_size, cfg.data.vocab_size or 0
    masks = cfg.algo.get("num_mask", 0) * model.noise_dim
    parameters = model.n_blocks * width * (12 * width + 6 * model.cond_dim) + 2 * symbols * width + masks
    if parameters > 10**12:
        problem = f"with model.n_blocks={model.n_blocks} a network of {parameters:.1e} parameters"
        raise UserError("model.hidden_size", width, problem, "make it smaller")
