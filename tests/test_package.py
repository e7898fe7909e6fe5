"""The wheel: it holds the whole package and nothing else, and works outside the checkout."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import time
import venv
import zipfile
from pathlib import Path

import pytest

import deepcompile

CHECKOUT = Path(deepcompile.__file__).parents[1]
LINKS = ("passes", "codegen", "runtime")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the checkout, links included."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, copy)
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("deepcompile", "tests", "benchmarks"):
        shutil.copytree(CHECKOUT / name, copy / name, symlinks=True, ignore=ignore)
    for name in LINKS:
        (copy / name).symlink_to(Path("deepcompile") / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist", "."]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (copy / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean environment with the wheel in it; torch and the like are borrowed from this one."""
    folder = tmp_path_factory.mktemp("elsewhere")
    venv.create(folder / "env", with_pip=False, symlinks=True)
    python = folder / "env" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True, capture_output=True)
    (library,) = (folder / "env" / "lib").glob("python*/site-packages")
    # Only the path: .pth files there, such as the one of an editable install, are not read.
    (library / "borrowed.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return folder


def test_wheel_holds_the_whole_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if not n.endswith("/")}
    kept = [p for p in (CHECKOUT / "deepcompile").rglob("*") if p.is_file()]
    expected = {
        str(p.relative_to(CHECKOUT))
        for p in kept
        if "__pycache__" not in p.parts and p.suffix != ".pyc"
    }
    assert expected - names == set()
    others = {n for n in names - expected if ".dist-info/" not in n}
    assert others == set()
    assert any(n.endswith("licenses/LICENSE") for n in names)


def test_every_folder_is_a_package() -> None:
    folders = {p.parent for p in (CHECKOUT / "deepcompile").rglob("*.py")}
    folders -= {CHECKOUT / "deepcompile/child/site"}  # goes on PYTHONPATH itself
    assert [str(f) for f in folders if not (f / "__init__.py").is_file()] == []


def test_entry_points(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("entry_points.txt"))
        lines = archive.read(name).decode().splitlines()
    assert lines == [
        "[console_scripts]",
        "deepcompile = deepcompile.cli.start:main",
        "",
        "[torch_dynamo_backends]",
        "deepep = deepcompile.backend:deepep",
    ]


def run(elsewhere: Path, *command: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL"))}
    environment["DEEPCOMPILE_CACHE_DIR"] = str(elsewhere / "cache")
    binary = str(elsewhere / "env" / "bin" / command[0])
    done = subprocess.run(
        [binary, *command[1:]],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_command_line_works_elsewhere(elsewhere: Path) -> None:
    document = json.loads(run(elsewhere, "deepcompile", "doctor", "--json"))
    found = {finding["name"]: finding["detail"] for finding in document["findings"]}
    assert str(elsewhere / "env") in found["deepcompile"]
    listed = json.loads(run(elsewhere, "deepcompile", "passes", "list", "--json"))
    assert {p["name"] for p in listed["passes"]} >= {"canonicalise", "fuse-rows"}


@pytest.mark.slow
def test_backend_works_elsewhere_by_its_name_alone(elsewhere: Path) -> None:
    program = (
        "import sys, torch\n"
        "assert 'deepep' in torch._dynamo.list_backends()\n"
        "f = lambda x, w: torch.softmax(x @ w, -1).log().sum()\n"
        "x, w = torch.randn(6, 8), torch.randn(8, 5, requires_grad=True)\n"
        "y = torch.compile(f, backend='deepep', options={'strict': True})(x, w)\n"
        "torch.testing.assert_close(y, f(x, w))\n"
        "y.backward(); actual, w.grad = w.grad, None; f(x, w).backward()\n"
        "torch.testing.assert_close(actual, w.grad, atol=1e-5, rtol=1e-4)\n"
        "print(sys.modules['deepcompile'].__file__)\n"
    )
    assert run(elsewhere, "python", "-c", program).startswith(str(elsewhere / "env"))


def test_import_is_cheap() -> None:
    program = (
        "import time, torch; start = time.perf_counter(); import deepcompile\n"
        "print(time.perf_counter() - start)"
    )
    command = [sys.executable, "-c", program]
    seconds = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert seconds < 0.1
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import deepcompile"], check=True)
    assert time.perf_counter() - start < 1.0


def test_links_at_the_top_lead_into_the_package() -> None:
    for name in LINKS:
        link = CHECKOUT / name
        assert link.is_symlink()
        assert link.resolve() == CHECKOUT / "deepcompile" / name
