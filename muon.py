"""Muon for the matrices of the blocks, AdamW for everything else (``optim.name=muon``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from errors import UserError


class Muon(torch.optim.Optimizer):
    """``torch.optim.Muon`` and ``torch.optim.AdamW`` behind the interface of one optimizer.

    Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon) orthogonalises the momentum of a
    matrix by five Newton-Schulz iterations. Its step has the root mean square of AdamW's
    (``match_rms_adamw``: 0.2 sqrt(max(rows, columns)), Liu et al., arXiv 2502.16982), so that one learning
    rate serves both.

    Args:
        named_parameters: what is trained, with names of the checkpoint.
        settings: the section ``optim``.

    Raises:
        UserError: there is no matrix of a block to train.
    """

    def __init__(
        self, named_parameters: Iterable[tuple[str, nn.Parameter]], settings: Mapping[str, Any]
    ) -> None:
        named = list(named_parameters)
        matrices = [parameter for name, parameter in named if is_matrix_of_a_block(name, parameter)]
        others = [parameter for name, parameter in named if not is_matrix_of_a_block(name, parameter)]
        if not matrices:
            problem = "none of the trained parameters is a matrix of a block"
            raise UserError("optim.name", "muon", problem, "use optim.name=adamw")
        decay = settings["weight_decay"]
        momentum = settings["muon_momentum"]
        groups = [
            {"params": matrices, "lr": settings["lr"], "weight_decay": decay, "momentum": momentum},
            {
                "params": others,
                "lr": settings["lr"] if settings["adamw_lr"] is None else settings["adamw_lr"],
                "weight_decay": decay,
                "betas": (settings["beta1"], settings["beta2"]),
                "eps": settings["eps"],
            },
        ]
        self._parts: list[torch.optim.Optimizer] = []
        super().__init__([group for group in groups if group["params"]], {})
        self._make_parts()

    def _make_parts(self) -> None:
        """Both optimizers on this one's groups and states, which schedulers and checkpoints change."""
        muon, *adamw = self.param_groups
        self._parts = [torch.optim.Muon([muon], adjust_lr_fn="match_rms_adamw")]
        self._parts += [torch.optim.AdamW([group], fused=True) for group in adamw]
        for part, group in zip(self._parts, self.param_groups, strict=True):
            group.update({name: value for name, value in part.param_groups[0].items() if name not in group})
            part.param_groups, part.state = [group], self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._make_parts()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both; ``closure`` computes the loss and the gradients before."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss


def is_matrix_of_a_block(name: str, parameter: nn.Parameter) -> bool:
    """Attention's and MLP's matrices; not embeddings, mask noise, the head or adaLN."""
    in_block = any(part in ("blocks", "layers", "layer") for part in name.split("."))
    return in_block and parameter.ndim == 2 and not any(word in name for word in ("adaLN", "embed"))
