"""Torch's own activation checkpointing, `activation_memory_budget`, to compare placements with.

Torch's budget is a fraction: 1.0 saves what its partitioner saves anyway, 0.0 the inputs alone.
Its list of costly ops and its FLOP counter know the attention kernels of GPUs but not that of
CPUs, which it would therefore recompute as if it were free; `split_with_budget` names it to both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch_config
from torch._functorch import partitioners
from torch.fx import Graph, GraphModule, Node
from torch.utils import flop_counter

from deepcompile.backend import deepep
from deepcompile.capture import torch_private

aten = torch.ops.aten

Batch = dict[str, Tensor]
Split = tuple[GraphModule, GraphModule]

_CPU_ATTENTION = aten._scaled_dot_product_flash_attention_for_cpu
_CPU_ATTENTION_BACKWARD = aten._scaled_dot_product_flash_attention_for_cpu_backward

#: Formulas of torch that serve the CPU's ops too: they read shapes of leading arguments only.
_CPU_FORMULAS = {
    _CPU_ATTENTION: flop_counter.flop_registry[aten._scaled_dot_product_flash_attention],
    _CPU_ATTENTION_BACKWARD: flop_counter.flop_registry[
        aten._scaled_dot_product_flash_attention_backward
    ],
}

_MATMULS = (
    aten.mm,
    aten.addmm,
    aten.bmm,
    aten.baddbmm,
    aten.convolution,
    aten.convolution_backward,
    aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_flash_attention_backward,
    aten._scaled_dot_product_efficient_attention,
    aten._scaled_dot_product_efficient_attention_backward,
    aten._scaled_dot_product_cudnn_attention,
    aten._scaled_dot_product_cudnn_attention_backward,
)
_FORMULAS = {op: flop_counter.flop_registry[op] for op in _MATMULS} | _CPU_FORMULAS


class _Captured(BaseException):
    """Ends a compile once its joint graph is known; no `except Exception` on the way takes it."""

    def __init__(self, joint: GraphModule, inputs: Sequence[Any], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.joint, self.inputs, self.kwargs = joint, inputs, kwargs


def joint_graph(
    module: nn.Module,
    batch: Batch,
    loss: Callable[[nn.Module, Batch], Tensor],
    *,
    options: dict[str, Any] | None = None,
) -> tuple[GraphModule, Sequence[Any], dict[str, Any]]:
    """What `deepep` hands to torch's partitioner for a step of `module`; nothing is run.

    Returns:
        The joint graph after the joint passes and with the marks of the capture, the inputs it was
        traced with (fake tensors), and the keyword arguments for a partition function.

    Raises:
        RuntimeError: when no gradient is needed, so that there is no joint graph.
    """

    def stop(joint: GraphModule, inputs: Sequence[Any], **kwargs: Any) -> Split:
        raise _Captured(joint, inputs, kwargs)

    def backend(gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        return deepep(gm, example_inputs, options={"strict": True, **(options or {})})

    torch._dynamo.reset()
    try:
        with mock.patch.object(torch_private, "split_joint_graph", stop):
            torch.compile(loss, backend=backend, fullgraph=True)(module, batch)
    except _Captured as captured:
        return captured.joint, captured.inputs, captured.kwargs
    finally:
        torch._dynamo.reset()
    raise RuntimeError("the step has no joint graph: nothing in it needs a gradient")


def split_with_budget(
    joint: GraphModule, joint_inputs: Sequence[Any], fraction: float, **kwargs: Any
) -> Split:
    """Torch's forward and backward graph with `activation_memory_budget = fraction`.

    Runtimes are counted in FLOPs and the knapsack is solved by dynamic programming: both are
    torch's defaults and need no other package. `joint` stays as it is.
    """
    with (
        _attention_of_cpus_is_costly(),
        functorch_config.patch(
            cse=False,
            activation_memory_budget=fraction,
            activation_memory_budget_runtime_estimator="flops",
            activation_memory_budget_solver="dp",
        ),
    ):
        return partitioners.min_cut_rematerialization_partition(
            _copy_of(joint), joint_inputs, **kwargs
        )


def sweep(
    joint: GraphModule, joint_inputs: Sequence[Any], fractions: Iterable[float], **kwargs: Any
) -> dict[float, Split]:
    """The two graphs for each fraction."""
    return {
        fraction: split_with_budget(joint, joint_inputs, fraction, **kwargs)
        for fraction in fractions
    }


def redrawn(backward: GraphModule) -> list[Node]:
    """Random ops of a backward graph: each draws other numbers than forward did, a wrong gradient.

    Torch's partitioner recomputes them like any other op, from some fraction below 1.0 on.
    """
    return [node for node in backward.graph.nodes if _is_random(node)]


def matmul_flops(graph: GraphModule) -> int:
    """FLOPs of matrix products, convolutions and attention, by the shapes of fake values.

    These are the formulas of `torch.utils.flop_counter`: two a multiply-add, nothing for a bias,
    and attention in full even where half of it is masked.
    """
    total = 0
    for node in graph.graph.nodes:
        packet = getattr(node.target, "overloadpacket", None)
        if packet in _FORMULAS:
            formula = _FORMULAS[packet]
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), _fake_value)
            total += int(formula(*args, **kwargs, out_val=_fake_value(node)))
    return total


def _is_random(node: Node) -> bool:
    """Attention carries torch's tag of random ops too, but draws nothing without dropout."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    arguments = node.normalized_arguments(torch.nn.Module(), normalize_to_only_use_kwargs=True)
    return arguments is None or arguments.kwargs.get("dropout_p") != 0.0


def _fake_value(node: Node) -> Any:
    return node.meta["val"]


def _copy_of(joint: GraphModule) -> GraphModule:
    """Nodes and their marks copied, for the partitioner changes them; fake values are shared."""
    graph = Graph()
    copied = graph.graph_copy(joint.graph, {}, return_output_node=True)
    assert isinstance(copied, tuple)
    results, output = copied
    graph.output(results).meta = dict(output.meta)
    return GraphModule(joint, graph)


@contextmanager
def _attention_of_cpus_is_costly() -> Iterator[None]:
    torch_list = partitioners.get_default_op_list

    def with_cpu_attention() -> partitioners.OpTypes:
        ops = torch_list()
        ops.compute_intensive_ops.add(_CPU_ATTENTION)
        return ops

    with (
        mock.patch.object(partitioners, "get_default_op_list", with_cpu_attention),
        mock.patch.dict(flop_counter.flop_registry, _CPU_FORMULAS),
    ):
        yield
