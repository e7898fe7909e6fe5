"""`deepcompile sharding`: placements on a mesh, shown, compared and planned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from deepcompile.cli.exit import Exit
from deepcompile.cli.output import json_option, print_json, table
from deepcompile.cli.run_argument import ShowByDefault, read_root, run_argument
from deepcompile.cli.terminal import note
from deepcompile.cli.text import say
from deepcompile.errors import RunDirError, unknown_name
from deepcompile.inspect.sharding import (
    MODEL,
    ParameterReasons,
    ShardingRecord,
    collectives,
    folded,
    parameter_rows,
    read_shardings,
    reasons,
    record_of,
)
from deepcompile.inspect.sharding_svg import svg_of
from deepcompile.options import format_size
from deepcompile.passes.partition.plan import Plan

_DROPPED = 8


@click.group(cls=ShowByDefault)
def sharding() -> None:
    """Read placements on a mesh, or plan them.

    \b
    Examples:
    deepcompile sharding runs
    deepcompile sharding runs --why layers.3.mlp.up_proj
    deepcompile sharding plan model.py:factory --mesh dp=2,tp=4 -o plan.json
    deepcompile sharding plan.json --svg plan.svg
    """


@sharding.command(epilog="Example: deepcompile sharding show --why layers.3.mlp.up_proj")
@run_argument
@click.option("--why", metavar="NAME", help="Why a parameter, or those of a module, lie there.")
@click.option("--diff", "other", metavar="OTHER", help="Compare with another run or plan file.")
@click.option("--svg", metavar="FILE", help="Draw one plan.")
@click.option("--graph", help="Of this graph only; 'model' for the plan of the whole.")
@click.option("--all", "each", is_flag=True, help="Each parameter, not one line for equal layers.")
@json_option
def show(
    run: str | None,
    why: str | None,
    other: str | None,
    svg: str | None,
    graph: str | None,
    each: bool,
    as_json: bool,
) -> Exit:
    """Placements of RUN: a run directory, a folder of runs (then its newest) or a plan file.

    With --diff, the exit status is 1 where they differ.
    """
    place = read_root(run)
    notes: list[str] = []
    records = _chosen(read_shardings(place, notes), graph)
    for text in notes[:20]:
        note(f"note: {text}")
    if other is not None:
        return _differences(
            records, _chosen(read_shardings(read_root(other)), graph), each, as_json
        )
    if svg is not None:
        _draw(records[0], svg)
    elif why is not None:
        _print_reasons(records, why, as_json)
    elif as_json:
        print_json("sharding show", plans=[_document(record) for record in records])
    else:
        say(_pages(records, each))
    return Exit.OK


@sharding.command(
    epilog="Example: deepcompile sharding plan demo:transformer --mesh tp=4 -o plan.json"
)
@click.argument("model")
@click.option("--mesh", required=True, help="Axes and ranks, as in dp=2,tp=4, or a number.")
@click.option("--device", type=click.Choice(["cuda", "cpu"]), help="What ranks compute on.")
@click.option("--memory-limit", metavar="SIZE", help="Of a rank, as 6GiB; or unlimited.")
@click.option(
    "--constraint", "constraints", multiple=True, metavar="NAME=PLACEMENTS",
    help="Placements of a parameter, * for any part of its name, as in '*.up.weight=R S(0)'.",
)  # fmt: skip
@click.option("--pin", metavar="PLAN", help="A plan file whose placements stay.")
@click.option(
    "--data-axes", default="dp", show_default=True, help="Axes with a batch each, by commas."
)
@click.option("-o", "--output", metavar="FILE", help="Write the plan, for parallelize to read.")
@click.option("--svg", metavar="FILE", help="Draw it.")
@click.option("--all", "each", is_flag=True, help="Each parameter, not one line for equal layers.")
@json_option
def plan(
    model: str,
    mesh: str,
    device: str | None,
    memory_limit: str | None,
    constraints: tuple[str, ...],
    pin: str | None,
    data_axes: str,
    output: str | None,
    svg: str | None,
    each: bool,
    as_json: bool,
) -> None:
    """Plan MODEL on a mesh that need not be there.

    MODEL is file.py:factory, pkg.mod:factory or demo:NAME; a factory returns a model, which may be
    on meta, and a tuple of the inputs of one rank. It is traced on fake tensors; nothing runs.
    """
    allowed = {**(Plan.load(pin).pinned() if pin else {}), **_constraints(constraints)}
    from torch import nn

    from deepcompile.cli.model_argument import load_model
    from deepcompile.parallel.planning import plan as plan_model

    module, inputs = load_model(model)
    if not isinstance(module, nn.Module):
        raise click.BadParameter(f"{model} makes no torch.nn.Module", param_hint="MODEL")
    axes = tuple(name.strip() for name in data_axes.split(",") if name.strip())
    note(f"planning {model} on {mesh}")
    found = plan_model(
        module,
        inputs,
        mesh,
        device=device,
        memory_limit=memory_limit,
        constraints=allowed or None,
        data_axes=axes,
    )
    if output is not None:
        _write(output, lambda path: found.save(path))
    record = record_of(found.to_dict())
    if svg is not None:
        _draw(record, svg)
    if as_json:
        print_json("sharding plan", plans=[_document(record)])
    else:
        say(_pages([record], each))


def _chosen(records: list[ShardingRecord], graph: str | None) -> list[ShardingRecord]:
    if graph is None:
        return records
    found = [record for record in records if record.graph == graph]
    if not found:
        raise click.UsageError(unknown_name("graph", graph, [r.graph for r in records]))
    return found


def _constraints(texts: Sequence[str]) -> dict[str, Any]:
    found: dict[str, list[str]] = {}
    for text in texts:
        name, equals, placements = text.rpartition("=")
        if not equals:
            raise click.UsageError(f"--constraint {text!r} is not NAME=PLACEMENTS")
        found.setdefault(name.strip(), []).append(placements)
    return dict(found)


def _write(file: str, write: Any) -> None:
    try:
        write(Path(file))
    except OSError as error:
        raise click.UsageError(f"{file} cannot be written: {error.strerror}") from None
    note(f"wrote {file}")


def _draw(record: ShardingRecord, file: str) -> None:
    _write(file, lambda path: path.write_text(svg_of(record), encoding="utf-8"))


def _document(record: ShardingRecord) -> dict[str, Any]:
    return {
        "file": record.file,
        "graph": record.graph,
        "kind": record.kind,
        "gap": record.gap,
        "collectives": [asdict(row) for row in collectives(record)],
        "plan": dict(record.plan),
        "nodes": dict(record.nodes),
    }


# -- text ------------------------------------------------------------------------------------------


def _pages(records: Sequence[ShardingRecord], each: bool) -> Iterator[str]:
    shown: list[ShardingRecord] = []
    for record in records:
        if shown:
            yield ""
        yield from _summary(record)
        before = next((r for r in shown if _lies_within(record, r)), None)
        yield ""
        if before is not None:
            yield f"  parameters lie as in {_title(before)}"
        else:
            yield from _parameters(record, each)
        yield from _collectives(record)
        shown.append(record)


def _lies_within(record: ShardingRecord, other: ShardingRecord) -> bool:
    return record.parameters.items() <= other.parameters.items()


def _title(record: ShardingRecord) -> str:
    return "the plan of the model" if record.graph == MODEL else f"graph {record.graph}"


def _summary(record: ShardingRecord) -> Iterator[str]:
    if record.file:
        yield record.file
    device = record.plan.get("device")
    yield f"{_title(record)} on {record.mesh}" + (f" ({device})" if device else "")
    if record.seconds:
        seconds = {name: f"{value * 1e3:.3f} ms" for name, value in record.seconds.items()}
        yield (
            f"  a step takes {seconds['total']} by the model; computing {seconds['compute']}, "
            f"collectives {seconds['communication']}, of which other work can hide "
            f"{seconds['hidden']}"
        )
    if record.gap is not None:
        method = record.plan.get("solver", {}).get("method")
        yield f"  at most {record.gap:.2%} above the best plan" + (f" ({method})" if method else "")
    memory = record.memory
    if memory:
        yield (
            "  parameters, gradients and optimizer state on a rank: "
            + _of(memory["parameters"], memory["one device"])
        )
    if memory.get("saved"):
        saved = _of(memory["saved"], memory["saved on one device"])
        yield f"  saved for backward, other than for pointwise operations: {saved}"


def _of(part: int, whole: int) -> str:
    share = f", {part / whole:.2f} times one device's {format_size(whole)}" if whole else ""
    return format_size(part) + share


def _parameters(record: ShardingRecord, each: bool) -> Iterator[str]:
    axes = " ".join(name for name, _ in record.axes)
    rows = [
        (
            f"  {row.name}",
            row.placements,
            str(row.count),
            row.numbers or "-",
            "x".join(map(str, row.shape)) if row.shape is not None else "-",
            format_size(row.bytes) if row.bytes else "-",
        )
        for row in parameter_rows(record, each=each)
    ]
    header = ("  PARAMETER", f"ON {axes}", "COUNT", "LAYERS", "SHAPE", "ON A RANK")
    yield table(header, rows)


def _collectives(record: ShardingRecord) -> Iterator[str]:
    found = collectives(record)
    yield ""
    if not found:
        yield "  no collectives" if record.seconds else "  collectives are not known"
        return
    rows = [
        (
            f"  {row.phase}",
            row.kind,
            row.axis,
            str(row.count),
            format_size(row.bytes),
            f"{row.seconds * 1e3:.3f} ms",
            f"{row.hidden * 1e3:.3f} ms" if row.hidden else "-",
        )
        for row in found
    ]
    yield table(("  PHASE", "COLLECTIVE", "AXIS", "COUNT", "BYTES", "TIME", "CAN HIDE"), rows)


def _print_reasons(records: Sequence[ShardingRecord], name: str, as_json: bool) -> None:
    try:
        found = reasons(records, name)
    except RunDirError as error:
        raise click.UsageError(str(error)) from None
    if as_json:
        rows = [{"graph": graph, **asdict(reason)} for graph, reason in found]
        print_json("sharding why", parameters=rows)
        return
    for graph, reason in found:
        mesh = next(record.mesh for record in records if record.graph == graph)
        say(_reason(graph, mesh, reason))


def _reason(graph: str, mesh: str, reason: ParameterReasons) -> Iterator[str]:
    shape = " x ".join(map(str, reason.shape)) if reason.shape is not None else "shape not known"
    yield f"{reason.name} ({shape}) lies as {reason.placements} on {mesh}, in {graph}"
    others = [option for option in reason.options if option != reason.placements]
    if others:
        yield f"  chosen by the model's seconds within memory from: {', '.join(reason.options)}"
    elif reason.options:
        yield "  there was nothing else to choose from: it was given, or nothing else divides it"
    for text in reason.dropped:
        yield f"  not {text}"
    for operation in reason.operations:
        line = f", {operation.line}" if operation.line else ""
        yield f"  {operation.name}: {operation.op} {operation.placements}{line}"
        for text in operation.dropped[:_DROPPED]:
            yield f"    not {text}"
        if len(operation.dropped) > _DROPPED:
            yield f"    and {len(operation.dropped) - _DROPPED} more: --json"


# -- comparison ------------------------------------------------------------------------------------


def _differences(
    old: Sequence[ShardingRecord], new: Sequence[ShardingRecord], each: bool, as_json: bool
) -> Exit:
    before, after = ({record.graph: record for record in records} for records in (old, new))
    pairs = [(before[graph], after[graph]) for graph in before if graph in after]
    pairs = pairs or [(old[0], new[0])]
    found = {a.graph: Plan.from_dict(a.plan).diff(Plan.from_dict(b.plan)) for a, b in pairs}
    if as_json:
        print_json("sharding diff", differences=found)
    else:
        for (a, b), lines in zip(pairs, found.values(), strict=True):
            same = "no difference" if not lines else f"{len(lines)} differences"
            say(f"{_title(a)} against {_title(b)} of {b.file}: {same}")
            say(f"  {line}" for line in _folded(lines, each))
    return Exit.NO if any(found.values()) else Exit.OK


def _folded(lines: Sequence[str], each: bool) -> list[str]:
    """Equal lines of several layers as one, counted."""
    counts: dict[str, list[str]] = {}
    for line in lines:
        name, colon, rest = line.partition(": ")
        counts.setdefault(line if each else folded(name) + colon + rest, []).append(line)
    return [same[0] if len(same) == 1 else f"{text}  x{len(same)}" for text, same in counts.items()]
