"""Which device a graph runs on, and whether kernels can be made for it."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ..codegen.program import CannotCompile
from ..codegen.triton_schedule import Gpu
from ..ir.batch_op import BatchOp
from ..ir.kernel_op import KernelOp
from ..passes.lowering.shapes import args_of
from .driver import Driver

OLDEST_CAPABILITY = 70
"""Triton makes code for sm_70 and newer."""


def device_of(gm: GraphModule, example_inputs: Sequence[Any]) -> torch.device:
    """The device of a graph's tensors; where some are on the CPU, that of the others."""
    devices = [
        value.device
        for value in (*example_inputs, *gm.parameters(), *gm.buffers())
        if isinstance(value, torch.Tensor)
    ]
    away = [device for device in devices if device.type != "cpu"]
    return away[0] if away else torch.device("cpu")


def uses_triton(device: torch.device, codegen: str) -> bool:
    """Whether kernels for `device` are written in Triton."""
    return codegen == "triton" or (codegen == "auto" and device.type != "cpu")


def cannot_generate(device: torch.device, codegen: str) -> str | None:
    """Why no kernels can be made for `device`, and what to do, or None."""
    if device.type not in ("cpu", "cuda"):
        return f"no code generator for {device.type}; the model runs in eager"
    if not uses_triton(device, codegen):
        if device.type == "cpu":
            return None
        return f"codegen='cpp' makes no kernels for {device.type}; leave it at 'auto'"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install 'deepcompile[triton]'"
    if device.type == "cpu":
        if os.environ.get("TRITON_INTERPRET") == "1":
            return None
        return "codegen='triton' on a CPU needs TRITON_INTERPRET=1 in the environment"
    major, minor = torch.cuda.get_device_capability(device)
    if major * 10 + minor < OLDEST_CAPABILITY:
        return f"Triton needs compute capability 7.0, and {device} has {major}.{minor}"
    return None


@functools.cache
def driver_of(device: torch.device) -> Driver:
    """The driver of a device; that of the CPU runs kernels with Triton's interpreter."""
    if device.type == "cpu":
        from .interpreted_driver import InterpretedDriver

        return InterpretedDriver()
    from .cuda_driver import CudaDriver

    index = torch.cuda.current_device() if device.index is None else device.index
    return CudaDriver(torch.device("cuda", index))


def gpu_of(device: torch.device) -> Gpu:
    """What schedules need to know of a device; the default for the interpreter."""
    if device.type != "cuda":
        return Gpu()
    found = torch.cuda.get_device_properties(device)
    return Gpu(found.multi_processor_count, found.major * 10 + found.minor)


def check_devices(graph: GraphModule, device: torch.device) -> None:
    """Refuse a graph whose kernels would read or write on several devices.

    A number in a tensor of the CPU is fine where it is only read: it is copied over.

    Raises:
        CannotCompile: naming the kernel.
    """
    for node in graph.graph.nodes:
        if not isinstance(node.target, (KernelOp, BatchOp)):
            continue
        written = _written(node)
        for source in node.all_input_nodes:
            value = source.meta.get("val")
            if not isinstance(value, torch.Tensor) or value.device == device:
                continue
            if value.device.type == "cpu" and value.ndim == 0 and source not in written:
                continue
            does = "writes to" if source in written else "reads from"
            raise CannotCompile(f"{node.name} {does} {value.device} and runs on {device}")
        for value in node.meta["val"]:
            if value.device != device:
                raise CannotCompile(f"{node.name} writes to {value.device} and runs on {device}")


def _written(node: Node) -> set[Node]:
    """The arguments that a kernel, or the kernels of a batch, change in place."""
    op = node.target
    if isinstance(op, KernelOp):
        given = [buffer for buffer in op.nest.buffers if buffer.role != "out"]
        tensors = zip(given, args_of(node), strict=False)
        return {source for buffer, source in tensors if buffer.role == "inout"}
    if not isinstance(op, BatchOp):
        return set()
    inside = set().union(*map(_written, op.body.graph.nodes))
    shared, columns = args_of(node)
    rows = [n for n in op.body.graph.nodes if n.op == "placeholder"][len(shared) :]
    changed = [c for row, c in zip(rows, columns, strict=True) if row in inside]
    return {source for column in changed for source in column}
