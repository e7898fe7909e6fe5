"""A GPU through CUDA's driver library and torch's streams, events and graphs."""

from __future__ import annotations

import contextlib
import ctypes
import re
import statistics
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..codegen.triton_build import compile_for
from ..codegen.triton_function import TritonFunction
from .device_memory import DeviceMemory
from .driver import DeviceGraph, Event, Loaded, NotCapturable

LIBRARY = "libcuda.so.1"
_LOCAL_BYTES = 3
"""CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES"""
_DYNAMIC_SHARED = 8
"""CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES"""
_ALWAYS_SHARED = 48 << 10
_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING"""
_WARP = 32
_ENTRY = re.compile(r"\.entry\s+(\w+)\s*\(([^)]*)\)")
ROUNDS = 5
FLUSH = 256 << 20
"""Bytes written between timed runs, so that none finds its inputs in the cache."""


class _Side:
    """Where the graphs of one stream are captured, which itself may not be.

    Graphs of one stream never run at the same time, so they share their memory. Torch's pool of
    it ends with its last graph: `keeper` is one that stays.
    """

    def __init__(self, stream: torch.cuda.ExternalStream) -> None:
        self.stream = stream
        self.pool = torch.cuda.graph_pool_handle()
        self.keeper: torch.cuda.CUDAGraph | None = None

    def nothing(self, device: torch.device) -> Callable[[], None]:
        """Work that does not matter."""
        scrap = torch.zeros(1, device=device)

        def run() -> None:
            scrap.zero_()

        return run


class CudaDriver:
    """A `Driver` for one GPU.

    Args:
        device: with its index.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.name = torch.cuda.get_device_name(device)
        self._library = ctypes.CDLL(LIBRARY)
        self.launch = ctypes.cast(self._library.cuLaunchKernel, ctypes.c_void_p)
        major, minor = torch.cuda.get_device_capability(device)
        self._capability = major * 10 + minor
        self._threads = threading.local()
        self.memory = DeviceMemory(device)
        self._sides: dict[int, _Side] = {}
        self._capturing = threading.Lock()
        self._loaded: dict[Any, Loaded] = {}
        self._modules: list[ctypes.c_void_p] = []

    # -- code -------------------------------------------------------------------------------------

    def load(
        self, module: ModuleType, function: TritonFunction, divisible: frozenset[str]
    ) -> Loaded:
        key = code_key(module, function, divisible)
        found = self._loaded.get(key)
        if found is None:
            found = self._loaded[key] = self._load(module, function, divisible)
        return found

    def _load(
        self, module: ModuleType, function: TritonFunction, divisible: frozenset[str]
    ) -> Loaded:
        made = compile_for(module, function, self._capability, divisible)
        metadata = made.metadata
        shared = int(metadata.shared)
        for kind in ("global_scratch_size", "profile_scratch_size"):
            if getattr(metadata, kind, 0):
                raise RuntimeError(f"{function.name} needs memory of its own ({kind})")
        with self.current():
            image, handle = ctypes.c_void_p(), ctypes.c_void_p()
            self._check(self._library.cuModuleLoadData(ctypes.byref(image), made.asm["cubin"]))
            self._modules.append(image)
            name = str(metadata.name).encode()
            self._check(self._library.cuModuleGetFunction(ctypes.byref(handle), image, name))
            if shared > _ALWAYS_SHARED:
                self._check(self._library.cuFuncSetAttribute(handle, _DYNAMIC_SHARED, shared))
            local = ctypes.c_int()
            self._check(self._library.cuFuncGetAttribute(ctypes.byref(local), _LOCAL_BYTES, handle))
        hidden = hidden_arguments(made.asm["ptx"], function)
        assert handle.value is not None
        threads = int(metadata.num_warps) * _WARP
        return Loaded(handle.value, threads, shared, local.value, hidden)

    def error(self, status: int) -> Exception:
        text = ctypes.c_char_p()
        self._library.cuGetErrorString(status, ctypes.byref(text))
        said = (text.value or b"unknown error").decode()
        return RuntimeError(f"CUDA error {status}: {said}")

    def _check(self, status: int) -> None:
        if status:
            raise self.error(status)

    # -- streams ----------------------------------------------------------------------------------

    def current(self) -> AbstractContextManager[object]:
        if not getattr(self._threads, "ready", False):
            # A thread that has not called CUDA yet has no context, which launches need.
            with torch.cuda.device(self.device):
                torch.cuda.current_stream(self.device).query()
            self._threads.ready = True
        if torch.cuda.current_device() == self.device.index:
            return nullcontext()
        return torch.cuda.device(self.device)

    def stream(self) -> int:
        return int(torch._C._cuda_getCurrentRawStream(self.device.index))

    def event(self) -> Event:
        made = torch.cuda.Event()
        made.record(torch.cuda.current_stream(self.device))
        return made

    def host_memory(self, like: Tensor) -> Tensor:
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)

    # -- graphs -----------------------------------------------------------------------------------

    def capturing(self) -> bool:
        return torch.cuda.is_current_stream_capturing()

    def capture(self, run: Callable[[], None]) -> DeviceGraph:
        outside = torch.cuda.current_stream(self.device)
        with self._capturing:
            side = self._sides.get(outside.cuda_stream)
            if side is None:
                side = self._sides[outside.cuda_stream] = _Side(self._new_stream())
            side.stream.wait_stream(outside)
            try:
                with torch.cuda.stream(side.stream):
                    if side.keeper is None:
                        side.keeper = self._captured(side, side.nothing(self.device))
                    graph = self._captured(side, run)
            except Exception as error:
                # What CUDA has broken off still counts as going on for the allocator.
                with contextlib.suppress(Exception):
                    torch._C._cuda_endAllocateToPool(self.device.index, side.pool)
                del self._sides[outside.cuda_stream]
                raise NotCapturable(f"{type(error).__name__}: {error}") from error
            outside.wait_stream(side.stream)
            return graph

    def _captured(self, side: _Side, run: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=side.pool, capture_error_mode="thread_local")
        try:
            run()
        finally:
            graph.capture_end()
        return graph

    def _new_stream(self) -> torch.cuda.ExternalStream:
        """A stream that nobody else is given, as those of torch's own pool are."""
        handle = ctypes.c_void_p()
        self._check(self._library.cuStreamCreate(ctypes.byref(handle), _NON_BLOCKING))
        return torch.cuda.ExternalStream(handle.value, device=self.device)

    # -- time -------------------------------------------------------------------------------------

    def seconds(self, run: Callable[[], None]) -> float:
        flush = torch.empty(FLUSH, dtype=torch.uint8, device=self.device)
        run()
        spans = []
        for _ in range(ROUNDS):
            flush.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            spans.append((start, end))
        torch.cuda.synchronize(self.device)
        return statistics.median(start.elapsed_time(end) for start, end in spans) / 1e3


def code_key(module: ModuleType, function: TritonFunction, divisible: frozenset[str]) -> Any:
    """What code of a function depends on; a module's name stands for its text, without types."""
    signature = tuple(function.signature.items())
    how = function.warps, function.stages, function.contracts
    return module.__name__, function.name, signature, how, divisible


def hidden_arguments(ptx: str, function: TritonFunction) -> int:
    """How many pointers Triton has added behind the arguments of a function."""
    found = next((m for m in _ENTRY.finditer(ptx) if m[1] == function.name), None)
    if found is None:
        raise ValueError(f"no entry {function.name} in the PTX")
    return found[2].count(".param") - len(function.signature)
