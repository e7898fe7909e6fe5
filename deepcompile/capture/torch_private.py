"""Every private torch name that capture needs, in one place (checked with torch 2.11 to 2.13).

Nothing here has a stable public spelling. Other modules of this room import from this one, so a
torch release that moves a name is dealt with in this file only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch._dynamo import symbolic_convert
from torch._dynamo.exc import (
    RestartAnalysis,
    ShortenTraceback,
    SkipFrame,
    exceptions_allowed_to_be_fallback,
)
from torch._dynamo.utils import counters, flatten_graph_inputs
from torch._functorch import config as functorch_config
from torch._functorch.aot_autograd import aot_module_simplified
from torch._functorch.partitioners import (
    _extract_fwd_bwd_modules,
    default_partition,
    min_cut_rematerialization_partition,
    raise_getitems,
    thread_graphsafe_rng_from_hops,
)
from torch._guards import (
    CompileContext,
    TracingContext,
    compile_context,
    detect_fake_mode,
    tracing,
)
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx import Graph, GraphModule, Node
from torch.fx._lazy_graph_module import _make_graph_module, _use_lazy_graph_module
from torch.utils._ordered_set import OrderedSet

from deepcompile.ir.collectives import communicates

from .divide import divided_plainly

__all__ = [
    "capture_with_aot",
    "current_frame",
    "divide_joint_graph",
    "exceptions_meant_for_dynamo",
    "flatten_graph_inputs",
    "graph_module",
    "hidden_from_dynamo",
    "modules_in_reach",
    "mutated_input_indices",
    "split_joint_graph",
    "split_without_recomputing",
    "static_input_indices",
    "tracing_once_more",
    "uncalled_graph_modules",
]

#: Control flow between Dynamo and a backend: never to be answered with a fallback of ours.
#: `exceptions_allowed_to_be_fallback` (data-dependent shapes and the like) become graph breaks.
exceptions_meant_for_dynamo: tuple[type[BaseException], ...] = (
    RestartAnalysis,
    ShortenTraceback,
    SkipFrame,
    *exceptions_allowed_to_be_fallback,
)


def capture_with_aot(gm: GraphModule, example_inputs: Sequence[Any], **kwargs: Any) -> Any:
    """`aot_module_simplified`, announced as AOTAutograd's own backends announce it.

    Dynamo's bucketing for DistributedDataParallel reads the counter: for a graph that went through
    AOTAutograd it takes the first call to return fake tensors, from which it compiles the next.
    """
    counters["aot_autograd"]["total"] += 1
    compiled = aot_module_simplified(gm, example_inputs, **kwargs)
    counters["aot_autograd"]["ok"] += 1
    return compiled


def split_joint_graph(
    joint: GraphModule, joint_inputs: Sequence[Any], **kwargs: Any
) -> tuple[GraphModule, GraphModule]:
    """Torch's minimum-cut split of a joint graph into forward and backward.

    Torch's own common-subexpression step is left out: it imports the whole of Inductor (more than
    a second of CPU time), and the joint passes have done that work already. Its own memory budget
    is left out too: below 1 it draws random numbers anew in backward.
    """
    with functorch_config.patch(cse=False, activation_memory_budget=1.0):
        return min_cut_rematerialization_partition(joint, joint_inputs, **kwargs)


def split_without_recomputing(
    joint: GraphModule, joint_inputs: Sequence[Any], **kwargs: Any
) -> tuple[GraphModule, GraphModule]:
    """Torch's split in which backward computes nothing of forward again."""
    with functorch_config.patch(cse=False):
        return default_partition(joint, joint_inputs, **kwargs)


def divide_joint_graph(
    joint: GraphModule,
    saved: Sequence[Node],
    symbols: Sequence[Node],
    num_fwd_outputs: int,
    static_lifetime_input_indices: Sequence[int] = (),
) -> tuple[GraphModule, GraphModule]:
    """Forward and backward of a joint graph in which backward needs nothing but what is saved.

    `saved` are tensors of forward and inputs of the step; `symbols` sizes among its nodes. What
    backward does not read of them is left out.
    """
    plain = None if symbols else divided_plainly(joint.graph, saved, num_fwd_outputs)
    if plain is not None:
        with uncalled_graph_modules():  # passes read their graphs
            forward, backward = (graph_module(joint, graph, "GraphModule") for graph in plain)
            return raise_getitems(forward), raise_getitems(backward)
    primals = [
        node
        for node in joint.graph.find_nodes(op="placeholder")
        if str(node.target).startswith("primals")
    ]
    static = OrderedSet(
        node for number, node in enumerate(primals) if number in static_lifetime_input_indices
    )
    opaque = [node for node in saved if not isinstance(node.meta.get("val"), torch.Tensor)]
    # Only torch that has such inputs, as meshes of DTensors, has this argument.
    apart: dict[str, Any] = {"saved_opaque_nodes": opaque} if opaque else {}
    with uncalled_graph_modules():
        forward, backward = _extract_fwd_bwd_modules(
            joint,
            [node for node in saved if node not in opaque],
            saved_sym_nodes=list(symbols),
            num_fwd_outputs=num_fwd_outputs,
            static_lifetime_input_nodes=static,
            **apart,
        )
        for half in (forward, backward):
            half.graph.eliminate_dead_code(is_impure_node=_must_stay)
        forward, backward = raise_getitems(forward), raise_getitems(backward)
        return (
            thread_graphsafe_rng_from_hops(forward, is_backward=False),
            thread_graphsafe_rng_from_hops(backward, is_backward=True),
        )


def uncalled_graph_modules() -> AbstractContextManager[None]:
    """Inside, no Python code is made of graphs for which `graph_module` makes a module."""
    return _use_lazy_graph_module(True)


def graph_module(root: GraphModule, graph: Graph, class_name: str) -> GraphModule:
    """A module of the graph, with the attributes of `root` that it names."""
    return _make_graph_module(root, graph, class_name)


def current_frame() -> tuple[int | None, Hashable]:
    """A number for the code that Dynamo compiles now, and what tells its versions apart."""
    context = CompileContext.try_get()
    if context is None or context.compile_id is None:
        return None, None
    return context.compile_id.frame_id, (context.compile_id, context.attempt)


def modules_in_reach() -> list[nn.Module]:
    """From within a compile of Dynamo's: modules that the function it compiles has by a name.

    That is its arguments and globals that it names, `self` first of all, and their attributes.
    """
    translator = getattr(symbolic_convert.tls, "current_tx", None)
    if translator is None:
        return []
    root = translator.output.root_tx
    values = [*root.f_locals.values()]
    values += [root.f_globals[name] for name in root.f_code.co_names if name in root.f_globals]
    found: dict[int, nn.Module] = {}
    for value in values:
        is_holder = not isinstance(value, nn.Module | ModuleType | type)
        attributes = getattr(value, "__dict__", {}).values() if is_holder else ()
        for one in (value, *attributes):
            if isinstance(one, nn.Module):
                found[id(one)] = one
    return list(found.values())


def tracing_once_more(
    example_inputs: Sequence[Any],
) -> Callable[[], AbstractContextManager[None]] | None:
    """From within a compile of Dynamo's: what to trace the same graph in when that has ended.

    The graph's example inputs stay what they were, with the sizes that their fake mode knows.
    Guards are complete by then; to trace the same graph once more needs no others. Autocast and the
    like are as they are now, whatever they are around the call that traces again. None for inputs
    that are real: nobody should hold them.
    """
    fake_mode = detect_fake_mode(example_inputs)
    compile_id = CompileContext.current_compile_id()
    if fake_mode is None:
        return None
    state = _modes()

    @contextmanager
    def again() -> Iterator[None]:
        with (
            unset_fake_temporarily(),
            tracing(TracingContext(fake_mode)),
            compile_context(CompileContext(compile_id)),
            _with_modes(state),
        ):
            yield

    return again


def _modes() -> list[tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Calls that bring back what Dynamo guards of this thread, as far as tracing depends on it."""
    found: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
        (torch._C._set_grad_enabled, (torch.is_grad_enabled(),)),
        (torch.set_default_dtype, (torch.get_default_dtype(),)),
        (torch.set_autocast_cache_enabled, (torch.is_autocast_cache_enabled(),)),
    ]
    for device in ("cpu", "cuda"):
        enabled = torch.is_autocast_enabled(device)
        found.append((torch.set_autocast_enabled, (device, enabled)))
        found.append((torch.set_autocast_dtype, (device, torch.get_autocast_dtype(device))))
    return found


@contextmanager
def _with_modes(state: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]]) -> Iterator[None]:
    before = _modes()
    try:
        for call, arguments in state:
            call(*arguments)
        yield
    finally:
        for call, arguments in before:
            call(*arguments)


def _must_stay(node: Node) -> bool:
    """Whether a node that nobody reads does something; drawing random numbers is nothing.

    Nor are collectives: either half has those of the other, until it is found to need none.
    """
    if communicates(node.target):
        return False
    return node.op in ("placeholder", "output") or node.is_impure(impure_random=False)


_PART = re.compile(r"_(?:modules|parameters|buffers)\['([^']+)'\]")


def input_names(gm: GraphModule) -> list[str]:
    """What the user calls the inputs of Dynamo's graph, as `layers.0.weight`; "" where unknown."""
    found = []
    for node in gm.graph.find_nodes(op="placeholder"):
        source = getattr(node.meta.get("grapharg"), "source", None)
        name = getattr(source, "name", "")
        text = str(name() if callable(name) else name)
        found.append(".".join(_PART.findall(text)) or text)
    return found


def static_input_indices() -> tuple[int, ...]:
    """Forward inputs whose address does not change between calls (parameters and buffers)."""
    return tuple(getattr(_forward_metadata(), "static_input_indices", None) or ())


def mutated_input_indices() -> tuple[int, ...]:
    """Forward inputs that get new contents after the graph has run, not by a node in it."""
    return tuple(getattr(_forward_metadata(), "mutated_inp_runtime_indices", None) or ())


def _forward_metadata() -> Any:
    return getattr(TracingContext.try_get(), "fw_metadata", None)


def hidden_from_dynamo(function: Callable[..., Any], reason: str) -> Any:
    """`function`, hidden from Dynamo: neither compiled itself nor inlined by compiled autograd."""
    hidden = torch._dynamo.disable(function, reason=reason)
    if getattr(function, "_boxed_call", False):
        hidden._boxed_call = True
    return hidden


_VIEWS = 4
"""How many views an output may be of what a graph through AOTAutograd returned."""


def backward_node(outputs: Any, mark: str) -> Any:
    """The node of autograd's graph that runs the backward of a graph through AOTAutograd.

    Args:
        outputs: of the graph. Autograd makes views of what it returned, so the node may be further
            back.
        mark: entry of the metadata that nodes of graphs that ran before have.

    Returns:
        None where no output has a gradient.
    """
    tensors = outputs if isinstance(outputs, tuple | list) else (outputs,)
    for tensor in tensors:
        node: Any = tensor.grad_fn if isinstance(tensor, torch.Tensor) else None
        for _ in range(_VIEWS):
            if node is None:
                break
            if node.name() == "CompiledFunctionBackward":
                if mark not in node.metadata:
                    return node
                break
            node = node.next_functions[0][0] if node.next_functions else None
    return None


def saved_tensors_are_hooked() -> bool:
    """Whether hooks take what autograd saves now."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def keeps_saved_tensors() -> bool:
    """Whether the backward that runs on this thread leaves saved tensors for another one."""
    if torch._C._current_graph_task_id() == -1:  # compiled autograd lets go of them itself
        return False
    return bool(torch._C._autograd._get_current_graph_task_keep_graph())


def failed_guards() -> list[tuple[str, str]]:
    """Why Dynamo compiled functions again since it was reset: the function, and its reason."""
    from torch._dynamo.utils import guard_failures

    return [
        (code.co_name, str(reason))
        for code, reasons in guard_failures.items()
        for reason in reasons
    ]
