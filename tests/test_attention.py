"""The backends of attention: parity with the plain formula, which one is taken, what is said when none is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor

import models.attention
from config.cli import compose_config
from models import attention_backends
from models.attention import attention, plain_attention
from models.attention_backends import FLASH_MODULES, check_attention, choose, why_not_flash
from models.dit import BackboneConfig, DiT

Case = tuple[bool, float]
CASES: list[Case] = [(False, 0.0), (True, 0.0), (False, 0.7), (True, 0.7)]


@pytest.fixture(autouse=True)
def nothing_is_remembered() -> Iterator[None]:
    attention_backends._choose.cache_clear()
    yield
    attention_backends._choose.cache_clear()
    attention_backends._flash_functions.clear()


def inputs(length: int = 10, width: int = 16, rows: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [2 * torch.randn(rows, 3, length, width, generator=generator) for _ in range(3)]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("causal", "softcap"), CASES)
def test_flex_is_the_plain_formula(causal: bool, softcap: float) -> None:
    q, k, v = inputs(length=20)
    expected = plain_attention(q, k, v, causal=causal, softcap=softcap)
    found = attention(q, k, v, causal=causal, softcap=softcap, backend="flex")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    # The queries of a cache are the last positions.
    part = attention(q[:, :, -3:], k, v, causal=causal, softcap=softcap, backend="flex")
    torch.testing.assert_close(part, expected[:, :, -3:], rtol=1e-5, atol=1e-5)


def stand_in(
    result: Callable[[Tensor], object] = lambda out: out, *, ignores_cap: bool = False
) -> ModuleType:
    """A module with the interface of flash-attn: (B, L, H, E), in half precision inside."""

    def flash_attn_func(
        q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, softcap: float = 0.0
    ) -> object:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        cap = 0.0 if ignores_cap else softcap
        return result(plain_attention(q, k, v, causal=causal, softcap=cap).transpose(1, 2))

    module = ModuleType("flash_attn")
    module.flash_attn_func = flash_attn_func
    return module


@pytest.mark.parametrize("result", [lambda out: out, lambda out: (out, None)], ids=["tensor", "tuple"])
@pytest.mark.parametrize(("causal", "softcap"), CASES)
def test_flash_attn_is_called_as_it_wants(
    monkeypatch: pytest.MonkeyPatch, result: Callable[[Tensor], object], causal: bool, softcap: float
) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", stand_in(result))
    assert why_not_flash("flash_attn", "cpu", torch.bfloat16, 16, softcap > 0) is None
    monkeypatch.setattr(attention_backends, "_choose", lambda *_: "flash_attn")
    q, k, v = inputs()
    expected = plain_attention(q, k, v, causal=causal, softcap=softcap)
    found = attention(q, k, v, causal=causal, softcap=softcap, backend="flash")
    torch.testing.assert_close(found, expected)
    part = attention(q[:, :, -4:], k, v, causal=causal, softcap=softcap, backend="flash")
    torch.testing.assert_close(part, expected[:, :, -4:])


def test_flash_attn_that_is_wrong_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(module: ModuleType, *, capped: bool = True) -> str | None:
        monkeypatch.setitem(sys.modules, "flash_attn", module)
        return why_not_flash("flash_attn", "cpu", torch.bfloat16, 16, capped)

    assert wrong(stand_in(ignores_cap=True), capped=False) is None
    assert wrong(stand_in(ignores_cap=True)).startswith("flash_attn is off by")
    assert wrong(stand_in(lambda out: out.detach())).startswith("flash_attn fails here (")  # no backward
    old = ModuleType("flash_attn")
    old.flash_attn_func = lambda q, k, v, causal=False: q
    assert wrong(old) == "this version of flash_attn has no softcap"
    assert wrong(ModuleType("flash_attn")).startswith("flash_attn cannot be imported")
    monkeypatch.setitem(sys.modules, "flash_attn", None)  # an import then fails as of a missing module
    assert why_not_flash("flash_attn", "cpu", torch.bfloat16, 16, True) == ""


def test_which_backend_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    bf16 = torch.bfloat16
    assert choose("auto", "cuda", bf16, 64, False) == choose("sdpa", "cpu", bf16, 64, False) == "sdpa"
    assert choose("auto", "cpu", bf16, 64, True) == choose("plain", "cuda", bf16, 64, False) == "plain"
    has_triton = True
    monkeypatch.setattr(attention_backends, "_has_triton", lambda: has_triton)
    works = {"flash_attn": None}
    monkeypatch.setattr(attention_backends, "why_not_flash", lambda name, *_: works.get(name, ""))
    assert choose("auto", "cuda", bf16, 64, True) == choose("flash", "cuda", bf16, 64, False) == "flash_attn"
    assert choose("auto", "cuda", torch.float32, 64, True) == "flex"
    attention_backends._choose.cache_clear()
    works["flash_attn_interface"] = None
    assert choose("auto", "cuda", bf16, 64, True) == "flash_attn_interface"
    attention_backends._choose.cache_clear()
    works.clear()
    assert choose("auto", "cuda", bf16, 64, True) == "flex"
    assert choose("auto", "cuda", bf16, 8, True) == "plain"  # heads too narrow for it
    has_triton = False
    attention_backends._choose.cache_clear()
    assert choose("auto", "cuda", bf16, 64, True) == "plain"


def complaint(*arguments: object, capped: bool = False, training: bool = True) -> str:
    with pytest.raises(ValueError) as caught:
        check_attention(*arguments, capped=capped, training=training)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_work_is_one_line_at_start_up(monkeypatch: pytest.MonkeyPatch) -> None:
    bf16 = torch.bfloat16
    assert "flash-attn needs an NVIDIA GPU" in complaint("flash", "cpu", bf16, 64)
    assert "in bf16 or fp16, not in float32" in complaint("flash", "cuda", torch.float32, 64)
    for name in FLASH_MODULES:
        monkeypatch.setitem(sys.modules, name, None)
    assert "-r requirements-gpu.txt" in complaint("flash", "cuda", bf16, 64)
    monkeypatch.setattr(
        attention_backends, "why_not_flash", lambda name, *_: "built; badly" if name == "flash_attn" else ""
    )
    attention_backends._choose.cache_clear()
    assert complaint("flash", "cuda", bf16, 64).endswith(": built, badly; use auto")
    assert "no backward pass on a cpu" in complaint("flex", "cpu", torch.float32, 64)
    assert check_attention("flex", "cpu", torch.float32, 64, capped=True, training=False) == "flex"
    assert "has no soft cap" in complaint("sdpa", "cuda", bf16, 64, capped=True)
    with pytest.raises(ValueError, match="^model.attention=fast: unknown"):
        BackboneConfig(vocab_size=9, mask_id=8, attention="fast")
    for words, problem in (
        (["model.attention=sdpa", "model.softcap=30"], "^model.attention=sdpa: has no soft cap"),
        (["model.attention=flash", "trainer.precision=32"], "^model.attention=flash: computes in bf16"),
    ):
        with pytest.raises(ValueError, match=problem):
            compose_config(words)


@torch.no_grad()
def test_a_network_takes_the_backend_that_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def blind(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, softcap: float) -> Tensor:
        assert (causal, softcap) == (False, 0.5)
        return torch.zeros_like(v)

    monkeypatch.setattr(models.attention, "flex_attention", blind)
    results = []
    for backend in ("auto", "plain", "flex"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = DiT(
                BackboneConfig(
                    vocab_size=20, mask_id=19, hidden_size=32, cond_dim=8, n_blocks=2, n_heads=2, length=12,
                    dropout=0.0, softcap=0.5, attention=backend,
                )
            )  # fmt: skip
            for parameter in network.parameters():
                parameter.normal_(std=0.3)
        results.append(network.body(torch.arange(24).view(2, 12) % 20, None))
    assert torch.equal(results[0], results[1])  # on a CPU
    assert not torch.allclose(results[0], results[2], rtol=0.01)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("backend", ["sdpa", "flash", "flex"])
@pytest.mark.parametrize(("causal", "softcap"), CASES)
def test_backends_agree_on_cuda(backend: str, causal: bool, softcap: float) -> None:
    """Outputs and gradients in bf16 against the plain formula in float64; two batch sizes."""
    if backend == "sdpa" and softcap:
        pytest.skip("sdpa has no soft cap")
    if backend == "flash":
        try:
            choose("flash", "cuda", torch.bfloat16, 64, softcap > 0)
        except ValueError as error:
            pytest.skip(str(error))
    for rows in (2, 3):
        results = []
        for way, dtype in (("plain", torch.float64), (backend, torch.bfloat16)):
            given = [x.bfloat16().to("cuda", dtype).requires_grad_() for x in inputs(256, 64, rows)]
            out = attention(*given, causal=causal, softcap=softcap, backend=way)
            weights = torch.cos(torch.arange(out.numel(), device="cuda")).view(out.shape).to(dtype)
            results.append([out.detach(), *torch.autograd.grad((out * weights).sum(), given)])
        for expected, found in zip(*results, strict=True):
            scale = float(expected.abs().max())
            torch.testing.assert_close(found.double(), expected, rtol=0, atol=0.03 * scale)
