"""`torch.compile` of a child process: whatever backend it names, deepcompile gets the graph."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from deepcompile.child import report
from deepcompile.child.environment import BACKEND
from deepcompile.options import MODES

_INDUCTOR_OPTIONS: Mapping[str, tuple[str, Any]] = {
    "max_autotune": ("tune", "measure"),
    "max_autotune_gemm": ("tune", "measure"),
    "triton.cudagraphs": ("cuda_graphs", True),
    "deterministic": ("deterministic", True),
}
"""Options of Inductor that mean something here when they are true: our option and its value."""
_OF_TORCH = ("guard_filter_fn",)
"""Entries of `options` that torch.compile takes for itself."""


def install(torch: ModuleType) -> None:
    """Replace `torch.compile`, through which `Module.compile` and all decorators go."""
    original = torch.compile

    @functools.wraps(original)
    def compile(model: Any = None, **kwargs: Any) -> Any:
        report.say("compile")
        return original(model, **redirected(kwargs, _note))

    torch.compile = compile  # type: ignore[attr-defined]


def redirected(kwargs: Mapping[str, Any], note: Callable[[str], None]) -> dict[str, Any]:
    """The arguments of `torch.compile` with our backend, and options that it knows.

    Names of backends give way. A function stays: whoever passes one means that one.
    """
    found = dict(kwargs)
    backend = found.get("backend") or "inductor"
    if backend is deepep:
        return found
    if not isinstance(backend, str) and not _is_ours(backend):
        note(f"torch.compile(backend={_name(backend)}) is a function, which stays")
        return found
    if os.environ.get(BACKEND) == "eager":
        return found | {"backend": "eager", "mode": None, "options": None}
    found["backend"] = deepep
    if _is_ours(backend):
        return found
    if backend != "inductor":
        note(f"torch.compile(backend={backend!r}) goes to deepcompile")
    found["mode"] = _mode(found.get("mode"), note)
    found["options"] = _options(found.get("options"), note)
    return found


def deepep(gm: Any, example_inputs: Sequence[Any], **kwargs: Any) -> Callable[..., Any]:
    """The backend, imported when there is something to compile."""
    from deepcompile.child.checked import compile_checked

    return compile_checked(gm, example_inputs, **kwargs)


def _is_ours(backend: Any) -> bool:
    if isinstance(backend, str):
        return backend == "deepep"
    return str(getattr(backend, "__module__", "")).startswith("deepcompile.")


def _name(backend: Any) -> str:
    return str(getattr(backend, "__qualname__", None) or type(backend).__qualname__)


def _mode(mode: Any, note: Callable[[str], None]) -> Any:
    if mode is None or mode in MODES:
        return mode
    note(f"torch.compile(mode={mode!r}) is no mode of deepcompile and is left out")
    return None


def _options(options: Any, note: Callable[[str], None]) -> Any:
    if not options or not isinstance(options, Mapping):
        return options
    kept: dict[str, Any] = {}
    for name, value in options.items():
        if name in _OF_TORCH:
            kept[name] = value
        elif name.replace("-", "_") in _INDUCTOR_OPTIONS:
            ours, meaning = _INDUCTOR_OPTIONS[name.replace("-", "_")]
            if value:
                kept[ours] = meaning
                note(f"option {name} of Inductor becomes {ours}={meaning!r}")
        else:
            note(f"option {name} of Inductor means nothing to deepcompile and is left out")
    return kept or None


@functools.cache
def _note(text: str) -> None:
    """Once for each text, by one of the ranks."""
    if os.environ.get("RANK", "0") == "0":
        print(f"deepcompile: {text}", file=sys.stderr)
