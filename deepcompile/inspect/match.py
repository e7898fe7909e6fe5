"""Which node of one graph is which node of another: by name, then by structure.

Two texts of a graph differ by renumbered names and by what a pass really did. Nodes are matched
first where all that they are computed from is the same (hash from the inputs down), then where all
that becomes of them is the same (hash from the outputs up), then step by step from matched
neighbours, then by name. A value that is renumbered so costs nothing downstream, and one that
changes does not take its users along. All steps are linear in the number of nodes.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable

from deepcompile.inspect.ir_text import RETURN, IRGraph, IRNode

_INPUT = re.compile(r"%[\w.]+")
_MAX_TWINS = 64
"""Of so many nodes that are computed alike the best is looked for; of more the first are."""
_LEAVES = frozenset({"placeholder", "get_attr"})


def match_nodes(before: IRGraph, after: IRGraph) -> dict[int, int]:
    """Positions in `before.nodes` of nodes that are still there, with their positions in `after`.

    Each position occurs once. Matched nodes need not be equal: they can have other inputs or
    arguments.
    """
    matcher = _Matcher(before, after)
    matcher.leaves()
    matcher.unchanged()
    matcher.computed_alike()
    matcher.become_alike()
    matcher.spread()
    matcher.alike()
    matcher.spread()
    return matcher.found


class _Side:
    """One graph with what the steps need of it; `matched` has a number for each pair."""

    def __init__(self, graph: IRGraph) -> None:
        self.nodes = graph.nodes
        self.position = {node.name: at for at, node in reversed(list(enumerate(graph.nodes)))}
        position = self.position
        self.inputs = [
            [position[name] for name in node.inputs if name in position] for node in graph.nodes
        ]
        self.users: list[list[tuple[int, int]]] = [[] for _ in graph.nodes]
        for at, inputs in enumerate(self.inputs):
            for place, source in enumerate(inputs):
                self.users[source].append((at, place))
        self.matched: list[int | None] = [None] * len(graph.nodes)
        self._local: dict[int, tuple[str, ...]] = {}

    def free(self) -> list[int]:
        return [at for at, number in enumerate(self.matched) if number is None]

    def local(self, at: int) -> tuple[str, ...]:
        """What a node is without its name and those of its inputs."""
        if at not in self._local:
            node = self.nodes[at]
            arguments = _INPUT.sub("%", node.arguments) if node.op != RETURN else ""
            self._local[at] = (*_callee(node), arguments, node.type)
        return self._local[at]


def _callee(node: IRNode) -> tuple[str, str]:
    """What is called; kernels are numbered anew by each compile, so their names say nothing."""
    return node.op, "" if node.op == "kernel" else node.target


class _Matcher:
    def __init__(self, before: IRGraph, after: IRGraph) -> None:
        self.left, self.right = _Side(before), _Side(after)
        self.found: dict[int, int] = {}
        self.back: dict[int, int] = {}
        self.numbers: dict[Hashable, int] = {}
        ends = [
            len(side.inputs[at])
            for side in (self.left, self.right)
            for at, node in enumerate(side.nodes)
            if node.op == RETURN
        ]
        self.other_ends = len(set(ends)) > 1
        """Whether the graphs return different numbers of values."""

    def pair(self, left: int, right: int) -> None:
        self.left.matched[left] = self.right.matched[right] = len(self.found)
        self.found[left] = right
        self.back[right] = left

    def number(self, key: Hashable) -> int:
        """One number for equal keys, so that hashes of whole graphs stay exact and small."""
        return self.numbers.setdefault(key, len(self.numbers))

    def leaves(self) -> None:
        """Inputs, constants and the end by name; inputs and constants that are left, by type."""
        for at, node in enumerate(self.left.nodes):
            if node.op not in _LEAVES and node.op != RETURN:
                continue
            other = self.right.position.get(node.name)
            if (
                other is not None
                and self.right.matched[other] is None
                and self.right.nodes[other].op == node.op
            ):
                self.pair(at, other)
        self.in_order(lambda side, at: side.local(at), ops=_LEAVES)

    def unchanged(self) -> None:
        """Nodes of one name that say the same and take the same: nearly all, as a rule."""
        left, right = self.left, self.right
        for at in right.free():
            node = right.nodes[at]
            other = left.position.get(node.name)
            if other is None or left.matched[other] is not None:
                continue
            old = left.nodes[other]
            if (
                node.arguments == old.arguments
                and node.target == old.target
                and node.type == old.type
                and node.op == old.op
                and all(self.back.get(i) == j for i, j in self.inputs_of(at, other))
            ):
                self.pair(other, at)

    def inputs_of(self, right: int, left: int) -> Iterable[tuple[int, int]]:
        return zip(self.right.inputs[right], self.left.inputs[left], strict=False)

    def in_order(
        self, key: Callable[[_Side, int], Hashable], ops: frozenset[str] | None = None
    ) -> None:
        """Pair what is free and has equal keys: of equal names first, then in order."""
        left, right = self.left, self.right
        waiting: dict[Hashable, dict[int, None]] = defaultdict(dict)
        for at in left.free():
            if ops is None or left.nodes[at].op in ops:
                waiting[key(left, at)][at] = None
        if not waiting:
            return
        keys = {
            at: key(right, at) for at in right.free() if ops is None or right.nodes[at].op in ops
        }
        for at, wanted in keys.items():
            other = left.position.get(right.nodes[at].name)
            if other is not None and other in waiting.get(wanted, ()):
                del waiting[wanted][other]
                self.pair(other, at)
        for at, wanted in keys.items():
            bucket = waiting.get(wanted)
            if bucket and right.matched[at] is None:
                other = next(iter(bucket))
                del bucket[other]
                self.pair(other, at)

    # -- hashes of all that is before, or after, a node --------------------------------------------

    def computed_alike(self) -> None:
        """Match free nodes that are computed alike, of matched inputs.

        Of several twins the one of which the same becomes is taken, then the one of the same name.
        """
        left, right = self.left, self.right
        if not (left.free() and right.free()):
            return
        ups, right_ups = self.from_inputs(left), self.from_inputs(right)
        waiting: dict[Hashable, list[int]] = defaultdict(list)
        for at in left.free():
            waiting[(ups[at], tuple(left.inputs[at]))].append(at)
        downs: tuple[list[int], list[int]] | None = None
        for at in right.free():
            inputs = tuple([self.back.get(i, -1) for i in right.inputs[at]])
            twins = waiting.get((right_ups[at], inputs))
            if not twins:
                continue
            if len(twins) == 1:
                self.pair(twins.pop(), at)
                continue
            if downs is None:
                downs = self.from_outputs(left), self.from_outputs(right)
            best = self.best_twin(twins[:_MAX_TWINS], at, downs)
            twins.remove(best)
            self.pair(best, at)

    def best_twin(self, twins: list[int], at: int, downs: tuple[list[int], list[int]]) -> int:
        down, name = downs[1][at], self.right.nodes[at].name
        return max(twins, key=lambda i: (downs[0][i] == down, self.left.nodes[i].name == name))

    def become_alike(self) -> None:
        """Match free nodes of which the same becomes, the same name first."""
        if not (self.left.free() and self.right.free()):
            return
        left, right = self.from_outputs(self.left), self.from_outputs(self.right)
        self.in_order(lambda side, at: (left if side is self.left else right)[at])

    def from_inputs(self, side: _Side) -> list[int]:
        """For each node a number for what it is and what it is computed from, up to pairs."""
        numbers: list[int] = []
        for at, pair in enumerate(side.matched):
            if pair is not None:
                numbers.append(-2 - pair)
                continue
            inputs = tuple([numbers[i] if i < at else -1 for i in side.inputs[at]])
            numbers.append(self.number((side.local(at), inputs)))
        return numbers

    def from_outputs(self, side: _Side) -> list[int]:
        """For each node a number for what it is and what becomes of it, up to pairs."""
        numbers = [-1] * len(side.nodes)
        for at in range(len(side.nodes) - 1, -1, -1):
            pair = side.matched[at]
            if pair is not None:
                numbers[at] = -2 - pair
                continue
            # A place among the returned values says nothing when others came or went.
            users = [
                (numbers[user], 0 if self.other_ends and side.nodes[user].op == RETURN else place)
                for user, place in side.users[at]
            ]
            numbers[at] = self.number(("up", side.local(at), tuple(sorted(users))))
        return numbers

    # -- from what is matched to what is beside it -------------------------------------------------

    def spread(self) -> None:
        """From inputs to users and back: equal nodes of matched neighbours, else namesakes."""
        left, right = self.left, self.right
        if not right.free():
            return
        waiting: dict[Hashable, list[int]] = defaultdict(list)
        for at in left.free():
            waiting[(left.local(at), tuple(left.inputs[at]))].append(at)
        if not waiting:
            return
        for at in right.free():
            inputs = tuple([self.back.get(i, -1) for i in right.inputs[at]])
            bucket = waiting.get((right.local(at), inputs), ())
            name = right.nodes[at].name
            equal = [i for i in bucket if left.matched[i] is None]
            if equal:
                self.pair(next((i for i in equal if left.nodes[i].name == name), equal[0]), at)
            elif self.namesake(at):
                self.pair(left.position[name], at)
        for at in reversed(right.free()):
            other = self.taken_alike(at)
            if other is not None:
                self.pair(other, at)

    def namesake(self, right: int) -> bool:
        """Whether the free node of its name calls the same, for the same inputs or users."""
        node = self.right.nodes[right]
        left = self.left.position.get(node.name)
        if left is None or self.left.matched[left] is not None:
            return False
        if _callee(self.left.nodes[left]) != _callee(node):
            return False
        if not self.left.inputs[left] or not self.right.inputs[right]:
            return True
        sources = {self.found.get(i) for i in self.left.inputs[left]}
        users = {self.found.get(i) for i, _ in self.left.users[left]}
        return not (
            sources.isdisjoint(self.right.inputs[right])
            and users.isdisjoint(i for i, _ in self.right.users[right])
        )

    def taken_alike(self, right: int) -> int | None:
        """A free node that a matched user took in the same place, and that calls the same."""
        for user, place in self.right.users[right]:
            old = self.back.get(user)
            if old is None or self.right.nodes[user].op == RETURN:
                continue
            inputs = self.left.inputs[old]
            if place >= len(inputs) or self.left.matched[inputs[place]] is not None:
                continue
            if _callee(self.left.nodes[inputs[place]]) == _callee(self.right.nodes[right]):
                return inputs[place]
        return None

    def alike(self) -> None:
        """What is left: calls of one thing beside the same pair, with one type, in order."""
        self.in_order(self.likeness)

    def likeness(self, side: _Side, at: int) -> Hashable:
        node = side.nodes[at]
        if node.op == RETURN:
            return None
        for other in (*side.inputs[at], *(user for user, _ in side.users[at])):
            if side.matched[other] is not None and side.nodes[other].op not in _LEAVES:
                return (*_callee(node), node.type, node.origin, side.matched[other])
        return (*_callee(node), node.type, node.origin, node.name)
