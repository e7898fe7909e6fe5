"""Bytes that live at each step of a graph, and seconds, before it is fused.

What kernels will compute on the way is foreseen by a rule: a pointwise value is written to memory
when something other than a kernel reads it, when it is an output, or when a kernel reads it that
must run later, past another product or attention. `codegen.timeline` counts what really became of
a graph; this is for comparing thousands of possible graphs in seconds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch.fx import Node

from .joint import Joint


@dataclass
class Walk:
    """A forward or backward graph as nodes in order, with sources by node.

    Attributes:
        nodes: what is computed, in order; an entry is any hashable thing.
        sources: what each reads; things that are not in `nodes` are inputs.
        origin: the node of the joint graph that an entry is, or is a copy of.
        outputs: entries that stay until the end, and longer.
    """

    nodes: list[object] = field(default_factory=list)
    sources: dict[object, tuple[object, ...]] = field(default_factory=dict)
    origin: dict[object, Node] = field(default_factory=dict)
    outputs: set[object] = field(default_factory=set)


@dataclass(frozen=True)
class Live:
    """What a walk holds.

    Attributes:
        bytes: at each entry of the walk, with what it reads and writes.
        seconds: of each entry.
    """

    bytes: Sequence[int]
    seconds: Sequence[float]


def live_bytes(joint: Joint, walk: Walk, inputs: Mapping[object, int]) -> Live:
    """Simulate a walk; `inputs` are bytes of the inputs that die with their last use."""
    written = _written(joint, walk)
    number = {entry: at for at, entry in enumerate(walk.nodes)}
    reads = _reads_through(joint, walk, written)
    last: dict[object, int] = {}
    for entry, sources in reads.items():
        for source in sources:
            last[source] = max(last.get(source, -1), number[entry])
    count = len(walk.nodes)
    for entry in walk.outputs:
        last[entry] = count
        if entry not in walk.origin or entry in written:
            continue  # an input that is handed on, or a tensor of its own
        if joint.nbytes(walk.origin[entry]):
            # A view: what it looks at stays. What is on the host looks at nothing.
            for source in reads.get(entry, ()):
                last[source] = count
    change = [0] * (count + 2)
    over = _written_over(joint, walk, reads, last, number)
    for entry in written:
        size = joint.nbytes(walk.origin[entry])
        end = min(last.get(entry, number[entry]), count) + 1
        change[number[entry]] += size
        change[end - (entry in over)] -= size
    for entry, size in inputs.items():
        change[0] += size
        change[min(last.get(entry, 0), count) + 1] -= size
    found, total = [], 0
    for at, entry in enumerate(walk.nodes):
        total += change[at]
        found.append(total + joint.scratch(walk.origin[entry]))
    seconds = [0.0] * count
    for entry, sources in reads.items():
        node = walk.origin[entry]
        if joint.is_fusible(node):
            moved = joint.nbytes(node)
            for source in sources:
                moved += joint.nbytes(walk.origin.get(source, source))  # type: ignore[arg-type]
            seconds[number[entry]] = joint.rates.seconds(moved)
        else:
            seconds[number[entry]] = joint.seconds(node)
    return Live(found, seconds)


def _written(joint: Joint, walk: Walk) -> set[object]:
    """Entries that will be in memory as storages of their own."""
    depth: dict[object, int] = {}
    fusible = {entry: joint.is_fusible(node) for entry, node in walk.origin.items()}
    for entry in walk.nodes:
        deepest = 0
        for source in walk.sources[entry]:
            if source in depth:
                is_call = not fusible[source] and not joint.is_view(walk.origin[source])
                deepest = max(deepest, depth[source] + is_call)
        depth[entry] = deepest
    users: dict[object, int] = {}
    # What kernels compute waits for the first that reads it.
    for entry in reversed(walk.nodes):
        if fusible[entry] and entry not in walk.outputs:
            depth[entry] = max(depth[entry], users.get(entry, 0))
        for source in walk.sources[entry]:
            users[source] = min(users.get(source, depth[entry]), depth[entry])
    found: set[object] = set()
    read = set(walk.outputs)
    for entry in reversed(walk.nodes):
        node = walk.origin[entry]
        base = joint.base(node)
        is_view = base is not node
        for source in walk.sources[entry]:
            if source not in depth:
                continue
            if is_view and joint.base(walk.origin[source]) is base:
                is_read = entry in read
            else:
                is_read = not fusible[entry]
            if is_read or depth[entry] > depth[source]:
                read.add(source)
        if joint.is_symbol(node) or is_view or not joint.nbytes(node):
            continue
        if entry in read or not fusible[entry]:
            found.add(entry)
    return found


def _reads_through(
    joint: Joint, walk: Walk, written: Collection[object]
) -> dict[object, frozenset[object]]:
    """For each written entry, what memory it reads, through whatever is computed on the way."""
    seen: dict[object, frozenset[object]] = {}
    found: dict[object, frozenset[object]] = {}
    for entry in walk.nodes:
        reads: set[object] = set()
        for source in walk.sources[entry]:
            if source in written or source not in walk.sources:
                reads.add(source)
            else:
                reads |= seen[source]
        seen[entry] = frozenset(reads)
        if entry in written or entry in walk.outputs or not joint.is_fusible(walk.origin[entry]):
            found[entry] = seen[entry]
    return found


def _written_over(
    joint: Joint,
    walk: Walk,
    reads: Mapping[object, frozenset[object]],
    last: Mapping[object, int],
    number: Mapping[object, int],
) -> set[object]:
    """Entries whose memory becomes that of what is made of them last, by a kernel."""
    found: set[object] = set()
    for entry, sources in reads.items():
        node = walk.origin[entry]
        if not joint.is_fusible(node):
            continue
        like = joint.nbytes(node), _dtype(node)
        for source in sorted(sources & walk.sources.keys(), key=lambda s: number[s]):
            other = walk.origin[source]
            dies = last[source] == number[entry] and source not in found
            if dies and (joint.nbytes(other), _dtype(other)) == like:
                found.add(source)
                break
    return found


def _dtype(node: Node) -> object:
    return getattr(node.meta.get("val"), "dtype", None)


def walk_of(nodes: Iterable[Node], outputs: Iterable[Node]) -> Walk:
    """Nodes of a graph as they are."""
    walk = Walk()
    for node in nodes:
        walk.nodes.append(node)
        walk.sources[node] = tuple(node.all_input_nodes)
        walk.origin[node] = node
    walk.outputs = {node for node in outputs if node in walk.sources}
    return walk
