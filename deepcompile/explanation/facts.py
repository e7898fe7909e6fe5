"""What `explain` found, and how it prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from deepcompile.explanation.notebook import as_html
from deepcompile.inspect.sharding import CollectiveRow, ParameterRow

SCHEMA = 1
_SHORT = 8


@dataclass(frozen=True)
class KernelFacts:
    """One call of a generated kernel. Bytes are None where the graph's sizes are not known."""

    name: str
    ops: tuple[str, ...]
    lines: tuple[str, ...]
    bytes_read: int | None
    bytes_written: int | None

    @property
    def bytes_moved(self) -> int | None:
        """Bytes read and written, each element once."""
        if self.bytes_read is None or self.bytes_written is None:
            return None
        return self.bytes_read + self.bytes_written


@dataclass(frozen=True)
class Extern:
    """An op that goes to ATen, how often one run calls it, and from which lines."""

    op: str
    count: int
    lines: tuple[str, ...]


@dataclass(frozen=True)
class GraphFacts:
    """One compiled graph.

    Attributes:
        bytes_moved: by its kernels and calls of ATen in one run.
        bytes_op_by_op: by the same ATen ops, each run by itself.
        arena_bytes, arena_bound: memory planned for intermediates and the least possible.
        seconds: by stage: passes, codegen, build.
        cached: whether its kernels came from the cache on disk.
    """

    name: str
    kind: str
    fallback: str | None
    kernels: tuple[KernelFacts, ...]
    externs: tuple[Extern, ...]
    bytes_moved: int | None
    bytes_op_by_op: int | None
    arena_bytes: int | None
    arena_bound: int | None
    seconds: Mapping[str, float]
    cached: bool


@dataclass(frozen=True)
class GraphBreak:
    """Why Dynamo ended a graph early; `origin` is the user's line where one is known."""

    reason: str
    origin: str | None
    count: int
    hint: str = ""


@dataclass(frozen=True)
class Fallback:
    """What runs in eager, why, from which line of the user, and what can be done."""

    where: str
    reason: str
    origin: str | None
    count: int
    hint: str


@dataclass(frozen=True)
class TensorFacts:
    """A tensor of forward that backward needs, and what a memory budget decided for it.

    Attributes:
        decision: "keep", "recompute", "compress" or "offload".
        price: seconds a byte that keeping it spares.
        why: "chosen", or what left no choice.
        line: the user's line.
        form: of what is compressed.
        ahead: of what is offloaded, how many nodes of backward run while it is copied back.
        exposed: seconds that the device waits for its copies.
    """

    name: str
    op: str
    nbytes: int
    decision: str
    price: float
    why: str
    line: str | None
    form: str = ""
    ahead: int = 0
    exposed: float = 0.0


@dataclass(frozen=True)
class BudgetFacts:
    """What a memory budget came to for one graph with gradients; bytes, and seconds of the model.

    Attributes:
        peak: predicted, of everything in memory during a training step.
        unplanned: the same without a budget.
        parameters: parameters, buffers and inputs, part of the peak.
        optimizer: state of the optimizer, part of the peak.
        optimizer_assumed: whether that is a guess: two fp32 numbers a trained one.
        recompute_seconds: what the plan takes longer in one step than keeping everything.
        exposed_seconds: how long the device waits for copies to and from the host, as placed.
        bound_seconds: what no plan undercuts at this budget; None where none was found.
        unsolved: why that is so, or why choices may not be the best: no SciPy, or what its solver
            said; each reason once.
        calls: how often the graph runs in a step.
        plan_seconds: of planning, compiling for trial left out.
        rates: where the model's rates of the device are from: "table", or "calibrated" and a day.
        tensors: none where the budget needed no plan.
    """

    budget: int
    peak: int
    unplanned: int
    parameters: int
    optimizer: int
    optimizer_assumed: bool
    recompute_seconds: float
    exposed_seconds: float
    bound_seconds: float | None
    unsolved: tuple[str, ...]
    calls: int
    plan_seconds: float
    rates: str
    tensors: tuple[TensorFacts, ...]


@dataclass(frozen=True)
class ShardingFacts:
    """Placements of one graph on a mesh; bytes of a rank, and seconds of the model.

    Attributes:
        seconds: of a step: `total`, `compute`, `communication`, of that `hidden` can run beside
            computation.
        gap: how much slower than the bound, relative; None where there is no bound.
        memory: `parameters` (with gradients and optimizer state) and `saved` for backward; and what
            these are without a mesh: `one device`, `saved on one device`.
    """

    graph: str
    mesh: str
    seconds: Mapping[str, float]
    gap: float | None
    memory: Mapping[str, int]
    parameters: tuple[ParameterRow, ...]
    collectives: tuple[CollectiveRow, ...]


@dataclass(frozen=True)
class Explanation:
    """What became of a model: `str()` is a page, `details()` everything, `to_dict()` for JSON.

    Attributes:
        fallbacks: (graph or stage, reason) of what runs in eager.
        rejected: (reason, count) of pairs of ops that were not fused.
        not_lowered: (op, reason, count) of ops that kernels could not take.
        failed_passes: (pass, error) of passes that were left out.
        seconds: of the whole first run, tracing and compiling included.
        budgets: one entry a graph with gradients, where `memory_budget` is set.
        measured_peak: bytes of one step of all graphs, with what is pinned as predicted; None
            without a budget, or where it cannot be measured.
        sharding: one entry a graph that reads parameters of a mesh.
        distinct_fallbacks: `fallbacks` by reason and line, with advice.
    """

    graphs: tuple[GraphFacts, ...]
    fallbacks: tuple[tuple[str, str], ...]
    graph_breaks: tuple[GraphBreak, ...]
    rejected: tuple[tuple[str, int], ...]
    not_lowered: tuple[tuple[str, str, int], ...]
    failed_passes: tuple[tuple[str, str], ...]
    seconds: float
    budgets: tuple[BudgetFacts, ...] = ()
    measured_peak: int | None = None
    sharding: tuple[ShardingFacts, ...] = ()
    distinct_fallbacks: tuple[Fallback, ...] = ()

    @property
    def kernels(self) -> tuple[KernelFacts, ...]:
        """All kernel calls, graph by graph."""
        return tuple(kernel for graph in self.graphs for kernel in graph.kernels)

    @property
    def externs(self) -> dict[str, int]:
        """Calls of each ATen op over all graphs, the most frequent first."""
        counts: Counter[str] = Counter()
        for graph in self.graphs:
            for extern in graph.externs:
                counts[extern.op] += extern.count
        return dict(counts.most_common())

    @property
    def bytes_moved(self) -> int | None:
        """By one run of all graphs; None when one of them is unknown."""
        return _total(graph.bytes_moved for graph in self.graphs)

    @property
    def bytes_op_by_op(self) -> int | None:
        """By the same ATen ops, each run by itself."""
        return _total(graph.bytes_op_by_op for graph in self.graphs)

    @property
    def compile_seconds(self) -> dict[str, float]:
        """Seconds by stage, over all graphs."""
        found: dict[str, float] = {}
        for graph in self.graphs:
            for stage, seconds in graph.seconds.items():
                found[stage] = found.get(stage, 0.0) + seconds
        return found

    @property
    def cache_hits(self) -> int:
        """Graphs whose kernels were found in the cache."""
        return sum(graph.cached for graph in self.graphs)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return {
            "schema": SCHEMA,
            "externs": self.externs,
            "bytes_moved": self.bytes_moved,
            "bytes_op_by_op": self.bytes_op_by_op,
            "compile_seconds": self.compile_seconds,
            "cache_hits": self.cache_hits,
            **asdict(self),
        }

    def __str__(self) -> str:
        return "\n".join(self._lines(limit=_SHORT))

    def details(self) -> str:
        """All kernels and reasons, graph by graph."""
        return "\n".join([*self._lines(limit=None), *self._graph_lines()])

    def _repr_html_(self) -> str:
        """What a notebook shows: everything of the page, in parts that fold."""
        return as_html(self._summary(), self._sections())

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        """The same beside the page as text, which a notebook shows where it shows no HTML."""
        return {"text/plain": str(self), "text/html": self._repr_html_()}

    # -- text -----------------------------------------------------------------------------------

    def _lines(self, limit: int | None) -> Iterator[str]:
        yield from self._summary()
        cut = False
        for title, rows in self._sections():
            yield ""
            shown = rows[:limit]
            yield f"{title}:" if rows else f"{title}: none"
            yield from (f"  {row}" for row in shown)
            if len(shown) < len(rows):
                cut = True
                yield f"  and {len(rows) - len(shown)} more"
        if cut:
            yield "\nEverything: explain(...).details()"

    def summary(self) -> str:
        """The first lines of the page: counts, bytes, seconds."""
        return "\n".join(self._summary())

    def _summary(self) -> Iterator[str]:
        if not self.graphs and not self.fallbacks:
            yield "Nothing was compiled: Dynamo captured no graph."
            return
        kinds = Counter(graph.kind for graph in self.graphs)
        named = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        calls = sum(self.externs.values())
        yield (
            f"{_count(len(self.graphs), 'graph')} ({named}), "
            f"{_count(len(self.kernels), 'kernel')}, {_count(calls, 'call')} of ATen, "
            f"{_count(len(self.fallbacks), 'fallback')}, "
            f"{_count(sum(b.count for b in self.graph_breaks), 'graph break')}"
        )
        if self.bytes_moved is not None and self.bytes_op_by_op is not None:
            ratio = self.bytes_op_by_op / max(self.bytes_moved, 1)
            yield (
                f"one run moves {_size(self.bytes_moved)}; op by op it would be "
                f"{_size(self.bytes_op_by_op)} ({ratio:.1f} times as much)"
            )
        stages = ", ".join(f"{name} {s:.2f}" for name, s in self.compile_seconds.items())
        yield (
            f"first run {self.seconds:.2f} s"
            + (f", of it {stages}" if stages else "")
            + f"; kernels of {self.cache_hits} of {_count(len(self.graphs), 'graph')} were cached"
        )

    def _sections(self) -> Iterator[tuple[str, list[str]]]:
        largest = sorted(self.kernels, key=lambda kernel: -(kernel.bytes_moved or 0))
        yield "kernels, by bytes moved", _columns([_kernel_row(k) for k in largest])
        lines: dict[str, dict[str, None]] = {}
        for graph in self.graphs:
            for extern in graph.externs:
                lines.setdefault(extern.op, {}).update(dict.fromkeys(extern.lines))
        yield (
            "calls of ATen",
            _columns([(f"{n}x", op, _few(tuple(lines[op]), 2)) for op, n in self.externs.items()]),
        )
        yield "fallbacks to eager", [f"{where}: {reason}" for where, reason in self.fallbacks]
        yield (
            "graph breaks",
            [f"{b.count}x {b.origin or '(no line)'}: {b.reason}" for b in self.graph_breaks],
        )
        if self.failed_passes:
            yield "passes left out", [f"{name}: {error}" for name, error in self.failed_passes]
        if self.not_lowered:
            yield (
                "ops that kernels could not take",
                [f"{n}x {op}: {reason}" for op, reason, n in self.not_lowered],
            )
        edges = sum(count for _, count in self.rejected)
        yield f"fusions rejected, {edges}", [f"{n}x {reason}" for reason, n in self.rejected]
        yield (
            "memory for intermediates (least possible)",
            _columns(
                [
                    (graph.name, _size(graph.arena_bytes), f"({_size(graph.arena_bound)})")
                    for graph in self.graphs
                    if graph.arena_bytes is not None
                ]
            ),
        )

        for budget in self.budgets:
            yield "memory budget", _budget_rows(budget)
        if self.measured_peak is not None:
            predicted = max(budget.peak for budget in self.budgets)
            yield (
                "peak of a step",
                [f"predicted {_size(predicted)}, measured {_size(self.measured_peak)}"],
            )
        for facts in self.sharding:
            yield f"on the mesh {facts.mesh}, {facts.graph}", _sharding_rows(facts)

    def _graph_lines(self) -> Iterator[str]:
        for graph in self.graphs:
            yield f"\n{graph.name}"
            if graph.fallback is not None:
                yield f"  runs in eager: {graph.fallback}"
            yield (
                f"  moves {_size(graph.bytes_moved)}, op by op {_size(graph.bytes_op_by_op)}; "
                f"{'cached' if graph.cached else 'built'}"
                + "".join(f", {name} {s:.3f} s" for name, s in graph.seconds.items())
            )
            for kernel in graph.kernels:
                yield (
                    f"  kernel {kernel.name}: reads {_size(kernel.bytes_read)}, "
                    f"writes {_size(kernel.bytes_written)}"
                )
                yield f"    ops: {', '.join(kernel.ops)}"
                yield f"    from: {', '.join(kernel.lines) or '?'}"
            for extern in graph.externs:
                yield f"  ATen {extern.op} {extern.count}x from {', '.join(extern.lines) or '?'}"


def _kernel_row(kernel: KernelFacts) -> tuple[str, ...]:
    names = tuple(op.rpartition(".")[0].rpartition(".")[2] or op for op in kernel.ops)
    return kernel.name, _size(kernel.bytes_moved), _few(names, 6), _few(kernel.lines, 2)


def _budget_rows(facts: BudgetFacts) -> list[str]:
    guess = " (assumed: two fp32 numbers a trained one)" if facts.optimizer_assumed else ""
    rows = [
        f"{_size(facts.budget)} given; predicted peak {_size(facts.peak)}, "
        f"without a budget {_size(facts.unplanned)}",
        f"of it parameters and inputs {_size(facts.parameters)}, "
        f"optimizer {_size(facts.optimizer)}{guess}",
    ]
    if facts.calls > 1:
        rows.append(f"called {facts.calls} times in a step")
    if not facts.tensors:
        return [*rows, "nothing had to be computed again"]
    bound = "none" if facts.bound_seconds is None else f"{facts.bound_seconds * 1e3:.2f} ms"
    rows.append(
        f"computing again takes {facts.recompute_seconds * 1e3:.2f} ms a step by the cost model "
        f"(rates: {facts.rates}; bound: {bound}); planned in {facts.plan_seconds:.2f} s"
    )
    if any(tensor.decision == "offload" for tensor in facts.tensors):
        rows.append(
            f"copies to and from the host add {facts.exposed_seconds * 1e3:.2f} ms that no work "
            "hides"
        )
    rows += [f"choices may not be the best, or have no bound: {why}" for why in facts.unsolved]
    for decision in ("keep", "recompute", "compress", "offload"):
        chosen = [tensor for tensor in facts.tensors if tensor.decision == decision]
        if not chosen and decision in ("compress", "offload"):
            continue
        total = sum(tensor.nbytes for tensor in chosen)
        rows.append(f"{decision}: {_count(len(chosen), 'tensor')}, {_size(total)}")
    largest = sorted(facts.tensors, key=lambda tensor: -tensor.nbytes)
    return rows + _columns(
        [
            (
                _decision(tensor),
                _size(tensor.nbytes),
                f"{tensor.price * 1e12:.3g} us/MB",
                tensor.name,
                tensor.op,
                tensor.line or "?",
                "" if tensor.why == "chosen" else tensor.why,
            )
            for tensor in largest
        ]
    )


def _sharding_rows(facts: ShardingFacts) -> list[str]:
    milliseconds = {name: f"{value * 1e3:.3f} ms" for name, value in facts.seconds.items()}
    gap = "" if facts.gap is None else f"; at most {facts.gap:.2%} above the best plan"
    memory = facts.memory
    return [
        f"a step takes {milliseconds['total']} by the model, collectives "
        f"{milliseconds['communication']}, of which other work can hide "
        f"{milliseconds['hidden']}{gap}",
        f"a rank has {_size(memory['parameters'])} of parameters, gradients and optimizer state, "
        f"one device {_size(memory['one device'])}; saved for backward {_size(memory['saved'])}, "
        f"one device {_size(memory['saved on one device'])}",
        *_columns(
            [
                (row.phase, f"{row.count}x", f"{row.kind} on {row.axis}", _size(row.bytes),
                 f"{row.seconds * 1e3:.3f} ms")
                for row in facts.collectives
            ]
        ),
        *_columns([(f"{row.count}x", row.name, row.placements) for row in facts.parameters]),
    ]  # fmt: skip


def _decision(tensor: TensorFacts) -> str:
    if tensor.decision == "offload":
        return f"offload (back {tensor.ahead} ahead, {tensor.exposed * 1e3:.3g} ms exposed)"
    return tensor.decision + (f" ({tensor.form})" if tensor.form else "")


def _few(items: tuple[str, ...], limit: int) -> str:
    """Distinct items, the first of them by name."""
    distinct = list(dict.fromkeys(items))
    more = f" +{len(distinct) - limit}" if len(distinct) > limit else ""
    return ", ".join(distinct[:limit]) + more


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _size(number: int | None) -> str:
    if number is None:
        return "?"
    power = min((max(number, 1).bit_length() - 1) // 10, 3)
    if power == 0:
        return f"{number} B"
    return f"{number / 1024**power:.1f} {('KiB', 'MiB', 'GiB')[power - 1]}"


def _total(values: Iterator[int | None]) -> int | None:
    found = list(values)
    return None if None in found else sum(value or 0 for value in found)
