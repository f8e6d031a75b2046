"""A device that this machine does not have: memory of the CPU that goes by another name.

Its tensors refuse to meet those of the CPU, to become numpy arrays and so on, as tensors on a GPU do, and the
code takes the ways that it takes off the CPU. What is computed is the CPU's own: so numbers can be compared.
Reads by the host, for which a GPU would have to wait, are counted.

This file, run as a program, does the jobs of a folder on the CPU and on that device.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

ROOT = Path(__file__).resolve().parent.parent
NAME = "remote"
aten = torch.ops.aten
# Their result, or its shape, is a number that the host has to know.
READS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "unique_consecutive"}


class RemoteTensor(Tensor):
    """A tensor on the device; ``there`` is its content."""

    there: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, there: Tensor) -> RemoteTensor:
        made = Tensor._make_wrapper_subclass(
            cls,
            there.size(),
            strides=there.stride(),
            storage_offset=there.storage_offset(),
            dtype=there.dtype,
            device=f"{NAME}:0",
        )
        made.there = there
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> RemoteTensor:
        made = RemoteTensor(self.there.detach().clone()).requires_grad_(self.requires_grad)
        made._is_param = getattr(self, "_is_param", False)
        return memo.setdefault(id(self), made)

    def __reduce_ex__(self, protocol: int) -> Any:
        # In a file it is a tensor as those of a GPU are, which are read back on the CPU.
        return self.there.detach().__reduce_ex__(protocol)

    @property
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)

    @data.setter
    def data(self, value: RemoteTensor) -> None:
        Tensor.data.__set__(self, value)
        self.there = value.there

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self, **_: Any) -> str:
        return f"{NAME}:{self.there}"


class RemoteDevice(TorchDispatchMode):
    """While it is entered, ``torch.zeros(..., device="remote")`` and the like work; counts ``reads``."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():  # what is made of other operations comes whole there
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        name = func.overloadpacket.__name__
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if any(isinstance(tensor, RemoteTensor) for tensor in tensors):
            asked = kwargs.get("device")
            home = name == "_to_copy" and asked is not None and not is_remote(asked)
            home = home or (name == "copy_" and not isinstance(args[0], RemoteTensor))
            by_mask = name in ("index", "index_put_", "index_put") and any(
                isinstance(value, Tensor) and value.dtype == torch.bool for value in args[1]
            )
            if home or by_mask or name in READS:
                self.reads[self._caller()] += 1
        elif name == "_to_copy" and kwargs.get("device") is not None and is_remote(kwargs["device"]):
            self.sent[self._caller()] += 1
        return compute(func, args, kwargs)

    @staticmethod
    def _caller() -> str:
        frame = sys._getframe(2)
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(ROOT) and ".venv" not in path.parts and path != Path(__file__):
                return f"{path.relative_to(ROOT)}:{frame.f_lineno}"
            frame = frame.f_back
        return "elsewhere"


def is_remote(device: Any) -> bool:
    return torch.device(device).type == NAME


def compute(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """One operation, where its tensors are.

    Raises:
        RuntimeError: they are not all in one place.
    """
    name, kwargs = func.overloadpacket.__name__, dict(kwargs)
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    remote = any(isinstance(tensor, RemoteTensor) for tensor in tensors)
    if name == "copy_":
        remote = isinstance(args[0], RemoteTensor)
    elif remote and name != "_to_copy":
        # Plain numbers may come along, and indices of the CPU into a tensor elsewhere.
        met = [*tree_leaves((args[0], args[2:], kwargs))] if name.startswith("index") else tensors
        if any(isinstance(t, Tensor) and not isinstance(t, RemoteTensor) and t.dim() > 0 for t in met):
            shapes = [(tuple(t.shape), t.device.type) for t in tensors]
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, not {shapes}")
    if kwargs.get("device") is not None:
        remote = is_remote(kwargs["device"])
        kwargs["device"] = torch.device("cpu") if remote else kwargs["device"]
        kwargs.pop("pin_memory", None)

    def content(value: Any) -> Any:
        return value.there if isinstance(value, RemoteTensor) else value

    result = func(*tree_map(content, args), **tree_map(content, kwargs))
    if not remote:
        return result
    mine = {id(content(tensor)): tensor for tensor in tensors}  # what was written in place keeps its name

    def wrapped(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) in mine:
            return mine[id(value)]
        with torch.inference_mode(value.is_inference()):  # a view of a tensor from outside belongs there
            return RemoteTensor(value)

    return tree_map(wrapped, result)


# The jobs ------------------------------------------------------------------------------------------------


def serve(folder: Path) -> None:
    """Do the jobs of ``folder``/jobs.json on both devices (numbered ones on the remote one alone); leave in
    ``folder``/given what each gave."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from config.cli import compose_config
    from tasks import MODES

    register()
    for name, words in json.loads((folder / "jobs.json").read_text()).items():
        for device in (NAME,) if name[-1].isdigit() else ("cpu", NAME):
            given: dict[str, Any] = {}
            try:
                cfg = compose_config([word.format(device=device) for word in words], warn=False)
                if device == "cpu":
                    given["result"] = MODES[cfg.mode](cfg)
                else:
                    with RemoteDevice() as mode, everything_there():
                        given["result"] = MODES[cfg.mode](cfg)
                    given["reads"], given["sent"] = dict(mode.reads), dict(mode.sent)
            except BaseException:
                given = {"error": traceback.format_exc()}
            (folder / "given" / f"{name}.{device}.json").write_text(json.dumps(given, default=str))


def register() -> None:
    """Make PyTorch know the name of the device."""
    from torch.utils import backend_registration

    class Module(backend_registration._DummyBackendModule):
        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.bfloat16]

    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Module())
    # A module on its way to a GPU keeps its parameters the same objects.
    torch.__future__.set_swap_module_params_on_conversion(True)


@contextmanager
def everything_there() -> Iterator[None]:
    """Whatever chooses a device chooses this one."""
    from unittest.mock import patch

    from lightning.pytorch.accelerators import CPUAccelerator
    from lightning.pytorch.strategies import SingleDeviceStrategy

    from tasks.processes import Processes

    class Accelerator(CPUAccelerator):
        def setup_device(self, device: torch.device) -> None:
            pass

    def strategy(*_: Any) -> SingleDeviceStrategy:
        return SingleDeviceStrategy(torch.device(NAME, 0), accelerator=Accelerator())

    chosen = {
        "launch": lambda cfg: Processes(0, 1, torch.device(NAME, 0)),
        "evaluation_device": lambda cfg: torch.device(NAME, 0),
        "strategy_for": strategy,
    }
    patches = [
        patch.object(module, name, choice)
        for module in [m for n, m in sys.modules.items() if n.startswith("tasks.")]
        for name, choice in chosen.items()
        if hasattr(module, name)
    ]
    # These two make tensors where no dispatch mode sees it.
    patches += [patch.object(torch, name, moved(getattr(torch, name))) for name in ("tensor", "as_tensor")]
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in patches:
            one.stop()


def moved(make: Any) -> Any:
    """``make``, a function of values, but with its tensor moved to the device only then."""

    def made(values: Any, *, device: Any = None, **settings: Any) -> Tensor:
        if isinstance(values, Tensor):
            return values.to(device=device, **settings)
        tensor = make(values, **settings)
        return tensor if device is None else tensor.to(device)

    return made


def on_both(folder: Path, jobs: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
    """What every job gave on both devices, by its name; ``{device}`` in words becomes the device's."""
    (folder / "given").mkdir(parents=True)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, __file__, str(folder)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = {name: {} for name in jobs}
    for file in (folder / "given").iterdir():
        name, device, _ = file.name.rsplit(".", 2)
        found[name][device] = json.loads(file.read_text())
    return found


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
