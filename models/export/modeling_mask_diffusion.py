"""Masked diffusion language models (MDLM, Infinite Mask Diffusion) and their causal twin, for transformers.

This one file is all that a folder of weights needs beside PyTorch and transformers. Licence: Apache 2.0.
Shapes: B sequences, L positions, D width, H heads, E = D / H, C width of the conditioning, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput, MaskedLMOutput

from models.export.sampling_mask_diffusion import _start, _write

_M1, _M2, _SECOND_OFFSET = 0xD251125F, 0xCD9E8D57, 12345
_FEATURES = 256
_NEVER = -1e6  # the logit of what is impossible
_DEFAULTS = {
    "vocab_size": 50258, "mask_token_id": None, "hidden_size": 768, "cond_dim": 128, "n_blocks": 12,
    "n_heads": 12, "length": 1024, "softcap": -1.0, "qk_norm": False, "causal": False,
    "time_conditioning": False, "mask_noise": None, "schedule": None,
}  # fmt: skip


class MaskDiffusionConfig(PreTrainedConfig):
    """Hyper-parameters of the network.

    Args:
        vocab_size: V, the mask included.
        mask_token_id: id of the mask; None for a process without one.
        hidden_size, cond_dim, n_blocks, n_heads: D, C, blocks, H.
        length: L of the training.
        softcap, qk_norm: bound on attention scores (0 or less: off); LayerNorm of queries and keys.
        causal: autoregressive: each position sees those up to itself, and there is no sigma.
        time_conditioning: whether the network was trained to see sigma; otherwise give none.
        mask_noise: {"noise_type", "noise_dim", "noise_scale", "num_mask"}, or None for plain masks.
        schedule: {"name", "eps"} of the training; None: log-linear.
    """

    model_type = "mask-diffusion"
    attribute_map = {
        "num_hidden_layers": "n_blocks", "num_attention_heads": "n_heads", "max_position_embeddings": "length"
    }  # fmt: skip

    def __init__(self, **kwargs: Any) -> None:
        for name, default in _DEFAULTS.items():
            setattr(self, name, kwargs.pop(name, default))
        super().__init__(tie_word_embeddings=kwargs.pop("tie_word_embeddings", False), **kwargs)


class _Embedding(nn.Module):
    """Token embeddings; at masked positions the embedding of the mask's own noise is added."""

    def __init__(self, config: MaskDiffusionConfig) -> None:
        super().__init__()
        self.mask_id, self.noise, width = config.mask_token_id, config.mask_noise, config.hidden_size
        self.embedding = nn.Parameter(torch.zeros(config.vocab_size, width))
        if self.noise is None:
            return
        noise_dim = self.noise["noise_dim"]
        if self.noise["num_mask"] > 0:
            self.imdm_mlp: nn.Module = nn.Embedding(self.noise["num_mask"], width)
            return
        if self.noise["noise_type"] == "learnable":
            self.learnable_noise_mu = nn.Parameter(torch.zeros(1, 1, noise_dim))
            self.learnable_noise_sigma = nn.Parameter(torch.ones(1, 1, noise_dim))
        self.imdm_mlp = nn.Sequential(
            nn.Linear(noise_dim, 4 * width), nn.GELU(), nn.Linear(4 * width, width, bias=False)
        )

    def forward(self, ids: Tensor, seeds: Tensor | None, generator: torch.Generator | None) -> Tensor:
        embedded = F.embedding(ids, self.embedding)
        if self.noise is None:
            return embedded
        if seeds is None:
            seeds = torch.randint(-(2**63), 2**63 - 1, ids.shape, generator=generator, device=ids.device)
        masked = ids == self.mask_id
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        noise = self._noise(seeds[masked], positions[masked])
        return embedded.masked_scatter(masked[..., None], embedded[masked] + noise)

    def _noise(self, seeds: Tensor, positions: Tensor) -> Tensor:
        """What is added at N masked positions, (N, D)."""
        noise_dim, kind, count = (self.noise[key] for key in ("noise_dim", "noise_type", "num_mask"))
        if count > 0:
            uniform = _uniform(seeds, positions * noise_dim)
            return self.imdm_mlp((uniform * count).clamp(0, count - 1e-5).long().clamp(max=count - 1))
        index = positions[:, None] * noise_dim + torch.arange(noise_dim, device=seeds.device)
        first = _uniform(seeds[:, None], index)
        if kind == "rand":
            noise = 2 * first - 1
        else:
            second = _uniform(seeds[:, None], index + _SECOND_OFFSET, _M2, _M1).clamp(min=1e-8)
            noise = (-2 * first.clamp(min=1e-8).log()).sqrt() * (2 * math.pi * second).cos()
        noise = (noise * self.noise["noise_scale"]).to(self.embedding.dtype)
        if kind == "learnable":
            noise = self.learnable_noise_mu[0] + self.learnable_noise_sigma[0] * noise
        return self.imdm_mlp(noise)


def _uniform(seeds: Tensor, index: Tensor, first: int = _M1, second: int = _M2) -> Tensor:
    """Counter-based uniforms in [0, 1) float32: a pure function of (seed, index)."""
    state = (index * second) ^ (seeds * first)
    state = (state ^ (state >> 15)) * first  # products wrap, shifts keep the sign
    state = (state ^ (state >> 13)) * second
    return ((state ^ (state >> 16)) & 0xFFFFFFFF).float() * 2.0**-32


class _SigmaMap(nn.Module):
    """The noise level sigma (G,) as a vector (G, C)."""

    def __init__(self, cond_dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(_FEATURES, cond_dim), nn.SiLU(), nn.Linear(cond_dim, cond_dim))

    def forward(self, sigma: Tensor) -> Tensor:
        # Rounded to bfloat16 step by step on a CPU, as in the training of the published weights.
        half = torch.arange(_FEATURES // 2, dtype=torch.bfloat16, device="cpu")
        frequencies = (-math.log(10000) * half / (_FEATURES // 2)).exp().float()
        angles = sigma.float()[:, None] * frequencies.to(sigma.device)
        return self.mlp(torch.cat((angles.cos(), angles.sin()), -1).to(self.mlp[0].weight.dtype))


class _Block(nn.Module):
    """Attention and MLP, each on a residual branch that sigma shifts, scales and gates."""

    def __init__(self, config: MaskDiffusionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.n_heads, self.causal, self.softcap = config.n_heads, config.causal, config.softcap
        self.q_norm = nn.LayerNorm(width // config.n_heads) if config.qk_norm else None
        self.k_norm = nn.LayerNorm(width // config.n_heads) if config.qk_norm else None
        self.norm1 = nn.LayerNorm(width, bias=False)
        self.attn_qkv = nn.Linear(width, 3 * width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.norm2 = nn.LayerNorm(width, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        self.adaLN_modulation = None if config.causal else nn.Linear(config.cond_dim, 6 * width)

    def forward(self, x: Tensor, condition: Tensor | None, *where: Any) -> Tensor:
        parts = _modulation(self.adaLN_modulation, condition, 6)
        x = x + parts[2] * self.attn_out(self._attend(self.norm1(x) * (1 + parts[1]) + parts[0], *where))
        return x + parts[5] * self.mlp(self.norm2(x) * (1 + parts[4]) + parts[3])

    def _attend(self, x: Tensor, seen: Tensor | None, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = self.attn_qkv(x).unflatten(-1, (3, self.n_heads, -1)).transpose(1, 3).unbind(2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        if self.softcap <= 0:
            out = F.scaled_dot_product_attention(q, k, v, seen, is_causal=self.causal and seen is None)
        else:
            scores = self.softcap * torch.tanh(q @ k.mT / math.sqrt(q.shape[-1]) / self.softcap)
            out = (scores if seen is None else scores.masked_fill(~seen, -math.inf)).softmax(-1) @ v
        return out.transpose(1, 2).flatten(2)


class _Output(nn.Module):
    def __init__(self, config: MaskDiffusionConfig) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(config.hidden_size, bias=False)
        self.linear = nn.Linear(config.hidden_size, config.vocab_size)
        self.adaLN_modulation = None if config.causal else nn.Linear(config.cond_dim, 2 * config.hidden_size)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        shift, scale = _modulation(self.adaLN_modulation, condition, 2)
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


class _Network(nn.Module):
    """Ids (B, L) to logits (B, L, V)."""

    def __init__(self, config: MaskDiffusionConfig) -> None:
        super().__init__()
        self.head_dim = config.hidden_size // config.n_heads
        self.vocab_embed = _Embedding(config)
        self.sigma_map = None if config.causal else _SigmaMap(config.cond_dim)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.n_blocks))
        self.output_layer = _Output(config)

    def forward(
        self, ids: Tensor, seen: Any, sigma: Any = None, seeds: Any = None, rng: Any = None
    ) -> Tensor:
        x = self.vocab_embed(ids, seeds, rng)
        condition = None
        if self.sigma_map is not None:
            condition = F.silu(self.sigma_map(torch.zeros(1, device=x.device) if sigma is None else sigma))
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=x.device) / self.head_dim
        positions = torch.arange(ids.shape[1], dtype=torch.float32, device=x.device)
        angles = torch.outer(positions, 1.0 / 10000.0**exponents).repeat(1, 2)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for block in self.blocks:
            x = block(x, condition, seen, cos, sin)
        return self.output_layer(x, condition)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions of x (B, H, L, E): its two halves form the pairs."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def _modulation(layer: nn.Module | None, condition: Tensor | None, parts: int) -> tuple[Any, ...]:
    """(shift, scale[, gate]) of one or two branches, (G, 1, D) each; nothing to change without sigma."""
    if layer is None:
        return (0.0, 0.0, 1.0, 0.0, 0.0, 1.0)[:parts]
    return layer(condition)[:, None].chunk(parts, -1)


class _Model(PreTrainedModel):
    config_class = MaskDiffusionConfig

    def __init__(self, config: MaskDiffusionConfig) -> None:
        super().__init__(config)
        self.backbone = _Network(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Weights come from the file."""

    def get_input_embeddings(self) -> nn.Module:
        return nn.Embedding.from_pretrained(self.backbone.vocab_embed.embedding.detach())

    def get_output_embeddings(self) -> nn.Module:
        return self.backbone.output_layer.linear


class MaskDiffusionForMaskedLM(_Model):
    """Logits of the clean tokens, given a sequence in which some are masked."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, sigma: Tensor | None = None,
        noise_seeds: Tensor | None = None, generator: torch.Generator | None = None,
        labels: Tensor | None = None, **kwargs: Any,
    ) -> MaskedLMOutput:  # fmt: skip
        """Args:
            input_ids: (B, L) int64, ``config.mask_token_id`` where a token is masked.
            attention_mask: (B, L), 0 where nothing sees the position: padding.
            sigma: (B,) total noise -log alpha; for models with ``config.time_conditioning``.
            noise_seeds: (B, L) int64, the random state of each mask (``config.mask_noise``): the same seeds
                give the same logits. Without them they are drawn, from ``generator`` or PyTorch's own.
            labels: (B, L) int64, -100 where nothing is predicted; gives the mean cross-entropy as ``loss``.

        Returns:
            ``logits`` (B, L, V) as the network gives them; leave the mask, no token, out of a softmax.
        """
        seen = _seen(input_ids, attention_mask, self.config)
        logits = self.backbone(input_ids, seen, sigma, noise_seeds, generator)
        return MaskedLMOutput(loss=_loss(_without_mask(logits, self.config), labels), logits=logits)

    @torch.no_grad()
    def generate(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, *, num_samples: int = 1,
        length: int | None = None, steps: int = 8, temperature: float = 1.0, seed: int = 1,
    ) -> Tensor:  # fmt: skip
        """Write texts: ids (B, L).

        Args:
            input_ids: (B, P) what is given, with masks where something is to be written; masks follow up to
                ``length``. None: ``num_samples`` texts from masks alone.
            attention_mask: (B, P), 0 at padding, which is not seen and stays as it is.
            length: L; None: ``config.length``.
            steps: calls of the network.
            temperature: of the distribution of tokens.
            seed: the same one gives the same texts.
        """
        config, mask_id = self.config, self.config.mask_token_id
        if mask_id is None or getattr(config, "algorithm", None) == "sedd":
            raise ValueError("generate() is for models that predict masked tokens; this one is not")
        length = length or config.length
        ids, seen = _start(input_ids, attention_mask, num_samples, length, mask_id, self.device)

        def logits(now: Tensor, sigma: float, seeds: Tensor | None, where: Tensor) -> Tensor:
            level = torch.full((len(now),), sigma, device=now.device) if config.time_conditioning else None
            return self(now, seen, sigma=level, noise_seeds=seeds).logits[where]

        fixed = torch.zeros_like(ids, dtype=torch.bool) if seen is None else seen == 0
        schedule = config.schedule or {"name": "log-linear", "eps": 1e-3}
        noisy = config.mask_noise is not None
        return _write(logits, ids, mask_id, steps, temperature, seed, schedule, noisy, fixed)


class MaskDiffusionForCausalLM(_Model, GenerationMixin):
    """Logits of the next token; texts begin with the tokenizer's bos (or the mask, where it has none)."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **_: Any
    ) -> CausalLMOutput:
        """Args:
            input_ids: (B, L) int64.
            attention_mask: (B, L), 0 where no other position sees this one: padding, on either side.
            labels: (B, L) int64, usually the ids, -100 where nothing is predicted; they are shifted here.

        Returns:
            ``logits`` (B, L, V), at -1e6 for the mask, which is no token.
        """
        logits = self.backbone(input_ids, _seen(input_ids, attention_mask, self.config))
        logits = _without_mask(logits, self.config)
        return CausalLMOutput(
            loss=_loss(logits[:, :-1], None if labels is None else labels[:, 1:]), logits=logits
        )

    _supports_default_dynamic_cache = classmethod(lambda cls: False)  # each token anew from all before it

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        return {"input_ids": input_ids, "attention_mask": kwargs.get("attention_mask")}


def _seen(ids: Tensor, attention_mask: Tensor | None, config: MaskDiffusionConfig) -> Tensor | None:
    """Which position sees which, (B, 1, L, L), padding itself alone; None: all, or all up to itself."""
    mask = torch.ones_like(ids) if attention_mask is None else attention_mask
    if mask.shape != ids.shape:
        raise ValueError(f"attention_mask has shape {(*mask.shape,)}, input_ids {(*ids.shape,)}")
    if mask.all() and not (config.causal and config.softcap > 0):
        return None
    seen = mask.bool()[:, None, None] | torch.eye(ids.shape[1], dtype=torch.bool, device=ids.device)
    return seen.tril() if config.causal else seen


def _without_mask(logits: Tensor, config: MaskDiffusionConfig) -> Tensor:
    if config.mask_token_id is None:
        return logits
    return logits.index_fill(-1, torch.tensor([config.mask_token_id], device=logits.device), _NEVER)


def _loss(logits: Tensor, labels: Tensor | None) -> Tensor | None:
    return None if labels is None else F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
