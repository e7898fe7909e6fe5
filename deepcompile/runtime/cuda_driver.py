"""A GPU through CUDA's driver library and torch's streams, events and graphs."""

from __future__ import annotations

import ctypes
import re
import statistics
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..codegen.triton_build import compile_for
from ..codegen.triton_function import TritonFunction
from .driver import DeviceGraph, Event, Loaded, NotCapturable

LIBRARY = "libcuda.so.1"
_LOCAL_BYTES = 3
"""CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES"""
_DYNAMIC_SHARED = 8
"""CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES"""
_ALWAYS_SHARED = 48 << 10
_WARP = 32
_ENTRY = re.compile(r"\.entry\s+(\w+)\s*\(([^)]*)\)")
ROUNDS = 5
FLUSH = 256 << 20
"""Bytes written between timed runs, so that none finds its inputs in the cache."""


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
        # Graphs of one stream never run at the same time, so they share their memory.
        self._pools: dict[int, Any] = {}
        self._loaded: dict[Any, Loaded] = {}
        self._modules: list[ctypes.c_void_p] = []

    # -- code -------------------------------------------------------------------------------------

    def load(
        self, module: ModuleType, function: TritonFunction, divisible: frozenset[str]
    ) -> Loaded:
        key = module.__name__, function.name, function.warps, divisible
        found = self._loaded.get(key)
        if found is None:
            found = self._loaded[key] = self._load(module, function, divisible)
        return found

    def _load(
        self, module: ModuleType, function: TritonFunction, divisible: frozenset[str]
    ) -> Loaded:
        made = compile_for(module, function, self._capability, divisible)
        shared = int(made.metadata.shared)
        with self.current():
            image, handle = ctypes.c_void_p(), ctypes.c_void_p()
            self._check(self._library.cuModuleLoadData(ctypes.byref(image), made.asm["cubin"]))
            self._modules.append(image)
            name = str(made.metadata.name).encode()
            self._check(self._library.cuModuleGetFunction(ctypes.byref(handle), image, name))
            if shared > _ALWAYS_SHARED:
                self._check(self._library.cuFuncSetAttribute(handle, _DYNAMIC_SHARED, shared))
            local = ctypes.c_int()
            self._check(self._library.cuFuncGetAttribute(ctypes.byref(local), _LOCAL_BYTES, handle))
        hidden = hidden_arguments(made.asm["ptx"], function)
        assert handle.value is not None
        return Loaded(handle.value, function.warps * _WARP, shared, local.value, hidden)

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
        stream = self.stream()
        if stream not in self._pools:
            self._pools[stream] = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        try:
            with self._side_stream():
                graph.capture_begin(pool=self._pools[stream], capture_error_mode="thread_local")
                try:
                    run()
                finally:
                    graph.capture_end()
        except Exception as error:
            raise NotCapturable(f"{type(error).__name__}: {error}") from error
        return graph

    @contextmanager
    def _side_stream(self) -> Iterator[None]:
        """A stream other than the default one, which cannot be captured."""
        outside = torch.cuda.current_stream(self.device)
        side = torch.cuda.Stream(self.device)
        side.wait_stream(outside)
        with torch.cuda.stream(side):
            yield
        outside.wait_stream(side)

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


def hidden_arguments(ptx: str, function: TritonFunction) -> int:
    """How many pointers Triton has added behind the arguments of a function."""
    found = next((m for m in _ENTRY.finditer(ptx) if m[1] == function.name), None)
    if found is None:
        raise ValueError(f"no entry {function.name} in the PTX")
    return found[2].count(".param") - len(function.signature)
