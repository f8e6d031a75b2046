"""The one place that decides in which precision the network computes.

Matrix products and attention of the blocks run in the *block dtype*. Everything else is float32: parameters,
residual stream, layer norms, token and time embeddings, the noise MLP, the final norm, and the head outside.
The residual stream stays float32 also under bfloat16: the sums promote to it in the official code as well, it
costs no measurable time on CPU (its layer norms are faster than bfloat16 ones there), and sums over many
blocks do not lose their small terms.

Lightning's own precision is 32-true under every strategy, so that the same holds on one device, with DDP and
with shards (strategy=fsdp): gradients, their reduction over devices, AdamW's moments, averages and files are
float32 throughout, shards are gathered in float32, and a block casts its weights when it computes. Losses are
float32 or, by training.loss_precision, float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from errors import UserError

_FLOAT32 = {"32", "32-true", "32-bit"}
_BFLOAT16 = {"bf16", "bf16-mixed"}
_CUDA_ACCELERATORS = {"cuda", "gpu"}


@dataclass(frozen=True)
class Precision:
    """Precision of a network.

    Args:
        block_dtype: dtype of the blocks' matrix products; None is float32 throughout.
    """

    block_dtype: torch.dtype | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The blocks' dtype, float32 where nothing else was asked for."""
        return self.block_dtype or torch.float32

    def __str__(self) -> str:
        return "bf16" if self.block_dtype is torch.bfloat16 else "32"

    @classmethod
    def resolve(cls, name: str | int, device: str | torch.device = "auto") -> Precision:
        """The precision that ``trainer.precision`` names on a kind of device.

        Args:
            name: "32", "bf16" (or Lightning's "32-true", "bf16-mixed"), or "auto": bfloat16 where the device
                multiplies it natively, else float32.
            device: a torch device, its type, or Lightning's ``trainer.accelerator`` ("auto" is CUDA if
                there is one, else the CPU).

        Raises:
            ValueError: for any other name.
        """
        name = str(name)
        if name == "auto":
            return cls(torch.bfloat16 if has_native_bfloat16(device) else None)
        if name in _BFLOAT16:
            return cls(torch.bfloat16)
        if name in _FLOAT32:
            return cls(None)
        raise UserError("trainer.precision", name, "not supported", "use auto, 32 or bf16")


def has_native_bfloat16(device: str | torch.device = "auto") -> bool:
    """Whether bfloat16 matrix products are done in hardware on this kind of device."""
    kind = device.type if isinstance(device, torch.device) else str(device).split(":")[0]
    if kind in _CUDA_ACCELERATORS or (kind == "auto" and torch.cuda.is_available()):
        return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 8
    if kind in {"cpu", "auto"}:
        features = torch.cpu.get_capabilities()
        native = features.get("avx512_bf16") or features.get("amx_bf16")
        return bool(native) and torch.backends.mkldnn.is_available()
    return False


def allow_tf32() -> None:
    """Let CUDA do float32 matrix products in TF32 (a process-wide setting: call it once, from a task)."""
    torch.set_float32_matmul_precision("high")
