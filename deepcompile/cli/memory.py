"""`deepcompile memory`: what a memory budget decided. Reads files only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import click

from deepcompile.cli.exit import Exit
from deepcompile.cli.output import json_option, print_json, table
from deepcompile.cli.run_argument import ShowByDefault, read_root, run_argument
from deepcompile.cli.terminal import note
from deepcompile.cli.text import say
from deepcompile.inspect.memory import PlanRecord, compare, read_plans
from deepcompile.options import format_size


@click.group(cls=ShowByDefault, epilog="Example: deepcompile memory show --tensors 5")
def memory() -> None:
    """Read memory plans: what was kept, computed again, compressed or offloaded.

    \b
    DEEPCOMPILE_RUN_DIR=runs DEEPCOMPILE_MEMORY_BUDGET=6GiB python train.py
    deepcompile memory show runs
    """


@memory.command(epilog="Example: deepcompile memory show --tensors 5")
@run_argument
@click.option("--tensors", default=12, show_default=True, help="How many tensors; 0 for all.")
@json_option
def show(run: str | None, tensors: int, as_json: bool) -> None:
    """The plans of RUN: a run directory, a folder of runs (then its newest) or a plan file."""
    notes: list[str] = []
    plans = read_plans(read_root(run), notes)
    if as_json:
        print_json("memory show", plans=[_document(plan) for plan in plans])
    else:
        for plan in plans:
            _print(plan, tensors)
    for text in notes[:20]:
        note(f"note: {text}")


@memory.command(epilog="Example: deepcompile memory diff runs-before runs-after")
@click.argument("before")
@click.argument("after")
@json_option
def diff(before: str, after: str, as_json: bool) -> Exit:
    """What two plans of the same graphs decide differently; exit status 1 where they do."""
    old = {plan.graph: plan for plan in read_plans(read_root(before))}
    new = {plan.graph: plan for plan in read_plans(read_root(after))}
    both = [graph for graph in old if graph in new]
    if not both:
        raise click.UsageError(f"{before} and {after} are for different graphs")
    found = {graph: compare(old[graph], new[graph]) for graph in both}
    if as_json:
        rows = {graph: [asdict(row) for row in differing] for graph, differing in found.items()}
        print_json("memory diff", differences=rows)
        return Exit.NO if any(found.values()) else Exit.OK
    for graph in both:
        peaks = [format_size(plan[graph].facts["peak"]) for plan in (old, new)]
        say(f"graph {graph}: predicted peak {peaks[0]} -> {peaks[1]}")
        rates = [_rates(plan[graph].facts) for plan in (old, new)]
        if rates[0] != rates[1]:
            say(f"  planned by other rates of the device: {rates[0]} -> {rates[1]}")
        lines = [
            (
                row.tensor,
                format_size(row.nbytes),
                row.before or "-",
                row.after or "-",
                row.origin or "",
            )
            for row in found[graph]
        ]
        if lines:
            say(table(("TENSOR", "SIZE", "BEFORE", "AFTER", "FROM"), lines))
    return Exit.NO if any(found.values()) else Exit.OK


def _rates(facts: Mapping[str, Any]) -> str:
    """Where the rates of a plan are from, and their hash; older files do not say."""
    return f"{facts.get('rates', 'table')} ({facts.get('rates_hash', 'no hash')})"


def _document(plan: PlanRecord) -> dict[str, Any]:
    return {
        "file": str(plan.file),
        "graph": plan.graph,
        "facts": dict(plan.facts),
        "tensors": [dict(row) for row in plan.tensors],
        "timeline": dict(plan.timeline),
    }


def _decision(row: Mapping[str, Any]) -> str:
    if row["decision"] == "offload":
        exposed = row.get("exposed", 0.0) * 1e3
        return f"offload (back {row.get('ahead', 0)} ahead, {exposed:.3g} ms exposed)"
    return row["decision"] + (f" ({row['form']})" if row.get("form") else "")


def _print(plan: PlanRecord, limit: int) -> None:
    facts = plan.facts
    guess = " (assumed)" if facts.get("optimizer_assumed") else ""
    say(f"{plan.file}  graph {plan.graph}")
    say(
        f"  budget {format_size(facts['budget'])}, predicted peak {format_size(facts['peak'])}, "
        f"without a budget {format_size(facts['unplanned_peak'])}"
    )
    say(
        f"  parameters and inputs {format_size(facts['parameters'])}, "
        f"optimizer {format_size(facts['optimizer'])}{guess}"
    )
    if facts.get("sizes"):
        sizes = ", ".join(f"{name} = {size}" for name, size in facts["sizes"].items())
        say(f"  for sizes up to {sizes}")
    if facts.get("exceeds"):
        say("  for the first step only: it exceeds the budget, for earlier graphs took the room")
    if facts.get("calls", 1) > 1:
        say(f"  called {facts['calls']} times in a step")
    if facts.get("replanned"):
        say("  in place of an earlier plan: planned once more with all graphs of the model")
    if not plan.tensors:
        say("  nothing had to be computed again\n")
        return
    bound = facts.get("bound_seconds")
    shown = "none" if bound is None else f"{bound * 1e3:.2f} ms"
    say(
        f"  computing again takes {facts['recompute_seconds'] * 1e3:.2f} ms a step by the cost "
        f"model (rates: {_rates(facts)}; bound: {shown})"
    )
    if any(row["decision"] == "offload" for row in plan.tensors):
        say(
            f"  copies to and from the host add {facts.get('exposed_seconds', 0.0) * 1e3:.2f} ms "
            "that no work hides"
        )
    for why in facts.get("unsolved", ()):
        say(f"  choices may not be the best, or have no bound: {why}")
    for decision, count in Counter(row["decision"] for row in plan.tensors).most_common():
        say(f"  {decision}: {count} tensors, {format_size(plan.total(decision))}")
    for half, course in plan.timeline.items():
        peak, step = max(course["live"]), course["peak_step"]
        say(
            f"  {half}: highest at step {step} of {len(course['live']) - 2}, "
            f"{format_size(peak)} beside what is pinned"
        )
        for owner in course["owners"][:3]:
            say(f"    {format_size(owner['nbytes']):>10}  {owner['role']}  {owner['tensor']}")
    rows = sorted(plan.tensors, key=lambda row: -row["nbytes"])
    lines = [
        (
            row["tensor"],
            format_size(row["nbytes"]),
            _decision(row),
            f"{row['seconds'] / row['nbytes'] * 1e12:.3g} us/MB",
            row["origin"] or "",
            "" if row["why"] == "chosen" else row["why"],
        )
        for row in (rows[:limit] if limit else rows)
    ]
    say(table(("  TENSOR", "SIZE", "DECISION", "PRICE", "FROM", "WHY"), lines))
    if limit and len(rows) > limit:
        say(f"  and {len(rows) - limit} more: --tensors 0")
    say("")
