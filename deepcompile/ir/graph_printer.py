"""Our own text for ATen graphs: one op a line. `graph_parser` reads it back.

    graph forward {
      symbols s0 = 5 in [2, int_oo]
      %n : sym(s0) = placeholder
      %x : f32[s0, 4] = placeholder
      %w : f32[4, 4]{1, 4} = placeholder {static=layer.weight}
      %mm : f32[s0, 4] = aten.mm.default(%x, %w) {recompute=must_save}  # model.py:12
      %k : (f32[s0, 4]) = kernel @k0(%mm, %n)  # model.py:13
      %getitem : f32[s0, 4] = getitem(%k, 0)  # model.py:13
      return (%getitem, none)
      kernel @k0(in x: f32[s0, 4], out y: f32[s0, 4]) {
        ...
      }
      kernel @k0 makes f32[s0, 4] of "sin.default" at "model.py:13"
    }

The first line names the kind of the graph where it is known. Types are those of `meta["val"]` (see
`graph_types`); nodes without it have none. What passes know beside it follows the call in braces
(see `node_attributes`); a trailing comment is the line of the user's program. Constants that the
graph holds come first (`constant @c : f32[2] = [1.0, 2.0]`), so do graphs inside it (`graph @body
{`), and a `BatchOp`, which prints as `batch @name`, has its body there. The kernels that it calls
come last (see `kernel_op_text`).
"""

from __future__ import annotations

import json
import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.utils._python_dispatch import _disable_current_modes

from deepcompile.ir.batch_op import BatchOp
from deepcompile.ir.constant_text import MAX_BYTES, MAX_LISTED, MISSING, has_values, print_packed
from deepcompile.ir.function_names import function_name
from deepcompile.ir.graph_types import SYMBOLIC, expression, print_symbols, print_type
from deepcompile.ir.kernel_op_text import kernel_ops, print_kernel_ops
from deepcompile.ir.node_attributes import print_attributes
from deepcompile.ir.origins import origin_of

KIND = "graph_kind"
"""Under which a parsed graph has its kind in `meta`."""


def print_graph(
    graph: GraphModule, *, origins: bool = True, name: str = "", kind: str | None = None
) -> str:
    """The text of `graph`.

    Args:
        origins: whether to end lines with `# file:line`.
        kind: "joint", "forward", "backward" or "inference"; None where it is not known.
    """
    return "\n".join(_graph_lines(graph, origins, name, kind or graph.meta.get(KIND))) + "\n"


def _graph_lines(
    graph: GraphModule, origins: bool, name: str, kind: str | None = None
) -> list[str]:
    words = ["graph", *([f"@{name}"] if name else []), *([kind] if kind else []), "{"]
    lines = [" ".join(words)]
    values = [node.meta["val"] for node in graph.graph.nodes if "val" in node.meta]
    lines += [f"  {line}" for line in print_symbols(values)]
    for attribute in dict.fromkeys(
        str(n.target) for n in graph.graph.nodes if n.op in ("get_attr", "call_module")
    ):
        lines += ["  " + line for line in _attribute_lines(graph, attribute, origins)]
    for node in graph.graph.nodes:
        if isinstance(node.target, BatchOp):
            body = _graph_lines(node.target.body, origins, node.target.name)
            lines += ["  " + line for line in body]
    joint = kind == "joint"
    lines += ["  " + _node_line(node, origins, joint) for node in graph.graph.nodes]
    kernels = kernel_ops(node.target for node in graph.graph.nodes)
    lines += ["  " + line for line in print_kernel_ops(kernels.values())]
    return [*lines, "}"]


def _attribute_lines(graph: GraphModule, target: str, origins: bool) -> list[str]:
    value: Any = operator.attrgetter(target)(graph)
    if isinstance(value, GraphModule):
        return _graph_lines(value, origins, target)
    if not isinstance(value, torch.Tensor):
        return [f"constant @{target} : opaque = ..."]
    data = MISSING
    # Graphs are printed while they are traced, when tensors pass for fake ones.
    with _disable_current_modes(), torch.no_grad():
        if has_values(value) and value.numel() <= MAX_LISTED:
            data = print_argument(value.tolist())
        elif has_values(value) and value.numel() * value.element_size() <= MAX_BYTES:
            data = print_packed(value)
    return [f"constant @{target} : {print_type(value)} = {data}"]


def _node_line(node: Node, origins: bool, joint: bool) -> str:
    if node.op == "output":
        return f"return {print_argument(node.args[0])}"
    type_text = f" : {print_type(node.meta['val'])}" if "val" in node.meta else ""
    line = f"%{node.name}{type_text} = {_call(node)}{print_attributes(node, joint)}"
    origin = origin_of(node) if origins else None
    return f"{line}  # {_one_line(origin)}" if origin else line


def _one_line(text: str) -> str:
    """Text in which what would end a line, or move the cursor, is escaped."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _call(node: Node) -> str:
    arguments = [print_argument(a) for a in node.args]
    arguments += [f"{key}={print_argument(a)}" for key, a in node.kwargs.items()]
    inside = ", ".join(arguments)
    if node.op == "placeholder":
        target = "" if node.target == node.name else f" @{node.target}"
        return f"placeholder{target}" + (f"({inside})" if inside else "")
    if node.op == "get_attr":
        return f"get_attr @{node.target}"
    if node.op in ("call_module", "call_method"):
        return f"{node.op} @{node.target}({inside})"
    if hasattr(node.target, "nest"):
        return f"kernel @{kernel_name(node.target)}({inside})"
    if isinstance(node.target, BatchOp):
        return f"batch @{node.target.name}({inside})"
    return f"{function_name(node.target)}({inside})"


def kernel_name(kernel: Any) -> str:
    """The name under which a kernel object prints."""
    return str(getattr(kernel, "name", None) or kernel.__name__)


def print_argument(value: Any) -> str:
    """One argument as text."""
    if isinstance(value, Node):
        return f"%{value.name}"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(print_argument, value)) + "]"
    if isinstance(value, tuple):
        inner = ", ".join(map(print_argument, value))
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, dict):
        pairs = (f"{json.dumps(str(k))}: {print_argument(v)}" for k, v in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, slice):
        return f"slice({', '.join(map(print_argument, (value.start, value.stop, value.step)))})"
    if isinstance(value, complex):
        return f"complex({value.real!r}, {value.imag!r})"
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
        return str(value)
    if isinstance(value, torch.device):
        return f'device("{value}")'
    if isinstance(value, SYMBOLIC):
        return f"sym({expression(value)})"
    if value is Ellipsis:
        return "..."
    if isinstance(value, (torch._ops.OpOverload, torch._ops.HigherOrderOperator)):
        return f"op({function_name(value)})"
    return f"opaque({json.dumps(type(value).__name__)})"
