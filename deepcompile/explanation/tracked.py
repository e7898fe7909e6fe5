"""How much memory a piece of code takes at its worst, from each call of torch's CPU allocator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function

_MARK = "deepcompile: measured"


def peak_bytes(fn: Callable[..., Any], prepare: Callable[[], Any] | None = None) -> int:
    """The highest bytes allocated above the start during `fn`, as torch's allocator was asked.

    Args:
        fn: what is measured; its result is held until the end.
        prepare: run before; `fn` gets its result, which nobody else holds then. Only what is
            allocated in here or in `fn` is seen to be freed: the profiler does not know the size
            of older blocks.
    """
    return max(0, max(course_of_bytes(fn, prepare), default=0))


def course_of_bytes(fn: Callable[..., Any], prepare: Callable[[], Any] | None = None) -> list[int]:
    """Bytes above the start of `fn` after each allocation or free in it; see `peak_bytes`."""
    activities = [ProfilerActivity.CPU]
    with profile(activities=activities, profile_memory=True, acc_events=True) as profiler:
        given = [] if prepare is None else [prepare()]
        with record_function(_MARK):
            # Passed on, not kept: what `fn` lets go of must not be held from here.
            result = fn(given.pop()) if given else fn()
    del result
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    (mark,) = [event for event in events if event.name() == _MARK]
    start, end = mark.start_ns(), mark.start_ns() + mark.duration_ns()
    live, course = 0, []
    for event in events:
        if event.name() == "[memory]" and start <= event.start_ns() <= end:
            live += event.nbytes()
            course.append(live)
    return course
