"""The optimizer, which parameters it trains, the clipping of gradients, a watch for numbers gone wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from errors import UserError
from muon import Muon


def adamw(parameters: Iterable[nn.Parameter], settings: Mapping[str, Any]) -> torch.optim.AdamW:
    """AdamW with the numbers of the ``optim`` section.

    Weight decay applies to all parameters, norms and biases included, as in the official implementation.
    """
    return torch.optim.AdamW(
        parameters,
        lr=settings["lr"],
        betas=(settings["beta1"], settings["beta2"]),
        eps=settings["eps"],
        weight_decay=settings["weight_decay"],
        fused=True,
    )


def make_optimizer(module: nn.Module, settings: Mapping[str, Any]) -> torch.optim.Optimizer:
    """The optimizer of ``optim.name`` for what ``module`` trains."""
    if settings["name"] == "muon":
        return Muon(((name, p) for name, p in module.named_parameters() if p.requires_grad), settings)
    return adamw((p for p in module.parameters() if p.requires_grad), settings)


TUNED_NORMS = {"norm": ("norm1", "norm2"), "norm2": ("norm2",)}


def train_only(module: nn.Module, ln_tune: str) -> None:
    """Freeze all parameters but those that ``optim.ln_tune`` names; ``none`` freezes nothing.

    Parameters are chosen by their names in checkpoints, as in the official implementation. ``norm`` takes the
    weights of norm1 and norm2, in front of each block's attention and MLP, ``norm2`` the latter alone.
    norm_final, q_norm and k_norm stay frozen, and so does the adaLN modulation, which scales norms but is a
    linear map. What was frozen before stays so.

    Raises:
        ValueError: when nothing would be trained.
    """
    if ln_tune == "none":
        return
    for name, parameter in module.named_parameters():
        chosen = any(f"{norm}.weight" in name for norm in TUNED_NORMS[ln_tune])
        parameter.requires_grad_(parameter.requires_grad and chosen)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise UserError("optim.ln_tune", ln_tune, "the network has no such norm to train", "use none")


WATCHED = ("trainer/loss", "train/grad_norm", "norm of the weights")


class WatchedModule(L.LightningModule):
    """Gradient clipping, and a check that losses, gradients and weights are finite numbers.

    The losses of the optimizer steps and the norms of their gradients are summed on their device until
    somebody looks. A sum is finite only if all its terms are, so that watching makes no device wait.

    Attributes:
        step_loss: of the last optimizer step on this device, 0-d: the mean over its micro-batches.
        grad_norm: of the same step, before clipping, 0-d; the same on all devices.
    """

    def __init__(self) -> None:
        super().__init__()
        self.step_loss = self.grad_norm = torch.zeros(())
        self._pending: list[Tensor] = []  # micro-batches of a step that is not complete
        self._seen: list[Tensor] = []  # sums over the steps since the last check
        self._steps = self._last_step = 0

    def trainable(self) -> list[nn.Parameter]:
        """The parameters that the optimizer gets, in the order of the state_dict."""
        return [p for p in self.parameters() if p.requires_grad]

    def watch_loss(self, loss: Tensor) -> None:
        """Note the loss of a micro-batch, 0-d."""
        self._pending.append(loss.detach())

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.grad_norm = _total_norm(p.grad for p in _held(optimizer) if p.grad is not None)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if gradient_clip_val and gradient_clip_algorithm != "value":
            # By the norm that is known already: a second pass over all gradients would find the same.
            nn.utils.clip_grads_with_norm_(_held(optimizer), gradient_clip_val, self.grad_norm)
        else:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)  # runs the last micro-batch, then the hooks above
        self.step_loss = torch.stack(self._pending).mean()
        self._pending = []
        seen = [self.step_loss, self.grad_norm]
        self._seen = [a + b for a, b in zip(self._seen, seen, strict=True)] if self._steps else seen
        self._steps, self._last_step = self._steps + 1, self.global_step + 1

    def check_finite(self) -> None:
        """Stop when a loss, a gradient norm or a weight since the last check is not a finite number.

        Done before every line of the log, validation and checkpoint; all devices check together and agree.

        Raises:
            ValueError: naming what it is and the optimizer steps in question.
        """
        if not self._steps:
            return
        weights = _total_norm(p.detach() for p in self.trainable())
        found = self.over_devices(torch.stack([value.float() for value in (*self._seen, weights)])).tolist()
        for name, value in zip(WATCHED, found, strict=True):
            if not math.isfinite(value):
                raise UserError(
                    name,
                    value,
                    f"not a finite number in optimizer steps {self._last_step - self._steps + 1} "
                    f"to {self._last_step}",
                    "checkpoints before are intact; lower optim.lr, clip gradients, or resume from one",
                )
        self._steps = 0

    def over_devices(self, values: Tensor) -> Tensor:
        """The sum of ``values`` over all devices, on each of them; all must ask."""
        # Lightning sums in place, and takes the module to the CPU when training is over.
        values = values.detach().to(self.trainer.strategy.root_device, copy=True)
        return self.trainer.strategy.reduce(values, reduce_op="sum")

    def on_validation_start(self) -> None:
        self.check_finite()

    def on_train_end(self) -> None:
        self.check_finite()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_finite()


def _total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """The norm of all of them together, 0-d; of shards that of the whole, on all devices."""
    norm = nn.utils.get_total_norm(list(tensors))
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _held(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]
