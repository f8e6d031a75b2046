"""Stored pairs (xt, t, seed) -> x0 for rectification: what a folder says of itself, and batches from it.

A folder holds ``xT.npy`` (N, L) noised ids, ``x0.npy`` (N, L) ids generated from them, ``ts.npy`` (N,)
their times, ``seeds.npy`` (N,) the seeds of their mask noise (-1: none), and ``manifest.json``, which says
what made them. Folders of the official implementation have the arrays alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.dataset import TokenDataset
from errors import UserError
from utils import get_logger

REFLOW = "reflow"  # the value of data.train by which pairs are read
MANIFEST = "manifest.json"
FILES = {"xt": "xT.npy", "x0": "x0.npy", "t": "ts.npy", "seed": "seeds.npy"}
NO_SEED = -1
KEY = "reflow.save_path"
_NOISE_KEYS = {
    "type": "algo.noise_type",
    "scale": "algo.noise_scale",
    "dim": "model.noise_dim",
    "num_mask": "algo.num_mask",
}
_ROWS_AT_ONCE = 4096
log = get_logger("data")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What the folder's manifest says, or None when it has none. Without ``process`` it is "absorbing".

    Raises:
        ValueError: it cannot be read.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            KEY, str(folder), f"its {MANIFEST} cannot be read ({error})", "use another folder"
        ) from error
    return {**manifest, "process": manifest.get("process", "absorbing")}


class ReflowDataset(TokenDataset):
    """The pairs of a folder, memory-mapped.

    Args:
        folder: see the head of this file.

    Raises:
        ValueError: files are missing, unfinished, or their shapes do not fit together.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        if self.manifest is not None and not self.manifest["complete"]:
            raise UserError(KEY, str(folder), "unfinished pairs", "run the command that makes them again")
        self._xt, x0, times, seeds = (self._open(name) for name in FILES.values())
        if not (self._xt.ndim == 2 and self._xt.shape == x0.shape and len(x0) == times.size == seeds.size):
            shapes = ", ".join(str(array.shape) for array in (self._xt, x0, times, seeds))
            raise UserError(
                KEY,
                str(folder),
                f"xT, x0, ts and seeds have shapes {shapes}",
                "use (N, L) twice and (N,) twice",
            )
        self.times, self.seeds = times.reshape(-1), seeds.reshape(-1)
        super().__init__(x0)

    def __reduce__(self) -> tuple:
        return ReflowDataset, (self.folder,)  # a worker process maps the files itself

    @property
    def nbytes(self) -> int:
        return self._tokens.nbytes + self._xt.nbytes

    def fetch(
        self, indices: np.ndarray | Sequence[int], starts: np.ndarray | None = None
    ) -> dict[str, Tensor]:
        """The pairs ``indices`` (B,): ``input_ids`` (x0) and ``xt`` (B, L) int64, ``attention_mask`` (B, L)
        all True, ``t`` (B,) float64, ``seed`` (B,) int64."""
        indices = np.asarray(indices, dtype=np.int64)
        return {
            **super().fetch(indices, starts),
            "xt": torch.from_numpy(np.asarray(self._xt[indices]).astype(np.int64)),
            "t": torch.from_numpy(self.times[indices].astype(np.float64)),
            "seed": torch.from_numpy(self.seeds[indices].astype(np.int64)),
        }

    def check(self, reader: Mapping[str, Any], *, use_seeds: bool, from_noise: bool = False) -> None:
        """Refuse pairs that a training run cannot use; ids are looked at where no manifest vouches for them.

        Args:
            reader: what the run is (``dataloader.pair_settings``): process, tokenizer, length, ...
            use_seeds: it replays the mask noise of the stored seeds.
            from_noise: it takes pairs from t = 1 alone.

        Raises:
            ValueError: one line with the setting that does not fit.
        """
        where = f"the pairs in {self.folder}"
        if self.manifest is not None and self.manifest["process"] != reader["process"]:
            maker = self.manifest["algorithm"]["name"]
            raise _other_process(self.folder, f"pairs of algo={maker}", self.manifest["process"])
        if self.length != reader["length"]:
            problem = f"{where} are {self.length} tokens long"
            raise UserError("model.length", reader["length"], problem, f"use model.length={self.length}")
        if self.manifest is None:
            log.warning(
                "%s have no %s: who made them is unknown; shapes and ids are checked", where, MANIFEST
            )
            self._check_process(reader["tokenizer"]["mask_id"])
            self._check_values(reader["tokenizer"]["vocab_size"], reader["tokenizer"]["mask_id"])
        else:
            _check_maker(self.manifest, reader, use_seeds, where)
        if use_seeds and (np.asarray(self.seeds) == NO_SEED).all():
            raise UserError("algo.ignore_seed", False, f"{where} carry no seeds", "use algo.ignore_seed=True")
        earliest = float(np.asarray(self.times).min(initial=1.0))
        if from_noise and earliest < 1:
            problem = f"{where} start at times down to {earliest:.2g}, a single step starts at 1"
            hint = "use pairs made with reflow.perturbed_rect=False, or algo.onestep_mode=False"
            raise UserError("algo.onestep_mode", True, problem, hint)

    def _open(self, name: str) -> np.ndarray:
        path = self.folder / name
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError as error:
            hint = f"make them with mode=generate_reflow_dataset {KEY}={self.folder}"
            raise UserError(KEY, str(self.folder), f"no pairs there ({name} is missing)", hint) from error
        except (ValueError, EOFError) as error:
            problem = f"{name} is no readable array ({str(error).splitlines()[0][:100]})"
            raise UserError(KEY, str(self.folder), problem, "make the pairs again") from error
        wanted = "floating" if name == FILES["t"] else "integer"
        if not np.issubdtype(array.dtype, getattr(np, wanted)):
            raise UserError(KEY, str(self.folder), f"{name} holds {array.dtype}", f"use {wanted} numbers")
        return array

    def _check_values(self, vocab_size: int, mask_id: int | None) -> None:
        times = np.asarray(self.times)
        if not ((times > 0) & (times <= 1)).all():
            raise UserError(KEY, str(self.folder), "ts.npy has times outside (0, 1]", "make the pairs again")
        for start in range(0, len(self), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            for name, ids in (("xT", self._xt[part]), ("x0", self._tokens[part])):
                if ids.min() < 0 or ids.max() >= vocab_size:
                    problem = f"{name}.npy has ids {ids.min()}..{ids.max()}, this tokenizer has {vocab_size}"
                    raise UserError(KEY, str(self.folder), problem, "use the tokenizer of the pairs")
            if mask_id is not None and (self._tokens[part] == mask_id).any():
                problem = f"x0.npy holds the mask (id {mask_id})"
                raise UserError(KEY, str(self.folder), problem, "generate without noise_removal=none")

    def _check_process(self, mask_id: int | None) -> None:
        """Tell masks from random ids, where no manifest does, by the ids in xT that x0 has others for."""
        replaced, written = set(), set()
        for start in range(0, len(self), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            xt, x0 = np.asarray(self._xt[part]), np.asarray(self._tokens[part])
            replaced.update(np.unique(xt[xt != x0]).tolist())
            written.update(np.unique(x0).tolist())
        if mask_id is not None and len(replaced) > 1:
            raise _other_process(self.folder, "pairs whose text changes where no mask is", "uniform")
        if mask_id is None and len(replaced) == 1 and not replaced & written:
            masks = f"pairs in which id {replaced.pop()} stands for all noise, like a mask,"
            raise _other_process(self.folder, masks, "absorbing")


def _other_process(folder: Path, what: str, process: str) -> ValueError:
    """The error about pairs of ``process`` for a model of the other one."""
    kinds = {"absorbing": "a masked model", "uniform": "a uniform-state model"}
    mine, other = kinds[process], kinds["uniform" if process == "absorbing" else "absorbing"]
    hint = f"use pairs that {other} made, or algo={'im-redi' if process == 'absorbing' else 'rectification'}"
    return UserError(KEY, str(folder), f"{what} are for {mine}, and this is {other}", hint)


def _check_maker(manifest: dict[str, Any], reader: Mapping[str, Any], use_seeds: bool, where: str) -> None:
    """Compare what made the pairs with who reads them."""
    made, mine = manifest["tokenizer"], reader["tokenizer"]
    if any(made[key] != mine[key] for key in ("vocabulary", "vocab_size", "mask_id")):
        theirs, ours = (
            f"{tokenizer['vocab_size']} ids"
            + ("" if tokenizer["mask_id"] is None else f", mask {tokenizer['mask_id']}")
            for tokenizer in (made, mine)
        )
        problem = f"{where} were made with {made['name']} ({theirs}), this one has {ours}, or other words"
        raise UserError("data.tokenizer_name_or_path", mine["name"], problem, f"use {made['name']}")
    made, mine = manifest["schedule"], reader["schedule"]
    for key in ("name", "eps"):
        if made[key] != mine[key]:
            problem = f"{where} were made with noise.{key}={made[key]}"
            raise UserError("noise" if key == "name" else "noise.eps", mine[key], problem, f"use {made[key]}")
    made, mine = manifest["mask_noise"], reader["mask_noise"]
    if not use_seeds or mine is None:
        return
    if made is None:
        log.warning("%s come from a model without mask noise: their seeds had no part in x0", where)
        return
    for key, name in _NOISE_KEYS.items():
        if made[key] != mine[key]:
            problem = f"{where} were made with {made[key]}: their seeds would not replay the same noise"
            raise UserError(name, mine[key], problem, f"use {name}={made[key]}, or algo.ignore_seed=True")
