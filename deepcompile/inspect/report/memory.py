"""The memory of a run as a page shows it: bytes over the steps, whose they are, decisions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepcompile.inspect.memory import PlanRecord
from deepcompile.inspect.program import ProgramRecord
from deepcompile.inspect.report.text import clean, number, size

WIDTH, HEIGHT = 900, 160
MOST_CHARTS = 24
MOST_OWNERS = 25
MOST_TENSORS = 25


@dataclass(frozen=True)
class Owner:
    """What is there at the peak; `share` of the peak, `first` and `last` as parts of all steps."""

    tensor: str
    role: str
    size: str
    share: float
    first: float
    last: float
    told: str


@dataclass(frozen=True)
class Chart:
    """Bytes over steps as one SVG area, with its peak."""

    title: str
    peak: str
    peak_at: str
    area: str
    peak_x: float
    owners: tuple[Owner, ...]
    others: str


@dataclass(frozen=True)
class Decisions:
    """What a memory budget decided: facts, totals by decision, and the largest tensors."""

    title: str
    facts: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, str, str, str], ...]
    more: int


def charts(programs: Sequence[ProgramRecord], plans: Sequence[PlanRecord]) -> list[Chart]:
    """The memory of programs, the highest first, and of the steps of plans before them."""
    found = [
        chart
        for plan in plans
        for half, course in _items(plan.timeline)
        if (chart := _chart(f"planned {half} of {plan.graph}", course)) is not None
    ]
    ordered = sorted(programs, key=lambda p: -max(_numbers(p.memory.get("live")), default=0.0))
    for program in ordered:
        chart = _chart(f"{program.graph}", program.memory)
        if chart is not None:
            found.append(chart)
    return found[:MOST_CHARTS]


def decisions(plans: Iterable[PlanRecord]) -> list[Decisions]:
    """What plans keep and compute again."""
    found = []
    for plan in plans:
        facts = plan.facts
        shown = [
            (title, size(number(facts.get(name))))
            for name, title in (
                ("budget", "budget"),
                ("peak", "predicted peak"),
                ("unplanned_peak", "peak without a budget"),
                ("parameters", "parameters and inputs"),
                ("optimizer", "optimizer"),
            )
            if name in facts
        ]
        rows = sorted(plan.tensors, key=lambda row: -number(row.get("nbytes")))
        shown += [
            (
                decision,
                size(sum(number(r.get("nbytes")) for r in rows if r.get("decision") == decision)),
            )
            for decision in dict.fromkeys(str(row.get("decision")) for row in rows)
        ]
        found.append(
            Decisions(
                clean(plan.graph, 200),
                tuple((clean(title), text) for title, text in shown),
                tuple(
                    (
                        clean(row.get("tensor", ""), 200),
                        size(number(row.get("nbytes"))),
                        clean(row.get("decision", ""), 100),
                        clean(row.get("origin") or "", 300),
                    )
                    for row in rows[:MOST_TENSORS]
                ),
                max(0, len(rows) - MOST_TENSORS),
            )
        )
    return found


def _chart(title: str, course: Mapping[str, Any]) -> Chart | None:
    live = _numbers(course.get("live"))
    if not live or max(live) <= 0:
        return None
    peak = max(live)
    at = live.index(peak)
    named = course.get("owners")
    named = named if isinstance(named, list) else []
    owners = [owner for owner in named if isinstance(owner, dict)]
    shown = [_owner(owner, peak, len(live) - 2) for owner in owners[:MOST_OWNERS]]
    rest = number(course.get("others"))
    rest += sum(number(owner.get("nbytes")) for owner in owners[MOST_OWNERS:])
    step = "before the first step" if at == 0 else f"step {at - 1} of {len(live) - 2}"
    step = "after the last step" if at == len(live) - 1 and at else step
    return Chart(
        clean(title, 300),
        size(peak),
        step,
        _area(live, peak),
        round(WIDTH * (at + 0.5) / len(live), 1),
        tuple(shown),
        size(rest) if rest else "",
    )


def _owner(owner: Mapping[str, Any], peak: float, steps: int) -> Owner:
    nbytes, steps = number(owner.get("nbytes")), max(steps, 1)
    first, last = number(owner.get("first")), number(owner.get("last"))
    name = clean(owner.get("tensor", ""), 200)
    return Owner(
        name,
        clean(owner.get("role", ""), 60),
        size(nbytes),
        round(100 * nbytes / peak, 2),
        round(100 * _within(first / steps), 2),
        round(100 * _within((last + 1) / steps), 2),
        f"{name}: {size(nbytes)}, from step {first:.0f} to {last:.0f}",
    )


def _area(live: Sequence[float], peak: float) -> str:
    """Bytes by step as steps; of several that fall on one pixel the highest."""
    count = min(len(live), WIDTH)
    parts = [f"M0 {HEIGHT}"]
    for number_ in range(count):
        low = number_ * len(live) // count
        high = max(low + 1, (number_ + 1) * len(live) // count)
        y = round(HEIGHT - (HEIGHT - 8) * max(live[low:high]) / peak, 1)
        parts.append(f"V{y}H{round(WIDTH * (number_ + 1) / count, 1)}")
    return "".join([*parts, f"V{HEIGHT}Z"])


def _within(share: float) -> float:
    return min(1.0, max(0.0, share))


def _numbers(values: object) -> list[float]:
    return [number(value) for value in values] if isinstance(values, list) else []


def _items(value: object) -> Iterable[tuple[str, Mapping[str, Any]]]:
    for name, item in value.items() if isinstance(value, Mapping) else ():
        if isinstance(item, Mapping):
            yield str(name), item
