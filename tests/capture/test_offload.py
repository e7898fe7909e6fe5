"""Copies between a GPU and the host: what is queued where, and in which order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from deepcompile.capture.offload import (
    OFFLOAD_START,
    OFFLOAD_WAIT,
    RELOAD_START,
    RELOAD_WAIT,
    Link,
)

CPU = torch.device("cpu")


@dataclass(eq=False)
class FakeEvent:
    log: list[str]
    name: str
    is_done: bool = False

    def record(self, stream: FakeStream) -> None:
        self.log.append(f"{stream.name}: record {self.name}")

    def query(self) -> bool:
        return self.is_done


@dataclass(eq=False)
class FakeStream:
    log: list[str]
    name: str

    def wait_stream(self, other: FakeStream) -> None:
        self.log.append(f"{self.name}: wait for all of {other.name}")

    def wait_event(self, event: FakeEvent) -> None:
        self.log.append(f"{self.name}: wait for {event.name}")


@dataclass
class FakeCuda:
    """What `Link` uses of `torch.cuda`; it writes down what is queued, and where."""

    log: list[str] = field(default_factory=list)
    events: list[FakeEvent] = field(default_factory=list)
    streams: list[FakeStream] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.current = FakeStream(self.log, "compute")

    def Stream(self, device: torch.device) -> FakeStream:  # noqa: N802
        self.streams.append(FakeStream(self.log, ("down", "up")[len(self.streams)]))
        return self.streams[-1]

    def Event(self) -> FakeEvent:  # noqa: N802
        self.events.append(FakeEvent(self.log, f"event {len(self.events)}"))
        return self.events[-1]

    def current_stream(self, device: torch.device) -> FakeStream:
        return self.current

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before


class LinkOfFakes(Link):
    """A link whose memory is all of the CPU."""

    def __init__(self, cuda: FakeCuda) -> None:
        super().__init__(CPU, cuda)
        self.fake = cuda

    def _start(self, source: Tensor, made: Tensor, stream: Any) -> Tensor:
        made = made.as_subclass(Noting)
        made.cuda = self.fake
        return super()._start(source, made, stream)

    def _pinned(self, tensor: Tensor) -> Tensor:
        return self._on_device(tensor)


class Noting(Tensor):
    """A tensor that notes on which stream it is copied to."""

    cuda: FakeCuda

    def copy_(self, source: Tensor, non_blocking: bool = False) -> Tensor:  # type: ignore[override]
        how = "copy beside the host" if non_blocking else "copy"
        self.cuda.log.append(f"{self.cuda.current.name}: {how}")
        return super().copy_(source)


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda()


def test_a_tensor_goes_to_the_host_on_a_stream_of_its_own(cuda: FakeCuda) -> None:
    link, tensor = LinkOfFakes(cuda), torch.arange(4.0)
    host = link.offload_start(tensor)
    cuda.log.append("compute: work")
    link.offload_wait(host)
    cuda.log.append("compute: the tensor's memory is given to others")
    assert cuda.log == [
        "down: wait for all of compute",
        "down: copy beside the host",
        "down: record event 0",
        "compute: work",
        "compute: wait for event 0",
        "compute: the tensor's memory is given to others",
    ]
    assert host.tolist() == [0, 1, 2, 3]


def test_a_tensor_comes_back_before_it_is_read(cuda: FakeCuda) -> None:
    link = LinkOfFakes(cuda)
    made = link.reload_start(torch.arange(4.0))
    cuda.log.append("compute: work")
    link.reload_wait(made)
    cuda.log.append("compute: read")
    assert cuda.log == [
        "up: wait for all of compute",
        "up: copy beside the host",
        "up: record event 0",
        "compute: work",
        "compute: wait for event 0",
        "compute: read",
    ]
    assert made.tolist() == [0, 1, 2, 3]


def test_each_copy_is_waited_for_by_itself_and_directions_have_streams_of_their_own(
    cuda: FakeCuda,
) -> None:
    link = LinkOfFakes(cuda)
    first, second = (link.reload_start(torch.ones(2) * n) for n in (1, 2))
    host = link.offload_start(torch.ones(2) * 3)
    cuda.log.clear()
    link.reload_wait(first)
    link.offload_wait(host)
    link.reload_wait(second)
    # Waiting for the first of two copies does not wait for the second.
    assert cuda.log == [f"compute: wait for event {number}" for number in (0, 2, 1)]
    assert [stream.name for stream in cuda.streams] == ["down", "up"]


def test_both_ends_of_a_copy_are_held_until_it_is_waited_for(cuda: FakeCuda) -> None:
    """So the allocator cannot give the memory to others while it is read and written."""
    link, source = LinkOfFakes(cuda), torch.ones(2)
    made = link.reload_start(source)
    (copy,) = link._copies.values()
    assert copy.source is source
    assert copy.made is made
    link.reload_wait(made)
    assert not link._copies


def test_what_a_failed_run_left_is_held_until_its_copy_is_done(cuda: FakeCuda) -> None:
    link = LinkOfFakes(cuda)
    link.reload_start(torch.ones(2))  # nobody takes it, so nobody can wait for it
    other = link.reload_start(torch.ones(2))
    assert len(link._copies) == 2
    cuda.events[0].is_done = cuda.events[1].is_done = True
    third = link.reload_start(torch.ones(2))
    # The copy that somebody still has is not forgotten, though it is done.
    held = [copy.made for copy in link._copies.values()]
    assert {id(tensor) for tensor in held} == {id(other), id(third)}


def test_another_tensor_than_was_handed_out_waits_for_all_copies(cuda: FakeCuda) -> None:
    link = LinkOfFakes(cuda)
    made = link.reload_start(torch.ones(2))
    cuda.log.clear()
    link.reload_wait(made.clone())
    assert cuda.log == ["compute: wait for all of up"]


def test_on_a_cpu_starts_copy_and_waits_hand_on() -> None:
    tensor = torch.arange(6.0).view(2, 3).t()
    host = OFFLOAD_START(tensor)
    assert host.stride() == tensor.stride()
    assert OFFLOAD_WAIT(host, tensor) is host
    tensor.zero_()
    made = RELOAD_START(host, device=CPU)
    assert RELOAD_WAIT(made) is made
    host.zero_()
    assert made.tolist() == [[0, 3], [1, 4], [2, 5]]
