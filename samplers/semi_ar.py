"""Text longer than the network's window: stride by stride, with any sampler (``sampling.semi_ar``).

Semi-autoregressive generation as MDLM has it (Sahoo et al., arXiv 2406.07524). Shapes: B rows, L positions of
the window, S new tokens a stride.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.randomness import fold_in
from errors import UserError
from samplers.base import Samples

_STRIDE = 2000  # away from the small numbers and the purposes of draws, which are folded into the same keys

# (ids of the window (B, L), keys of the start noise (B,), keys of the draws (B,)) -> its samples
Window = Callable[[Tensor, Tensor, Tensor], Samples]


@dataclass(frozen=True)
class Strides:
    """How a window slides: ``num_strides`` times by ``stride_length`` tokens, so that a row gets
    L + num_strides * stride_length tokens. No stride at all is the window alone.

    Each stride drops the oldest S tokens, keeps the other L - S as given, and samples S masks behind them
    over the whole grid from t = 1. That is a reverse process too: when a mask unmasks does not depend on the
    other positions, so that with any of them given the masked ones go their way from their own prior at t =
    1. (A network that sees the time is then told of more noise than the window has.)
    """

    stride_length: int = 1
    num_strides: int = 0

    def check(self, family: str) -> None:
        """Raise ValueError for models that do not keep what is given."""
        if self.num_strides and family == "uniform":
            problem = "a uniform-state model may change every token, also those that a stride keeps"
            raise UserError("sampling.semi_ar", True, problem, "use sampling.semi_ar=False")

    def sample(self, window: Window, xt: Tensor, start_keys: Tensor, keys: Tensor, mask_id: int) -> Samples:
        """Sample the window ``xt`` (B, L) and all strides behind it.

        Args:
            window: samples what is masked in a window.
            start_keys, keys: (B,) int64, of the start noise and of all draws; every stride has its own.

        Returns:
            Samples of length L + num_strides * S; network calls and forward passes of all windows add up.
        """
        last = window(xt, start_keys, keys)
        parts = [last]
        for stride in range(self.num_strides):
            new = torch.full_like(xt[:, : self.stride_length], mask_id)
            xt = torch.cat([last.tokens[:, self.stride_length :], new], 1)
            own = (fold_in(fold_in(k, _STRIDE), stride) for k in (start_keys, keys))
            last = window(xt, *own)
            parts.append(last)
        fresh = [slice(None), *[slice(-self.stride_length, None)] * self.num_strides]
        tokens = [part.tokens[:, new] for part, new in zip(parts, fresh, strict=True)]
        conds = [
            part.mask_seeds[:, new]
            for part, new in zip(parts, fresh, strict=True)
            if part.mask_seeds is not None
        ]
        return Samples(
            tokens=torch.cat(tokens, 1),
            nfe=torch.stack([part.nfe for part in parts]).sum(0),
            forward_passes=sum(part.forward_passes for part in parts),
            mask_seeds=torch.cat(conds, 1) if conds else None,
        )
