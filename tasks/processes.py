"""The processes of a run, one a device: started or found by Lightning, and what they tell each other.

``python main.py trainer.devices=2`` starts the others itself; torchrun and srun start all of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
import torch.distributed as dist
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.plugins.environments import SLURMEnvironment
from omegaconf import DictConfig, OmegaConf

from errors import ABSENT, RankZeroError, UserError
from tasks.setup import cluster_plugins, quiet_lightning
from utils import write_json

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among those of the run.

    Attributes:
        rank: its number over all machines.
        world_size: how many there are.
        device: its own.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    def gathered(self, value: T) -> list[T]:
        """The values of all processes, by rank, on each of them; all must ask."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def write_json(self, path: Path, value: object) -> None:
        """Write ``value``, which is the same on all processes."""
        if self.is_first:
            write_json(path, value)

    def by_first(self, make: Callable[[], T]) -> T:
        """What ``make`` returns on the first process, on all of them; all must ask.

        Raises:
            ValueError: on all, when ``make`` raised one there.
        """
        if self.world_size == 1:
            return make()
        told: list[Any] = [None, None]
        if self.is_first:
            try:
                told[0] = make()
            except (ValueError, OSError) as error:
                dist.broadcast_object_list([None, str(error)], src=0)
                raise
        dist.broadcast_object_list(told, src=0)
        if told[1] is not None:
            raise RankZeroError("", ABSENT, str(told[1]))
        return told[0]


ALONE = Processes()


def launch(cfg: DictConfig) -> Processes:
    """The processes of ``trainer.devices`` and ``trainer.num_nodes``, which are all there afterwards.

    Under a launcher ``trainer.devices=auto`` becomes what it started here.

    Raises:
        ValueError: it started another number than ``trainer.*`` says, or these devices are not there.
    """
    quiet_lightning()
    single, here = cfg.strategy.name == "single_device", _started("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE")
    if cfg.trainer.devices == "auto" and here and not single:
        cfg.trainer.devices = here
    asked = OmegaConf.to_container(cfg.trainer)
    try:
        fabric = L.Fabric(
            accelerator=asked["accelerator"],
            devices=1 if single else asked["devices"],
            num_nodes=1 if single else asked["num_nodes"],
            plugins=cluster_plugins(),
        )
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        raise UserError("trainer", ABSENT, " ".join(str(error).split())) from error
    number, devices = _started("WORLD_SIZE", "SLURM_NTASKS"), getattr(fabric.strategy, "num_processes", 1)
    if number not in (None, devices * (1 if single else asked["num_nodes"])):
        machines = 1 if single else asked["num_nodes"]
        problem = f"{number} processes were started for {devices} device(s) on {machines} machine(s)"
        hint = "give as many devices as processes on a machine, and trainer.num_nodes"
        raise UserError("trainer.devices", str(asked["devices"]), problem, hint)
    fabric.launch()
    device = fabric.device if fabric.device.type == "cuda" else torch.device("cpu")
    return Processes(fabric.global_rank, fabric.world_size, device)


def _started(elastic: str, slurm: str) -> int | None:
    """A number that torchrun (or a parent of this process), else srun, left in the environment."""
    names = [elastic, slurm] if SLURMEnvironment.detect() else [elastic]
    found = [os.environ[name] for name in names if os.environ.get(name, "").isdigit()]
    return int(found[0]) if found else None
