"""The folder of a training run: the same command finds its own run again, another one is told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from utils import atomic_open, get_logger, user_error

log = get_logger("run_folder")

# What shapes the trained weights. Everything else (devices, logging, evaluation, how long to train)
# may differ between the command that began a run and the one that goes on with it.
DEFINING = ("seed", "algo", "model", "noise", "data", "optim", "lr_scheduler", "training")
DEFINING_KEYS = ("loader.global_batch_size", "trainer.gradient_clip_val", "trainer.precision")
HARMLESS = ("data.cache_dir",)


def open_run_folder(cfg: DictConfig) -> tuple[Path, Path | None]:
    """The run's folder and the checkpoint to go on from (None for a fresh start).

    With ``checkpointing.resume_from_ckpt=False`` an existing run is left alone and a numbered folder
    beside it is taken.

    Raises:
        ValueError: when the folder holds a run of another configuration; it says what differs.
    """
    folder = Path(cfg.checkpointing.save_dir)
    if not cfg.checkpointing.resume_from_ckpt:
        folder = _fresh(folder)
    config_file = folder / "config.yaml"
    checkpoint = Path(cfg.checkpointing.resume_ckpt_path or folder / "checkpoints" / "last.ckpt")
    if config_file.exists() and checkpoint.exists():
        differences = _differences(OmegaConf.load(config_file), cfg)
        if differences:
            raise user_error(
                "checkpointing.save_dir",
                str(folder),
                f"holds a run with other settings ({'; '.join(differences)})",
                "give another name=... or checkpointing.resume_from_ckpt=False",
            )
    with atomic_open(config_file) as file:
        file.write(OmegaConf.to_yaml(cfg, resolve=True))
    return folder, checkpoint if cfg.checkpointing.resume_from_ckpt and checkpoint.exists() else None


def _fresh(folder: Path) -> Path:
    number, fresh = 2, folder
    while fresh.exists():
        fresh = folder.with_name(f"{folder.name}-{number}")
        number += 1
    return fresh


def _differences(old: Any, new: DictConfig) -> list[str]:
    before, after = _flat(old), _flat(new)
    return [
        f"{key} was {before.get(key)}, is {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def _flat(cfg: Any) -> dict[str, Any]:
    """The defining settings as dotted keys."""
    flat: dict[str, Any] = {key: OmegaConf.select(cfg, key) for key in DEFINING_KEYS}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}", inner)
        elif prefix not in HARMLESS:
            flat[prefix] = value

    content = OmegaConf.to_container(cfg, resolve=True)
    for section in DEFINING:
        walk(section, content.get(section))
    return flat
