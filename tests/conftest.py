"""Nothing a user set may leak into the tests."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _no_deepcompile_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in list(os.environ):
        foreign = variable.startswith(("DEEPCOMPILE_TEST_", "DEEPCOMPILE_BENCH_"))
        if variable.startswith("DEEPCOMPILE_") and not foreign:
            monkeypatch.delenv(variable)
