"""Run a graph before and after a pass on the same inputs and compare. Imports torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch._subclasses import FakeTensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from deepcompile.ir.collectives import communicates, is_wait

TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 4e-3,
    torch.bfloat16: 3e-2,
    torch.complex128: 1e-9,
    torch.complex64: 1e-4,
}
"""Largest error, relative to the largest magnitude in the reference tensor. Fused code may keep
more digits between ops than eager; a difference of a few last places is not one in meaning."""


class NotRunnable(Exception):
    """The reference graph cannot run on made-up inputs, so nothing can be compared."""


@dataclass(frozen=True)
class Agreement:
    """The outputs agree; `values` is False when only shapes could be compared."""

    max_error: float
    values: bool


@dataclass(frozen=True)
class Mismatch:
    """The outputs differ; `node` is the first node of the new graph with another value."""

    detail: str
    node: str | None
    max_error: float | None


def compare_values(
    expected: Sequence[Any], actual: Sequence[Any], values: bool
) -> Agreement | Mismatch:
    """Two lists of outputs; only shapes and types where `values` is False."""
    detail, _, error = _compare(list(expected), list(actual), values)
    if detail is not None:
        return Mismatch(detail, None, error)
    return Agreement(error or 0.0, values)


def make_inputs(graph: GraphModule, seed: int = 0) -> list[Any]:
    """Real values for the placeholders, from their `meta["val"]`; integers are 0 or 1.

    Symbolic sizes take their hints. Raises `NotRunnable` for a placeholder without metadata.
    """
    generator = torch.Generator().manual_seed(seed)
    return [_make(node, generator) for node in graph.graph.nodes if node.op == "placeholder"]


def _make(node: Node, generator: torch.Generator) -> Any:
    if "val" not in node.meta:
        raise NotRunnable(f"placeholder {node.name} has no example value")
    value = node.meta["val"]
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return _hint(value, node)
    if not isinstance(value, torch.Tensor):
        return value
    size = [_hint(s, node) for s in value.shape]
    stride = [_hint(s, node) for s in value.stride()]
    with _disable_current_modes():
        span = 1 + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) if all(size) else 0
        if value.dtype.is_floating_point or value.dtype.is_complex:
            wide = torch.complex128 if value.dtype.is_complex else torch.float64
            storage = torch.randn(span, generator=generator, dtype=wide)
        else:
            storage = torch.randint(0, 2, (span,), generator=generator)
        storage = storage.to(value.dtype).to(value.device)
        return torch.as_strided(storage, size, stride)


def _hint(value: Any, node: Node) -> Any:
    if not isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return value
    if not value.node.has_hint():
        raise NotRunnable(f"placeholder {node.name} has a data-dependent size")
    return value.node.hint


def compare_graphs(before: GraphModule, after: GraphModule, seed: int = 0) -> Agreement | Mismatch:
    """Run both graphs on the same inputs. Raises `NotRunnable` when `before` cannot be run.

    May be called while a graph is traced: the fake, functional and proxy modes of the tracer are
    set aside for real tensors.
    """
    with _disable_current_modes(), torch.no_grad():
        return _compare_graphs(before, after, seed)


def _check_constants(graph: GraphModule) -> None:
    for name, held in (*graph.named_buffers(), *graph.named_parameters()):
        if isinstance(held, FakeTensor):
            raise NotRunnable(f"constant {name} has no values")


def _compare_graphs(before: GraphModule, after: GraphModule, seed: int) -> Agreement | Mismatch:
    _check_constants(before)
    inputs = make_inputs(before, seed)
    values = _random_ops(before) == _random_ops(after)
    alike = _placeholders(before) == _placeholders(after)
    if not alike:
        if values:
            return Mismatch("the inputs of the graph changed", None, None)
        inputs_after = make_inputs(after, seed)
    else:
        inputs_after = inputs
    try:
        expected, written = _run(before, inputs, seed)
    except Exception as error:
        raise NotRunnable(f"the graph before the pass: {type(error).__name__}: {error}") from error
    try:
        actual, written_after = _run(after, inputs_after, seed)
    except Exception as error:
        return Mismatch(
            f"the graph after it does not run: {type(error).__name__}: {error}", None, None
        )
    detail, position, error_size = _compare(expected, actual, values)
    if detail is not None and error_size is not None and math.isfinite(error_size):
        noise = _noise(before, inputs, expected, seed)
        detail, position, error_size = _compare(expected, actual, values, noise=noise)
    if detail is None and alike:
        largest = error_size or 0.0
        detail, _, error_size = _compare(written, written_after, values, "after the run, input")
        error_size = max(largest, error_size or 0.0)
    if detail is None:
        return Agreement(error_size or 0.0, values)
    node = _first_difference(before, after, inputs, seed) if values else None
    return Mismatch(detail, node or _output_name(after, position), error_size)


_NOISE = 4.0
"""Errors up to so many times what the last digits of the inputs do to an output are none."""


def _noise(
    graph: GraphModule, inputs: Sequence[Any], expected: Sequence[Any], seed: int
) -> list[float]:
    """How far each output moves when inputs move by one unit of their last digit.

    Deep graphs on made-up numbers may turn rounding errors into large ones: what is no larger says
    nothing about a pass.
    """
    generator = torch.Generator().manual_seed(seed)
    moved, _ = _run(graph, [_moved(value, generator) for value in inputs], seed)
    return [
        found.error or 0.0
        for found in (_compare([a], [b], True) for a, b in zip(expected, moved, strict=True))
    ]


def _moved(value: Any, generator: torch.Generator) -> Any:
    if not isinstance(value, torch.Tensor) or not value.dtype.is_floating_point:
        return value
    steps = torch.randint(-1, 2, value.shape, generator=generator).to(value.device)
    moved = _copy(value)
    digit = torch.finfo(value.dtype).eps
    return moved.copy_((value.double() * (1 + digit * steps)).to(value.dtype))


def _output_name(graph: GraphModule, position: int | None) -> str | None:
    """The node behind one output; where a rewrite kept no name inside, this still says where."""
    outputs = pytree.tree_leaves(graph.graph.output_node().args[0])
    node = outputs[position] if position is not None and position < len(outputs) else None
    return node.name if isinstance(node, Node) else None


def _placeholders(graph: GraphModule) -> list[str]:
    return [str(n.target) for n in graph.graph.nodes if n.op == "placeholder"]


def _random_ops(graph: GraphModule) -> list[str]:
    tag = torch.Tag.nondeterministic_seeded
    return [
        str(node.target)
        for node in graph.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload) and tag in node.target.tags
    ]


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _fresh(inputs: Sequence[Any]) -> list[Any]:
    """Copies with the same strides, for a graph may write into its inputs."""
    return [_copy(i) if isinstance(i, torch.Tensor) else i for i in inputs]


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    storage = tensor.untyped_storage().clone()
    return empty.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())


def _run(graph: GraphModule, inputs: Sequence[Any], seed: int) -> tuple[list[Any], list[Any]]:
    """The outputs, and the inputs afterwards: a graph may write into them."""
    given = _fresh(inputs)
    with _reproducible(seed):
        result = _Alone(graph).run(*given, enable_io_processing=False)
    return list(pytree.tree_leaves(result)), given


class _Alone(Interpreter):
    """Runs the graph of one rank without the others.

    Graphs are verified while they are compiled, and ranks do not all compile at the same time. So
    something stands in for what others would send: numbers that depend on this rank's alone.
    """

    def run_node(self, n: Node) -> Any:
        if not communicates(n.target):
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        given = [v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, torch.Tensor)]
        if is_wait(n.target):
            return given[0]
        if "val" not in n.meta:
            raise NotRunnable(f"collective {n.name} has no example value")
        made = n.meta["val"]
        results = [
            _as_if_sent(value, given[min(place, len(given) - 1)], n)
            for place, value in enumerate(pytree.tree_leaves(made))
        ]
        return results[0] if isinstance(made, torch.Tensor) else results


def _as_if_sent(value: torch.Tensor, sent: torch.Tensor, node: Node) -> torch.Tensor:
    """Twice the elements of what was sent, over and over or as many as fit."""
    shape = [_hint(size, node) for size in value.shape]
    count = math.prod(shape)
    flat = sent.reshape(-1)
    repeated = flat.repeat(-(-count // max(flat.numel(), 1)))[:count] * 2
    return repeated.to(value.dtype).reshape(shape)


class _Recorder(_Alone):
    def __init__(self, graph: GraphModule, values: dict[str, Any]) -> None:
        super().__init__(graph)
        self.values = values

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n.op != "output":
            kept = [
                v.clone() if isinstance(v, torch.Tensor) else v for v in pytree.tree_leaves(result)
            ]
            self.values[n.name] = kept
        return result


def _first_difference(
    before: GraphModule, after: GraphModule, inputs: Sequence[Any], seed: int
) -> str | None:
    recorded: list[dict[str, Any]] = [{}, {}]
    for graph, values in zip((before, after), recorded, strict=True):
        with _reproducible(seed):
            _Recorder(graph, values).run(*_fresh(inputs), enable_io_processing=False)
    expected, actual = recorded
    for name, value in actual.items():
        if name in expected and _compare(expected[name], value, True).detail is not None:
            return name
    return None


class _Difference(NamedTuple):
    """What differs (None if nothing), at which output, and the largest absolute error."""

    detail: str | None
    position: int | None
    error: float | None


def _compare(
    expected: list[Any],
    actual: list[Any],
    values: bool,
    what: str = "output",
    noise: Sequence[float] | None = None,
) -> _Difference:
    if len(expected) != len(actual):
        return _Difference(f"{len(expected)} {what}s became {len(actual)}", None, None)
    worst: _Difference | None = None
    largest = 0.0
    for position, (a, b) in enumerate(zip(expected, actual, strict=True)):
        detail, error = _compare_one(a, b, values)
        if noise is not None and error is not None and error <= _NOISE * noise[position]:
            detail = None
        if detail is not None and error is None:
            return _Difference(f"{what} {position}: {detail}", position, None)
        size = error or 0.0
        largest = max(largest, size)
        if detail is not None and (worst is None or size > (worst.error or 0.0)):
            worst = _Difference(f"{what} {position}: {detail}", position, size)
    return worst or _Difference(None, None, largest)


def _compare_one(a: Any, b: Any, values: bool) -> tuple[str | None, float | None]:
    if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)):
        same = type(a) is type(b) and (not values or a == b or a != a)
        return (None, 0.0) if same else (f"{a!r} became {b!r}", None)
    if a.dtype != b.dtype or a.shape != b.shape:
        return f"{_type(a)} became {_type(b)}", None
    if not values or not a.numel():
        return None, 0.0
    tolerance = TOLERANCE.get(a.dtype, 0.0)
    wide = torch.complex128 if a.dtype.is_complex else torch.float64
    x, y = a.detach().to(wide), b.detach().to(wide)
    if not torch.equal(x.isnan(), y.isnan()):
        return "NaN in other places", float("nan")
    unbounded = x.isinf() | y.isinf()
    if not torch.equal(x[unbounded], y[unbounded]):
        return "infinity in other places", float("inf")
    finite = x.isfinite() & y.isfinite()
    if not bool(finite.any()):
        return None, 0.0
    error = float((x[finite] - y[finite]).abs().max())
    scale = float(x[finite].abs().max())
    bound = tolerance * max(scale, 1e-6 if tolerance else 0.0)
    return (f"values of {_type(a)} differ" if error > bound else None), error


def _type(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
