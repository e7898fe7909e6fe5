"""Lifetime steps and the timeline, against a runtime that only counts references."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcompile.codegen.arena_plan import Lifetime, plan_arena
from deepcompile.codegen.lifetimes import (
    LARGE,
    add_lifetime_steps,
    returned,
    settle_lifetimes,
    slot_bytes,
)
from deepcompile.codegen.steps import (
    ExternStep,
    Layout,
    LifetimeStep,
    ProgramSpec,
    Slot,
    Storage,
    TensorRef,
)
from deepcompile.codegen.timeline import ARENA, timeline
from deepcompile.ir.index import ONE, ZERO, Index

BIG, SMALL = 1 << 20, 4 << 10


def layout_of(nbytes: int) -> Layout:
    return Layout((Index.of(nbytes // 4),), (ONE,), torch.float32)


class Written:
    """A program written down by hand: each step is a call that reads slots and writes slots."""

    def __init__(self) -> None:
        self.spec = ProgramSpec([], [], [], [], [])

    def slot(self, nbytes: int, storage: Storage, view_of: int | None = None) -> int:
        slot = Slot(len(self.spec.slots), layout_of(nbytes), storage, view_of=view_of)
        self.spec.slots.append(slot)
        if storage == "input":
            self.spec.inputs.append(self.ref(slot.number))
        return slot.number

    def ref(self, number: int) -> TensorRef:
        return TensorRef(number, self.spec.slots[number].layout, ZERO, True)

    def step(self, read: Sequence[int], written: Sequence[int]) -> None:
        refs = tuple(self.ref(number) for number in read)
        step = ExternStep("call", torch.add, refs, {}, None, tuple(written), False, {})
        self.spec.steps.append(step)

    def done(self, outputs: Sequence[int], *, follow: bool) -> ProgramSpec:
        for number in outputs:
            self.spec.outputs.append(self.ref(number))
            if self.spec.slots[number].storage == "arena":
                self.spec.slots[number].storage = "output"
        settle_lifetimes(self.spec)
        if follow:
            add_lifetime_steps(self.spec, {})
        return self.spec


def chain(*, follow: bool) -> ProgramSpec:
    """x -> a -> b -> c, all large, c returned."""
    made = Written()
    x = made.slot(BIG, "input")
    a, b, c = (made.slot(BIG * n, "arena") for n in (2, 3, 4))
    for read, written in ((x, a), (a, b), (b, c)):
        made.step([read], [written])
    return made.done([c], follow=follow)


def test_a_chain_holds_two_of_its_tensors_at_a_time() -> None:
    spec = chain(follow=True)
    kinds = [type(step) for step in spec.steps]
    assert kinds == [LifetimeStep, ExternStep] * 3
    assert [step for step in spec.steps if isinstance(step, LifetimeStep)] == [
        LifetimeStep((1,), ()),
        LifetimeStep((2,), (0,)),
        LifetimeStep((3,), (1,)),
    ]
    assert [(slot.first, slot.last) for slot in spec.slots] == [(1, 1), (1, 3), (3, 5), (5, 5)]
    found = timeline(spec, {})
    live = [found.live(step) // BIG for step in range(-1, 7)]
    assert live == [1, 3, 3, 5, 5, 7, 7, 4]
    assert (found.peak, found.peak_step) == (7 * BIG, 4)
    assert [(span.slot, span.role) for span in found.owners(4)] == [
        (3, "output"),
        (2, "transient"),
    ]


def test_without_lifetime_steps_all_is_held_to_the_end() -> None:
    found = timeline(chain(follow=False), {})
    # An arena for a and b, which live at the same time, is there before and behind the program.
    live = [found.live(step) // BIG for step in range(-1, 4)]
    assert live == [6, 10, 10, 10, 9]
    assert [span.slot for span in found.owners(0)] == [ARENA, 3, 0]


def test_pinned_inputs_and_views_of_them_are_left_out() -> None:
    made = Written()
    x, y = made.slot(BIG, "input"), made.slot(BIG, "input")
    view = made.slot(BIG, "extern", view_of=x)
    out = made.slot(BIG, "arena")
    made.step([x], [view])
    made.step([view, y], [out])
    found = timeline(made.done([out], follow=True), {}, pinned_inputs=[0])
    assert {span.slot for span in found.spans} == {y, out}


def test_bytes_are_rounded_to_the_granule() -> None:
    made = Written()
    x, out = made.slot(LARGE + 4, "input"), made.slot(8, "arena")
    made.step([x], [out])
    spec = made.done([out], follow=True)
    assert timeline(spec, {}, granule=512).peak == LARGE + 512 + 512
    assert timeline(spec, {}).peak == LARGE + 4 + 8


def test_the_workspace_is_part_of_the_block() -> None:
    made = Written()
    x, a, out = made.slot(8, "input"), made.slot(SMALL, "arena"), made.slot(8, "arena")
    made.step([x], [a])
    made.step([a], [out])
    found = timeline(made.done([out], follow=True), {}, workspace=100)
    (block,) = [span for span in found.spans if span.role == "arena"]
    assert (block.slot, block.nbytes) == (ARENA, SMALL + 100)
    assert (block.first, block.last) == (-1, found.steps)


def test_scratch_is_there_in_its_step_only() -> None:
    spec = chain(follow=True)
    plain, more = timeline(spec, {}), timeline(spec, {}, scratch={3: BIG})
    steps = range(-1, len(spec.steps) + 1)
    assert [more.live(n) - plain.live(n) for n in steps if n != 3] == [0] * (len(steps) - 1)
    assert more.live(3) == plain.live(3) + BIG


def test_an_input_that_no_step_needs_is_let_go_of_first() -> None:
    made = Written()
    made.slot(BIG, "input")
    x, out = made.slot(BIG, "input"), made.slot(BIG, "arena")
    made.step([x], [out])
    spec = made.done([out], follow=True)
    assert spec.steps[0] == LifetimeStep((out,), (0,))
    found = timeline(spec, {})
    assert [found.live(step) // BIG for step in range(-1, 3)] == [2, 2, 2, 1]


def test_an_output_that_no_step_touches_is_made() -> None:
    made = Written()
    x, out = made.slot(BIG, "input"), made.slot(BIG, "arena")
    spec = made.done([out, x], follow=True)
    assert spec.steps == [LifetimeStep((out,), ())]
    assert timeline(spec, {}).peak == 2 * BIG


def test_inputs_behind_outputs_stay() -> None:
    """Those returned as they are, and those a returned view is over."""
    made = Written()
    x, y = made.slot(BIG, "input"), made.slot(BIG, "input")
    view, a, out = made.slot(BIG, "extern", x), made.slot(BIG, "arena"), made.slot(8, "arena")
    made.step([x], [view])
    made.step([x, y], [a])
    made.step([a], [out])
    spec = made.done([view, y, out], follow=True)
    released = {
        slot for step in spec.steps if isinstance(step, LifetimeStep) for slot in step.release
    }
    assert not released & {x, y, view}
    assert timeline(spec, {}).live(len(spec.steps)) == 2 * BIG + 8


def test_small_things_wait_for_each_other() -> None:
    """A step for them comes when there is one anyway, or when they are many."""
    made = Written()
    x = made.slot(BIG, "input")
    small = [made.slot(SMALL, "input") for _ in range(40)]
    outs = [made.slot(SMALL, "arena") for _ in range(40)]
    for one, out in zip(small, outs, strict=True):
        made.step([x, one], [out])
    spec = made.done(outs, follow=True)
    changes = [step for step in spec.steps if isinstance(step, LifetimeStep)]
    assert 2 <= len(changes) <= 6
    assert {slot for step in changes for slot in step.allocate} == set(outs)


# -- against counted references -------------------------------------------------------------------

SIZES = st.sampled_from([0, 4, SMALL, LARGE - 4, LARGE, BIG])


@st.composite
def programs(draw: st.DrawFn) -> Written:
    """Random programs with views, views of views, unused inputs and results nobody reads."""
    made = Written()
    known = [made.slot(draw(SIZES), "input") for _ in range(draw(st.integers(1, 4)))]
    for _ in range(draw(st.integers(0, 12))):
        read = draw(st.lists(st.sampled_from(known), min_size=1, max_size=3))
        written = []
        for _ in range(draw(st.integers(1, 2))):
            if draw(st.integers(0, 3)) == 0:
                base = read[0]
                nbytes = slot_bytes(made.spec.slots[base], {})
                written.append(made.slot(nbytes, "extern", view_of=base))
            else:
                storage: Storage = draw(st.sampled_from(["arena", "extern"]))
                written.append(made.slot(draw(SIZES), storage))
        made.step(read, written)
        known += written
    return made


def counted(spec: ProgramSpec) -> list[int]:
    """What a program holds before, in and behind its steps: a runtime of references and bytes."""
    slots = spec.slots
    held = {slot.number for slot in slots if slot.storage == "input"}
    later = {s for step in spec.steps if isinstance(step, LifetimeStep) for s in step.allocate}
    block = plan_arena(
        [
            Lifetime(slot_bytes(slot, {}), slot.first, slot.last)
            for slot in slots
            if slot.storage == "arena"
        ]
    ).size

    def root(number: int) -> int:
        above = slots[number].view_of
        return number if above is None else root(above)

    def total() -> int:
        roots = {root(n) for n in held} - {s.number for s in slots if s.storage == "arena"}
        return block + sum(slot_bytes(slots[number], {}) for number in roots)

    live = [total()]
    held |= {s.number for s in slots if s.storage == "output" and s.number not in later}
    for step in spec.steps:
        if isinstance(step, LifetimeStep):
            assert held.issuperset(step.release)
            held -= set(step.release)
            assert held.isdisjoint(step.allocate)
            held |= set(step.allocate)
        else:
            assert isinstance(step, ExternStep)
            read = [ref.slot for ref in step.args]
            assert all(n in held or slots[n].storage == "arena" for n in read)
            for number in step.results:
                assert number is not None
                if slots[number].storage == "extern":
                    held.add(number)
                else:
                    assert number in held or slots[number].storage == "arena"
        live.append(total())
    held = {ref.slot for ref in spec.outputs}
    live.append(total())
    return live


@settings(max_examples=300, deadline=None)
@given(programs(), st.data(), st.booleans())
def test_the_timeline_is_what_references_hold(
    made: Written, data: st.DataObject, follow: bool
) -> None:
    numbers = [slot.number for slot in made.spec.slots]
    spec = made.done(data.draw(st.lists(st.sampled_from(numbers), max_size=4)), follow=follow)
    found = timeline(spec, {})
    assert [found.live(step) for step in range(-1, found.steps + 1)] == counted(spec)
    for step in range(-1, found.steps + 1):
        assert sum(span.nbytes for span in found.owners(step)) == found.live(step)
    pairs = zip(spec.steps, spec.steps[1:], strict=False)
    assert not any(isinstance(a, LifetimeStep) and isinstance(b, LifetimeStep) for a, b in pairs)


@settings(max_examples=200, deadline=None)
@given(programs(), st.data())
def test_what_is_held_too_long_is_small(made: Written, data: st.DataObject) -> None:
    """Against lifetimes to the letter, up to `LARGE` waits on either side."""
    numbers = [slot.number for slot in made.spec.slots]
    spec = made.done(data.draw(st.lists(st.sampled_from(numbers), max_size=4)), follow=True)
    found, kept = timeline(spec, {}), returned(spec)
    for number, step in enumerate(spec.steps):
        if isinstance(step, LifetimeStep):
            continue
        needed = sum(
            span.nbytes
            for span in found.spans
            if span.slot in kept
            or span.role == "arena"
            or spec.slots[span.slot].first <= number <= spec.slots[span.slot].last
            or (span.role == "input" and number <= spec.slots[span.slot].last)
        )
        assert found.live(number) - needed < 2 * LARGE


def test_steps_out_of_range_are_refused() -> None:
    found = timeline(chain(follow=True), {})
    with pytest.raises(IndexError):
        found.live(found.steps + 1)
    with pytest.raises(IndexError):
        found.live(-2)
