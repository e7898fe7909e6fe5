"""What keeps a program from becoming a graph of the device, as far as can be told before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..codegen.program import ProgramSpec
from ..codegen.steps import (
    ExternStep,
    KernelStep,
    LifetimeStep,
    TableStep,
    TensorRef,
    tensor_refs,
)

_OURS = ("aten", "prims", "deepcompile")


def not_capturable(spec: ProgramSpec) -> str | None:
    """Why no run of a program can be captured, as far as its steps tell, or None."""
    for step in spec.steps:
        if isinstance(step, TableStep):
            return f"the addresses of the rows of {step.op.nest.name} are sent at each call"
        if isinstance(step, LifetimeStep):
            # What is taken inside a capture stays with the graph for as long as that lives.
            return "it lets go of memory as it runs, and a graph would keep all of it"
        if not isinstance(step, ExternStep):
            continue
        target = step.target
        if not isinstance(target, torch._ops.OpOverload):
            if str(getattr(target, "__module__", "")).startswith("deepcompile"):
                continue
            return f"{step.name} calls {target}, which may do more than device work"
        if target.namespace == "_c10d_functional":
            return f"{step.name} is a collective"
        if target.namespace not in _OURS:
            return f"{target} is an operator of others, which may do more than device work"
        for tag in ("dynamic_output_shape", "data_dependent_output", "cudagraph_unsafe"):
            if getattr(torch.Tag, tag, None) in target.tags:
                return f"{target} is tagged {tag}"
    return None


def written_inputs(spec: ProgramSpec) -> frozenset[int]:
    """Numbers of the inputs that a program writes to."""
    slots: set[int] = set()
    for step in spec.steps:
        if isinstance(step, KernelStep):
            rows, nest = [step.slots], step.op.nest
        elif isinstance(step, TableStep):
            rows, nest = list(step.slots), step.op.nest
        elif isinstance(step, ExternStep):
            if step.out is not None:
                slots.add(step.out)
            if step.target is torch.ops.aten.copy_.default:
                slots |= {ref.slot for ref in tensor_refs(step.args[:1])}
            continue
        else:
            continue
        for row in rows:
            slots |= {
                slot for buffer, slot in zip(nest.buffers, row, strict=True) if buffer.role != "in"
            }
    return frozenset(
        number
        for number, ref in enumerate(spec.inputs)
        if isinstance(ref, TensorRef) and ref.slot in slots
    )


def inputs_of_externs(spec: ProgramSpec) -> frozenset[int]:
    """Numbers of the inputs that calls of ATen read."""
    read = {
        ref.slot
        for step in spec.steps
        if isinstance(step, ExternStep)
        for ref in tensor_refs((step.args, dict(step.kwargs)))
    }
    return frozenset(
        number
        for number, ref in enumerate(spec.inputs)
        if isinstance(ref, TensorRef) and ref.slot in read
    )


class Watch(TorchDispatchMode):
    """Sees whether ATen makes something on another device, which a graph would not repeat."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self.elsewhere: str | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device != self._device:
                self.elsewhere = f"{func} gives a tensor on {leaf.device}"
        return result


def library_settings() -> tuple[bool, ...]:
    """What calls of ATen look at each time they run, and a graph has fixed."""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    return (
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
        cudnn.enabled,
        cudnn.deterministic,
        cudnn.benchmark,
        torch.are_deterministic_algorithms_enabled(),
    )
