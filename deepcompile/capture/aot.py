"""From a Dynamo graph to compiled forward, backward and inference graphs, through AOTAutograd."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

from torch.fx import GraphModule, Interpreter

from deepcompile.capture import torch_private
from deepcompile.capture.backward_origins import copy_origins_to_backward
from deepcompile.capture.decompositions import calls_norms_directly, decomposition_table
from deepcompile.capture.mutated_inputs import keep_values_before_mutation
from deepcompile.capture.recompute_hints import prefer_recomputing
from deepcompile.errors import (
    CompileError,
    DeepCompileError,
    MemoryBudgetError,
    OptionError,
    PipelineError,
    VerificationError,
    for_dynamo,
)
from deepcompile.ir.blame import place_of
from deepcompile.ir.static_inputs import mark_static_inputs

log = logging.getLogger(__name__)

#: Mistakes of the user and what the user asked to be told; other failures end in eager.
_FOR_THE_USER = (
    CompileError,
    MemoryBudgetError,
    OptionError,
    PipelineError,
    VerificationError,
)

CompiledGraphKind = Literal["inference", "forward", "backward"]
Note = Callable[..., None]
SplitJoint = Callable[..., tuple[GraphModule, GraphModule]]
"""As functorch's partitioners: joint graph, its inputs and `num_fwd_outputs=` to two graphs."""


class CompileGraph(Protocol):
    """Turns one functional ATen graph into a callable.

    The callable should follow the boxed convention: it has `_boxed_call = True`, is called with one
    list of inputs and may clear that list, so that inputs die as early as possible. One without
    that attribute is called with the inputs as positional arguments. Either way it returns a list
    or tuple with one entry for each output of the graph.
    """

    def __call__(
        self,
        gm: GraphModule,
        example_inputs: Sequence[Any],
        *,
        kind: CompiledGraphKind,
        static_input_idxs: Sequence[int],
    ) -> Callable[..., Any]: ...


def compile_through_aot(
    gm: GraphModule,
    example_inputs: Sequence[Any],
    *,
    compile_graph: CompileGraph,
    run_joint_passes: Callable[[GraphModule], GraphModule],
    split_joint: SplitJoint | None = None,
    options: Any = None,
    note: Note | None = None,
) -> Callable[..., Any]:
    """Compile a graph that Dynamo hands to a backend; the body of a `torch.compile` backend.

    AOTAutograd traces `gm` to ATen with `decomposition_table()`, functional but for the epilogue of
    `copy_` nodes that write mutated inputs back. Where a gradient is needed the joint graph goes to
    `run_joint_passes` and is then split, by `split_joint` or else torch's partitioner; the halves
    go to `compile_graph` as kinds "forward" (at once) and "backward" (at once with symbolic sizes,
    else at the first backward pass). Otherwise one graph goes there as kind "inference", which the
    joint passes never see.

    What cannot be captured or compiled runs in eager, and `note("fallback", ...)` tells why, unless
    `options.strict` is set: then `CompileError` is raised. Errors derived from Dynamo's
    `ShortenTraceback`, and those in options and pipelines, always reach the user.
    """
    if any(isinstance(value, list | tuple | dict) for value in example_inputs):
        return torch_private.flatten_graph_inputs(
            gm,
            example_inputs,
            lambda flat_gm, flat_inputs: compile_through_aot(
                flat_gm,
                flat_inputs,
                compile_graph=compile_graph,
                run_joint_passes=run_joint_passes,
                split_joint=split_joint,
                options=options,
                note=note,
            ),
        )

    strict = bool(getattr(options, "strict", False))
    record = note or _log_event
    names = torch_private.input_names(gm)

    def compile_or_interpret(
        graph: GraphModule, inputs: Sequence[Any], kind: CompiledGraphKind
    ) -> Callable[..., Any]:
        static = _static_inputs(graph, kind)
        if kind == "inference":
            mark_static_inputs(graph.graph, static, names)
        try:
            return compile_graph(graph, inputs, kind=kind, static_input_idxs=static)
        except torch_private.exceptions_meant_for_dynamo:
            raise
        except Exception as error:
            _raise_if_for_user(error, strict, f"compiling the {kind} graph failed")
            record("fallback", stage="compile", kind=kind, reason=_reason(error))
            log.debug("compiling the %s graph failed", kind, exc_info=error)
            return interpret(graph)

    def compile_forward(gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        return compile_or_interpret(gm, example_inputs, "forward")

    def compile_inference(gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        return compile_or_interpret(gm, example_inputs, "inference")

    # Called by autograd at an arbitrary moment: Dynamo must trace neither it nor its result.
    def compile_backward(gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        compiled = torch_private.hidden_from_dynamo(
            compile_or_interpret, "the backward compiler is not user code"
        )(gm, example_inputs, "backward")
        return torch_private.hidden_from_dynamo(
            compiled, "a compiled backward graph is not user code"
        )

    def split(
        joint: GraphModule, joint_inputs: Sequence[Any], **kwargs: Any
    ) -> tuple[GraphModule, GraphModule]:
        copy_origins_to_backward(joint.graph)
        static = kwargs.get("static_lifetime_input_indices") or ()
        mark_static_inputs(joint.graph, static, names)
        joint = run_joint_passes(joint)
        keep_values_before_mutation(joint.graph, torch_private.mutated_input_indices())
        prefer_recomputing(joint.graph)
        return (split_joint or torch_private.split_joint_graph)(joint, joint_inputs, **kwargs)

    try:
        compiled = torch_private.capture_with_aot(
            gm,
            example_inputs,
            fw_compiler=compile_forward,
            bw_compiler=compile_backward,
            inference_compiler=compile_inference,
            partition_fn=split,
            decompositions=dict(decomposition_table(round_statistics=calls_norms_directly(gm))),
            keep_inference_input_mutations=True,
        )
    except torch_private.exceptions_meant_for_dynamo:
        raise
    except Exception as error:
        # With whole parameters on a mesh eager would average no gradients over the axes of data.
        refuse = strict or getattr(options, "mesh", None) is not None
        _raise_if_for_user(error, refuse, "AOTAutograd could not capture the graph")
        record("fallback", stage="capture", kind="joint", reason=_reason(error))
        log.debug("AOTAutograd could not capture the graph", exc_info=error)
        return gm
    return torch_private.hidden_from_dynamo(compiled, "a compiled graph is not user code")


def interpret(graph: GraphModule) -> Callable[[list[Any]], Any]:
    """Run a graph node by node in eager, inputs and intermediates freed after their last use."""

    def run(inputs: list[Any]) -> Any:
        return Interpreter(graph).boxed_run(inputs)

    run._boxed_call = True  # type: ignore[attr-defined]
    return run


def _static_inputs(graph: GraphModule, kind: CompiledGraphKind) -> tuple[int, ...]:
    """Positions of inputs whose storage is the same on every call."""
    static = torch_private.static_input_indices()
    if kind != "backward":
        return static
    names = {f"primals_{position + 1}" for position in static}
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    return tuple(i for i, node in enumerate(placeholders) if node.target in names)


def _raise_if_for_user(error: Exception, strict: bool, what: str) -> None:
    if isinstance(error, _FOR_THE_USER) or (strict and isinstance(error, DeepCompileError)):
        raise for_dynamo(error) from error.__cause__
    if strict:
        place = place_of(error)
        wrapped = CompileError(
            f"{what}: {_reason(error)}", origin=place.origin, source=place.source
        )
        raise for_dynamo(wrapped) from error


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _log_event(event: str, **fields: Any) -> None:
    log.info("%s %s", event, fields)
