"""Saved tensors in the memory of the host, as graph nodes that start a copy and that wait for it.

    offload_start(tensor) -> host           from where on the tensor is copied to the host
    offload_wait(host, tensor) -> host      until where it must stay on the device
    reload_start(host, device) -> tensor    from where on there is memory for it on the device again
    reload_wait(tensor) -> tensor           from where on it may be read

A wait hands on the very tensor it is given, but is no view that costs nothing. Between the two the
copy runs on a GPU beside kernels (see `Link`); where they stand is planned
(`passes.checkpoints.transfers`). On a CPU, where both memories are one, a start copies and a wait
does nothing: nothing is gained there, but the graph is the one that a GPU would run.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("deepcompile", "FRAGMENT")
for _schema in (
    "offload_start(Tensor tensor) -> Tensor",
    "offload_wait(Tensor(a) host, Tensor tensor) -> Tensor(a)",
    "reload_start(Tensor host, *, Device device) -> Tensor",
    "reload_wait(Tensor(a) tensor) -> Tensor(a)",
):
    _LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))


@dataclass(frozen=True, eq=False)
class _Copy:
    """A copy that is waited for: when it is done, and both of its ends."""

    event: Any
    source: Tensor
    made: Tensor

    def is_abandoned(self) -> bool:
        """Whether nobody has what it makes any more, as after a run that failed."""
        return sys.getrefcount(self.made) == _references_when_alone()


@functools.cache
def _references_when_alone() -> int:
    """What `sys.getrefcount` says of a tensor that only a `_Copy` holds."""
    copy = _Copy(None, torch.empty(0), torch.empty(0))
    return sys.getrefcount(copy.made)


class Link:
    """Copies between a GPU and the host, on a stream for each direction: the two run at once.

    A copy begins when the work queued so far is done and the copies before it in its direction. To
    wait for it makes the current stream wait, not the host. Until then both ends are held here, so
    that their memory cannot be given to others while it is read and written; from then on it can,
    to work on the current stream. `Tensor.record_stream` would let the allocator keep it for
    longer: until the host sees that everything queued on the copying stream has run, which is later
    than what is simulated. Pinned memory is from torch's caching allocator, which uses it again
    once the copies that it has been told of are done.

    Args:
        device: the GPU.
        cuda: `torch.cuda`, or what stands in for it in a test.
    """

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        self._device = device
        self._cuda = cuda
        self._to_host = cuda.Stream(device)
        self._to_device = cuda.Stream(device)
        self._copies: dict[int, _Copy] = {}

    def offload_start(self, tensor: Tensor) -> Tensor:
        """Pinned memory that the tensor is being copied to."""
        return self._start(tensor, self._pinned(tensor), self._to_host)

    def offload_wait(self, host: Tensor) -> None:
        """Let what is queued from now on run when the tensor is on the host."""
        self._wait(host, self._to_host)

    def reload_start(self, host: Tensor) -> Tensor:
        """Memory of the device that the tensor is being copied to."""
        return self._start(host, self._on_device(host), self._to_device)

    def reload_wait(self, tensor: Tensor) -> None:
        """Let what is queued from now on run when the tensor is on the device."""
        self._wait(tensor, self._to_device)

    def _start(self, source: Tensor, made: Tensor, stream: Any) -> Tensor:
        self._forget_abandoned()
        # What made the source may be queued, and what last used the memory of the result.
        stream.wait_stream(self._cuda.current_stream(self._device))
        with self._cuda.stream(stream):
            made.copy_(source, non_blocking=True)
            event = self._cuda.Event()
            event.record(stream)
        self._copies[made.data_ptr()] = _Copy(event, source, made)
        return made

    def _wait(self, made: Tensor, stream: Any) -> None:
        current = self._cuda.current_stream(self._device)
        copy = self._copies.pop(made.data_ptr(), None)
        if copy is None:  # not the tensor that was handed out: wait for all copies
            current.wait_stream(stream)
        else:
            current.wait_event(copy.event)

    def _forget_abandoned(self) -> None:
        for address, copy in list(self._copies.items()):
            if copy.is_abandoned() and copy.event.query():
                self._copies.pop(address, None)

    def _pinned(self, tensor: Tensor) -> Tensor:
        return _like(tensor, device="cpu", pin_memory=True)

    def _on_device(self, tensor: Tensor) -> Tensor:
        return _like(tensor, device=self._device)


class SameMemory:
    """In place of a link for a device whose memory is the host's: copies at once."""

    def offload_start(self, tensor: Tensor) -> Tensor:
        """A copy of the tensor."""
        return _like(tensor).copy_(tensor)

    def offload_wait(self, host: Tensor) -> None:
        """Nothing: it has been copied."""

    def reload_start(self, host: Tensor) -> Tensor:
        """A copy of the tensor."""
        return _like(host).copy_(host)

    def reload_wait(self, tensor: Tensor) -> None:
        """Nothing: it has been copied."""


def link(device: torch.device) -> Link | SameMemory:
    """The one between a device and the host."""
    if device.type != "cuda":
        return SameMemory()
    return _link(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _link(number: int) -> Link:
    return Link(torch.device("cuda", number))


def _like(tensor: Tensor, **where: Any) -> Tensor:
    """New memory for a tensor as it lies."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, **where)


def _offload_start(tensor: Tensor) -> Tensor:
    return link(tensor.device).offload_start(tensor)


def _offload_wait(host: Tensor, tensor: Tensor) -> Tensor:
    link(tensor.device).offload_wait(host)
    return host


def _reload_start(host: Tensor, *, device: torch.device) -> Tensor:
    return link(device).reload_start(host)


def _reload_wait(tensor: Tensor) -> Tensor:
    link(tensor.device).reload_wait(tensor)
    return tensor


def _fake_offload_start(tensor: Tensor) -> Tensor:
    return _like(tensor, device="cpu")


def _fake_reload_start(host: Tensor, *, device: torch.device) -> Tensor:
    return _like(host, device=device)


def _first(tensor: Tensor, *others: Tensor) -> Tensor:
    return tensor


for _name, _real, _fake in (
    ("offload_start", _offload_start, _fake_offload_start),
    ("offload_wait", _offload_wait, _first),
    ("reload_start", _reload_start, _fake_reload_start),
    ("reload_wait", _reload_wait, _first),
):
    _LIBRARY.impl(_name, _real, "CompositeExplicitAutograd")
    torch.library.register_fake(f"deepcompile::{_name}", _fake, lib=_LIBRARY)

OFFLOAD_START = torch.ops.deepcompile.offload_start.default
OFFLOAD_WAIT = torch.ops.deepcompile.offload_wait.default
RELOAD_START = torch.ops.deepcompile.reload_start.default
RELOAD_WAIT = torch.ops.deepcompile.reload_wait.default
STARTS = frozenset((OFFLOAD_START, RELOAD_START))
WAITS = frozenset((OFFLOAD_WAIT, RELOAD_WAIT))
