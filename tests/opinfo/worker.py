"""Compiles and checks cases in this process; a line of JSON before and after each."""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import json
import random
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TextIO

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

import deepcompile.backend
from tests.opinfo.cases import DTYPES, TORCH_FAILS, Case, excluded, is_native_extern, operators
from tests.opinfo.compare import difference

#: Dynamo asks the guards of all graphs of a function in turn; with more than so many, start anew.
GRAPHS_KEPT = 24
#: With more samples than this, several are compiled in one graph, and alone if that goes wrong.
FEW_SAMPLES = 4
TOGETHER = 24

Options = dict[str, Any]
#: Outputs, and gradients of what needs one.
_Results = tuple[list[Tensor], list[Tensor | None]]


class TimedOut(BaseException):
    """A case took longer than it may. No `Exception`, so that no handler swallows it."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TimedOut` in the block when it takes longer."""

    def expire(*_: Any) -> None:
        raise TimedOut

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def check(case: Case, samples: int, seconds: float = 60.0, options: Options | None = None) -> dict:
    """Compile and compare one case; `samples` of 0 means all.

    Returns a dict with `status` ("ok", "wrong", "error", "timeout" or "skipped"), `kind` ("native",
    "extern", "fallback", "graph break", "untraceable") and what led to them.
    """
    row: dict[str, Any] = {"op": case.op, "dtype": case.dtype, "mode": case.mode}
    start = time.perf_counter()
    try:
        with time_limit(seconds):
            row.update(_check(case, samples, options or {}))
    except TimedOut:
        row.update(status="timeout", kind="error", reason=f"more than {seconds} s")
    row["seconds"] = round(time.perf_counter() - start, 2)
    return row


def _check(case: Case, samples: int, options: Options) -> dict[str, Any]:
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = 4096
    torch._dynamo.config.accumulated_recompile_limit = 65536
    op, dtype = operators()[case.op], DTYPES[case.dtype]
    differentiable = op.supports_autograd and dtype in op.supported_backward_dtypes("cpu")
    torch.manual_seed(0)
    random.seed(0)
    try:
        inputs = list(op.sample_inputs("cpu", dtype, requires_grad=differentiable))
    except RuntimeError as error:
        reason = f"torch makes no sample inputs: {error}".splitlines()[0]
        return {"status": "skipped", "kind": "untraceable", "reason": reason}
    chosen = _spread(inputs, samples)
    found = _Findings()
    compiler = _Compiler(op.op, case.mode == "dynamic", options, found)
    compared = 0
    together = TOGETHER if len(chosen) > FEW_SAMPLES else 1
    for start in range(0, len(chosen), together):
        group = [
            wanted
            for sample in chosen[start : start + together]
            if (wanted := _expected(case, sample, differentiable)) is not None
        ]
        if len(group) > 1 and _several(case, group, differentiable, options, found):
            compared += len(group)
            continue
        for wanted in group:
            compared += _one(case, compiler, wanted, differentiable, found)
    if not compared and not found.problems:
        return {"status": "skipped", "kind": "untraceable", "reason": found.reason() or "no sample"}
    result: dict[str, Any] = {"status": "ok", "kind": found.kind(), "samples": compared}
    if found.problems and case.op in TORCH_FAILS:
        result.update(status="skipped", reason=TORCH_FAILS[case.op])
        return result
    if found.externs:
        result["externs"] = sorted(found.externs)
    if found.reason():
        result["reason"] = found.reason()
    if found.problems:
        result["status"] = found.problems[0][0]
        result["problems"] = [f"{status}: {text}" for status, text in found.problems[:4]]
    result["kernels"] = found.kernels
    return result


def _spread(inputs: list[Any], count: int) -> list[Any]:
    if not count or count >= len(inputs):
        return inputs
    return [inputs[(2 * i + 1) * len(inputs) // (2 * count)] for i in range(count)]


class _Findings:
    """What the samples of a case showed, together."""

    def __init__(self) -> None:
        self.externs: set[str] = set()
        self.fallbacks: list[str] = []
        self.breaks: list[str] = []
        self.untraceable: list[str] = []
        self.problems: list[tuple[str, str]] = []
        self.kernels = 0

    def add(self, recording: deepcompile.backend.Recording) -> None:
        for graph in recording.graphs:
            self.externs |= {name for name, _ in graph.externs if not is_native_extern(name)}
            self.kernels += len(graph.kernels)
        for event, fields in recording.events:
            if event == "fallback":
                self.fallbacks.append(str(fields.get("reason")))
            elif event == "pass-failed":
                self.fallbacks.append(f"{fields.get('pass')} failed: {fields.get('error')}")

    def kind(self) -> str:
        if self.untraceable:
            return "untraceable"
        if self.fallbacks:
            return "fallback"
        if self.breaks:
            return "graph break"
        return "extern" if self.externs else "native"

    def reason(self) -> str:
        return next(iter([*self.untraceable, *self.fallbacks, *self.breaks]), "")[:400]


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor)]


def _fresh(sample: Any, wide: bool = False) -> tuple[Any, Any, list[Tensor]]:
    """Arguments that share nothing with the sample, and those of them that need gradients."""
    leaves: list[Tensor] = []

    def copy(value: Any) -> Any:
        if isinstance(value, torch.dtype) and wide:
            return torch.float64 if value.is_floating_point else value
        if not isinstance(value, Tensor):
            return value
        result = _same_layout(value.detach())
        if wide and value.dtype in (torch.float32, torch.bfloat16, torch.float16):
            result = result.double()
        if value.requires_grad:
            leaves.append(result.requires_grad_())
        return result

    args = tree_map(copy, (sample.input, *sample.args))
    kwargs = tree_map(copy, sample.kwargs)
    return args, kwargs, leaves


def _same_layout(value: Tensor) -> Tensor:
    if value.layout is not torch.strided or value.is_quantized or value.is_contiguous():
        return value.clone()
    storage = value.untyped_storage().clone()
    result = torch.empty(0, dtype=value.dtype).set_(
        storage, value.storage_offset(), value.size(), value.stride()
    )
    return result.conj() if value.is_conj() else result


def _run(function: Callable[..., Any], sample: Any, wide: bool = False) -> _Results:
    """Outputs, and gradients of a fixed random combination of them."""
    args, kwargs, leaves = _fresh(sample, wide)
    torch.manual_seed(1)
    outputs = _tensors(function(*args, **kwargs))
    through, weights = _weighted(sample, outputs)
    if not leaves or not through:
        return [out.detach() for out in outputs], []
    gradients = torch.autograd.grad(through, leaves, weights, allow_unused=True)
    return [out.detach() for out in outputs], list(gradients)


def _run_together(
    function: Callable[..., Any], samples: list[Any], finish: Callable[[Any, Any], Any]
) -> list[_Results]:
    """`_run` of several samples in one call of `function`, which takes a list of arguments."""
    given = [_fresh(sample) for sample in samples]
    torch.manual_seed(1)
    made = function([(args, kwargs) for args, kwargs, _ in given])
    results: list[_Results] = []
    through: list[Tensor] = []
    weights: list[Tensor] = []
    leaves: list[Tensor] = []
    for sample, (_, _, own), result in zip(samples, given, made, strict=True):
        outputs = _tensors(finish(sample, result))
        mine, theirs = _weighted(sample, outputs)
        results.append(([out.detach() for out in outputs], []))
        if own and mine:
            results[-1] = (results[-1][0], [None] * len(own))
            through += mine
            weights += theirs
            leaves += own
    if through:
        gradients = iter(torch.autograd.grad(through, leaves, weights, allow_unused=True))
        results = [(outputs, [next(gradients) for _ in own]) for outputs, own in results]
    return results


def _weighted(sample: Any, outputs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs that have gradients, and what enters there."""
    through = [out for out in outputs if out.requires_grad]
    weights = []
    for number, out in enumerate(through):
        generator = torch.Generator().manual_seed(number)
        real = torch.rand(out.shape, generator=generator) + 0.5
        weight = real.to(torch.float32 if out.is_complex() else sample_dtype(sample, out))
        weights.append(weight.to(out.dtype))
    return through, weights


def sample_dtype(sample: Any, out: Tensor) -> torch.dtype:
    """The precision in which a gradient enters, so that float64 sees the same numbers."""
    given = [t.dtype for t in _tensors((sample.input, sample.args)) if t.is_floating_point()]
    return given[0] if given else out.dtype


class _Compiler:
    """One operator, compiled; with sizes static anew for each sample, else once for all of them.

    A sample that fits what an earlier one compiled runs that: dynamic kernels meet other sizes.
    """

    def __init__(
        self, function: Callable[..., Any], dynamic: bool, options: Options, found: _Findings
    ) -> None:
        self._function = function
        self._dynamic = dynamic
        self._options = options
        self._found = found
        self._compiled: dict[bool, Callable[..., Any]] = {}
        self._captured = False
        self._graphs = 0

    def run(self, run: Callable[[Callable[..., Any]], Any]) -> Any:
        """What `run` returns for the compiled operator; None when that fails, which is recorded."""
        found = self._found
        for whole in (True, False):
            with deepcompile.backend.recording() as record:
                try:
                    result = run(self._compile(whole))
                except Exception as error:
                    text = f"{type(error).__name__}: {error}".strip()
                    if whole and _is_dynamo(error):
                        found.breaks.append(text.splitlines()[0])
                        continue
                    if _is_dynamo(error):
                        found.untraceable.append(text.splitlines()[0])
                        return None
                    found.add(record)
                    found.problems.append(("error", " ".join(text.split())[:400]))
                    return None
            found.add(record)
            self._captured |= bool(record.graphs or record.events)
            self._graphs += len(record.graphs)
            if not whole and not self._captured:
                # Dynamo left everything to Python: nothing of ours ran.
                found.untraceable.append(
                    found.breaks[-1] if found.breaks else "nothing was captured"
                )
            return result
        return None

    def _compile(self, whole: bool) -> Callable[..., Any]:
        if not self._dynamic or self._graphs > GRAPHS_KEPT:
            torch._dynamo.reset()
            self._compiled.clear()
            self._captured = False
            self._graphs = 0
        if whole not in self._compiled:
            function = self._function

            def operator(*args: Any, **kwargs: Any) -> Any:
                return function(*args, **kwargs)

            self._compiled[whole] = torch.compile(
                operator,
                backend="deepep",
                fullgraph=whole,
                dynamic=self._dynamic,
                options=self._options,
            )
        return self._compiled[whole]


@dataclass
class _Expected:
    """What eager makes of a sample, and what it makes of it in float64, where it can."""

    sample: Any
    eager: _Results
    precise: tuple[list[Tensor] | None, list[Tensor | None]]


def _expected(case: Case, sample: Any, differentiable: bool) -> _Expected | None:
    """None when eager refuses the sample."""
    eager_op = operators()[case.op].op
    try:
        eager = _processed(eager_op, sample, differentiable)
    except Exception:
        return None
    precise: tuple[list[Tensor] | None, list[Tensor | None]] = (None, [])
    with contextlib.suppress(Exception):
        outputs, gradients = _processed(eager_op, sample, differentiable, wide=True)
        if [p.shape for p in outputs] == [e.shape for e in eager[0]]:
            precise = outputs, gradients
    return _Expected(sample, eager, precise)


def _processed(
    function: Callable[..., Any], sample: Any, differentiable: bool, wide: bool = False
) -> _Results:
    def processed(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        return sample.output_process_fn_grad(result) if differentiable else result

    return _run(processed, sample, wide)


def _one(
    case: Case, compiler: _Compiler, wanted: _Expected, differentiable: bool, found: _Findings
) -> int:
    got = compiler.run(lambda f: _processed(f, wanted.sample, differentiable))
    if got is None:
        return 0
    _judge(case, got, wanted, found)
    return 1


def _several(
    case: Case, wanted: list[_Expected], differentiable: bool, options: Options, found: _Findings
) -> bool:
    """Samples in one graph, for speed; False, and nothing found, unless all of them are well."""
    op = operators()[case.op].op

    def each(given: list[Any]) -> list[Any]:
        return [op(*args, **kwargs) for args, kwargs in given]

    def finish(sample: Any, result: Any) -> Any:
        return sample.output_process_fn_grad(result) if differentiable else result

    own = _Findings()
    compiler = _Compiler(each, case.mode == "dynamic", options, own)
    samples = [w.sample for w in wanted]
    got = compiler.run(lambda f: _run_together(f, samples, finish))
    if got is None or own.breaks or own.untraceable or own.problems:
        return False
    for results, one in zip(got, wanted, strict=True):
        _judge(case, results, one, own)
    if own.problems:
        return False
    found.externs |= own.externs
    found.fallbacks += own.fallbacks
    found.kernels += own.kernels
    return True


def _judge(case: Case, got: _Results, wanted: _Expected, found: _Findings) -> None:
    outputs, gradients = got
    eager, eager_gradients = wanted.eager
    precise, precise_gradients = wanted.precise
    _compare(case, "output", outputs, eager, precise, found)
    if len(precise_gradients) != len(eager_gradients):
        precise_gradients = [None] * len(eager_gradients)
    for number, (mine, theirs, exact) in enumerate(
        itertools.zip_longest(gradients, eager_gradients, precise_gradients)
    ):
        if (mine is None) != (theirs is None):
            # A gradient that is zero everywhere may be missing on one side.
            present = mine if mine is not None else theirs
            if present is not None and bool((present.to_dense() != 0).any()):
                found.problems.append(("wrong", f"gradient {number} is missing on one side"))
            continue
        if mine is not None and excluded(case.op) is None:
            reason = difference(mine, theirs, exact)
            if reason is not None:
                found.problems.append(("wrong", f"gradient {number}: {reason}"))


def _is_dynamo(error: Exception) -> bool:
    if "found no compiled frames" in str(error):
        # Dynamo has given the function up at an earlier sample.
        return True
    names = {cls.__name__ for cls in type(error).__mro__}
    if names & {"BackendCompilerFailed", "CompileError"}:
        return False
    return bool(
        names
        & {"TorchDynamoException", "GuardOnDataDependentSymNode", "UserErrorType", "Unsupported"}
    )


def _compare(
    case: Case,
    what: str,
    got: list[Tensor],
    eager: list[Tensor],
    precise: list[Tensor] | None,
    found: _Findings,
) -> None:
    if len(got) != len(eager):
        found.problems.append(("wrong", f"{len(got)} outputs instead of {len(eager)}"))
        return
    for number, (mine, theirs) in enumerate(zip(got, eager, strict=True)):
        if excluded(case.op) is not None:
            same = mine.dtype == theirs.dtype and mine.shape == theirs.shape
            reason = None if same else "another shape or dtype"
        else:
            reason = difference(mine, theirs, None if precise is None else precise[number])
        if reason is not None:
            found.problems.append(("wrong", f"{what} {number}: {reason}"))


def main(lines: TextIO, out: TextIO) -> None:
    """Read a line of settings and then cases; write `{"start": key}` and a result for each."""
    faulthandler.enable()
    warnings.simplefilter("ignore")
    settings = json.loads(lines.readline())
    torch.set_num_threads(settings["threads"])
    for line in lines:
        case = Case(**json.loads(line))
        print(json.dumps({"start": case.key}), file=out, flush=True)
        try:
            row = check(case, settings["samples"], settings["timeout"], settings["options"])
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            row = {**vars(case), "status": "error", "kind": "error", "problems": [text[:300]]}
        print(json.dumps(row), file=out, flush=True)


if __name__ == "__main__":
    import os

    # Results go where the first standard output went; what libraries print goes to stderr.
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    main(sys.stdin, results)
