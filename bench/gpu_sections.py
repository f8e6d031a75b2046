"""The parts of bench/gpu.py: each is a function that yields rows of a table; see there."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from steps import Training, configuration

from diffusion.linear_nll import LinearHead, weighted_linear_nll
from models.attention import attention, plain_attention
from models.attention_backends import FLASH_MODULES, choose
from tasks.plan import network_of, planned, work_of
from tasks.plan_costs import flops_per_token

GIB = 2**30
Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """Where and how large.

    Attributes:
        device: "cuda" or "cpu".
        tiny: toy sizes, to see that everything runs.
        quick: fewer cases.
        tflops: peak of the device in bf16, for MFU; None: not known.
    """

    device: str
    tiny: bool
    quick: bool
    tflops: float | None

    @property
    def vocabularies(self) -> tuple[int, ...]:
        """Of bert and gpt2, the mask included."""
        if self.tiny:
            return (60,)
        return (50258,) if self.quick else (30522, 50258)

    def training(self, algo: str, model: str, rows: int, vocab: int, *words: str) -> Training:
        """A model on the device; ``words`` are further settings."""
        return Training(self.configuration(algo, model, rows, vocab, *words), self.device)

    def configuration(self, algo: str, model: str, rows: int, vocab: int, *words: str) -> Any:
        """Its configuration: length 1024, in bf16 where the device has it."""
        size = [f"algo={algo}", f"model={model}", "model.length=1024", f"loader.global_batch_size={rows}"]
        if self.tiny:
            size[2:] = ["model.length=32", "model.hidden_size=32", "model.n_blocks=2", "model.n_heads=2"]
            size += ["loader.global_batch_size=2"]
        kind = "cpu" if self.device == "cpu" else "gpu"
        return configuration([*size, f"trainer.accelerator={kind}", "trainer.devices=1", *words], vocab)


def attention_backends(setting: Setting) -> Iterator[Row]:
    """Every backend against the plain formula in float64: largest errors, time, memory; with gradients."""
    shape = (2, 2, 32, 16) if setting.tiny else (8, 12, 1024, 64)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn((4, *shape), generator=generator).to(setting.device)
    for softcap in (0.0, 30.0):
        for causal in (False, True):
            for dtype in (torch.bfloat16,) if setting.quick else (torch.bfloat16, torch.float32):
                for backend in ("plain", "flash", "flex") if softcap else ("plain", "sdpa", "flash", "flex"):
                    case = (backend, inputs.to(dtype), causal, softcap)
                    name = str(dtype).removeprefix("torch.")
                    row = {"softcap": softcap, "causal": causal, "dtype": name, "backend": backend}
                    yield row | guarded(lambda c=case: _one_backend(setting, *c))


def _one_backend(setting: Setting, backend: str, inputs: torch.Tensor, causal: bool, softcap: float) -> Row:
    expected = _with_gradient(plain_attention, inputs.double(), causal=causal, softcap=softcap)
    way = choose(backend, setting.device, inputs.dtype, inputs.shape[-1], softcap > 0)

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **settings: Any) -> torch.Tensor:
        return attention(q, k, v, backend=backend, **settings)

    out, grad = _with_gradient(call, inputs, causal=causal, softcap=softcap)
    work = timed(setting, lambda: _with_gradient(call, inputs, causal=causal, softcap=softcap), 3)
    return {
        **({"by": way} if way in FLASH_MODULES else {}),
        "error of outputs": float((out - expected[0]).abs().max()),
        "error of gradients": float((grad - expected[1]).abs().max()),
        **work,
    }


def _with_gradient(
    call: Callable[..., torch.Tensor], inputs: torch.Tensor, **settings: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and gradients of q, k and v in float32, for a cotangent that is the last of ``inputs``."""
    given = inputs[:3].detach().requires_grad_()
    out = call(*given.unbind(0), **settings)
    (grad,) = torch.autograd.grad(out, given, inputs[3].to(out.dtype))
    return out.detach().float(), grad.float()


def precision(setting: Setting) -> Iterator[Row]:
    """The loss of the same batches and the same weights, after some steps, in bf16 and in float32."""
    vocab = setting.vocabularies[0]
    for algo in ("imdm",) if setting.tiny else ("mdlm", "imdm", "ar"):

        def losses(name: str, algo: str = algo) -> torch.Tensor:
            words = (f"trainer.precision={name}", "model.dropout=0")
            trained = setting.training(algo, "small", 8, vocab, *words)
            trained.fill_zeros()  # a fresh network says the same whatever its blocks do
            return torch.stack([trained.step(k) for k in range(2 if setting.tiny else 10)]).cpu()

        def compared(losses: Callable[[str], torch.Tensor] = losses) -> Row:
            exact, rounded = losses("32"), losses("bf16")
            off = (rounded / exact - 1).abs()
            return {
                "first loss 32": float(exact[0]), "last loss 32": float(exact[-1]),
                "last loss bf16": float(rounded[-1]), "largest relative difference": float(off.max()),
            }  # fmt: skip

        yield {"algo": algo, "steps": 2 if setting.tiny else 10} | guarded(compared)


def compilation(setting: Setting) -> Iterator[Row]:
    """Optimizer steps with model.compile off and on: the first one (which compiles), the others, the loss."""
    if setting.tiny and setting.device == "cpu":
        yield {"note": "left out at toy size: compiling takes a minute on a CPU"}
        return
    for algo in ("imdm",) if setting.quick else ("mdlm", "imdm", "im-sdtt", "ar"):
        for on in (False, True):

            def measured(algo: str = algo, on: bool = on) -> Row:
                words = (f"model.compile={on}", "model.dropout=0")
                training = setting.training(algo, "small", 16, setting.vocabularies[-1], *words)
                began = time.perf_counter()
                loss = float(training.step(0))
                first = time.perf_counter() - began
                return {"loss": loss, "first step s": first} | timed(setting, lambda: training.step(1), 5)

            yield {"algo": algo, "compile": on} | guarded(measured)


def training(setting: Setting) -> Iterator[Row]:
    """Whole optimizer steps at length 1024: tokens a second, MFU, peak memory and what mode=plan says."""
    cases = [("small", 16, "False"), ("large", 8, "False"), ("large", 32, "True")]
    for vocab in setting.vocabularies:
        for model, rows, checkpointing in cases[:1] if setting.tiny else cases:
            for algo in ("imdm", "im-sdtt") if setting.quick else ("mdlm", "imdm", "im-sdtt", "ar"):
                words = (f"training.activation_checkpointing={checkpointing}",)
                row = {"algo": algo, "model": model, "ids": vocab, "checkpointing": checkpointing}
                case = (algo, model, rows, vocab, *words)
                yield row | guarded(lambda c=case: _one_training(setting, c))


def _one_training(setting: Setting, case: tuple[Any, ...]) -> Row:
    trained = setting.training(*case)
    cfg, tokens = trained.module.config, trained.rows * trained.length
    trained.step(0)
    work = timed(setting, lambda: trained.step(1), 2 if setting.tiny else 8)
    seconds = work["seconds"]
    work_per_token = work_of(cfg, trained.module, trained.rows, spread=True)
    flops = sum(flops_per_token(network_of(cfg, trained.module), work_per_token).values())
    plan = planned(cfg, trained.module, devices=1, rows=trained.rows, passes=1)["memory"]
    row = {"sequences": trained.rows, **work, "tokens a second": tokens / seconds}
    row["TFLOP/s"] = flops * tokens / seconds / 1e12
    if setting.tflops:
        row["MFU"] = row["TFLOP/s"] / setting.tflops
    return row | {"planned GiB": sum(plan.values()) / GIB}


def sampling(setting: Setting) -> Iterator[Row]:
    """Texts of 1024 tokens: tokens a second and network calls; AR with its cache."""
    cases = [("mdlm", "ancestral_cache"), ("imdm", "ancestral_cache"), ("imdm", "ancestral")]
    for model in ("small",) if setting.quick or setting.tiny else ("small", "large"):
        for steps in (4,) if setting.tiny else (16, 256):
            for algo, predictor in cases:
                case = (algo, predictor, model, steps)
                row = {"algo": algo, "model": model, "predictor": predictor, "steps": steps}
                yield row | guarded(lambda c=case: _one_sampling(setting, *c))
        case = ("ar", "autoregressive", model, 1)
        yield {"algo": "ar", "model": model} | guarded(lambda c=case: _one_sampling(setting, *c))


def _one_sampling(setting: Setting, algo: str, predictor: str, model: str, steps: int) -> Row:
    words = (f"sampling.predictor={predictor}", "training.ema=0")
    module = setting.training(algo, model, 8, setting.vocabularies[-1], *words).module
    rows, last = 2 if setting.tiny else 16, []
    work = timed(setting, lambda: last.append(module.generator.sample(rows, steps, batch_size=rows)), 1)
    calls = float(last[-1].nfe.double().mean())
    return {"calls": calls, **work, "tokens a second": last[-1].tokens.numel() / work["seconds"]}


def head(setting: Setting) -> Iterator[Row]:
    """Cross-entropy of the head, forward and gradients, in chunks of several sizes."""
    positions, width = (64, 32) if setting.tiny else (8192, 768)
    sizes = (8, 10) if setting.tiny else (22, 23, 24, 25, 26, 28)
    for vocab in setting.vocabularies:
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(positions, width, generator=generator).to(setting.device).requires_grad_()
        weight = (0.02 * torch.randn(vocab, width, generator=generator)).to(setting.device).requires_grad_()
        targets = torch.randint(vocab - 1, (positions,), generator=generator).to(setting.device)
        weights = torch.full((positions,), 1 / positions, device=setting.device)
        for power in sizes:

            def measured(power: int = power, given: tuple = (features, weight, targets, weights)) -> Row:
                table = LinearHead(given[1], None, mask_id=None, chunk_elements=2**power)

                def call() -> None:
                    weighted_linear_nll(given[0], table, given[2], given[3])[0].backward()
                    given[0].grad = given[1].grad = None

                return timed(setting, call, 2 if setting.tiny else 5)

            row = {"ids": vocab, "positions": positions, "chunk MiB": 2**power * 4 / 2**20}
            yield row | guarded(measured)


SECTIONS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "attention": attention_backends,
    "precision": precision,
    "compile": compilation,
    "training": training,
    "sampling": sampling,
    "head": head,
}


def guarded(work: Callable[[], Row]) -> Row:
    """The row that ``work`` gives, or what went wrong: one case must not end the others."""
    try:
        row = work()
    except Exception as error:  # out of memory, a kernel that is not there, ...
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        row = {"error": f"{type(error).__name__}: {text[:160]}"}
    if torch.cuda.is_available():
        gc.collect()  # behind the handler: until then the error holds on to what its frames hold
        torch.cuda.empty_cache()
    return row


def timed(setting: Setting, work: Callable[[], object], repeats: int) -> Row:
    """Median seconds, and on CUDA the peak of allocated memory."""
    cuda = setting.device == "cuda"
    work()  # kernels are chosen and made
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    row: Row = {"seconds": median(seconds)}
    return row | ({"peak GiB": torch.cuda.max_memory_allocated() / GIB} if cuda else {})
