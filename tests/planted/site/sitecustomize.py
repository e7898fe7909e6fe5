"""Plants the bug that DEEPCOMPILE_TEST_BUG names into the compiler of this process."""

import importlib.util
import os
import sys


class _AfterImport:
    """Calls `change(module)` right after a module has been imported."""

    def __init__(self, name, change):
        self.name = name
        self.change = change

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def run_and_change(module):
            run(module)
            self.change(module)

        spec.loader.exec_module = run_and_change
        return spec


if os.environ.get("DEEPCOMPILE_TEST_BUG"):
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    spec = importlib.util.spec_from_file_location("planted", os.path.join(folder, "bugs.py"))
    bugs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bugs)
    for module, change in bugs.BUGS[os.environ["DEEPCOMPILE_TEST_BUG"]]:
        sys.meta_path.insert(0, _AfterImport(module, change))
