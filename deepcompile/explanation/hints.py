"""What a user can do about a graph break or a fallback."""

from __future__ import annotations

import re
from collections.abc import Mapping

_BREAKS: Mapping[str, str] = {
    r"generic_jump|data-dependent (branching|jump)": (
        "the branch depends on values of a tensor: use torch.where or torch.cond, or decide "
        "outside of the compiled function"
    ),
    r"\.item\(\)|\.tolist\(\)|DataDependent|_local_scalar_dense": (
        "a number is read out of a tensor: keep it a tensor, or set "
        "torch._dynamo.config.capture_scalar_outputs = True"
    ),
    r"builtin operator `?print|logging": (
        "printing ends a graph: leave it out, or add it to "
        "torch._dynamo.config.reorderable_logging_functions"
    ),
    r"nonzero|unique|dynamic shape operator|masked_select": (
        "the size of a result depends on values: use torch.where in its place, or set "
        "torch._dynamo.config.capture_dynamic_output_shape_ops = True"
    ),
    r"torch\._dynamo\.graph_break|graph_break\(\)": "the program asks for it: remove the call",
    r"disable|skipfiles|skip": (
        "Dynamo does not trace this function: move the call out of the compiled function"
    ),
}
_FALLBACKS: Mapping[str, str] = {
    r"C\+\+ compiler|compiler was found|no compiler": (
        "install g++ or clang++, or name one in CXX; `deepcompile doctor` says what is found"
    ),
    r"Triton is not installed": "pip install 'deepcompile[triton]'",
    r"TRITON_INTERPRET": "set TRITON_INTERPRET=1, or leave codegen at 'auto'",
    r"no code generator for": "move the model to cpu or cuda",
    r"compute capability": "compile for another GPU, or run on the CPU",
    r"runs on|writes to": "move all tensors of the graph to one device",
    r"an input of type|layout|symbolic number": (
        "keep this out of the compiled function: compute it before and pass plain tensors"
    ),
}
_ANY_FALLBACK = (
    "DEEPCOMPILE_STRICT=1 raises the error with its traceback; `deepcompile minify` makes a script "
    "of it to report"
)
_REPORT = "Please report an issue"


def hint_of_break(text: str) -> str:
    """Advice on a graph break, by what Dynamo says of it; its own where we have none, or empty."""
    found = _match(_BREAKS, text)
    if found is not None:
        return found
    own = re.findall(r"^\s*Hint: (.+)$", text, re.MULTILINE)
    return next((hint for hint in own if not hint.startswith(_REPORT)), "")


def hint_of_fallback(reason: str) -> str:
    """Advice on a part that runs in eager."""
    return _match(_FALLBACKS, reason) or _ANY_FALLBACK


def _match(table: Mapping[str, str], text: str) -> str | None:
    return next((hint for pattern, hint in table.items() if re.search(pattern, text)), None)
