"""Checkpoints: read without running code from them, names and shapes checked, averages matched by name.

They are Lightning files (ours, and the official ones of MDLM, Duo and IMDM) or Hugging Face folders.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from errors import UserError
from models.ema import ExponentialMovingAverage, is_mask_noise
from models.hf_layouts import is_model_folder, read_folder, settings_of
from models.safe_unpickle import Stub, read_torch_file
from utils import get_logger

log = get_logger("checkpoint")

NETWORK = "backbone."
ROTARY = "rotary_emb.inv_freq"  # in the state_dict, but not trainable
FINITE_MASKS = "vocab_embed.imdm_mlp.weight"
# Parts of other programs' modules beside the network: teachers, measures, schedules.
BESIDE = (
    "teacher.",
    "noise.",
    "metrics.",
    "train_metrics.",
    "valid_metrics.",
    "test_metrics.",
    "gen_ppl_metric.",
)
CONTAINERS = (list, tuple)
PLAIN = (str, bytes, bytearray, int, float, complex, set, frozenset, Tensor, torch.dtype)
OTHER_SETTINGS = "use the model.*, algo.* and data.* settings that it was trained with"
# Of the settings that a checkpoint keeps: ours are about 200, five sections deep at most.
_MOST_SETTINGS, _DEEPEST = 10_000, 20
# What a training needs to go on, beside the weights, and what it is.
_FOR_RESUMING: dict[str, type] = {
    "global_step": int,
    "pytorch-lightning_version": str,
    "loops": dict,
    "callbacks": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
}


class UnreadableError(UserError):
    """A file that is damaged, or of another kind altogether."""


def read_checkpoint(path: str | Path, *, key: str) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU, without running code from it.

    Args:
        path: a Lightning checkpoint, or a folder with a Hugging Face model.
        key: the configuration key that named it, for the error message.

    Returns:
        What the file holds, but for entries with foreign objects (configurations, tokenizers, ...) and parts
        of ``state_dict`` that are not of the network: one line in the log names what was left out. A folder
        gives ``state_dict`` and ``folder_settings`` alone.

    Raises:
        UserError: when there is no such file, it cannot be read (``UnreadableError``), its weights are no
            plain tensors, or its settings are not plain values.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        content = _read_folder(path, key)
    elif not path.is_file():
        raise UserError(key, str(path), "no such file", "give the path of a .ckpt file, or a model's folder")
    else:
        content = _read(path, key, read_torch_file)
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise UserError(key, str(path), "holds no state_dict", "give a Lightning checkpoint")
    _refuse_foreign_weights(content, key, path)
    for part in ("config", "folder_settings"):
        _refuse_odd_settings(content.get(part), key, path)
    foreign = [name for name, value in content.items() if find_stub(value, str(name))]
    weights, beside = _network_weights(content["state_dict"])
    if foreign or beside:
        log.info("%s: ignored %s", path, ", ".join(map(str, (*foreign, *beside))))
    return {name: v for name, v in content.items() if name not in foreign} | {"state_dict": weights}


def read_for_resuming(path: str | Path, *, key: str) -> dict[str, Any]:
    """As :func:`read_checkpoint`, of a training that can go on here.

    Raises:
        UserError: also for checkpoints of other programs, whose training cannot go on here, and for those
            that lack a part of it, which would silently begin again.
    """
    checkpoint = read_checkpoint(path, key=key)
    hint = f"start from its weights: training.finetune_path={path}"
    if not isinstance(checkpoint.get("config"), dict) or "optimizer_states" not in checkpoint:
        raise UserError(key, str(path), "holds no training of this program to go on with", hint)
    training = checkpoint["config"].get("training")
    averaged = isinstance(training, dict) and training.get("ema") not in (0, None)
    missing = [name for name, kind in _FOR_RESUMING.items() if not isinstance(checkpoint.get(name), kind)]
    missing += ["ema"] if averaged and "ema" not in checkpoint else []
    missing += [name for name, kind in _FOR_RESUMING.items() if checkpoint.get(name) in ([], {})]
    if isinstance(checkpoint.get("loops"), dict) and "fit_loop" not in checkpoint["loops"]:
        missing.append("loops.fit_loop")
    if missing:
        problem = f"lacks {', '.join(missing)}, without which its training cannot go on"
        raise UserError(key, str(path), problem, hint)
    if problem := _unfit_moments(checkpoint):
        raise UserError(key, str(path), problem, hint)
    return checkpoint


def _unfit_moments(checkpoint: dict[str, Any]) -> str | None:
    """Why the optimizers' states cannot be those of the weights beside them; None if they can."""
    shapes = {tuple(weight.shape) for weight in checkpoint["state_dict"].values()}
    for optimizer in checkpoint["optimizer_states"]:
        states = optimizer.get("state") if isinstance(optimizer, dict) else None
        if not isinstance(states, dict) or not all(isinstance(state, dict) for state in states.values()):
            return "its optimizer_states are no states of an optimizer"
        for state in states.values():
            for name, value in state.items():
                if isinstance(value, torch.Tensor) and value.ndim and tuple(value.shape) not in shapes:
                    return f"its optimizer_states hold {name} of shape {list(value.shape)}, as no weight has"
    return None


def _read(path: Path, key: str, reader: Any) -> Any:
    try:
        return reader(path)
    except Exception as error:  # a damaged or hostile pickle can fail in any way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        problem = f"cannot be read as a checkpoint ({reason})"
        raise UnreadableError(key, str(path), problem, "give another file") from error


def _read_folder(folder: Path, key: str) -> dict[str, Any]:
    if not is_model_folder(folder):
        last = folder / "checkpoints" / "last.ckpt"
        hint = f"give {last}" if last.is_file() else "give a .ckpt file, or a folder with model.safetensors"
        raise UserError(key, str(folder), "a folder without a model's weights", hint)
    weights, config_json = _read(folder, key, read_folder)
    return {"state_dict": weights, "folder_settings": settings_of(config_json)}


def find_stub(value: Any, name: str) -> tuple[str, str] | None:
    """Where the first foreign object is inside ``value``, and its class; None when all is plain."""
    waiting, seen = deque([(name, value)]), set()
    while waiting:
        name, value = waiting.popleft()
        if isinstance(value, Stub):
            return name, value.what
        if type(value) in CONTAINERS or isinstance(value, dict):
            if id(value) not in seen:
                seen.add(id(value))
                inside = value.items() if isinstance(value, dict) else enumerate(value)
                for part, inner in inside:
                    waiting.extend(((f"{name}.{part}", inner), (name, part)))
        elif value is not None and not isinstance(value, PLAIN):
            return name, getattr(value, "what", type(value).__name__)
    return None


def _refuse_odd_settings(settings: Any, key: str, path: Path) -> None:
    """Raise when the settings that a file keeps are more than plain values.

    ``${...}`` stands for other settings, and for environment variables: nothing in a file of others may ask
    for those. Ours are written resolved.
    """
    hint = "its weights alone can be used when that is removed from the file"
    waiting, count = [("", settings, 0)], 0
    while waiting:
        name, value, depth = waiting.pop()
        count += 1
        if count > _MOST_SETTINGS or depth > _DEEPEST:
            raise UserError(key, str(path), "keeps more settings than any training has", hint)
        if isinstance(value, str) and "${" in value:
            problem = f"its setting {name[:100]} asks for ${{...}}, which is never looked up for a file"
            raise UserError(key, str(path), problem, hint)
        if isinstance(value, dict):
            waiting += [(f"{name}.{part}".strip("."), part, depth + 1) for part in value]
            waiting += [(f"{name}.{part}".strip("."), inner, depth + 1) for part, inner in value.items()]
        elif type(value) in CONTAINERS:
            waiting += [(name, inner, depth + 1) for inner in value]


def _refuse_foreign_weights(content: dict[str, Any], key: str, path: Path) -> None:
    hint = "give a checkpoint whose weights are plain tensors"
    for part in ("state_dict", "ema"):
        found = find_stub(content.get(part), part)
        if found:
            raise UserError(key, str(path), f"{found[0]} is a pickled {found[1]}, which is not run", hint)
    for name, value in content["state_dict"].items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            kind = type(value).__name__
            raise UserError(key, str(path), f"state_dict.{name} is of type {kind}, not a tensor", hint)
    ema = content.get("ema")
    if ema is None:
        content.pop("ema", None)
        return
    averages = ema.get("shadow_params") if isinstance(ema, dict) else None
    if not isinstance(averages, list) or not all(isinstance(average, Tensor) for average in averages):
        raise UserError(key, str(path), "ema.shadow_params is no list of tensors", hint)
    if not isinstance(ema.get("decay"), float | int) or not isinstance(ema.get("num_updates"), int | None):
        raise UserError(key, str(path), "ema.decay or ema.num_updates is no number", hint)


def _network_weights(state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The weights without torch.compile's prefixes and foreign parts, and the names of these parts."""
    plain = {name.replace("_orig_mod.", ""): value for name, value in state_dict.items()}
    if "vocab_embed.embedding" in plain:
        plain = {NETWORK + name: value for name, value in plain.items()}
    beside = [name for name in plain if name.startswith(BESIDE)]
    parts = dict.fromkeys(f"state_dict.{name.split('.')[0]}.*" for name in beside)
    return {name: value for name, value in plain.items() if not name.startswith(BESIDE)}, list(parts)


def load_weights(
    module: nn.Module,
    state_dict: dict[str, Tensor],
    *,
    key: str,
    path: str | Path,
    hint: str = OTHER_SETTINGS,
) -> None:
    """Copy the weights of the network into ``module.backbone``, whatever float dtype they have.

    Every name must be there in the same shape, but for the noise of masks, which keeps its zero start (there
    IMDM equals MDLM), and the rotary frequencies, which are computed and only compared.

    Args:
        hint: what the user can do when the model is another one.

    Raises:
        ValueError: naming the first key that is missing, unexpected or of another shape.
    """
    own = {name: value for name, value in module.state_dict().items() if name.startswith(NETWORK)}
    for name, value in own.items():
        if name not in state_dict:
            if not is_mask_noise(name) and not name.endswith(ROTARY):
                raise UserError(key, str(path), f"{name} is missing", hint)
        elif state_dict[name].shape != value.shape:
            shapes = f"{tuple(state_dict[name].shape)} where the model has {tuple(value.shape)}"
            raise UserError(key, str(path), f"{name} is {shapes}", hint)
        elif not state_dict[name].is_floating_point():
            raise UserError(
                key, str(path), f"{name} is of dtype {state_dict[name].dtype}", "give another file"
            )
        elif name.endswith(ROTARY) and not torch.allclose(state_dict[name].float(), value.cpu(), rtol=0.02):
            raise UserError(
                key, str(path), f"{name} has other frequencies than 1/10000^(i/n)", "give another file"
            )
    for name in state_dict:
        if name not in own:
            raise UserError(key, str(path), f"{name} is not part of the model", hint)
    weights = {name: value for name, value in state_dict.items() if not name.endswith(ROTARY)}
    module.load_state_dict(weights, strict=False)


def first_not_finite(weights: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor with a NaN or an infinity; None when all numbers are finite."""
    for name, value in weights:
        if value.is_floating_point() and not bool(value.float().isfinite().all()):
            return name
    return None


def refuse_not_finite(weights: dict[str, Tensor], *, key: str, path: str | Path) -> None:
    """Raise UserError where a weight is NaN or infinite: whatever is computed from it means nothing."""
    if name := first_not_finite(weights.items()):
        problem = f"{name} has numbers that are not finite: the training diverged, or the file is damaged"
        raise UserError(key, str(path), problem, "give an earlier checkpoint")


def averaged_weights(checkpoint: dict[str, Any], *, key: str, path: str | Path) -> dict[str, Tensor]:
    """All weights of a checkpoint by name, with their averages where it has averages of them.

    Our files name them. Others list them in the order of the trainable parameters, which is that of the
    state_dict; the table of a finite alphabet of one mask is frozen, as may be all but some norms.

    Raises:
        ValueError: when it has none, or they do not fit to the weights.
    """
    hint = "give another checkpoint, or use the raw weights: " + (
        "training.load_ema=False" if key.startswith("training.") else "eval.disable_ema=True"
    )
    if "ema" not in checkpoint:
        raise UserError(key, str(path), "holds no EMA weights", hint)
    weights, averages = checkpoint["state_dict"], checkpoint["ema"]["shadow_params"]
    names = checkpoint["ema"].get("names")
    if names is None:
        names = _order(weights, len(averages))
    if names is None or len(names) != len(averages):
        count = sum(not name.endswith(ROTARY) for name in weights)
        problem = f"its EMA has {len(averages)} entries for {count} parameters"
        raise UserError(key, str(path), problem, hint)
    for name, average in zip(names, averages, strict=True):
        if name not in weights or weights[name].shape != average.shape:
            shape = tuple(weights[name].shape) if name in weights else "nothing"
            problem = f"its EMA has {tuple(average.shape)} for {name}, the weights have {shape}"
            raise UserError(key, str(path), problem, hint)
    return weights | dict(zip(names, averages, strict=True))


def _order(weights: Iterable[str], count: int) -> list[str] | None:
    """The names of ``count`` averages in a file that does not name them."""
    everything = [name for name in weights if not name.endswith(ROTARY)]
    several_masks = [name for name in everything if not name.endswith(FINITE_MASKS)]
    norms = [[name for name in everything if part in name] for part in ("norm", "norm2")]
    return next((names for names in (everything, several_masks, *norms) if len(names) == count), None)


def load_ema(
    ema: ExponentialMovingAverage, checkpoint: dict[str, Any], *, key: str, path: str | Path
) -> None:
    """Take over decay, number of updates and averages of a checkpoint that :func:`read_checkpoint` returned.

    ``ema`` takes those that it needs, by name (parameters that are frozen here have their average as weight:
    load ``averaged_weights`` for that); noise of masks that the file does not know starts at its weight.

    Raises:
        ValueError: when the file has none, or they do not fit.
    """
    averages = averaged_weights(checkpoint, key=key, path=path)
    names = [name for name in ema.state_dict()["names"] if name in averages]
    state = checkpoint["ema"] | {"shadow_params": [averages[name] for name in names], "names": names}
    ema.load_state_dict(state, names)


def restart_ema(ema: ExponentialMovingAverage) -> None:
    """Begin averaging anew at the present weights."""
    nothing = {"decay": ema.decay, "num_updates": 0, "shadow_params": []}
    ema.load_state_dict(nothing, [], may_miss=lambda name: True)


def settings_of_weights(weights: dict[str, Tensor]) -> dict[str, Any]:
    """What shapes tell of the network, under the keys of the configuration (``vocabulary``: V)."""
    shapes = {name.removeprefix(NETWORK): tuple(value.shape) for name, value in weights.items()}
    found: dict[str, Any] = {}
    if len(shapes.get("vocab_embed.embedding", ())) == 2:
        found["vocabulary"], found["model.hidden_size"] = shapes["vocab_embed.embedding"]
        if len(shapes.get(ROTARY, ())) == 1 and shapes[ROTARY][0]:
            found["model.n_heads"] = found["model.hidden_size"] // (2 * shapes[ROTARY][0])
    blocks = [name.split(".")[1] for name in shapes if name.startswith("blocks.")]
    if blocks and all(number.isdigit() for number in blocks):
        found["model.n_blocks"] = 1 + max(map(int, blocks))
        found["model.qk_norm"] = any(".q_norm." in name for name in shapes)
    if shapes.get("sigma_map.mlp.2.bias"):
        found["model.cond_dim"] = shapes["sigma_map.mlp.2.bias"][0]
    if len(shapes.get("vocab_embed.imdm_mlp.0.weight", ())) == 2:
        found["model.noise_dim"], found["algo.num_mask"] = shapes["vocab_embed.imdm_mlp.0.weight"][1], 0
    elif shapes.get(FINITE_MASKS):
        found["algo.num_mask"] = shapes[FINITE_MASKS][0]
    return found
