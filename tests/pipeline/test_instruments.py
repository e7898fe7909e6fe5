"""Instruments: what the dumper keeps, and when two graphs count as the same."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from deepcompile.inspect.reader import read_run
from deepcompile.ir.graph_parser import parse_graph
from deepcompile.ir.graph_printer import print_graph
from deepcompile.options import Options
from deepcompile.pipeline.context import Counters
from deepcompile.pipeline.execute import (
    Agreement,
    Mismatch,
    NotRunnable,
    compare_graphs,
    make_inputs,
)
from deepcompile.pipeline.instruments import Selection, standard_instruments
from deepcompile.pipeline.manager import PassManager
from deepcompile.pipeline.rundir import RunDir

from .test_manager import Broken, Copy, SinToCos, graph


def traced(function: Callable[..., Any], *inputs: torch.Tensor) -> GraphModule:
    return make_fx(function, tracing_mode="fake")(*inputs)


def test_dumper_keeps_each_state(tmp_path: Path) -> None:
    run_dir = RunDir.create(tmp_path)
    instruments = standard_instruments(False, run_dir, print_graph, run_dir.event)
    passes = [SinToCos(), SinToCos(), Broken(), Copy()]
    options = Options(disable=("copy",))
    manager = PassManager(passes, instruments, options, sink=run_dir.event, counters=Counters())
    manager.run(graph(), "inference", "g")
    run = read_run(run_dir.path)
    (kept,) = run.graphs
    statuses = ["input", "changed", "unchanged", "failed", "skipped"]
    assert [s.meta["status"] for s in kept.states] == statuses
    assert [s.text is not None for s in kept.states] == [True, True, False, False, False]
    assert "aten.cos.default" in (kept.states[1].text or "")
    assert kept.states[1].meta["op_delta"] == {"aten.cos.default": 3, "aten.sin.default": -3}
    assert kept.states[3].meta["reason"] == "KeyError: 'inside the pass'"
    assert [e.kind for e in run.events] == ["pass-failed"]
    parse_graph(kept.states[1].text or "").graph.lint()


def test_graph_that_cannot_be_printed_does_not_stop_the_compile(tmp_path: Path) -> None:
    def unprintable(_: GraphModule, *, kind: str) -> str:
        raise KeyError("no text")

    run_dir = RunDir.create(tmp_path)
    instruments = standard_instruments(False, run_dir, unprintable, run_dir.event)
    PassManager([Copy()], instruments, counters=Counters()).run(graph(), "inference", "g")
    run = read_run(run_dir.path)
    assert "print-failed" in {e.kind for e in run.events}
    assert "call_function" in (run.graphs[0].states[0].text or "")


@pytest.mark.parametrize(
    ("selection", "texts"),
    [
        (Selection(), ["000", "001"]),
        (Selection("none"), []),
        (Selection("all"), ["000", "001", "002", "003"]),
        (Selection("all", passes=re.compile("^copy")), ["000", "003"]),
        (Selection("all", graphs=re.compile("other")), None),
    ],
)
def test_what_is_kept_can_be_chosen(
    selection: Selection, texts: list[str] | None, tmp_path: Path
) -> None:
    run_dir = RunDir.create(tmp_path)
    printed: list[GraphModule] = []

    def counted(graph: GraphModule, *, kind: Any) -> str:
        printed.append(graph)
        return print_graph(graph, kind=kind)

    instruments = standard_instruments(False, run_dir, counted, selection=selection)
    passes = [SinToCos(), SinToCos(), Copy()]
    options = Options(disable=("copy",))
    PassManager(passes, instruments, options, counters=Counters()).run(graph(), "forward", "g")
    graphs = read_run(run_dir.path).graphs
    if texts is None:
        assert not graphs
        return
    assert len(graphs[0].states) == 4
    kept = [state.path for state in graphs[0].states if state.path is not None]
    assert [path.name[:3] for path in kept] == texts
    assert all(path.read_text().startswith("graph forward {") for path in kept)
    # A state is printed once, however often it is kept.
    assert len(printed) == len(set(map(id, printed)))


def test_inputs_follow_metadata() -> None:
    gm = traced(lambda x, i, b: (x.t(), i, b), torch.randn(3, 2).t(), torch.ones(2).long(),
                torch.ones(2, 2, dtype=torch.bool))  # fmt: skip
    x, i, b = make_inputs(gm)
    assert (x.shape, x.stride(), x.dtype) == ((2, 3), (1, 2), torch.float32)
    assert (i.dtype, b.dtype) == (torch.int64, torch.bool)
    assert torch.equal(make_inputs(gm)[0], x)


def test_rounding_is_no_mismatch_but_a_wrong_scale_is() -> None:
    x = torch.randn(64, 64)
    exact = traced(lambda x: (x * 3).sum(-1), x)
    assert isinstance(compare_graphs(exact, traced(lambda x: x.sum(-1) * 3, x)), Agreement)
    found = compare_graphs(exact, traced(lambda x: x.sum(-1) * 3.01, x))
    assert isinstance(found, Mismatch)
    assert "output 0: values of float32[64] differ" in found.detail


def test_what_rounding_becomes_in_a_deep_graph_is_no_mismatch() -> None:
    """Each of 6 steps makes errors up to 8 times as large."""

    def deep(first: float) -> Callable[[torch.Tensor], Any]:
        def run(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = x * first
            for _ in range(6):
                y = (y * 8).sin()
            return x + 1, y

        return run

    x = torch.randn(64)
    reference = traced(deep(1.0), x)
    found = compare_graphs(reference, traced(deep(1.0 + 1.2e-7), x))
    assert isinstance(found, Agreement)
    assert found.max_error > 1e-3
    assert isinstance(compare_graphs(reference, traced(deep(1.0 + 1e-5), x)), Mismatch)
    wrong = traced(lambda x: (x + 1.01, deep(1.0 + 1.2e-7)(x)[1]), x)
    found = compare_graphs(reference, wrong)
    assert isinstance(found, Mismatch)
    assert "output 0" in found.detail


def test_nan_and_shape_and_dtype_matter() -> None:
    x = torch.randn(4)
    zero = traced(lambda x: x - x, x)
    for other, detail in [
        (lambda x: (x - x) / (x - x), "NaN in other places"),
        (lambda x: (x - x).unsqueeze(0), r"float32\[4\] became float32\[1, 4\]"),
        (lambda x: (x - x).double(), "became float64"),
        (lambda x: (x - x, x), "1 outputs became 2"),
    ]:
        found = compare_graphs(zero, traced(other, x))
        assert isinstance(found, Mismatch)
        assert re.search(detail, found.detail)


def test_equal_nan_and_infinity_agree() -> None:
    gm = traced(lambda x: (x / (x - x), (x - x) / (x - x)), torch.randn(4))
    assert isinstance(compare_graphs(gm, gm), Agreement)


def test_inputs_are_not_shared_between_the_two_runs() -> None:
    gm = traced(lambda x: x.add_(1) * 2, torch.randn(4))
    found = compare_graphs(gm, gm)
    assert isinstance(found, Agreement)
    assert found.max_error == 0


def test_random_numbers_drawn_otherwise_compare_by_shape_only() -> None:
    x = torch.randn(4)
    one = traced(lambda x: x + torch.rand_like(x), x)
    two = traced(lambda x: x + torch.rand_like(x) + torch.rand_like(x), x)
    assert compare_graphs(one, one) == Agreement(0.0, True)
    assert compare_graphs(one, two) == Agreement(0.0, False)


def test_graph_that_cannot_run_on_made_up_inputs_is_no_mismatch() -> None:
    gm = traced(lambda x, i: x[i], torch.randn(1, 3), torch.zeros(200, dtype=torch.long))
    with pytest.raises(NotRunnable, match="IndexError"):
        compare_graphs(gm, gm)
