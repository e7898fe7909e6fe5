"""Groups of nodes that can be one kernel, and the algebra of merging two of them.

A group has axes, and for each of its nodes the position at which the kernel has that node's
value. Two groups merge when their axes can be identified so that one reads the other's values
where they are: the positions on both sides of an edge are matched dimension by dimension as
mixed-radix numbers, splitting axes where the factors differ. Axes are *parallel* or *reduced*
once a reduction has said so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count

from torch.fx import Node

from ...ir.index import ONE, ZERO, Index, exact_divide, product
from ..lowering.views import Position


class Reject(Exception):
    """Two groups cannot merge; the message is the reason kept with the edge."""


@dataclass
class Group:
    """Nodes that will be one kernel.

    Attributes:
        axes: name -> extent, in loop order.
        labels: axis name -> "P" or "R"; empty until a reduction labels the axes.
        positions, operands, reads: per node, in the axes of the group (see `probe.Access`).
    """

    id: int
    nodes: list[Node]
    axes: dict[str, Index]
    labels: dict[str, str]
    positions: dict[Node, Position]
    operands: dict[Node, Position]
    reads: dict[Node, tuple[tuple[Node, Position], ...]]
    cost: float

    @property
    def has_reduction(self) -> bool:
        """Whether any node reduces."""
        return bool(self.operands)

    def names(self, label: str) -> frozenset[str]:
        """The axes with a label."""
        return frozenset(name for name, given in self.labels.items() if given == label)

    def substitute(self, values: dict[str, Index], axes: dict[str, Index]) -> None:
        """Rewrite all positions under `values` (old axis -> expression over `axes`)."""
        extents = {**self.axes, **axes}
        cache: dict[Index, Index] = {}

        def change(position: Position) -> Position:
            result = []
            for index in position:
                known = cache.get(index)
                if known is None:
                    known = cache[index] = index.substitute(values, extents)
                result.append(known)
            return tuple(result)

        self.positions = {node: change(p) for node, p in self.positions.items()}
        self.operands = {node: change(p) for node, p in self.operands.items()}
        self.reads = {
            node: tuple((source, change(p)) for source, p in reads)
            for node, reads in self.reads.items()
        }
        labels: dict[str, str] = {}
        for name, label in self.labels.items():
            for inner in values.get(name, Index.of(name)).names():
                if inner in extents:
                    labels[inner] = label
        self.labels = labels
        renamed: dict[str, Index] = {}
        for name, extent in self.axes.items():
            if name not in values:
                renamed[name] = extent
                continue
            for inner in _radix_names(values[name]):
                if inner in axes:
                    renamed[inner] = axes[inner]
        self.axes = renamed


def _radix_names(index: Index) -> list[str]:
    """The names of a mixed-radix sum, outermost (largest stride) first."""
    pairs = [(name, index.coefficient(name) or ZERO) for name in index.names()]
    pairs.sort(key=lambda pair: _weight(pair[1]), reverse=True)
    return [name for name, _ in pairs]


def _weight(stride: Index) -> tuple[int, int]:
    degree = max((len(monomial) for monomial, _ in stride.terms), default=0)
    return degree, sum(abs(coefficient) for _, coefficient in stride.terms)


def radix(index: Index, extents: dict[str, Index]) -> list[str] | None:
    """The axes of `index`, outermost first, when it walks them all in row-major order."""
    if index == ZERO:
        return []
    # Other names are sizes, in strides.
    names = [name for name in _radix_names(index) if name in extents]
    expected = ONE
    for name in reversed(names):
        if index.coefficient(name) != expected:
            return None
        expected = expected * extents[name]
    rest = index
    for name in names:
        rest = rest - Index.of(name) * (index.coefficient(name) or ZERO)
    return names if rest == ZERO else None


@dataclass
class Match:
    """An identification of axes: pieces (name, extent) that the axes of either side are made of."""

    left: dict[str, list[tuple[str, Index]]]
    right: dict[str, list[tuple[str, Index]]]


_NAMES = count()


def fresh_axis() -> str:
    """A new axis name."""
    return f"a{next(_NAMES)}_"


def refine(
    left: list[tuple[str, Index]],
    right: list[tuple[str, Index]],
    match: Match,
    whole: dict[str, Index],
) -> None:
    """Match two row-major lists of axes of equal product, splitting where they differ.

    `whole` has the extents of the right side's axes.

    Raises:
        Reject: when no common factors are found.
    """
    a, b = list(left), list(right)
    pieces_a: dict[str, list[tuple[str, Index]]] = {}
    pieces_b: dict[str, list[tuple[str, Index]]] = {}
    while a or b:
        if not a or not b:
            raise Reject("the shapes of their loops differ")
        name_a, size_a = a.pop()
        name_b, size_b = b.pop()
        if size_a == size_b:
            size = size_a
        elif (quotient := exact_divide(size_a, size_b)) is not None:
            size = size_b
            a.append((name_a, quotient))
        elif (quotient := exact_divide(size_b, size_a)) is not None:
            size = size_a
            b.append((name_b, quotient))
        else:
            raise Reject("the shapes of their loops have no common factors")
        # A right axis that stays whole keeps its name: most merges rename one side only.
        shared = name_b if whole[name_b] == size else fresh_axis()
        pieces_a.setdefault(name_a, []).insert(0, (shared, size))
        pieces_b.setdefault(name_b, []).insert(0, (shared, size))
    for found, known in ((pieces_a, match.left), (pieces_b, match.right)):
        for name, pieces in found.items():
            if name in known:
                raise Reject("an axis is read in two dimensions")
            known[name] = pieces


def match_positions(pairs: list[tuple[Position, Position]], left: Group, right: Group) -> Match:
    """Identify axes so that each pair of positions becomes the same.

    Raises:
        Reject: when a dimension is not a plain walk over whole axes, or the factors differ.
    """
    match = Match({}, {})
    for mine, theirs in pairs:
        for a, b in zip(mine, theirs, strict=True):
            names_a, names_b = radix(a, left.axes), radix(b, right.axes)
            if names_a is None or names_b is None:
                # A shifted or gathered read says nothing about the axes of this dimension.
                continue
            if not names_a and not names_b:
                continue
            if any(n in match.left for n in names_a) and any(n in match.right for n in names_b):
                continue
            refine(
                [(n, left.axes[n]) for n in names_a],
                [(n, right.axes[n]) for n in names_b],
                match,
                right.axes,
            )
    return match


def apply_match(left: Group, right: Group, match: Match) -> dict[str, str]:
    """Rewrite both groups into shared axes; returns label conflicts checked and joined.

    Raises:
        Reject: when an axis is parallel on one side and reduced on the other.
    """
    labels: dict[str, str] = {}
    for group, pieces in ((left, match.left), (right, match.right)):
        for name, parts in pieces.items():
            label = group.labels.get(name)
            if label is None:
                continue
            for part, _ in parts:
                if labels.setdefault(part, label) != label:
                    raise Reject("an axis is reduced in one and parallel in the other")
    for group, pieces in ((left, match.left), (right, match.right)):
        values: dict[str, Index] = {}
        axes: dict[str, Index] = {}
        for name, parts in pieces.items():
            if len(parts) == 1 and parts[0][0] == name:
                continue
            total, stride = ZERO, ONE
            for part, size in reversed(parts):
                total = total + Index.of(part) * stride
                stride = stride * size
                axes[part] = size
            values[name] = total
        if values:
            group.substitute(values, axes)
    return labels


def copy_group(group: Group) -> Group:
    """A group to try a merge on."""
    return Group(
        group.id,
        list(group.nodes),
        dict(group.axes),
        dict(group.labels),
        dict(group.positions),
        dict(group.operands),
        dict(group.reads),
        group.cost,
    )


def cross_reads(reader: Group, source: Group) -> Iterator[tuple[Node, Node, Position]]:
    """(reading node, node of `source` it reads, position) for each read between two groups."""
    for node, reads in reader.reads.items():
        for read, position in reads:
            if read in source.positions:
                yield node, read, position


def _join(left: Group, right: Group, match: Match) -> None:
    """Match what the edges left open: all remaining axes of both sides, in loop order."""
    open_left = [(n, e) for n, e in left.axes.items() if n not in match.left]
    open_right = [(n, e) for n, e in right.axes.items() if n not in match.right]
    if open_left and open_right:
        refine(open_left, open_right, match, right.axes)


def merge(
    left: Group,
    right: Group,
    pairs: list[tuple[Position, Position]],
    order: Mapping[Node, int],
) -> tuple[Group, bool]:
    """One group of both, `pairs` being positions (in left's axes, in right's) to identify.

    `order` gives each node's place in the graph.

    Returns the group, and whether some read inside it is at another position than its value (then
    the caller must see that the kernel can still be built).

    Raises:
        Reject: with the reason, when no one kernel can have both.
    """
    left, right = copy_group(left), copy_group(right)
    match = match_positions(pairs, left, right)
    _join(left, right, match)
    labels = apply_match(left, right, match)
    only_left = left.axes.keys() - right.axes.keys()
    only_right = right.axes.keys() - left.axes.keys()
    if only_left and only_right:
        raise Reject("the shapes of their loops differ")
    big, small = (right, left) if only_right else (left, right)
    _label(big, small, labels, bool(only_left or only_right), small is right)
    merged = big
    merged.nodes = left.nodes + right.nodes
    merged.positions = {**left.positions, **right.positions}
    merged.operands = {**left.operands, **right.operands}
    merged.reads = {**left.reads, **right.reads}
    merged.cost = left.cost + right.cost
    _check_reductions(merged)
    _check_phases(merged, order)
    return merged, _shifted(merged)


def _label(big: Group, small: Group, labels: dict[str, str], uneven: bool, consumer: bool) -> None:
    known = {**small.labels, **big.labels, **labels}
    for name, label in {**big.labels, **small.labels}.items():
        if known[name] != label:
            raise Reject("an axis is reduced in one and parallel in the other")
    if not uneven:
        if known and known.keys() != big.axes.keys():
            for name in big.axes:
                known.setdefault(name, "P")
        big.labels = known
        return
    inner = small.axes.keys()
    if not inner and not consumer:
        raise Reject("a single value is cheaper to compute where it is read")
    if not big.labels:
        if not consumer and not small.has_reduction and not big.has_reduction:
            _label_rows(big, inner)
            return
        if inner:
            raise Reject("it is smaller than the rows of the other")
        return
    parallel, reduced = big.names("P"), big.names("R")
    if inner == parallel or not inner or (inner == reduced and consumer):
        if small.labels and any(label == "R" for label in small.labels.values()):
            raise Reject("it has rows of its own")
        return
    raise Reject("it is neither one value a row nor one a column of the other")


def _label_rows(big: Group, inner: Iterable[str]) -> None:
    """Make a pointwise group a row program, so that smaller values are computed once a row."""
    rows = set(inner)
    rest = [name for name in big.axes if name not in rows]
    if list(big.axes)[-len(rest) :] != rest:
        raise Reject("it is broadcast over other axes than the innermost")
    width = product([big.axes[name] for name in rest]).constant()
    if width is not None and width < 16:
        raise Reject("it is broadcast over rows too short to pay")
    big.labels = {name: "P" if name in rows else "R" for name in big.axes}


def covered_axes(group: Group, node: Node) -> frozenset[str]:
    """The axes a reduction of the group runs over."""
    operand, position = group.operands[node], group.positions[node]
    kept: set[str] = set()
    for index in position:
        kept |= index.names()
    every: set[str] = set()
    for index in operand:
        every |= index.names()
    return frozenset((every - kept) & group.axes.keys())


def _check_reductions(group: Group) -> None:
    parallel, reduced = group.names("P"), group.names("R")
    every = frozenset(group.axes)
    for node in group.operands:
        covered = covered_axes(group, node)
        if covered == every or (group.labels and covered in (parallel, reduced)):
            continue
        raise Reject("they reduce over different axes")


def _accumulates(group: Group, node: Node) -> bool:
    covered = covered_axes(group, node)
    return not group.labels or not covered.isdisjoint(group.names("P"))


def _check_phases(group: Group, order: Mapping[Node, int]) -> None:
    parallel = group.names("P") if group.labels else frozenset(group.axes)
    sums = {node for node in group.operands if _accumulates(group, node)}
    if not sums:
        return
    late = set(sums)
    for node in sorted(group.nodes, key=order.__getitem__):
        inside = [read for read, _ in group.reads[node] if read in group.positions]
        if not any(read in late for read in inside):
            continue
        if node in group.operands:
            raise Reject("it reduces what is complete only after all rows")
        if any(index.names() & parallel for index in group.positions[node]):
            raise Reject("it needs what is complete only after all rows")
        if any(read not in late for read in inside):
            raise Reject("it mixes values of one row with totals over all rows")
        late.add(node)


def _shifted(group: Group) -> bool:
    return any(
        read in group.positions and position != group.positions[read]
        for reads in group.reads.values()
        for read, position in reads
    )
