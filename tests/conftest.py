"""Nothing a user set may leak into the tests; golden texts, rewritten by `--bless`."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

# Without a GPU, Triton kernels run in its interpreter, which must be on before Triton is imported.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Workers share the cores: threads of one that wait must not keep those of another from working.
# OpenMP reads this when torch is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

GOLDEN_MARK = "---- becomes\n"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--bless", action="store_true", help="rewrite golden texts; review them as a diff"
    )


# All modules of the tests are imported now, and torch: objects that stay. The collector would look
# through all of them again and again.
def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def pytest_sessionfinish() -> None:
    gc.unfreeze()


# pytest 9 captures loggers that do not propagate, too. torch's structured trace is one, and it
# prints every graph, guard and frame as soon as somebody listens, which takes a while. pytest's
# own hooks, which attach the handlers, are around these.
@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    _leave_the_trace_of_torch_alone()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    _leave_the_trace_of_torch_alone()


def _leave_the_trace_of_torch_alone() -> None:
    trace = logging.getLogger("torch.__trace")
    for handler in list(trace.handlers):
        if type(handler).__module__ == "_pytest.logging":
            trace.removeHandler(handler)


@pytest.fixture
def check_golden(pytestconfig: pytest.Config) -> Callable[[Path, Callable[[str], str]], None]:
    """`check_golden(file, transform)`: the second half of the file is `transform(first half)`.

    The halves are parted by a line `---- becomes`; with `--bless` the second one is rewritten.
    """

    def check(file: Path, transform: Callable[[str], str]) -> None:
        given, _, expected = file.read_text().partition(GOLDEN_MARK)
        result = transform(given)
        if pytestconfig.getoption("bless"):
            file.write_text(given + GOLDEN_MARK + result)
            return
        assert result == expected, f"{file.name} is out of date; if it should be, run with --bless"

    return check


@pytest.fixture(autouse=True)
def _no_deepcompile_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in list(os.environ):
        foreign = variable.startswith(("DEEPCOMPILE_TEST_", "DEEPCOMPILE_BENCH_"))
        if variable.startswith("DEEPCOMPILE_") and not foreign:
            monkeypatch.delenv(variable)
    # Whoever runs the tests may have measured rates, and plans are compared with numbers.
    monkeypatch.setenv("DEEPCOMPILE_RATES", "table")
