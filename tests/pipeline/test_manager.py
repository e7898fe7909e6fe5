"""The pass manager: order, skipping, limits, failures and verification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from deepcompile.errors import CompileError, PipelineError, VerificationError
from deepcompile.options import Options
from deepcompile.pipeline.context import Counters
from deepcompile.pipeline.instruments import ChangedCounter, Timer, Verify
from deepcompile.pipeline.manager import Application, PassManager
from deepcompile.pipeline.protocol import PassContext, PassResult


def copy(graph: GraphModule) -> GraphModule:
    new = torch.fx.Graph()
    new.output(new.graph_copy(graph.graph, {}))
    return GraphModule(graph, new)


@dataclass(frozen=True)
class Base:
    phase: ClassVar[str] = "graph"
    requires: ClassVar[frozenset[str]] = frozenset()
    establishes: ClassVar[frozenset[str]] = frozenset()
    skippable: ClassVar[bool] = True


@dataclass(frozen=True)
class SinToCos(Base):
    """Wrong on purpose: replaces sin by cos."""

    name: ClassVar[str] = "sin-to-cos"

    def run(self, graph: GraphModule, ctx: PassContext) -> PassResult:
        new = copy(graph)
        changed = 0
        for node in new.graph.nodes:
            if node.target is torch.ops.aten.sin.default and ctx.allow("replace", node):
                node.target = torch.ops.aten.cos.default
                changed += 1
        new.recompile()
        return PassResult(new if changed else graph, bool(changed), {"replaced": changed})


@dataclass(frozen=True)
class Copy(Base):
    """Copies the graph."""

    name: ClassVar[str] = "copy"
    establishes: ClassVar[frozenset[str]] = frozenset({"copied"})

    def run(self, graph: GraphModule, ctx: PassContext) -> PassResult:
        return PassResult(copy(graph), True)


@dataclass(frozen=True)
class NeedsCopy(Base):
    """Needs a copy."""

    name: ClassVar[str] = "needs-copy"
    requires: ClassVar[frozenset[str]] = frozenset({"copied"})

    def run(self, graph: GraphModule, ctx: PassContext) -> PassResult:
        return PassResult(graph, False)


@dataclass(frozen=True)
class Broken(Base):
    """Raises."""

    name: ClassVar[str] = "broken"

    def run(self, graph: GraphModule, ctx: PassContext) -> PassResult:
        raise KeyError("inside the pass")


@dataclass(frozen=True)
class Malformed(Base):
    """Makes a graph that uses a value before it is computed."""

    name: ClassVar[str] = "malformed"

    def run(self, graph: GraphModule, ctx: PassContext) -> PassResult:
        new = copy(graph)
        nodes = list(new.graph.nodes)
        nodes[-2].append(nodes[1])
        return PassResult(new, True)


@dataclass(frozen=True)
class InPlace(Base):
    """Breaks the contract: changes its argument."""

    name: ClassVar[str] = "in-place"

    def run(self, graph: GraphModule, ctx: PassContext) -> PassResult:
        return PassResult(graph, True)


class Log:
    def __init__(self) -> None:
        self.applications: list[Application] = []
        self.events: list[tuple[str, dict[str, Any]]] = []

    def before_passes(self, *args: Any) -> None: ...

    def after_pass(self, application: Application) -> None:
        self.applications.append(application)

    def sink(self, kind: str, **fields: Any) -> None:
        self.events.append((kind, fields))

    @property
    def statuses(self) -> list[tuple[str, str]]:
        return [(a.pass_.name, a.status) for a in self.applications]


def graph() -> GraphModule:
    def f(x: torch.Tensor) -> torch.Tensor:
        return torch.sin(torch.sin(torch.sin(x * 2))) + 1

    return make_fx(f, tracing_mode="fake")(torch.randn(3, 4))


def run(*passes: Any, counters: Counters | None = None, verify: Any = None, **options: Any):
    log = Log()
    instruments = ([verify] if verify else []) + [log]
    manager = PassManager(
        passes, instruments, Options(**options), sink=log.sink, counters=counters or Counters()
    )
    before = graph()
    return manager.run(before, "inference", "g"), before, log


def ops(gm: GraphModule) -> list[str]:
    return [str(n.target) for n in gm.graph.nodes if n.op == "call_function"]


def test_changed_graph_goes_to_the_next_pass() -> None:
    after, before, log = run(SinToCos(), Copy(), NeedsCopy())
    assert ops(after).count("aten.cos.default") == 3
    assert ops(before).count("aten.sin.default") == 3
    assert log.statuses == [
        ("sin-to-cos", "changed"),
        ("copy", "changed"),
        ("needs-copy", "unchanged"),
    ]
    assert log.applications[0].rewrites == {"replace": 3}
    assert log.applications[0].stats == {"replaced": 3}
    assert [a.index for a in log.applications] == [1, 2, 3]


def test_missing_requirement_is_an_error() -> None:
    with pytest.raises(PipelineError, match="needs a graph that is copied"):
        run(NeedsCopy())


def test_pass_after_a_disabled_one_is_left_out_too() -> None:
    _, _, log = run(Copy(), NeedsCopy(), disable=("copy",))
    assert log.statuses == [("copy", "skipped"), ("needs-copy", "skipped")]
    assert log.applications[0].reason == "disabled"


def test_opt_limit_counts_over_all_graphs_of_the_process() -> None:
    counters = Counters()
    _, _, first = run(Copy(), Copy(), counters=counters, opt_limit=3)
    _, _, second = run(Copy(), Copy(), counters=counters, opt_limit=3)
    assert [a.number for a in first.applications + second.applications] == [1, 2, 3, None]
    assert second.statuses == [("copy", "changed"), ("copy", "skipped")]


def test_rewrite_limit_stops_inside_a_pass() -> None:
    after, _, log = run(SinToCos(), rewrite_limit=("sin-to-cos", 2))
    assert ops(after).count("aten.cos.default") == 2
    rewrites = [fields["number"] for kind, fields in log.events if kind == "rewrite"]
    assert rewrites == [1, 2]


def test_disabling_one_rewrite() -> None:
    after, before, log = run(SinToCos(), disable=("sin-to-cos/replace",))
    assert after is before
    assert log.statuses == [("sin-to-cos", "unchanged")]


def test_raising_pass_is_recorded_and_left_out() -> None:
    after, before, log = run(Broken(), Copy())
    assert ops(after) == ops(before)
    assert log.statuses == [("broken", "failed"), ("copy", "changed")]
    kind, fields = log.events[0]
    assert (kind, fields["pass"], fields["graph"]) == ("pass-failed", "broken", "g")
    assert "inside the pass" in fields["error"]


def test_raising_pass_in_strict_mode() -> None:
    with pytest.raises(CompileError, match=r"'broken' failed on graph 'g': KeyError"):
        run(Broken(), strict=True)


def test_same_object_called_changed_is_a_broken_contract() -> None:
    with pytest.raises(PipelineError, match="returned the same object"):
        run(InPlace())


def test_verify_finds_the_first_differing_node() -> None:
    with pytest.raises(VerificationError) as caught:
        run_verified(SinToCos())
    assert caught.value.pass_name == "sin-to-cos"
    assert caught.value.node == "sin"
    assert caught.value.max_error is not None
    assert caught.value.max_error > 0.01


def run_verified(*passes: Any) -> Log:
    log = Log()
    options = Options(verify=True)
    manager = PassManager(
        passes, [Verify(sink=log.sink), log], options, sink=log.sink, counters=Counters()
    )
    manager.run(graph(), "inference", "g")
    return log


def test_verify_accepts_an_equal_graph() -> None:
    log = run_verified(Copy())
    assert log.events == [
        ("verified", {"pass": "copy", "graph": "g", "max_error": 0.0, "values": True})
    ]


def test_malformed_graph_is_dropped_when_only_checked() -> None:
    after, before, log = run(Malformed(), verify=Verify(execute=False))
    assert after is before
    assert log.statuses == [("malformed", "failed")]


def test_malformed_graph_raises_in_verify_mode() -> None:
    with pytest.raises(VerificationError, match="malformed"):
        run_verified(Malformed())


def test_timer_and_changed_counter() -> None:
    timer, changes = Timer(), ChangedCounter()
    manager = PassManager([SinToCos(), Copy()], [timer, changes], counters=Counters())
    manager.run(graph(), "inference", "g")
    assert set(timer.times) == {"sin-to-cos", "copy"}
    assert min(timer.times.values()) > 0
    assert changes.changes == [
        ("g", "sin-to-cos", {"aten.cos.default": 3, "aten.sin.default": -3}),
        ("g", "copy", {}),
    ]
