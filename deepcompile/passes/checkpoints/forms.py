"""Other forms in which a tensor can wait for backward: narrower numbers, the memory of the host.

Each form of a tensor is a few nodes of the joint graph that nothing reads until a plan does: what
is kept, and what backward makes of it in place of the tensor. So a form is priced, simulated,
fused and verified like all other nodes.

    form   kept                                error, at most
    bf16   the tensor in bfloat16              2**-8 of each number
    fp8    8-bit floats, a scale a row         2**-4 of each number
    int8   8-bit integers, a scale a row       1/254 of the largest of its row
    host   the tensor, in the host's memory    none

The scale of fp8 brings the largest of a row to 448, the largest number that float8_e4m3fn has. Its
errors are 1/28 of the largest at most. Numbers below 2**-6 / 448 of the largest (1/28672) are
subnormal there: they are off by up to 1/458752 of the largest, which may be all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.fx import Node

from ...capture.offload import OFFLOAD_START, OFFLOAD_WAIT, RELOAD_START, RELOAD_WAIT
from .joint import Joint, must_recompute

aten = torch.ops.aten

Form = Literal["bf16", "fp8", "int8", "host"]
ERRORS: Mapping[Form, float] = {"bf16": 2.0**-8, "fp8": 2.0**-4, "int8": 1 / 254, "host": 0.0}
"""The largest error of one number, relative to itself or, for int8, to the largest of its row."""

_LOSSY: tuple[Form, ...] = ("bf16", "fp8", "int8")
_LARGEST: Mapping[Form, float] = {"fp8": 448.0, "int8": 127.0}
"""What the largest of a row becomes."""

SMALLEST = 1 << 16
"""Bytes below which a tensor is left as it is."""
LONGEST_ROW = 8192
"""Numbers that share a scale, at most: of longer rows the largest says too little."""


@dataclass(frozen=True)
class Stored:
    """One form of one tensor: the nodes to keep, and the node that stands for the tensor then."""

    kept: tuple[Node, ...]
    restored: Node


@dataclass
class Forms:
    """By form and tensor."""

    stored: dict[Form, dict[Node, Stored]] = field(default_factory=dict)


def allowed_forms(compress: float, offload: bool) -> tuple[Form, ...]:
    """Forms whose error is at most `compress`; "host" where it is wanted."""
    lossy: list[Form] = [form for form in _LOSSY if ERRORS[form] <= compress]
    return (*lossy, "host") if offload else tuple(lossy)


def add_forms(joint: Joint, allowed: Iterable[Form]) -> Forms:
    """Write forms of all tensors worth it into the joint graph, behind the tensor itself."""
    found = Forms()
    allowed = tuple(allowed)
    extra: dict[Node, list[Node]] = {}
    if not allowed:
        return found
    for node in list(joint.forward):
        value = node.meta.get("val")
        if joint.is_view(node) or joint.nbytes(node) < SMALLEST or must_recompute(node):
            continue
        if not isinstance(value, torch.Tensor):
            continue
        for form in allowed:
            stored = _write(joint, node, value, form, extra)
            if stored is not None:
                found.stored.setdefault(form, {})[node] = stored
    joint.add(extra)
    return found


def _write(
    joint: Joint, node: Node, value: torch.Tensor, form: Form, extra: dict[Node, list[Node]]
) -> Stored | None:
    made: list[Node] = []

    def call(target: Any, *args: Any, **kwargs: Any) -> Node:
        behind = [node, *extra.get(node, []), *made][-1]
        with joint.graph.inserting_after(behind):
            new = joint.graph.call_function(target, args, kwargs)
        examples = torch.fx.node.map_arg((args, kwargs), lambda n: n.meta["val"])
        with _mode_of(value):
            new.meta["val"] = target(*examples[0], **examples[1])
        if "stack_trace" in node.meta:
            new.meta["stack_trace"] = node.meta["stack_trace"]
        made.append(new)
        return new

    if form == "host":
        kept = call(OFFLOAD_WAIT, call(OFFLOAD_START, node), node)
        started = call(RELOAD_START, kept, device=value.device)
        stored = Stored((kept,), call(RELOAD_WAIT, started))
    elif value.dtype not in (torch.float32, torch.float64):
        return None
    elif form == "bf16":
        kept = call(aten._to_copy.default, node, dtype=torch.bfloat16)
        stored = Stored((kept,), call(aten._to_copy.default, kept, dtype=value.dtype))
    else:
        if not value.dim() or not isinstance(value.shape[-1], int):
            return None
        if not 16 <= value.shape[-1] <= LONGEST_ROW:
            return None
        largest = call(aten.amax.default, call(aten.abs.default, node), [-1], True)
        # A row of zeros has any scale; one with infinity or NaN becomes NaN.
        most = _LARGEST[form]
        smallest = torch.finfo(value.dtype).tiny * most
        scale = call(aten.div.Tensor, call(aten.clamp_min.default, largest, smallest), most)
        scaled = call(aten.div.Tensor, node, scale)
        if form == "int8":
            whole = call(aten.round.default, scaled)
            kept = call(aten._to_copy.default, whole, dtype=torch.int8)
        else:
            kept = call(aten._to_copy.default, scaled, dtype=torch.float8_e4m3fn)
        wide = call(aten._to_copy.default, kept, dtype=value.dtype)
        stored = Stored((kept, scale), call(aten.mul.Tensor, wide, scale))
    extra[node] = [*extra.get(node, []), *made]
    return stored


def _mode_of(value: torch.Tensor) -> Any:
    return value.fake_mode  # type: ignore[attr-defined]
