"""Compiling generated Triton for a GPU that need not be there, and what the result uses of it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from .triton_function import TritonFunction

_USAGE = re.compile(r"REG:(\d+)\s+STACK:(\d+)\s+SHARED:(\d+)\s+LOCAL:(\d+)")


@dataclass(frozen=True)
class DeviceCode:
    """A function compiled for one architecture.

    Attributes:
        ptx: its assembly.
        registers: of a thread.
        spilled: bytes of a thread that did not fit its registers.
        shared: bytes of shared memory of a program.
    """

    ptx: str
    registers: int
    spilled: int
    shared: int


def compile_for(
    module: ModuleType, function: TritonFunction, capability: int, divisible: Collection[str]
) -> Any:
    """Triton's compiled kernel of a function of a loaded source; needs no GPU.

    Args:
        capability: 90 for sm_90.
        divisible: arguments that are multiples of 16, as pointers of torch's tensors are.

    Raises:
        Exception: whatever Triton raises on code that it refuses.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    attributes: dict[Any, Any] = {
        (number,): [["tt.divisibility", 16]]
        for number, name in enumerate(function.signature)
        if name in divisible
    }
    source = ASTSource(
        fn=getattr(module, function.name),
        signature=dict(function.signature),
        constexprs={},
        attrs=attributes,
    )
    options: dict[str, Any] = {"num_warps": function.warps, "enable_fp_fusion": function.contracts}
    if function.stages is not None:
        options["num_stages"] = function.stages
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def compile_function(
    module: ModuleType, function: TritonFunction, capability: int, divisible: bool = True
) -> DeviceCode:
    """The code of a function of a loaded source for `capability`, and what it uses.

    Args:
        divisible: pointers are multiples of 16 bytes.

    Raises:
        Exception: whatever Triton raises on code that it refuses.
    """
    pointers = [name for name, kind in function.signature.items() if kind.startswith("*")]
    compiled = compile_for(module, function, capability, pointers if divisible else ())
    registers, spilled = _usage(compiled.asm["cubin"], function.name)
    return DeviceCode(compiled.asm["ptx"], registers, spilled, int(compiled.metadata.shared))


def _usage(cubin: bytes, name: str) -> tuple[int, int]:
    """Registers and spilled bytes of a thread, from the resource usage noted in a cubin."""
    import triton.backends.nvidia

    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [str(tool), "--dump-resource-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    for line in text[text.find(f"Function {name}:") :].splitlines():
        found = _USAGE.search(line)
        if found:
            registers, stack, _, local = map(int, found.groups())
            return registers, stack + local
    raise ValueError(f"no resource usage of {name} in: {text}")
