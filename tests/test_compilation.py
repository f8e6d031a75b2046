"""Compiled blocks: the numbers of eager ones, few programs, names of checkpoints, one line without tools."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from omegaconf import OmegaConf

from config.cli import compose_config
from models import compilation
from models.compilation import check_compiler
from models.dit import BackboneConfig, DiT
from tasks.run_folder import _differences

pytestmark = pytest.mark.slow


def build(*, causal: bool = False, dropout: float = 0.0, softcap: float = -1.0) -> DiT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = DiT(
            BackboneConfig(
                vocab_size=20, mask_id=19, hidden_size=32, cond_dim=8, n_blocks=3, n_heads=2, length=12,
                dropout=dropout, softcap=softcap, causal=causal,
            )
        )  # fmt: skip
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return network


def ids(rows: int) -> torch.Tensor:
    return (7 * torch.arange(12 * rows).view(rows, 12)) % 20


def results(network: DiT, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    network.zero_grad()
    features = network.body(ids(rows), None)
    features.square().mean().backward()
    grads = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
    return features.detach(), torch.cat(grads)


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Compiles without generating code, which would take a minute; counts the programs."""
    made: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        made.append(len(inputs))
        return graph.forward

    compilation.compiled.cache_clear()
    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: whole(f, backend=backend, fullgraph=True))
    yield made
    compilation.compiled.cache_clear()
    torch.compiler.reset()


def test_all_blocks_and_batches_share_a_program(programs: list[int]) -> None:
    eager = build()
    fast = copy.deepcopy(eager)
    fast.compile_blocks()
    assert list(fast.state_dict()) == list(eager.state_dict())
    for rows in (4, 3, 7, 2):
        for expected, found in zip(results(eager, rows), results(fast, rows), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert len(programs) == 1, "another batch size made another program"
    with torch.no_grad():
        torch.testing.assert_close(fast.body(ids(5), None), eager.body(ids(5), None), rtol=1e-5, atol=1e-6)
        twin = copy.deepcopy(fast)  # as a teacher is made
        twin.body(ids(2), None)
    assert len(programs) == 2
    fast.compile_blocks(False)
    fast.body(ids(9), None)
    assert len(programs) == 2


def test_a_cache_makes_no_programs(programs: list[int]) -> None:
    network = build(causal=True).eval()
    network.compile_blocks()
    with torch.no_grad():
        whole = network.body(ids(2), None)
        assert len(programs) == 1
        cache = network.new_cache(12)
        parts = [network.body(ids(2)[:, [k]], None, cache=cache) for k in range(12)]
    assert len(programs) == 1
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-5, atol=1e-5)


def test_a_run_goes_on_with_other_kernels() -> None:
    words = ["experiment=pydoc_mdlm", "wandb=null"]
    before = OmegaConf.to_container(compose_config(words, warn=False), resolve=True)
    after = compose_config([*words, "model.compile=True", "model.attention=plain"], warn=False)
    assert not _differences(before, after)
    assert _differences(before, compose_config([*words, "model.qk_norm=True"], warn=False))


def test_without_compiler_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(compilation.shutil, "which", lambda name: "found" if name == "clang++" else None)
    check_compiler("cpu")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"^model.compile=True: CXX=no-such-compiler is no program; "):
        check_compiler("cpu")
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(compilation.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"^model.compile=True: no C\+\+ compiler .*; install g\+\+, or use"):
        check_compiler("cpu")
    monkeypatch.setattr(compilation.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="^model.compile=True: triton, which it needs"):
        check_compiler("cuda")
    with pytest.raises(ValueError, match="^model.compile=True: not supported on a mps"):
        check_compiler("mps")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("softcap", [-1.0, 0.7])
def test_compiled_blocks_agree_on_cuda(softcap: float) -> None:
    eager = build(softcap=softcap).cuda()
    fast = copy.deepcopy(eager)
    fast.compile_blocks()
    for rows in (4, 3):
        outputs = []
        for network in (eager, fast):
            network.zero_grad()
            features = network.body(ids(rows).cuda(), None)
            features.square().mean().backward()
            outputs.append((features.detach(), network.blocks[0].attn_qkv.weight.grad.clone()))
        for expected, found in zip(*outputs, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
