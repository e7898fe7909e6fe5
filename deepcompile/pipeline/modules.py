"""Which module of the user's model each node of a graph was traced from."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.fx import GraphModule

_ROOT = re.compile(r"^[LG](\[['\"]?\w+['\"]?\]|\.\w+)")
_ITEM = re.compile(r"\[['\"]?([^\]'\"]*)['\"]?\]")


def modules_of(graph: GraphModule) -> dict[str, str]:
    """Names of the nodes that each module of the user's model made, with spaces between them.

    A node of backward counts for the module whose gradient it is part of. Modules have their paths
    in the model, "" for the model itself; nodes of no module are left out.
    """
    found: dict[str, list[str]] = {}
    for node in graph.graph.nodes:
        stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack")
        if stack:
            path, _ = next(reversed(stack.values()))
            found.setdefault(_module_path(str(path)), []).append(node.name)
    return {path: " ".join(names) for path, names in found.items()}


@functools.lru_cache(maxsize=4096)
def _module_path(text: str) -> str:
    """`L['self'].layers.0` as Dynamo has it, as `layers.0`."""
    rest = _ROOT.sub("", text.replace("._modules[", "["))
    return _ITEM.sub(r".\1", rest).lstrip(".")
