"""The HTML report of a run of 20,000 nodes: time to write it, its size, its first responses."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks._measure import Check, Measurement, Plan, SuiteResult
from deepcompile.inspect.reader import read_run
from deepcompile.inspect.report.page import make_report
from tests.inspect.browser import Browser, find_browser
from tests.inspect.runs import large_run

NODES = 20_000
SECONDS, MEBIBYTES, RESPONSE = 10.0, 25.0, 0.2
_ROWS = "document.querySelectorAll('#%s .row')"
_ACTIONS = {
    "opening a pass": (
        f"{_ROWS % 'pass-list'}[4].click()",
        "document.querySelector('#pass-title').textContent.includes('004')",
    ),
    "opening a node": (
        f"{_ROWS % 'diff'}[3].click()",
        "document.querySelector('#details h3').textContent.startsWith('%')",
    ),
    "scrolling": ("document.querySelector('#diff').scrollTop = 3000", "true"),
    "all lines": ("document.querySelector('#show-all').click()", "true"),
    "kernels": ("document.querySelector('#tab-kernels').click()", f"{_ROWS % 'kernels-list'}[0]"),
    "the graph": ("document.querySelector('#tab-graph').click()", "true"),
    "memory": ("document.querySelector('#tab-memory').click()", "true"),
    "a search": (
        "document.querySelector('#tab-passes').click();"
        "const box = document.querySelector('#search'); box.value = 'block.py:123';"
        "box.dispatchEvent(new Event('input'))",
        "document.querySelector('#found').textContent",
    ),
}
_TIMED = """(async () => {
  const start = performance.now();
  %s;
  while (!(%s)) await new Promise((go) => setTimeout(go));
  await new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)));
  return performance.now() - start;
})()"""


def run(plan: Plan) -> SuiteResult:
    """Write it, and where there is a Chromium, open it and act on it."""
    nodes = plan.pick(NODES, NODES // 10)
    with tempfile.TemporaryDirectory(prefix="deepcompile-report-") as folder:
        recorded = large_run(Path(folder), nodes)
        start = time.perf_counter()
        page = Path(folder) / "report.html"
        page.write_text(make_report(read_run(recorded)).html, encoding="utf-8")
        seconds = time.perf_counter() - start
        size = page.stat().st_size / (1 << 20)
        measurements = [Measurement("write", seconds, "s"), Measurement("size", size, "MiB")]
        checks = [
            Check("seconds to write it", seconds, "<", SECONDS),
            Check("MiB of the file", size, "<", MEBIBYTES),
        ]
        responses = _responses(page)
    for name, taken in responses.items():
        measurements.append(Measurement(name, taken, "s"))
        checks.append(Check(f"seconds to answer: {name}", taken, "<", RESPONSE))
    notes = [f"{nodes} nodes, ten passes"]
    if not responses:
        notes.append("there is no Chromium: responses are left out")
    return SuiteResult("report", tuple(measurements), tuple(checks), tuple(notes))


def _responses(page: Path) -> dict[str, float]:
    """Seconds from an action to the frame that shows what it did."""
    found = find_browser()
    if found is None:
        return {}
    browser = Browser(found)
    try:
        browser.open(page)
        taken = {}
        for name, (action, condition) in _ACTIONS.items():
            taken[name] = browser.run(_TIMED % (action, condition)) / 1e3
        return taken
    finally:
        browser.close()
