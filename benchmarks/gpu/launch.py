"""Launch overhead: what a graph costs that computes next to nothing, and each kernel in one.

The tensors are tiny, so that the time of calls back to back is the host's. Kernels are counted by
torch's profiler, since contenders fuse differently.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.contenders import (
    Builders,
    Prepared,
    compile_as,
    difference,
    fallbacks_of,
    with_graphs,
)
from benchmarks.gpu.harness import Case, Derived, Medians, Session
from benchmarks.gpu.timing import Timed

SHORT, LONG = 2, 16
SIZE = 64
NO_KERNELS = ("Memcpy", "Memset", "Torch-Compiled Region", "##")
TOLERANCE = 1e-4
NOTES = (
    "calls back to back on tensors of 64 x 64 and smaller, float32: the time is the host's",
    f"per kernel: the difference between chains of {LONG} and of {SHORT} links by that of their"
    " kernels, counted by the profiler",
    "cuda-graph is eager's work, recorded and replayed: what the device itself needs",
)


def cases(session: Session) -> Iterator[Case]:
    rounds = session.plan.pick(15, 5, 2)
    yield Case("graph, one kernel", functools.partial(_build_small, session), rounds)
    yield Case("graph, forward and backward", functools.partial(_build_pair, session), rounds)
    yield Case("chain", functools.partial(_build_chain, session), rounds, _per_kernel)


def _scale(x: Tensor) -> Tensor:
    return x * 2 + 1


def chain(links: int, x: Tensor) -> Tensor:
    """Two kernels a link for any compiler: over columns, then over rows of its result."""
    for _ in range(links):
        x = x - x.mean(0, keepdim=True)
        x = torch.softmax(x, dim=-1)
    return x


def _build_small(session: Session) -> Builders:
    x = torch.randn(16, device=session.plan.device)
    return _builders(session, {"call": _scale}, x)


def _build_chain(session: Session) -> Builders:
    x = torch.randn(SIZE, SIZE, device=session.plan.device)
    lengths = (SHORT, session.plan.pick(LONG, LONG, 2 * SHORT))
    functions = {f"{links} links": functools.partial(chain, links) for links in lengths}
    return _builders(session, functions, x)


def _build_pair(session: Session) -> Builders:
    x = torch.randn(16, device=session.plan.device, requires_grad=True)
    above = torch.ones_like(x)
    expected = torch.autograd.grad(torch.sin(_scale(x)), [x], above)

    def prepare(name: str) -> Prepared:
        function = compile_as(name, lambda x: torch.sin(_scale(x)), session.plan)

        def run(_: Any = None) -> tuple[Tensor, ...]:
            return torch.autograd.grad(function(x), [x], above)

        with fallbacks_of(name) as fallbacks:
            wrong = difference(run(), expected, ["gradient"], tolerance=TOLERANCE)
        return Prepared({"call": _timed(run, session)}, wrong=wrong, fallbacks=fallbacks)

    return {name: functools.partial(prepare, name) for name in ("eager", "deepep", "inductor")}


def _builders(session: Session, functions: Mapping[str, Callable[..., Any]], x: Tensor) -> Builders:
    names = ("eager", "deepep", "inductor", *with_graphs(session.plan))
    builders: dict[str, Callable[[], Prepared]] = {
        name: functools.partial(_prepare, name, functions, x, session) for name in names
    }
    if session.plan.device.type == "cuda":
        builders["cuda-graph"] = functools.partial(_record, functions, x, session)
    return builders


def _prepare(
    name: str, functions: Mapping[str, Callable[..., Any]], x: Tensor, session: Session
) -> Prepared:
    prepared = Prepared({})
    for metric, function in functions.items():
        compiled = compile_as(name, _with_own_code(function), session.plan)

        def run(_: Any = None, compiled: Callable[..., Any] = compiled) -> Tensor:
            return compiled(x)

        with fallbacks_of(name) as fallbacks:
            found = run().clone()
        prepared.fallbacks += fallbacks
        wrong = difference([found], [function(x)], [metric], tolerance=TOLERANCE)
        prepared.wrong = prepared.wrong or wrong
        for _ in range(2):  # CUDA graphs are recorded in the second call
            run()
        kernels = _count_kernels(run, session)
        if kernels is not None:
            prepared.once[f"{metric}: kernels"] = (kernels, "")
        prepared.timed = {**prepared.timed, metric: _timed(run, session)}
    return prepared


def _with_own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """Called through a function of its own, whose compiled forms Dynamo keeps apart."""

    def call(x: Tensor) -> Tensor:
        return function(x)

    code = call.__code__.replace(co_name="call")
    return types.FunctionType(code, globals(), "call", None, call.__closure__)


def _timed(run: Callable[[Any], object], session: Session) -> Timed:
    return Timed(run, seconds=session.plan.pick(20, 10, 0) / 1e3)


def _record(functions: Mapping[str, Callable[..., Any]], x: Tensor, session: Session) -> Prepared:
    prepared = Prepared({})
    for metric, function in functions.items():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.no_grad():
            function(x)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph):
            function(x)
        run = functools.partial(_replay, graph)
        prepared.timed = {**prepared.timed, metric: _timed(run, session)}
    return prepared


def _replay(graph: torch.cuda.CUDAGraph, _: Any = None) -> None:
    graph.replay()


def _count_kernels(run: Callable[[], object], session: Session) -> int | None:
    """Kernels that one call starts on the device; None on a CPU, or if the profiler sees none."""
    if session.plan.device.type != "cuda":
        return None
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        run()
        torch.cuda.synchronize()
    kernels = [
        event
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
        and not event.name.startswith(NO_KERNELS)
        and not getattr(event, "is_user_annotation", False)
    ]
    return len(kernels) or None


def _per_kernel(medians: Medians, prepared: Mapping[str, Prepared]) -> Derived:
    if len(medians) != 2:
        return
    short, long = medians
    for name, contender in prepared.items():
        if name == "cuda-graph":  # has eager's kernels
            contender = prepared.get("eager", contender)
        counts = [contender.once.get(f"{metric}: kernels") for metric in (short, long)]
        if None in counts or name not in medians[short] or name not in medians[long]:
            continue
        more = counts[1][0] - counts[0][0]
        if more > 0:
            seconds = (medians[long][name] - medians[short][name]) / more
            yield "per kernel", name, seconds, "s"
