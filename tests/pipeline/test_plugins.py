"""Passes of other packages: found without importing them, and never in the way when broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deepcompile.errors import PipelineError
from deepcompile.pipeline.plugins import Plugin, read_plugins
from deepcompile.pipeline.registry import Registry

ACME = '''
from dataclasses import dataclass
from typing import ClassVar

import torch  # whoever lists passes must not pay for this

from deepcompile.pipeline.protocol import PassResult


@dataclass(frozen=True)
class SineToCosine:
    """Turn sines into cosines.

    Before:
        %y = aten.sin(%x)
    After:
        %y = aten.cos(%x)
    """

    limit: int = 10

    name: ClassVar[str] = "sine-to-cosine"
    phase: ClassVar[str] = "graph"
    requires: ClassVar[frozenset[str]] = frozenset()
    establishes: ClassVar[frozenset[str]] = frozenset()
    skippable: ClassVar[bool] = True

    def run(self, graph, ctx):
        result = torch.fx.GraphModule(graph, torch.fx.Graph())
        result.graph.output(result.graph.graph_copy(graph.graph, {}))
        for node in result.graph.nodes:
            if node.target is torch.ops.aten.sin.default and ctx.allow("sine", node):
                node.target = torch.ops.aten.cos.default
        return PassResult(result, True)
'''
GRAPH = """\
graph forward {
  %x : f32[4] = placeholder
  %sin : f32[4] = aten.sin.default(%x)
  return (%sin,)
}
"""


def install(folder: Path, package: str, entries: str, **modules: str) -> None:
    """What an installer leaves: modules, and metadata beside them."""
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    info = folder / f"{package}-1.5.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(f"[deepcompile.passes]\n{entries}\n")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    install(folder, "acme_passes", "sine-to-cosine = acme:SineToCosine", acme=ACME)
    return folder


def deepcompile(
    site: Path, *arguments: str, text: str = "", torch: bool = True
) -> subprocess.CompletedProcess[str]:
    """The command in a process that finds the packages in `site`."""
    program = (
        "import sys\nfrom deepcompile.cli.main import run\n"
        f"status = run({list(arguments)!r})\n"
        + ("" if torch else "assert 'torch' not in sys.modules\n")
        + "sys.exit(int(status))\n"
    )
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": path}, input=text,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_an_installed_pass_is_listed_without_torch(site: Path) -> None:
    done = deepcompile(site, "passes", "list", torch=False)
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if "sine-to-cosine" in line)
    assert "from acme_passes 1.5" in row
    done = deepcompile(site, "passes", "list", "--json", torch=False)
    document = json.loads(done.stdout)
    assert document["passes"][-1] == {
        "name": "sine-to-cosine",
        "source": "acme_passes 1.5",
        "target": "acme:SineToCosine",
    }
    assert document["problems"] == []


@pytest.mark.slow
def test_an_installed_pass_is_shown_and_runs(site: Path) -> None:
    done = deepcompile(site, "passes", "show", "sine-to-cosine")
    assert done.returncode == 0, done.stderr
    for part in ("Turn sines into cosines.", "After:", "acme_passes 1.5", "limit   int   10"):
        assert part in done.stdout
    done = deepcompile(
        site, "opt", "-", "-p", "sine-to-cosine{limit=3}", "--no-verify-each", text=GRAPH
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == GRAPH.replace("aten.sin", "aten.cos")
    done = deepcompile(site, "opt", "-", "-p", "sine-to-cosine", text=GRAPH)
    assert done.returncode == 1
    assert "sine-to-cosine" in done.stderr


def test_broken_packages_are_a_note_each(site: Path) -> None:
    install(
        site,
        "broken",
        "canonicalise = acme:SineToCosine\n"
        "Not_Kebab = acme:SineToCosine\n"
        "no-module = nowhere_to_be_found.x:Y\n"
        "no-class = just a text\n"
        "raises = raising:Pass\n"
        "sine-to-cosine = raising:Other",
        raising="raise RuntimeError('not today')",
    )
    (site / "ruin-1.dist-info").mkdir()
    (site / "ruin-1.dist-info" / "entry_points.txt").write_bytes(b"[deepcompile.passes\n\xff\xfe=")
    done = deepcompile(site, "passes", "list", torch=False)
    assert done.returncode == 0, done.stderr
    listed = [line.split()[0] for line in done.stdout.splitlines()[1:]]
    assert listed[-2:] == ["raises", "sine-to-cosine"]
    assert listed.count("canonicalise") == 1
    notes = done.stderr.splitlines()
    for name, why in (
        ("canonicalise", "deepcompile has a pass of this name"),
        ("Not_Kebab", "not kebab-case"),
        ("no-module", "there is no module 'nowhere_to_be_found'"),
        ("no-class", "is not module:Class"),
        ("sine-to-cosine", "acme_passes 1.5 has a pass of this name"),
    ):
        assert sum(f"{name!r} of broken 1.5 is left out" in n and why in n for n in notes) == 1
    done = deepcompile(site, "passes", "pipeline")
    assert done.returncode == 0
    done = deepcompile(site, "passes", "show", "raises")
    assert done.returncode == 2
    assert "'raises' of broken 1.5 cannot be loaded from raising:Pass: RuntimeError" in done.stderr
    assert "Traceback" not in done.stderr
    done = deepcompile(site, "passes", "show", "no-module")
    assert done.returncode == 2
    assert "there is no module 'nowhere_to_be_found'" in done.stderr


def test_the_same_package_found_twice_is_one() -> None:
    twice = [Plugin("a-pass", "json:X", "p 1"), Plugin("a-pass", "json:X", "p 1")]
    found = read_plugins(twice)
    assert (list(found.passes), found.problems) == (["a-pass"], ())


def test_a_pass_that_breaks_the_contract_says_how() -> None:
    registry = Registry({}, lambda: read_plugins([Plugin("a-pass", "json:JSONDecoder", "p 1")]))
    with pytest.raises(PipelineError, match="does not keep the contract of a pass"):
        registry.get("a-pass")
