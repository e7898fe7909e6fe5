"""Ranks compare the collectives of a compiled graph when it is first run, with a bounded wait.

Two ranks that run different collectives in one group hang, abort, or, which is worst, go on with
wrong numbers: gloo and NCCL compare nothing. The compiler may not ask the others, since Dynamo
calls it only on ranks whose guards failed; the others would never answer. So each compiled callable
publishes its fingerprint when it is first *run*, from a cache or not, and waits for those ranks
that must run the same.

What must be equal. Collectives meet within a group: among the same members, the same collectives
in the same order. Nothing else has to be: on a data axis one rank may have a longer batch, another
graph and other sizes in the groups of its tensor axis, while the gradients reduced over the data
axis are the same. So each set of members agrees for itself, on the part of the fingerprint that
lies among them (`Fingerprint.among`): operations, reductions, types, shapes, labels, plan.

When a rank waits. On each set a rank counts the *different* parts that it has begun to run. The
first run of a part that is new among these members takes the next number, is published under it,
and waits until all members have come to that number; they must have the same part there. A part
that these members have agreed on before waits for nobody, whatever graph it is in. This holds:

- Ranks that run a right program always agree. The sequence of parts on a set is the same on each
  member, hence so is that sequence without repetitions, hence so are the numbers. When each of them
  compiles makes no difference, and a rank that recompiles alone, for a batch of other length, does
  not wait for the others if its collectives with them stay as they were.
- A rank that recompiles alone to something that changes a collective takes a number that the others
  never come to: an error that names them after `timeout`, not a hang. They are by then in a
  collective of the old graph; the failure of that one quotes this rank's error.
- Two ranks that first run two graphs in different order differ at the first number: an error at
  once on both, before any of these collectives has started.
- What is not found: ranks that choose differently among graphs that all have run before, and equal
  size symbols with unequal values. Finding these needs an exchange in each step.

Several sets in one graph are all published before the first of them is waited for, so that their
order makes no deadlock. What is asked of the program: ranks run graphs as one program does. One in
which rank 2 comes to a graph only after a collective *inside* the same graph on ranks 0 and 1 would
run without agreement and times out with it.

All state (numbers, parts known) is in the store under the name of the rank, so it ends with the
process group. The first run costs about ten requests a set, 64 or 1024 members alike: ranks compare
with whoever came first, and only a difference makes them read what each of the others has.
Later runs cost a test of one attribute.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from deepcompile.errors import RankError
from deepcompile.runtime.collectives.fingerprint import Fingerprint
from deepcompile.runtime.collectives.round import poll, ranks_text

#: Seconds. Less than a collective's own timeout, more than a compile on another rank takes.
DEFAULT_WAIT = 300.0
#: Seconds that a rank which found a difference gives the others to publish theirs, and to read.
_GRACE = 2.0
_PREFIX = "deepcompile/agreement"
_FROM_A_COLLECTIVE = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|timed out waiting|broken pipe",
    re.IGNORECASE,
)


def agreed(
    run: Callable[..., Any],
    fingerprint: Fingerprint,
    store: Any,
    rank: int,
    timeout: float = DEFAULT_WAIT,
) -> Callable[..., Any]:
    """`run`, which at its first call makes sure that ranks with common collectives run the same.

    The result is called as `run` is: with one list that may be cleared, where that has
    `_boxed_call`. `run` itself where the graph has no collective of several ranks.

    Args:
        store: of torch.distributed and of one attempt only, as `deepcompile.runtime.init` makes it.
        rank: of this process, as `members` of the fingerprint count.
        timeout: seconds to wait for other ranks at the first call.

    The result raises `RankError` when called: where ranks differ or have not come (then on each
    further call too), and in place of an error out of torch.distributed.
    """
    if not fingerprint.member_sets:
        return run
    return AgreedRun(run, Agreement(fingerprint, store, rank, timeout))


def agreed_in_world(
    run: Callable[..., Any], fingerprint: Fingerprint, timeout: float = DEFAULT_WAIT
) -> Callable[..., Any]:
    """`agreed` with store and rank of the process group there is; `run` itself under a fake one."""
    if not fingerprint.member_sets or dist.get_backend() == "fake":
        return run
    store = dist.distributed_c10d._get_default_store()
    return agreed(run, fingerprint, store, dist.get_rank(), timeout)


class AgreedRun:
    """A compiled callable that agrees at its first call; see `agreed`."""

    def __init__(self, run: Callable[..., Any], agreement: Agreement) -> None:
        self.run = run
        self._waiting: Agreement | None = agreement
        self._agreement = agreement
        self._error: RankError | None = None
        if getattr(run, "_boxed_call", False):
            self._boxed_call = True

    def __call__(self, *args: Any) -> Any:
        if self._waiting is not None:
            self._agree()
        try:
            return self.run(*args)
        except RuntimeError as error:
            if not _from_a_collective(error):
                raise
            failed = self._agreement.collective_failed(error)
        raise failed

    def _agree(self) -> None:
        if self._error is not None:
            raise RankError(str(self._error))
        try:
            self._agreement.reach()
        except RankError as error:
            self._error = error
            raise
        self._waiting = None


@dataclass(frozen=True)
class _Place:
    """A number on a set of members, at which each of them has the same part of a fingerprint."""

    members: tuple[int, ...]
    number: int
    part: Fingerprint
    key: str


class Agreement:
    """What one rank publishes, reads and waits for at the first run of one graph."""

    def __init__(self, fingerprint: Fingerprint, store: Any, rank: int, timeout: float) -> None:
        self.fingerprint = fingerprint
        self.rank = rank
        self.timeout = timeout
        self._store = dist.PrefixStore(_PREFIX, store)

    def reach(self) -> None:
        """Returns when all members of all groups have come to this graph's collectives.

        Raises:
            RankError: members that differ, that have not come in time, or a store that is gone.
        """
        try:
            self._say_where()
            places = [self._publish(members) for members in self.fingerprint.member_sets]
            deadline = time.monotonic() + self.timeout
            for place in places:
                if place is not None:
                    self._meet(place, deadline)
        except RankError as error:
            self._leave_word(str(error))
            raise
        except dist.DistError as error:
            raise RankError(
                f"{self._who()} has lost the store while it waited for the others to agree; the "
                f"process that keeps it, rank 0 or torchrun, has ended: {_first_line(error)}"
            ) from error

    def collective_failed(self, error: RuntimeError) -> RankError:
        """The error to raise for one out of a collective of the running graph."""
        entries = self.fingerprint.entries
        shown = [f"  {number}: {entry}" for number, entry in enumerate(entries[:3], start=1)]
        if len(entries) > 3:
            shown.append(f"  ... {len(entries) - 3} more, the last {entries[-1]}")
        words = self._words(set(range(self._world())) - {self.rank})
        text = "\n".join(
            [
                f"{self._who()}: a collective failed: {_first_line(error)}",
                f"its collectives, of which one has not finished ({len(entries)}):",
                *shown,
                *(f"rank {rank} has ended with: {word}" for rank, word in words.items()),
            ]
        )
        if not words:
            text += "\nno other rank has left word; look for one that was killed or is slow"
        self._leave_word(text)
        failed = RankError(text)
        failed.__cause__ = error
        return failed

    def _say_where(self) -> None:
        sets = " and ".join(ranks_text(members) for members in self.fingerprint.member_sets)
        self._store.set(f"at/{self.rank}", f"graph {self.fingerprint.graph!r} ({sets})")

    def _publish(self, members: tuple[int, ...]) -> _Place | None:
        """The number taken on a set of members; None where they have agreed on this part."""
        store, part = self._store, self.fingerprint.among(members)
        group = hashlib.sha256(str(members).encode()).hexdigest()[:16]
        if store.check([f"{group}/known/{self.rank}/{part.digest}"]):
            return None
        number = store.add(f"{group}/next/{self.rank}", 1)
        place = _Place(members, number, part, f"{group}/{number}")
        if not store.check([f"{place.key}/text/{part.digest}"]):
            store.set(f"{place.key}/text/{part.digest}", part.to_json())
        store.set(f"{place.key}/of/{self.rank}", f"{part.digest} {part.graph}")
        store.add(f"{place.key}/come", 1)
        if store.compare_set(f"{place.key}/first", "", part.digest).decode() != part.digest:
            store.set(f"{place.key}/verdict", "different")
        elif store.add(f"{place.key}/equal", 1) == len(members):
            store.set(f"{place.key}/verdict", "equal")
        return place

    def _meet(self, place: _Place, deadline: float) -> None:
        """Waits for the verdict of whoever comes last, or first sees a difference."""
        store, given_up = self._store, False

        def decided() -> bool:
            nonlocal given_up
            given_up = store.check(["gone"]) and bool(self._words(set(place.members)))
            return given_up or store.check([f"{place.key}/verdict"])

        poll(decided, deadline)
        if store.add(f"{place.key}/come", 0) == len(place.members):
            poll(lambda: store.check([f"{place.key}/verdict"]), time.monotonic() + _GRACE)
        if not store.check([f"{place.key}/verdict"]):
            raise RankError(self._missing_text(place, given_up))
        if store.get(f"{place.key}/verdict").decode() != "equal":
            raise RankError(self._difference_text(place))
        group = place.key.partition("/")[0]
        store.set(f"{group}/known/{self.rank}/{place.part.digest}", "")

    def _come(self, place: _Place) -> dict[int, tuple[str, str]]:
        """Digest and name of the graph of each member that has come to this number."""
        found = {}
        for member in place.members:
            key = f"{place.key}/of/{member}"
            if self._store.check([key]):
                digest, _, graph = self._store.get(key).decode().partition(" ")
                found[member] = (digest, graph)
        return found

    def _missing_text(self, place: _Place, given_up: bool) -> str:
        come = self._come(place)
        missing = [member for member in place.members if member not in come]
        has = "have" if len(missing) > 1 else "has"
        when = "" if given_up else f" in {self.timeout:g} s"
        words = self._words(set(place.members))
        first, *others = place.part.entries
        more = f" and {len(others)} more" if others else ""
        lines = [
            f"{self._who()}: {ranks_text(missing)} {has} not come{when} to collectives that "
            f"{ranks_text(place.members)} share: {first}{more}. Here: {ranks_text(come)}."
        ]
        for member in missing[:8]:
            if member not in words:
                at = f"at/{member}"
                seen = self._store.get(at).decode() if self._store.check([at]) else "nowhere"
                lines.append(f"rank {member} was last seen at the first run of {seen}")
        lines += [f"rank {member} has ended with: {word}" for member, word in words.items()]
        lines.append(
            "Look for an input or a branch that differs on these ranks, so that only some compile "
            "anew; if they are still compiling, give a longer timeout."
        )
        return "\n".join(lines)

    def _difference_text(self, place: _Place) -> str:
        """Names all ranks, if the others come soon; the same text on each of them."""
        come, size = f"{place.key}/come", len(place.members)
        poll(lambda: self._store.add(come, 0) >= size, time.monotonic() + _GRACE)
        ranks: dict[str, list[int]] = {}
        graphs: dict[str, str] = {}
        for member, (digest, graph) in self._come(place).items():
            ranks.setdefault(digest, []).append(member)
            graphs.setdefault(digest, graph)
        first, *others = sorted(ranks, key=lambda digest: (-len(ranks[digest]), ranks[digest]))
        parts = {d: self._read_part(place, d) for d in ranks}
        lines = [
            f"collectives that {ranks_text(place.members)} share differ: "
            f"{ranks_text(ranks[first])} {_run(ranks[first])} graph {graphs[first]!r}"
        ]
        for digest in others:
            lines.append(
                f"{ranks_text(ranks[digest])} {_run(ranks[digest])} graph {graphs[digest]!r}: "
                f"{parts[first].first_difference(parts[digest])}"
            )
        absent = set(place.members) - {member for where in ranks.values() for member in where}
        if absent:
            lines.append(f"not there yet: {ranks_text(absent)}")
        lines.append("Give these ranks the same model, options and plan, and inputs of one shape.")
        self._let_others_read(place, sum(map(len, ranks.values())))
        return "\n".join(lines)

    def _read_part(self, place: _Place, digest: str) -> Fingerprint:
        return Fingerprint.from_json(self._store.get(f"{place.key}/text/{digest}").decode())

    def _let_others_read(self, place: _Place, readers: int) -> None:
        """This process may keep the store, and ends with the error that it is about to raise."""
        key = f"{place.key}/read"
        self._store.add(key, 1)
        poll(lambda: self._store.add(key, 0) >= readers, time.monotonic() + _GRACE)

    def _leave_word(self, text: str) -> None:
        """For ranks that wait for this one, or whose collective fails because it is gone."""
        with contextlib.suppress(RuntimeError):
            self._store.set(f"word/{self.rank}", text.partition("\n")[0])
            self._store.set("gone", "")

    def _words(self, ranks: set[int]) -> dict[int, str]:
        found = {}
        with contextlib.suppress(RuntimeError):
            if self._store.check(["gone"]):
                for rank in sorted(ranks):
                    if self._store.check([f"word/{rank}"]):
                        found[rank] = self._store.get(f"word/{rank}").decode()
        return found

    def _world(self) -> int:
        return 1 + max(max(members) for members in self.fingerprint.member_sets)

    def _who(self) -> str:
        return f"rank {self.rank}, graph {self.fingerprint.graph!r}"


def _from_a_collective(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or bool(_FROM_A_COLLECTIVE.search(str(error)))


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _run(ranks: list[int]) -> str:
    return "run" if len(ranks) > 1 else "runs"
