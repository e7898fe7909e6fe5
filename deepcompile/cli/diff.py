"""`deepcompile diff`: between passes of a run, between runs. Reads files only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import click
from click.shell_completion import CompletionItem

from deepcompile.cli.diff_text import delta_of_states, delta_text, page, side_by_side, unified
from deepcompile.cli.exit import Exit
from deepcompile.cli.output import json_option, print_json, table
from deepcompile.cli.run_argument import (
    chosen_run,
    graph_names,
    is_run_text,
    note_what_is_missing,
    pass_names,
    run_names,
    unknown_run,
)
from deepcompile.cli.terminal import without_collector
from deepcompile.cli.text import columns, say, say_diff
from deepcompile.errors import DeepCompileError, RunDirError, unknown_name
from deepcompile.inspect.graph_diff import GraphDiff
from deepcompile.inspect.kernel_diff import KernelPair, diff_kernels
from deepcompile.inspect.reader import GraphRecord, Run, State
from deepcompile.inspect.run_diff import Comparison, compare_runs, compare_states, compare_step
from deepcompile.inspect.states import graph_named

_EPILOG = """
\b
Examples:
  deepcompile diff                              changed passes of the latest run
  deepcompile diff fuse-rows                    what that pass did
  deepcompile diff first last --graph g0_forward --side
  deepcompile diff RUN OTHER_RUN --stat         between two runs
  deepcompile diff RUN OTHER_RUN --kernels
"""


@dataclass(frozen=True)
class Wanted:
    """How differences are shown, and what does not count as one."""

    unified: bool
    side: bool
    stat: bool
    changed: bool
    names: bool
    order: bool
    context: int
    as_json: bool

    @property
    def lines(self) -> bool:
        return (self.unified or self.side) and not self.stat

    def differs(self, diff: GraphDiff) -> bool:
        return diff.differs(names=self.names, order=self.order)


def _complete(ctx: click.Context, parameter: click.Parameter, text: str) -> list[CompletionItem]:
    return [*pass_names(ctx.params.get("run"), text), *run_names(text)]


@click.command(epilog=_EPILOG)
@click.argument("first", metavar="[A]", required=False, shell_complete=_complete)
@click.argument("second", metavar="[B]", required=False, shell_complete=_complete)
@click.option("--run", metavar="RUN", help="The run that passes are of.  [default: the latest]")
@click.option(
    "--graph", metavar="NAME", help="Of this graph only, and its lines.",
    shell_complete=lambda c, p, text: graph_names(c.params.get("run"), text),
)  # fmt: skip
@click.option("--at", metavar="PASS|N", help="Between two runs: after this pass.  [default: last]")
@click.option("--stat", is_flag=True, help="Only counts: of ops, and of nodes.")
@click.option("--changed/--all", default=True, help="Only what changed, or passes without too.")
@click.option("-u", "--unified", is_flag=True, help="Lines, one below the other.")
@click.option("--side", is_flag=True, help="Lines, side by side.")
@click.option("--context", type=click.IntRange(0), default=3, show_default=True, help="Lines.")
@click.option(
    "--ignore", metavar="names,order", default="",
    help="Differences that do not count: other names of equal nodes, another order.",
)  # fmt: skip
@click.option("--kernels", is_flag=True, help="Of two runs: sources of kernels that correspond.")
@json_option
@without_collector()
def diff(
    first: str | None,
    second: str | None,
    run: str | None,
    graph: str | None,
    at: str | None,
    stat: bool,
    changed: bool,
    unified: bool,
    side: bool,
    context: int,
    ignore: str,
    kernels: bool,
    as_json: bool,
) -> Exit:
    """What passes changed, or what differs between two runs: op counts first, then nodes.

    A and B are states of a graph (PASS, PASS#K, a number, first, last) or runs. Nothing: the
    changed passes of the latest run. One pass: what it did. Two: from one to the other. Nodes are
    told apart by what they are and compute, not by line: new numbers of equal nodes are counted,
    not listed. Exit status 0: no difference; 1: some.
    """
    if unified and side:
        raise click.UsageError("either --unified or --side")
    ignored = {word.strip() for word in ignore.split(",") if word.strip()}
    if ignored - {"names", "order"}:
        raise click.UsageError(f"--ignore takes names and order, not {ignore!r}")
    wanted = Wanted(
        unified, side, stat, changed, "names" not in ignored, "order" not in ignored, context,
        as_json,
    )  # fmt: skip
    words = [word for word in (first, second) if word is not None]
    runs = [word for word in words if is_run_text(word)]
    strange = next((word for word in words if "/" in word and word not in runs), None)
    if strange is not None:
        raise unknown_run(strange)
    if len(runs) == 2:
        before, after = chosen_run(runs[0]), chosen_run(runs[1])
        found = (
            _diff_kernels(before, after, wanted)
            if kernels
            else _diff_runs(before, after, graph, at, wanted)
        )
        note_what_is_missing(before)
        note_what_is_missing(after)
        return found
    if kernels:
        raise click.UsageError("--kernels compares two runs: deepcompile diff RUN RUN --kernels")
    if runs and run is not None:
        raise click.UsageError("RUN either as argument or as --run")
    record = chosen_run(runs[0] if runs else run)
    states = [word for word in words if word not in runs]
    found = (
        _diff_states(record, graph, states, wanted)
        if states
        else _list_passes(record, graph, wanted)
    )
    note_what_is_missing(record)
    return found


# -- passes of one run -----------------------------------------------------------------------------


def _graphs(run: Run, name: str | None) -> list[GraphRecord]:
    if name is not None:
        return [graph_named(run, name)]
    if not run.graphs:
        raise RunDirError(f"{run.name} holds no graph: nothing was compiled while it recorded")
    return list(run.graphs)


def _list_passes(run: Run, name: str | None, wanted: Wanted) -> Exit:
    """All passes that changed something, with their op counts; with lines when asked for."""
    graphs = _graphs(run, name)
    steps = [(graph, state) for graph in graphs for state in graph.states[1:]]
    touched = [step for step in steps if step[1].path is not None]
    status = Exit.NO if touched else Exit.OK
    if wanted.lines:
        return _print(list(_steps(run, touched)), wanted)
    if wanted.as_json:
        documents = [
            {
                "graph": graph.name,
                "index": state.index,
                "pass": state.name,
                "status": state.status,
                "ms": state.ms,
                "changed": state.path is not None,
                "op_delta": delta_of_states(graph, state),
            }
            for graph, state in (touched if wanted.changed else steps)
        ]
        print_json("diff", run=str(run.path), differs=bool(touched), passes=documents)
        return status
    limit = 8 if columns() else None
    for graph in graphs:
        say(f"graph {graph.name}")
        shown = [
            state
            for at, state in enumerate(graph.states)
            if at == 0 or state.path is not None or not wanted.changed
        ]
        rows = [
            (
                f"  {state.index:03d}",
                state.name,
                state.status,
                f"{state.ms:.1f} ms" if state.ms is not None else "",
                delta_text(delta_of_states(graph, state), limit),
            )
            for state in shown
        ]
        say(table(("  #", "PASS", "STATUS", "TIME", "OPS"), rows))
    return status


def _steps(run: Run, steps: Sequence[tuple[GraphRecord, State]]) -> Iterator[Comparison]:
    """What each pass did; what cannot be read is noted."""
    for graph, state in steps:
        try:
            found = compare_step(graph, state)
        except RunDirError as error:
            run.note(str(error))
            continue
        if found is not None:
            yield found


def _diff_states(run: Run, name: str | None, words: Sequence[str], wanted: Wanted) -> Exit:
    """One state against the one before it, or two states, in each graph that has them."""
    graphs = _graphs(run, name)
    if len(graphs) > 1:
        # A name that no graph has: the nearest of all graphs' passes, not of the first's.
        known = {state.name for graph in graphs for state in graph.states}
        for word in words:
            if not word.isdecimal() and word.partition("#")[0] not in (*known, "first", "last"):
                raise RunDirError(f"{unknown_name('pass', word, known)} in {run.name}")
    found, failures = [], []
    for graph in graphs:
        try:
            found.append(compare_states(graph, words))
        except RunDirError as error:
            failures.append(error)
    if not found:
        raise failures[0]
    return _print(found, wanted)


# -- two runs --------------------------------------------------------------------------------------


def _diff_runs(before: Run, after: Run, name: str | None, at: str | None, wanted: Wanted) -> Exit:
    found = compare_runs(before, after, name, at)
    if not wanted.as_json:
        say([f"{key}: {old} -> {new}" for key, (old, new) in found.facts.items()])
        say([f"only in {run}: graph {graph}" for run, graph in found.alone])
    only = [{"run": run, "graph": graph} for run, graph in found.alone]
    facts = {key: {"before": old, "after": new} for key, (old, new) in found.facts.items()}
    status = _print(found.graphs, wanted, facts=facts, only=only, brief=name is None)
    return Exit.NO if found.alone else status


# -- results ---------------------------------------------------------------------------------------


def _print(
    found: Sequence[Comparison], wanted: Wanted, *, brief: bool = False, **fields: Any
) -> Exit:
    """The differences; `brief` leaves lines out unless they are asked for."""
    differing = [comparison for comparison in found if wanted.differs(comparison.diff)]
    status = Exit.NO if differing else Exit.OK
    if wanted.as_json:
        rows = [_document(c, wanted) for c in (differing if wanted.changed else found)]
        print_json("diff", differs=bool(differing), **fields, differences=rows)
        return status
    width = columns()
    for at, comparison in enumerate(found):
        if at:
            click.echo()
        header = f"graph {comparison.graph}: {comparison.before} -> {comparison.after}"
        say([header, *page(comparison.diff, 8 if width else None)])
        if wanted.stat or (brief and not wanted.lines):
            continue
        if wanted.side:
            say_diff(side_by_side(comparison.diff, wanted.context, wanted.order, width))
        else:
            say_diff(unified(comparison.diff, wanted.context, wanted.order))
    return status


def _document(comparison: Comparison, wanted: Wanted) -> dict[str, Any]:
    return {
        "graph": comparison.graph,
        "before": comparison.before,
        "after": comparison.after,
        "differs": wanted.differs(comparison.diff),
        **_diff_document(comparison.diff, wanted),
    }


def _diff_document(diff: GraphDiff, wanted: Wanted) -> dict[str, Any]:
    kinds = ("added", "removed", "changed", "renamed", "moved", "same")
    nodes = [
        {
            "kind": pair.kind,
            "before": None if pair.before is None else pair.before.statement,
            "after": None if pair.after is None else pair.after.statement,
            "origin": (pair.after or pair.before).origin,  # type: ignore[union-attr]
        }
        for pair in diff.pairs
        if pair.kind != "same"
    ]
    return {
        "ops": dict(diff.ops),
        "counts": {kind: diff.count(kind) for kind in kinds},  # type: ignore[arg-type]
        "declarations": list(diff.declarations),
        **({} if wanted.stat else {"nodes": nodes}),
        "kernels": {name: list(lines) for name, lines in diff.kernels.items()},
        "bodies": {name: _diff_document(body, wanted) for name, body in diff.bodies.items()},
    }


def _diff_kernels(before: Run, after: Run, wanted: Wanted) -> Exit:
    try:
        found = diff_kernels(before.kernels, after.kernels, context=wanted.context)
    except DeepCompileError as error:
        raise RunDirError(f"kernels cannot be compared: {error}") from None
    differing = [pair for pair in found if pair.differs]
    if wanted.as_json:
        print_json(
            "diff kernels", differs=bool(differing), same=len(found) - len(differing),
            kernels=[_kernel_document(pair) for pair in differing],
        )  # fmt: skip
        return Exit.NO if differing else Exit.OK
    say(f"{len(found) - len(differing)} kernels are the same, {len(differing)} differ")
    for pair in differing:
        kernel = pair.after or pair.before
        assert kernel is not None
        ops = ", ".join(kernel.ops) or "-"
        if pair.before is None or pair.after is None:
            where = after.name if pair.before is None else before.name
            say(f"\nonly in {where}: {kernel.name} of {ops}")
            continue
        more = sum(line.startswith("+") for line in pair.lines[2:])
        fewer = sum(line.startswith("-") for line in pair.lines[2:])
        say(f"\n{pair.before.name} -> {pair.after.name}, of {ops}: lines +{more} -{fewer}")
        if not wanted.stat:
            say_diff(pair.lines)
    return Exit.NO if differing else Exit.OK


def _kernel_document(pair: KernelPair) -> dict[str, Any]:
    kernel = pair.after or pair.before
    assert kernel is not None
    return {
        "before": pair.before.name if pair.before else None,
        "after": pair.after.name if pair.after else None,
        "ops": list(kernel.ops),
        "origins": list(kernel.origins),
        "lines": list(pair.lines),
    }
