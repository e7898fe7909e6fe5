"""What torch's own channels get of a compile: TORCH_TRACE with tlparse, TORCH_LOGS, set_logs."""

from __future__ import annotations

import copy
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._logging import _internal as torch_logging
from torch._logging._internal import trace_log

from deepcompile.ir.graph_parser import parse_graph
from deepcompile.options import Options
from deepcompile.pipeline import torch_channels, torch_logs

ROOT = Path(__file__).parents[2]
TLPARSE = shutil.which("tlparse") or shutil.which("tlparse", path=str(Path(sys.executable).parent))
SCRIPT = """
import torch
from torch import nn
torch.set_num_threads(1)
def double(x):
    return nn.functional.gelu(x * 2) + torch.fft.fft(x).real
step = torch.compile(double, backend="deepep")
step(torch.ones(4, 8, requires_grad=True)).sum().backward()
"""


@dataclass
class Trace(logging.Handler):
    """What a trace got: metadata and payloads, in order."""

    records: list[tuple[dict[str, Any], str | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append((record.metadata, record.payload))  # type: ignore[attr-defined]

    def artifacts(self) -> dict[str, str | None]:
        """Ours by name."""
        named = [(m["artifact"]["name"], text) for m, text in self.records if "artifact" in m]
        return {name: text for name, text in named if name.startswith("deepep_")}

    __hash__ = logging.Handler.__hash__


@pytest.fixture
def trace() -> Iterator[Trace]:
    handler = Trace()
    trace_log.addHandler(handler)
    yield handler
    trace_log.removeHandler(handler)


@pytest.fixture(autouse=True)
def own_levels() -> Iterator[None]:
    """Levels of our loggers by default, and they and handlers as they were afterwards."""
    torch._dynamo.reset()
    loggers = [logging.getLogger(n) for n in ("deepcompile", "deepcompile.passes")]
    before = [(log.level, list(log.handlers)) for log in loggers]
    torch_logs.set_levels(Options())
    yield
    for log, (level, handlers) in zip(loggers, before, strict=True):
        log.setLevel(level)
        log.handlers[:] = handlers


def compiled_step(**options: Any) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU())
    step = torch.compile(model, backend="deepep", options=options)
    step(torch.ones(4, 8)).sum().backward()


def test_trace_has_each_changed_state_and_the_kernels(trace: Trace) -> None:
    compiled_step()
    found = trace.artifacts()
    (fused,) = [n for n in found if re.fullmatch(r"deepep_\d{3}_fuse-rows_g\d+_forward", n)]
    graph = fused.partition("fuse-rows_")[2]
    for name in (f"deepep_000_input_{graph}", fused):
        assert parse_graph(found[name] or "").graph.nodes
    assert found[f"deepep_000_input_{graph}"] != found[fused]
    assert "==== kernel" in (found[f"deepep_kernels_{graph}"] or "")
    assert json.loads(found[f"deepep_compiled_{graph}"] or "")["kernels"] >= 1
    dumps = [m["graph_dump"]["name"] for m, _ in trace.records if "graph_dump" in m]
    assert f"deepep_{graph}" in dumps


def test_trace_has_fallbacks_with_their_reason(
    trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepcompile.backend.emit_program", lambda *a, **k: 1 / 0)
    compiled_step()
    (name, *_) = [n for n in trace.artifacts() if n.startswith("deepep_fallback_g")]
    fallback = json.loads(trace.artifacts()[name] or "")
    assert fallback["kind"] == "fallback"
    assert "ZeroDivisionError" in fallback["reason"]


def test_nothing_is_printed_where_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_log, "handlers", [])

    def print_graph(graph: object) -> str:
        raise AssertionError("printed")

    torch_logs.set_levels(Options())
    assert torch_channels.torch_instruments(print_graph) == ()
    torch_channels.tell_kernels("g", iter(lambda: print_graph(None), None))


def test_an_unprintable_graph_is_torch_s_own_text(trace: Trace) -> None:
    (instrument,) = torch_channels.torch_instruments(lambda graph, kind: str(1 / 0))
    graph = torch.fx.symbolic_trace(lambda x: x + 1)
    instrument.before_passes("g9_forward", "forward", graph)
    text = trace.artifacts()["deepep_000_input_g9_forward"] or ""
    assert text.startswith("# cannot be printed: ZeroDivisionError")
    assert "operator.add" in text


def test_set_logs_of_torch_is_not_overridden(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = copy.deepcopy(torch_logging.log_registry)
    monkeypatch.setattr(torch_logging, "log_registry", registry)
    try:
        torch._logging.set_logs(modules={"deepcompile.passes": logging.INFO})
        compiled_step()
        assert re.search(r"fuse-rows changed in .* ms, ops \+\d+ -\d+", capsys.readouterr().err)
        torch._logging.set_logs(modules={"deepcompile": logging.DEBUG})
        torch_logs.set_levels(Options())
        assert torch_logs.EVENTS.level == logging.DEBUG
        torch_logs.set_levels(Options.resolve({"log_level": "error"}))
        assert torch_logs.EVENTS.level == logging.ERROR
    finally:
        torch._logging.set_logs()
    torch_logs.set_levels(Options())
    assert torch_logs.EVENTS.level == logging.WARNING


def test_log_level_is_heard_without_a_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(torch_logs.EVENTS, "handlers", [])
    torch_logs.set_levels(Options())
    assert not torch_logs.EVENTS.handlers
    for _ in range(2):
        torch_logs.set_levels(Options.resolve({"log_level": "info"}))
    assert len(torch_logs.EVENTS.handlers) == 1


def test_environment_variables_of_torch(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    variables = {
        "TORCH_LOGS": "deepcompile.passes,+deepcompile.codegen",
        "TORCH_TRACE": str(tmp_path / "trace"),
        "DEEPCOMPILE_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"\[0/0\] g0_forward \d{3} fuse-rows changed in", done.stderr)
    assert re.search(r"g0_forward: kernels \d+, calls of ATen \d+; passes", done.stderr)
    assert "static void k0" in done.stderr
    assert "placeholder" not in done.stderr  # the text of graphs is for DEBUG
    if TLPARSE is None:
        pytest.skip("tlparse is not installed: pip install tlparse")
    (log,) = (tmp_path / "trace").iterdir()
    page = tmp_path / "page"
    subprocess.run(
        [TLPARSE, str(log), "-o", str(page), "--no-browser"], check=True, capture_output=True
    )
    names = [path.name for path in page.glob("-_0_0_0/deepep_*")]
    assert any(re.fullmatch(r"deepep_\d{3}_fuse-rows_g0_forward_\d+.txt", n) for n in names)
    assert any(re.fullmatch(r"deepep_compiled_g0_forward_\d+.json", n) for n in names)
    assert "deepep_kernels_g0_forward" in (page / "index.html").read_text()
