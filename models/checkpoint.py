"""Reading checkpoints: tensors and plain containers only, names and shapes checked."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.ema import ExponentialMovingAverage, is_mask_noise
from utils import user_error

BUFFERS = ("rotary_emb.inv_freq",)  # in the state_dict, but not trainable


def read_checkpoint(path: str | Path, *, key: str) -> dict[str, Any]:
    """The content of a Lightning checkpoint, on the CPU, without running code from the file.

    Args:
        path: the file.
        key: the configuration key that named it, for the error message.

    Raises:
        ValueError: when there is no such file, or it is no checkpoint that can be read safely.
    """
    if not Path(path).is_file():
        raise user_error(key, str(path), "no such file", "give the path of a .ckpt file")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0][:120]
        raise user_error(
            key, str(path), f"cannot be read as a checkpoint ({reason})", "give another file"
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise user_error(key, str(path), "holds no state_dict", "give a Lightning checkpoint")
    return checkpoint


def load_weights(module: nn.Module, state_dict: dict[str, Tensor], *, key: str, path: str | Path) -> None:
    """Copy ``state_dict`` into ``module``: every name must be there in the same shape, but for the noise MLP.

    Raises:
        ValueError: naming the first key that is missing, unexpected or of another shape.
    """
    own = module.state_dict()
    mend = "use the model.*, algo.* and data.* settings that it was trained with"
    for name, value in own.items():
        if name not in state_dict:
            if not is_mask_noise(name):  # it keeps its zero start, where IMDM equals MDLM
                raise user_error(key, str(path), f"{name} is missing", mend)
        elif state_dict[name].shape != value.shape:
            shapes = f"{tuple(state_dict[name].shape)} where the model has {tuple(value.shape)}"
            raise user_error(key, str(path), f"{name} is {shapes}", mend)
    for name in state_dict:
        if name not in own:
            raise user_error(key, str(path), f"{name} is not part of the model", mend)
    module.load_state_dict(state_dict, strict=False)


def load_ema(
    ema: ExponentialMovingAverage, checkpoint: dict[str, Any], *, key: str, path: str | Path
) -> None:
    """The averaged weights of a checkpoint that :func:`read_checkpoint` returned, matched by name.

    The file lists them in the order of its trainable parameters, which is that of its state_dict.

    Raises:
        ValueError: when it has none, or they do not fit.
    """
    if "ema" not in checkpoint:
        raise user_error(
            key, str(path), "holds no EMA weights", "set eval.disable_ema=True to use the raw ones"
        )
    names = [name for name in checkpoint["state_dict"] if not name.endswith(BUFFERS)]
    if len(names) > len(checkpoint["ema"]["shadow_params"]):  # the one mask of num_mask=1 is frozen
        names = [name for name in names if not name.endswith("imdm_mlp.weight")]
    ema.load_state_dict(checkpoint["ema"], names)
