"""Which files of a local folder hold the text of a role."""

from __future__ import annotations

import functools
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from data.formats import COMPRESSED, FORMATS, ending_of
from data.generated import Role
from errors import UserError
from utils import get_logger

log = get_logger("data")

# The words of ``datasets`` in the names of files and folders; of a role, the first kind that is there counts.
_ROLE_WORDS: dict[Role, tuple[tuple[str, ...], ...]] = {
    "train": (("train", "training"),),
    "validation": (("valid", "validation"), ("val",), ("dev",), ("test", "testing", "eval", "evaluation")),
}
_SEPARATOR = "[-._ 0-9]"
_STATE = "state.json"  # what datasets.save_to_disk writes about the files in its folder
_DESCRIPTIONS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "config.json", _STATE}
_DATASETS_CACHE = re.compile(r"cache-[0-9a-f]{16}(_\d{5}_of_\d{5})?\.arrow")
_BESIDE_DATA = {".md", ".py", ".yaml", ".yml", ".crc"}  # nobody takes these for text to train on
_SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Found:
    """The files of a role.

    Attributes:
        files: sorted.
        own: they are the role's own, by their names.
        left_out: other files that could be meant as well, and why they are not read.
        remarks: what else the user should know, each with its level.
    """

    files: list[Path]
    own: bool = False
    left_out: dict[Path, str] = field(default_factory=dict)
    remarks: tuple[tuple[int, str], ...] = ()

    def report(self, path: Path, key: str) -> None:
        """Log what may not be as it was meant."""
        for level, remark in self.remarks:
            log.log(level, "%s=%s: %s", key, path, remark)
        if self.left_out:
            log.warning("%s=%s: not read: %s", key, path, _listed(self.left_out, path))


def find_files(path: Path, role: Role, key: str, base: str | None = None) -> Found:
    """The files that ``path`` (file or folder) has for a role.

    In a folder in which any file or subfolder is named after a role (by a word between separators: train,
    valid, val, dev, test and their longer forms), the files of this role count, and of those for validation
    the first kind in that order; otherwise all. The name of a folder goes before the name of a file.

    Args:
        base: the split of which the role is a part (of the training split, for openwebtext-valid): its files
            count where the role has none; for validation they come first where they are test*.

    Raises:
        UserError: nothing readable there, or nothing for this role.
    """
    kinds = ", ".join(FORMATS)
    if not path.is_dir():
        if not path.is_file():
            raise UserError(key, str(path), "neither a file nor a folder", f"use one of {kinds}")
        if ending_of(path.name) is None:
            raise UserError(key, str(path), "a file of an unknown kind", f"use one of {kinds}")
        return Found([path])
    files, left_out = _sorted_out(path, key)
    if not files:
        hint = f"put {kinds} files there"
        problem = "the folder holds no data file" + _but(left_out, path)
        raise UserError(key, str(path), problem, hint)
    return _once(_chosen(files, left_out, path, role, key, base))


def _chosen(
    files: list[Path], left_out: dict[Path, str], path: Path, role: Role, key: str, base: str | None
) -> Found:
    """The part of a folder's files that ``find_files`` describes."""
    kinds_of_role = _ROLE_WORDS[role]
    words = [word for kind in kinds_of_role for word in kind]
    if base is not None and _has_word(base, words):
        kinds_of_role = (next((kind for kind in kinds_of_role if base in kind), (base,)), *kinds_of_role)
    for kind in kinds_of_role:
        if own := _named(files, path, kind):
            return Found(own, True, _of_role(left_out, files, path, kind), _contrary(own, path, role))
    if base is not None and (whole := _named(files, path, (base,))):
        return Found(whole, False, _of_role(left_out, files, path, (base,)))
    if _named(files, path, _all_words()):
        unread = {file: why for file, why in left_out.items() if _named([file], path, words)}
        problem = f"the folder has no file for {role}" + _but(unread, path)
        raise UserError(key, str(path), problem, f"name one of its files so, as in {words[0]}-0.jsonl")
    remark = f"no file is named after a role, so all {len(files)} are read"
    return Found(files, False, left_out, ((logging.INFO, remark),))


# What is there ----------------------------------------------------------------------------------------------


def _sorted_out(folder: Path, key: str) -> tuple[list[Path], dict[Path, str]]:
    """The data files below a folder, sorted; and what is left out, with the reason."""
    there = sorted(_visible(folder, key))
    states = {file.parent: _saved_files(file, key) for file in there if file.name == _STATE}
    names, files, left_out = set(there), [], {}
    for file in there:
        if file.name in _DESCRIPTIONS or file.suffix.lower() in _BESIDE_DATA:
            continue
        reason = _reason_against(file, folder, states.get(file.parent), names)
        if reason is None:
            files.append(file)
        elif reason:
            left_out[file] = reason
    return files, left_out


def _once(found: Found) -> Found:
    """The same without files that links show a second time."""
    real_folder = functools.cache(os.path.realpath)
    shown = {file: os.path.join(real_folder(file.parent), file.name) for file in found.files}
    originals = {place for file, place in shown.items() if not file.is_symlink()}
    files: dict[str, Path] = {}
    for file in sorted(found.files, key=lambda file: (file.is_symlink(), file)):
        # The hub's cache has links alone, two of which can lead to one file of the same content.
        target = os.path.realpath(file)
        files.setdefault(target if target in originals else shown[file], file)
    kept = set(files.values())
    twice = {file: "a link to another of them" for file in found.files if file not in kept}
    return replace(found, files=sorted(kept), left_out=found.left_out | twice)


def _reason_against(file: Path, folder: Path, saved: set[str] | None, there: set[Path]) -> str | None:
    """Why a file is not read; "": nobody would expect that it is; None: it is."""
    ending = ending_of(file.name)
    inner = file.relative_to(folder).parts
    if any(part.startswith("_") for part in inner):  # Spark's _SUCCESS, _temporary/, _delta_log/
        return "" if ending is None else "its name begins with _"
    if ending is None:
        return "its kind is unknown"
    if file.suffix.lower() == ".arrow":
        if saved is not None and file.name not in saved:
            return "not one of the files that state.json names"
        if saved is None and _DATASETS_CACHE.fullmatch(file.name):
            return "left there by map, filter or shuffle of datasets"
    if file.suffix.lower() in COMPRESSED and file.with_suffix("") in there:
        return f"it is there unpacked, as {file.stem}"
    return None


def _visible(folder: Path, key: str, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """All files below a folder but hidden ones, behind links too, unless these lead back to where they are.

    Raises:
        UserError: a folder that cannot be listed, a link to nothing.
    """
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        problem = f"the folder cannot be listed ({error.strerror})"
        raise UserError(key, str(folder), problem, "make it readable") from error
    for entry in entries:
        # Tools keep hidden things there: downloaders .cache, Spark .part-0.parquet.crc.
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _visible(Path(entry.path), key, above | {real})
        elif entry.is_file():
            yield Path(entry.path)
        elif entry.is_symlink() and ending_of(entry.name) is not None:
            problem = f"a link to {os.readlink(entry.path)}, where nothing is"
            raise UserError(key, entry.path, problem, "copy the file, or delete the link")


def _saved_files(state: Path, key: str) -> set[str] | None:
    """The arrow files of a folder of ``datasets.save_to_disk``; None: the file is of something else."""
    try:
        content = json.loads(state.read_text(encoding="utf-8"))
        names = {str(item["filename"]) for item in content["_data_files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    for name in sorted(names):
        if not (state.parent / name).is_file():
            problem = f"{_STATE} names {name}, which is not there"
            raise UserError(key, str(state.parent), problem, "copy the whole folder, or save it again")
    if content.get("_indices_data_files"):  # of datasets before 2
        problem = "it was saved with indices, a selection of its rows"
        raise UserError(key, str(state.parent), problem, "save it again after flatten_indices()")
    return names


# What it is named after -------------------------------------------------------------------------------------


def _all_words() -> list[str]:
    return [word for kinds in _ROLE_WORDS.values() for kind in kinds for word in kind]


def _has_word(name: str, words: Iterable[str]) -> bool:
    """Whether one of ``words`` stands in a name between separators, or with "set" behind it (devset)."""
    inner = "|".join(re.escape(word.lower()) for word in words)
    return re.search(rf"(?:^|{_SEPARATOR})(?:{inner})(?:set)?(?:{_SEPARATOR}|$)", name.lower()) is not None


def _named(files: Sequence[Path], folder: Path, words: Sequence[str]) -> list[Path]:
    """The files whose folders below ``folder`` have one of the words, or, if these have no role, they."""
    known, found = [*_all_words(), *words], []
    for file in files:
        *folders, name = file.relative_to(folder).parts
        deciding = [part for part in folders if _has_word(part, known)] or [name]
        if any(_has_word(part, words) for part in deciding):
            found.append(file)
    return found


def _of_role(
    left_out: dict[Path, str], files: list[Path], folder: Path, words: Sequence[str]
) -> dict[Path, str]:
    """What is left out, but for what is named after another role; and what is named after none."""
    known = [*_all_words(), *words]
    left_out = {
        file: reason
        for file, reason in left_out.items()
        if _named([file], folder, words) or not _named([file], folder, known)
    }
    named = set(_named(files, folder, known))
    return left_out | {file: "not named after a role" for file in files if file not in named}


def _contrary(own: list[Path], folder: Path, role: Role) -> tuple[tuple[int, str], ...]:
    """A remark on files of a role's folder that are themselves named after another role."""
    words = [word for kind in _ROLE_WORDS[role] for word in kind]
    others = [word for word in _all_words() if word not in words]
    odd = [file for file in own if _has_word(file.name, others) and not _has_word(file.name, words)]
    if not odd:
        return ()
    names = ", ".join(str(file.relative_to(folder)) for file in odd[:_SHOWN])
    return (
        (logging.WARNING, f"{len(odd)} files count for {role} by their folder, not by their name: {names}"),
    )


def _but(left_out: dict[Path, str], folder: Path) -> str:
    return f" but {_listed(left_out, folder)}" if left_out else ""


def _listed(left_out: dict[Path, str], folder: Path) -> str:
    shown = [f"{file.relative_to(folder)} ({why})" for file, why in list(left_out.items())[:_SHOWN]]
    more = len(left_out) - len(shown)
    return ", ".join([*shown, *([f"and {more} more"] if more else [])])
