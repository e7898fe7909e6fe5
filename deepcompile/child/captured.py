"""A graph as it came from Dynamo, kept with real inputs where it failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx import Graph, GraphModule

from deepcompile.child.rows import CannotPrint, Rows, read_graph
from deepcompile.child.signature import Signature
from deepcompile.pipeline.execute import make_inputs

FILE = "case.pt"


@dataclass
class Kept:
    """What a child kept: a program, its inputs, whether gradients were on, and how it failed."""

    rows: Rows
    inputs: dict[str, Tensor]
    backward: bool
    dynamic: bool
    options: dict[str, Any]
    signature: Signature


@dataclass
class Captured:
    """A copy of a graph that is about to be compiled, which no pass changes."""

    module: GraphModule
    example_inputs: list[Any]
    dynamic: bool
    options: dict[str, Any]

    @classmethod
    def of(
        cls, gm: GraphModule, example_inputs: Sequence[Any], options: Mapping[str, Any] | None
    ) -> Captured:
        """The copy; tensors that the graph holds are shared."""
        graph = Graph()
        copied = graph.graph_copy(gm.graph, {})
        graph.output(copied)
        dynamic = any(
            isinstance(v, torch.SymInt)
            or (isinstance(v, Tensor) and any(isinstance(s, torch.SymInt) for s in v.shape))
            for v in example_inputs
        )
        return cls(GraphModule(gm, graph), list(example_inputs), dynamic, dict(options or {}))

    def keep(self, place: Path, inputs: Sequence[Any] | None, signature: Signature) -> None:
        """Write the graph to `place`; what cannot be written leaves the reason there.

        Args:
            inputs: of the call that failed; None: made up, where it failed before any call.
        """
        place.mkdir(parents=True, exist_ok=True)
        try:
            given = list(inputs) if inputs is not None else self._made_up()
            read = read_graph(self.module)
            tensors = {
                name: given[source] if isinstance(source, int) else source
                for name, source in read.sources.items()
            }
            kept = Kept(
                read.rows, tensors, torch.is_grad_enabled(), self.dynamic, self.options, signature
            )
            for name, value in tensors.items():
                if not isinstance(value, Tensor):
                    raise CannotPrint(f"input {name} is a {type(value).__name__}")
            with unset_fake_temporarily():
                torch.save(kept, place / FILE)
        except Exception as error:  # the failure itself must stay what is seen
            (place / "cannot").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")

    def _made_up(self) -> list[Any]:
        graph = Graph()
        for number, value in enumerate(self.example_inputs):
            node = graph.placeholder(f"x{number}")
            node.meta["val"] = value
        graph.output(())
        made = make_inputs(GraphModule({}, graph))
        return [
            value.requires_grad_(example.requires_grad) if isinstance(value, Tensor) else value
            for value, example in zip(made, self.example_inputs, strict=True)
        ]

    @staticmethod
    def forget(place: Path) -> None:
        """Remove what `keep` wrote."""
        for file in place.glob("*"):
            file.unlink()
        place.rmdir()


def load_kept(place: Path) -> Kept:
    """What `keep` wrote to `place`.

    Raises:
        CannotPrint: the graph could not be written, with the reason.
    """
    reason = place / "cannot"
    if reason.is_file():
        raise CannotPrint(reason.read_text(encoding="utf-8"))
    found: Kept = torch.load(place / FILE, weights_only=False)
    return found
