"""Stored pairs (xt, t, seed) -> x0 for rectification: what a folder says of itself, and batches from it.

A folder holds ``xT.npy`` (N, L) noised ids, ``x0.npy`` (N, L) ids generated from them, ``ts.npy`` (N,)
their times (0: nothing is noised), ``seeds.npy`` (N,) the seeds of their mask noise (-1: none), and
``manifest.json``, which says what made them. Folders of the official implementation have the arrays alone,
perhaps without seeds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.dataset import TokenDataset, array_digest
from errors import UserError
from utils import get_logger

REFLOW = "reflow"  # the value of data.train and data.valid by which pairs are read
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
_KINDS = {"absorbing": "a masked model", "uniform": "a uniform-state model"}
_ROWS_AT_ONCE = 4096
# What every manifest says, and of which types; a dot leads into a section.
_CONTENT: dict[str, tuple[type, ...]] = {
    "complete": (bool,),
    "rows": (int,),
    "length": (int,),
    "process": (str,),
    "tokenizer.name": (str,),
    "tokenizer.vocabulary": (str,),
    "tokenizer.vocab_size": (int,),
    "tokenizer.mask_id": (int, NoneType),
    "schedule.name": (str,),
    "schedule.eps": (float, int),
    "mask_noise": (dict, NoneType),
    "algorithm.name": (str,),
    "data.train": (str,),
    "data.valid": (str,),
    "data.tokenizer_name_or_path": (str,),
    "data.cache_dir": (str,),
}
log = get_logger("data")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What the folder's manifest says, or None when it has none. Without ``process`` it is "absorbing".

    Raises:
        UserError: it cannot be read, or does not say what a manifest says.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(
            KEY, str(folder), f"its {MANIFEST} cannot be read ({error})", "use another folder"
        ) from error
    if isinstance(manifest, dict):
        manifest.setdefault("process", "absorbing")
    if odd := _oddity(manifest):
        problem = f"its {MANIFEST} describes no pairs ({odd})"
        raise UserError(KEY, str(folder), problem, "use another folder, or make the pairs again in a new one")
    return manifest


def _oddity(manifest: object) -> str | None:
    """What is wrong with the content of a manifest, or None."""
    if not isinstance(manifest, dict):
        return "it is no object"
    content = dict(_CONTENT)
    if isinstance(manifest.get("mask_noise"), dict):
        content |= {f"mask_noise.{key}": (str, float, int) for key in _NOISE_KEYS}
    for name, types in content.items():
        value: object = manifest
        for key in name.split("."):
            if not isinstance(value, dict) or key not in value:
                return f"{name} is missing"
            value = value[key]
        if type(value) not in types:
            return f"{name} is {str(value)[:40]!r}"
    if manifest["process"] not in _KINDS:
        return f"process is {manifest['process']!r}"
    return None


class ReflowDataset(TokenDataset):
    """The pairs of a folder, memory-mapped.

    Args:
        folder: see the head of this file.

    Raises:
        UserError: files are missing, unfinished, or their shapes do not fit together.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        if self.manifest is not None and not self.manifest["complete"]:
            raise UserError(KEY, str(folder), "unfinished pairs", "run the command that makes them again")
        self._xt, x0, times = (self._open(FILES[name]) for name in ("xt", "x0", "t"))
        if self.manifest is None and not (folder / FILES["seed"]).exists():
            seeds = np.full(times.size, NO_SEED)
        else:
            seeds = self._open(FILES["seed"])
        if not (self._xt.ndim == 2 and self._xt.shape == x0.shape and len(x0) == times.size == seeds.size):
            shapes = ", ".join(str(array.shape) for array in (self._xt, x0, times, seeds))
            raise self._wrong(f"xT, x0, ts and seeds have shapes {shapes}", "use (N, L) twice and (N,) twice")
        if not x0.size:
            raise self._wrong("the arrays hold no pairs")
        if self.manifest is not None and x0.shape != (self.manifest["rows"], self.manifest["length"]):
            said = f"{self.manifest['rows']} pairs of {self.manifest['length']} tokens"
            problem = f"x0.npy has shape {x0.shape}, {MANIFEST} says {said}"
            raise self._wrong(problem)
        self.times, self.seeds = times.reshape(-1), seeds.reshape(-1)
        super().__init__(x0)

    def __reduce__(self) -> tuple:
        return ReflowDataset, (self.folder,)  # a worker process maps the files itself

    @property
    def nbytes(self) -> int:
        return self._tokens.nbytes + self._xt.nbytes

    def digest(self) -> str:
        """Of the pairs, wherever they lie."""
        return array_digest(self._tokens, self._xt, self.times, self.seeds)

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

    def check(
        self,
        reader: Mapping[str, Any],
        *,
        use_seeds: bool,
        from_noise: bool = False,
        coupled: bool = False,
    ) -> None:
        """Refuse pairs that a training run cannot use.

        Args:
            reader: what the run is (``dataloader.pair_settings``): process, tokenizer, length, ...
            use_seeds: it replays the mask noise of the stored seeds.
            from_noise: it takes pairs from t = 1 alone.
            coupled: it takes pairs whose noise decided every draw.

        Raises:
            UserError: one line with the setting that does not fit.
        """
        where = f"the pairs in {self.folder}"
        if self.manifest is not None and self.manifest["process"] != reader["process"]:
            maker = self.manifest["algorithm"]["name"]
            raise _other_process(self.folder, f"pairs of algo={maker}", self.manifest["process"])
        self._check_length(reader)
        if self.manifest is None:
            log.warning(
                "%s have no %s: who made them is unknown; shapes and ids are checked", where, MANIFEST
            )
            self._check_process(reader["tokenizer"]["mask_id"])
        self.check_text(reader)
        if self.manifest is not None:
            _check_noise(self.manifest, reader, use_seeds, where)
        if coupled and self.manifest is not None and "coupled" not in self.manifest:
            problem = f"{where} were drawn apart from their noise"
            hint = "use pairs made with sampling.predictor=coupled, or algo.ignore_seed=True"
            raise UserError(KEY, str(self.folder), problem, hint)
        if use_seeds and (np.asarray(self.seeds) == NO_SEED).all():
            raise UserError("algo.ignore_seed", False, f"{where} carry no seeds", "use algo.ignore_seed=True")
        earliest = float(np.asarray(self.times).min(initial=1.0))
        if from_noise and earliest < 1:
            problem = f"{where} start at times down to {earliest:.2g}, a single step starts at 1"
            hint = "use pairs made with reflow.perturbed_rect=False, or algo.onestep_mode=False"
            raise UserError("algo.onestep_mode", True, problem, hint)

    def check_text(self, reader: Mapping[str, Any]) -> None:
        """Refuse pairs whose texts a run cannot read: of another length or vocabulary, or damaged.

        Args:
            reader: as in ``check``.

        Raises:
            UserError: one line with the setting that does not fit.
        """
        where, tokenizer = f"the pairs in {self.folder}", reader["tokenizer"]
        self._check_length(reader)
        if self.manifest is None:
            hint = "use the tokenizer of the pairs"
            self.check_values(tokenizer["vocab_size"], tokenizer["mask_id"], hint)
        else:
            _check_tokenizer(self.manifest["tokenizer"], tokenizer, where)
            self.check_values(self.manifest["tokenizer"]["vocab_size"], self.manifest["tokenizer"]["mask_id"])

    def _check_length(self, reader: Mapping[str, Any]) -> None:
        if self.length != reader["length"]:
            problem = f"the pairs in {self.folder} are {self.length} tokens long"
            raise UserError("model.length", reader["length"], problem, f"use model.length={self.length}")

    def check_values(self, vocab_size: int, mask_id: int | None, hint: str | None = None) -> None:
        """Look at every number: a manifest is no proof of what the arrays hold.

        Args:
            vocab_size: ids are below it.
            mask_id: the id of the mask, which is in no text; None for uniform-state pairs.
            hint: what to do where ids are outside the vocabulary.

        Raises:
            UserError: times outside [0, 1], ids outside the vocabulary, masks in the texts, rows that nobody
                wrote.
        """
        times = np.asarray(self.times)
        if not ((times >= 0) & (times <= 1)).all():
            raise self._wrong("ts.npy has times outside [0, 1]")
        for start in range(0, len(self), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            xt, x0 = np.asarray(self._xt[part]), np.asarray(self._tokens[part])
            for name, ids in (("xT", xt), ("x0", x0)):
                if ids.min() < 0 or ids.max() >= vocab_size:
                    problem = f"{name}.npy has ids {ids.min()}..{ids.max()}, this tokenizer has {vocab_size}"
                    raise self._wrong(problem, hint)
            if mask_id is not None and (x0 == mask_id).any():
                problem = f"x0.npy holds the mask (id {mask_id})"
                raise self._wrong(problem, "generate without noise_removal=none")
            self._check_clean(np.flatnonzero(times[part] == 0), xt, x0, start, mask_id)

    def _check_clean(
        self, rows: np.ndarray, xt: np.ndarray, x0: np.ndarray, start: int, mask_id: int | None
    ) -> None:
        """Look at the rows of t = 0 among those from ``start`` on: xt is text, and not only zeros."""
        written = xt[rows].any(-1) | x0[rows].any(-1) | (self.seeds[start + rows] != 0)
        if not written.all():
            problem = f"row {start + rows[~written][0]} holds zeros alone: nobody wrote it"
            raise self._wrong(problem)
        if mask_id is not None and (masked := (xt[rows] == mask_id).any(-1)).any():
            problem = f"ts.npy says t = 0 of row {start + rows[masked][0]}, which has masks in xT.npy"
            raise self._wrong(problem)

    def _wrong(self, problem: str, hint: str | None = None) -> UserError:
        first = "" if self.manifest is None else "delete the folder and "
        return UserError(KEY, str(self.folder), problem, hint or f"{first}make the pairs again")

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
    mine, other = _KINDS[process], _KINDS["uniform" if process == "absorbing" else "absorbing"]
    hint = f"use pairs that {other} made, or algo={'im-redi' if process == 'absorbing' else 'rectification'}"
    return UserError(KEY, str(folder), f"{what} are for {mine}, and this is {other}", hint)


def _check_tokenizer(made: Mapping[str, Any], mine: Mapping[str, Any], where: str) -> None:
    """Compare the tokenizer of the pairs with that of who reads them."""
    if any(made[key] != mine[key] for key in ("vocabulary", "vocab_size", "mask_id")):
        theirs, ours = (
            f"{tokenizer['vocab_size']} ids"
            + ("" if tokenizer["mask_id"] is None else f", mask {tokenizer['mask_id']}")
            for tokenizer in (made, mine)
        )
        problem = f"{where} were made with {made['name']} ({theirs}), this one has {ours}, or other words"
        raise UserError("data.tokenizer_name_or_path", mine["name"], problem, f"use {made['name']}")


def _check_noise(manifest: dict[str, Any], reader: Mapping[str, Any], use_seeds: bool, where: str) -> None:
    """Compare the noise of the pairs with that of who reads them."""
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
