"""Plans as files: what a budget decided for each tensor, to read, edit, give back and compare.

A file holds one plan a graph, each under a fingerprint of the graph it is for. A row that says
`"pinned": true` binds a later compile that is given the file (`options={"memory_plan": path}`): its
tensor is kept or computed again as the row says, and everything else is planned around it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch.utils.checkpoint import CheckpointPolicy

from ..errors import OptionError
from ..passes.checkpoints.decisions import Decision
from ..passes.checkpoints.joint import Joint

SCHEMA = 1
_DECISIONS = ("keep", "recompute")
"""What a row can bind."""
_MADE = (*_DECISIONS, "compress", "offload")
"""What a plan can have decided."""


@dataclass(frozen=True)
class MemoryPlan:
    """What was decided for one graph.

    Attributes:
        graph: fingerprint of the joint graph.
        facts: budget, peaks, seconds and bound, as in the event `memory-budget`.
        tensors: one row each.
        pinned: names of tensors whose decision binds.
    """

    graph: str
    facts: Mapping[str, Any]
    tensors: tuple[Decision, ...]
    pinned: frozenset[str] = frozenset()

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        rows = [row.to_dict() | {"pinned": row.tensor in self.pinned} for row in self.tensors]
        return {"graph": self.graph, "facts": dict(self.facts), "tensors": rows}

    def pin(self, names: Iterable[str], decision: str | None = None) -> MemoryPlan:
        """The plan with these tensors bound, to `decision` or to what they have.

        Raises ValueError for a name that the plan does not have, or an unknown decision.
        """
        wanted = set(names)
        unknown = wanted - {row.tensor for row in self.tensors}
        if unknown:
            raise ValueError(f"no tensor {', '.join(sorted(unknown))} in this plan")
        if decision is not None and decision not in _DECISIONS:
            raise ValueError(f"a tensor is kept or recomputed, not {decision!r}")
        rows = tuple(
            replace(row, decision=decision) if decision and row.tensor in wanted else row  # type: ignore[arg-type]
            for row in self.tensors
        )
        return replace(self, tensors=rows, pinned=self.pinned | wanted)


def fingerprint(joint: Joint) -> str:
    """Equal for graphs with the same operators on the same shapes in the same order."""
    digest = hashlib.sha256()
    for node in joint.position:
        value = node.meta.get("val")
        shape = getattr(value, "shape", None), getattr(value, "dtype", None)
        sources = [joint.position[source] for source in node.all_input_nodes]
        digest.update(f"{node.op} {node.target} {shape} {sources}\n".encode())
    return digest.hexdigest()[:16]


def save_plans(path: str | Path, plans: Sequence[MemoryPlan]) -> None:
    """Write plans to one file."""
    text = json.dumps({"schema": SCHEMA, "plans": [plan.to_dict() for plan in plans]}, indent=1)
    Path(path).write_text(text + "\n", encoding="utf8")


def load_plans(path: str | Path) -> dict[str, MemoryPlan]:
    """Plans of a file by the fingerprint of their graph.

    Raises:
        OptionError: for a file that cannot be read or is no plan; it says what is wrong with it.
    """
    try:
        given = json.loads(Path(path).read_text(encoding="utf8"))
        if given["schema"] != SCHEMA:
            raise ValueError(f"schema {given['schema']}, known is {SCHEMA}")
        return {plan.graph: plan for plan in map(_plan, given["plans"])}
    except OSError as error:
        raise OptionError(f"memory_plan = {str(path)!r}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise OptionError(f"memory_plan = {str(path)!r} is no memory plan: {what}") from None


def _plan(given: Mapping[str, Any]) -> MemoryPlan:
    rows, pinned = [], set()
    for row in given["tensors"]:
        fields = {name: value for name, value in row.items() if name != "pinned"}
        if fields["decision"] not in (_DECISIONS if row.get("pinned") else _MADE):
            pinned_as = "cannot pin " if fields["decision"] in _MADE else ""
            raise ValueError(f"{fields['tensor']}: {pinned_as}decision {fields['decision']!r}")
        rows.append(Decision(**fields))
        if row.get("pinned"):
            pinned.add(fields["tensor"])
    return MemoryPlan(given["graph"], given["facts"], tuple(rows), frozenset(pinned))


def bind(joint: Joint, plan: MemoryPlan) -> None:
    """Mark the tensors of a joint graph whose decision binds, for the planner to respect.

    Raises:
        OptionError: for a tensor that the graph does not have, or that is never computed again.
    """
    pinned = {row.tensor: row for row in plan.tensors if row.tensor in plan.pinned}
    for node in joint.forward:
        row = pinned.pop(node.name, None)
        if row is not None:
            kept = row.decision == "keep"
            reason = None if kept else joint.why_kept(node)
            if reason is not None:
                raise OptionError(
                    f"memory_plan: {node.name} is pinned to be computed again, which it never is: "
                    f"{reason}"
                )
            policy = CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.MUST_RECOMPUTE
            node.meta["recompute"] = policy
    if pinned:
        raise OptionError(f"memory_plan: the graph has no tensor {', '.join(sorted(pinned))}")
