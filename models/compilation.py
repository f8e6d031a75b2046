"""torch.compile of a network's blocks: whether it can work on this machine.

Blocks are compiled one by one (regional compilation): all of them share one compiled program, so it takes as
long as one block, and the state_dict keeps its names.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from errors import UserError

KEY = "model.compile"
_COMPILERS = ("g++", "clang++", "c++")


def check_compiler(device: str) -> None:
    """Raise when PyTorch's compiler lacks what it needs for a kind of device.

    Args:
        device: "cpu", "cuda", ...

    Raises:
        ValueError: no C++ compiler for a CPU, no triton for a GPU, or another kind of device.
    """
    hint = "use model.compile=False"
    if device not in ("cpu", "cuda"):
        raise UserError(KEY, True, f"not supported on a {device}", hint)
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        raise UserError(KEY, True, "triton, which it needs on a GPU, is not installed", hint)
    # A GPU's launchers are compiled on the host as well.
    named = os.environ.get("CXX")
    if shutil.which(named) is None if named else not any(map(shutil.which, _COMPILERS)):
        problem = (
            f"CXX={named} is no program" if named else f"no C++ compiler ({', '.join(_COMPILERS)}) found"
        )
        raise UserError(KEY, True, problem, f"install g++, or {hint}")


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` compiled, once for all its callers."""
    return torch.compile(function)


def mark_dynamic_batch(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The same tensors, marked: their first size varies, so one program shall do for all of them (but for a
    size of 1, which is a case of its own)."""
    for tensor in tensors:
        if tensor is not None and tensor.shape[0] > 1:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
    return tensors
