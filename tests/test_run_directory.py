"""The run directory that a real compile leaves, read back without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deepcompile.inspect.reader import Run, list_runs, read_run

MODEL = """
import sys
import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 16)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 11)

    def forward(self, tokens):
        hidden = self.norm(self.table(tokens))
        torch._dynamo.graph_break()
        logits = self.head(F.gelu(hidden))
        return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())


torch.manual_seed(0)
model = Net()
step = torch.compile(model, backend="deepep", options={"run_dir": sys.argv[1]})
loss = step(torch.randint(0, 11, (4, 8)))
loss.backward()
"""

CRASH = """
raise RuntimeError("the user's own mistake")
"""

READ = """
import json, sys
from deepcompile.inspect.reader import read_run
run = read_run(sys.argv[1])
assert "torch" not in sys.modules
print(json.dumps([run.status, len(run.graphs), len(run.kernels)]))
"""


def start(folder: Path, source: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    script = folder / "train.py"
    script.write_text(source)
    environment = {**os.environ, "DEEPCOMPILE_CACHE_DIR": str(folder / "cache"), **variables}
    return subprocess.Popen(
        [sys.executable, str(script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    return out


def line_of(text: str) -> int:
    return next(i for i, line in enumerate(MODEL.splitlines(), start=1) if text in line)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    finish(start(folder, MODEL, str(folder / "runs")))
    return read_run(folder / "runs")


def test_it_reads_without_torch(run: Run, folder: Path):
    done = subprocess.run(
        [sys.executable, "-c", READ, str(run.path)], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == ["ok", len(run.graphs), len(run.kernels)]


def test_run_json_says_what_was_run_and_how_it_ended(run: Run):
    info = run.info
    assert run.status == "ok"
    assert info["started"] < info["ended"]
    assert info["versions"].keys() == {"deepcompile", "torch"}
    assert "fuse-rows" in info["pipeline"]
    assert info["options"]["run_dir"]
    assert info["counts"] == {
        "graphs": len(run.graphs),
        "kernels": len(run.kernels),
        "fallbacks": len(run.fallbacks),
        "events": len(run.events),
    }


def test_two_graphs_each_with_joint_forward_and_backward(run: Run):
    names = {graph.name for graph in run.graphs}
    trained = {n for n in names if not n.endswith("inference")}
    assert trained == {f"g{i}_{kind}" for i in (0, 1) for kind in ("joint", "forward", "backward")}


def test_graphs_hold_the_input_and_the_changed_states(run: Run):
    for graph in run.graphs:
        first, *rest = graph.states
        assert (first.index, first.name) == (0, "input")
        assert first.text
        assert [state.index for state in rest] == list(range(1, len(rest) + 1))
        assert rest
        for state in rest:
            assert (state.text is not None) == (state.meta["status"] == "changed")
    fused = {g.name for g in run.graphs if g.last_text.name == "fuse-rows"}
    assert {"g0_forward", "g0_backward", "g1_forward", "g1_backward"} <= fused


def test_states_print_the_user_line(run: Run):
    (graph,) = [g for g in run.graphs if g.name == "g0_forward"]
    assert f"train.py:{line_of('self.norm(')}" in (graph.states[0].text or "")


def test_kernels_have_source_nest_and_origins(run: Run):
    assert run.kernels
    for kernel in run.kernels:
        assert kernel.files == ("nest.txt", "source.cpp")
        assert all((kernel.path / file).read_text().strip() for file in kernel.files)
        assert kernel.ops
        for origin in kernel.origins:
            path, _, line = origin.rpartition(":")
            assert path.endswith("train.py")
            assert line.isdigit()
    norm, gelu, loss = (line_of(t) for t in ("self.norm(", "F.gelu", "cross_entropy"))
    lines = {k.name: {int(o.rpartition(":")[2]) for o in k.origins} for k in run.kernels}
    for graph, line in [("g0", norm), ("g1", gelu), ("g1", loss)]:
        for kind in ("forward", "backward"):
            mine = [v for name, v in lines.items() if name.startswith(f"{graph}_{kind}")]
            assert any(line in found for found in mine), (graph, kind, line)


def test_kernels_say_what_they_move_and_take(run: Run):
    for kernel in run.kernels:
        meta = kernel.meta
        assert meta["bytes_read"] > 0
        assert meta["bytes_written"] > 0
        assert meta["seconds"] > 0
        assert meta["launch"]["kind"] == "cpp"
        assert all(count > 0 for count in meta["launch"]["elements"])


def test_programs_hold_each_step_and_the_memory(run: Run):
    programs = {
        file.stem: json.loads(file.read_text()) for file in (run.path / "programs").iterdir()
    }
    kernels = {kernel.name for kernel in run.kernels}
    steps = [step for program in programs.values() for step in program["steps"]]
    assert {step["kernel"] for step in steps if step["kind"] == "kernel"} == kernels
    product = next(step for step in steps if "addmm" in step.get("op", ""))
    assert product["operations"] == 2 * 32 * 16 * 11
    assert product["origin"] is not None
    for program in programs.values():
        memory = program["memory"]
        peak = max(memory["live"])
        assert memory["live"][memory["peak_step"] + 1] == peak
        assert sum(owner["nbytes"] for owner in memory["owners"]) + memory["others"] == peak


def test_the_first_state_says_which_module_made_what(run: Run):
    made = [state.meta["modules"] for graph in run.graphs for state in graph.states[:1]]
    assert {"norm", "head"} <= {path for modules in made for path in modules}
    for graph in run.graphs:
        first = graph.states[0]
        for names in first.meta["modules"].values():
            assert all(f"%{name} " in (first.text or "") for name in names.split())


def test_externs_are_counted_per_op_and_graph(run: Run):
    found = {(e.fields["graph"], e.fields["op"]): e for e in run.events if e.kind == "extern"}
    assert found["g1_forward", "aten.addmm.default"].fields["count"] == 1
    assert found["g1_backward", "aten.mm.default"].fields["count"] == 2
    (origin,) = found["g1_forward", "aten.addmm.default"].fields["origins"]
    assert origin.endswith(f"train.py:{line_of('self.head(')}")


def test_every_built_graph_looks_into_the_cache(run: Run):
    looks = {e.fields["graph"]: e.fields["hit"] for e in run.events if e.kind == "cache"}
    compiled = [e.fields["graph"] for e in run.events if e.kind == "compiled"]
    assert list(looks) == compiled
    assert not any(looks.values())


def test_fallbacks_say_why(folder: Path):
    root = folder / "fallback"
    finish(start(folder, MODEL, str(root), CXX="false", DEEPCOMPILE_CACHE_DIR=str(folder / "no")))
    run = read_run(root)
    assert {e.fields["graph"] for e in run.fallbacks} == {
        f"g{i}_{kind}" for i in (0, 1) for kind in ("forward", "backward")
    }
    for event in run.fallbacks:
        assert "compiler" in event.fields["reason"]
        assert (
            f"- **fallback** {event.fields['graph']} the C++" in (run.path / "index.md").read_text()
        )
    assert run.info["counts"]["fallbacks"] == 4


def test_graph_breaks_say_where(run: Run):
    (found,) = [e for e in run.events if e.kind == "graph-break"]
    assert found.fields["origin"].endswith(f"train.py:{line_of('graph_break')}")
    assert "graph_break()" in found.fields["reason"]


def test_index_lists_everything_in_order(run: Run):
    index = (run.path / "index.md").read_text()
    positions = [index.index(f"## graph {graph.name}\n") for graph in run.graphs]
    assert positions == sorted(positions)
    assert all(f"(kernels/{kernel.name}/)" in index for kernel in run.kernels)
    for graph in run.graphs:
        states = [index.index(str(s.path.relative_to(run.path))) for s in graph.states if s.path]
        assert states == sorted(states)
    forward, backward = index.index("## graph g1_forward"), index.index("## graph g1_backward")
    assert forward < index.index("kernel [g1_forward.k0]") < backward
    assert "**graph-break**" in index


@pytest.mark.slow
def test_two_processes_at_once_and_then_a_cache_hit(folder: Path):
    root = folder / "twice"
    both = [start(folder, MODEL, str(root)) for _ in range(2)]
    for process in both:
        finish(process)
    runs = [read_run(path) for path in list_runs(root)]
    assert {r.info["pid"] for r in runs} == {process.pid for process in both}
    assert [r.status for r in runs] == ["ok", "ok"]
    assert len({tuple(k.name for k in r.kernels) for r in runs}) == 1
    assert not any(r.fallbacks for r in runs)
    # The first test of this file filled the cache with the same kernels.
    assert all(e.fields["hit"] for r in runs for e in r.events if e.kind == "cache")
    assert (root / "latest").read_text().strip() in {r.name for r in runs}


@pytest.mark.slow
def test_a_run_that_dies_of_an_error_says_so(folder: Path):
    root = folder / "crash"
    finish(start(folder, MODEL + CRASH, str(root)), code=1)
    run = read_run(root)
    assert run.status == "failed"
    assert run.info["error"] == "RuntimeError: the user's own mistake"
