"""A model in eager and compiled: the same results, and at what price."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from deepcompile.backend import deepep
from deepcompile.comparison.observe import Observed, observe
from deepcompile.comparison.values import Difference, Tolerance, differences
from deepcompile.errors import DeepCompileError, ModelError
from deepcompile.explanation.measured_peak import peak_of
from deepcompile.explanation.undisturbed import copy_of, run_once, tensors_in, undisturbed
from deepcompile.recording import Recording, recording

Progress = Callable[..., None]


@dataclass(frozen=True)
class Way:
    """How a model runs in one of the two ways.

    Attributes:
        seconds: the median of a step; None where none was timed.
        samples: one a round, in the order of rounds.
        peak: bytes that a step takes at its highest above what is there before it; None where it
            cannot be measured.
    """

    seconds: float | None
    samples: tuple[float, ...]
    peak: int | None


@dataclass(frozen=True)
class Comparison:
    """What comparing a model with itself came to.

    Attributes:
        differences: None where results were not compared.
        graphs: (name, kind, kernels, calls of ATen, why it runs in eager or None) of each.
        fallbacks: (graph or stage, reason, user's line or None).
        graph_breaks: (reason, user's line or None).
        first_seconds: of the first compiled step, compiling included.
        drawn_as_eager: whether random numbers were drawn by torch so that results could be equal.
    """

    train: bool
    differences: tuple[Difference, ...] | None
    eager: Way
    compiled: Way
    first_seconds: float
    graphs: tuple[tuple[str, str, int, int, str | None], ...]
    fallbacks: tuple[tuple[str, str, str | None], ...]
    graph_breaks: tuple[tuple[str, str | None], ...]
    drawn_as_eager: bool

    @property
    def agrees(self) -> bool:
        """Whether nothing was found to differ."""
        return all(found.ok for found in self.differences or ())

    @property
    def speedup(self) -> float | None:
        """Median over rounds of eager's time by the compiled one's of the same round."""
        pairs = list(zip(self.eager.samples, self.compiled.samples, strict=True))
        return statistics.median(a / b for a, b in pairs) if pairs else None

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        graphs = ("name", "kind", "kernels", "externs", "fallback")
        return {
            "train": self.train,
            "agrees": self.agrees if self.differences is not None else None,
            "differences": None
            if self.differences is None
            else [asdict(found) | {"ok": found.ok} for found in self.differences],
            "eager": asdict(self.eager),
            "compiled": asdict(self.compiled),
            "speedup": self.speedup,
            "first_seconds": self.first_seconds,
            "graphs": [dict(zip(graphs, graph, strict=True)) for graph in self.graphs],
            "fallbacks": [
                {"where": where, "reason": reason, "origin": origin}
                for where, reason, origin in self.fallbacks
            ],
            "graph_breaks": [
                {"reason": reason, "origin": origin} for reason, origin in self.graph_breaks
            ],
            "drawn_as_eager": self.drawn_as_eager,
        }


def compare_with_eager(
    model: Callable[..., Any],
    inputs: Sequence[Any],
    options: Mapping[str, Any],
    *,
    train: bool | None = None,
    dynamic: bool | None = None,
    tolerance: Tolerance | None = None,
    check: bool = True,
    repeat: int = 10,
    seed: int = 0,
    progress: Progress = lambda text: None,
) -> Comparison:
    """Run `model` on `inputs` in eager and compiled, and compare; the model is left as it was.

    Args:
        options: of the compile, as of `torch.compile`.
        train: whether gradients are computed; None for: where an output needs one.
        dynamic: as of `torch.compile`.
        tolerance: what counts as equal; by dtype where None.
        check: whether results are compared.
        repeat: rounds in which both ways have a turn to be timed.
        progress: told what is done next.

    Raises:
        ModelError: the model raises an error, in eager or only compiled.
        DeepCompileError: of the compile.
    """
    args = tuple(inputs)
    wanted = dict(options)
    progress("eager")
    before = torch.get_rng_state()
    reference, drawn = _first(model, args, train, seed, "the model itself fails")
    torch.set_rng_state(before)
    as_eager = check and drawn and "rng" not in wanted
    if as_eager:
        wanted["rng"] = "eager"
    trained = train if train is not None else bool(reference.gradients)
    progress("compiled, first step")
    torch._dynamo.reset()
    with recording() as record:
        compiled = torch.compile(model, backend=deepep, options=wanted, dynamic=dynamic)
        start = time.perf_counter()
        observed, _ = _first(compiled, args, train, seed, "compiled, the model fails", model)
        first_seconds = time.perf_counter() - start
        found = None
        if check:
            found = tuple(differences(reference, observed, tolerance or Tolerance()))
        del reference, observed
        ways = _measured((model, compiled), model, args, trained, repeat, progress)
    return Comparison(
        train=trained,
        differences=found,
        eager=ways[0],
        compiled=ways[1],
        first_seconds=first_seconds,
        graphs=tuple(
            (g.name, g.kind, len(g.kernels), len(g.externs), g.fallback) for g in record.graphs
        ),
        fallbacks=_fallbacks(record),
        graph_breaks=tuple(
            (str(fields["reason"]), fields.get("origin"))
            for event, fields in record.events
            if event == "graph-break"
        ),
        drawn_as_eager=as_eager,
    )


def _first(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    train: bool | None,
    seed: int,
    what: str,
    model: Callable[..., Any] | None = None,
) -> tuple[Observed, bool]:
    """What a call gives, and whether it drew random numbers."""
    with undisturbed(model or function), model_errors(what):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        found = observe(function, copy_of(args), train, model or function)
        return found, not torch.equal(state, torch.get_rng_state())


@contextmanager
def model_errors(what: str) -> Iterator[None]:
    try:
        yield
    except DeepCompileError:
        raise
    except Exception as error:
        raise ModelError(f"{what}: {type(error).__name__}: {error}") from error


def _measured(
    functions: Sequence[Callable[..., Any]],
    model: Callable[..., Any],
    args: tuple[Any, ...],
    train: bool,
    repeat: int,
    progress: Progress,
) -> list[Way]:
    device = next((t.device for t in tensors_in(args)), torch.device("cpu"))
    samples: list[list[float]] = [[] for _ in functions]
    peaks: list[int | None] = [None for _ in functions]
    with undisturbed(model), torch.set_grad_enabled(train):
        given = copy_of(args)
        for position, function in enumerate(functions if repeat else ()):
            progress("memory")
            peaks[position] = peak_of(lambda f=function: run_once(f, given, {}), device)  # type: ignore[misc]
        for _ in range(repeat):
            progress("a round of both")
            for function, taken in zip(functions, samples, strict=True):
                taken.append(_seconds(function, given, device))
    return [
        Way(statistics.median(taken) if taken else None, tuple(taken), peak)
        for taken, peak in zip(samples, peaks, strict=True)
    ]


def _seconds(function: Callable[..., Any], args: tuple[Any, ...], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    run_once(function, args, {})
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _fallbacks(record: Recording) -> tuple[tuple[str, str, str | None], ...]:
    found = [fields for event, fields in record.events if event == "fallback"]
    return tuple(
        (str(f.get("graph", f.get("stage", "?"))), str(f["reason"]), f.get("origin")) for f in found
    )
