"""From the network's features to log-probabilities of clean tokens (SUBS), at chosen positions only.

The vocabulary head is the widest layer by far. A ``Prediction`` holds the features in front of it and runs
it where somebody asks. Shapes: B batch, L length, D width, V vocabulary with the mask, N chosen positions.
"""

from __future__ import annotations

import copy
from typing import Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion import NEG_INF
from diffusion.divergences import Divergences, weighted_linear_divergence
from diffusion.linear_nll import LinearHead, linear_nll, weighted_linear_nll

__all__ = ["NEG_INF", "Denoiser", "Prediction"]


class Prediction:
    """What the network says about x0 given xt, by SUBS (MDLM, Sahoo et al. 2024, section 3.2.3).

    The mask has probability 0 and an unmasked position keeps its token. The head runs in float32 or better
    whatever autocast says.

    Args:
        features: (B, L, D), the network's last hidden state.
        weight, bias: (V, D) and (V,) or None, the vocabulary head.
        xt: (B, L) int64 noised ids.
        mask_id: id of the mask, anywhere in the vocabulary; None where there is none (diffusion/uniform.py).
        dtype: of log-probabilities and losses, float32 or float64; the matrix product with the head stays in
            the parameters' precision (at least float32), which is lifted to when wider.
        chunk_elements: about how many float32 logits the losses hold at a time; None: 2**23 (32 MB) on a CPU,
            2**24 (64 MB) elsewhere.
    """

    def __init__(
        self,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        xt: Tensor,
        mask_id: int | None,
        dtype: torch.dtype = torch.float32,
        chunk_elements: int | None = None,
    ) -> None:
        head_dtype = torch.promote_types(torch.promote_types(features.dtype, weight.dtype), torch.float32)
        self.xt = xt
        self.mask_id = mask_id
        self.dtype = torch.promote_types(dtype, head_dtype)
        self._features = features.flatten(0, 1).to(head_dtype)
        self._head = LinearHead(
            weight.to(head_dtype),
            None if bias is None else bias.to(head_dtype),
            mask_id=mask_id,
            dtype=self.dtype,
            chunk_elements=chunk_elements,
        )

    @property
    def vocab_size(self) -> int:
        """V, the mask included."""
        return self._head.weight.shape[0]

    @property
    def features(self) -> Tensor:
        """(B, L, D), what the head turns into log-probabilities, in the head's precision."""
        return self._features.view(*self.xt.shape, -1)

    def with_features(self, features: Tensor, xt: Tensor) -> Self:
        """The same head behind other features (B, L, D), at ids xt (B, L)."""
        other = copy.copy(self)
        other.xt, other._features = xt, features.flatten(0, 1).to(self._features.dtype)
        return other

    def at(self, rows: Tensor) -> Tensor:
        """Log-probabilities (N, V) of x0 at chosen positions, differentiable.

        Rows at unmasked positions are the one-hot of xt: 0 there, NEG_INF elsewhere. At masked ones the
        mask's column is NEG_INF (up to the row's normaliser).

        Args:
            rows: (B, L) bool, or (N,) int64 indices into the flattened B*L positions.
        """
        rows = flat(rows)
        tokens = self.xt.flatten()[rows]
        open_rows = (tokens == self.mask_id).nonzero().squeeze(1)
        if open_rows.numel() == rows.numel():
            return self._log_probs(rows)
        carried = torch.full(
            (rows.numel(), self.vocab_size), NEG_INF, dtype=self.dtype, device=self._features.device
        )
        carried.scatter_(1, tokens.unsqueeze(1), 0.0)
        return carried.index_copy_(0, open_rows, self._log_probs(rows[open_rows]))

    def full(self) -> Tensor:
        """Log-probabilities (B, L, V) of x0 at every position, differentiable."""
        rows = torch.arange(self.xt.numel(), device=self.xt.device)
        return self.at(rows).view(*self.xt.shape, self.vocab_size)

    def nll(self, rows: Tensor, targets: Tensor) -> Tensor:
        """-log x_theta[target] at chosen positions, (N,), detached; no (N, V) tensor exists beyond a chunk.

        Args:
            rows: as in ``at``.
            targets: (N,) int64.
        """
        rows = flat(rows)
        tokens = self.xt.flatten()[rows]
        is_masked = tokens == self.mask_id
        carried = torch.where(tokens == targets, 0.0, -NEG_INF).to(self.dtype)
        chosen = is_masked.nonzero().squeeze(1)
        with torch.no_grad(), self._full_precision():
            nll = linear_nll(self._features[rows[chosen]], self._head, targets[chosen])
        return carried.index_copy_(0, chosen, nll)

    def weighted_nll(self, rows: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The scalar sum_i weights_i * nll_i, differentiable, and the nll (N,), detached.

        Gradients of features, weight and bias are made chunk by chunk during the forward pass, so no (N, V)
        tensor is kept and no logit is computed twice. No rows give a zero that still reaches all three.

        Args:
            rows: as in ``at``; all at masked positions.
            targets: (N,) int64.
            weights: (N,), treated as constants.
        """
        with self._full_precision():
            features = self._features.index_select(0, flat(rows))
            return weighted_linear_nll(features, self._head, targets, weights.to(self.dtype))

    def weighted_divergence(
        self, rows: Tensor, teacher: Prediction, kind: str, targets: Tensor, weights: Tensor
    ) -> Divergences:
        """The scalar sum_i weights_i * divergence_i from a teacher at chosen positions, differentiable, and
        the divergences and -log x_theta[target], (N,), detached. Chunk by chunk, as ``weighted_nll``.

        Args:
            rows: as in ``at``; none at positions that carry their token over.
            teacher: another prediction at the same positions; a constant.
            kind: see ``diffusion.divergences``.
            targets: (N,) int64.
            weights: (N,), treated as constants.
        """
        with self._full_precision():
            rows = flat(rows)
            features, taught = (p._features.index_select(0, rows) for p in (self, teacher))
            weights = weights.to(self.dtype)
            return weighted_linear_divergence(
                kind, features, self._head, taught, teacher._head, targets, weights
            )

    def logits(self, rows: Tensor) -> Tensor:
        """What the head says at chosen positions, the mask's column included: (N, V), differentiable.

        Args:
            rows: (N,) int64 indices into the flattened B*L positions.
        """
        with self._full_precision():
            return F.linear(self._features[rows], self._head.weight, self._head.bias).to(self.dtype)

    def _log_probs(self, rows: Tensor) -> Tensor:
        logits = self.logits(rows)
        logits[:, self.mask_id] = NEG_INF
        return torch.log_softmax(logits, dim=-1)

    def _full_precision(self) -> torch.autocast:
        return torch.autocast(self._features.device.type, enabled=False)


class TimedPrediction(Prediction):
    """A prediction whose meaning depends on the noise level.

    Args:
        sigma: (B,) total noise of each sequence.
        features, weight, bias, xt, mask_id, dtype: see ``Prediction``.
    """

    def __init__(
        self,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        xt: Tensor,
        mask_id: int,
        sigma: Tensor,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(features, weight, bias, xt, mask_id, dtype)
        self._sigma = sigma

    def sigma(self, rows: Tensor) -> Tensor:
        """That of chosen positions, (N, 1); ``rows`` (N,) are indices into the flattened B*L positions."""
        return self._sigma.to(self.dtype)[rows // self.xt.shape[1]].unsqueeze(1)


def flat(rows: Tensor) -> Tensor:
    """``rows`` (B, L) bool as (N,) int64 indices into the flattened positions; indices as they are."""
    return rows.flatten().nonzero().squeeze(1) if rows.dtype == torch.bool else rows


class Denoiser(Protocol):
    """All that objectives, samplers and teachers see of a network.

    ``mask_seeds`` is None, or int64 (B, L): the seed of every position's mask noise.
    """

    def denoise(self, xt: Tensor, sigma: Tensor, mask_seeds: Tensor | None) -> Prediction:
        """One call of the network at ids xt (B, L) and total noise sigma (B,)."""
        ...

    def draw_seeds(self, keys: Tensor, length: int) -> Tensor | None:
        """Fresh mask noise for a batch, a pure function of the rows' keys (B,)."""
        ...

    def refresh_seeds(self, mask_seeds: Tensor | None, where: Tensor, keys: Tensor) -> Tensor | None:
        """``mask_seeds`` with fresh mask noise at the positions ``where`` (B, L), from the rows' keys
        (B,).
        """
        ...
