"""Token, mask-noise and time embeddings.

The mask of Infinite Mask Diffusion has a random state: e_i = E[mask] + g(eps_i), eps_i in R^noise_dim.
Shapes: B batch, L length, D width, V vocabulary with the mask, N masked positions, K finite masks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from errors import UserError
from models.layers import Linear, init_linear
from models.noise import NOISE_KINDS, finite_mask_ids, seeded_noise

TIME_FEATURES = 256
COUPLED = "coupled"  # the noise type of algo=im-coupled


@dataclass(frozen=True)
class MaskNoiseConfig:
    """The random state of masks.

    Args:
        noise_type: "rand" U(-1, 1), "randn" N(0, 1), or "learnable" mu + s * N(0, 1) with trained vectors;
            "coupled": the noise is given, and g sees with it the embedding of a token that it proposes.
        noise_dim: channels of the noise.
        noise_scale: factor on the noise; 1 for "learnable", which has its own.
        num_mask: 0 for infinitely many masks; K > 0 for an alphabet of K masks, an embedding each.
    """

    noise_type: str = "rand"
    noise_dim: int = 128
    noise_scale: float = 1.0
    num_mask: int = 0

    def __post_init__(self) -> None:
        if self.noise_type not in (*NOISE_KINDS, COUPLED):
            hint = f"use one of {', '.join(NOISE_KINDS)}"
            raise UserError("algo.noise_type", self.noise_type, "unknown", hint)
        if self.noise_dim < 1:
            raise UserError("model.noise_dim", self.noise_dim, "no channel", "use a positive number")
        if self.num_mask < 0:
            raise UserError("algo.num_mask", self.num_mask, "negative", "use 0 for infinitely many masks")
        if self.noise_type == "learnable" and self.noise_scale != 1:
            raise UserError("algo.noise_scale", self.noise_scale, "learnable noise has its own", "use 1")


class MaskNoise(nn.Module):
    """The random state of masks as embeddings: zero at the start, so that a network keeps what it says.

    Args:
        hidden_size: D.
        mask_id: id of the mask; None for a process without one.
        mask_noise: None for one deterministic mask: there is nothing to add, and no parameter.
    """

    def __init__(self, hidden_size: int, mask_id: int | None, mask_noise: MaskNoiseConfig | None) -> None:
        super().__init__()
        self.mask_id = mask_id
        self.mask_noise = mask_noise
        self._make_noise(hidden_size, 0)

    def _make_noise(self, hidden_size: int, vocab_size: int) -> None:
        mask_noise = self.mask_noise
        if mask_noise is None:
            return
        if mask_noise.num_mask > 0:
            self.imdm_mlp = nn.Embedding.from_pretrained(
                torch.zeros(mask_noise.num_mask, hidden_size), freeze=mask_noise.num_mask == 1
            )
            return
        if mask_noise.noise_type == "learnable":
            self.learnable_noise_mu = nn.Parameter(torch.zeros(1, 1, mask_noise.noise_dim))
            self.learnable_noise_sigma = nn.Parameter(torch.ones(1, 1, mask_noise.noise_dim))
        coupled = mask_noise.noise_type == COUPLED
        first = Linear(mask_noise.noise_dim + coupled * hidden_size, 4 * hidden_size)
        last = Linear(4 * hidden_size, hidden_size, bias=False)
        nn.init.trunc_normal_(first.weight, std=0.02, a=-0.04, b=0.04)
        nn.init.zeros_(first.bias)
        # A zero here makes a fresh IMDM the MDLM whose weights it was given.
        nn.init.zeros_(last.weight)
        if coupled:
            self.coupled_mlp = nn.Sequential(first, nn.GELU(), last)
            # What proposals are drawn from; algorithms/coupled.py fills it once, and checkpoints keep it.
            self.register_buffer("coupled_unigram", torch.zeros(vocab_size))
        else:
            self.imdm_mlp = nn.Sequential(first, nn.GELU(), last)

    def add_noise(self, embedded: Tensor, x: Tensor, mask_seeds: Tensor | None) -> Tensor:
        """The embeddings (B, L, D) of ids x (B, L) with the noise of the masks among them.

        Args:
            embedded: (B, L, D), the embeddings of ``x``.
            x: (B, L) int64.
            mask_seeds: the masks' random state; ignored by a model without mask noise. Either (B, L) int64, a
                seed for each position (``seeded_noise``), or floating: (B, L, noise_dim) noise as it enters g
                (the N(0, 1) of learnable noise), or (B, L, 1 or more) with the mask's number in channel 0 if
                the alphabet is finite. Coupled noise is (B, L, 1 + noise_dim) floating: the proposed token's
                id in channel 0, then the noise.

        Raises:
            ValueError: if the model has mask noise and ``mask_seeds`` is None or of another shape.
        """
        if self.mask_noise is None:
            return embedded
        if mask_seeds is None or mask_seeds.shape[:2] != x.shape:
            shape = None if mask_seeds is None else tuple(mask_seeds.shape)
            hint = f"give {tuple(x.shape)} seeds"
            raise UserError("mask_seeds", str(shape), "no mask noise for these ids", hint)
        rows = (x == self.mask_id).flatten().nonzero().squeeze(1)
        noise = self._noise_embedding(mask_seeds.flatten(0, 1)[rows], rows % x.shape[1], embedded.dtype)
        return embedded.flatten(0, 1).index_add(0, rows, noise).view(embedded.shape)

    def _noise_embedding(self, mask_seeds: Tensor, positions: Tensor, dtype: torch.dtype) -> Tensor:
        """g at N masked positions, (N, D); with N = 0 its parameters still get (zero) gradients."""
        config = self.mask_noise
        explicit = mask_seeds.is_floating_point()
        if config.noise_type == COUPLED:
            proposal = F.embedding(mask_seeds[:, 0].long(), self.embedding)
            return self.coupled_mlp(torch.cat((mask_seeds[:, 1:], proposal), -1))
        if config.num_mask > 0:
            if explicit:
                return self.imdm_mlp(mask_seeds[:, 0].long())
            return self.imdm_mlp(finite_mask_ids(mask_seeds, positions, config.noise_dim, config.num_mask))
        if explicit:
            noise = mask_seeds.to(dtype)
        else:
            kind = "rand" if config.noise_type == "rand" else "randn"
            noise = seeded_noise(mask_seeds, positions, config.noise_dim, kind)
            if config.noise_scale != 1:
                noise.mul_(config.noise_scale)
        if config.noise_type == "learnable":
            noise = torch.addcmul(self.learnable_noise_mu[0], self.learnable_noise_sigma[0], noise)
        return self.imdm_mlp(noise)


class VocabEmbedding(MaskNoise):
    """Token embeddings, with the mask's noise added at masked positions.

    Args:
        vocab_size: V.
        hidden_size: D.
        mask_id: id of the mask; None for a process without one.
        mask_noise: None for one deterministic mask.
    """

    def __init__(
        self, vocab_size: int, hidden_size: int, mask_id: int | None, mask_noise: MaskNoiseConfig | None
    ) -> None:
        super().__init__(hidden_size, mask_id, None)
        self.mask_noise = mask_noise
        # In front of the noise, as in the order of the checkpoints.
        self.embedding = nn.Parameter(torch.empty(vocab_size, hidden_size))
        nn.init.kaiming_uniform_(self.embedding, a=math.sqrt(5))
        self._make_noise(hidden_size, vocab_size)

    def forward(self, x: Tensor, mask_seeds: Tensor | None = None) -> Tensor:
        """Ids (B, L) int64 to embeddings (B, L, D); ``mask_seeds`` as in ``add_noise``, which may raise."""
        return self.add_noise(F.embedding(x, self.embedding), x, mask_seeds)


class TimestepEmbedding(nn.Module):
    """Sinusoidal features of sigma and an MLP: (G,) -> (G, cond_dim).

    Args:
        cond_dim: C.
    """

    frequencies: Tensor

    def __init__(self, cond_dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(Linear(TIME_FEATURES, cond_dim), nn.SiLU(), Linear(cond_dim, cond_dim))
        for layer in (self.mlp[0], self.mlp[2]):
            init_linear(layer, std=0.02)
        # Made on the CPU, whose rounding the golden numbers have, and not part of checkpoints.
        self.register_buffer("frequencies", timestep_frequencies(), persistent=False)

    def forward(self, sigma: Tensor) -> Tensor:
        """Embed sigma (G,), in float32."""
        return self.mlp(timestep_features(sigma, self.frequencies))


def timestep_frequencies() -> Tensor:
    """The 128 frequencies from 1 down to about 1/10000, (128,) float32.

    The official code makes them in bfloat16, step by step (off by up to 2.8 %); trained weights expect that.
    """
    half = TIME_FEATURES // 2
    exponents = -math.log(10000) * torch.arange(half, dtype=torch.bfloat16) / half
    return exponents.exp().float()


def timestep_features(sigma: Tensor, frequencies: Tensor) -> Tensor:
    """[cos, sin] of sigma (G,) times the frequencies (F,), (G, 2 F) float32."""
    angles = sigma.float()[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1)
