"""Graphs on two devices: a number of the CPU may be read by kernels elsewhere, not written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.fx import Graph, GraphModule

from deepcompile.codegen.program import CannotCompile
from deepcompile.ir.batch_op import BatchOp
from deepcompile.ir.kernel_op import KernelOp, Origin
from deepcompile.ir.nest_text import parse_kernel
from deepcompile.runtime.device import check_devices

AWAY = torch.device("meta")
COUNT = """
kernel @k(ROLE n: f32[], out m: f32[]) {
  row:
    v0: f32 = load n[0]
    STORE
    store m[0] v0
}
"""


def count(*, writes: bool) -> KernelOp:
    text = COUNT.replace("ROLE", "inout" if writes else "in")
    text = text.replace("STORE", "store n[0] v0" if writes else "")
    return KernelOp(parse_kernel(text), (), Origin((), ()), lambda *_: ())


def graph_of(target: Any, device: str, columns: int | None = None) -> GraphModule:
    """A graph that calls a kernel on one number, or a batch on a column of them."""
    graph = Graph()
    numbers = [graph.placeholder(f"n{number}") for number in range(columns or 1)]
    for number in numbers:
        number.meta["val"] = torch.empty((), device=device)
    call = graph.call_function(target, tuple(numbers) if columns is None else ([], [numbers]))
    call.meta["val"] = [torch.empty((), device=AWAY) for _ in numbers]
    graph.output((call,))
    return GraphModule({}, graph)


@pytest.mark.parametrize("columns", [None, 2], ids=["kernel", "batch"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("writes", [False, True], ids=["reads", "writes"])
def test_numbers_of_the_cpu(writes: bool, device: str, columns: int | None) -> None:
    target: Any = count(writes=writes)
    if columns is not None:
        target = BatchOp("b0", graph_of(target, "cpu"), (False,))
    graph = graph_of(target, device, columns)
    if not writes or device == "meta":
        check_devices(graph, AWAY)
        return
    with pytest.raises(CannotCompile, match="writes to cpu and runs on meta"):
        check_devices(graph, AWAY)
