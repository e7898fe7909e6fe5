"""The process that makes a case smaller: `python -m deepcompile.minify.engine SPEC`.

SPEC is JSON: the folder of a kept graph, options of the compile, what to keep, limits, where the
script goes. It says one JSON document a line: `say`, `progress`, and `done` or `failed` at the end.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch._dynamo

import deepcompile.child.checked  # noqa: F401 the compiler, once for all forks
from deepcompile.child.captured import load_kept
from deepcompile.child.forks import in_a_fork, kill_children
from deepcompile.child.rows import CannotPrint
from deepcompile.minify.case import Case, Oracle, result_of
from deepcompile.minify.reduce import Reducer
from deepcompile.minify.script import script

torch.serialization.add_safe_globals([])


def main() -> None:
    """Reduce what SPEC names."""
    signal.signal(signal.SIGTERM, _stop)
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(**fields: Any) -> None:
        out.write(json.dumps(fields) + "\n")
        out.flush()

    torch.set_num_threads(1)
    try:
        kept = load_kept(Path(spec["kept"]))
    except CannotPrint as error:
        tell(failed=f"the graph cannot be written as a script: {error}")
        return
    case = Case.of(kept, spec["options"])
    forks = _Forks(spec)
    slow = kept.signature.kind == "slow"
    oracle = Oracle(
        lambda c: forks.run(c, slow),
        kept.signature,
        keep=spec["keep"],
        deadline=time.monotonic() + spec["budget"],
    )
    before = case.rows.operations
    tell(say=f"a graph of {before} operations and {len(case.inputs)} inputs")
    found = oracle.start(case)
    if found is None:
        tell(failed=f"the graph alone does not fail so: {forks.last}")
        return
    values = forks.values(case)

    def say(text: str) -> None:
        tell(say=text, operations=reducer.case.rows.operations, tried=oracle.tried)

    reducer = Reducer(case, oracle, values, say)
    case = reducer.run()
    last = oracle.run(case)
    failure = last.get("failure") or found.to_dict()
    excess = 0.3 * oracle.excess
    name = os.path.basename(spec["output"])
    from deepcompile.child.signature import Signature

    text = script(case, Signature.from_dict(failure), name=name, excess=excess)
    Path(spec["output"]).write_text(text, encoding="utf-8")
    tell(
        done=True,
        failure=failure,
        before=before,
        operations=case.rows.operations,
        tried=oracle.tried,
        late=oracle.is_late(),
    )


class _Forks:
    """Runs cases in forks, or here where they are not to be isolated."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.isolate = bool(spec["isolate"])
        self.timeout = float(spec["timeout"])
        self.log = Path(spec["log"])
        self.scratch = Path(spec["scratch"])
        self.last = "nothing was run"

    def run(self, case: Case, seconds: bool) -> Mapping[str, Any]:
        """`result_of` the case."""
        if not self.isolate:
            torch._dynamo.reset()
            found: Mapping[str, Any] = result_of(case, seconds)
        else:
            found = in_a_fork(
                lambda: result_of(case, seconds), environ={}, timeout=self.timeout, log=self.log
            )
        self.last = json.dumps(found)
        return found

    def values(self, case: Case) -> Mapping[str, Any]:
        """The value of each row in eager, computed in a fork, as computing starts threads."""
        file = self.scratch / "values.pt"

        def compute() -> Mapping[str, Any]:
            torch.save(values_of(case), file)
            return {}

        in_a_fork(compute, environ={}, timeout=self.timeout, log=self.log)
        found: Mapping[str, Any] = torch.load(file, weights_only=False)
        return found


def values_of(case: Case) -> dict[str, Any]:
    """The values of the rows, tensors and numbers, with the wish for gradients that they have."""
    from dataclasses import replace

    rows = replace(case.rows, outputs=tuple(row.name for row in case.rows.rows))
    with torch.enable_grad() if case.backward else torch.no_grad():
        found = rows.function()(*case.given())
    return {
        name: value.detach().clone().requires_grad_(value.requires_grad)
        if isinstance(value, torch.Tensor)
        else value
        for name, value in zip(rows.outputs, found, strict=True)
        if isinstance(value, torch.Tensor | int | float)
    }


def _stop(number: int, frame: object) -> NoReturn:
    kill_children()
    os._exit(128 + number)


if __name__ == "__main__":
    main()
