"""Kernels on CPU memory by Triton's interpreter (`TRITON_INTERPRET=1`): slow, for their numbers."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..codegen.triton_function import TritonFunction
from ..codegen.triton_spelling import POINTER
from ..ir.interpret import TORCH_DTYPES
from .device_memory import DeviceMemory
from .driver import DeviceGraph, Event, Loaded, NotCapturable
from .triton_interpreter import install

_LAUNCH = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_void_p,
    *[ctypes.c_uint] * 7,
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.c_void_p,
)
_POINTED: Mapping[str, torch.dtype] = {
    pointer: TORCH_DTYPES[dtype]
    for dtype, pointer in POINTER.items()
    if dtype != "f8e4m3"  # bytes, for kernels
}
_NUMBERS: Mapping[str, Any] = {"i64": ctypes.c_int64, "i32": ctypes.c_int32}


class _Arrived:
    def query(self) -> bool:
        return True


class InterpretedDriver:
    """A `Driver` on the CPU."""

    def __init__(self) -> None:
        install()
        self.device = torch.device("cpu")
        self.name = "interpreter"
        self.memory = DeviceMemory(self.device)
        self._functions: list[tuple[Any, TritonFunction]] = []
        self._failure: BaseException | None = None
        # Where the interpreter is in its grid is a global of Triton's.
        self._lock = threading.Lock()
        # Kept: C calls it for as long as the driver lives.
        self._c_launch = _LAUNCH(self._launch)
        self.launch = ctypes.cast(self._c_launch, ctypes.c_void_p)

    def load(
        self, module: ModuleType, function: TritonFunction, divisible: frozenset[str]
    ) -> Loaded:
        self._functions.append((getattr(module, function.name), function))
        return Loaded(len(self._functions), function.warps * 32, 0)

    def error(self, status: int) -> Exception:
        failure, self._failure = self._failure, None
        return failure if isinstance(failure, Exception) else RuntimeError(str(failure))

    def current(self) -> AbstractContextManager[object]:
        return nullcontext()

    def stream(self) -> int:
        return 0

    def event(self) -> Event:
        return _Arrived()

    def host_memory(self, like: Tensor) -> Tensor:
        return torch.empty_like(like, device="cpu")

    def capturing(self) -> bool:
        return False

    def capture(self, run: Callable[[], None]) -> DeviceGraph:
        raise NotCapturable("Triton's interpreter has no graphs")

    def seconds(self, run: Callable[[], None]) -> float:
        raise RuntimeError("the time of Triton's interpreter says nothing about a GPU")

    # -- what C calls -----------------------------------------------------------------------------

    def _launch(self, handle: int, programs: int, *rest: Any) -> int:
        values = rest[-2]
        try:
            kernel, function = self._functions[handle - 1]
            arguments = [
                _argument(kind, value)
                for kind, value in zip(function.signature.values(), values, strict=False)
            ]
            with self._lock:
                self.run(kernel, programs, arguments)
        except BaseException as failure:
            self._failure = failure
            return 1
        return 0

    def run(self, kernel: Any, programs: int, arguments: list[Any]) -> None:
        """Run a function; a place to look at launches, or to keep them."""
        kernel[(programs,)](*arguments)


def _argument(kind: str, value: int) -> Any:
    """What the interpreter takes for the argument of type `kind` that lies at address `value`."""
    if kind in _NUMBERS:
        return _NUMBERS[kind].from_address(value).value
    dtype = _POINTED[kind]
    address = ctypes.c_void_p.from_address(value).value
    if not address:
        return torch.empty(0, dtype=dtype)
    memory = (ctypes.c_char * dtype.itemsize).from_address(address)
    return torch.frombuffer(memory, dtype=dtype)
