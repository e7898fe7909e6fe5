"""The backend as children call it: it reports, and may compare each graph with eager."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from deepcompile.backend import deepep
from deepcompile.capture.torch_private import exceptions_meant_for_dynamo, hidden_from_dynamo
from deepcompile.child import report
from deepcompile.child.captured import Captured
from deepcompile.child.compare import difference, random_state_kept, run_step
from deepcompile.child.environment import CHECK
from deepcompile.child.signature import Signature, signature_of_error
from deepcompile.errors import DeepCompileError
from deepcompile.options import Options

MISMATCH = 99
"""The exit status of a process that ended because a graph gave other numbers than in eager."""


def compile_checked(
    gm: GraphModule, example_inputs: Sequence[Any], **kwargs: Any
) -> Callable[..., Any]:
    """`deepep`, with reports, and with the checks that `DEEPCOMPILE_CHILD_CHECK` asks for."""
    check = os.environ.get(CHECK, "")
    if not check:
        return deepep(gm, example_inputs, **kwargs)
    captured = Captured.of(gm, example_inputs, kwargs.get("options"))
    try:
        compiled = deepep(gm, example_inputs, **kwargs)
    except Exception as error:
        if isinstance(error, DeepCompileError) or not isinstance(
            error, exceptions_meant_for_dynamo
        ):
            _failed(signature_of_error(error, "compile"), captured, None, check)
        raise
    return _Checked(captured, compiled, check)


def _failed(found: Signature, captured: Captured, inputs: Any, check: str) -> None:
    report.say("failure", **found.to_dict())
    print(f"deepcompile: {found}", file=sys.stderr, flush=True)
    place = report.folder()
    if check != "numerics" and place is not None:
        captured.keep(place / f"failed-{os.getpid()}", inputs, found)


def _is_power_of_two(number: int) -> bool:
    return number & (number - 1) == 0


class _Checked:
    """Calls a compiled graph, some of the time beside eager: whenever sizes are new, and at calls
    1, 2, 4, 8 and so on."""

    def __init__(self, captured: Captured, compiled: Callable[..., Any], check: str) -> None:
        self.captured = captured
        self.compiled = compiled
        self.check = check
        self.seen: set[Any] = set()
        self.calls = 0
        self.run = hidden_from_dynamo(self._run, "a comparison is not user code")

    def __call__(self, *args: Any) -> Any:
        return self.run(*args)

    def _run(self, *args: Any) -> Any:
        self.calls += 1
        sizes = tuple(tuple(a.shape) if isinstance(a, Tensor) else None for a in args)
        place = report.folder()
        if self.check == "keep" and self.calls == 1 and place is not None:
            self.captured.keep(place / f"kept-{os.getpid()}-{id(self)}", args, Signature("slow"))
        elif self.check != "keep" and (sizes not in self.seen or _is_power_of_two(self.calls)):
            self.seen.add(sizes)
            self._compare(args)
        return self.compiled(*args)

    def _compare(self, args: tuple[Any, ...]) -> None:
        place = report.folder() if self.check == "capture" else None
        pending = place / f"pending-{os.getpid()}" if place is not None else None
        if pending is not None:
            self.captured.keep(pending, args, Signature("signal"))
        backward = torch.is_grad_enabled()
        with random_state_kept():
            expected = run_step(self.captured.module, args, backward=backward, seed=0)
            try:
                actual = run_step(self.compiled, args, backward=backward, seed=0)
            except Exception as error:
                _failed(signature_of_error(error, "run"), self.captured, args, self.check)
                raise
        if expected.draws and Options.resolve().rng != "eager":
            report.say("uncompared", reason="a graph draws random numbers")
            found = None
        else:
            found = difference(expected, actual)
        if found is not None:
            _failed(found[0], self.captured, args, self.check)
            # The script may catch anything; what it would do with wrong numbers is of no interest.
            os._exit(MISMATCH)
        if pending is not None:
            Captured.forget(pending)
