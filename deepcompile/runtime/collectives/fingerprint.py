"""The collectives of a compiled graph as data, and where those of two graphs first differ."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

# A name that is no function: the size symbol of `2*s0 + Mod(s1, 4)`, whose numbers ranks may count
# differently.
_SYMBOL = re.compile(r"\b[A-Za-z_]\w*\b(?!\s*\()")


@dataclass(frozen=True)
class CollectiveEntry:
    """One collective of a graph, as far as its ranks must agree on it.

    Attributes:
        op: as in `_c10d_functional`, without the endings of forms that work in place; or `input`,
            a tensor that ranks are given alike.
        reduce_op: `sum`, `max` ...; for a broadcast `from 0`, a rank within the group; or empty.
        dtype: `f32`; of coalesced collectives several, with `;` between them.
        shape: sizes of this rank's input, `s0, 16`, with `;` between those of several tensors.
        members: global ranks, in the order of the group.
        label: what the tensor is to the user, equal on all ranks. Tells two collectives apart that
            are alike in all else, so that a swapped order is found.
    """

    op: str
    reduce_op: str
    dtype: str
    shape: str
    members: tuple[int, ...]
    label: str = ""

    def __str__(self) -> str:
        how = f"({self.reduce_op})" if self.reduce_op else ""
        types = zip(self.dtype.split(";"), self.shape.split(";"), strict=False)
        tensors = " ".join(f"{dtype}[{shape}]" for dtype, shape in types)
        label = f" `{self.label}`" if self.label else ""
        return f"{self.op}{how} {tensors}{label}"


@dataclass(frozen=True)
class Fingerprint:
    """What ranks compare before they run a graph together.

    Attributes:
        graph: its name, for reading. Ranks may run different graphs, if collectives agree.
        plan: version of what is planned for all ranks together: placements of parameters, layout
            of buckets. Equal on all ranks, whatever they run.
        entries: the collectives in the order in which they start.
    """

    graph: str
    plan: str
    entries: tuple[CollectiveEntry, ...]

    @cached_property
    def member_sets(self) -> tuple[tuple[int, ...], ...]:
        """Sorted members of each group of more than one rank, in the order of first use."""
        found = (tuple(sorted(entry.members)) for entry in self.entries)
        return tuple(dict.fromkeys(members for members in found if len(members) > 1))

    def among(self, members: tuple[int, ...]) -> Fingerprint:
        """The part that these ranks share: entries of groups of exactly them, in their order.

        Size symbols are renamed `n0`, `n1` ... by first use here: their names may come from inputs
        that only some of the ranks have.
        """
        names: dict[str, str] = {}

        def renamed(match: re.Match[str]) -> str:
            return names.setdefault(match[0], f"n{len(names)}")

        chosen = [e for e in self.entries if tuple(sorted(e.members)) == members]
        entries = tuple(
            CollectiveEntry(
                e.op, e.reduce_op, e.dtype, _SYMBOL.sub(renamed, e.shape), e.members, e.label
            )
            for e in chosen
        )
        return Fingerprint(self.graph, self.plan, entries)

    @cached_property
    def digest(self) -> str:
        """Of plan and entries; equal exactly where `first_difference` is None."""
        content = json.dumps([self.plan, [_fields(entry) for entry in self.entries]])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def first_difference(self, other: Fingerprint) -> str | None:
        """Where the collectives of `other` leave those of this one, counted from 1; or None."""
        if self.plan != other.plan:
            return f"plan {self.plan!r} against plan {other.plan!r}"
        for number, (mine, theirs) in enumerate(
            zip(self.entries, other.entries, strict=False), start=1
        ):
            if mine.op == theirs.op == "input" and mine != theirs:
                return _against(mine, theirs)
            if mine != theirs:
                return f"collective {number}: {_against(mine, theirs)}"
        shared = min(len(self.entries), len(other.entries))
        if len(self.entries) > shared:
            return f"collective {shared + 1}: {self.entries[shared]} against none"
        if len(other.entries) > shared:
            return f"collective {shared + 1}: none against {other.entries[shared]}"
        return None

    def to_json(self) -> str:
        entries = [_fields(entry) for entry in self.entries]
        return json.dumps({"graph": self.graph, "plan": self.plan, "entries": entries})

    @classmethod
    def from_json(cls, text: str) -> Fingerprint:
        content = json.loads(text)
        entries = tuple(
            CollectiveEntry(op, reduce_op, dtype, shape, tuple(members), label)
            for op, reduce_op, dtype, shape, members, label in content["entries"]
        )
        return cls(content["graph"], content["plan"], entries)


def _against(mine: CollectiveEntry, theirs: CollectiveEntry) -> str:
    if str(mine) != str(theirs):
        return f"{mine} against {theirs}"
    return f"{mine} in a group of order {mine.members} against {theirs.members}"


def _fields(entry: CollectiveEntry) -> list[Any]:
    return [
        entry.op,
        entry.reduce_op,
        entry.dtype,
        entry.shape,
        list(entry.members),
        entry.label,
    ]
