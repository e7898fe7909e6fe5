"""All of it in order: segments, choices a layer, a combination that fits, the graph it means."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from torch.fx import Node

from ...capture.offload import OFFLOAD_WAIT
from .choices import keep_sets, layer_of
from .combine import Choice, Combination
from .emit import Recompute, backward_segments, recompute
from .forms import Form, Forms, Stored, add_forms
from .joint import Joint
from .live import Live, live_bytes, walk_of
from .segments import Segments, products_of, segment
from .shorter import Shorter, shorter
from .transfers import start_early, wait_late

PARTS = {0.5: 12, 0.6: 16, 0.8: 20, 1.0: 24}
"""Into how many segments a model is cut in which no layer repeats: so many for each of its
products, convolutions and the like, but no more than that. One after the other is tried."""
GROUPS = (2, 4, 8)
"""How many equal layers may go without the tensors between them."""
SPANS = (2, 3, 4, 6)
"""The same for segments that are not equal: they may be any that follow each other."""


@dataclass(frozen=True)
class Part:
    """Consecutive segments with one choice.

    Attributes:
        start, end: its segments, `end` not included.
        keep: bases that forward keeps for backward.
        instead: for tensors kept in another form, what backward makes of that.
    """

    start: int
    end: int
    keep: frozenset[Node]
    instead: Mapping[Node, Node] = field(default_factory=dict)


@dataclass(eq=False)
class Options:
    """What each part of a model can keep, and what that costs in bytes and seconds.

    Attributes:
        parts: by the segment that each begins with.
        layers: the same as numbers, for `combine`.
        unsolved: why choices are not the quickest of their size, each reason once; see `keep_sets`.
        shorter: the graph with fewer of its equal segments, if it has many.
    """

    joint: Joint
    segments: Segments
    backward: dict[Node, int]
    forms: Forms = field(default_factory=Forms)
    parts: list[list[Part]] = field(default_factory=list)
    layers: list[list[Choice]] = field(default_factory=list)
    unsolved: dict[str, None] = field(default_factory=dict)
    shorter: Shorter | None = None

    def recompute(self, parts: Iterable[Part]) -> Recompute:
        """Backward when these parts, which cover all segments, keep what they keep."""
        keep: set[Node] = set()
        group: dict[int, int] = {}
        instead: dict[Node, Node] = {}
        for part in parts:
            keep |= part.keep
            instead |= part.instead
            group |= dict.fromkeys(range(part.start, part.end), part.start)
        return recompute(self.joint, self.segments, keep, self.backward, group, instead)

    def placed(self, parts: Iterable[Part], room: int) -> Recompute:
        """The same with copies to and from the host beside work, where a step of `room` bytes may.

        With `room` 0 every copy is waited for where it starts.
        """
        found = self.recompute(parts)
        place_transfers(self.joint, found, room)
        return found

    def form_of(self, part: Part) -> dict[Node, Form]:
        """The form of each tensor that a part keeps in another one."""
        return {
            node: form
            for form, stored in self.forms.stored.items()
            for node, restored in part.instead.items()
            if node in stored and stored[node].restored is restored
        }

    def uses_host(self, part: Part) -> bool:
        """Whether a part keeps tensors in the host's memory."""
        return "host" in self.form_of(part).values()

    def chosen(self, combination: Combination) -> list[Part]:
        """The parts of a combination."""
        return [self.parts[start][number] for start, number in combination.chosen]


def alternatives(joint: Joint, allowed: Sequence[Form] = ()) -> list[Options]:
    """Choices for a joint graph cut into layers, and into parts of as much work if none repeats.

    Args:
        joint: the graph; forms of its tensors are written into it, where nothing reads them.
        allowed: forms in which tensors may wait for backward.
    """
    forms = add_forms(joint, allowed)
    segments = segment(joint)
    found = [options_of(joint, segments, forms, allowed)]
    if not segments.repeats:
        cuts = [segment(joint, parts=parts) for parts in _numbers_of_parts(joint)]
        found += [options_of(joint, cut, forms, allowed) for cut in cuts]
    return found


def _numbers_of_parts(joint: Joint) -> list[int]:
    """How many segments to cut a model into."""
    products = products_of(joint)
    return sorted({max(1, min(int(products * part), most)) for part, most in PARTS.items()})


def finer(first: Options, allowed: Sequence[Form] = ()) -> list[Options]:
    """Choices for layers that are cut once more, wherever a single tensor crosses.

    Backward then computes a layer again for each part of it, and holds less at once. Nothing where
    no layer can be cut.
    """
    cut = segment(first.joint, within_layers=True)
    if not first.segments.repeats or cut.count == first.segments.count:
        return []
    return [options_of(first.joint, cut, first.forms, allowed)]


def options_of(
    joint: Joint, segments: Segments, forms: Forms, allowed: Sequence[Form] = ()
) -> Options:
    """Choices for every part of a joint graph; equal segments are solved once.

    What a choice costs is simulated in its place: all segments take their choice of one number, so
    a dozen simulations of the whole graph give the figures of all segments. Of many equal segments
    few are simulated, if that gives the same figures as all of them do for the leanest choices and
    the largest groups.
    """
    found = Options(joint, segments, backward_segments(joint, segments), forms)
    found.parts = [[] for _ in range(segments.count)]
    found.layers = [[] for _ in range(segments.count)]
    solved: dict[int, list[frozenset[int]]] = {}
    for number in range(segments.count):
        layer = layer_of(joint, segments, number)
        kind = segments.kind[number]
        if kind not in solved:
            solved[kind] = keep_sets(layer, found.unsolved.setdefault)
        whole = [
            Part(number, number + 1, frozenset(layer.nodes[at] for at in kept))
            for kept in solved[kind]
        ]
        found.parts[number] += whole
        for form in allowed:
            found.parts[number] += [_in_form(part, forms.stored.get(form, {})) for part in whole]
    leanest = [min(parts, key=lambda part: _kept_bytes(joint, part)) for parts in found.parts]
    found.shorter = shorter(joint, segments, found.backward, max(GROUPS))
    if found.shorter is not None:
        for compared in (leanest, _grouped(found, max(GROUPS), 0, leanest)):
            if not _same_figures(found, compared):
                found.shorter = None
                break
    most = max((len(parts) for parts in found.parts), default=0)
    columns = [
        _simulate(found, [parts[min(number, len(parts) - 1)] for parts in found.parts])
        for number in range(most)
    ]
    # The same whatever forms are allowed, so that plans with and without them compare.
    least = [
        min(
            column[at].seconds
            for column, part in zip(columns, parts, strict=False)
            if not part.instead
        )
        for at, parts in enumerate(found.parts)
    ]
    for at, parts in enumerate(found.parts):
        for number in range(len(parts)):
            choice = columns[number][at]
            found.layers[at].append(replace(choice, seconds=max(0.0, choice.seconds - least[at])))
    if segments.repeats:
        groups = [(size, 0) for size in GROUPS]
    else:
        groups = [(size, offset) for size in SPANS for offset in range(size)]
    for size, offset in groups:
        _add_groups(found, size, offset, leanest, least)
    return found


def _kept_bytes(joint: Joint, part: Part) -> float:
    """Bytes that a part of one segment keeps; endless in other forms."""
    return math.inf if part.instead else sum(map(joint.nbytes, part.keep))


def _same_figures(options: Options, parts: Sequence[Part]) -> bool:
    """Whether the shorter graph gives the figures of the whole one."""
    pairs = zip(_simulate(options, parts), _simulate(options, parts, whole=True), strict=True)
    return all(
        replace(short, seconds=0.0) == replace(whole, seconds=0.0)
        and math.isclose(short.seconds, whole.seconds, rel_tol=1e-6, abs_tol=1e-12)
        for short, whole in pairs
    )


def _add_groups(
    options: Options, size: int, offset: int, leanest: Sequence[Part], least: Sequence[float]
) -> None:
    """Choices for groups of `size` segments that keep only what goes into the first."""
    parts = _grouped(options, size, offset, leanest)
    if len(parts) == len(leanest):
        return
    for choice, part in zip(_simulate(options, parts), parts, strict=True):
        if part.end - part.start > 1:
            extra = max(0.0, choice.seconds - sum(least[part.start : part.end]))
            options.parts[part.start].append(part)
            options.layers[part.start].append(replace(choice, seconds=extra))


def _grouped(options: Options, size: int, offset: int, leanest: Sequence[Part]) -> list[Part]:
    """Groups of `size` segments wherever there may be, and between them one by one."""
    segments = options.segments
    groups: list[Part] = []
    for start, end in segments.runs:
        for at in range(start + offset, end - size + 1, size):
            last = at + size - 1
            # What the last one hands on belongs to the next part, and is kept.
            keep = frozenset(n for n in leanest[last].keep if n in segments.crossing)
            groups.append(Part(at, at + size, keep))
    covered = {number for part in groups for number in range(part.start, part.end)}
    rest = [part for part in leanest if part.start not in covered]
    return sorted([*groups, *rest], key=lambda part: part.start)


def _in_form(part: Part, stored: Mapping[Node, Stored]) -> Part:
    """The same part with all that has this form kept in it."""
    changed = {node: stored[node] for node in sorted(part.keep, key=str) if node in stored}
    keep = {node for node in part.keep if node not in changed}
    for other in changed.values():
        keep.update(other.kept)
    instead = {node: other.restored for node, other in changed.items()}
    return Part(part.start, part.end, frozenset(keep), instead)


def _simulate(options: Options, parts: Sequence[Part], whole: bool = False) -> list[Choice]:
    """What each part costs when the model is made of these.

    Args:
        parts: alike for segments that are left out of the shorter graph, and those that stand for
            them.
        whole: never to simulate the shorter graph.
    """
    short = options.shorter
    # Copies queue up over all segments.
    if short is None or whole or any(map(options.uses_host, parts)):
        return _simulate_all(options, parts)
    left = [part for part in parts if part.start not in short.gone]
    choices = _simulate_all(
        Options(short.joint, short.segments, short.backward),
        [
            Part(
                short.stands[part.start],
                short.stands[part.end - 1] + 1,
                frozenset(short.copies[node] for node in part.keep),
                {short.copies[old]: short.copies[new] for old, new in part.instead.items()},
            )
            for part in left
        ],
    )
    found = {short.stands[part.start]: choice for part, choice in zip(left, choices, strict=True)}
    return [
        replace(
            choice,
            # Backward may have nothing to do for a part.
            backward=choice.backward and choice.backward + short.more[part.start],
        )
        for part, choice in ((part, found[short.stands[part.start]]) for part in parts)
    ]


def _simulate_all(options: Options, parts: Sequence[Part]) -> list[Choice]:
    joint, segments = options.joint, options.segments
    backward = options.recompute(parts)
    part_of = [number for number, part in enumerate(parts) for _ in range(part.start, part.end)]
    saved, seconds = [0] * len(parts), [0.0] * len(parts)
    for node, owner in _owners(joint, segments, backward).items():
        saved[part_of[owner]] += joint.nbytes(node)
        # What forward does for backward's sake only: other forms of tensors.
        if node in joint.extra:
            made = node.all_input_nodes[0] if node.target is OFFLOAD_WAIT else node
            seconds[part_of[segments.home[node]]] += joint.seconds(made)
    before = [0] * len(parts)
    for number in range(1, len(parts)):
        before[number] = before[number - 1] + saved[number - 1]
    nodes, live = forward_nodes(joint, backward.saved), forward_live(joint, backward.saved)
    homes = [part_of[segments.home[node]] for node in nodes]
    forward = _most(homes, live, before)
    homes_back = [part_of[number] for number in backward.segment]
    live_back = backward_live(joint, backward)
    at_backward = _most(homes_back, live_back, before)
    for number, spent in zip(homes_back, live_back.seconds, strict=True):
        seconds[number] += spent
    # Copies are under way where that adds nothing to what the part holds at most, whatever other
    # parts choose. A plan may have more room.
    room = [sum(most) for most in zip(before, map(max, forward, at_backward), strict=True)]
    _, copies = wait_late(joint, nodes, backward.saved, live, [room[home] for home in homes])
    copies += start_early(joint, backward, live_back, [room[home] for home in homes_back])
    for copy in copies:
        seconds[part_of[segments.home[copy.tensor]]] += copy.exposed
    lengths = [part.end - part.start for part in parts]
    rows = zip(saved, forward, at_backward, seconds, lengths, strict=True)
    return [Choice(*row) for row in rows]


def _owners(joint: Joint, segments: Segments, backward: Recompute) -> dict[Node, int]:
    """The segment for whose sake a tensor is saved: the first that reads it again.

    What goes from one segment to the next is saved only if that one needs it, whatever the first
    one keeps.
    """
    first: dict[Node, int] = {}
    for entry, number in zip(backward.walk.nodes, backward.segment, strict=True):
        for source in backward.walk.sources[entry]:
            if isinstance(source, Node):
                base = joint.base(source)
                first[base] = min(number, first.get(base, number))
    return {
        node: max(segments.home[node], first.get(node, segments.home[node]))
        for node in backward.saved
    }


def place_transfers(joint: Joint, backward: Recompute, room: int) -> None:
    """Let copies run beside work wherever a step that holds `room` bytes has place for them."""
    if not any(node.target is OFFLOAD_WAIT for node in backward.saved):
        return
    nodes, live = forward_nodes(joint, backward.saved), forward_live(joint, backward.saved)
    order, to_host = wait_late(joint, nodes, backward.saved, live, [room] * len(nodes))
    waits = {copy.wait for copy in to_host}
    backward.late = {node: before for before, node in pairwise(order) if node in waits}
    live = backward_live(joint, backward)
    to_device = start_early(joint, backward, live, [room] * len(live.bytes))
    backward.transfers = [*to_host, *to_device]


def forward_nodes(
    joint: Joint, saved: Mapping[Node, None], late: Mapping[Node, Node] | None = None
) -> list[Node]:
    """Forward, with what only backward needs and is kept for it.

    Args:
        late: what some waits for copies are to stand behind.
    """
    wanted = set(joint.required)
    stack = [node for node in saved if node not in wanted]
    wanted.update(stack)
    while stack:
        for source in stack.pop().all_input_nodes:
            if source not in wanted:
                wanted.add(source)
                stack.append(source)
    found = [node for node in joint.forward if node in wanted]
    for wait, before in (late or {}).items():
        found.remove(wait)
        found.insert(found.index(before) + 1, wait)
    return found


def forward_live(
    joint: Joint, saved: Mapping[Node, None], late: Mapping[Node, Node] | None = None
) -> Live:
    """Bytes at each step of forward beside the inputs of the step."""
    nodes = forward_nodes(joint, saved, late)
    outputs = [n for n in joint.outputs[: joint.forward_outputs] if isinstance(n, Node)]
    return live_bytes(joint, walk_of(nodes, [*outputs, *saved]), {})


def backward_live(joint: Joint, backward: Recompute) -> Live:
    """Bytes at each step of backward beside the inputs of the step."""
    saved: dict[object, int] = {node: joint.nbytes(node) for node in backward.saved}
    return live_bytes(joint, backward.walk, saved)


def _most(homes: Sequence[int], live: Live, before: Sequence[int]) -> list[int]:
    """For each part the most that lives in its steps, less what earlier parts saved."""
    found = [0] * len(before)
    for number, size in zip(homes, live.bytes, strict=True):
        found[number] = max(found[number], size - before[number])
    return found
