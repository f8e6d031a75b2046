"""The ways that attention can take: plain, flash-attn, FlexAttention, and PyTorch's own (SDPA).

SDPA knows no soft cap. Packages of flash-attn are looked for on the first use, and believed only after a
small forward and backward pass agreed with the plain formula.
Shapes: B batch, L length, H heads, E width of a head.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from errors import UserError

BACKENDS = ("auto", "sdpa", "flash", "flex", "plain")
KEY = "model.attention"
# Modules with flash_attn_func: FlashAttention 3 (Hopper), 4 (Hopper and newer), 2. The first that works.
FLASH_MODULES = ("flash_attn_interface", "flash_attn.cute", "flash_attn")
_INSTALL = "pip install --no-build-isolation -r requirements-gpu.txt, or use auto"
HALF = (torch.bfloat16, torch.float16)
_MIN_FLEX_WIDTH = 16  # of a head, for the kernels behind FlexAttention
_PROBE_TOLERANCE = 0.05  # of the probe's largest number: bfloat16 keeps 8 bits

_flash_functions: dict[str, Callable[..., Any]] = {}


@torch.compiler.assume_constant_result
def choose(backend: str, device: str, dtype: torch.dtype, head_dim: int, capped: bool) -> str:
    """The way that attention takes.

    Args:
        backend: one of ``BACKENDS``. auto: sdpa without a soft cap; with one, on CUDA, flash, else flex.
        device: type of the tensors' device.
        dtype, head_dim: of queries, keys and values.
        capped: whether scores have a soft cap.

    Returns:
        "sdpa", "plain", "flex", or one of ``FLASH_MODULES``.

    Raises:
        ValueError: a backend that was asked for by its name cannot work here.
    """
    return _choose(backend, device, dtype, head_dim, capped)


@functools.cache
def _choose(backend: str, device: str, dtype: torch.dtype, head_dim: int, capped: bool) -> str:
    if backend not in BACKENDS:
        raise UserError(KEY, backend, "unknown", f"use one of {', '.join(BACKENDS)}")
    if backend == "sdpa" and capped:
        raise UserError(KEY, backend, "has no soft cap (model.softcap)", "use auto, or model.softcap=-1")
    if backend == "flash":
        return _flash(device, dtype, head_dim, capped)
    if backend != "auto":
        return backend
    if not capped:
        return "sdpa"
    if device != "cuda":
        return "plain"
    try:
        return _flash(device, dtype, head_dim, capped)
    except ValueError:
        return "flex" if _has_triton() and head_dim >= _MIN_FLEX_WIDTH else "plain"


def check_attention(
    backend: str, device: str, dtype: torch.dtype, head_dim: int, *, capped: bool, training: bool
) -> str:
    """``choose``, at start-up: also refuses what would fail later.

    Args:
        training: whether a backward pass will be made.
    """
    if backend == "flex" and device != "cuda" and training:
        problem = f"FlexAttention has no backward pass on a {device}"
        raise UserError(KEY, backend, problem, "use auto or plain")
    if backend == "flex" and device == "cuda" and not _has_triton():
        raise UserError(KEY, backend, "triton, which it needs on a GPU, is not installed", "use auto")
    return choose(backend, device, dtype, head_dim, capped)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, softcap: float = 0.0) -> Tensor:
    """As ``models.attention.attention``, with the scores (B, H, L, L) in memory."""
    scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2)
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    if causal:
        before = k.shape[2] - q.shape[2]
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril(before)
        scores = scores.masked_fill(~seen, -math.inf)
    return scores.softmax(-1) @ v


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


# flash-attn --------------------------------------------------------------------------------------


def _flash(device: str, dtype: torch.dtype, head_dim: int, capped: bool) -> str:
    """The module that works; raises with the reason why none does."""
    if device != "cuda":
        raise UserError(KEY, "flash", f"flash-attn needs an NVIDIA GPU, this is a {device}", "use auto")
    if dtype not in HALF:
        problem = f"flash-attn computes in bf16 or fp16, not in {str(dtype).removeprefix('torch.')}"
        raise UserError(KEY, "flash", problem, "use trainer.precision=bf16, or model.attention=auto")
    reasons = []
    for name in FLASH_MODULES:
        reason = why_not_flash(name, device, dtype, head_dim, capped)
        if reason is None:
            return name
        reasons.append(reason)
    if not any(reasons):
        problem, hint = "no flash-attn is installed", _INSTALL
    else:
        problem, hint = "; ".join(filter(None, reasons)).replace("; ", ", "), "use auto"
    raise UserError(KEY, "flash", problem, hint)


def why_not_flash(name: str, device: str, dtype: torch.dtype, head_dim: int, capped: bool) -> str | None:
    """Why the module ``name`` cannot be used; "" when it is not installed, None when it can.

    Versions and architectures differ in what they support, some in silence: the answer is that of a trial.
    """
    try:
        function = importlib.import_module(name).flash_attn_func
    except ModuleNotFoundError:
        return ""
    except Exception as error:  # built for another torch or CUDA
        return f"{name} cannot be imported ({_first_line(error)})"
    if capped and "softcap" not in inspect.signature(function).parameters:
        return f"this version of {name} has no softcap"
    _flash_functions[name] = function
    try:
        wrong = _probe(name, device, dtype, head_dim, 2.0 if capped else 0.0)
    except Exception as error:
        return f"{name} fails here ({_first_line(error)})"
    return f"{name} is off by {wrong:.2g} here" if wrong > _PROBE_TOLERANCE else None


def _probe(name: str, device: str, dtype: torch.dtype, head_dim: int, softcap: float) -> float:
    """Largest error of outputs and gradients, relative to the largest number, over causal and not."""
    worst = 0.0
    with torch.inference_mode(False), torch.enable_grad():
        for causal in (False, True):
            numbers = torch.arange(3 * 2 * 32 * head_dim, device=device, dtype=torch.float64)
            inputs = (3 * torch.sin(numbers**1.5)).view(3, 1, 2, 32, head_dim).to(dtype)
            results = []
            for way in (plain_attention, functools.partial(flash_attention, name=name)):
                exact = torch.float32 if way is plain_attention else dtype
                given = inputs.to(exact).requires_grad_()
                out = way(*given.unbind(0), causal=causal, softcap=softcap)
                weights = torch.cos(torch.arange(out.numel(), device=device)).view(out.shape).to(exact)
                (grad,) = torch.autograd.grad((out * weights).sum(), given)
                results.append((out.detach().float(), grad.float()))
            for expected, found in zip(*results, strict=True):
                worst = max(worst, float((found - expected).abs().max() / expected.abs().max()))
    return worst


def flash_attention(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, softcap: float = 0.0, name: str = "flash_attn"
) -> Tensor:
    """As ``models.attention.attention``, by the module ``name`` that ``choose`` returned."""
    settings = {"softcap": softcap} if softcap > 0 else {}
    # (B, L, H, E) there; its causal mask takes the queries for the last positions, as ours.
    out = _flash_functions[name](
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), causal=causal, **settings
    )
    out = out[0] if isinstance(out, tuple) else out  # some versions give the logsumexp as well
    return out.transpose(1, 2)


# FlexAttention -----------------------------------------------------------------------------------


def flex_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, softcap: float = 0.0) -> Tensor:
    """As ``models.attention.attention`` for as many queries as keys; compiled on CUDA, forward alone on a
    CPU."""
    assert not causal or q.shape[2] == k.shape[2], "queries of later positions go the plain way"
    mask = _causal_mask(q.shape[2], str(q.device)) if causal else None
    score_mod = _capped(softcap) if softcap > 0 else None
    return _flex(q.device.type)(q, k, v, score_mod=score_mod, block_mask=mask)


def _flex(device: str) -> Callable[..., Tensor]:
    from torch.nn.attention import flex_attention as flex

    if device != "cuda" or torch.compiler.is_compiling():
        return flex.flex_attention
    return _compiled_flex()


@functools.cache
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention import flex_attention as flex

    return torch.compile(flex.flex_attention)


@functools.cache
def _capped(softcap: float) -> Callable[..., Tensor]:
    def score_mod(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return score_mod


@torch.compiler.disable
@functools.cache
def _causal_mask(length: int, device: str) -> Any:
    from torch.nn.attention import flex_attention as flex

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return query >= key

    # Not in inference mode: a mask that was made there could not serve training later.
    with torch.inference_mode(False):
        return flex.create_block_mask(mask_mod, None, None, length, length, device=device)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]
