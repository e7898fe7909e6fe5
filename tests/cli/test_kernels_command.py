"""`deepcompile kernels`: where kernels come from, and their stages."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import click
import pytest

from deepcompile.cli import kernels
from deepcompile.cli.exit import Exit
from deepcompile.cli.main import run
from deepcompile.inspect.reader import find_run

pytestmark = pytest.mark.usefixtures("root")


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["kernels", "list"]) is Exit.OK
    header, row, _ = capsys.readouterr().out.splitlines()
    assert header.split() == ["KERNEL", "TIME", "SHARE", "BYTES", "OPS", "FROM"]
    assert row.split() == ["g0_forward.k0", "-", "-", "-", "sin,", "cos", "model.py:3"]
    assert run(["kernels", "list", "--graph", "g1_inference", "--json"]) is Exit.OK
    (kernel,) = json.loads(capsys.readouterr().out)["kernels"]
    assert kernel["name"] == "g1_inference.k0"
    assert kernel["files"]
    assert run(["kernels", "list", "--graph", "g1_inferenc"]) is Exit.USAGE
    assert "did you mean 'g1_inference'" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_json_of_a_damaged_record_is_json(
    number: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = find_run(root) / "kernels/g0_forward.k0/meta.json"
    file.write_text(f'{{"seconds": {number}, "operations": {number}}}')
    programs = find_run(root) / "programs"
    programs.mkdir(exist_ok=True)
    step = {"kind": "kernel", "name": "lost", "call": "lost"}
    program = {"graph": "g0_forward", "steps": [step], "memory": {"live": [1], "owners": 7.5}}
    (programs / "g0_forward.json").write_text(json.dumps(program))
    for command in ("kernels list", "runs show", "show", "trace"):
        assert run([*command.split(), "--json"]) is Exit.OK, command
        shown = capsys.readouterr().out
        json.loads(shown, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert run(["report", "-o", "report.html"]) is Exit.OK


def test_largest_first(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = find_run(root)
    facts = {"g0_forward": (1e-6, 4096, 1000), "g1_inference": (3e-6, 1024, 9000)}
    for graph, (seconds, read, operations) in facts.items():
        file = run_dir / f"kernels/{graph}.k0/meta.json"
        meta = json.loads(file.read_text()) | {
            "seconds": seconds, "bytes_read": read, "bytes_written": 0, "operations": operations,
        }  # fmt: skip
        file.write_text(json.dumps(meta))
    names = {}
    for sort in ("time", "bytes"):
        assert run(["kernels", "list", "--sort", sort, "--roofline"]) is Exit.OK
        header, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert header[1:6] == ["TIME", "SHARE", "BYTES", "MOVING", "COMPUTING"]
        names[sort] = [row[0] for row in rows]
        assert {row[0]: row[3] for row in rows} == {
            "g0_forward.k0": "25.0%", "g1_inference.k0": "75.0%",
        }  # fmt: skip
    assert names == {
        "time": ["g1_inference.k0", "g0_forward.k0"],
        "bytes": ["g0_forward.k0", "g1_inference.k0"],
    }


@pytest.mark.parametrize(
    ("stage", "text"),
    [("source", "void k0() { add(1.0); }"), ("nest", "kernel @k0"), ("ptx", ".version 8"),
     ("k0.ptx", ".version 8"), ("meta", '"model.py:3"')],
)  # fmt: skip
def test_stages(root: Path, stage: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["kernels", "show", str(root), "g0_forward.k0", "--stage", stage]) is Exit.OK
    shown = capsys.readouterr()
    assert text in shown.out
    assert "sin, cos from model.py:3" in shown.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["g0_forward.k1"], "did you mean 'g0_forward.k0'"),
        (["k0"], "'k0' is 2 kernels: g0_forward.k0, g1_inference.k0"),
        (["g0_forward.k0", "--stage", "pxt"], "did you mean 'ptx'"),
        (["g0_forward.k0", "--stage", "../../run.json"], "unknown stage"),
        (["nowhere", "g0_forward.k0"], "no run 'nowhere'"),
        ([], "Missing argument"),
    ],
)
def test_bad_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["kernels", "show", *arguments]) is Exit.USAGE
    assert message in capsys.readouterr().err


def test_colours(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--color", "always", "kernels", "show", "g0_forward.k0"]) is Exit.OK
    assert "\x1b[1mvoid\x1b[0m" in capsys.readouterr().out
    assert run(["--color", "never", "kernels", "show", "g0_forward.k0"]) is Exit.OK
    assert "\x1b" not in capsys.readouterr().out


def test_a_kernel_of_a_cut_run(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = find_run(root) / "kernels/g0_forward.k0"
    (folder / "meta.json").write_text('{"ops": [')
    assert run(["kernels", "list"]) is Exit.OK
    shown = capsys.readouterr()
    assert "g0_forward.k0" in shown.out
    assert "meta.json cannot be read" in shown.err


def test_commands_of_another_module(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @click.command()
    def bench() -> None:
        click.echo("measured")

    module = ModuleType("deepcompile.cli.kernels_bench")
    module.bench = bench  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: object())
    assert run(["kernels", "bench"]) is Exit.OK
    assert capsys.readouterr().out == "measured\n"
    assert run(["kernels", "--help"]) is Exit.OK
    assert "bench" in capsys.readouterr().out
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    assert run(["kernels", "bench"]) is Exit.USAGE
