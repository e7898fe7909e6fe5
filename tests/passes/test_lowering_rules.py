"""The scalar rules are all there, whichever part of the lowering is imported first."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

from deepcompile.passes import lowering


def test_any_module_brings_all_rules() -> None:
    modules = [module.name for module in pkgutil.iter_modules(lowering.__path__)]
    assert "arithmetic" in modules
    code = (
        "import importlib\n"
        "from deepcompile.passes.lowering.rules import RULES\n"
        "before = set(RULES)\n"
        f"for name in {modules}:\n"
        "    importlib.import_module(f'deepcompile.passes.lowering.{name}')\n"
        "assert before and set(RULES) == before, set(RULES) - before\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
