"""A device that is not there: keeps what it is asked for, and can capture and replay it.

Kernels run on CPU memory under Triton's interpreter. During a capture nothing of ours runs, and
what ATen does then is kept to be done again at each replay, into the same memory: a graph that
would go wrong on a GPU gives wrong numbers here too.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from deepcompile.runtime.driver import DeviceGraph, Loaded, NotCapturable
from deepcompile.runtime.interpreted_driver import InterpretedDriver

FORBIDDEN = ("aten::_local_scalar_dense", "aten::nonzero")
"""What waits for the device, and cannot be captured."""


class RecordedGraph:
    """What happened in a capture."""

    def __init__(self, owner: RecordingDriver) -> None:
        self.actions: list[Callable[[], None]] = []
        self._owner = owner

    def replay(self) -> None:
        self._owner.log.append("replay")
        for action in self.actions:
            action()


class RecordingDriver(InterpretedDriver):
    """A driver with a `log` of what it was asked for; `streams` holds the current stream.

    Attributes:
        refuse: what a capture fails with, or None.
        times: what `seconds` answers, in turn.
        spills: bytes that a loaded kernel spills, by its number of elements in a tile.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []
        self.launches: list[str] = []
        self.current_stream = 7
        self.refuse: str | None = None
        self.user_captures = False
        self.times: list[float] = []
        self.spills: Callable[[Any], int] = lambda function: 0
        self._graph: RecordedGraph | None = None

    def load(self, module: Any, function: Any, divisible: frozenset[str]) -> Loaded:
        self.log.append(f"load {function.name} {','.join(sorted(divisible))}")
        loaded = super().load(module, function, divisible)
        return Loaded(loaded.handle, loaded.threads, 0, self.spills(function))

    def stream(self) -> int:
        return self.current_stream

    def capturing(self) -> bool:
        return self.user_captures

    def run(self, kernel: Any, programs: int, arguments: list[Any]) -> None:
        if self._graph is None:
            self.launches.append(kernel.__name__)
            super().run(kernel, programs, arguments)
            return
        self._graph.actions.append(lambda: InterpretedDriver.run(self, kernel, programs, arguments))

    def capture(self, run: Callable[[], None]) -> DeviceGraph:
        self.log.append("capture")
        if self.refuse is not None:
            raise NotCapturable(self.refuse)
        self._graph = graph = RecordedGraph(self)
        try:
            with _Keep(graph):
                run()
        except NotCapturable:
            raise
        except Exception as error:
            raise NotCapturable(str(error)) from error
        finally:
            self._graph = None
        return graph

    def seconds(self, run: Callable[[], None]) -> float:
        run()
        self.log.append("time")
        return self.times.pop(0)


class _Keep(TorchDispatchMode):
    """Keeps each call of ATen, to be made again into the tensors it made.

    Memory from outside is kept as an address only, as a device's graph does.
    """

    def __init__(self, graph: RecordedGraph) -> None:
        super().__init__()
        self._graph = graph
        self._made: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func.name() in FORBIDDEN:
            raise NotCapturable(f"{func} waits for the device")
        made = func(*args, **named)
        if func.is_view:
            return made
        leaves = [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
        if not func._schema.is_mutable:
            self._made |= {leaf.untyped_storage().data_ptr() for leaf in leaves}
        args, named = tree_map(self._hold, (args, named))
        targets = [self._hold(leaf) for leaf in leaves]

        def again() -> None:
            results = [leaf for leaf in tree_leaves(func(*args, **named)) if _is_tensor(leaf)]
            for target, result in zip(targets, results, strict=True):
                if target.data_ptr() != result.data_ptr():
                    target.copy_(result)

        self._graph.actions.append(again)
        if not func._schema.is_mutable:
            # Nothing has happened yet: what is there now must not matter.
            for leaf in leaves:
                if leaf.is_floating_point():
                    leaf.fill_(float("nan"))
        return made

    def _hold(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.untyped_storage().data_ptr() in self._made or not value.numel():
            return value.detach()
        span = 1 + sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True))
        memory = (ctypes.c_char * (span * value.element_size())).from_address(value.data_ptr())
        flat = torch.frombuffer(memory, dtype=value.dtype)
        return flat.as_strided(value.shape, value.stride())


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)
