"""What a model compiles again for, though it is called with the same inputs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from deepcompile.capture.torch_private import failed_guards
from deepcompile.explanation.undisturbed import copy_of, original_of, undisturbed

_REASON = re.compile(r"\d+/\d+: (?P<guard>.*?)(?:\s{2,}#.*?)?(?:\(HINT: (?P<hint>.*)\))?$")
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


@dataclass(frozen=True)
class Recompile:
    """An assumption of a compiled graph that did not hold when it was called again.

    Attributes:
        function: of the user, or what Dynamo calls the rest of one after a graph break.
        guard: the assumption, as Dynamo writes it.
        origin: the user's line; None where Dynamo does not know it.
        hint: Dynamo's advice; may be empty.
    """

    function: str
    guard: str
    origin: str | None
    count: int
    hint: str


def recompiles(model: Callable[..., Any], *args: Any, calls: int = 3) -> tuple[Recompile, ...]:
    """Call `model` that often, traced by Dynamo and run in eager; the most frequent first.

    The model, its inputs and random states are afterwards what they were.
    """
    model = original_of(model)
    torch._dynamo.reset()
    try:
        with undisturbed(model):
            compiled = torch.compile(model, backend="eager")
            for _ in range(calls):
                compiled(*copy_of(args))
        found = failed_guards()
    finally:
        torch._dynamo.reset()
    counts: Counter[tuple[str, str, str | None, str]] = Counter()
    guards: dict[tuple[str, str, str | None, str], str] = {}
    for function, reason in found:
        key, guard = _read(function, reason)
        counts[key] += 1
        guards.setdefault(key, guard)
    return tuple(
        Recompile(function, guards[function, like, origin, hint], origin, count, hint)
        for (function, like, origin, hint), count in counts.most_common()
    )


def _read(function: str, reason: str) -> tuple[tuple[str, str, str | None, str], str]:
    """What makes a reason distinct (its guard whatever the numbers), and its guard."""
    first, _, trace = reason.partition("\n")
    match = _REASON.match(first)
    guard = match["guard"].strip() if match else first
    frames = _FRAME.findall(trace)
    origin = f"{frames[-1][0]}:{frames[-1][1]}" if frames else None
    like = re.sub(r"-?\d+(\.\d+)?", "N", guard)
    return (function, like, origin, (match["hint"] or "") if match else ""), guard
