"""Random torch functions: made from a seed, run several ways, compared, and made smaller.

A graph is source text, one op a line, over inputs that are described rather than stored. So a
failing graph prints as a program that anybody can run. While a graph grows, each op runs in eager:
what eager refuses is left out.

Values are *exact* or not. An exact value has the same bits however the compiler orders and
contracts the arithmetic (inputs, selections, casts, sums of small integers), and must be equal;
only exact values are compared, rounded or turned into integers. The others are held against the
same function in float64: their error may be a few times that of eager.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

NAMES = {
    "F32": torch.float32,
    "F64": torch.float64,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "B1": torch.bool,
}
BY_DTYPE = {dtype: name for name, dtype in NAMES.items()}
FLOATS = ("F32", "F64", "BF16", "F16")
EPS = {name: torch.finfo(NAMES[name]).eps for name in FLOATS}
# There is nothing wider to hold float64 against: its bound must cover sums of any order.
EPS["F64"] *= 1000
# Integers up to here, and so their sums and products up to here, are exact in the dtype.
WHOLE = {"F64": 2**40, "F32": 2**22, "F16": 2**10, "BF16": 2**7}
LAYOUTS = ("contiguous", "transposed", "sliced", "expanded", "offset")


@dataclass(frozen=True)
class Input:
    """How to make one input; `size_names` has a name of `Graph.sizes` or a number a dim."""

    name: str
    size_names: tuple[str, ...]
    dtype: str
    layout: str = "contiguous"
    values: str = "normal"
    seed: int = 0
    alias: str = ""
    """A view of another input, as an expression over its name, in place of values of its own."""


@dataclass(frozen=True)
class Op:
    """`name = text`; an op that writes in place has no name of its own."""

    name: str
    text: str
    reads: tuple[str, ...]
    exact: bool
    eps: float


@dataclass(frozen=True)
class Graph:
    """A function of `inputs` with one op a line."""

    seed: int
    sizes: tuple[tuple[str, int], ...]
    inputs: tuple[Input, ...]
    ops: tuple[Op, ...]
    outputs: tuple[str, ...]
    gradient: bool = False

    def source(self) -> str:
        """The text of the function `f`."""
        lines = [f"def f({', '.join(given.name for given in self.inputs)}):"]
        for op in self.ops:
            lines.append(f"    {op.name} = {op.text}" if op.name else f"    {op.text}")
        lines.append(f"    return ({', '.join(self.outputs)},)")
        return "\n".join(lines)

    def function(self, wide: bool = False) -> Callable[..., tuple[Tensor, ...]]:
        """`f` itself, or with every floating dtype named in it replaced by float64."""
        space: dict[str, Any] = {"torch": torch, "F": torch.nn.functional, **NAMES}
        if wide:
            space.update(dict.fromkeys(FLOATS, torch.float64))
        exec(compile(self.source(), f"<graph {self.seed}>", "exec"), space)
        return space["f"]

    def make_inputs(self, sizes: dict[str, int] | None = None, wide: bool = False) -> list[Tensor]:
        """Fresh inputs, the same at every call."""
        values = dict(self.sizes) if sizes is None else sizes
        made: dict[str, Tensor] = {}
        for given in self.inputs:
            if given.alias:
                made[given.name] = eval(given.alias, {"torch": torch}, dict(made))
                continue
            shape = [int(n) if n.isdigit() else values[n] for n in given.size_names]
            made[given.name] = make_tensor(
                shape, NAMES[given.dtype], given.layout, given.values, given.seed, wide
            )
        leaves = list(made.values())
        if self.gradient:
            for tensor in leaves:
                if tensor.is_floating_point():
                    tensor.requires_grad_(True)
        return leaves

    def properties(self, name: str) -> tuple[bool, float]:
        """(exact, worst rounding of what it was computed with) of a value."""
        for op in reversed(self.ops):
            if op.name == name:
                return op.exact, op.eps
        given = next(i for i in self.inputs if i.name == name)
        return True, EPS.get(given.dtype, EPS["F64"])


def make_tensor(
    shape: list[int], dtype: torch.dtype, layout: str, values: str, seed: int, wide: bool = False
) -> Tensor:
    """A tensor of any strides; `values` is normal, whole (small integers) or special (NaN, inf)."""
    random_numbers = torch.Generator().manual_seed(seed)
    count = 1
    for size in shape:
        count *= size
    if dtype.is_floating_point:
        flat = torch.randn(count, generator=random_numbers, dtype=torch.float64)
        if values == "whole":
            flat = (flat * 2).round()
        if values == "special" and count:
            for value in (float("nan"), float("inf"), -float("inf"), -0.0, 0.0):
                flat[int(torch.randint(count, (1,), generator=random_numbers))] = value
    elif dtype == torch.bool:
        flat = torch.randint(0, 2, (count,), generator=random_numbers)
    else:
        low = 0 if dtype == torch.uint8 else -9
        flat = torch.randint(low, 10, (count,), generator=random_numbers)
    dense = flat.to(dtype).reshape(shape)
    if wide and dtype.is_floating_point:
        dense = dense.double()
    return with_layout(dense, layout)


def with_layout(dense: Tensor, layout: str) -> Tensor:
    """The same values with other strides or another storage offset."""
    rank = dense.dim()
    if layout == "transposed" and rank > 1:
        return dense.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "sliced" and rank:
        room = dense.new_zeros([*dense.shape[:-1], 2 * dense.shape[-1] + 3])
        room[..., 2 : 2 + 2 * dense.shape[-1] : 2] = dense
        return room[..., 2 : 2 + 2 * dense.shape[-1] : 2]
    if layout == "expanded" and rank and 0 not in dense.shape:
        return dense.narrow(0, 0, 1).clone().expand(dense.shape)
    if layout == "offset":
        room = dense.new_zeros(dense.numel() + 7)
        room[5 : 5 + dense.numel()] = dense.reshape(-1)
        return room[5 : 5 + dense.numel()].view(dense.shape)
    return dense.contiguous()


# -- growing a graph ------------------------------------------------------------------------------


@dataclass
class Value:
    """A value of the graph while it grows."""

    name: str
    tensor: Tensor
    exact: bool
    eps: float

    @property
    def dtype(self) -> str:
        return BY_DTYPE[self.tensor.dtype]

    @property
    def is_float(self) -> bool:
        return self.tensor.is_floating_point()

    @property
    def rank(self) -> int:
        return self.tensor.dim()


Maker = Callable[["Growth"], "tuple[str, list[Value], str] | None"]
MAKERS: list[tuple[Maker, int]] = []


def maker(weight: int = 4) -> Callable[[Maker], Maker]:
    """Register a way to write one op: it returns (text, values read, kind of exactness) or None.

    Kinds: "select" keeps exactness, "ring" keeps it for small whole numbers, "sum" likewise with
    the sum of magnitudes bounded, "same" needs exact operands and gives exact results, "real"
    gives inexact ones.
    """

    def register(function: Maker) -> Maker:
        MAKERS.append((function, weight))
        return function

    return register


class Growth:
    """A graph in the making. Attribute `r` is the only source of chance."""

    def __init__(self, seed: int, *, ops: int, gradient: bool = False, dynamic: bool = False):
        self.r = random.Random(seed)
        self.seed = seed
        self.gradient = gradient
        self.dynamic = dynamic
        self.count = ops
        self.sizes: dict[str, int] = {}
        self.inputs: list[Input] = []
        self.ops: list[Op] = []
        self.values: list[Value] = []
        self.space: dict[str, Any] = {"torch": torch, "F": torch.nn.functional, **NAMES}

    def grow(self) -> Graph:
        """The graph."""
        self._pick_sizes()
        self._pick_inputs()
        tries = 0
        while len(self.ops) < self.count and tries < 20 * self.count:
            tries += 1
            self._try_op()
        return Graph(
            self.seed,
            tuple(self.sizes.items()),
            tuple(self.inputs),
            tuple(self.ops),
            self._pick_outputs(),
            self.gradient,
        )

    # -- what ops are made from -----------------------------------------------------------------

    def pick(self, test: Callable[[Value], bool] = lambda value: True) -> Value | None:
        """A value that passes; later ones more often, so that graphs grow deep."""
        found = [value for value in self.values if test(value)]
        if not found:
            return None
        return found[max(self.r.randrange(len(found)) for _ in range(self.r.choice((1, 1, 2))))]

    def partner(self, other: Value, test: Callable[[Value], bool]) -> Value | None:
        """A value that broadcasts with `other`."""

        def fits(value: Value) -> bool:
            if not test(value):
                return False
            try:
                shape = torch.broadcast_shapes(value.tensor.shape, other.tensor.shape)
            except RuntimeError:
                return False
            return len(shape) <= 4 and shape.numel() <= 40000

        return self.pick(fits)

    def dim(self, value: Value) -> int | None:
        """A dim of a value, counted from either side."""
        if not value.rank:
            return None
        dim = self.r.randrange(value.rank)
        return dim - value.rank if self.r.random() < 0.5 else dim

    def size(self, value: Value, dim: int) -> str:
        """The size of a dim as text: symbolic in dynamic graphs."""
        return f"{value.name}.shape[{dim}]" if self.dynamic else str(value.tensor.shape[dim])

    # -- steps ----------------------------------------------------------------------------------

    def _pick_sizes(self) -> None:
        r = self.r
        usual = (2, 3, 5, 7, 8, 15, 16, 17, 31, 33, 48, 64, 100)
        for name in ("A", "B", "C"):
            odd = r.random()
            self.sizes[name] = 0 if odd < 0.03 else 1 if odd < 0.09 else r.choice(usual)
        if r.random() < 0.1:
            self.sizes["C"] = r.choice((129, 300, 1000))

    def _pick_inputs(self) -> None:
        r = self.r
        quality = r.choice(("normal", "whole", "whole", "special"))
        main = r.choice(("F32", "F32", "F32", "F32", "BF16", "F64", "F16"))
        if self.gradient:
            quality, main = "normal", r.choice(("F32", "F32", "BF16"))
        for number in range(r.randint(2, 4)):
            name = f"x{number}"
            if self.values and not self.gradient and r.random() < 0.12:
                self._alias_input(name)
                continue
            rank = r.choice((1, 2, 2, 2, 3, 3)) if number else r.choice((2, 2, 3))
            shape = [r.choice("ABC") for _ in range(rank)] if rank < 3 else ["A", "B", "C"]
            if rank == 2 and r.random() < 0.7:
                shape = ["B", "C"]
            shape = [size if r.random() < 0.88 else "1" for size in shape]
            other = () if self.gradient else ("I64", "I32", "B1", "U8", "I64", "F64", "BF16")
            dtype = main if r.random() < 0.65 or number == 0 else r.choice((*other, "F32"))
            layout = r.choice(LAYOUTS) if r.random() < 0.6 else "contiguous"
            seed = r.randrange(10**6)
            self._add_input(Input(name, tuple(shape), dtype, layout, quality, seed))

    def _alias_input(self, name: str) -> None:
        base = self.r.choice(self.values)
        views = [base.name]
        if base.rank:
            views += [f"{base.name}.narrow(0, 0, {base.name}.shape[0])", f"{base.name}.mT"]
            views += [f"{base.name}[..., : max(1, {base.name}.shape[-1] // 2)]"]
        text = self.r.choice(views[:2] if base.rank < 2 else views)
        self._add_input(Input(name, (), base.dtype, alias=text))

    def _add_input(self, given: Input) -> None:
        self.inputs.append(given)
        graph = Graph(self.seed, tuple(self.sizes.items()), tuple(self.inputs), (), ())
        tensor = graph.make_inputs()[-1]
        self.values.append(Value(given.name, tensor, True, EPS.get(given.dtype, EPS["F64"])))
        self.space[given.name] = tensor

    def _try_op(self) -> None:
        make = self.r.choices(MAKERS_ONLY, WEIGHTS)[0]
        written = make(self)
        if written is None:
            return
        text, reads, kind = written
        try:
            result = eval(text, self.space)
        except (RuntimeError, IndexError, ValueError, ZeroDivisionError, TypeError):
            return
        if not isinstance(result, Tensor) or result.dtype not in BY_DTYPE or result.dim() > 4:
            return
        if result.numel() > 40000 or (result.numel() == 0 and self.r.random() < 0.5):
            return
        exact = all(value.exact for value in reads) and _stays_exact(kind, result, reads)
        dtype = BY_DTYPE[result.dtype]
        if not exact and dtype not in FLOATS:
            return
        eps = max([EPS.get(dtype, 0.0), *(value.eps for value in reads)])
        name = f"v{len(self.ops)}"
        self.ops.append(Op(name, text, tuple(value.name for value in reads), exact, eps))
        self.values.append(Value(name, result, exact, eps))
        self.space[name] = result

    def _pick_outputs(self) -> tuple[str, ...]:
        made = [op.name for op in self.ops]
        read = {name for op in self.ops for name in op.reads}
        last = [name for name in made if name not in read]
        some = [name for name in made if name in read and self.r.random() < 0.2]
        outputs = last[:6] + some[:2]
        if self.gradient:
            floats = {value.name for value in self.values if value.is_float}
            outputs = [name for name in outputs if name in floats]
        return tuple(outputs) or (made[-1] if made else "x0",)


def _stays_exact(kind: str, result: Tensor, reads: list[Value]) -> bool:
    if kind in ("select", "same"):
        return True
    if kind == "real":
        return False
    if not result.is_floating_point():
        return True
    limit = WHOLE[BY_DTYPE[result.dtype]]
    for tensor in [result, *(value.tensor for value in reads)]:
        if tensor.is_floating_point():
            usual = tensor.double()
            if not bool((usual == usual.round()).all()):  # neither fractions nor NaN
                return False
            limit = min(limit, WHOLE[BY_DTYPE[tensor.dtype]])
    size = max(float(value.tensor.double().abs().sum()) for value in reads)
    if kind == "sum":
        return size <= limit
    return all(
        tensor.numel() == 0 or float(tensor.double().abs().max()) <= limit
        for tensor in [result, *(value.tensor for value in reads)]
    )


def _exact(value: Value) -> bool:
    return value.exact


def _float(value: Value) -> bool:
    return value.is_float


def _whole(value: Value) -> bool:
    return not value.is_float and value.dtype != "B1"


def _number(value: Value) -> bool:
    return value.dtype != "B1"


@maker(14)
def _unary_real(g: Growth) -> Any:
    x = g.pick(_float)
    if x is None:
        return None
    smooth = ("exp(-{}.abs())", "tanh({})", "sigmoid({})", "sin({})", "cos({})", "erf({})")
    smooth += ("log1p({}.abs())", "sqrt({}.abs() + 1)", "rsqrt({}.abs() + 1)", "square({})")
    smooth += ("reciprocal({}.abs() + 1)", "exp({}.clamp(-20, 20))", "atan({})", "expm1(-{}.abs())")
    near = ("gelu({})", "silu({})", "softplus({})", "gelu({}, approximate='tanh')", "elu({})")
    near += ("mish({})", "logsigmoid({})", "hardswish({})", "leaky_relu({})")
    if g.r.random() < 0.3:
        return f"F.{g.r.choice(near)}".format(x.name), [x], "real"
    return f"torch.{g.r.choice(smooth)}".format(x.name), [x], "real"


@maker(6)
def _unary_exact(g: Growth) -> Any:
    x = g.pick(_number)
    if x is None or (x.dtype == "U8" and g.r.random() < 0.5):
        return None
    if g.gradient:
        return f"torch.neg({x.name})", [x], "select"
    ops = ("neg", "abs", "relu", "square", "positive")
    op = g.r.choice(ops)
    return f"torch.{op}({x.name})", [x], "ring" if op == "square" else "select"


@maker(3)
def _rounding(g: Growth) -> Any:
    x = None if g.gradient else g.pick(lambda v: v.exact and v.is_float)
    if x is None:
        return None
    op = g.r.choice(("floor", "ceil", "round", "trunc", "sign", "isnan", "isinf"))
    return f"torch.{op}({x.name})", [x], "same"


@maker(16)
def _binary(g: Growth) -> Any:
    x = g.pick(_number if not g.gradient else _float)
    y = None if x is None else g.partner(x, _number if not g.gradient else _float)
    if x is None or y is None:
        return None
    op = g.r.choice(("add", "sub", "mul", "add", "mul", "maximum", "minimum"))
    if g.gradient:
        op = g.r.choice(("add", "sub", "mul"))
    kind = "ring" if op in ("add", "sub", "mul") else "select"
    if op in ("add", "sub") and g.r.random() < 0.15:
        return f"torch.{op}({x.name}, {y.name}, alpha=2)", [x, y], "ring"
    return f"torch.{op}({x.name}, {y.name})", [x, y], kind


@maker(6)
def _binary_real(g: Growth) -> Any:
    x = g.pick(_float)
    y = None if x is None else g.partner(x, _float)
    if x is None or y is None:
        return None
    text = g.r.choice(
        (
            "{x} / ({y}.abs() + 1)",
            "torch.atan2({x}, {y}.abs() + 1)",
            "torch.pow({x}.abs() + 0.5, {y}.clamp(-2, 2))",
            "torch.hypot({x}, {y}.abs() + 1)",
            "torch.lerp({x}, {x} * 2, 0.25)",
            "torch.addcmul({x}, {x}, {x}, value=0.5)",
            "torch.logaddexp({x}, {y})",
        )
    )
    return text.format(x=x.name, y=y.name), [x, y], "real"


@maker(8)
def _scalar(g: Growth) -> Any:
    x = g.pick(_number)
    if x is None:
        return None
    text = g.r.choice(("{} + 1", "3 - {}", "{} * 2", "{} - 2", "{} * -1", "{} * True"))
    if x.is_float and g.r.random() < 0.4:
        return f"{x.name} * {g.r.choice((0.1, 1.7, -0.3))}", [x], "real"
    return text.format(x.name), [x], "ring"


@maker(4)
def _power(g: Growth) -> Any:
    x = g.pick(_number)
    if x is None:
        return None
    exponent = g.r.choice((2, 3, 2.0) if x.is_float else (2, 3))
    return f"{x.name} ** {exponent}", [x], "ring" if exponent == 2 else "real"


@maker(6)
def _compare(g: Growth) -> Any:
    x = g.pick(_exact)
    y = None if x is None else g.partner(x, _exact)
    if x is None or y is None or g.gradient:
        return None
    op = g.r.choice(("lt", "le", "gt", "ge", "eq", "ne"))
    if g.r.random() < 0.3:
        return f"torch.{op}({x.name}, {g.r.choice((0, 1, 0.5))})", [x], "same"
    return f"torch.{op}({x.name}, {y.name})", [x, y], "same"


@maker(3)
def _logic(g: Growth) -> Any:
    x = g.pick(lambda v: v.dtype == "B1")
    y = None if x is None else g.partner(x, lambda v: v.dtype == "B1")
    if x is None or y is None:
        return None
    text = g.r.choice(("{x} & {y}", "{x} | {y}", "{x} ^ {y}", "~{x}", "torch.logical_not({x})"))
    return text.format(x=x.name, y=y.name), [x, y], "same"


@maker(3)
def _bits(g: Growth) -> Any:
    x = g.pick(_whole)
    y = None if x is None else g.partner(x, _whole)
    if x is None or y is None:
        return None
    text = g.r.choice(
        (
            "{x} & {y}",
            "{x} | {y}",
            "{x} ^ {y}",
            "~{x}",
            "{x} // ({y}.abs() % 7 + 1)",
            "{x} % ({y}.abs() % 7 + 1)",
            "torch.div({x}, {y}.abs() % 7 + 1, rounding_mode='trunc')",
            "torch.fmod({x}, {y}.abs() % 7 + 1)",
            "{x} << 2",
            "{x} >> 1",
        )
    )
    return text.format(x=x.name, y=y.name), [x, y], "same"


@maker(3)
def _divide_whole(g: Growth) -> Any:
    x = None if g.gradient else g.pick(lambda v: v.exact and v.is_float)
    if x is None:
        return None
    text = g.r.choice(("{} // 2", "torch.remainder({}, 3)", "torch.fmod({}, 2)"))
    return text.format(x.name), [x], "same"


@maker(6)
def _where(g: Growth) -> Any:
    c = g.pick(lambda v: v.dtype == "B1")
    x = None if c is None else g.partner(c, _number)
    y = None if x is None else g.partner(x, lambda v: v.dtype == x.dtype)
    if c is None or x is None or y is None:
        return None
    text = g.r.choice(
        (
            "torch.where({c}, {x}, {y})",
            "torch.where({c}, {x}, 0)",
            "torch.where({c}, 1, {x})",
            "{x}.masked_fill({c}, 2)",
        )
    )
    return text.format(c=c.name, x=x.name, y=y.name), [c, x, y], "select"


@maker(5)
def _clamp(g: Growth) -> Any:
    x = g.pick(_number)
    if x is None or g.gradient:
        return None
    text = g.r.choice(("{}.clamp(-1, 3)", "{}.clamp(min=0)", "{}.clamp(max=2)", "F.hardtanh({})"))
    if not x.is_float:
        text = text.replace("F.hardtanh({})", "{}.clamp(1, 5)")
    return text.format(x.name), [x], "select"


@maker(8)
def _cast(g: Growth) -> Any:
    x = g.pick()
    if x is None:
        return None
    to = g.r.choice(("F32", "F32", "BF16", "F16", "F64", "I64", "I32", "U8", "B1", "I16", "I8"))
    if g.gradient:
        to = g.r.choice(("F32", "BF16"))
    if to in FLOATS or not x.is_float:
        return f"{x.name}.to({to})", [x], "select"
    if not x.exact:
        return None
    safe = f"{x.name}.nan_to_num(0, 9, 9).clamp(0, 100)" if to != "B1" else x.name
    return f"{safe}.to({to})", [x], "same"


@maker(18)
def _reduce(g: Growth) -> Any:
    x = g.pick(lambda v: v.rank > 0)
    if x is None:
        return None
    dims = sorted(g.r.sample(range(x.rank), g.r.randint(1, x.rank)))
    if g.r.random() < 0.4:
        dims = [x.rank - 1]
    if g.r.random() < 0.3:
        dims = [dim - x.rank for dim in dims]
    keep = g.r.random() < 0.5
    one = g.r.choice(dims)
    many = f"{dims}, keepdim={keep}"
    if not x.is_float:
        if x.dtype == "B1":
            text = g.r.choice(
                (f"any({one}, keepdim={keep})", f"all({one})", f"sum({many})", "any()")
            )
        else:
            text = g.r.choice(
                (f"sum({many})", f"amax({many})", f"amin({many})", f"argmax({one})", "sum()")
                + (f"max({one})[0]", f"any({one})", f"prod({one})")
            )
        return f"{x.name}.{text}", [x], "same"
    choices: list[tuple[str, str]] = [
        (f"sum({many})", "sum"),
        (f"sum({many})", "sum"),
        (f"mean({many})", "real"),
        (f"var({many})", "real"),
        (f"var({many}, correction=0)", "real"),
        (f"logsumexp({many})", "real"),
        ("sum()", "sum"),
        ("mean()", "real"),
        (f"sum({many}, dtype=F32)", "sum"),
        # Not std itself: near 0, of constant rows, its root makes much of little.
        (f"var({many}).add(0.1).sqrt()", "real"),
    ]
    if not g.gradient:
        choices += [(f"amax({many})", "select"), (f"amin({many})", "select")]
        choices += [(f"max({one}, keepdim={keep})[0]", "select"), ("amax()", "select")]
        choices += [(f"prod({one})", "real")]
        if x.exact:
            choices += [(f"argmax({one}, keepdim={keep})", "same"), ("argmin()", "same")]
            choices += [(f"min({one})[1]", "same"), ("any()", "same"), (f"all({one})", "same")]
    text, kind = g.r.choice(choices)
    return f"{x.name}.{text}", [x], kind


@maker(8)
def _row_pattern(g: Growth) -> Any:
    x = g.pick(lambda v: v.is_float and v.rank > 0)
    if x is None:
        return None
    dim = g.dim(x)
    text = g.r.choice(
        (
            f"F.softmax({x.name}, {dim})",
            f"F.log_softmax({x.name}, {dim})",
            f"F.layer_norm({x.name}, ({g.size(x, -1)},))",
            f"{x.name} - {x.name}.mean({dim}, keepdim=True)",
            f"{x.name} * torch.rsqrt({x.name}.square().mean(-1, keepdim=True) + 1e-5)",
            f"{x.name} / ({x.name}.abs().sum({dim}, keepdim=True) + 1)",
        )
    )
    return text, [x], "real"


@maker(12)
def _view(g: Growth) -> Any:
    x = g.pick()
    if x is None:
        return None
    n, rank = x.name, x.rank
    choices = [f"{n}.unsqueeze({g.r.randint(-1, rank)})", f"{n}.reshape(-1)", f"{n}.clone()"]
    if rank:
        dim = g.dim(x)
        choices += [f"{n}.squeeze()", f"{n}.flatten()", f"{n}[{'...' if rank else ''}, None]"]
        if x.tensor.shape[dim]:
            choices += [f"{n}.select({dim}, {g.r.randrange(-1, 1)})"]
    if rank > 1:
        order = list(range(rank))
        g.r.shuffle(order)
        a, b = g.r.sample(range(rank), 2)
        choices += [f"{n}.permute({order})", f"{n}.transpose({a}, {b})", f"{n}.diagonal()"]
        choices += [f"{n}.flatten(0, 1)", f"{n}.mT.reshape(-1)", f"{n}.movedim(0, -1)"]
        choices += [f"{n}.permute({order}).reshape(-1, {g.size(x, order[-1])})"]
    return g.r.choice(choices), [x], "select"


@maker(4)
def _expand(g: Growth) -> Any:
    x = g.pick(lambda v: v.rank < 4)
    other = None if x is None else g.partner(x, lambda v: v.rank >= x.rank)
    if x is None or other is None:
        return None
    return f"{x.name}.expand_as({other.name})", [x], "select"


@maker(10)
def _slice(g: Growth) -> Any:
    x = g.pick(lambda v: v.rank > 0)
    if x is None:
        return None
    n, dim = x.name, g.dim(x)
    comma = ":, " * (dim % x.rank)
    text = g.r.choice(
        (
            f"{n}[{comma}1:]",
            f"{n}[{comma}:-1]",
            f"{n}[{comma}::2]",
            f"{n}[{comma}1::3]",
            f"{n}[{comma}-2:]",
            f"{n}.chunk(2, {dim})[-1]",
            f"{n}.flip({dim})",
            f"{n}.roll({g.r.choice((1, -1, 5))}, {dim})",
            f"F.pad({n}, ({g.r.randint(0, 2)}, {g.r.randint(-1, 3)}))",
            f"torch.cat([{n}, {n}], {dim})",
            f"torch.cat([{n}[{comma}1:], {n}[{comma}:1]], {dim})",
            f"torch.stack([{n}, {n}], {dim})",
            f"{n}.narrow({dim}, 0, 1)",
            f"{n}.repeat_interleave(2, {dim})",
            f"torch.tile({n}, (2,))",
            f"{n}.unbind({dim})[0]",
        )
    )
    if x.rank == 1 and g.r.random() < 0.2:
        text = f"F.pad({n}, (2, 1), value=3)"
    return text, [x], "select"


@maker(5)
def _cat(g: Growth) -> Any:
    x = g.pick(lambda v: v.rank > 0)
    if x is None:
        return None
    dim = g.dim(x)

    def fits(value: Value) -> bool:
        if value.rank != x.rank:
            return False
        pairs = enumerate(zip(value.tensor.shape, x.tensor.shape, strict=True))
        return all(a == b or at == dim % x.rank for at, (a, b) in pairs)

    y = g.pick(fits)
    if y is None or y is x:
        return None
    return f"torch.cat([{x.name}, {y.name}], {dim})", [x, y], "select"


@maker(6)
def _gather(g: Growth) -> Any:
    x = g.pick(lambda v: v.rank > 0)
    i = g.pick(lambda v: v.dtype in ("I64", "I32") and 0 < v.rank < 3)
    if x is None or i is None:
        return None
    dim = g.dim(x)
    size = g.size(x, dim)
    index = f"({i.name} % max({size}, 1))" if not g.dynamic else f"({i.name} % {size})"
    flat = f"{index}.reshape(-1)"
    choices = [f"{x.name}.index_select({dim}, {flat})"]
    if x.rank == 2:
        first = f"({i.name} % {g.size(x, 0)})"
        choices += [f"{x.name}[{first}]"]
        if x.is_float:
            choices += [f"F.embedding({first}, {x.name})"]
        choices += [f"{x.name}[:, ({i.name} % {g.size(x, 1)}).reshape(-1)]"]
    if i.dtype == "I64" and i.rank == x.rank:
        choices += [f"{x.name}.gather({dim}, {index})"]
    return g.r.choice(choices), [x, i], "select"


@maker(4)
def _create(g: Growth) -> Any:
    x = g.pick(lambda v: v.rank > 0)
    if x is None:
        return None
    choices = [f"torch.zeros_like({x.name})", f"torch.ones_like({x.name})"]
    if not g.gradient:
        choices += [f"torch.arange({g.size(x, -1)})", f"torch.full_like({x.name}, 3)"]
    if x.rank > 1:
        choices += [f"torch.tril({x.name})", f"torch.triu({x.name}, 1)"]
    return g.r.choice(choices), [x], "select"


@maker(2)
def _extern(g: Growth) -> Any:
    x = g.pick(lambda v: v.is_float and v.rank == 2 and v.dtype in ("F32", "F64"))
    if x is None:
        return None
    if g.r.random() < 0.6 or g.gradient:
        return f"{x.name} @ {x.name}.mT", [x], "real"
    if not x.exact:
        return f"{x.name}.cumsum(0)", [x], "real"
    return f"{x.name}.sort(-1)[0]", [x], "same"


MAKERS_ONLY = [make for make, _ in MAKERS]
WEIGHTS = [weight for _, weight in MAKERS]


def random_graph(seed: int) -> Graph:
    """The graph of a seed."""
    r = random.Random(seed)
    kind = r.random()
    ops = r.randint(3, 14)
    graph = Growth(seed, ops=ops, gradient=kind < 0.25).grow()
    return graph if kind < 0.85 or graph.gradient else _with_write(graph, r)


def random_dynamic_graph(seed: int) -> Graph:
    """The graph of a seed, written so that its sizes may vary."""
    r = random.Random(seed)
    return Growth(seed, ops=r.randint(3, 10), gradient=r.random() < 0.2, dynamic=True).grow()


def _with_write(graph: Graph, r: random.Random) -> Graph:
    """The graph with a write into one of its inputs at the end."""
    target = graph.inputs[0]
    if target.layout == "expanded" or not target.size_names:
        return graph
    ops = list(graph.ops)
    text = r.choice(("{}.neg_()", "{}.copy_({} + {})", "{}[..., :1].zero_()"))
    ops.append(Op("", text.format(*[target.name] * 3), (target.name,), True, 0.0))
    return replace(graph, ops=tuple(ops))


def together(graphs: list[Graph]) -> Graph:
    """Graphs side by side in one function: one compile for all."""
    renamed = [_with_suffix(graph, f"_{number}") for number, graph in enumerate(graphs)]

    def joined(attribute: str) -> tuple[Any, ...]:
        return tuple(item for graph in renamed for item in getattr(graph, attribute))

    return Graph(
        graphs[0].seed,
        joined("sizes"),
        joined("inputs"),
        joined("ops"),
        joined("outputs"),
        graphs[0].gradient,
    )


_NAME = re.compile(r"\b([xv]\d+)\b")


def _with_suffix(graph: Graph, suffix: str) -> Graph:
    def name(text: str) -> str:
        return _NAME.sub(rf"\1{suffix}", text)

    inputs = tuple(
        replace(
            given,
            name=name(given.name),
            size_names=tuple(n if n.isdigit() else n + suffix for n in given.size_names),
            alias=name(given.alias),
        )
        for given in graph.inputs
    )
    ops = tuple(
        replace(
            op, name=name(op.name), text=name(op.text), reads=tuple(name(read) for read in op.reads)
        )
        for op in graph.ops
    )
    sizes = tuple((size + suffix, value) for size, value in graph.sizes)
    outputs = tuple(name(output) for output in graph.outputs)
    return replace(graph, sizes=sizes, inputs=inputs, ops=ops, outputs=outputs)


# -- comparing ------------------------------------------------------------------------------------


def run(
    function: Callable[..., Any], inputs: list[Tensor], graph: Graph
) -> tuple[list[Tensor], list[Tensor | None]]:
    """(outputs then inputs after the call, gradients of the inputs)."""
    outputs = list(function(*inputs))
    gradients: list[Tensor | None] = []
    if graph.gradient:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(graph.seed)
            total = sum(
                (out.double() * torch.randn(out.shape, dtype=torch.float64)).sum()
                for out in outputs
                if out.requires_grad
            )
        leaves = [tensor for tensor in inputs if tensor.requires_grad]
        if isinstance(total, Tensor) and leaves:
            gradients = list(torch.autograd.grad(total, leaves, allow_unused=True))
    return [*outputs, *(tensor.detach() for tensor in inputs)], gradients


def difference(
    found: Tensor, eager: Tensor, exact: bool, eps: float, wide: Tensor | None
) -> str | None:
    """What is wrong with `found`, or None."""
    if found.shape != eager.shape or found.dtype != eager.dtype:
        return f"is {found.dtype}{list(found.shape)}, not {eager.dtype}{list(eager.shape)}"
    if found.numel() == 0:
        return None
    if exact or not eager.is_floating_point():
        if not torch.equal(found.isnan(), eager.isnan()):
            return "has NaN elsewhere"
        if not torch.equal(found.nan_to_num(), eager.nan_to_num()):
            return f"differs: {_worst(found, eager)}"
        return None
    a, b = found.detach().double(), eager.detach().double()
    w = b if wide is None or wide.shape != b.shape else wide.detach().double()
    fine = b.isfinite() & w.isfinite()
    error = float((b - w)[fine].abs().max()) if bool(fine.any()) else 0.0
    # Inputs are about 1, so what cancels leaves errors of about eps.
    allowed = 4 * error + 32 * eps * (w.abs() + 1)
    near = (a - w).abs() <= allowed
    near |= (a - b).abs() <= allowed
    near |= (a == b) | (a == w) | (a.isnan() & (b.isnan() | w.isnan()))
    if bool(near.all()):
        return None
    bad = ~near
    return (
        f"differs at {int(bad.sum())} of {bad.numel()} places, first {bad.nonzero()[0].tolist()}: "
        f"{a[bad][0].item()!r}, eager {b[bad][0].item()!r}, float64 {w[bad][0].item()!r}"
    )


def _worst(a: Tensor, b: Tensor) -> str:
    bad = (a != b) & ~(a.isnan() & b.isnan())
    place = bad.nonzero()[0].tolist()
    return (
        f"{int(bad.sum())} of {bad.numel()} places, first {place}: "
        f"{a[bad].flatten()[0].item()!r}, eager {b[bad].flatten()[0].item()!r}"
    )


# -- shrinking ------------------------------------------------------------------------------------


def without_dead(graph: Graph) -> Graph:
    """The graph without ops and inputs that no output needs."""
    needed = set(graph.outputs)
    kept: list[Op] = []
    for op in reversed(graph.ops):
        if not op.name or op.name in needed:
            kept.append(op)
            needed |= set(op.reads)
    text = " ".join(given.alias for given in graph.inputs if given.name in needed)
    inputs = [i for i in graph.inputs if i.name in needed or i.name in text]
    return replace(graph, ops=tuple(reversed(kept)), inputs=tuple(inputs or graph.inputs[:1]))


def smaller(graph: Graph) -> Iterator[Graph]:
    """Graphs one step smaller, the boldest steps first."""
    for output in graph.outputs:
        if len(graph.outputs) > 1:
            yield replace(graph, outputs=(output,))
    for output in graph.outputs:
        rest = tuple(name for name in graph.outputs if name != output)
        if rest:
            yield replace(graph, outputs=rest)
    for number, op in enumerate(graph.ops):
        rest = graph.ops[:number] + graph.ops[number + 1 :]
        if not op.name:
            yield replace(graph, ops=rest)
            continue
        for name in op.reads:
            yield _renamed(replace(graph, ops=rest), op.name, name)
        made = _as_input(graph, number)
        if made is not None:
            yield made
    if graph.gradient:
        yield replace(graph, gradient=False)
    for number, given in enumerate(graph.inputs):
        for change in ({"layout": "contiguous"}, {"values": "normal"}):
            changed = replace(given, **change)
            if changed != given and not given.alias:
                inputs = (*graph.inputs[:number], changed, *graph.inputs[number + 1 :])
                yield replace(graph, inputs=inputs)
    for name, size in graph.sizes:
        for less in (2, 3, 16, 17):
            if less < size:
                yield replace(
                    graph, sizes=tuple((n, less if n == name else s) for n, s in graph.sizes)
                )


def _renamed(graph: Graph, old: str, new: str) -> Graph:
    word = re.compile(rf"\b{old}\b")
    ops = tuple(
        replace(
            op, text=word.sub(new, op.text), reads=tuple(new if r == old else r for r in op.reads)
        )
        for op in graph.ops
    )
    outputs = tuple(dict.fromkeys(new if name == old else name for name in graph.outputs))
    return replace(graph, ops=ops, outputs=outputs)


def _as_input(graph: Graph, number: int) -> Graph | None:
    """The graph with the result of one op taken as an input."""
    op = graph.ops[number]
    space: dict[str, Any] = {"torch": torch, "F": torch.nn.functional, **NAMES}
    names = [given.name for given in graph.inputs]
    if f"y{op.name[1:]}" in names:
        return None
    try:
        space.update(zip(names, graph.make_inputs(), strict=True))
        for earlier in graph.ops[: number + 1]:
            if earlier.name:
                space[earlier.name] = eval(earlier.text, space)
    except Exception:
        return None
    value = space[op.name]
    shape = tuple(str(size) for size in value.shape)
    values = "whole" if op.exact else "normal"
    given = Input(f"y{op.name[1:]}", shape, BY_DTYPE[value.dtype], "contiguous", values, 1)
    rest = replace(graph, ops=graph.ops[:number] + graph.ops[number + 1 :])
    rest = _renamed(rest, op.name, given.name)
    return replace(rest, inputs=(*graph.inputs, given))


def shrink(graph: Graph, fails: Callable[[Graph], bool], attempts: int = 150) -> Graph:
    """A smaller graph that still fails."""
    best = without_dead(graph) if fails(without_dead(graph)) else graph
    progress = True
    while progress and attempts > 0:
        progress = False
        for candidate in smaller(best):
            candidate = without_dead(candidate)
            if candidate == best:
                continue
            attempts -= 1
            if attempts <= 0:
                break
            if fails(candidate):
                best, progress = candidate, True
                break
    return best


def stand_alone(graph: Graph, dynamic: bool, problem: str) -> str:
    """A program that shows the failure."""
    lines = [
        f"# seed {graph.seed}: {problem}",
        "import torch",
        "import torch.nn.functional as F",
        "",
        *(f"{name} = {dtype}" for name, dtype in NAMES.items() if name in graph.source()),
        "",
        graph.source(),
        "",
        "def fresh():",
    ]
    made = graph.make_inputs()
    for given, tensor in zip(graph.inputs, made, strict=True):
        if given.alias:
            lines.append(f"    {given.name} = {given.alias}")
            continue
        base = tensor.detach()
        if base.numel() <= 48:
            data = f"torch.tensor({base.tolist()}, dtype={base.dtype})"
        elif base.is_floating_point():
            data = f"torch.randn({list(base.shape)}).to({base.dtype})  # values: {given.values}"
        else:
            data = f"torch.randint(0, 2, {list(base.shape)}).to({base.dtype})"
        data = data.replace("nan", "float('nan')").replace("inf", "float('inf')")
        lines.append(f"    {given.name} = {data}")
        if given.layout != "contiguous":
            lines.append(
                f"    # {given.layout}: strides {base.stride()}, offset {base.storage_offset()}"
            )
            lines.append(
                f"    {given.name} = torch.empty_strided({tuple(base.shape)}, {base.stride()},"
                f" dtype={base.dtype}).copy_({given.name})"
            )
        if graph.gradient and tensor.is_floating_point():
            lines.append(f"    {given.name}.requires_grad_(True)")
    lines += [
        f"    return [{', '.join(given.name for given in graph.inputs)}]",
        "",
        "torch.manual_seed(0)",
        "inputs = fresh()",
        f"compiled = torch.compile(f, backend='deepep', dynamic={dynamic})",
        "expected, found = f(*fresh()), compiled(*fresh())",
        "print(expected, found)",
    ]
    return "\n".join(lines)
