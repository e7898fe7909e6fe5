"""`deepcompile.explain`: what became of a model, as an object that prints."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch._dynamo.utils import counters

from deepcompile.backend import deepep
from deepcompile.budget.report import BudgetReport
from deepcompile.capture.graph_breaks import in_short
from deepcompile.explanation.facts import (
    BudgetFacts,
    Explanation,
    Fallback,
    GraphBreak,
    ShardingFacts,
    TensorFacts,
)
from deepcompile.explanation.hints import hint_of_break, hint_of_fallback
from deepcompile.explanation.measure import measure_graph
from deepcompile.explanation.measured_peak import measured_peak
from deepcompile.explanation.undisturbed import (
    copy_of,
    original_of,
    run_once,
    tensors_in,
    undisturbed,
)
from deepcompile.inspect.sharding import collectives, parameter_rows, record_of
from deepcompile.options import Options
from deepcompile.pipeline.rundir import process_run
from deepcompile.recording import Recording, recording

__all__ = ["Explanation", "explain"]


# What Dynamo says of a graph that ends before a line it cannot trace; the cause is only counted.
_UNEXPLAINED = "step_unsupported"


def explain(model: Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Compile `model`, run it once on these inputs, and tell what became of it.

    Forward runs, and where an output needs a gradient also backward, from the sum of the outputs.
    With a `memory_budget` it runs twice more, for the peak of a step with the plans that stay.
    Parameters, buffers, gradients, attributes of modules, inputs and random states are afterwards
    what they were. Nothing compiled before counts: Dynamo is reset, before and after, so functions
    compiled by the user compile again when next called (their kernels are found in the cache).

    Args:
        model: a module or function, compiled or not.
        *args, **kwargs: what it is called with.

    Raises:
        What the model raises on these inputs, and `CompileError` and the like under the options
        of the environment, e.g. `DEEPCOMPILE_STRICT`.
    """
    return explain_with(model, args, kwargs)


def explain_with(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: Mapping[str, Any] | None = None,
    dynamic: bool | None = None,
) -> Explanation:
    """As `explain`, with options of the compile and `dynamic` as of `torch.compile`."""
    model = original_of(model)
    torch._dynamo.reset()
    breaks_before = Counter(counters["graph_break"])
    try:
        with undisturbed(model), recording() as record:
            start = time.perf_counter()
            compiled = torch.compile(
                model, backend=deepep, options=_shared_options(options), dynamic=dynamic
            )
            run_once(compiled, *copy_of((args, kwargs)))
            seconds = time.perf_counter() - start
            peak = _measured_peak(compiled, args, kwargs, record) if record.budgets else None
    finally:
        torch._dynamo.reset()
    breaks = Counter(counters["graph_break"])
    breaks.subtract(breaks_before)
    return _explanation(record, +breaks, seconds, peak)


def _shared_options(options: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Graphs share the memory budget of the environment through options that all of them get."""
    found = dict(options or {})
    budget = Options.resolve(None, None).memory_budget
    if budget is not None:
        found.setdefault("memory_budget", budget)
    return found or None


def _measured_peak(
    compiled: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    record: Recording,
) -> int | None:
    """The peak of a step with final plans: they may be made once more when a second one begins."""
    run_once(compiled, *copy_of((args, kwargs)))
    given = copy_of((args, kwargs))
    device = next((t.device for t in tensors_in(given)), torch.device("cpu"))
    peak = measured_peak(lambda: run_once(compiled, *given), _plans(record), device)
    folder = Options.resolve(None, None).run_dir
    if folder is not None and peak is not None:
        predicted = max(report.peak for report in _plans(record))
        process_run(folder).event("memory-measured", predicted=predicted, measured=peak)
    return peak


def _plans(record: Recording) -> list[BudgetReport]:
    """Of each graph the last."""
    return [report for report in record.budgets if not report.replaced]


def _explanation(
    record: Recording, breaks: Counter[str], seconds: float, peak: int | None
) -> Explanation:
    fallbacks = [fields for event, fields in record.events if event == "fallback"]
    rejected = Counter(f["reason"] for event, f in record.events if event == "fusion-rejected")
    not_lowered = Counter(
        (str(f["op"]), str(f["reason"])) for event, f in record.events if event == "not-lowered"
    )
    failed = [(str(f["pass"]), str(f["error"])) for e, f in record.events if e == "pass-failed"]
    failed += [("partition", f["reason"]) for e, f in record.events if e == "not-partitioned"]
    return Explanation(
        graphs=tuple(measure_graph(graph) for graph in record.graphs),
        fallbacks=tuple((str(f.get("graph", f.get("stage", "?"))), f["reason"]) for f in fallbacks),
        graph_breaks=_graph_breaks(record, breaks),
        rejected=tuple(rejected.most_common()),
        not_lowered=tuple((op, reason, n) for (op, reason), n in not_lowered.most_common()),
        failed_passes=tuple(failed),
        seconds=seconds,
        budgets=tuple(_budget(report) for report in _plans(record)),
        measured_peak=peak,
        sharding=tuple(_sharding(document) for document in record.shardings),
        distinct_fallbacks=tuple(_distinct(fallbacks)),
    )


def _distinct(fallbacks: Iterable[Mapping[str, Any]]) -> Iterator[Fallback]:
    """One for each reason and line; the first of the graphs names the place."""
    counts: Counter[tuple[str, str | None]] = Counter()
    places: dict[tuple[str, str | None], str] = {}
    for fields in fallbacks:
        key = str(fields["reason"]), fields.get("origin")
        counts[key] += 1
        places.setdefault(key, str(fields.get("graph", fields.get("stage", "?"))))
    for (reason, origin), count in counts.most_common():
        place = places[reason, origin]
        yield Fallback(place, reason, origin, count, hint_of_fallback(reason))


def _sharding(document: Mapping[str, Any]) -> ShardingFacts:
    found = record_of(document)
    return ShardingFacts(
        graph=found.graph,
        mesh=found.mesh,
        seconds=dict(found.seconds),
        gap=found.gap,
        memory=dict(found.memory),
        parameters=tuple(parameter_rows(found)),
        collectives=tuple(collectives(found)),
    )


def _budget(report: BudgetReport) -> BudgetFacts:
    facts = report.facts()
    return BudgetFacts(
        budget=report.budget,
        peak=report.peak,
        unplanned=report.unplanned,
        parameters=report.pinned.parameters,
        optimizer=report.pinned.optimizer,
        optimizer_assumed=report.assumed_optimizer,
        recompute_seconds=facts["recompute_seconds"],
        exposed_seconds=facts["exposed_seconds"],
        bound_seconds=facts["bound_seconds"],
        unsolved=tuple(report.unsolved),
        calls=report.calls,
        plan_seconds=report.plan_seconds,
        rates=report.rates.source,
        tensors=tuple(
            TensorFacts(
                row.tensor,
                row.op,
                row.nbytes,
                row.decision,
                row.price,
                row.why,
                row.origin,
                row.form,
                row.ahead,
                row.exposed,
            )
            for row in report.decisions
        ),
    )


def _graph_breaks(record: Recording, counted: Counter[str]) -> tuple[GraphBreak, ...]:
    """Breaks with their line; and those that Dynamo only counted, for they left no graph."""
    found: Counter[tuple[str, str | None]] = Counter()
    located: set[str] = set()
    hints: dict[str, str] = {}
    for event, fields in record.events:
        if event == "graph-break":
            found[fields["reason"], fields["origin"]] += 1
            located.add(fields["detail"])
            hints[fields["reason"]] = hint_of_break(fields["detail"])
    hints |= {in_short(detail): hint_of_break(detail) for detail in counted}
    # Dynamo counts each attempt to trace; what has its line is in `found` already.
    left = {detail: count for detail, count in counted.items() if detail not in located}
    bare = [key for key in found if key[0] == _UNEXPLAINED]
    if len(left) == 1 and bare:
        # One cause, counted at each attempt to trace, is what ended these graphs.
        for reason, origin in bare:
            found[in_short(next(iter(left))), origin] = found.pop((reason, origin))
        left.clear()
    for detail, count in left.items():
        found[in_short(detail), None] += count
    return tuple(
        GraphBreak(reason, origin, count, hints.get(reason, ""))
        for (reason, origin), count in found.most_common()
    )
