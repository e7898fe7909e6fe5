"""torch.profiler names our graphs and their kernels, one range a call."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from deepcompile.runtime.profiled import KernelRanges, named_in_profiles


def test_a_profile_has_graphs_and_kernels_inside_them(tmp_path: Path) -> None:
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.GELU())
    step = torch.compile(model, backend="deepep")
    inputs = torch.ones(8, 16)
    step(inputs).sum().backward()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(2):
            step(inputs).sum().backward()
    found.export_chrome_trace(str(tmp_path / "steps.json"))
    events = json.loads((tmp_path / "steps.json").read_text())["traceEvents"]
    ours = [e for e in events if e.get("cat") == "user_annotation"]
    for kind in ("forward", "backward"):
        graphs = [e for e in ours if e["name"].endswith(f"_{kind}")]
        assert len(graphs) == 2
        for graph in graphs:
            start, end = graph["ts"], graph["ts"] + graph["dur"]
            inside = [e["name"] for e in ours if start <= e["ts"] < end and e is not graph]
            assert any(name.startswith("kernel k0: ") for name in inside)


def test_without_a_profiler_nothing_is_opened(monkeypatch) -> None:
    monkeypatch.setattr("deepcompile.runtime.profiled.record_function", lambda name: 1 / 0)
    assert named_in_profiles(lambda a, b: [a, b], "g")([1, 2]) == [1, 2]


def test_a_kernel_that_was_never_begun_ends_quietly() -> None:
    ranges = KernelRanges({3: "kernel"})
    ranges(~3)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        ranges(3)
        ranges(~3)
    assert [e.key for e in found.key_averages()] == ["kernel"]
