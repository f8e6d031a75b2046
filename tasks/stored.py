"""The configuration that a checkpoint keeps, made ready for this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from config.cli import compose_config, finish
from config.overrides import check_name
from errors import UserError
from tasks.weights import recorded_settings

HERE = {
    "mode": "train",
    "trainer.accelerator": "auto",
    "trainer.devices": 1,
    "trainer.num_nodes": 1,
    "model.attention": "auto",
    "model.compile": False,
}


def stored_configuration(checkpoint: dict[str, Any], path: str, settings: dict[str, Any]) -> DictConfig:
    """The configuration of a checkpoint over today's defaults, on this machine's devices, then ``settings``.

    Args:
        checkpoint: what ``tasks.weights.read_source`` gives; of a folder, what its config.json says of the
            network is all there is, beside the tokenizer that lies in it.
        settings: dotted names of keys with values.

    Raises:
        ValueError: it is not known of which algorithm the model is, or a setting is unknown or cannot hold.
    """
    for name in settings:
        check_name(name)
    known = recorded_settings(checkpoint) | settings
    if "algo.name" not in known:
        raise UserError("path", path, "does not say of which algorithm it is", 'add algo__name="mdlm"')
    default = compose_config([f"algo={known['algo.name']}", "wandb=null"], warn=False)
    cfg = OmegaConf.create(OmegaConf.to_container(default))
    stored = checkpoint.get("config")
    if isinstance(stored, dict):
        cfg, known = OmegaConf.merge(cfg, stored), settings
    elif Path(path, "tokenizer_config.json").is_file():
        known.setdefault("data.tokenizer_name_or_path", path)
    for name, value in (HERE | known).items():
        if name != "vocabulary":  # its size, which no key sets
            OmegaConf.update(cfg, name, value)
    finish(cfg)
    return cfg
