"""Where copies between the device and the host start, and where they are waited for.

Copies in one direction pass the link one after the other; those in the other direction do not
disturb them. What a copy takes is hidden where the device computes meanwhile, for as long as it
does:

- Backward starts to copy a tensor back so early that the work between covers the copy and those
  queued behind it: as late as that allows, for the tensor is in memory from the start on.
- Forward lets go of a tensor when it is on the host: it waits so late that the work between covers
  the copies queued before it and its own, for the tensor is in memory until then.

Neither goes where memory has no room. What is left of a copy then is exposed: the device waits. On
a device whose copies run beside nothing all of it is, and starts are right before their waits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from torch.fx import Node

from ...capture.offload import OFFLOAD_WAIT, RELOAD_WAIT
from .emit import Recompute
from .joint import Joint
from .live import Live


@dataclass(frozen=True)
class Transfer:
    """One copy as it was placed.

    Attributes:
        tensor: of forward, that is on the host meanwhile.
        wait: the node of the joint graph that waits for the copy.
        distance: how many nodes are between start and wait.
        seconds: on the link.
        exposed: seconds of them for which the device has nothing else to do.
    """

    tensor: Node
    wait: Node
    distance: int
    seconds: float
    exposed: float


def start_early(
    joint: Joint, recomputed: Recompute, live: Live, room: Sequence[int]
) -> list[Transfer]:
    """Move starts of copies to the device to where they should be in backward, in place.

    Args:
        recomputed: backward, in which starts are right before their waits.
        live: bytes and seconds of its walk.
        room: bytes that there may be at each entry of the walk.
    """
    walk = recomputed.walk
    order = walk.nodes
    starts = {
        entry: walk.sources[entry][0] for entry in order if walk.origin[entry].target is RELOAD_WAIT
    }
    if not starts:
        return []
    at = {entry: number for number, entry in enumerate(order)}
    clock = [0.0, *accumulate(live.seconds)]
    latest, begins = math.inf, {}
    for wait, start in reversed(starts.items()):
        seconds = joint.transfer_seconds(walk.origin[start])
        latest = begins[start] = min(clock[at[wait]], latest) - seconds
    held = list(live.bytes)
    placed: dict[int, list[object]] = {}
    before = 0
    for start in starts.values():
        place, nbytes = at[start], joint.nbytes(walk.origin[start])
        is_free = joint.rates.overlaps and _is_in_forward(joint, tensor_of(walk.origin[start]))
        while is_free and place > before and clock[place] > begins[start]:
            if held[place - 1] + nbytes > room[place - 1]:
                break
            place -= 1
            held[place] += nbytes
        before = place
        placed.setdefault(place, []).append(start)
    moved = set(starts.values())
    segment = dict(zip(order, recomputed.segment, strict=True))
    walk.nodes = []
    for number, entry in enumerate(order):
        for start in placed.get(number, ()):
            segment[start] = segment[entry]
            walk.nodes.append(start)
        if entry not in moved:
            walk.nodes.append(entry)
    recomputed.segment = [segment[entry] for entry in walk.nodes]
    spent = dict(zip(order, live.seconds, strict=True))
    return _transfers(joint, walk.nodes, spent, starts, walk.origin)


def wait_late(
    joint: Joint, nodes: Sequence[Node], saved: Iterable[Node], live: Live, room: Sequence[int]
) -> tuple[list[Node], list[Transfer]]:
    """Forward with waits for copies to the host where they should be, and the copies.

    Args:
        nodes: forward, in which waits are right behind their starts.
        saved: what it keeps for backward.
        live: bytes and seconds of its nodes.
        room: bytes that there may be at each of them.
    """
    starts = {node: node.all_input_nodes[0] for node in nodes if node.target is OFFLOAD_WAIT}
    if not starts:
        return list(nodes), []
    at = {node: number for number, node in enumerate(nodes)}
    clock = [0.0, *accumulate(live.seconds)]
    last: dict[Node, int] = {}
    for number, node in enumerate(nodes):
        for source in node.all_input_nodes:
            last[joint.base(source)] = number
    outputs = [node for node in joint.outputs[: joint.forward_outputs] if isinstance(node, Node)]
    last |= dict.fromkeys(map(joint.base, [*saved, *outputs]), len(nodes))
    end = next(
        (at for at, n in enumerate(nodes) if n in joint.position and not _is_in_forward(joint, n)),
        len(nodes),
    )
    held = list(live.bytes)
    placed: dict[int, list[Node]] = {}
    done = 0.0
    for wait, start in starts.items():
        done = max(clock[at[start]], done) + joint.transfer_seconds(start)
        base = joint.base(tensor_of(wait))
        place, nbytes = at[wait], joint.nbytes(base)
        while joint.rates.overlaps and place < end and (place <= last[base] or clock[place] < done):
            if place > last[base]:
                if held[place] + nbytes > room[place]:
                    break
                held[place] += nbytes
            place += 1
        placed.setdefault(place, []).append(wait)
    order: list[Node] = []
    for number in range(len(nodes) + 1):
        order += placed.get(number, ())
        order += (node for node in nodes[number : number + 1] if node not in starts)
    spent: dict[object, float] = dict(zip(nodes, live.seconds, strict=True))
    origin: dict[object, Node] = {node: node for node in nodes}
    return order, _transfers(joint, order, spent, dict(starts.items()), origin)


def tensor_of(node: Node) -> Node:
    """The tensor of forward that is on the host for a node which starts a copy or waits for it."""
    while node.target is not OFFLOAD_WAIT:
        (node,) = node.all_input_nodes
    _, tensor = node.all_input_nodes
    return tensor


def _is_in_forward(joint: Joint, node: Node) -> bool:
    """Whether the joint graph has it before all of backward, so that it can be moved to there."""
    return not joint.backward or joint.position[node] < joint.position[joint.backward[0]]


def _transfers(
    joint: Joint,
    order: Sequence[object],
    seconds: Mapping[object, float],
    starts: Mapping[object, object],
    origin: Mapping[object, Node],
) -> list[Transfer]:
    """The copies in an order of nodes, one after the other, and how long the device waits."""
    now = free = 0.0
    started: dict[object, tuple[int, float]] = {}
    begun = set(starts.values())
    found = []
    for number, entry in enumerate(order):
        now += seconds[entry]
        if entry in begun:
            free = max(now, free) + joint.transfer_seconds(origin[entry])
            started[entry] = number, free
        if entry in starts:
            start = starts[entry]
            at, done = started[start]
            exposed = max(0.0, done - now)
            now += exposed
            wait = origin[entry]
            taken = joint.transfer_seconds(origin[start])
            found.append(Transfer(tensor_of(wait), wait, number - at - 1, taken, exposed))
    return found
