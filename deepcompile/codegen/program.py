"""A fused graph as a program: storage slots and an ordered list of kernel calls and ATen calls.

Nothing here runs or allocates; shapes stay symbolic. The runtime binds a program to sizes and
memory.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from ..cost.gemm import GemmChoice, default_gemm_choice
from ..ir.batch_op import BatchOp
from ..ir.collectives import is_wait
from ..ir.index import ZERO, Index
from ..ir.kernel_op import KernelOp
from ..ir.nest_text import print_kernel
from ..passes.lowering.refusals import CannotLower
from ..passes.lowering.shapes import args_of, size_index
from .aliases import is_alias, reinterprets, shared_source, shares
from .aten_calls import OUT_VARIANTS, counts_from_storage, has_out_variant, rebased
from .batch import Batch, CannotTabulate
from .gemm import Product, gemm_steps
from .in_place import Storages, over_operands
from .layouts import is_symbolic, make_layout
from .lifetimes import add_lifetime_steps, settle_lifetimes
from .size_hints import size_hints
from .steps import (
    ExternStep,
    KernelStep,
    Layout,
    ProgramSpec,
    SizeRef,
    Slot,
    Storage,
    TensorRef,
)

aten = torch.ops.aten


class CannotCompile(Exception):
    """The graph has something that programs cannot hold; it runs in eager, with this reason."""


def make_program(
    graph: GraphModule,
    gemm: GemmChoice | None = None,
    *,
    follow_lifetimes: bool = False,
    expected: Mapping[str, int] | None = None,
    is_generated: Callable[[Node], bool] | None = None,
) -> ProgramSpec:
    """The program of a fused graph.

    Args:
        gemm: which library multiplies matrices.
        follow_lifetimes: memory is taken and let go of by steps of the program, when it is needed
            and no longer; otherwise before the first step and after the last.
        expected: sizes of symbols by which tensors count as large; else those they had when the
            graph was traced.
        is_generated: whether a call of a kernel runs as generated code; else it runs as the ATen
            ops that it was made of. Asked once for each call, in order; None: all do.

    Raises:
        CannotCompile: for sizes that depend on data, mutation other than `copy_`, and the like.
    """
    hints = size_hints(graph) | dict(expected or {})
    maker = _Maker(graph, gemm or default_gemm_choice(), hints if follow_lifetimes else None)
    maker.is_generated = is_generated
    spec = maker.make()
    if follow_lifetimes:
        add_lifetime_steps(spec, hints)
    return spec


class _Maker:
    is_generated: Callable[[Node], bool] | None = None

    def __init__(
        self, graph: GraphModule, gemm: GemmChoice, hints: Mapping[str, int] | None
    ) -> None:
        self.graph = graph
        self.hints = hints
        self.storages: Storages | None = None
        self.gemm = gemm
        self.spec = ProgramSpec([], [], [], [], [])
        self.values: dict[Node, Any] = {}
        self.functions: dict[str, int] = {}
        self.layouts: dict[Any, Layout] = {}

    def make(self) -> ProgramSpec:
        if self.hints is not None:
            self.storages = Storages(self.graph.graph, shared_source)
        for node in self.graph.graph.nodes:
            try:
                self._node(node)
            except CannotLower as reason:
                raise CannotCompile(f"{node.name}: {reason}") from None
        settle_lifetimes(self.spec)
        return self.spec

    def _node(self, node: Node) -> None:
        if node.op == "placeholder":
            self._placeholder(node)
        elif node.op == "get_attr":
            self._constant(node)
        elif node.op == "output":
            self._outputs(node)
        elif node.op == "call_function":
            self._call(node)
        else:
            raise CannotCompile(f"{node.op} nodes")

    # -- values ---------------------------------------------------------------------------------

    def _slot(self, layout: Layout, storage: Storage) -> Slot:
        slot = Slot(len(self.spec.slots), layout, storage)
        self.spec.slots.append(slot)
        return slot

    def _layout(self, value: torch.Tensor) -> Layout:
        if value.layout is not torch.strided:
            raise CannotCompile(f"layout {value.layout}")
        key = value.shape, value.stride(), value.dtype
        if is_symbolic(value):
            return make_layout(*key)
        known = self.layouts.get(key)
        if known is None:
            known = self.layouts[key] = make_layout(*key)
        return known

    def _placeholder(self, node: Node) -> None:
        value = node.meta.get("val")
        number = len(self.spec.inputs)
        if isinstance(value, torch.Tensor):
            slot = self._slot(self._layout(value), "input")
            ref = TensorRef(slot.number, slot.layout, ZERO, True)
            self.values[node] = ref
            self.spec.inputs.append(ref)
            if not is_symbolic(value):
                return
            for dim, size in enumerate(value.shape):
                if type(size) is not int:
                    self._learn(size, _size_of_input(number, dim))
            for dim, stride in enumerate(value.stride()):
                if type(stride) is not int:
                    self._learn(stride, _stride_of_input(number, dim))
            return
        if isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):
            index = size_index(value)
            self._learn(value, _input(number))
            self.values[node] = SizeRef(index)
            self.spec.inputs.append(SizeRef(index))
            return
        if value is None or not node.users:
            self.spec.inputs.append(None)
            return
        raise CannotCompile(f"an input of type {type(value).__name__}")

    def _learn(self, size: int | torch.SymInt, how: Callable[[list[Any]], int]) -> None:
        if isinstance(size, int):
            return
        try:
            index = size_index(size)
        except CannotLower:
            return
        names = index.names()
        if len(names) == 1 and index == Index.of(name := next(iter(names))):
            self.spec.sizes.setdefault(name, how)

    def _constant(self, node: Node) -> None:
        value: Any = self.graph
        for part in str(node.target).split("."):
            value = getattr(value, part)
        if not isinstance(value, torch.Tensor):
            raise CannotCompile(f"a constant of type {type(value).__name__}")
        slot = self._slot(self._layout(value), "constant")
        slot.constant = value
        self.values[node] = TensorRef(slot.number, slot.layout, ZERO, True)

    def _outputs(self, node: Node) -> None:
        results = args_of(node)[0]
        if not isinstance(results, (list, tuple)):
            raise CannotCompile("an output that is no list")
        for result in results:
            if not isinstance(result, Node):
                self.spec.outputs.append(result)
                continue
            value = self.values[result]
            self.spec.outputs.append(value)
            if isinstance(value, TensorRef):
                slot = self.spec.slots[value.slot]
                if slot.storage == "arena":
                    slot.storage = "output"

    def _call(self, node: Node) -> None:
        value = node.meta.get("val")
        if isinstance(node.target, KernelOp | BatchOp) and not self._generated(node):
            self._as_aten(node, node.target)
        elif isinstance(node.target, KernelOp):
            self._kernel(node, node.target)
        elif isinstance(node.target, BatchOp):
            self._batch(node, node.target)
        elif node.target is operator.getitem:
            source = self.values[args_of(node)[0]]
            self.values[node] = source[args_of(node)[1]]
        elif isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):
            self.values[node] = SizeRef(size_index(value))
        elif node.target is torch.sym_float and isinstance(
            whole := self.values.get(args_of(node)[0]), SizeRef
        ):
            self.values[node] = whole
        elif isinstance(value, (float, bool, torch.SymFloat, torch.SymBool)):
            raise CannotCompile(f"{node.target} computes a symbolic number")
        elif is_alias(node):
            self._alias(node)
        else:
            self._extern(node)

    def _alias(self, node: Node) -> None:
        source = self.values[args_of(node)[0]]
        base = args_of(node)[0].meta["val"]
        if not isinstance(source, TensorRef):
            raise CannotCompile("a view of several tensors")

        def view(value: torch.Tensor) -> TensorRef:
            if value.dtype != base.dtype:
                raise CannotCompile("a view with another dtype")
            offset = size_index(value.storage_offset()) - size_index(base.storage_offset())
            layout = self._layout(value)
            slot = self.spec.slots[source.slot]
            at = source.offset + offset
            whole = layout == slot.layout and at == ZERO
            return TensorRef(source.slot, layout, at, whole)

        value = node.meta["val"]
        if isinstance(value, torch.Tensor) and reinterprets(value, base):
            self._extern(node)
            return
        self.values[node] = (
            view(value) if isinstance(value, torch.Tensor) else tuple(view(v) for v in value)
        )

    # -- steps ----------------------------------------------------------------------------------

    def _generated(self, node: Node) -> bool:
        return self.is_generated is None or self.is_generated(node)

    def _as_aten(self, node: Node, op: KernelOp | BatchOp) -> None:
        """A kernel as a call of the ATen ops that it was made of."""
        args = map_arg(args_of(node), self._reference)
        slots = [self._slot(self._layout(value), "extern") for value in node.meta["val"]]
        target = op.eager if isinstance(op, KernelOp) else op
        layouts = {slot.number: slot.layout for slot in slots}
        numbers = tuple(layouts)
        step = ExternStep(node.name, target, args, {}, None, numbers, False, layouts)
        self.spec.steps.append(step)
        self.values[node] = tuple(TensorRef(s.number, s.layout, ZERO, True) for s in slots)

    def _kernel(self, node: Node, op: KernelOp) -> None:
        made = dict(zip(_results(op), node.meta["val"], strict=True))
        op, taken = self._in_place(node, op)
        given = iter(args_of(node))
        slots: list[int] = []
        offsets: list[Index] = []
        results: dict[str, TensorRef] = {}
        tensors: list[TensorRef] = []
        for buffer in op.nest.buffers:
            if buffer.role == "out":
                slot = self._slot(self._layout(made[buffer.name]), "arena")
                results[buffer.name] = TensorRef(slot.number, slot.layout, ZERO, True)
                slots.append(slot.number)
                offsets.append(ZERO)
                continue
            value = self.values[next(given)]
            if not isinstance(value, TensorRef):
                raise CannotCompile("a kernel on something that is no tensor")
            slots.append(value.slot)
            offsets.append(value.offset * value.layout.dtype.itemsize)
            tensors.append(value)
            if buffer.name in taken:
                name = taken[buffer.name]
                layout = self._layout(made[name])
                whole = layout == self.spec.slots[value.slot].layout
                results[name] = TensorRef(value.slot, layout, ZERO, whole)
        function = self._function(op, "call")
        self.spec.steps.append(
            KernelStep(op, function, tuple(slots), tuple(offsets), op.nest.sizes, tuple(tensors))
        )
        self.values[node] = tuple(results[name] for name in made)

    def _in_place(self, node: Node, op: KernelOp) -> tuple[KernelOp, dict[str, str]]:
        """The kernel writing over operands that die with it; the results by the operands' names."""
        if self.storages is None or self.hints is None:
            return op, {}
        refs = {source: self.values[source] for source in args_of(node)}
        starts = {
            source: self.spec.slots[ref.slot].layout
            for source, ref in refs.items()
            if isinstance(ref, TensorRef) and ref.offset == ZERO
        }
        results = [self._layout(value) for value in node.meta["val"]]
        return over_operands(node, op, results, starts, self.storages, self.hints)

    def _function(self, op: KernelOp, kind: str) -> int:
        """The number of the function for a kernel; equal kernels called in one way share one."""
        text = f"{kind} {print_kernel(replace(op.nest, name='_'))}"
        function = self.functions.get(text)
        if function is None:
            function = self.functions[text] = len(self.spec.kernels)
            self.spec.kernels.append(op)
        return function

    def _batch(self, node: Node, op: BatchOp) -> None:
        shared, columns = map_arg(args_of(node), self._reference)
        results = [self._layout(value) for value in node.meta["val"]]
        try:
            batch = Batch(op, shared, columns, results, self._slot, self._function)
        except CannotTabulate as reason:
            raise CannotCompile(f"{node.name}: {reason}") from None
        self.spec.steps += batch.steps
        self.values[node] = tuple(batch.results)

    def _product(self, node: Node) -> bool:
        """Emit a float32 matrix product for the library chosen; False to leave it to ATen."""
        if node.target is aten.mm.default:
            bias, operands = None, args_of(node)
        elif node.target is aten.addmm.default and not node.kwargs:
            bias, operands = self.values[args_of(node)[0]], args_of(node)[1:]
            layout = bias.layout
            if len(layout.shape) != 1 or layout.strides[0] != Index.of(1):
                return False
        else:
            return False
        left, right = (self.values[operand] for operand in operands)
        value = node.meta["val"]
        depth = operands[0].meta["val"].shape[1]
        product = Product(left, right, bias, *map(_hint, (value.shape[0], depth, value.shape[1])))
        found = gemm_steps(node.name, product, self._layout(value), self.gemm, self._slot)
        if found is None:
            return False
        steps, slot = found
        self.spec.steps += steps
        self.values[node] = TensorRef(slot, self.spec.slots[slot].layout, ZERO, True)
        return True

    def _extern(self, node: Node) -> None:
        if self._product(node):
            return
        target: Any = node.target
        schema = getattr(target, "_schema", None)
        if schema is not None and schema.is_mutable and target is not aten.copy_.default:
            raise CannotCompile(f"{target} writes into its input")
        value = node.meta.get("val")
        args, kwargs = map_arg((args_of(node), node.kwargs), self._reference)
        if counts_from_storage(target):
            target, args, kwargs = rebased(node, args)
        out: int | None = None
        results: list[int | None] = []
        single = isinstance(value, torch.Tensor)
        if target is aten.copy_.default:
            self.values[node] = self.values[args_of(node)[0]]
            step = ExternStep(node.name, target, args, kwargs, None, (), True, {})
            self.spec.steps.append(step)
            return
        sources = [n for n in node.all_input_nodes if isinstance(self.values[n], TensorRef)]
        values = [value] if single else list(value) if isinstance(value, (list, tuple)) else None
        if values is None:
            raise CannotCompile(f"{target} gives a {type(value).__name__}")
        refs: list[Any] = []
        layouts: dict[int, Layout] = {}
        for item in values:
            if not isinstance(item, torch.Tensor):
                results.append(None)
                refs.append(SizeRef(size_index(item)) if isinstance(item, int) else None)
                continue
            shared = next((n for n in sources if shares(item, n.meta["val"])), None)
            if is_wait(target):
                shared = sources[0]
            use_out = single and has_out_variant(target, item)
            slot = self._slot(self._layout(item), "arena" if use_out else "extern")
            if shared is not None:
                slot.view_of = self.values[shared].slot
            refs.append(TensorRef(slot.number, slot.layout, ZERO, True))
            layouts[slot.number] = slot.layout
            if use_out:
                out = slot.number
            results.append(slot.number)
        if out is not None:
            target = OUT_VARIANTS[target]
        self.spec.steps.append(
            ExternStep(node.name, target, args, kwargs, out, tuple(results), single, layouts)
        )
        self.values[node] = refs[0] if single else tuple(refs)

    def _reference(self, node: Node) -> Any:
        return self.values[node]


def _results(op: KernelOp) -> list[str]:
    """The names of the buffers that a kernel makes."""
    return [buffer.name for buffer in op.nest.buffers if buffer.role == "out"]


def _size_of_input(number: int, dim: int) -> Callable[[list[Any]], int]:
    return lambda args: int(args[number].shape[dim])


def _stride_of_input(number: int, dim: int) -> Callable[[list[Any]], int]:
    return lambda args: int(args[number].stride(dim))


def _input(number: int) -> Callable[[list[Any]], int]:
    return lambda args: int(args[number])


def _hint(size: int | torch.SymInt) -> int:
    """A size by example: what it was when the graph was traced."""
    if isinstance(size, int):
        return size
    hint = size.node.hint
    return 64 if hint is None else int(hint)
