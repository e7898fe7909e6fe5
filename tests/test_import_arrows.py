"""Imports inside the package go one way; a back edge or a cycle fails here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import deepcompile

ROOT = Path(deepcompile.__file__).parent

# Anyone may import these; they import only each other.
BASE = {"", "errors", "options", "cache_dir"}
COMPILER = {"ir", "cost", "pipeline", "passes", "capture", "codegen", "runtime"}
ALLOWED: dict[str, set[str]] = {
    **{name: set() for name in BASE},
    "ir": set(),
    "cost": {"ir"},
    "pipeline": {"ir"},
    "capture": {"ir"},
    "passes": {"ir", "cost", "pipeline", "capture"},
    "codegen": {"ir", "cost", "passes"},
    "runtime": {"ir", "cost", "passes", "codegen"},
    "parallel": {"ir", "cost", "capture", "passes", "pipeline"},
    "inspect": set(),
    "budget": COMPILER,
    "program_facts": COMPILER,
    "recording": COMPILER | {"budget", "program_facts"},
    "counted": COMPILER,
    "on_mesh": COMPILER,
    "backend": COMPILER | {"budget", "counted", "on_mesh", "recording"},
    "explanation": COMPILER | {"backend", "budget", "recording", "inspect"},
    "child": COMPILER | {"backend", "recording"},
    "bisect": {"child", "inspect"},
    "minify": {"child"},
    "crosscompile": COMPILER | {"backend", "recording"},
    "dumping": COMPILER | {"backend", "recording"},
    "comparison": COMPILER | {"backend", "explanation", "recording"},
    "cli": COMPILER
    | {
        "backend",
        "bisect",
        "child",
        "comparison",
        "crosscompile",
        "demo",
        "dumping",
        "explanation",
        "inspect",
        "minify",
        "parallel",
    },
    "demo": {"inspect"},
    "__main__": {"cli"},
}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(module: str, *, at_top: bool = False) -> Iterator[tuple[str, int]]:
    """(imported deepcompile module, line); only what runs on import when `at_top`."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in top_level(tree) if at_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            up = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = (
                ".".join([*up, node.module] if node.module else up) if node.level else node.module
            )
            names = [
                f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else str(base)
                for alias in node.names
            ]
        else:
            continue
        yield from ((n, node.lineno) for n in names if n.partition(".")[0] == "deepcompile")


def top_level(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run on import: not inside functions, not under TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from top_level(node)


def layer(module: str) -> str:
    return [*module.split("."), ""][1]


@pytest.mark.parametrize("module", MODULES)
def test_arrows_run_one_way(module: str) -> None:
    if module == "deepcompile":
        assert not list(imports(module, at_top=True))
        return
    assert layer(module) in ALLOWED, f"say in {Path(__file__).name} what {module} may import"
    allowed = ALLOWED[layer(module)] | BASE | {layer(module)}
    back = [f"line {line}: {name}" for name, line in imports(module) if layer(name) not in allowed]
    assert not back, f"{module} may not import these"


def test_no_cycles() -> None:
    edges = {
        module: {name for name, _ in imports(module, at_top=True) if name in MODULES} - {module}
        for module in MODULES
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for name in sorted(edges[module]):
                visit(name, (*path, module))
            done.add(module)

    for module in edges:
        visit(module, ())


def test_the_walk_sees_all_kinds_of_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "m.py"
    file.write_text(
        "import deepcompile.cli.main\n"
        "from deepcompile import options\n"
        "from ..codegen import emit\n"
        "def f():\n    from . import context\n"
    )
    known = {"deepcompile.pipeline.m": file, "deepcompile.options": file}
    for name, path in known.items():
        monkeypatch.setitem(MODULES, name, path)
    assert [name for name, _ in imports("deepcompile.pipeline.m")] == [
        "deepcompile.cli.main",
        "deepcompile.options",
        "deepcompile.codegen",
        "deepcompile.pipeline.context",
    ]
    assert len(list(imports("deepcompile.pipeline.m", at_top=True))) == 3
