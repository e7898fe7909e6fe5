"""Measured rates as a file: kept, found again, and refused when they are something else."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deepcompile.cost.calibration import (
    Machine,
    Measured,
    load_measured,
    rates_measured,
    save_measured,
)
from deepcompile.cost.rates import rates_of
from deepcompile.errors import CalibrationError

MACHINE = Machine("Some CPU", 2, "2.13.0")
MEASURED = Measured(MACHINE, "2026-01-31", 3e10, 1e-6, {"f32": 2.24e11, "bf16": 5e10}, {})
TABLE = rates_of("cpu", None, 2)


def test_saved_and_found_again(tmp_path: Path) -> None:
    file = tmp_path / "new" / "rates.json"
    assert load_measured(file) == ()
    save_measured(file, [MEASURED])
    assert load_measured(file) == (MEASURED,)
    found = rates_measured(TABLE, MACHINE, file)
    assert (found.bandwidth, found.launch) == (3e10, 1e-6)
    assert found.source == "calibrated 2026-01-31"
    assert [path.name for path in file.parent.iterdir()] == ["rates.json"]


def test_saving_replaces_the_same_machine_only(tmp_path: Path) -> None:
    file = tmp_path / "rates.json"
    other = replace(MEASURED, machine=replace(MACHINE, threads=1))
    save_measured(file, [MEASURED, other])
    newer = replace(MEASURED, date="2026-02-28")
    save_measured(file, [newer])
    assert load_measured(file) == (other, newer)


@pytest.mark.parametrize(
    "machine",
    [
        replace(MACHINE, threads=4),
        replace(MACHINE, torch="2.14.0"),
        replace(MACHINE, device="Other"),
    ],
    ids=["threads", "torch", "device"],
)
def test_other_machines_have_the_table(machine: Machine, tmp_path: Path) -> None:
    save_measured(tmp_path / "rates.json", [MEASURED])
    assert rates_measured(TABLE, machine, tmp_path / "rates.json") is TABLE


def test_dtypes_that_were_not_measured_follow_f32() -> None:
    found = MEASURED.over(TABLE)
    assert found.flops["f64"] / TABLE.flops["f64"] == pytest.approx(
        found.flops["f32"] / TABLE.flops["f32"]
    )
    assert found.flops["bf16"] == 5e10


def test_the_link_is_the_slower_way_and_within_a_cpu_a_copy() -> None:
    assert MEASURED.over(TABLE).link == 1.5e10
    link = {"to_device": 5.5e10, "to_host": 5e10}
    over = replace(MEASURED, link=link).over(rates_of("cuda", 90, 2))
    assert over.link == 5e10
    assert over.overlaps


def test_the_hash_is_of_the_numbers() -> None:
    found = MEASURED.over(TABLE)
    assert found.fingerprint != TABLE.fingerprint
    assert replace(MEASURED, date="1999-01-01").over(TABLE).fingerprint == found.fingerprint
    assert replace(MEASURED, launch=2e-6).over(TABLE).fingerprint != found.fingerprint


def entry(**changes: Any) -> str:
    machine = MEASURED.to_dict() | changes
    return json.dumps({"schema": 1, "machines": [machine]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting property name"),
        ("[1]", "list indices"),
        ('{"a": 1}', "it has no 'schema'"),
        ('{"schema": 7, "machines": []}', "schema 7, known is 1"),
        (entry(bandwidth=0), "bandwidth is 0"),
        (entry(bandwidth="fast"), "bandwidth is 'fast'"),
        (entry(launch=float("nan")), "launch is nan"),
        (entry(flops={"bf16": 1.0}), "flops has no f32"),
        (entry(flops={"f32": True}), "flops f32 is True"),
        (entry(threads="two"), "threads is 'two'"),
        (entry(device=None), "device is None"),
        (entry(link=None), "no attribute 'items'"),
    ],
)
def test_what_is_no_calibration_is_said_once_and_not_used(
    text: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "rates.json"
    file.write_text(text)
    with pytest.raises(CalibrationError, match=message) as raised:
        load_measured(file)
    assert "deepcompile doctor --calibrate" in str(raised.value)
    with pytest.warns(UserWarning, match="plans use the table of rates"):
        assert rates_measured(TABLE, MACHINE, file) is TABLE
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rates_measured(TABLE, MACHINE, file) is TABLE
    with pytest.raises(CalibrationError):
        save_measured(file, [MEASURED])
    assert file.read_text() == text


def test_a_place_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CalibrationError, match=r"cannot be (read|written)"):
        save_measured(tmp_path / "file" / "rates.json", [MEASURED])
    with pytest.raises(CalibrationError, match="cannot be read"):
        load_measured(tmp_path)
