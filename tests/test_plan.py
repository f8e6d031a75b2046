"""mode=plan: exact counts, memory as autograd has it, operations as PyTorch counts them, no download."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from torch.utils.flop_counter import FlopCounterMode

from algo import ALGORITHMS, OBJECTIVES
from config.cli import compose_config
from dataloader import get_tokenizer
from models.dit import BackboneConfig, DiT
from models.precision import Precision
from tasks.plan import build_without_memory, num_devices, plan, planned
from tasks.plan_costs import (
    NetworkSpec,
    ParameterCounts,
    StepWorkload,
    block_bytes,
    flops_per_token,
    kept_bytes,
    memory,
    weight_copies,
)

GIB = 2**30
SMALL = BackboneConfig(
    vocab_size=51, mask_id=50, hidden_size=128, cond_dim=16, n_blocks=1, n_heads=4, length=64
)


def configuration(*words: str) -> DictConfig:
    return compose_config(["mode=plan", "wandb=null", *words], warn=False)


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)


def saved_by_autograd(config: BackboneConfig, dtype: torch.dtype, conditionings: int, rows: int) -> int:
    """Bytes that the forward pass of a real block leaves for its backward pass, weights apart."""
    with torch.random.fork_rng(devices=[]):
        network = DiT(config).train()
        x = torch.randn(rows, config.length, config.hidden_size, requires_grad=True)
        condition = None if config.causal else torch.randn(conditionings, config.cond_dim)
        rotary = network.rotary_emb(config.length, dtype)
        known = {t.untyped_storage().data_ptr() for t in (*network.parameters(), *rotary)}
        found: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                found[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            kept = network.blocks[0](x, condition, rotary, dtype)  # alive, so that no address is used twice
    assert kept.requires_grad
    return sum(found.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["32", "bf16"])
@pytest.mark.parametrize(
    ("changes", "sees_time"),
    [
        ({}, False),
        ({}, True),
        ({"dropout": 0.0}, False),
        ({"causal": True}, False),
        ({"softcap": 5.0}, True),
        ({"qk_norm": True}, False),
        ({"attention": "sdpa"}, False),
    ],
)
def test_a_block_keeps_what_autograd_keeps(dtype: torch.dtype, changes: dict, sees_time: bool) -> None:
    config = replace(SMALL, **changes)
    net = NetworkSpec(config, dtype.itemsize, "cpu", sees_time)
    measured = saved_by_autograd(config, dtype, 4 if sees_time else 1, 4)
    assert block_bytes(net, 4) + weight_copies(net) == pytest.approx(measured, rel=0.02)


def test_checkpointing_keeps_inputs_alone() -> None:
    net = NetworkSpec(replace(SMALL, n_blocks=10), 2, "cuda", False)
    work = StepWorkload(rows=4, head_share=1.0)
    kept = kept_bytes(replace(net, checkpointing=True), work)
    assert kept["blocks"] == 10 * 4 * (4 * 64 * 128)
    assert kept["a block computed again"] * 10 == kept_bytes(net, work)["blocks"]


@pytest.mark.parametrize("causal", [False, True])
def test_operations_are_those_that_pytorch_counts(causal: bool) -> None:
    config = replace(SMALL, causal=causal, n_blocks=2, attention="plain", dropout=0.0)
    with torch.random.fork_rng(devices=[]):
        network = DiT(config)
    network.precision = Precision(torch.bfloat16)  # float32 products go through convolutions on a CPU
    ids = torch.zeros(2, config.length, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(ids, None)
    parts = flops_per_token(NetworkSpec(config, 2, "cpu", False), StepWorkload(rows=2, head_share=1.0))
    tokens = ids.numel()
    forward = parts["blocks"] / 3 * tokens
    if causal:  # the plain way computes the scores that the mask then drops
        forward += 2 * config.n_blocks * config.length * config.hidden_size * tokens
    conditioning = 0 if causal else 2 * (256 * 16 + 16 * 16 + 16 * (2 * 6 + 2) * 128)
    assert counter.get_total_flops() == forward + parts["head"] / 3 * tokens + conditioning


def test_memory_is_shared_by_shards_and_grows_with_replicas() -> None:
    net, work = NetworkSpec(SMALL, 2, "cuda", False), StepWorkload(rows=4, head_share=1.0)
    held = ParameterCounts(
        total=1000_000, trained=1000_000, root=100_000, head=50_000, ema=True, teacher=False
    )
    one, replicas, shards = (
        memory(net, work, held, devices=n, sharded=sharded, passes=2)
        for n, sharded in ((1, False), (10, False), (10, True))
    )
    assert replicas == one
    for part in ("weights", "moments", "averages", "gradients"):
        assert shards[part] == one[part] // 10
    assert shards["whole units"] == 4 * (2 * 100_000 + 3 * 900_000)
    alone, replicas = (memory(net, work, held, devices=n, sharded=False, passes=1) for n in (1, 10))
    assert sum(alone.values()) < sum(one.values())  # no gradients of earlier micro-batches
    assert sum(replicas.values()) > sum(alone.values())  # but DDP's buckets


@pytest.mark.parametrize("algo", sorted(ALGORITHMS))
def test_every_algorithm_can_be_planned_with_its_true_parameters(
    algo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = ["model=tiny", "model.hidden_size=32", "model.n_blocks=2", "model.n_heads=2", "model.length=16"]
    data = "reflow-dataset-general" if OBJECTIVES[algo].Settings.needs_pairs else "text8"
    words = [f"algo={algo}", f"data={data}", "data.tokenizer_name_or_path=text8", "data.valid=text8", *size]
    cfg = configuration(*words, "data.cache_dir=unused", "loader.global_batch_size=8")
    offline(monkeypatch)
    module = build_without_memory(cfg)
    assert all(p.device.type == "meta" for p in module.parameters())
    result = planned(cfg, module, devices=2, rows=4, passes=1)
    real = ALGORITHMS[algo](cfg, get_tokenizer(cfg))
    count = sum(p.numel() for p in real.parameters())
    parts = dict(result["parameters"])
    assert parts.pop("all") == count == sum(parts.values())
    assert all(value >= 0 for value in (*result["memory"].values(), *result["operations"].values()))
    assert {way["strategy"] for way in result["ways"]} == {"ddp", "fsdp"}
    assert (result["memory"]["teacher"] > 0) == (algo in ("im-sdtt", "distillation"))


def test_a_plan_as_a_user_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    offline(monkeypatch)
    cfg = configuration(
        "model=large", "data=openwebtext", "algo=im-sdtt", "trainer.devices=8", "trainer.num_nodes=2",
        "strategy=fsdp", "plan.memory_gb=24", "loader.batch_size=16", "plan.tflops=312", "plan.mfu=0.4",
        f"plan.path={tmp_path}/plans/a.json",
    )  # fmt: skip
    result = plan(cfg)
    printed = capsys.readouterr().out
    assert json.loads((tmp_path / "plans" / "a.json").read_text()) == result
    assert result["vocabulary"] == 50258 and result["parameters"]["all"] == 882_038_610
    assert result["step"] == {
        "devices": 16, "sequences": 512, "tokens": 2**19, "per_device": 16, "accumulation": 2
    }  # fmt: skip
    time = result["time"]
    assert time["hours"] == pytest.approx(time["flops_per_step"] * 1e6 / (16 * 312e12 * 0.4) / 3600)
    for way in result["ways"]:
        assert way["fits"] == (way["bytes"] <= 21 * GIB) == ((way["largest_batch_size"] or 0) >= 16)
        assert f"{way['bytes'] / GIB:>10.2f}   {'yes' if way['fits'] else 'no':4}" in printed
    chosen = next(w for w in result["ways"] if w["strategy"] == "fsdp" and not w["activation_checkpointing"])
    assert chosen["bytes"] == sum(result["memory"].values())
    assert "882,038,610 parameters" in printed and "hours for 1,000,000 steps" in printed


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (
            ["data.tokenizer_name_or_path=somebody/special"],
            "^data.tokenizer_name_or_path=somebody/special: its",
        ),
        (["trainer.devices=3"], "^loader.global_batch_size=512: it cannot be divided over 3 devices"),
        (["plan.path=."], "^plan.path=.: is a folder"),
    ],
)
def test_what_cannot_be_planned_is_one_line(words: list[str], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        plan(configuration("model=tiny", "data=openwebtext", "algo=mdlm", *words))


def test_known_vocabularies_and_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch)
    words = ("model=tiny", "data=openwebtext")
    sizes = {}
    for algo, tokenizer in (
        ("mdlm", "gpt2"),
        ("duo_base", "gpt2"),
        ("imdm", "google-bert/bert-base-uncased"),
    ):
        cfg = configuration(*words, f"algo={algo}", f"data.tokenizer_name_or_path={tokenizer}")
        sizes[algo] = build_without_memory(cfg).vocab_size
    assert sizes == {"mdlm": 50258, "duo_base": 50258, "imdm": 30522}
    assert build_without_memory(configuration(*words, "algo=mdlm", "plan.vocab_size=77")).vocab_size == 77
    for devices, number in (("auto", 2), ("[0,1,2]", 6), ("'0,1'", 4), ("-1", 2), ("5", 10)):
        assert num_devices(configuration(f"trainer.devices={devices}", "trainer.num_nodes=2")) == number
