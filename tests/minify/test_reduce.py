"""Reductions, with a failure that is made up: nothing is compiled here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from deepcompile.child.captured import Kept
from deepcompile.child.rows import Ref, Row, Rows
from deepcompile.child.signature import Signature
from deepcompile.minify.case import Case, Oracle, made
from deepcompile.minify.engine import values_of
from deepcompile.minify.reduce import Reducer
from deepcompile.minify.script import script

WRONG = Signature("numerics", "values", "output 0: largest error 1 of 2", 0.5)


def chain(length: int, at: int, dynamic: bool = False) -> Case:
    """Sines, with a `tanh` in the middle."""
    rows = [
        Row(f"r{n}", "call", "torch.tanh" if n == at else "torch.sin", (_before(n),), {})
        for n in range(length)
    ]
    program = Rows(
        ("x", "y"), (*rows, Row("s", "call", "torch.cos", (Ref("y"),), {})), ("s", rows[-1].name)
    )
    inputs = {"x": torch.randn(64, 8).requires_grad_(), "y": torch.randn(3)}
    return Case.of(Kept(program, inputs, True, dynamic, {}, WRONG), {})


def _before(n: int) -> Ref:
    return Ref(f"r{n - 1}" if n else "x")


def reduced(case: Case, fails: Any, **fields: Any) -> tuple[Case, Oracle]:
    def run(candidate: Case) -> Mapping[str, Any]:
        candidate.rows.function()(*candidate.given())
        return {"failure": WRONG.to_dict()} if fails(candidate) else {}

    oracle = Oracle(run, WRONG, **fields)
    assert oracle.start(case) == WRONG
    return Reducer(case, oracle, values_of(case), lambda text: None).run(), oracle


def has_tanh(case: Case) -> bool:
    return any(row.target == "torch.tanh" for row in case.rows.rows)


@pytest.mark.parametrize("at", [0, 13, 39])
def test_one_row_is_left(at: int) -> None:
    case, oracle = reduced(chain(40, at, dynamic=True), has_tanh)
    assert [row.target for row in case.rows.rows] == ["torch.tanh"]
    assert len(case.inputs) == 1
    assert not case.backward
    assert not case.dynamic
    assert set(case.sources.values()) == {"randn"}
    assert case.given()[0].shape == (2, 2)
    assert oracle.tried < 40


def test_rows_that_must_stay_together_stay() -> None:
    def fails(case: Case) -> bool:
        names = [row.name for row in case.rows.rows]
        return "r5" in names and "r20" in names

    case, _ = reduced(chain(30, 3), fails)
    assert {"r5", "r20"} <= {row.name for row in case.rows.rows}
    assert case.rows.operations <= 16


def test_what_matters_stays() -> None:
    def fails(case: Case) -> bool:
        wanted = any(value.requires_grad for value in case.given())
        return case.backward and wanted and has_tanh(case)

    case, _ = reduced(chain(10, 4), fails)
    assert case.backward
    assert any(value.requires_grad for value in case.given())


def test_stored_inputs_where_values_matter() -> None:
    whole = chain(4, 2)
    exact = values_of(whole)["r1"]

    def fails(case: Case) -> bool:
        if not has_tanh(case):
            return False
        value = next(iter(case.given()))
        return value.shape == (64, 8) and (
            torch.equal(value, exact) or torch.equal(value, whole.inputs["x"])
        )

    case, _ = reduced(whole, fails)
    assert not case.sources
    assert case.rows.operations < 4


def test_another_failure_is_none() -> None:
    def run(case: Case) -> Mapping[str, Any]:
        return {"failure": Signature("compile", "KeyError", "k").to_dict()}

    assert Oracle(run, WRONG).start(chain(3, 1)) is None
    oracle = Oracle(run, Signature("compile", "KeyError", "k"), keep="not there")
    assert oracle.start(chain(3, 1)) is None


def test_rounding_does_not_count_for_a_large_error() -> None:
    def run(case: Case) -> Mapping[str, Any]:
        return {"failure": Signature("numerics", "values", "", 0.002).to_dict()}

    assert not Oracle(run, WRONG).fails(chain(3, 1))


def test_no_time_left() -> None:
    case, oracle = reduced(chain(8, 2), has_tanh, deadline=0.0)
    assert oracle.is_late()
    assert oracle.tried == 0
    assert case.rows.operations == 9


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("kind", ["numerics", "slow", "compile"])
def test_scripts_run(tmp_path: Path, kind: Any, backward: bool) -> None:
    case, _ = reduced(chain(6, 3), lambda c: has_tanh(c) and c.backward >= backward)
    inputs = {name: value.detach()[:2, :2] for name, value in case.inputs.items()}
    for source in ({}, case.sources):
        own = Case(case.rows, inputs, case.backward, False, {"strict": True}, source)
        text = script(own, Signature(kind, "values", 'a "quoted" text'), name="r.py", excess=9.0)
        # With another backend, so that nothing is compiled here.
        text = text.replace("backend=\"deepep\", options={'strict': True}", 'backend="eager"')
        text = text.replace("import deepcompile  #", "#")
        assert 'backend="eager"' in text
        (tmp_path / "r.py").write_text(text)
        scope: dict[str, Any] = {"__name__": "script"}
        exec(compile(text, "r.py", "exec"), scope)
        values = scope["inputs"]()
        assert len(values) == len(own.inputs)
        if not source:
            assert torch.equal(values[0].detach(), own.given()[0])
        assert len(scope["run"](scope["fn"])) == (3 if backward and values[0].requires_grad else 2)


def test_a_script_is_a_program(tmp_path: Path) -> None:
    case, _ = reduced(chain(3, 1), has_tanh)
    text = script(case, WRONG, name="r.py").replace('backend="deepep"', 'backend="eager"')
    (tmp_path / "r.py").write_text(text.replace("import deepcompile  #", "#"))
    done = subprocess.run(
        [sys.executable, str(tmp_path / "r.py")], capture_output=True, text=True, check=True
    )
    assert done.stdout == "no failure\n"


def test_made_inputs_are_those_of_the_script() -> None:
    like = torch.empty(3, dtype=torch.int64)
    assert made("randint", like, 1).dtype == torch.int64
    assert torch.equal(made("randn", torch.empty(4), 2), made("randn", torch.empty(4), 2))
