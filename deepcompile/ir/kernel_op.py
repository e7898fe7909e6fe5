"""`KernelOp`: a kernel as the target of a graph node.

Calling it runs the kernel's reference meaning on real tensors, so a fused graph is still a graph
that any FX interpreter executes; the code generator replaces the call by compiled code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .index import Index
from .nest import Kernel


@dataclass(frozen=True)
class OutputSpec:
    """A tensor that a kernel makes: sizes and strides in elements, dtype by its IR name."""

    shape: tuple[Index, ...]
    strides: tuple[Index, ...]
    dtype: str


@dataclass(frozen=True)
class Origin:
    """Where a kernel comes from: the ATen ops in it and the user lines they were traced from."""

    ops: tuple[str, ...]
    lines: tuple[str, ...]

    def index_error(self) -> IndexError:
        """The error of a call in which an index of the user was out of range."""
        where = f" at {', '.join(self.lines)}" if self.lines else ""
        return IndexError(f"index out of range in {', '.join(self.ops)}{where}")


@dataclass(frozen=True, eq=False)
class KernelOp:
    """A kernel with what a graph needs to call it.

    Arguments of a call: the tensors of the kernel's "in" and "inout" buffers in order, then one int
    for each of the kernel's sizes. Result: a tuple of the "out" tensors in buffer order.
    """

    nest: Kernel
    outputs: tuple[OutputSpec, ...]
    origin: Origin
    eager: Callable[..., tuple[Any, ...]]
    """The same computation by the ATen ops it was made of, on the same arguments."""

    @property
    def __name__(self) -> str:
        return self.nest.name

    def __call__(self, *arguments: Any) -> tuple[Any, ...]:
        """Interpret the kernel on real tensors (slow; the reference meaning)."""
        import torch

        from .interpret import TORCH_DTYPES, flat_storage, interpret

        sizes = self.sizes(arguments)
        given, made = iter(arguments), iter(self.outputs)
        tensors: dict[str, torch.Tensor] = {}
        results: list[torch.Tensor] = []
        device = next((a.device for a in arguments if isinstance(a, torch.Tensor)), None)
        for buffer in self.nest.buffers:
            if buffer.role == "out":
                spec = next(made)
                tensor = torch.empty_strided(
                    [size.evaluate(sizes) for size in spec.shape],
                    [stride.evaluate(sizes) for stride in spec.strides],
                    dtype=TORCH_DTYPES[spec.dtype],
                    device=device,
                )
                results.append(tensor)
            else:
                tensor = next(given)
            tensors[buffer.name] = flat_storage(tensor)
        interpret(self.nest, tensors, sizes)
        return tuple(results)

    def sizes(self, arguments: tuple[Any, ...]) -> Mapping[str, int]:
        """The size symbols bound by a call's trailing arguments."""
        count = len(self.nest.sizes)
        values = arguments[len(arguments) - count :] if count else ()
        return dict(zip(self.nest.sizes, values, strict=True))
