"""`deepcompile runs`: removing and packing."""

from __future__ import annotations

import json
import os
import platform
import zipfile
from pathlib import Path

import pytest

from deepcompile.cli.exit import Exit
from deepcompile.cli.main import run
from deepcompile.inspect.reader import find_run, list_runs, read_run

pytestmark = pytest.mark.usefixtures("root")


def test_rm_by_name(root: Path, another: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (first,) = [path for path in list_runs(root) if path != another]
    assert find_run(root) == another
    assert run(["runs", "rm", another.name]) is Exit.OK
    assert "removed 1 runs" in capsys.readouterr().out
    assert find_run(root) == first
    assert (root / "latest").read_text().strip() == first.name
    assert run(["runs", "rm", str(first), "--json"]) is Exit.OK
    assert json.loads(capsys.readouterr().out)["removed"] == [str(first)]
    assert list(root.iterdir()) == []


def test_rm_keeps_the_newest(root: Path, another: Path) -> None:
    assert run(["runs", "rm", "--keep", "2"]) is Exit.OK
    assert len(list_runs(root)) == 2
    assert run(["runs", "rm", "--keep", "1"]) is Exit.OK
    assert list_runs(root) == (max(list_runs(root)),)
    assert run(["runs", "rm", "--keep", "0", "--root", str(root)]) is Exit.OK
    assert list_runs(root) == ()


def test_rm_refuses_what_is_no_run(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("x")
    (tmp_path / "link").symlink_to(find_run(root))
    name = find_run(root).name
    for words, message in (
        ([str(precious)], "is no run: it has no run.json"),
        ([name, str(precious)], "is no run"),
        ([str(root)], "is no run"),
        ([str(tmp_path / "link")], "is a link"),
        ([str(precious / "thesis.txt")], "is not a directory"),
        (["nowhere"], "no run 'nowhere'"),
        ([], "name runs, or say how many to keep"),
        ([name, "--keep", "1"], "name runs, or say how many to keep"),
    ):
        assert run(["runs", "rm", *words]) is Exit.USAGE
        assert message in capsys.readouterr().err
    assert len(list_runs(root)) == 1
    assert (precious / "thesis.txt").exists()


def test_rm_does_not_follow_links(root: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("x")
    path = find_run(root)
    (path / "graphs/link").symlink_to(precious)
    assert run(["runs", "rm", path.name]) is Exit.OK
    assert not path.exists()
    assert (precious / "thesis.txt").exists()


def test_pack(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = find_run(root)
    (path / "secret").symlink_to("/etc/passwd")
    (path / "graphs/up").symlink_to(tmp_path)
    assert run(["runs", "pack", "-o", "out.zip"]) is Exit.OK
    shown = capsys.readouterr()
    assert shown.out.startswith("out.zip: ")
    assert "left out: secret is a link" in shown.err
    with zipfile.ZipFile(tmp_path / "out.zip") as packed:
        names = packed.namelist()
        packed.extractall(tmp_path / "unpacked")
    assert all(name.startswith(f"{path.name}/") for name in names)
    assert not any("secret" in name or "/up" in name for name in names)
    again = read_run(tmp_path / "unpacked")
    assert [g.name for g in again.graphs] == ["g0_forward", "g1_inference"]
    assert again.graphs[0].last_text.text == read_run(path).graphs[0].last_text.text
    assert run(["runs", "pack", "-o", "out.zip"]) is Exit.USAGE
    assert "exists; name another file" in capsys.readouterr().err
    assert run(["runs", "pack", "nowhere", "-o", "n.zip"]) is Exit.USAGE
    assert not (tmp_path / "n.zip").exists()
    assert run(["runs", "pack", "--json"]) is Exit.OK
    assert json.loads(capsys.readouterr().out)["file"] == f"{path.name}.zip"


def test_list_says_how_large_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["runs", "list"]) is Exit.OK
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[-1] == "SIZE"
    assert row.split()[1:5] == ["ok", "2", "2", "1"]


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({"pid": os.getpid()}, "running"),
        ({"pid": 2**22 + 1}, "killed"),  # more than there can be
        ({"pid": 2**22 + 1, "host": "another"}, "running"),
        ({"pid": 2**80}, "running"),
        ({"pid": -1}, "running"),
        ({"pid": "1"}, "running"),
    ],
)
def test_a_run_whose_process_is_gone_was_killed(
    more: dict[str, object], status: str, root: Path
) -> None:
    path = find_run(root)
    info = json.loads((path / "run.json").read_text())
    info |= {"status": "running", "host": platform.node()} | more
    (path / "run.json").write_text(json.dumps(info))
    assert read_run(path).status == status
