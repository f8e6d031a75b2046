"""Exponential moving average of trainable weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from errors import UserError
from models.sharding import local, shard_like

# A classical model knows nothing of the noise of masks: these may be missing in its average.
MASK_NOISE_NAMES = ("imdm_mlp.", "learnable_noise_", "coupled_")


def is_mask_noise(name: str) -> bool:
    """Whether a parameter belongs to the noise of masks, which MDLM checkpoints do not have."""
    return any(part in name for part in MASK_NOISE_NAMES)


class ExponentialMovingAverage:
    """shadow <- shadow + (1 - d) (weight - shadow), d = min(decay, (1 + n) / (10 + n)) at the n-th update.

    Args:
        named_parameters: names and parameters; those that are not trainable are left out.
        decay: limit of d, in [0, 1].

    Raises:
        ValueError: for a decay outside [0, 1].
    """

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]], decay: float) -> None:
        if not 0 <= decay <= 1:
            raise UserError("training.ema", decay, "not between 0 and 1", "use 0.9999, or 0 to turn it off")
        self.decay = decay
        self.num_updates = 0
        self._parameters = {name: p for name, p in named_parameters if p.requires_grad}
        self._shadow = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._is_applied = False

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present weights: once after every optimizer step."""
        assert not self._is_applied, "the model holds the average, not its own weights"
        self._follow_devices()
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        weights = [local(p.detach()) for p in self._parameters.values()]
        torch._foreach_lerp_([local(average) for average in self._shadow.values()], weights, 1 - decay)

    @torch.no_grad()
    def follow_shards(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Take over parameters that were replaced by shards (models/sharding.py), and shard the averages.

        Args:
            named_parameters: as before, under the same names.
        """
        assert not self._is_applied
        parameters = dict(named_parameters)
        self._parameters = {name: parameters[name] for name in self._shadow}
        self._shadow = {name: shard_like(self._shadow[name], p) for name, p in self._parameters.items()}

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Inside the block ``model`` holds the averaged weights; afterwards, whatever happens, its own.

        Nothing is copied, but for shards: they exchange their contents with the averages, and what is whole
        of them must be gathered anew. A block inside a block changes nothing.

        Args:
            model: has all the parameters that this average was made of, under the same names.

        Raises:
            ValueError: if one is missing.
        """
        if self._is_applied:
            yield
            return
        self._follow_devices()
        is_sharded = any(isinstance(p, DTensor) for p in self._parameters.values())
        parameters = self._parameters if is_sharded else dict(model.named_parameters())
        for name in self._shadow:
            if name not in parameters:
                hint = "use the model it was made of"
                raise UserError("ema", name, "the model has no such parameter", hint)
        own = {name: parameters[name].data for name in self._shadow}
        self._is_applied = True
        try:
            for name, average in self._shadow.items():
                _put(parameters[name], average)
            yield
        finally:
            for name, weight in own.items():
                _put(parameters[name], self._shadow[name] if isinstance(weight, DTensor) else weight)
            self._is_applied = False

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Give the model the averages as its own weights, for good."""
        assert not self._is_applied
        self._follow_devices()
        for name, average in self._shadow.items():
            self._parameters[name].copy_(average)

    def state_dict(self) -> dict[str, Any]:
        """{decay, num_updates, shadow_params, names}: lists in the order of the trainable parameters."""
        return {
            "decay": self.decay,
            "num_updates": self.num_updates,
            "shadow_params": list(self._shadow.values()),
            "names": list(self._shadow),
        }

    def load_state_dict(
        self,
        state: dict[str, Any],
        names: list[str] | None = None,
        may_miss: Callable[[str], bool] = is_mask_noise,
    ) -> None:
        """Take over decay, number of updates and averages.

        Args:
            state: as ``state_dict`` gives it.
            names: what ``state["shadow_params"]`` are the averages of, matched by name; None means what the
                state says, or else the parameters of this model in their order.
            may_miss: parameters that ``names`` may lack; their average starts at their present weight.

        Raises:
            ValueError: naming what is missing, unexpected or of another shape. Nothing is changed then.
        """
        averages = state["shadow_params"]
        names = state.get("names", list(self._shadow)) if names is None else names
        hint = "load it into the model it was made of"
        if len(averages) != len(names):
            raise UserError("ema", f"{len(averages)} averages", f"{len(names)} parameters", hint)
        loaded = dict(zip(names, averages, strict=True))
        for name, average in loaded.items():
            if name not in self._shadow:
                raise UserError("ema", name, "the model has no such trainable parameter", hint)
            own = tuple(self._shadow[name].shape)
            if tuple(average.shape) != own:
                raise UserError("ema", name, f"shape {tuple(average.shape)}, the model has {own}", hint)
        missing = [name for name in self._shadow if name not in loaded]
        for name in missing:
            if not may_miss(name):
                raise UserError("ema", name, "missing", hint)
        self._take(loaded, missing)
        self.decay, self.num_updates = float(state["decay"]), int(state["num_updates"] or 0)

    @torch.no_grad()
    def _take(self, loaded: dict[str, Tensor], missing: list[str]) -> None:
        for name in missing:
            loaded[name] = self._parameters[name].detach()
        for name, average in self._shadow.items():
            average.copy_(loaded[name])

    def _follow_devices(self) -> None:
        # The model may have moved to another device since; PyTorch keeps its parameters the same objects.
        # A validation in inference mode may notice first, and its tensors could not be updated later.
        with torch.inference_mode(False):
            for name, p in self._parameters.items():
                if self._shadow[name].device != p.device:
                    self._shadow[name] = self._shadow[name].to(p.device)


@torch.no_grad()
def _put(parameter: nn.Parameter, value: Tensor) -> None:
    """Let ``parameter`` hold ``value``; shards, whose memory others know too, exchange contents with it."""
    if not isinstance(parameter, DTensor):
        parameter.data = value
        return
    mine, other = local(parameter), local(value)
    kept = mine.clone()
    mine.copy_(other)
    other.copy_(kept)
