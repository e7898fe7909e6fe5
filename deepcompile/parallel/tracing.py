"""The graphs of a model, for planning: traced on fake tensors, nothing of it is run.

Where Dynamo breaks the model into several graphs, each is traced; one parameter may be in several.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_map

from deepcompile.capture.aot import CompiledGraphKind, compile_through_aot, interpret
from deepcompile.capture.fake_models import AnsweringMode, fake_model, fake_tensor
from deepcompile.capture.graph_breaks import in_short, with_hint
from deepcompile.errors import PartitionError
from deepcompile.ir.origins import origin_of_error
from deepcompile.passes.partition.sites import Sites, plain_sites
from deepcompile.pipeline.manager import PassManager
from deepcompile.pipeline.protocol import Pass

log = logging.getLogger("deepcompile")


class _Captured(Exception):
    """A graph is known; the model goes on in eager on fake tensors."""


def trace(
    model: nn.Module,
    example_inputs: tuple[Any, ...] | Mapping[str, Any] | None,
    passes: Sequence[Pass],
    options: Any,
) -> list[Sites]:
    """What each graph of a call of the model is made of.

    Args:
        model: anywhere, also on `meta`; it is not changed.
        example_inputs: positional as a tuple or by keyword as a dict; only shapes and dtypes count.
        passes: to be run on each graph before.
        options: of the compile, for the passes.

    Raises:
        PartitionError: the model cannot be traced with these inputs.
    """
    if example_inputs is None:
        raise PartitionError(
            "planning needs example_inputs: a tuple of positional or a dict of keyword inputs, of "
            "the shapes that each rank will have"
        )
    if not isinstance(example_inputs, Mapping | tuple | list):
        example_inputs = (example_inputs,)
    found: list[Sites] = []
    torch._dynamo.reset()
    mode = AnsweringMode(allow_non_fake_inputs=True)
    fake, names = fake_model(model, mode)
    tracer = _Tracer(names, passes, options, found)
    left_before = Counter(counters["unimplemented"])
    try:
        with mode:
            inputs = tree_map(fake_tensor, example_inputs)
            args: tuple[Any, ...] = () if isinstance(inputs, Mapping) else tuple(inputs)
            kwargs = dict(inputs) if isinstance(inputs, Mapping) else {}
            torch.compile(fake, backend=tracer.backend, dynamic=False)(*args, **kwargs)
    except PartitionError:
        raise
    except Exception as error:
        line = origin_of_error(error)
        raise PartitionError(
            f"the model cannot be traced with the example inputs{f', at {line}' if line else ''}: "
            f"{type(error).__name__}: {in_short(str(error).strip() or '?')}"
        ) from error
    finally:
        torch._dynamo.reset()
    if tracer.written:
        name = tracer.written[0]
        raise PartitionError(
            f"forward writes to the parameter {name!r}, which would be lost: parameters of a mesh "
            "are read as copies. Write to it between steps, through named_parameters(), or make it "
            "a buffer"
        )
    if not found:
        left = [with_hint(text) for text in Counter(counters["unimplemented"]) - left_before]
        why = "; ".join(tracer.failed + left) or "it computes nothing with tensors"
        raise PartitionError(f"no graph of the model was captured: {why}")
    if tracer.failed:
        log.warning(
            "parts of the model are not planned, and parameters that only they read are replicated:"
            " %s",
            "; ".join(tracer.failed),
        )
    return found


class _Tracer:
    """The backend that a trace compiles with.

    Attributes:
        written: parameters that graphs write to.
        failed: why graphs were not captured.
    """

    def __init__(
        self,
        names: Mapping[int, str],
        passes: Sequence[Pass],
        options: Any,
        found: list[Sites],
    ) -> None:
        self._names = names
        self._manager = PassManager(passes, (), options)
        self._found = found
        self._inputs: Sequence[Any] = ()
        self.written: list[str] = []
        self.failed: list[str] = []

    def backend(self, gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """What `torch.compile` calls."""
        self._inputs = example_inputs
        return compile_through_aot(
            gm,
            example_inputs,
            compile_graph=self._inference,
            run_joint_passes=lambda joint: self._manager.run(joint, "joint", "joint"),
            split_joint=self._joint,
            note=self._note,
        )

    def _note(self, event: str, **fields: Any) -> None:
        if event == "fallback" and not str(fields["reason"]).startswith(_Captured.__name__):
            self.failed.append(str(fields["reason"]))

    def _inference(
        self,
        gm: GraphModule,
        example_inputs: Sequence[Any],
        *,
        kind: CompiledGraphKind,
        static_input_idxs: Sequence[int],
    ) -> Callable[..., Any]:
        graph = self._manager.run(gm, kind, kind)
        self._keep(graph, None)
        return interpret(gm)

    def _joint(self, joint: GraphModule, inputs: Sequence[Any], **kwargs: Any) -> Any:
        self._keep(joint, int(kwargs["num_fwd_outputs"]))
        raise _Captured

    def _keep(self, module: GraphModule, outputs: int | None) -> None:
        """A graph with its parameters; `outputs` of forward, or None where nothing trains."""
        placeholders = [
            node
            for node in module.graph.find_nodes(op="placeholder")
            if not str(node.target).startswith("tangents")
        ]
        gradients = [] if outputs is None else _results(module)[outputs:]
        names: dict[Node, str] = {}
        landed: dict[Node, Node | None] = {}
        tensors = [value for value in self._inputs if isinstance(value, Tensor | int | float)]
        for number, (node, value) in enumerate(zip(placeholders, tensors, strict=False)):
            name = self._names.get(id(value))
            if name is not None:
                if _is_written(node):
                    self.written.append(name)
                names[node] = name
                gradient = gradients[number] if number < len(gradients) else None
                landed[node] = gradient if isinstance(gradient, Node) else None
        self._found.append(plain_sites(module.graph, names, landed))


def _is_written(node: Node) -> bool:
    """Whether the graph ends by writing to an input."""
    copy = torch.ops.aten.copy_.default
    return any(user.target is copy and user.args[0] is node for user in node.users)


def _results(module: GraphModule) -> list[Any]:
    (results,) = module.graph.output_node().args
    return list(results) if isinstance(results, tuple | list) else [results]
