"""The processes of a run, one a device: started or found by Lightning, and what they tell each other.

``python main.py trainer.devices=2`` starts the others itself; torchrun and srun start all of them.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
import torch.distributed as dist
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from omegaconf import DictConfig, OmegaConf

from errors import ABSENT, RankZeroError, UserError
from tasks.setup import cluster_plugins, quiet_lightning
from utils import get_logger, write_json

T = TypeVar("T")
log = get_logger("processes")
_STEP = ("SLURM_STEP_ID", "SLURM_STEPID")  # what srun says to the processes that it starts
_SOON = 60.0  # seconds in which processes usually come together


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
    _refuse_idle_tasks()
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
    waits = devices * asked["num_nodes"] > 1 and not single
    with _patience(cfg) if waits else contextlib.nullcontext():
        fabric.launch()
    device = fabric.device if fabric.device.type == "cuda" else torch.device("cpu")
    return Processes(fabric.global_rank, fabric.world_size, device)


def _refuse_idle_tasks() -> None:
    """Raise when SLURM has room for tasks that nobody started: this process would wait for them for ever."""
    tasks = os.environ.get("SLURM_NTASKS", "")
    if not tasks.isdigit() or int(tasks) < 2 or TorchElasticEnvironment.detect():
        return
    if SLURMEnvironment.detect() and not any(name in os.environ for name in _STEP):
        problem = "as many tasks were asked for, and this process was not started by srun"
        raise UserError(
            "SLURM_NTASKS", tasks, problem, "put srun in front of the command, or ask for one task"
        )


@contextlib.contextmanager
def _patience(cfg: DictConfig) -> Iterator[None]:
    """Say what is waited for when the processes do not come together soon; one line when they never do."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    found = " ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)
    known = f" (in the environment: {found})" if found else ""
    words = "waiting for the other processes%s; a launcher must start all of them, and one process none"
    timer = threading.Timer(_SOON, log.warning, (words, known))
    timer.daemon = True
    timer.start()
    try:
        yield
    except dist.DistError as error:
        problem = f"the processes did not come together{known}"
        hint = "start all of them with torchrun or srun, or unset what an earlier launcher left"
        raise UserError("trainer.devices", str(cfg.trainer.devices), problem, hint) from error
    finally:
        timer.cancel()


def _started(elastic: str, slurm: str) -> int | None:
    """A number that torchrun (or a parent of this process), else srun, left in the environment."""
    names = [elastic, slurm] if SLURMEnvironment.detect() else [elastic]
    found = [os.environ[name] for name in names if os.environ.get(name, "").isdigit()]
    return int(found[0]) if found else None
