"""What an objective asks of a network; models/dit.py is one that answers. Any other may take its place.

Shapes: B sequences, L positions, D width, V vocabulary with the mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


class Head(Protocol):
    """The linear map from features to logits: ``weight`` (V, D) and ``bias`` (V,) or None."""

    weight: Tensor
    bias: Tensor | None


class Backbone(Protocol):
    """A network without its head, which is run by whoever needs logits, where they are needed."""

    @property
    def head(self) -> Any:
        """The map from features to logits, see ``Head``."""
        ...

    @property
    def embedding(self) -> Tensor:
        """The embeddings of all ids, (V, D); relaxed inputs (Duo's curriculum) are mixtures of them."""
        ...

    def body(
        self, x: Tensor, sigma: Tensor | None, mask_seeds: Tensor | None = None, **options: Any
    ) -> Tensor:
        """Features (B, L, D) in front of the head.

        Args:
            x: (B, L) int64 ids.
            sigma: (B,) total noise of each sequence; None: the network sees none.
            mask_seeds: (B, L) int64 seeds of the masks' random state; None for a plain mask.
            options: ``embedded`` (B, L, D) in the place of the embeddings of ``x``; ``cache`` of a causal
                network. Only objectives that need them pass them.
        """
        ...


@dataclass(frozen=True)
class FunctionBackbone:
    """A backbone made of two callables, for notebooks and tests.

    Args:
        features: (ids (B, L), sigma (B,) or None, mask_seeds (B, L) or None) -> features (B, L, D).
        head: a linear layer D -> V.
    """

    features: Any
    head: Any

    @property
    def embedding(self) -> Tensor:
        return self.head.weight

    def body(
        self, x: Tensor, sigma: Tensor | None, mask_seeds: Tensor | None = None, **options: Any
    ) -> Tensor:
        return self.features(x, sigma, mask_seeds)
