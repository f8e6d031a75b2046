"""Files of torch.save, read without running anything that is in them.

A pickle is a program: it calls whatever functions it names. Here it may build tensors and plain containers;
every other name gives a ``Stub``, which swallows all that is done to it. torch.load with a pickle module of
one's own would not do: it hands TorchScript archives to torch.jit, and unpacks tar files of its first years.
"""

from __future__ import annotations

import functools
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple

import torch
from torch import Tensor

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_LOCAL_HEADER = 30  # bytes of a zip entry's own header in front of its name

# What torch.save writes beside tensors is small: a few bytes for a mark, some MB for a large model's pickle.
LARGEST_MARK = 2**10
LARGEST_PICKLE = 2**28

DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}


class Stub:
    """Stands for an object of a foreign class, of which nothing is kept but the name of the class."""

    what: ClassVar[str] = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> Stub:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Stub:
        return self

    def _swallow(*args: Any) -> None:
        """Any change, of an instance or of the class itself (a pickle may try both)."""

    __setstate__ = __setitem__ = append = extend = add = _swallow


class _Builder:
    """A function that pickles may call; they cannot change it."""

    __slots__ = ("_build",)

    def __init__(self, build: Callable[..., Any]) -> None:
        self._build = build

    def __call__(self, *args: Any) -> Any:
        return self._build(*args)

    def __setstate__(self, state: Any) -> None:
        pass


class _Ordered(dict):
    """An OrderedDict, whose attributes (``_metadata``) are dropped."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _StorageType(NamedTuple):
    dtype: torch.dtype


class _Storage(NamedTuple):
    content: torch.UntypedStorage
    dtype: torch.dtype


def _tensor(
    storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any
) -> Tensor:
    """What torch._utils._rebuild_tensor_v2 builds, without gradients and hooks; bounds are checked."""
    return _tensor_of(storage, storage.dtype, offset, size, stride)


def _tensor_v3(
    storage: _Storage, offset: int, size: Any, stride: Any, grad: Any, hooks: Any, *rest: Any
) -> Tensor:
    """As ``_tensor`` for dtypes without a storage type of their own."""
    return _tensor_of(storage, rest[0], offset, size, stride)


def _tensor_of(storage: _Storage, dtype: torch.dtype, offset: int, size: Any, stride: Any) -> Tensor:
    if storage.content.data_ptr() % dtype.itemsize:
        raise pickle.UnpicklingError("a tensor is not aligned")
    whole = torch.empty(0, dtype=dtype).set_(storage.content)
    return whole.as_strided(tuple(size), tuple(stride), offset)


def _parameter(data: Tensor, *rest: Any) -> Tensor:
    return data


def _of_type(build: _Builder, kind: Any, arguments: tuple[Any, ...], state: Any) -> Any:
    """A tensor with attributes or of a subclass: its numbers alone."""
    if not isinstance(build, _Builder):
        return Stub()
    return build(*arguments)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Builder(lambda *pairs: _Ordered(*pairs)),
    ("torch", "Size"): _Builder(tuple),
    ("torch._utils", "_rebuild_tensor"): _Builder(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Builder(_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): _Builder(_tensor_v3),
    ("torch._utils", "_rebuild_parameter"): _Builder(_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): _Builder(_parameter),
    ("torch._tensor", "_rebuild_from_type_v2"): _Builder(_of_type),
    **{("torch", name): dtype for name, dtype in DTYPES.items()},
    **{("torch", name): _StorageType(dtype) for name, dtype in STORAGES.items()},
    **{("torch.storage", name): _StorageType(dtype) for name, dtype in STORAGES.items()},
}


class InertUnpickler(pickle.Unpickler):
    """Builds tensors and plain containers; everything else becomes a ``Stub``.

    Args:
        file: the pickle.
        content: bytes of a storage, by its key and size in bytes.
    """

    def __init__(self, file: BinaryIO, content: Callable[[str, int], torch.UntypedStorage]) -> None:
        super().__init__(file, encoding="utf-8")
        self._content = content
        self._stubs: dict[tuple[str, str], type[Stub]] = {}

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the pickle stands for: never what it stands for elsewhere."""
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if (module, name) not in self._stubs:
            what = " ".join(f"{module}.{name}".split())[:100]
            self._stubs[module, name] = type("Stub", (Stub,), {"what": what})
        return self._stubs[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """A storage: ("storage", type, key, device, number of elements, view)."""
        kind, storage_type, key, _, numel, *view = pid
        if kind != "storage" or any(view):
            raise pickle.UnpicklingError("an unknown kind of storage")
        if not isinstance(storage_type, _StorageType):
            return Stub()
        return _Storage(self._content(str(key), numel * storage_type.dtype.itemsize), storage_type.dtype)


def read_torch_file(path: Path) -> Any:
    """The content of a file of torch.save on the CPU, with a ``Stub`` for every foreign object.

    Tensors of today's zip format are views of the file, read from the disk when they are used. The checksums
    that torch.save wrote beside them are compared first (about a second a GB), once for each state of a file.

    Raises:
        Exception: of many kinds, when the file is no such file or is damaged.
    """
    with open(path, "rb") as file:
        if zipfile.is_zipfile(file):
            return _read_zip(path)
        file.seek(0)
        return _read_legacy(file, path.stat().st_size)


def _read_zip(path: Path) -> Any:
    status = path.stat()
    mapped = torch.UntypedStorage.from_file(str(path), False, status.st_size)
    with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        root = next((name[: -len("data.pkl")] for name in entries if name.count("/") == 1 and
                     name.endswith("/data.pkl")), None)  # fmt: skip
        if root is None:
            raise pickle.UnpicklingError("not a file of torch.save")
        _refuse_odd_entries(entries, root, status.st_size)
        _compare_checksums(str(path), (status.st_ino, status.st_size, status.st_mtime_ns))
        if f"{root}byteorder" in entries and archive.read(f"{root}byteorder").decode() != sys.byteorder:
            raise pickle.UnpicklingError("written on a machine with another byte order")

        def content(key: str, num_bytes: int) -> torch.UntypedStorage:
            info = entries[f"{root}data/{key}"]
            file.seek(info.header_offset)
            header = file.read(_LOCAL_HEADER)
            start = (
                info.header_offset
                + _LOCAL_HEADER
                + sum(
                    int.from_bytes(header[at : at + 2], "little")
                    for at in (26, 28)  # name, extra field
                )
            )
            if not 0 <= num_bytes <= info.file_size:
                raise pickle.UnpicklingError("a damaged tensor")
            if start + num_bytes > mapped.nbytes():
                raise pickle.UnpicklingError("the file ends too early")
            return mapped[start : start + num_bytes] if num_bytes else torch.UntypedStorage(0)

        with archive.open(f"{root}data.pkl") as pickled:
            return InertUnpickler(pickled, content).load()


def _refuse_odd_entries(entries: dict[str, zipfile.ZipInfo], root: str, file_size: int) -> None:
    """Raise at what torch.save does not write and what a few bytes on the disk could fill the memory with."""
    for name, info in entries.items():
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise pickle.UnpicklingError(f"its part {name[:100]} is compressed, which torch.save does not do")
        limit = file_size
        if name == f"{root}data.pkl":
            limit = LARGEST_PICKLE
        elif not name.startswith(f"{root}data/"):
            limit = LARGEST_MARK
        if info.file_size > min(limit, file_size):
            raise pickle.UnpicklingError(
                f"its part {name[:100]} has {info.file_size:,} bytes, torch.save writes at most {limit:,}"
            )


@functools.lru_cache(maxsize=64)  # a file is read twice where its settings are looked at first
def _compare_checksums(path: str, state: tuple[int, ...]) -> None:
    """Raise when bytes of the file, in a ``state`` of it, are not those that torch.save wrote."""
    with zipfile.ZipFile(path) as archive:
        if wrong := archive.testzip():
            raise pickle.UnpicklingError(f"damaged: the checksum of its part {wrong[:100]} is another one")


def _read_legacy(file: BinaryIO, file_size: int) -> Any:
    """The format before PyTorch 1.6: four pickles, a list of storages, then their bytes."""

    def nothing(key: str, num_bytes: int) -> torch.UntypedStorage:
        raise pickle.UnpicklingError("a tensor where none belongs")

    storages: dict[str, torch.UntypedStorage] = {}

    def content(key: str, num_bytes: int) -> torch.UntypedStorage:
        if key not in storages:
            if not 0 <= num_bytes + sum(s.nbytes() for s in storages.values()) <= file_size:
                raise pickle.UnpicklingError("the file ends too early")
            storages[key] = torch.UntypedStorage(num_bytes)
        return storages[key]

    magic, protocol, system = (InertUnpickler(file, nothing).load() for _ in range(3))
    if magic != _LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL or not isinstance(system, dict):
        raise pickle.UnpicklingError("not a file of torch.save")
    if system.get("little_endian", True) != (sys.byteorder == "little"):
        raise pickle.UnpicklingError("written on a machine with another byte order")
    result = InertUnpickler(file, content).load()
    for key in InertUnpickler(file, nothing).load():
        storage = storages[str(key)]
        file.read(8)  # the number of elements, known already
        data = file.read(storage.nbytes())
        if len(data) != storage.nbytes():
            raise pickle.UnpicklingError("the file ends too early")
        if data:
            storage.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8).untyped_storage())
    return result
