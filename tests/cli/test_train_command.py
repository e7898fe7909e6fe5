"""`deepcompile train` at toy size."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from deepcompile.cli.exit import Exit
from deepcompile.cli.main import run
from deepcompile.demo import train
from deepcompile.demo.plot import losses_svg

TOY = ["--layers", "1", "--hidden", "64", "--context", "16", "--batch", "2"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    torch.set_num_threads(before)


def trained(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run(["train", "transformer", *arguments, "--json"]) == Exit.OK
    return json.loads(capsys.readouterr().out)


def test_goes_on_as_if_it_had_not_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    whole = trained(capsys, "--steps", "4", *TOY, "--out", "whole", "--plot", "losses.svg")
    assert whole["divergence_step"] is None
    assert len(whole["runs"]["compiled"]["losses"]) == 4
    ET.parse("losses.svg")
    trained(capsys, "--steps", "2", *TOY, "--out", "parts")
    with Path("parts/steps.jsonl").open("a") as file:
        file.write('{"step": 3, "run": "eager"')  # a process that was killed
    resumed = trained(capsys, "--steps", "4", "--resume", "parts")
    assert resumed["runs"]["eager"]["losses"] == whole["runs"]["eager"]["losses"]
    for name in ("whole", "parts"):
        lines = [json.loads(line) for line in Path(name, "steps.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if line["run"] == "compiled"] == [1, 2, 3, 4]
    assert run(["train", "transformer", "--out", "parts"]) == Exit.USAGE
    assert "--resume parts" in capsys.readouterr().err


def test_disagreement_and_its_step(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "TOLERANCE", -1.0)
    assert run(["train", "transformer", "--steps", "1", *TOY]) == Exit.NO
    out = capsys.readouterr().out
    assert "losses DISAGREE" in out
    assert "first step further apart: 1" in out
    assert "TOKENS/S" in out


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_see_what_one_sees(capfd: pytest.CaptureFixture[str]) -> None:
    import sys

    alone: dict[str, Any] = trained(capfd, "--steps", "2", *TOY)
    arguments = ["train", "transformer", "--steps", "2", *TOY, "--nproc", "2", "--json"]
    before, sys.argv = sys.argv, ["deepcompile", *arguments]
    try:
        assert run(arguments) == Exit.OK
    finally:
        sys.argv = before
    both = json.loads(capfd.readouterr().out)
    for name in ("eager", "compiled"):
        assert both["runs"][name]["losses"] == pytest.approx(alone["runs"][name]["losses"], 1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["transformr"], "did you mean 'transformer'"),
        (["transformer", "--hidden", "100"], "multiple of 64"),
        (["transformer", "--nproc", "3"], "multiple of --nproc 3"),
        (["transformer", "--resume", "nowhere"], "nowhere has no checkpoint.pt"),
        (["transformer", "--steps", "0"], "--steps"),
    ],
)
def test_bad_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", *arguments]) == Exit.USAGE
    assert message in capsys.readouterr().err


def test_a_checkpoint_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("bad")
    folder.mkdir()
    (folder / "checkpoint.pt").write_bytes(b"not a checkpoint")
    assert run(["train", "transformer", "--resume", "bad"]) == Exit.USAGE
    captured = capsys.readouterr()
    assert "is no checkpoint" in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    "losses", [[1.0], [1.0, float("nan"), 2.0], [float("inf")] * 2, [2.0] * 50, [0.0, 0.0]]
)
def test_any_losses_can_be_drawn(losses: list[float]) -> None:
    text = losses_svg([("<eager>", losses), ("compiled", [x * 1.5 for x in losses])], 1e-4)
    root = ET.fromstring(text)
    assert root.attrib["viewBox"] == "0 0 760 520"
    assert "<eager>" in "".join(root.itertext())
    assert "nan" not in text
    assert "inf" not in text
