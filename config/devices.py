"""Which values of ``trainer.devices`` and its companions make sense."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from errors import UserError

_MOST = 2**16


def check_devices(cfg: DictConfig) -> None:
    """Raise for devices that cannot be, and for batch limits that are no fraction."""
    devices = cfg.trainer.devices
    if OmegaConf.is_list(devices):
        wrong = not devices or any(isinstance(d, bool) or not isinstance(d, int) or d < 0 for d in devices)
    elif isinstance(devices, str):
        wrong = devices != "auto" and not all(part.strip().isdecimal() for part in devices.split(","))
    else:
        wrong = isinstance(devices, bool) or not isinstance(devices, int) or not -1 <= devices <= _MOST
        wrong = wrong or devices == 0
    if not wrong and len(set(_listed(devices))) < len(_listed(devices)):
        raise UserError("trainer.devices", devices, "names a device twice", "name each once")
    if wrong:
        raise UserError(
            "trainer.devices", devices, "no devices", "give auto, a number, or indices like [0,1]"
        )
    if cfg.strategy.name == "single_device" and (several(devices) or cfg.trainer.num_nodes > 1):
        key, value = (
            ("trainer.devices", devices) if several(devices) else ("trainer.num_nodes", cfg.trainer.num_nodes)
        )
        raise UserError(key, value, "strategy=single_device runs on one", f"use strategy=ddp or {key}=1")
    for name in ("limit_train_batches", "limit_val_batches", "val_check_interval"):
        value = cfg.trainer[name]
        if isinstance(value, float) and value > 1:
            raise UserError(f"trainer.{name}", value, "a fraction above 1", f"write {int(value)} for batches")


def _listed(devices: Any) -> list[int]:
    """The indices that ``trainer.devices`` lists; none where it is a number or auto."""
    if OmegaConf.is_list(devices):
        return list(devices)
    return [int(part) for part in devices.split(",")] if isinstance(devices, str) and "," in devices else []


def several(devices: Any) -> bool:
    """Whether ``trainer.devices`` names more than one device."""
    if OmegaConf.is_list(devices) or isinstance(devices, str):
        return devices != "auto" and len(devices if OmegaConf.is_list(devices) else devices.split(",")) > 1
    return devices > 1 or devices == -1
