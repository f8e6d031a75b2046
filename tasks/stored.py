"""The configuration that a checkpoint keeps, checked, and made ready for this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from algo import ALGORITHMS
from config.cli import check_name, compose_config, finish
from config.run import all_keys, sections
from errors import UserError
from models.checkpoint import settings_of_weights
from settings import Key
from tasks.weights import recorded_settings

HERE = {
    "mode": "train",
    "trainer.accelerator": "auto",
    "trainer.devices": 1,
    "trainer.num_nodes": 1,
    "model.attention": "auto",
    "model.compile": False,
}
_HINT = "give another checkpoint, or use its weights alone: training.finetune_path"
# Sizes that the weights show; the largest believed of those that they do not.
_SHOWN = ("model.hidden_size", "model.cond_dim", "model.n_blocks", "model.n_heads", "model.noise_dim")
_LARGEST = {"model.length": 2**20, "model.cond_dim": 2**16, "model.noise_dim": 2**16, "algo.num_mask": 2**16}


def stored_configuration(
    checkpoint: dict[str, Any], path: str, settings: dict[str, Any], *, key: str = "path"
) -> DictConfig:
    """The configuration of a checkpoint over today's defaults, on this machine's devices, then ``settings``.

    Args:
        checkpoint: what ``tasks.weights.read_source`` gives; of a folder, what its config.json says of the
            network is all there is, beside the tokenizer that lies in it.
        path: that of the checkpoint, as it was typed.
        settings: dotted names of keys with values.
        key: what named the checkpoint, for error messages.

    Raises:
        UserError: it is not known of which algorithm the model is, its own settings are not of the types and
            sizes of a model, or a setting is unknown or cannot hold.
    """
    for name in settings:
        check_name(name)
    stored = checked_settings(checkpoint, key=key, path=path)
    known = recorded_settings(checkpoint) | settings
    if "algo.name" not in known:
        raise UserError(key, path, "does not say of which algorithm it is", 'add algo__name="mdlm"')
    if known["algo.name"] not in ALGORITHMS:
        hint = f"one of {', '.join(sorted(ALGORITHMS))} is"
        raise UserError("algo.name", str(known["algo.name"]), "no such algorithm", hint)
    default = compose_config([f"algo={known['algo.name']}", "wandb=null"], warn=False)
    cfg = OmegaConf.create(OmegaConf.to_container(default))
    folder = Path(path).expanduser()
    if stored is not None:
        cfg, known = OmegaConf.merge(cfg, stored), settings
    elif (folder / "tokenizer_config.json").is_file():
        known.setdefault("data.tokenizer_name_or_path", str(folder))
    for name, value in (HERE | known).items():
        if name != "vocabulary":  # its size, which no key sets
            OmegaConf.update(cfg, name, value)
    finish(cfg)
    return cfg


def checked_settings(checkpoint: dict[str, Any], *, key: str, path: str) -> dict[str, Any] | None:
    """The configuration that a checkpoint keeps, None where it keeps none, with every value looked at.

    ``models.checkpoint.read_checkpoint`` has refused what would be looked up elsewhere (``${...}``). Here it
    is types, and sizes: those of the weights.

    Code beside a pretrained model is never trusted by what a file says: that is for the user to type.

    Raises:
        UserError: naming the first value that no training has written.
    """
    stored = checkpoint.get("config")
    if stored is not None and not isinstance(stored, dict):
        problem = f"keeps a {type(stored).__name__} where its settings should be"
        raise UserError(key, path, problem, _HINT)
    folder = checkpoint.get("folder_settings", {})
    values = {name: value for name, value in folder.items() if value is not None}
    values |= _values(stored or {}, "")
    for name, value in values.items():
        if problem := _complaint(name, value):
            raise UserError(key, path, f"its setting {name}={value!r:.60} is {problem}", _HINT)
    if values.get("algo.name", "mdlm") not in ALGORITHMS:
        problem = f"is of an algorithm {values['algo.name']!r:.40}, which is not known here"
        raise UserError(key, path, problem, f"one of {', '.join(sorted(ALGORITHMS))} is")
    _refuse_other_sizes(values, settings_of_weights(checkpoint["state_dict"]), key, path)
    if values.get("model.trust_remote_code"):
        # Only who types it has read that code: a checkpoint of somebody else must not make it run.
        stored = {**(stored or {}), "model": {**(stored or {})["model"], "trust_remote_code": False}}
    return stored


def _refuse_other_sizes(values: dict[str, Any], shown: dict[str, Any], key: str, path: str) -> None:
    """Raise when settings are not those of the weights, or so large that memory and time would be lost."""
    if values.get("model.path"):  # the sizes are those of that model, whatever the file says
        return
    if "vocabulary" not in shown:
        raise UserError(key, path, "holds no embedding of a vocabulary", "give another checkpoint")
    shown.setdefault("model.n_blocks", 0)
    for name in _SHOWN:
        if name in shown and values.get(name) not in (None, shown[name]):
            problem = f"its setting {name}={values[name]} is not that of its weights, {shown[name]}"
            raise UserError(key, path, problem, _HINT)
    for name, largest in (_LARGEST | {"data.vocab_size": shown["vocabulary"]}).items():
        if (values.get(name) or 0) > largest:
            problem = f"its setting {name}={values[name]} is above {largest}, the most that is believed"
            raise UserError(key, path, problem, _HINT)


def _values(section: dict[Any, Any], prefix: str) -> dict[str, Any]:
    """The settings under their dotted names; a section that is none comes as the value that it is."""
    found = {}
    for part, value in section.items():
        name = f"{prefix}{part}"
        if isinstance(value, dict) and isinstance(part, str):
            found |= _values(value, f"{name}.")
        else:
            found[name] = value if isinstance(part, str) else {}  # which is no value, either
    return found


def _complaint(name: str, value: Any) -> str | None:
    """What is wrong with the type of a stored value, or None."""
    if name in sections():
        return None if value is None else "no section"
    inside = value if isinstance(value, list | tuple) else [value]
    if not all(part is None or isinstance(part, str | int | float) for part in inside):
        return "no plain value"
    declared = all_keys().get(name, ())
    if not declared:
        above = any(name.startswith(f"{other}.") for other in all_keys())
        return "no value but a section" if above else None
    return None if any(_fits(value, one) for one in declared) else declared[0].type_error(value)[0]


def _fits(value: Any, key: Key) -> bool:
    if Any in key.types or type(value) in key.types:
        return True
    return float in key.types and type(value) is int
