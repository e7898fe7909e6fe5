"""The layers of a model: cuts where few tensors cross, and which layers are the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from torch.fx import Node

from ...ir.collectives import communicates
from .joint import Joint, is_symbol

_CHEAP_NODES = 24
_SMALL = 256  # a tensor so many times smaller than the largest does not hinder a cut


@dataclass
class Segments:
    """Forward in consecutive parts.

    Attributes:
        count: of segments.
        home: the segment of each forward node.
        crossing: tensors (bases) that a later segment reads in forward; they are kept, but for
            those in `cheap`.
        cheap: what is made of inputs alone by kernels alone, and so is made again where needed.
        kind: of each segment, a number; segments with one kind are the same.
        members: of each segment, its nodes in order; equal segments have equal nodes in one order.
        runs: where segments may go together, in groups from the first on: start and end.
    """

    count: int = 0
    home: dict[Node, int] = field(default_factory=dict)
    crossing: dict[Node, int] = field(default_factory=dict)
    cheap: set[Node] = field(default_factory=set)
    kind: list[int] = field(default_factory=list)
    members: list[list[Node]] = field(default_factory=list)
    runs: list[tuple[int, int]] = field(default_factory=list)

    @property
    def repeats(self) -> bool:
        """Whether most nodes are in segments that are the same as another."""
        weight = {True: 0, False: 0}
        for kind, members in zip(self.kind, self.members, strict=True):
            weight[self.kind.count(kind) > 1] += len(members)
        return weight[True] >= weight[False]


def segment(joint: Joint, *, parts: int | None = None, within_layers: bool = False) -> Segments:
    """Cut forward where one tensor crosses; layers that repeat become one segment each.

    With a number of `parts` into so many of as much work, wherever few bytes cross: for models in
    which no layer repeats, or tensors skip many of them. `within_layers` cuts layers that repeat
    wherever one tensor crosses, too.
    """
    order = _required(joint)
    found = Segments(cheap=_cheap(joint))
    crossing = _crossing(joint, order, found.cheap)
    if parts is None:
        groups, run = _repeating(joint, _atoms(joint, order, crossing), within_layers)
    else:
        groups, run = _balanced(order, crossing, parts), None
    for number, group in enumerate(groups):
        for node in group:
            found.home[node] = number
    found.count = len(groups)
    _place_the_rest(joint, found)
    found.members = [[] for _ in range(found.count)]
    for node in joint.forward:
        if node not in joint.extra:
            found.members[found.home[node]].append(node)
    find_crossing(joint, found)
    kinds: dict[tuple[object, ...], int] = {}
    for members in found.members:
        key = _shape_of(joint, members, found)
        found.kind.append(kinds.setdefault(key, len(kinds)))
    if within_layers and run is not None:
        found.runs = [run]
    else:
        found.runs = _runs(found.kind) if found.repeats else [(0, found.count)]
    return found


def find_crossing(joint: Joint, found: Segments) -> None:
    """Note which tensors a later segment than their own reads in forward."""
    for node in _required(joint):
        base = joint.base(node)
        if base.op == "placeholder" or base in found.cheap or base not in found.home:
            continue
        last = max(
            (
                found.home[user]
                for user in node.users
                if user in joint.required and user in found.home
            ),
            default=found.home[node],
        )
        if last > found.home[base]:
            found.crossing[base] = max(last, found.crossing.get(base, 0))


def _required(joint: Joint) -> list[Node]:
    return [node for node in joint.forward if node in joint.required and not is_symbol(node)]


def _runs(kinds: Sequence[int]) -> list[tuple[int, int]]:
    """Where equal segments follow each other: start and end."""
    found, start = [], 0
    for at in range(1, len(kinds) + 1):
        if at == len(kinds) or kinds[at] != kinds[start]:
            found.append((start, at))
            start = at
    return found


def _cheap(joint: Joint) -> set[Node]:
    """What few kernels make of inputs and constants: masks, tables of angles, weights in bf16.

    Gathered parameters are among them, where they are to be gathered again.
    """
    size: dict[Node, int] = {}
    for node in joint.forward:
        if is_symbol(node):
            size[node] = 0
            continue
        gathered = communicates(node.target)
        if not (joint.is_fusible(node) or gathered) or joint.why_kept(node) is not None:
            continue
        total = 1
        for source in node.all_input_nodes:
            if source.op == "call_function":
                total += size.get(source, _CHEAP_NODES + 1)
        if total <= _CHEAP_NODES:
            size[node] = total
    return set(size)


@dataclass
class _Crossing:
    """What later nodes read of earlier ones, behind each node of forward.

    Attributes:
        count, nbytes: of the tensors, small ones left out.
        heavy: whether the node is a product, a convolution, attention or the like.
    """

    count: list[int] = field(default_factory=list)
    nbytes: list[int] = field(default_factory=list)
    heavy: list[bool] = field(default_factory=list)


def _crossing(joint: Joint, order: Sequence[Node], cheap: set[Node]) -> _Crossing:
    last: dict[Node, int] = {}
    small = max((joint.nbytes(node) for node in order), default=0) // _SMALL
    for number, node in enumerate(order):
        for source in node.all_input_nodes:
            base = joint.base(source)
            if base.op != "call_function" or base in cheap or source in cheap:
                continue
            if joint.nbytes(base) > small:
                last[base] = number
    found = _Crossing()
    live: dict[Node, int] = {}
    for number, node in enumerate(order):
        base = joint.base(node)
        if base in last and base not in live and base.op == "call_function":
            live[base] = last[base]
        live = {value: end for value, end in live.items() if end > number}
        found.count.append(len(live))
        found.nbytes.append(sum(map(joint.nbytes, live)))
        found.heavy.append(_is_heavy(joint, node))
    return found


def _is_heavy(joint: Joint, node: Node) -> bool:
    return not joint.is_fusible(node) and not joint.is_view(node)


def products_of(joint: Joint) -> int:
    """How many products, convolutions, attentions and the like forward has."""
    return sum(_is_heavy(joint, node) for node in _required(joint))


def _atoms(joint: Joint, order: Sequence[Node], crossing: _Crossing) -> list[list[Node]]:
    """The shortest parts between places where a single tensor crosses."""
    atoms: list[list[Node]] = [[]]
    heavy = is_cut = False
    for number, node in enumerate(order):
        if is_cut and not (crossing.count[number] <= 1 and _stands_for_its_input(joint, node)):
            atoms.append([])
            heavy = False
        atoms[-1].append(node)
        heavy |= crossing.heavy[number]
        is_cut = heavy and crossing.count[number] <= 1
    return _with_heavy_tail(atoms, heavy)


def _stands_for_its_input(joint: Joint, node: Node) -> bool:
    """Whether a kernel makes of one tensor another that is all that anyone reads of it: a ReLU.

    Then it is that one that should cross.
    """
    sources = [source for source in node.all_input_nodes if source.op == "call_function"]
    return (
        len(sources) == 1
        and list(sources[0].users) == [node]
        and joint.is_fusible(node)
        and not joint.is_view(node)
        and joint.nbytes(node) <= joint.nbytes(sources[0])
    )


def _balanced(order: Sequence[Node], crossing: _Crossing, most: int) -> list[list[Node]]:
    """Parts with about as many products each, cut where the fewest bytes cross."""
    heavy = [number for number, is_heavy in enumerate(crossing.heavy) if is_heavy]
    parts = max(1, min(most, len(heavy)))
    cuts: list[int] = []
    for part in range(1, parts):
        at = part * len(heavy) // parts
        window = range(heavy[at - 1], heavy[at])
        cuts.append(min(window, key=lambda number: (crossing.nbytes[number], -number)) + 1)
    edges = [0, *sorted(set(cuts)), len(order)]
    return [list(order[start:end]) for start, end in pairwise(edges) if end > start]


def _with_heavy_tail(atoms: list[list[Node]], heavy: bool) -> list[list[Node]]:
    """The atoms; a tail of pointwise work belongs to what comes before it."""
    if len(atoms) > 1 and not heavy:
        tail = atoms.pop()
        atoms[-1].extend(tail)
    return atoms


def _repeating(
    joint: Joint, atoms: list[list[Node]], within_layers: bool
) -> tuple[list[list[Node]], tuple[int, int] | None]:
    """Atoms put together, such that what repeats (a layer of two halves) is one segment.

    With the place of all repetitions in the result. With `within_layers` halves stay apart.
    """
    run = _longest_run([_signature(joint, atom) for atom in atoms], [len(atom) for atom in atoms])
    if run is None:
        return atoms, None
    start, end, period = run
    step = 1 if within_layers else period
    groups = [_joined(atoms[:start])] if start else []
    first = len(groups)
    groups += [_joined(atoms[at : at + step]) for at in range(start, end, step)]
    last = len(groups)
    if end < len(atoms):
        groups.append(_joined(atoms[end:]))
    return groups, (first, last)


def _joined(atoms: Sequence[list[Node]]) -> list[Node]:
    return [node for atom in atoms for node in atom]


def _longest_run(hashes: Sequence[object], weights: Sequence[int]) -> tuple[int, int, int] | None:
    """Start, end and period of what repeats, if that is half of everything by weight."""
    count = len(hashes)
    best, most = None, sum(weights) / 2
    for period in range(1, count // 2 + 1):
        start = 0
        while start + 2 * period <= count:
            first = list(hashes[start : start + period])
            end = start + period
            while list(hashes[end : end + period]) == first:
                end += period
            if end - start >= 2 * period:
                weight = sum(weights[start:end])
                if weight > most:
                    best, most = (start, end, period), weight
                start = end
            else:
                start += 1
    return best


def _signature(joint: Joint, atom: Sequence[Node]) -> tuple[object, ...]:
    return tuple(
        (str(node.target), str(getattr(node.meta.get("val"), "shape", None)))
        for node in atom
        if not joint.is_view(node)
    )


def _place_the_rest(joint: Joint, found: Segments) -> None:
    """Nodes that only backward needs belong to the last of what they read."""
    for node in joint.forward:
        if node not in found.home:
            homes = [found.home[s] for s in node.all_input_nodes if s in found.home]
            found.home[node] = max(homes, default=0)


def _shape_of(joint: Joint, members: Sequence[Node], found: Segments) -> tuple[object, ...]:
    """Equal for segments that are the same but for which tensors they read from outside."""
    number = {node: at for at, node in enumerate(members)}
    rows: list[object] = []
    for node in members:
        value = node.meta.get("val")
        rows.append(
            (
                str(node.target),
                str(getattr(value, "shape", None)),
                str(getattr(value, "dtype", None)),
                tuple(
                    number.get(s, "input" if s.op == "placeholder" else "outside")
                    for s in node.all_input_nodes
                ),
                joint.base(node) in found.crossing,
                node in joint.needed,
            )
        )
    return tuple(rows)
