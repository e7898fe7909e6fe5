"""A program with its inputs that fails, and how one is tried out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from deepcompile.child.captured import Kept
from deepcompile.child.compare import TOLERANCE, run_step, seconds_of
from deepcompile.child.probe import Question, check
from deepcompile.child.rows import Ref, Row, Rows, mapped
from deepcompile.child.signature import Signature

Source = Literal["stored", "randn", "rand", "randint"]
_LEAST_EXCESS = 0.3
"""What part of the time that was too much has to stay too much."""


@dataclass(frozen=True)
class Case:
    """A program and how it is run.

    Attributes:
        inputs: their values; those that are made anew by the script are made by `made`.
        sources: how the script comes by each input.
        backward: whether gradients are taken after it.
        options: of the compile.
    """

    rows: Rows
    inputs: Mapping[str, Tensor]
    backward: bool
    dynamic: bool
    options: Mapping[str, Any]
    sources: Mapping[str, Source] = field(default_factory=dict)

    @classmethod
    def of(cls, kept: Kept, options: Mapping[str, Any]) -> Case:
        """From what a child kept, compiled with its options and these."""
        rows = kept.rows.needed()
        inputs = {name: kept.inputs[name].detach() for name in rows.inputs}
        for name in rows.inputs:
            if kept.backward and kept.inputs[name].requires_grad:
                inputs[name].requires_grad_()
        return cls(rows, inputs, kept.backward, kept.dynamic, {**kept.options, **options})

    def with_rows(self, rows: Rows, values: Mapping[str, Any] | None = None) -> Case:
        """With another program over the same values, of which the new inputs are taken."""
        rows = rows.needed()
        known = {**(values or {}), **self.inputs}
        inputs = {
            name: known[name] if self.backward else known[name].detach() for name in rows.inputs
        }
        sources = {name: s for name, s in self.sources.items() if name in inputs}
        return replace(self, rows=rows, inputs=inputs, sources=sources)

    def is_same(self, other: Case) -> bool:
        """Whether both are one case; inputs count as equal when they are the same tensors."""
        return (
            self.rows == other.rows
            and (self.backward, self.dynamic) == (other.backward, other.dynamic)
            and all(self.inputs[name] is other.inputs.get(name) for name in self.inputs)
        )

    def given(self) -> list[Tensor]:
        """The inputs in order."""
        return [self.inputs[name] for name in self.rows.inputs]


def made(source: Source, like: Tensor, seed: int) -> Tensor:
    """What the script makes for an input: see `script.made_text`."""
    generator = torch.Generator().manual_seed(seed)
    shape = tuple(like.shape)
    if source == "randint":
        found = torch.randint(0, 2, shape, generator=generator)
    else:
        draw = torch.randn if source == "randn" else torch.rand
        found = draw(shape, generator=generator)
    return found.to(like.dtype).requires_grad_(like.requires_grad)


def result_of(case: Case, seconds: bool) -> dict[str, Any]:
    """Run a case in eager and compiled: `failure`, `invalid` (eager fails), `seconds`, JSON."""
    if seconds:
        torch.set_num_threads(1)
    question = Question("", seed=0, dynamic=case.dynamic)
    try:
        function = case.rows.function()
        run_step(function, case.given(), backward=case.backward, seed=0)
    except Exception as error:
        return {"invalid": f"{type(error).__name__}: {error}"}
    compiled = compiled_of(function, case)
    found = check(function, compiled, case.given(), backward=case.backward, question=question)
    if found is not None:
        return {"failure": found.to_dict()}
    if not seconds:
        return {}
    times = [
        seconds_of(f, case.given(), backward=case.backward, seed=0) for f in (compiled, function)
    ]
    return {"seconds": times[0] - times[1]}


def compiled_of(function: Callable[..., Any], case: Case) -> Callable[..., Any]:
    """As the script compiles it."""
    from deepcompile.child.redirect import deepep

    options = dict(case.options) or None
    found: Callable[..., Any] = torch.compile(
        function, backend=deepep, dynamic=case.dynamic or None, options=options
    )
    return found


@dataclass
class Oracle:
    """Tells whether a case still fails as the first one did.

    Args:
        run: runs a case and gives `result_of`.
        signature: of the failure.
        keep: text that must be in every failure.
        deadline: of the whole search, by the monotonic clock.
    """

    run: Callable[[Case], Mapping[str, Any]]
    signature: Signature
    keep: str = ""
    deadline: float = float("inf")
    tried: int = 0
    excess: float = 0.0

    def start(self, case: Case) -> Signature | None:
        """Take the failure of the whole case as the one that is to stay; None: it is another."""
        result = self.run(case)
        if self.signature.kind == "slow":
            self.excess = float(result.get("seconds", 0.0))
            text = f"{self.excess * 1e3:.3g} ms more than eager"
            return Signature("slow", "", text, self.excess) if self.excess > 0 else None
        found = _failure(result)
        if found is None:
            return None
        # Who was killed could not say by what.
        unknown = self.signature == Signature("signal") and found.kind in ("signal", "timeout")
        if not (unknown or self.signature.matches(found)):
            return None
        if self.keep not in str(found):
            return None
        self.signature = found
        return found

    def fails(self, case: Case) -> bool:
        """Whether this case fails in the same way."""
        if self.is_late():
            return False
        self.tried += 1
        result = self.run(case)
        if self.signature.kind == "slow":
            return float(result.get("seconds", 0.0)) > _LEAST_EXCESS * self.excess
        found = _failure(result)
        if found is None or not self.signature.matches(found) or self.keep not in str(found):
            return False
        # What is left of a large error must not be what rounding does.
        least = (self.signature.error * TOLERANCE[torch.float32]) ** 0.5
        return found.kind != "numerics" or found.what != "values" or found.error >= min(least, 0.1)

    def is_late(self) -> bool:
        """Whether there is no time left."""
        return time.monotonic() > self.deadline


def _failure(result: Mapping[str, Any]) -> Signature | None:
    found = result.get("failure")
    return Signature.from_dict(found) if found else None


def replaced(rows: Rows, constants: Mapping[str, Any], given: Sequence[str]) -> Rows:
    """A program in which some rows are inputs, or constants; their own rows go."""
    gone = {*constants, *given}

    def value(leaf: Any) -> Any:
        if isinstance(leaf, Ref) and leaf.name in constants:
            return constants[leaf.name]
        return leaf

    kept: list[Row] = [
        replace(row, args=mapped(row.args, value), kwargs=mapped(dict(row.kwargs), value))
        for row in rows.rows
        if row.name not in gone
    ]
    return Rows((*rows.inputs, *given), tuple(kept), rows.outputs)
