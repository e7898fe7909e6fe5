"""Where copies between the device and the host start and are waited for."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

import pytest
import torch
from torch.fx import Node

from deepcompile.capture.offload import OFFLOAD_START, OFFLOAD_WAIT, RELOAD_START, RELOAD_WAIT
from deepcompile.passes.checkpoints.emit import Recompute, written_out
from deepcompile.passes.checkpoints.place import (
    Options,
    Part,
    alternatives,
    backward_live,
    forward_live,
    forward_nodes,
)
from tests.backend.test_memory_forms import Residual
from tests.passes.checkpoint_graphs import joint_of

LINK = 4e9  # such that a copy takes about as long as a layer
ENDLESS = 1 << 60


@pytest.fixture(scope="module")
def options() -> Options:
    """Of a model of four layers, on a device that copies beside its work."""
    joint = joint_of(Residual(), torch.randn(512, 64))
    joint.rates = replace(joint.rates, overlaps=True, link=LINK)
    return alternatives(joint, ("host",))[0]


def on_the_host(options: Options) -> list[Part]:
    """All layers keep on the host what they can, as much as possible."""
    return [next(filter(options.uses_host, parts), parts[0]) for parts in options.parts]


def seconds_between(options: Options, found: Recompute, start: object, wait: object) -> float:
    """What the work between two entries of backward takes."""
    nodes = found.walk.nodes
    clock = [0.0, *accumulate(backward_live(options.joint, found).seconds)]
    return clock[nodes.index(wait)] - clock[nodes.index(start)]


def reloads(found: Recompute) -> list[tuple[object, object]]:
    """Starts and waits of backward in order."""
    walk = found.walk
    return [
        (walk.sources[entry][0], entry)
        for entry in walk.nodes
        if walk.origin[entry].target is RELOAD_WAIT
    ]


def test_backward_starts_so_early_that_work_covers_the_copies(options: Options) -> None:
    parts = on_the_host(options)
    found = options.placed(parts, ENDLESS)
    copies = [copy for copy in found.transfers if copy.wait.target is RELOAD_WAIT]
    assert len(copies) > 4
    hidden = [copy for copy in copies if not copy.exposed]
    assert hidden
    for (start, wait), copy in zip(reloads(found), copies, strict=True):
        if not copy.exposed:
            assert copy.distance > 0
            covered = seconds_between(options, found, start, wait)
            assert covered > copy.seconds * (1 - 1e-9)


def test_copies_pass_the_link_one_after_the_other(options: Options) -> None:
    found = options.placed(on_the_host(options), ENDLESS)
    pairs = reloads(found)
    place = {entry: number for number, entry in enumerate(found.walk.nodes)}
    starts = [place[start] for start, _ in pairs]
    assert starts == sorted(starts)
    # All work of backward hides no more than it takes.
    total = sum(backward_live(options.joint, found).seconds)
    copies = [copy for copy in found.transfers if copy.wait.target is RELOAD_WAIT]
    taken, exposed = (sum(getattr(c, what) for c in copies) for what in ("seconds", "exposed"))
    assert taken - exposed <= total


def test_what_no_work_covers_is_exposed(options: Options) -> None:
    """On a link a hundred times slower all copies take longer than all work."""
    joint = options.joint
    fast = joint.rates
    joint.rates = replace(fast, link=LINK / 100)
    try:
        found = options.placed(on_the_host(options), ENDLESS)
        work = sum(backward_live(joint, found).seconds)
    finally:
        joint.rates = fast
    copies = [copy for copy in found.transfers if copy.wait.target is RELOAD_WAIT]
    exposed = sum(copy.exposed for copy in copies)
    assert exposed == pytest.approx(sum(copy.seconds for copy in copies) - work, rel=0.1)
    assert found.walk.nodes[0] is reloads(found)[0][0]


def test_starts_go_nowhere_without_room(options: Options) -> None:
    found = options.placed(on_the_host(options), 0)
    copies = [copy for copy in found.transfers if copy.wait.target is RELOAD_WAIT]
    assert copies
    assert all(copy.distance == 0 for copy in copies)
    assert all(copy.exposed == pytest.approx(copy.seconds) for copy in copies)
    # Forward still waits no earlier than it reads a tensor for the last time.
    order = forward_nodes(options.joint, found.saved, found.late)
    for wait in found.late:
        readers = [node for node in order if wait.args[1] in node.all_input_nodes]
        assert readers[-1] is wait


def test_a_device_that_copies_beside_nothing_waits_for_every_copy(options: Options) -> None:
    joint = options.joint
    overlapping = joint.rates
    joint.rates = replace(overlapping, overlaps=False)
    try:
        found = options.placed(on_the_host(options), ENDLESS)
    finally:
        joint.rates = overlapping
    assert found.transfers
    assert all(copy.distance == 0 for copy in found.transfers)
    assert all(copy.exposed == pytest.approx(copy.seconds) for copy in found.transfers)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_memory_is_counted_from_start_to_wait_and_stays_within_the_room(
    options: Options, share: float
) -> None:
    joint, parts = options.joint, on_the_host(options)
    at_once, early = options.placed(parts, 0), options.placed(parts, ENDLESS)

    def peak(found: Recompute) -> int:
        backward = backward_live(joint, found).bytes
        return max(*backward, *forward_live(joint, found.saved, found.late).bytes)

    assert peak(early) > peak(at_once)
    room = peak(at_once) + int(share * (peak(early) - peak(at_once)))
    found = options.placed(parts, room)
    assert peak(at_once) <= peak(found) <= room
    # Every start adds its tensor to what is there at each entry up to its wait.
    nodes = early.walk.nodes
    sizes = dict(zip(nodes, backward_live(joint, early).bytes, strict=True))
    before = backward_live(joint, at_once).bytes
    expected = dict(zip(at_once.walk.nodes, before, strict=True))
    running = 0
    waits = {wait: start for start, wait in reloads(early)}
    started = set(waits.values())
    for entry in nodes:
        size = joint.nbytes(early.walk.origin[entry])
        if entry in started:
            running += size
            continue
        if entry in waits:
            running -= size
            continue
        assert sizes[entry] == expected[entry] + running


def test_more_room_exposes_no_more(options: Options) -> None:
    parts = on_the_host(options)
    exposed = [
        sum(copy.exposed for copy in options.placed(parts, room).transfers)
        for room in (0, 2_500_000, 3_000_000, 4_000_000, ENDLESS)
    ]
    assert exposed == sorted(exposed, reverse=True)
    assert exposed[-1] < exposed[0] / 2


def test_forward_waits_when_the_tensor_is_on_the_host(options: Options) -> None:
    joint = options.joint
    found = options.placed(on_the_host(options), ENDLESS)
    nodes = forward_nodes(joint, found.saved, found.late)
    place = {node: number for number, node in enumerate(nodes)}
    copies = [copy for copy in found.transfers if copy.wait.target is OFFLOAD_WAIT]
    assert copies
    for copy in copies:
        start = copy.wait.args[0]
        assert isinstance(start, Node)
        assert place[copy.wait] - place[start] - 1 == copy.distance
    assert any(copy.distance > 1 and not copy.exposed for copy in copies)


def test_the_graph_is_written_out_that_way_and_put_back(options: Options) -> None:
    joint = options.joint
    found = options.placed(on_the_host(options), ENDLESS)
    before = [node.name for node in joint.graph.nodes]
    with written_out(joint, found):
        nodes = list(joint.graph.nodes)
        place = {node: number for number, node in enumerate(nodes)}
        for node in nodes:
            assert all(place[source] < place[node] for source in node.all_input_nodes)
        for wait, behind in found.late.items():
            assert place[behind] < place[wait]
        starts = [n for n in nodes if n.target is RELOAD_START and n not in joint.extra]
        apart = [place[next(iter(start.users))] - place[start] for start in starts]
        assert max(apart) > 4
    assert [node.name for node in joint.graph.nodes] == before


def test_a_plan_of_no_host_has_no_copies(options: Options) -> None:
    found = options.placed([parts[0] for parts in options.parts], ENDLESS)
    assert found.transfers == []
    assert not any(node.target is OFFLOAD_START for node in found.saved)


def test_choices_hold_no_more_for_copies_that_run_beside_work(options: Options) -> None:
    """What a choice costs in bytes is that of copies at once: reading ahead takes what is left."""
    joint = joint_of(Residual(), torch.randn(512, 64))
    joint.rates = replace(joint.rates, link=LINK)
    alone = alternatives(joint, ("host",))[0]
    for mine, others in zip(options.layers, alone.layers, strict=True):
        for choice, other in zip(mine, others, strict=True):
            assert (choice.saved, choice.peak) == (other.saved, other.peak)
            assert choice.seconds <= other.seconds * (1 + 1e-9) + 1e-12
