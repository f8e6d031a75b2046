"""Building blocks with their speed in mind: linear maps, modulated norms, gates, dropout.

Shapes: B batch, L length, D width, C conditioning width; G is B, or 1 if all sequences share a conditioning.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Rows that make one image in _convolve; PyTorch does not give a single image to oneDNN, so two are the least.
_IMAGE_ROWS = 64


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """``x @ weight.T + bias`` computed in ``dtype``.

    Args:
        x: (..., I). weight: (O, I). bias: (O,) or None.
    """
    x, weight = x.to(dtype), weight.to(dtype)
    bias = None if bias is None else bias.to(dtype)
    # Inductor cannot compile such a convolution over a number of rows that varies.
    eager = not torch.compiler.is_compiling()
    if eager and x.device.type == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available():
        rows = x.numel() // x.shape[-1]
        if rows >= 2 * _IMAGE_ROWS:
            return _convolve(x.reshape(rows, -1), weight, bias).reshape(*x.shape[:-1], -1)
    return F.linear(x, weight, bias)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(N, I) -> (N, O): a linear map as a convolution of size 1 over images of some rows.

    On CPU a float32 product goes to MKL, which leaves AVX-512 unused on processors that are not Intel's; a
    convolution goes to oneDNN, which does not: half the time, forward and backward, the same rounding.
    """
    rows = x.shape[0]
    spare = -rows % _IMAGE_ROWS
    if spare:
        x = F.pad(x, (0, 0, 0, spare))
    images = x.view(-1, _IMAGE_ROWS, x.shape[1]).transpose(1, 2).unsqueeze(2)
    product = F.conv2d(images, weight[:, :, None, None], bias).squeeze(2).transpose(1, 2).flatten(0, 1)
    return product[:rows] if spare else product


class Linear(nn.Linear):
    """``nn.Linear`` computed by :func:`linear`; it draws no start weights, its owner sets them."""

    def reset_parameters(self) -> None:
        """Leave the parameters as they were allocated."""

    def forward(self, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """(..., I) -> (..., O) in ``dtype``."""
        return linear(x, self.weight, self.bias, dtype)


def init_linear(layer: nn.Linear, std: float) -> None:
    """Weight normal with ``std`` (0 for zeros) from PyTorch's generator, bias zero."""
    if std > 0:
        nn.init.normal_(layer.weight, std=std)
    else:
        nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def modulated_norm(x: Tensor, weight: Tensor, shift: Tensor | None, scale: Tensor | None) -> Tensor:
    """LayerNorm(x) * weight * (1 + scale) + shift in float32.

    Args:
        x: (B, L, D). weight: (D,). shift, scale: (G, D), or both None for a plain norm.
    """
    if shift is None or scale is None:
        return F.layer_norm(x, weight.shape, weight)
    gain = weight * (1 + scale)
    if gain.shape[0] == 1:
        # One conditioning for all: the modulation is the affine part of the norm and costs nothing.
        return F.layer_norm(x, weight.shape, gain[0], shift[0])
    return torch.addcmul(shift[:, None], F.layer_norm(x, weight.shape), gain[:, None])


def gated_residual(
    x: Tensor, branch: Tensor, layer: nn.Linear, gate: Tensor | None, dtype: torch.dtype, dropout: float
) -> Tensor:
    """x + gate * dropout(layer(branch)), in float32 but for the product.

    Args:
        x: (B, L, D). branch: (B, L, I). layer: I -> D. gate: (G, D), or None for 1.
        dropout: probability; 0 outside training.
    """
    weight, bias = layer.weight, layer.bias
    if gate is not None and gate.shape[0] == 1:
        # One gate for all goes into the weights, which are far smaller than the activations.
        weight = weight * gate[0, :, None]
        bias = None if bias is None else bias * gate[0]
    update = drop(linear(branch, weight, bias, dtype), dropout)
    if gate is None or gate.shape[0] == 1:
        return x + update
    return torch.addcmul(x, update, gate[:, None])


def drop(x: Tensor, p: float) -> Tensor:
    """Dropout with probability ``p``, from PyTorch's generator of the device."""
    if p == 0:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p)
    # PyTorch's CPU dropout spends a whole draw of its generator on each element; 16 bits are enough.
    kept = min(max(1, round((1 - p) * 2**16)), 2**16 - 1)
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    keep = words.view(torch.int16)[: x.numel()].view(x.shape) < kept - 2**15
    return x * keep.to(x.dtype).mul_(2**16 / kept)
