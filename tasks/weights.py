"""Where weights come from: a checkpoint file, a folder, the hub; and whether they suit the configuration."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from algo import OBJECTIVES
from config.algo import is_default
from data.hub import hub_reachable
from errors import UserError
from models.checkpoint import OTHER_SETTINGS, read_checkpoint, settings_of_weights
from models.hf_layouts import PATTERNS
from trainer_base import TrainerBase
from utils import get_logger

log = get_logger("weights")

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_HUB_FILE = re.compile(rf"({_HUB_NAME.pattern})/([\w-][\w.-]*)")
_FILES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")
_TOKENIZER = "data.tokenizer_name_or_path"
# Settings that shapes may not tell: what the network computes with the same weights.
_UNSEEN = (
    "model.softcap",
    "algo.noise_type",
    "algo.noise_scale",
    "algo.time_conditioning",
    _TOKENIZER,
)


def read_source(name: str, *, key: str) -> dict[str, Any]:
    """``models.checkpoint.read_checkpoint`` of what :func:`local_source` finds."""
    return read_checkpoint(local_source(name, key=key), key=key)


def local_source(name: str, *, key: str) -> Path:
    """Where the weights of a name are: a path, or what the hub gives, in the hub's own cache.

    Args:
        name: a path, or owner/model or owner/model/file.ckpt of the hub where there is no such path.
        key: the configuration key that named it, for error messages.

    Raises:
        UserError: the hub has no such thing, or cannot be reached. A path need not be there.
    """
    path = Path(name).expanduser()
    if not path.exists() and _HUB_NAME.fullmatch(name) and path.suffix not in _FILES:
        return _fetch(name, key)
    if not path.exists() and (found := _HUB_FILE.fullmatch(name)) and path.suffix in _FILES:
        # Where the first folder is there, it is the path of a file that is not.
        return path if Path(name.split("/")[0]).exists() else _fetch(found[1], key, found[2])
    return path


def _fetch(name: str, key: str, file: str | None = None) -> Path:
    """The weights and config.json of a hub model, or a file of it, in the hub's own cache."""
    from huggingface_hub import hf_hub_download, snapshot_download

    online = hub_reachable()
    try:
        if file is not None:
            return Path(hf_hub_download(name, file, local_files_only=not online))
        return Path(snapshot_download(name, allow_patterns=list(PATTERNS), local_files_only=not online))
    except Exception as error:  # the hub's client raises a dozen unrelated types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        what = "model" if file is None else "file"
        problem = f"no such path, and the hub gives no such {what} ({reason})"
        if not online:
            problem = f"no such path, and the hub cannot be reached (its cache has no such {what})"
        asked = name if file is None else f"{name}/{file}"
        raise UserError(key, asked, problem, "give a .ckpt file or a model's folder") from error


def recorded_settings(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of its model, under the keys of the configuration, as far as it does."""
    found = settings_of_weights(checkpoint["state_dict"]) | checkpoint.get("folder_settings", {})
    for name in ("algo.name", "data.vocab_size", "model.n_heads", *found, *_UNSEEN):
        value = checkpoint.get("config")
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            found[name] = value
    found = {name: value for name, value in found.items() if isinstance(value, str | int | float)}
    return dict(sorted(found.items(), key=lambda item: item[0] != "algo.name"))


def advice(module: TrainerBase, recorded: dict[str, Any]) -> str:
    """What to set so that the model becomes that of the checkpoint ("use ..."), as far as it is known."""
    cfg, settings, own = module.config, dict(recorded), module.backbone.config.vocab_size
    vocabulary = settings.pop("vocabulary", own)
    differing = [name for name, value in settings.items() if _differs(cfg, name, value, missing=True)]
    words = [f"{name}={settings[name]}" for name in differing if not name.startswith("data.")]
    words = [word.replace("algo.name=", "algo=") for word in words]
    if vocabulary != own:
        tokenizer = f"{_TOKENIZER}={settings[_TOKENIZER]}" if _TOKENIZER in settings else f"the {_TOKENIZER}"
        if settings.get("data.vocab_size") is not None:
            tokenizer += f" data.vocab_size={settings['data.vocab_size']}"
        words.append(f"{tokenizer} that has its {vocabulary} tokens (this one gives {own})")
    return f"use {' '.join(words)}" if words else OTHER_SETTINGS


def refuse_other_heads(cfg: DictConfig, recorded: dict[str, Any], *, key: str, path: str) -> None:
    """Raise when a checkpoint says that its heads are others: no shape but the rotary buffer's shows it."""
    heads = recorded.get("model.n_heads", cfg.model.n_heads)
    if heads != cfg.model.n_heads:
        problem = f"a network of {heads} heads, not {cfg.model.n_heads}"
        raise UserError(key, path, problem, f"use model.n_heads={heads}")


def refuse_unknown_algorithm(cfg: DictConfig, recorded: dict[str, Any], *, key: str, path: str) -> None:
    """Raise when neither the checkpoint nor the user says of which algorithm it is: often no shape shows it,
    and another one gives wrong numbers without a word."""
    if "algo.name" not in recorded and is_default(cfg):
        hint = "type that of its training, like algo=mdlm, algo=imdm or algo=duo_base"
        raise UserError(key, path, "does not say of which algorithm it is, and no algo= was typed", hint)


def refuse_other_process(module: TrainerBase, recorded: dict[str, Any], *, key: str, path: str) -> None:
    """Raise when the weights are of another process: where the tokenizer has a mask no shape shows it."""
    name = recorded.get("algo.name")
    own = module.objective.settings.family
    if name in OBJECTIVES and OBJECTIVES[name].Settings.family != own:
        problem = f"was trained with algo={name}, which algo={module.config.algo.name} cannot evaluate"
        raise UserError(key, path, problem, f"use algo={name}")


def warn_of_differences(cfg: DictConfig, recorded: dict[str, Any], path: str) -> None:
    """One line when the same weights were trained to compute something else than they will here."""
    different = [
        f"{name}={recorded[name]} (here {OmegaConf.select(cfg, name)})"
        for name in _UNSEEN
        if name in recorded and _differs(cfg, name, recorded[name])
    ]
    if different:
        log.warning("%s was trained with %s", path, ", ".join(different))


def _differs(cfg: DictConfig, name: str, value: Any, *, missing: bool = False) -> bool:
    current = OmegaConf.select(cfg, name)
    if current is None:
        return missing
    off = name == "model.softcap" and current <= 0 and isinstance(value, int | float) and value <= 0
    return current != value and not off
