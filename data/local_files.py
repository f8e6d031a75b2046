"""Which files of a local folder hold the text of a role."""

from __future__ import annotations

from pathlib import Path

from data.formats import FORMATS
from data.generated import Role
from errors import UserError
from utils import get_logger

log = get_logger("data")

_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json")
_ROLE_NAMES = {"train": ("train",), "validation": ("valid", "val", "dev", "test")}


def find_files(path: Path, role: Role, key: str, base: str | None = None) -> tuple[list[Path], bool]:
    """The files that ``path`` (file or folder) has for a role, sorted, and whether they are the role's own.

    In a folder in which any file or subfolder is named after a role (train*, valid*, val*, dev*, test*),
    the files of this role count, and of those for validation the first kind in that order; otherwise all.

    Args:
        base: the split of which the role is a part (of the training split, for openwebtext-valid): its files
            count where the role has none; for validation they come first where they are test*.

    Raises:
        ValueError: nothing readable there, or nothing for this role.
    """
    kinds = ", ".join(sorted(FORMATS))
    if path.is_file():
        if path.suffix not in FORMATS:
            raise UserError(key, str(path), "a file of an unknown kind", f"use one of {kinds}")
        return [path], False
    files = sorted(file for file in path.rglob("*") if file.suffix in FORMATS and _is_data(file, path))
    if not files:
        raise UserError(key, str(path), "the folder holds no data file", f"put {kinds} files there")
    names = _ROLE_NAMES[role]
    if base is not None and base.startswith(names):
        names = (base, *names)
    if own := _named(files, path, names):
        return own, True
    if base is not None and (whole := _named(files, path, (base,))):
        return whole, False
    if any(_named(files, path, others) for others in _ROLE_NAMES.values()):
        wanted = ", ".join(f"{name}*" for name in names)
        problem = f"the folder has no file for {role}"
        raise UserError(key, str(path), problem, f"name one of its files {wanted}")
    log.info("%s=%s: no file is named after a role, so all %d are read", key, path, len(files))
    return files, False


def _is_data(file: Path, folder: Path) -> bool:
    # datasets.save_to_disk leaves descriptions beside its arrow files, downloaders hidden folders.
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return not hidden and file.name not in (
        "dataset_info.json",
        "dataset_infos.json",
        "state.json",
        "dataset_dict.json",
    )


def _named(files: list[Path], folder: Path, names: tuple[str, ...]) -> list[Path]:
    for name in names:
        found = [
            file for file in files if any(part.startswith(name) for part in file.relative_to(folder).parts)
        ]
        if found:
            return found
    return []
