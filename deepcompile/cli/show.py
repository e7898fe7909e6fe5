"""`deepcompile show`: one state of a graph, or what is around one node. Reads files only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from deepcompile.cli.output import json_option, json_text, print_json, table
from deepcompile.cli.run_argument import (
    chosen_run,
    graph_names,
    is_run_text,
    note_what_is_missing,
    pass_names,
    run_names,
    unknown_run,
)
from deepcompile.cli.terminal import note, without_collector
from deepcompile.cli.text import say, say_ir
from deepcompile.errors import RunDirError
from deepcompile.inspect.collapse import Block, as_graph, blocks, with_modules
from deepcompile.inspect.dot import dot_text, svg_text
from deepcompile.inspect.ir_text import RETURN, IRGraph, IRNode, parse_ir
from deepcompile.inspect.model_explorer import collection
from deepcompile.inspect.reader import GraphRecord, Run, State
from deepcompile.inspect.states import (
    graph_named,
    kept_state,
    recorded_modules,
    state_named,
    state_title,
    unknown_node,
)

FORMATS = ("text", "json", "dot", "model-explorer")
_EPILOG = """
\b
Examples:
  deepcompile show                                   the graphs of the latest run
  deepcompile show g0_forward --at fuse-rows
  deepcompile show g0_forward --node mm_3 --around 2
  deepcompile show g0_forward --collapse 2 --format dot
  deepcompile show --format model-explorer > graphs.json
"""


def run_and_graph(words: Sequence[str]) -> tuple[Run, str | None]:
    """RUN and GRAPH of a command that takes both, each optional.

    One word is a run if there is such a folder or run, else a graph of the latest run.

    Raises:
        RunDirError: there is no such run.
    """
    if not words:
        return chosen_run(None), None
    if is_run_text(words[0]):
        return chosen_run(words[0]), words[1] if len(words) > 1 else None
    if len(words) > 1 or "/" in words[0]:
        raise unknown_run(words[0])
    return chosen_run(None), words[0]


def _complete(ctx: click.Context, parameter: click.Parameter, text: str) -> list[CompletionItem]:
    words = [word for word in ctx.params.get("words") or () if word != text]
    if words:
        return graph_names(words[0], text)
    return [*graph_names(None, text), *run_names(text)]


def _complete_pass(
    ctx: click.Context, parameter: click.Parameter, text: str
) -> list[CompletionItem]:
    words = ctx.params.get("words") or ()
    run = words[0] if words and is_run_text(words[0]) else None
    return pass_names(run, text)


@click.command(epilog=_EPILOG)
@click.argument("words", nargs=-1, metavar="[RUN] [GRAPH]", shell_complete=_complete)
@click.option(
    "--at", metavar="PASS[#K]|N", shell_complete=_complete_pass,
    help="After this pass (its K-th time), or at this number; also first, last.  [default: last]",
)  # fmt: skip
@click.option("--node", metavar="NAME", help="Only this node and what is around it.")
@click.option(
    "--around", type=click.IntRange(0, 1000), default=1, show_default=True,
    help="With --node: how many uses away.",
)  # fmt: skip
@click.option(
    "--collapse", metavar="DEPTH", type=click.IntRange(1, 100),
    help="Blocks by module, this many parts of its path; by file or line where none is known.",
)  # fmt: skip
@click.option("--format", "form", type=click.Choice(FORMATS), default="text", show_default=True)
@click.option("--svg", metavar="FILE", help="Draw it with graphviz, up to 500 nodes.")
@json_option
@without_collector()
def show(
    words: tuple[str, ...],
    at: str | None,
    node: str | None,
    around: int,
    collapse: int | None,
    form: str,
    svg: str | None,
    as_json: bool,
) -> None:
    """A graph after a pass, or the neighbourhood of a node.

    RUN is a run directory, a folder of runs (then its newest) or the name of a run; without it the
    latest is meant. Without GRAPH, a run with several graphs lists them.
    """
    if len(words) > 2:
        raise click.UsageError(f"at most RUN and GRAPH, not {len(words)} words")
    form = "json" if as_json else form
    run, name = run_and_graph(words)
    node = node.removeprefix("%") if node else None
    chosen = _chosen(run, name, node)
    if chosen is None:
        _show_run(run, form, collapse)
        note_what_is_missing(run)
        return
    state = state_named(chosen, at or "last")
    kept = kept_state(chosen, state)
    if kept is not state and at is not None:
        title = state_title(state)
        note(f"note: {title} changed nothing; this is {state_title(kept)}, the state it saw")
    text = kept.text or ""
    graph = with_modules(parse_ir(text), recorded_modules(chosen))
    if not graph.nodes and form != "text":
        raise RunDirError(f"{state_title(kept)} of {chosen.name} is no graph text")
    if node is not None and node not in graph.by_name:
        raise RunDirError(unknown_node(graph, node))
    part = graph.only(graph.around(node, around)) if node is not None else graph
    folded = blocks(part, collapse) if collapse is not None else None
    drawn = as_graph(folded) if folded is not None else part
    title = f"{chosen.name} {state_title(kept)}"
    if svg is not None:
        drawing = svg_text(dot_text(drawn, title=title, marked=node or ""), len(drawn.nodes))
        _write(svg, drawing)
    elif form == "dot":
        say(dot_text(drawn, title=title, marked=node or "").rstrip("\n"))
    elif form == "model-explorer":
        _print_collection(run, [(title, drawn)])
    elif form == "json":
        _print_document(run, chosen, kept, graph, part, folded)
    else:
        note(_headline(chosen, kept, graph))
        if folded is not None:
            say(_block_lines(folded))
        elif node is not None:
            say_ir(_neighbourhood(graph, part, node))
        else:
            say_ir(text.rstrip("\n").split("\n"))
    note_what_is_missing(run)


def _chosen(run: Run, name: str | None, node: str | None) -> GraphRecord | None:
    """The graph that is meant; None where several could be."""
    if name is not None:
        return graph_named(run, name)
    if not run.graphs:
        note_what_is_missing(run)
        raise RunDirError(f"{run.name} holds no graph: nothing was compiled while it recorded")
    if len(run.graphs) == 1:
        return run.graphs[0]
    if node is None:
        return None
    for graph in reversed(run.graphs):
        if any(
            state.path is not None and node in parse_ir(state.text or "").by_name
            for state in reversed(graph.states)
        ):
            note(f"note: the node {node} is of graph {graph.name}")
            return graph
    raise RunDirError(f"no graph of {run.name} has a node {node!r}")


def _headline(graph: GraphRecord, state: State, lines: IRGraph) -> str:
    time = f", {state.ms:.1f} ms" if state.ms is not None else ""
    status = f" ({state.status}{time})" if state.status else ""
    cut = "" if lines.complete else "; the text is cut"
    strange = f"; {len(lines.unknown)} lines are nothing known" if lines.unknown else ""
    count = sum(node.op != RETURN for node in lines.nodes)
    return f"graph {graph.name} at {state_title(state)}{status}: {count} nodes{cut}{strange}"


# -- a whole run -----------------------------------------------------------------------------------


def _show_run(run: Run, form: str, collapse: int | None) -> None:
    if form == "json":
        print_json("show", run=str(run.path), graphs=[_summary(graph) for graph in run.graphs])
        return
    if form == "dot":
        names = ", ".join(graph.name for graph in run.graphs)
        raise click.UsageError(f"name one of the graphs: {names}")
    if form == "model-explorer":
        _print_collection(run, list(_last_graphs(run, collapse)))
        return
    rows = [
        (
            graph.name,
            graph.kind,
            str(len(graph.states)),
            str(sum(state.status == "changed" for state in graph.states)),
            " ".join(s.name for s in graph.states if s.path is not None),
        )
        for graph in run.graphs
    ]
    say(table(("GRAPH", "KIND", "STATES", "CHANGED", "KEPT"), rows))
    note("name a graph to see it: deepcompile show GRAPH --at PASS")


def _last_graphs(run: Run, collapse: int | None) -> Any:
    for graph in run.graphs:
        try:
            lines = with_modules(parse_ir(graph.last_text.text or ""), recorded_modules(graph))
        except RunDirError as error:
            run.note(str(error))
            continue
        yield graph.name, as_graph(blocks(lines, collapse)) if collapse is not None else lines


def _print_collection(run: Run, graphs: Sequence[tuple[str, IRGraph]]) -> None:
    click.echo(json_text(collection(run.name, graphs)))


def _summary(graph: GraphRecord) -> dict[str, Any]:
    states = [
        {
            "index": state.index,
            "name": state.name,
            "status": state.status,
            "kept": state.path is not None,
            "ms": state.ms,
            "op_delta": state.op_delta,
        }
        for state in graph.states
    ]
    return {"name": graph.name, "kind": graph.kind, "states": states}


# -- one graph -------------------------------------------------------------------------------------


def _neighbourhood(graph: IRGraph, part: IRGraph, marked: str) -> list[str]:
    """Its lines in order, the node marked, `...` where lines are left out."""
    lines: list[str] = []
    before = part.nodes[0].line
    for node in part.nodes:
        if node.line > before + 1:
            lines.append("  ...")
        before = node.line
        origin = f"  # {node.origin}" if node.origin else ""
        module = f" in {node.module}" if node.module else ""
        mark = "> " if node.name == marked else "  "
        lines.append(f"{mark}{node.statement}{origin}{module}")
    users = graph.users.get(marked, ())
    shown = ", ".join(name if name == RETURN else f"%{name}" for name in users) or "nothing"
    return [*lines, "", f"  %{marked} is used by {shown}"]


def _block_lines(found: Sequence[Block]) -> list[str]:
    rows = [
        (
            block.name,
            str(len(block.nodes)),
            str(block.outputs),
            ", ".join(f"{n} from {name}" for name, n in block.inputs.items()) or "-",
            ", ".join(op if n == 1 else f"{op} x{n}" for op, n in block.ops.items()) or "-",
        )
        for block in found
    ]
    header = ("BLOCK", "NODES", "GIVES", "TAKES", "OPS")
    return table(header, rows).split("\n")


def _print_document(
    run: Run,
    graph: GraphRecord,
    state: State,
    whole: IRGraph,
    part: IRGraph,
    folded: Sequence[Block] | None,
) -> None:
    fields: dict[str, Any] = {
        "run": str(run.path),
        "graph": graph.name,
        "state": {"index": state.index, "name": state.name, "status": state.status},
        "complete": whole.complete,
        "unknown_lines": len(whole.unknown),
        "ops": dict(part.op_counts()),
    }
    if folded is not None:
        fields["blocks"] = [asdict(block) for block in folded]
    else:
        fields["nodes"] = [_document(node, whole) for node in part.nodes]
    print_json("show", **fields)


def _document(node: IRNode, graph: IRGraph) -> dict[str, Any]:
    return node._asdict() | {"users": list(graph.users.get(node.name, ()))}


def _write(file: str, text: str) -> None:
    try:
        Path(file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.UsageError(f"{file} cannot be written: {error.strerror}") from None
    note(f"wrote {file}")
