"""Sums that keep an order of their own: the same bits from any kernel that has them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from deepcompile.codegen.schedule import expand, plan
from tests.codegen.test_cpp_kernel import Case, Compiled, values

LENGTHS = (1, 6, 15, 16, 18, 33, 99, 1000, 5001)
POINTS = 40

ROWS = {
    "along the row": """
kernel @k(in x: f32[{p}, {r}], out y: f32[{p}]) {{
  axes p0: parallel {p}, r0: reduced {r}
  loop:
    v0: f32 = load x[{r}*p0 + r0]
    v1: f32 = reduce {kind} v0
  row:
    store y[p0] v1
}}
""",
    "across the rows": """
kernel @k(in x: f32[{r}, {p}], out y: f32[{p}]) {{
  axes p0: parallel {p}, r0: reduced {r}
  loop:
    v0: f32 = load x[p0 + {p}*r0]
    v1: f32 = reduce {kind} v0
  row:
    store y[p0] v1
}}
""",
    "one row": """
kernel @k(in x: f32[{r}], out y: f32[1]) {{
  axes r0: reduced {r}
  loop:
    v0: f32 = load x[r0]
    v1: f32 = reduce {kind} v0
  row:
    store y[0] v1
}}
""",
    "two axes": """
kernel @k(in x: f32[{p}, {r}], out y: f32[{p}], out z: f32[{third}, {p}, 3]) {{
  axes p0: parallel {p}, r0: reduced {third}, r1: reduced 3
  loop:
    v0: f32 = load x[{r}*p0 + 3*r0 + r1]
    v1: f32 = reduce {kind} v0
  row:
    store y[p0] v1
  loop:
    v2: f32 = mul v0 v1
    store z[{p3}*r0 + 3*p0 + r1] v2
}}
""",
    "two axes, the inner one longer": """
kernel @k(in x: f32[{p}, {r}], out y: f32[{p}], out z: f32[3, {p}, {third}]) {{
  axes p0: parallel {p}, r0: reduced 3, r1: reduced {third}
  loop:
    v0: f32 = load x[{r}*p0 + {third}*r0 + r1]
    v1: f32 = reduce {kind} v0
  row:
    store y[p0] v1
  loop:
    v2: f32 = mul v0 v1
    store z[{pt}*r0 + {third}*p0 + r1] v2
}}
""",
    "a part of it from elsewhere": """
kernel @k(in x: f32[{p}, {r}], out y: f32[{p}]) {{
  axes p0: parallel {p}, r0: reduced {r}
  loop:
    v0: b1 = in_range 0 <= r0 < {half}
    v1: f32 = load x[{r}*p0 + r0] if v0
    v2: b1 = in_range {half} <= r0 < {r}
    v3: f32 = load x[{r}*p0 + r0] if v2
    v4: f32 = add v1 v3
    v5: f32 = reduce {kind} v4
  row:
    store y[p0] v5
}}
""",
}


def row_case(name: str, kind: str, length: int, x: Tensor) -> Case:
    third = length // 3
    numbers = {"third": third, "p3": 3 * POINTS, "pt": third * POINTS, "half": length // 2}
    text = ROWS[name].format(p=POINTS, r=length, kind=kind, **numbers)
    source = x.T.contiguous() if name == "across the rows" else x
    tensors = {"x": source, "y": torch.zeros(POINTS)}
    if "two axes" in name:
        tensors["z"] = torch.zeros(POINTS * length)
    return Case(text, tensors)


def results(cases: Sequence[Case], threads: int = 2) -> list[dict[str, Tensor]]:
    library = Compiled(cases, keeps_order=True)
    found = []
    for case in cases:
        tensors = case.copies()
        assert library.call(case, tensors, threads) == 0
        found.append(tensors)
    return found


@pytest.mark.parametrize("kind", ["sum", "welford.m2"])
def test_sums_of_rows(kind: str) -> None:
    cases, expected = [], []
    for length in LENGTHS:
        x = values((POINTS, length), "f32", seed=length)
        names = [n for n in ROWS if n != "one row" and ("two axes" not in n or length % 3 == 0)]
        mine = [row_case(name, kind, length, x) for name in names]
        cases += mine
        expected += [(len(cases) - len(mine), len(cases) - 1 - i) for i in range(len(mine))]
    found = results(cases)
    for first, other in expected:
        message = cases[other].text
        assert torch.equal(found[first]["y"], found[other]["y"]), message
    kinds = {plan(expand(case.kernel), keeps_order=True).vector for case in cases}
    assert {"p0", "r0", "r1"} <= kinds


def test_a_row_alone_is_a_row_among_others() -> None:
    x = values((POINTS, 1000), "f32")
    alone = row_case("one row", "sum", 1000, x[7])
    alone.tensors = {"x": x[7].clone(), "y": torch.zeros(1)}
    many, one = results([row_case("along the row", "sum", 1000, x), alone])
    assert torch.equal(many["y"][7:8], one["y"])


COLUMNS = """
kernel @k(in x: f32[{p}, {r}], out y: f32[{r}]{more_out}) {{
  axes p0: parallel {p}, r0: reduced {r}
  loop:
    v0: f32 = load x[{r}*p0 + r0]
    v1: f32 = accumulate sum v0
{more}
  columns:
    store y[r0] v1
}}
"""
HEAVY = """
    v2: f32 = tanh v0
    v3: f32 = erf v2
    v4: f32 = pow v3 v0
    store z[{r}*p0 + r0] v4
"""


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_sums_of_columns(threads: int) -> None:
    cases = []
    for points, length in ((333, 17), (1000, 33), (130, 100)):
        x = values((points, length), "f32", seed=points)
        for more in ("", HEAVY.format(r=length)):
            out = f", out z: f32[{points}, {length}]" if more else ""
            text = COLUMNS.format(p=points, r=length, more=more.strip("\n"), more_out=out)
            tensors = {"x": x, "y": torch.zeros(length)}
            cases.append(Case(text, tensors | ({"z": torch.zeros_like(x)} if more else {})))
    found = results(cases, threads)
    for plain, busy in zip(found[::2], found[1::2], strict=True):
        assert torch.equal(plain["y"], busy["y"])


def test_by_default_they_follow_the_kernel() -> None:
    """What the tests above would not see if the orders were the same anyway."""
    x = values((POINTS, 1000), "f32")
    cases = [row_case(name, "sum", 1000, x) for name in ("along the row", "across the rows")]
    library = Compiled(cases)
    found = [case.copies() for case in cases]
    for case, tensors in zip(cases, found, strict=True):
        library.call(case, tensors, 1)
    assert not torch.equal(found[0]["y"], found[1]["y"])
    torch.testing.assert_close(found[0]["y"], found[1]["y"], rtol=1e-4, atol=1e-4)
