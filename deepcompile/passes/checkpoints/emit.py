"""The joint graph with the chosen recomputation written out, copy by copy.

A value that backward needs and that is not kept is computed again right before the first node
that needs it, from what is kept, deepest first. What belongs to the segment whose gradients are
being computed stays until its last use there; everything of another segment is computed once for
each segment that needs it, so that no chain of copies stays alive through all of backward.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch.fx import Graph, Node
from torch.fx.node import map_arg

from .joint import Joint
from .live import Walk
from .segments import Segments

if TYPE_CHECKING:
    from .transfers import Transfer


@dataclass
class Recompute:
    """Backward as a walk with copies.

    Attributes:
        walk: entries are backward nodes, and pairs (forward node, segment) for copies.
        segment: of which segment each entry of the walk computes gradients.
        saved: what forward leaves for it, as bases; inputs of the step are not among them.
        inputs: inputs of the step that it reads.
        late: for waits for copies to the host, the node of forward that each is to stand behind.
        transfers: all copies between the device and the host, as they are placed.
    """

    walk: Walk = field(default_factory=Walk)
    segment: list[int] = field(default_factory=list)
    saved: dict[Node, None] = field(default_factory=dict)
    inputs: dict[Node, None] = field(default_factory=dict)
    late: dict[Node, Node] = field(default_factory=dict)
    transfers: list[Transfer] = field(default_factory=list)


def backward_segments(joint: Joint, segments: Segments) -> dict[Node, int]:
    """The segment that each backward node computes gradients of; it never grows in their order."""
    found: dict[Node, int] = {}
    lowest = segments.count - 1
    for node in joint.backward:
        homes = []
        for source in node.all_input_nodes:
            if source in found:
                continue
            base = joint.base(source)
            home = segments.home.get(source)
            if home is None or source in segments.cheap or base in segments.crossing:
                continue
            # What is made of inputs alone, for backward, is of no segment.
            if source in joint.required or any(s in segments.home for s in source.all_input_nodes):
                homes.append(home)
        found[node] = lowest = min(lowest, max(homes, default=lowest))
    return found


def recompute(
    joint: Joint,
    segments: Segments,
    keep: Collection[Node],
    of: Mapping[Node, int],
    group: Mapping[int, int],
    instead: Mapping[Node, Node],
) -> Recompute:
    """Backward as a walk, with copies of all that it needs and `keep` (bases) does not have.

    Args:
        of: the segment that each backward node computes gradients of.
        group: of each segment, the first one of its part: what one segment of a part hands to the
            next is computed once for the part, on the way to the last.
        instead: what stands for a tensor that is kept in another form.
    """
    found = Recompute()
    walk = found.walk
    copies: dict[tuple[Node, int], object] = {}
    is_there: dict[Node, bool] = {}

    def available(node: Node, number: int) -> object:
        stack: list[tuple[Node, bool]] = [(node, False)]
        while stack:
            want, ready = stack.pop()
            want = instead.get(want, want)
            if _given(want, number) is not None:
                continue
            if not ready:
                stack.append((want, True))
                stack += [(source, False) for source in reversed(want.all_input_nodes)]
                continue
            entry = (want, owner(want, number))
            walk.nodes.append(entry)
            walk.origin[entry] = want
            sources = tuple(_given(source, number) for source in want.all_input_nodes)
            walk.sources[entry] = sources
            found.segment.append(number)
            copies[entry] = entry
        result = _given(node, number)
        assert result is not None
        return result

    def _given(node: Node, number: int) -> object | None:
        node = instead.get(node, node)
        stays = is_there.get(node)
        if stays is None:
            stays = is_there[node] = _is_there(node)
        return node if stays else copies.get((node, owner(node, number)))

    def _is_there(node: Node) -> bool:
        """Whether backward has it without computing it, which is noted."""
        if node.op != "call_function" or joint.is_symbol(node):
            found.inputs[node] = None
            return True
        if node in keep or _is_never_repeated(joint, node):
            found.saved[node] = None
            return True
        return False

    def owner(node: Node, number: int) -> int:
        """The segment that a copy is made for."""
        handed_on = node in segments.crossing and group[segments.home[node]] == group[number]
        return group[number] if handed_on else number

    for node in joint.backward:
        number = of[node]
        sources: list[object] = []
        for source in node.all_input_nodes:
            if source in walk.sources or source in of or source.op == "placeholder":
                if source.op == "placeholder":
                    found.inputs[source] = None
                sources.append(source)
            else:
                sources.append(available(source, number))
        walk.nodes.append(node)
        walk.origin[node] = node
        walk.sources[node] = tuple(sources)
        found.segment.append(number)
    for output in joint.outputs[joint.forward_outputs :]:
        if isinstance(output, Node):
            if output not in walk.sources and output.op == "call_function":
                walk.outputs.add(available(output, 0))
            else:
                walk.outputs.add(output)
                if output.op == "placeholder":
                    found.inputs[output] = None
    return found


def _is_never_repeated(joint: Joint, node: Node) -> bool:
    """Whether it is kept whoever asks for it: a result of what must run once, or a part of one."""
    if node.target is operator.getitem:
        return isinstance(node.args[0], Node) and joint.why_kept(node.args[0]) is not None
    return joint.why_kept(node) is not None


@contextmanager
def written_out(joint: Joint, recomputed: Recompute) -> Iterator[None]:
    """The joint graph with copies, where backward has them; without them afterwards.

    What forward waits for late is waited for there.

    Every node of backward has the segment it computes gradients of in `meta["segment"]`, and each
    copy that is not small the one it was made for in `meta["recomputed_for"]`: copies of one node
    for different segments are not the same value for later passes, which would keep it alive.
    """
    graph: Graph = joint.graph
    walk = recomputed.walk
    (output,) = graph.find_nodes(op="output")
    before = {node: (node.args, node.kwargs) for node in [*joint.backward, output]}
    made: dict[object, Node] = {}
    waiting: list[object] = []
    segment = dict(zip(walk.nodes, recomputed.segment, strict=True))
    were_behind = {wait: wait.prev for wait in recomputed.late}
    try:
        for wait, anchor in recomputed.late.items():
            _put_behind(joint, anchor, wait)
        for entry in walk.nodes:
            if isinstance(entry, tuple):
                waiting.append(entry)
                continue
            assert isinstance(entry, Node)
            entry.meta["segment"] = segment[entry]
            _insert(joint, walk, waiting, entry, made)
            waiting = []
            current = dict(zip(entry.all_input_nodes, walk.sources[entry], strict=True))
            _redirect(entry, {old: made.get(new) for old, new in current.items()})
        _insert(joint, walk, waiting, output, made)
        results = list(output.args[0])
        for number in range(joint.forward_outputs, len(results)):
            if (results[number], 0) in walk.outputs:
                results[number] = made[results[number], 0]
        output.args = (type(output.args[0])(results), *output.args[1:])
        yield
    finally:
        for node, (args, kwargs) in before.items():
            node.args, node.kwargs = args, kwargs
        for copy in reversed(made.values()):
            graph.erase_node(copy)
        for wait, anchor in reversed(were_behind.items()):
            _put_behind(joint, anchor, wait)


def _put_behind(joint: Joint, anchor: Node, wait: Node) -> None:
    """Move a wait for a copy to the host, and the forms that are made of what it gives."""
    moved = [wait]
    for node in moved:
        anchor.append(node)
        anchor = node
        moved += (user for user in node.users if user in joint.extra)


def _redirect(node: Node, current: dict[Node, Node | None]) -> None:
    """Let a node read copies in place of what it read."""
    changed = {old: new for old, new in current.items() if new is not None}
    if changed:
        node.args = map_arg(node.args, lambda read: changed.get(read, read))
        node.kwargs = map_arg(node.kwargs, lambda read: changed.get(read, read))


_SMALL = 1 << 16
"""Bytes up to which a copy may serve everyone who needs the value."""


def _insert(
    joint: Joint, walk: Walk, entries: list[object], before: Node, made: dict[object, Node]
) -> None:
    for entry in entries:
        original = walk.origin[entry]
        assert isinstance(entry, tuple)
        sources = dict(zip(original.all_input_nodes, walk.sources[entry], strict=True))

        def current(node: Node, sources: dict[Node, object] = sources) -> Node:
            source = sources[node]
            return source if isinstance(source, Node) else made[source]

        with joint.graph.inserting_before(before):
            copy = joint.graph.node_copy(original, current)
        copy.meta = dict(original.meta)
        copy.meta.pop("recompute", None)
        copy.meta["segment"] = entry[1]
        if joint.nbytes(original) > _SMALL:
            copy.meta["recomputed_for"] = entry[1]
        made[entry] = copy
