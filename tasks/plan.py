"""mode=plan: what a training takes in memory, operations and hours, before anything is started."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from omegaconf import DictConfig, OmegaConf

from algo import ALGORITHMS
from data import tokenizers
from dataloader import batch_sizes, data_settings
from errors import UserError
from models.hf import HfBackbone
from models.precision import Precision
from tasks.plan_costs import (
    FLOAT,
    NetworkSpec,
    ParameterCounts,
    StepWorkload,
    flops_per_token,
    memory,
    parameters,
    temporaries,
    with_rows,
)
from tasks.plan_report import table
from trainer_base import TrainerBase
from utils import write_json

GIB = 2**30
# Tokenizers that need no download to be planned with: number of ids, id of the mask (None: one is added).
KNOWN = {
    "bert-base-uncased": (30522, 103),
    "bert-large-uncased": (30522, 103),
    "bert-base-cased": (28996, 103),
    "gpt2": (50257, None),
    "gpt2-medium": (50257, None),
    "gpt2-large": (50257, None),
    "gpt2-xl": (50257, None),
}
BUILT_IN = ("text8", "synthetic", "synthetic-align")
H100 = {2: 989.0, 4: 494.0}  # dense TFLOP/s in bf16 and in TF32, of its data sheet (SXM)


@dataclass(frozen=True)
class KnownTokenizer:
    """All that the size of a network depends on."""

    name_or_path: str
    vocab_size: int
    mask_token_id: int | None
    pad_token_id: ClassVar[None] = None

    def get_vocab(self) -> dict[str, int]:
        """The last id alone: what the others are called plays no part."""
        return {"": self.vocab_size - 1}

    def __len__(self) -> int:
        return self.vocab_size + (self.mask_token_id is None)  # [PAD] is added where there is no mask


def plan(cfg: DictConfig) -> dict[str, Any]:
    """Print what the training of ``cfg`` takes on its devices, and write it to ``plan.path``.

    The network is made without memory for its weights; no data are read and nothing is downloaded.

    Returns:
        ``parameters`` by part, ``step`` (sequences, tokens, accumulation), ``memory`` in bytes by part,
        ``ways`` (each strategy, with and without activation checkpointing), ``temporaries``, ``operations``
        a token by part, ``time``.

    Raises:
        ValueError: the vocabulary is not known, or the batch cannot be divided over the devices.
    """
    path = Path(cfg.plan.path)
    if path.is_dir():
        raise UserError("plan.path", str(path), "is a folder", "give the name of a .json file")
    module = build_without_memory(cfg)
    devices = num_devices(cfg)
    rows, passes = batch_sizes(cfg, devices)
    result = planned(cfg, module, devices=devices, rows=rows, passes=passes)
    print(table(result))
    write_json(path, result)
    return result


def num_devices(cfg: DictConfig) -> int:
    """Devices of all machines; those that only the machine itself can count are one."""
    devices = cfg.trainer.devices
    if OmegaConf.is_list(devices):
        devices = len(devices)
    elif isinstance(devices, str):
        devices = 1 if devices == "auto" else len(devices.split(","))
    return max(1, devices) * cfg.trainer.num_nodes


def build_without_memory(cfg: DictConfig) -> TrainerBase:
    """The algorithm on PyTorch's meta device: shapes without numbers."""
    with torch.device("meta"):
        return ALGORITHMS[cfg.algo.name](cfg, tokenizer_of(cfg))


def tokenizer_of(cfg: DictConfig) -> Any:
    """What is known of the tokenizer without a download.

    Raises:
        ValueError: nothing is.
    """
    if cfg.plan.vocab_size is not None:
        return KnownTokenizer("plan.vocab_size", cfg.plan.vocab_size - 1, None)
    data = data_settings(cfg)
    name = data.tokenizer_name_or_path
    if name in BUILT_IN or Path(name).expanduser().is_dir():
        return tokenizers.get_tokenizer(name, data.vocab_size)
    short = name.rsplit("/", 1)[-1]
    if short not in KNOWN:
        problem = "its size is not known without a download"
        hint = "give plan.vocab_size=..., the mask included, or a folder with the tokenizer"
        raise UserError("data.tokenizer_name_or_path", name, problem, hint)
    return KnownTokenizer(name, *KNOWN[short])


def network_of(cfg: DictConfig, module: TrainerBase) -> NetworkSpec:
    """How the network computes: on CUDA unless ``trainer.accelerator=cpu``."""
    device = "cpu" if cfg.trainer.accelerator == "cpu" else "cuda"
    name = cfg.trainer.precision
    if name == "auto" and device == "cuda":
        name = "bf16"
    return NetworkSpec(
        module.backbone.config,
        item=Precision.resolve(name, device).dtype.itemsize,
        device=device,
        sees_time=cfg.algo.time_conditioning,
        checkpointing=cfg.training.activation_checkpointing,
    )


def work_of(cfg: DictConfig, module: TrainerBase, rows: int, *, spread: bool) -> StepWorkload:
    """What the loss asks of a micro-batch of ``rows`` sequences.

    Args:
        spread: whether its times are spread over (0, 1); if not, all may be late, and most tokens masked.
    """
    profile = module.objective.settings.profile()
    share = 1.0 if not spread or profile.everywhere else masked_share(cfg, module)
    noisy = module.backbone.config.mask_noise is not None
    return StepWorkload(
        rows=rows,
        head_share=share,
        noise_share=masked_share(cfg, module) if noisy and spread else float(noisy),
        passes=profile.passes,
        chunks=profile.chunks,
        teacher_passes=profile.teacher_passes,
    )


def masked_share(cfg: DictConfig, module: TrainerBase) -> float:
    """The mean of 1 - alpha(t) over the times of training."""
    number = 1000
    times = (torch.arange(number, dtype=torch.float64, device="cpu") + 0.5) / number
    times = cfg.training.sampling_eps + (1 - cfg.training.sampling_eps) * times
    return float(module.objective.schedule.masked(times).mean())


def holdings(cfg: DictConfig, module: TrainerBase) -> ParameterCounts:
    """Parameters that are held, as the algorithm counts them."""
    network = module.backbone
    total = sum(p.numel() for p in network.parameters())
    in_blocks = sum(p.numel() for p in network.blocks.parameters())
    return ParameterCounts(
        total=total,
        trained=sum(p.numel() for p in network.parameters() if p.requires_grad),
        root=total - in_blocks,
        head=network.config.vocab_size * network.config.hidden_size * network.head.weight.requires_grad,
        frozen_item=2 if "path" in cfg.model and cfg.model.base_dtype == "bf16" else FLOAT,
        ema=cfg.training.ema > 0,
        teacher=work_of(cfg, module, 1, spread=True).teacher_passes > 0,
    )


def planned(cfg: DictConfig, module: TrainerBase, *, devices: int, rows: int, passes: int) -> dict[str, Any]:
    """The content of the result; see ``plan``."""
    net, held = network_of(cfg, module), holdings(cfg, module)
    spread = devices == passes == 1  # micro-batches of several have neighbouring times
    peak = work_of(cfg, module, rows, spread=spread)
    sharded = cfg.strategy.name == "fsdp" and devices > 1
    operations = flops_per_token(net, work_of(cfg, module, rows, spread=True))
    parts = memory(net, peak, held, devices=devices, sharded=sharded, passes=passes)
    network = module.backbone
    sizes = {name: p.numel() for name, p in network.named_parameters()}
    pretrained = isinstance(network, HfBackbone)
    parts_of_network = network.parameter_parts() if pretrained else parameters(net.config, sizes)
    sequences, length = cfg.loader.global_batch_size, cfg.model.length
    return {
        "algo": cfg.algo.name,
        "model": cfg.model.name,
        "vocabulary": module.vocab_size,
        "parameters": {"all": held.total, **parts_of_network},
        "trained": held.trained,
        "precision": "bf16" if net.item == 2 else "32",
        "activation_checkpointing": net.checkpointing,
        "strategy": cfg.strategy.name if devices > 1 else "single_device",
        "step": {
            "devices": devices,
            "sequences": sequences,
            "tokens": sequences * length,
            "per_device": rows,
            "accumulation": passes,
        },
        "memory": parts,
        "temporaries": temporaries(net, peak),
        "memory_gb": cfg.plan.memory_gb,
        "reserve_gb": cfg.plan.reserve_gb,
        "ways": ways(cfg, module, net, held, devices),
        "operations": operations,
        "time": hours(cfg, net, operations, devices),
    }


def ways(
    cfg: DictConfig, module: TrainerBase, net: NetworkSpec, held: ParameterCounts, devices: int
) -> list[dict[str, Any]]:
    """Each strategy with and without checkpointing: its peak, and the largest micro-batch that fits."""
    share = cfg.loader.global_batch_size // devices
    room = (cfg.plan.memory_gb - cfg.plan.reserve_gb) * GIB
    found = []
    for sharded in (False, True) if devices > 1 else (False,):
        for checkpointing in (False, True):
            way, sizes = replace(net, checkpointing=checkpointing), {}
            for rows in (n for n in range(1, share + 1) if share % n == 0):
                spread = devices == 1 and rows == share
                work = with_rows(work_of(cfg, module, rows, spread=spread), rows)
                parts = memory(way, work, held, devices=devices, sharded=sharded, passes=share // rows)
                sizes[rows] = sum(parts.values())
            rows, _ = batch_sizes(cfg, devices)
            found.append(
                {
                    "strategy": ("fsdp" if sharded else "ddp") if devices > 1 else "single_device",
                    "activation_checkpointing": checkpointing,
                    "bytes": sizes[rows],
                    "fits": sizes[rows] <= room,
                    "largest_batch_size": max((n for n, size in sizes.items() if size <= room), default=None),
                }
            )
    return found


def hours(cfg: DictConfig, net: NetworkSpec, operations: dict[str, float], devices: int) -> dict[str, float]:
    """Throughput and duration, from ``plan.tflops`` and ``plan.mfu``; the latter counts all operations, those
    that checkpointing repeats included."""
    peak = cfg.plan.tflops or H100[net.item]
    tokens = cfg.loader.global_batch_size * cfg.model.length
    per_second = devices * peak * 1e12 * cfg.plan.mfu / sum(operations.values())
    seconds = tokens / per_second
    return {
        "tflops": peak,
        "mfu": cfg.plan.mfu,
        "flops_per_step": sum(operations.values()) * tokens,
        "tokens_per_second": per_second,
        "seconds_per_step": seconds,
        "max_steps": cfg.trainer.max_steps,
        "hours": seconds * cfg.trainer.max_steps / 3600,
    }
