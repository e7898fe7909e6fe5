"""Arena plans never let live buffers overlap; blocks go to one caller at a time."""

from __future__ import annotations

import gc
import threading

from hypothesis import given, settings
from hypothesis import strategies as st

from deepcompile.runtime.arena import ALIGNMENT, ArenaPool, Lifetime, plan_arena

LIFETIMES = st.lists(
    st.tuples(st.integers(0, 5000), st.integers(0, 30), st.integers(0, 12)).map(
        lambda item: Lifetime(item[0], item[1], item[1] + item[2])
    ),
    max_size=40,
)


def rounded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


@settings(max_examples=200, deadline=None)
@given(LIFETIMES)
def test_buffers_that_live_together_do_not_overlap(lifetimes: list[Lifetime]):
    plan = plan_arena(lifetimes)
    assert len(plan.offsets) == len(lifetimes)
    assert all(offset % ALIGNMENT == 0 for offset in plan.offsets)
    for a, (start, life) in enumerate(zip(plan.offsets, lifetimes, strict=True)):
        assert start + life.size <= plan.size
        for other_start, other in list(zip(plan.offsets, lifetimes, strict=True))[a + 1 :]:
            if life.last < other.first or other.last < life.first:
                continue
            apart = start + life.size <= other_start or other_start + other.size <= start
            assert apart or not life.size or not other.size


@settings(max_examples=200, deadline=None)
@given(LIFETIMES)
def test_the_arena_is_as_large_as_its_lower_bound_or_larger(lifetimes: list[Lifetime]):
    plan = plan_arena(lifetimes)
    steps = range(max((life.last for life in lifetimes), default=0) + 1)
    live = [sum(rounded(x.size) for x in lifetimes if x.first <= s <= x.last) for s in steps]
    assert plan.bound == max(live)
    assert plan.bound <= plan.size <= sum(rounded(life.size) for life in lifetimes)


def test_a_chain_needs_two_buffers():
    plan = plan_arena([Lifetime(1024, step, step + 1) for step in range(20)])
    assert plan.size == plan.bound == 2048


def test_a_plan_is_the_same_each_time():
    lifetimes = [Lifetime(64 * (k % 7), k, k + k % 5) for k in range(50)]
    assert plan_arena(lifetimes) == plan_arena(list(lifetimes))


class TestPool:
    def test_a_block_is_used_again(self):
        pool = ArenaPool()
        block = pool.acquire(1000)
        assert block.numel() >= 1000
        address = block.data_ptr()
        pool.release(block)
        assert pool.acquire(800).data_ptr() == address

    def test_blocks_in_use_are_apart(self):
        pool = ArenaPool()
        first, second = pool.acquire(1000), pool.acquire(1000)
        assert first.data_ptr() != second.data_ptr()

    def test_many_threads_never_share_a_block(self):
        pool, lent, clashes = ArenaPool(), set(), []

        def work(seed: int) -> None:
            for step in range(300):
                block = pool.acquire(100 + (seed * 37 + step) % 900)
                if block.data_ptr() in lent:
                    clashes.append(block.data_ptr())
                lent.add(block.data_ptr())
                lent.discard(block.data_ptr())
                pool.release(block)

        workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert not clashes

    def test_clearing_frees_what_is_not_lent(self):
        pool = ArenaPool()
        block = pool.acquire(1 << 20)
        pool.release(block)
        del block
        pool.clear()
        gc.collect()
        assert pool.acquire(100).numel() < 1 << 20
