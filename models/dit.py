"""The diffusion transformer: blocks with adaLN-zero conditioning (Peebles & Xie, arXiv 2212.09748) and rotary
positions, as in MDLM (arXiv 2406.07524), or causal without conditioning.

Names, shapes and order of the parameters are those of the official checkpoints.
Shapes: B batch, L length, D hidden size, H heads, C conditioning width, V vocabulary with the mask; G is B,
or 1 when all sequences share their sigma.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from errors import UserError
from models.attention import KeyValues, Rotary, attention, rotate_qkv
from models.attention_backends import BACKENDS
from models.compilation import compiled, mark_dynamic_batch
from models.embeddings import COUPLED, MaskNoiseConfig, TimestepEmbedding, VocabEmbedding
from models.layers import Linear, gated_residual, init_linear, modulated_norm
from models.precision import Precision
from models.sharding import unshard_root

__all__ = ["BackboneConfig", "DiT", "MaskNoiseConfig"]

MLP_RATIO = 4
INIT_STD = 0.02


@dataclass(frozen=True)
class BackboneConfig:
    """Hyper-parameters of a ``DiT``.

    Args:
        vocab_size: V, the mask included.
        mask_id: id of the mask; None for a process without one (uniform noise).
        hidden_size: D.
        cond_dim: C.
        n_blocks, n_heads: depth and heads; D / n_heads must be an even number.
        length: L that rotary tables are prepared for; other lengths work as well.
        dropout: on the residual branches.
        softcap: bound on attention scores; 0 or less is off. A causal model has none, whatever it says.
        qk_norm: LayerNorm of queries and keys, per head.
        causal: autoregressive, without sigma.
        attention: which kernels, see ``models.attention_backends.choose``.
        mask_noise: the random state of masks (IMDM), or None.
    """

    vocab_size: int
    mask_id: int | None
    hidden_size: int = 768
    cond_dim: int = 128
    n_blocks: int = 12
    n_heads: int = 12
    length: int = 1024
    dropout: float = 0.1
    softcap: float = -1.0
    qk_norm: bool = False
    causal: bool = False
    attention: str = "auto"
    mask_noise: MaskNoiseConfig | None = None

    def __post_init__(self) -> None:
        for name in ("hidden_size", "cond_dim", "n_blocks", "n_heads", "length"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name}", getattr(self, name), "too small", "use a positive number")
        if self.hidden_size % (2 * self.n_heads):
            raise UserError(
                "model.hidden_size",
                self.hidden_size,
                f"does not split into {self.n_heads} heads of even width",
                "change it or model.n_heads",
            )
        if self.attention not in BACKENDS:
            raise UserError("model.attention", self.attention, "unknown", f"use {', '.join(BACKENDS)}")
        if not 0 <= self.dropout < 1:
            raise UserError("model.dropout", self.dropout, "not a probability below 1", "0 turns it off")
        if self.mask_id is not None and not 0 <= self.mask_id < self.vocab_size:
            hint = f"give one in 0..{self.vocab_size - 1}"
            raise UserError("mask_id", self.mask_id, "outside the vocabulary", hint)
        if self.mask_noise is not None and (self.mask_id is None or self.causal):
            hint = "give a mask_id, or no mask noise"
            raise UserError("mask_noise", str(self.mask_noise), "needs masks", hint)

    @property
    def score_cap(self) -> float:
        """The bound on attention scores that is in force: the official causal blocks ignore theirs."""
        return 0.0 if self.causal else self.softcap


class DiT(nn.Module):
    """Ids in, features or logits out.

    Start weights are drawn from PyTorch's global generator: seed it around the constructor. ``precision``
    can be set at any time (models/precision.py), and so can ``checkpointing``: blocks then keep their input
    alone and are computed again in the backward pass, dropout included (Chen et al., arXiv 1604.06174).

    Args:
        config: hyper-parameters.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.precision = Precision()
        self.checkpointing = False
        self.vocab_embed = VocabEmbedding(
            config.vocab_size, config.hidden_size, config.mask_id, config.mask_noise
        )
        self.sigma_map = None if config.causal else TimestepEmbedding(config.cond_dim)
        self.rotary_emb = Rotary(config.hidden_size // config.n_heads, config.length)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_blocks))
        self.output_layer = OutputLayer(config)
        if config.mask_noise is not None and config.mask_noise.noise_type == COUPLED:
            self.coupled_gain = Linear(config.hidden_size, 1)
            init_linear(self.coupled_gain, std=0)

    @property
    def head(self) -> nn.Linear:
        """The map from features to logits, D -> V."""
        unshard_root(self)
        return self.output_layer.linear

    @property
    def embedding(self) -> Tensor:
        """The embeddings of all ids, (V, D)."""
        unshard_root(self)
        return self.vocab_embed.embedding

    def compile_blocks(self, on: bool = True) -> None:
        """Run the blocks compiled (models/compilation.py) from now on; parameters keep their names."""
        for block in self.blocks:
            block.compiled = on

    def new_cache(self, capacity: int) -> list[KeyValues]:
        """An empty cache for ``body`` of a causal model: one entry a block, for ``capacity`` positions."""
        assert self.config.causal, "positions that see later ones cannot be cached"
        return [KeyValues(capacity) for _ in self.blocks]

    def body(
        self,
        x: Tensor,
        sigma: Tensor | None,
        mask_seeds: Tensor | None = None,
        cache: list[KeyValues] | None = None,
        embedded: Tensor | None = None,
    ) -> Tensor:
        """All of the network but its head.

        Args:
            x: (B, L) int64 ids.
            sigma: (B,) total noise of each sequence, or (1,) for all of them; None is zero. Without time
                conditioning give None: the modulation then costs nothing. Ignored by a causal model.
            mask_seeds: random state of the masks, see ``VocabEmbedding``.
            cache: of ``new_cache``, for a causal model without gradients: ``x`` continues the positions in it
                and is added to them. The cost is that of x alone, but for the attention to what is there.
            embedded: (B, L, D) float32 in the place of the embeddings of ``x``.

        Returns:
            (B, L, D) float32, after the final norm and modulation.
        """
        # A tensor with gradients would let shards send theirs before those of its own making are there.
        return self.sharded_body(x, sigma, mask_seeds, cache, None if embedded is None else lambda: embedded)

    def sharded_body(
        self,
        x: Tensor,
        sigma: Tensor | None,
        mask_seeds: Tensor | None,
        cache: list[KeyValues] | None,
        embedded: Callable[[], Tensor] | None,
    ) -> Tensor:
        """What ``body`` does; models/sharding.py makes weights whole around it."""
        # Precision is explicit in here, whatever autocast says outside.
        with torch.autocast(x.device.type, enabled=False):
            hidden = self.vocab_embed(x, mask_seeds) if embedded is None else embedded()
            condition = None if self.sigma_map is None else F.silu(self.sigma_map(_shared(sigma, x.device)))
            start = cache[0].length if cache else 0
            rotary = self.rotary_emb(start + x.shape[1], self.precision.dtype, start)
            again = self.checkpointing and torch.is_grad_enabled() and not cache
            for block, seen in zip(self.blocks, cache or [None] * len(self.blocks), strict=True):
                arguments = hidden, condition, rotary, self.precision.dtype, seen
                hidden = self._checkpointed(block, *arguments) if again else block(*arguments)
            return self.output_layer(hidden, condition)

    def _checkpointed(self, block: Block, *arguments: Any) -> Tensor:
        draws = self.training and self.config.dropout > 0
        return checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=draws)

    def forward(self, x: Tensor, sigma: Tensor | None, mask_seeds: Tensor | None = None) -> Tensor:
        """Logits (B, L, V) float32; arguments as in ``body``."""
        features = self.body(x, sigma, mask_seeds)
        with torch.autocast(x.device.type, enabled=False):
            return self.head(features)


def _shared(sigma: Tensor | None, device: torch.device) -> Tensor:
    """Sigma (G,): shortened to (1,) where it is the same for all sequences and that is known for free."""
    if sigma is None:
        return torch.zeros(1, device=device)
    # Comparing values would make a GPU wait; a CPU has them at hand.
    known = sigma.stride(0) == 0 or (sigma.device.type == "cpu" and bool((sigma == sigma[:1]).all()))
    return sigma[:1] if known else sigma


class Block(nn.Module):
    """Attention and MLP, each on a residual branch; attributes stand in the order of the checkpoints."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        width, head_dim = config.hidden_size, config.hidden_size // config.n_heads
        self.config = config
        self.compiled = False
        if config.qk_norm:
            self.q_norm = nn.LayerNorm(head_dim)
            self.k_norm = nn.LayerNorm(head_dim)
        self.norm1 = nn.LayerNorm(width, bias=False)
        self.attn_qkv = Linear(width, 3 * width, bias=False)
        self.attn_out = Linear(width, width, bias=False)
        self.norm2 = nn.LayerNorm(width, bias=False)
        self.mlp = nn.ModuleDict(
            {"0": Linear(width, MLP_RATIO * width), "2": Linear(MLP_RATIO * width, width)}
        )
        self.adaLN_modulation = None if config.causal else Linear(config.cond_dim, 6 * width)
        for layer in (self.attn_qkv, self.attn_out, self.mlp["0"], self.mlp["2"]):
            init_linear(layer, std=INIT_STD)
        if self.adaLN_modulation is not None:
            init_linear(self.adaLN_modulation, std=0)

    def forward(
        self,
        x: Tensor,
        condition: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        dtype: torch.dtype,
        seen: KeyValues | None = None,
    ) -> Tensor:
        """(B, L, D) float32 -> the same.

        Args:
            x: the residual stream.
            condition: (G, C) float32; None in a causal model.
            rotary: tables of ``Rotary`` in ``dtype``.
            dtype: of the matrix products.
            seen: keys and values of earlier positions, to which those of x are added.
        """
        # A cache grows with every call: compiled, each of its lengths would be a new program.
        if not self.compiled or seen is not None:
            return self._run(x, condition, rotary, dtype, seen)
        return compiled(Block._run)(self, *mark_dynamic_batch(x, condition), rotary, dtype, None)

    def _run(
        self,
        x: Tensor,
        condition: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        dtype: torch.dtype,
        seen: KeyValues | None,
    ) -> Tensor:
        dropout = self.config.dropout if self.training else 0.0
        shift1, scale1, gate1, shift2, scale2, gate2 = _modulation(self.adaLN_modulation, condition, 6)
        attended = self._attend(modulated_norm(x, self.norm1.weight, shift1, scale1), rotary, dtype, seen)
        x = gated_residual(x, attended, self.attn_out, gate1, dtype, dropout)
        inner = self.mlp["0"](modulated_norm(x, self.norm2.weight, shift2, scale2), dtype)
        inner = F.gelu(inner, approximate="tanh")
        return gated_residual(x, inner, self.mlp["2"], gate2, dtype, dropout)

    def _attend(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], dtype: torch.dtype, seen: KeyValues | None
    ) -> Tensor:
        qkv = self.attn_qkv(x, dtype).unflatten(-1, (3, self.config.n_heads, -1))
        if self.config.qk_norm:
            q, k, v = qkv.unbind(2)
            qkv = torch.stack((self.q_norm(q.float()).to(dtype), self.k_norm(k.float()).to(dtype), v), dim=2)
        q, k, v = rotate_qkv(qkv, *rotary)
        if seen is not None:
            k, v = seen.extend(k, v)
        config = self.config
        out = attention(q, k, v, causal=config.causal, softcap=config.score_cap, backend=config.attention)
        return out.transpose(1, 2).flatten(2)


class OutputLayer(nn.Module):
    """Final norm with its modulation; the head ``linear`` is run by whoever needs logits."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(config.hidden_size, bias=False)
        self.linear = Linear(config.hidden_size, config.vocab_size)
        self.adaLN_modulation = None if config.causal else Linear(config.cond_dim, 2 * config.hidden_size)
        init_linear(self.linear, std=0)
        if self.adaLN_modulation is not None:
            init_linear(self.adaLN_modulation, std=0)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """(B, L, D) -> features (B, L, D), float32."""
        shift, scale = _modulation(self.adaLN_modulation, condition, 2)
        return modulated_norm(x, self.norm_final.weight, shift, scale)


def _modulation(layer: nn.Module | None, condition: Tensor | None, parts: int) -> tuple[Tensor | None, ...]:
    """The (G, D) parts of a block's modulation; Nones without conditioning."""
    return (None,) * parts if layer is None else layer(condition).chunk(parts, dim=-1)
