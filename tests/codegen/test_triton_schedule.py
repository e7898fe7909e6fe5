"""Schedules by rule: what of a kernel decides how many points a thread holds."""

from __future__ import annotations

import pytest

from deepcompile.codegen.triton_schedule import plan_triton
from deepcompile.ir.nest import Kernel
from deepcompile.ir.nest_text import parse_kernel


def gathering(loads: int) -> Kernel:
    """A kernel that adds up `loads` values found by index."""
    lines = ["v0: f32 = const 0.0"]
    for number in range(loads):
        at, value, total = 3 * number + 1, 3 * number + 2, 3 * number + 3
        lines.append(f"v{at}: i64 = load b{number}[p0]")
        lines.append(f"v{value}: f32 = load b{loads}[v{at}]")
        lines.append(f"v{total}: f32 = add v{value} v{max(0, total - 3)}")
    lines.append(f"store b{loads + 1}[p0] v{3 * loads}")
    indices = "".join(f"in b{number}: i64[300000], " for number in range(loads))
    body = "\n    ".join(lines)
    return parse_kernel(
        f"kernel @k({indices}in b{loads}: f32[64], out b{loads + 1}: f32[300000]) {{\n"
        f"  axes p0: parallel 300000\n  row:\n    {body}\n}}\n"
    )


@pytest.mark.parametrize(("loads", "points"), [(0, 8), (1, 8), (2, 8), (3, 1), (8, 1)])
def test_a_thread_holds_fewer_points_of_a_kernel_that_gathers(loads: int, points: int) -> None:
    schedule = plan_triton(gathering(loads))
    assert schedule.x_block / (32 * schedule.warps) == points
