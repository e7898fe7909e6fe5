"""Scalar instructions and reductions in Triton."""

from __future__ import annotations

from ..ir.index import Index
from ..ir.nest import (
    Accumulate,
    Apply,
    Cast,
    Check,
    Const,
    IndexValue,
    InRange,
    Instr,
    Load,
    Rand,
    Reduce,
    Store,
    index_values,
)
from ..ir.ops import MONOIDS, REGISTER_OF
from .triton_spelling import (
    COMBINE,
    TRITON_DTYPE,
    CannotEmit,
    as_f8e4m3,
    convert,
    literal,
    spell,
)
from .triton_text import UNIFORM, Extent, Writer

WHOLE = Extent(True, True)


class Values(Writer):
    """Instructions that compute, load or store a value."""

    def instr(self, instr: Instr) -> None:
        match instr:
            case Const(dtype=dtype, value=value):
                self.define(instr, self.full(literal(value), TRITON_DTYPE[dtype]))
            case IndexValue(index=index):
                self.define(instr, self.block_of(index))
            case InRange(index=index, low=low, high=high):
                text = self.block_of(index)
                inside = f"({text} >= {self.i(low)}) & ({text} < {self.i(high)})"
                self.define(instr, inside)
            case Load():
                self._load(instr)
            case Apply():
                self._apply(instr)
            case Cast(arg=arg, to=to):
                source = self.definition[arg].dtype
                self.define(instr, convert(self.names[arg], source, to))
            case Check():
                self._check(instr)
            case Rand(kind=kind, seed=seed, offset=offset):
                self.define(instr, f"dl.{kind}({self.names[seed]}, {self.block_of(offset)})")
            case Store():
                self._store(instr)
            case _:
                raise AssertionError(f"unplaced {instr}")

    def block_of(self, index: Index) -> str:
        """An index expression as a block of i64."""
        text = self.i(index)
        if self.index_extent(index) == UNIFORM and not index_values(index):
            return self.full(text, "tl.int64")
        return f"({text}).to(tl.int64)"

    def define(self, instr: Instr, text: str) -> None:
        assert not isinstance(instr, Store)
        name = f"v{instr.id}"
        self.line(f"{name} = {text}")
        self.names[instr.id] = name

    def _load(self, load: Load) -> None:
        masked = UNIFORM if load.mask is None else self.extent(load.mask)
        pointers, extent = self.pointers(load.buffer, load.index, masked)
        conditions = self.bounds(extent)
        if load.mask is not None:
            conditions.append(self.names[load.mask])
        mask = f", mask={' & '.join(conditions)}, other=0" if conditions else ""
        text = f"tl.load({pointers}{mask})"
        storage = self.kernel.buffer(load.buffer).dtype
        register = REGISTER_OF[storage]
        if storage == "b1":
            text = f"({text} != 0)"
        elif storage == "f8e4m3":
            text = f"dl.f8e4m3_to_f32({text})"
        elif register != storage:
            text += f".to({TRITON_DTYPE[register]})"
        self.define(load, text)

    def _store(self, store: Store) -> None:
        value = self.extent(store.value)
        pointers, extent = self.pointers(store.buffer, store.index, value)
        text = self.names[store.value]
        storage = self.kernel.buffer(store.buffer).dtype
        source = self.definition[store.value].dtype
        if storage in ("i8", "i16", "u8") and source in ("f32", "f64"):
            text = convert(text, source, storage)
        if storage == "f8e4m3":
            text = as_f8e4m3(text, source)
        text = f"tl.broadcast_to({text}, {self.shape(extent)})"
        conditions = self.conditions(extent)
        mask = f", mask={' & '.join(conditions)}" if conditions else ""
        self.line(f"tl.store({pointers}, {text}{mask})")

    def _apply(self, apply: Apply) -> None:
        op, args = apply.op, apply.args
        dtypes = [self.definition[arg].dtype for arg in args]
        texts = [self.names[arg] for arg in args]
        dtype = dtypes[1] if op == "where" else dtypes[0]
        text = spell(op, dtype)
        # Comparing b1 values as numbers.
        if dtype == "b1" and op in ("lt", "le", "gt", "ge"):
            texts = [f"{text}.to(tl.int32)" for text in texts]
        self.define(apply, text.format(*texts))

    def _check(self, check: Check) -> None:
        extent = self.extent(check.arg)
        text = f"({self.names[check.arg]} == 0)"
        conditions = self.conditions(extent)
        if conditions:
            text = f"({text} & {' & '.join(conditions)})"
        bad = f"tl.max(tl.broadcast_to({text}, {self.shape(extent)}).to(tl.int32))"
        self.line(f"tl.store(failed, 1, mask={bad} != 0)")
        self.names[check.id] = self.names[check.arg]

    # -- monoids --------------------------------------------------------------------------------

    def identity(self, kind: str, dtype: str) -> tuple[str, ...]:
        """The state that changes nothing, as literals."""
        return tuple(literal(value) for value in MONOIDS[kind].identity[dtype])

    def combine(self, kind: str, dtype: str, left: str, right: str) -> str:
        """Two states of a monoid with one value, joined."""
        if kind in ("max", "min") and dtype in ("i32", "i64"):
            return f"tl.{kind}imum({left}, {right})"
        if kind in ("max", "min") and dtype == "b1":
            return f"({left} {'|' if kind == 'max' else '&'} {right})"
        symbol = {"sum": "+", "prod": "*", "any": "|", "all": "&"}.get(kind)
        if symbol:
            return f"({left} {symbol} {right})"
        return f"{COMBINE[kind]}({left}, {right})"

    def fold(self, kind: str, dtype: str, text: str, axis: int) -> str:
        """One value for all along an axis of a tile, which stays with size 1."""
        if kind == "sum":
            return f"tl.sum({text}, {axis}, keep_dims=True)"
        if kind in ("any", "all") or dtype == "b1":
            largest = kind in ("any", "max")
            wide = f"{text}.to(tl.int32)"
            return f"(tl.{'max' if largest else 'min'}({wide}, {axis}, keep_dims=True) != 0)"
        if kind in ("max", "min") and dtype in ("i32", "i64"):
            return f"tl.{kind}({text}, {axis}, keep_dims=True)"
        return f"tl.reduce({text}, {axis}, {COMBINE[kind]}, keep_dims=True)"

    def padded(self, text: str, kind: str, dtype: str, extent: Extent, bounds: list[str]) -> str:
        """A value over a whole tile, the identity outside of the bounds."""
        text = f"tl.broadcast_to({text}, {self.shape(extent)})"
        if not bounds:
            return text
        other = self.identity(kind, dtype)[0]
        if dtype == "b1":
            return (
                f"(({text} & {' & '.join(bounds)}))"
                if kind in ("any", "max")
                else (f"({text} | ~({' & '.join(bounds)}))")
            )
        return f"tl.where({' & '.join(bounds)}, {text}, {other})"

    def reduce_tile(self, group: list[Reduce]) -> None:
        """Reductions of one kind of one value, whose whole row is in the tile."""
        first = group[0]
        kind, arg = first.kind, first.arg
        dtype = self.definition[arg].dtype
        extent = Extent(self.extent(arg).points, True)
        bounds = ["rmask"] if self.mask_row else []
        value = self.names[arg]
        parts: dict[str, str]
        head = f"w{first.id}"
        if kind == "welford":
            length = f"tl.full([1, 1], {self.i(self.row)}, {TRITON_DTYPE[dtype]})"
            total = self.fold("sum", dtype, self.padded(value, "sum", dtype, extent, bounds), 1)
            quotient = spell("div", dtype).format(total, length)
            self.line(f"{head}_mean = {quotient}")
            self.line(f"{head}_away = {value} - {head}_mean")
            square = self.padded(f"({head}_away * {head}_away)", "sum", dtype, extent, bounds)
            parts = {"mean": f"{head}_mean", "m2": self.fold("sum", dtype, square, 1)}
        elif kind == "lse":
            top = self.fold("max", dtype, self.padded(value, "max", dtype, extent, bounds), 1)
            self.line(f"{head}_max = {top}")
            term = f"libdevice.exp({value} - dl.finite_or_zero({head}_max))"
            term = self.padded(term, "sum", dtype, extent, bounds)
            parts = {"maximum": f"{head}_max", "sum": self.fold("sum", dtype, term, 1)}
        elif kind in ("argmax", "argmin"):
            padded = self.padded(value, kind, dtype, extent, bounds)
            index = self.padded("r.to(tl.int64)", kind, "i64", extent, [])
            if bounds:
                index = f"tl.where(rmask, {index}, {self.identity(kind, dtype)[1]})"
            self.line(
                f"{head}_value, {head}_index = "
                f"tl.reduce(({padded}, {index}), 1, {COMBINE[kind]}, keep_dims=True)"
            )
            parts = {"value": f"{head}_value", "index": f"{head}_index"}
        else:
            parts = {"": self.fold(kind, dtype, self.padded(value, kind, dtype, extent, bounds), 1)}
        for reduce in group:
            self.define(reduce, parts[reduce.part])

    def start_state(self, group: list[Reduce]) -> None:
        """Tiles that gather a reduction over a row in several steps."""
        first = group[0]
        dtype = self.definition[first.arg].dtype
        extent = Extent(True, True)
        for number, value in enumerate(self.identity(first.kind, dtype)):
            kind = "i64" if first.kind in ("argmax", "argmin") and number == 1 else dtype
            self.line(f"s{first.id}_{number} = {self.full(value, TRITON_DTYPE[kind], extent)}")

    def step_state(self, group: list[Reduce]) -> None:
        """Take the tile's values into the state."""
        first = group[0]
        kind, arg = first.kind, first.arg
        dtype = self.definition[arg].dtype
        bounds = ["rmask"] if self.mask_row else []
        states = [f"s{first.id}_{n}" for n in range(len(self.identity(kind, dtype)))]
        value = f"tl.broadcast_to({self.names[arg]}, {self.shape(WHOLE)})"
        if kind in ("argmax", "argmin"):
            index = f"tl.broadcast_to(r.to(tl.int64), {self.shape(WHOLE)})"
            self.line(f"new0, new1 = {COMBINE[kind]}({states[0]}, {states[1]}, {value}, {index})")
            new = ["new0", "new1"]
        elif kind == "welford":
            one = self.full("1.0", TRITON_DTYPE[dtype], WHOLE)
            zero = self.full("0.0", TRITON_DTYPE[dtype], WHOLE)
            old = ", ".join(states)
            self.line(f"new0, new1, new2 = dl.welford({old}, {value}, {zero}, {one})")
            new = ["new0", "new1", "new2"]
        elif kind == "lse":
            self.line(f"new0 = dl.maximum({states[0]}, {value})")
            self.line(
                f"scale = tl.where({states[0]} == new0, 1.0, libdevice.exp({states[0]} - new0))"
            )
            term = f"libdevice.exp({value} - dl.finite_or_zero(new0))"
            self.line(f"new1 = {states[1]} * scale + {term}")
            new = ["new0", "new1"]
        else:
            new = [self.combine(kind, dtype, states[0], value)]
        for state, text in zip(states, new, strict=True):
            if not bounds:
                self.line(f"{state} = {text}")
            elif dtype == "b1":
                self.line(f"{state} = ({text} & rmask) | ({state} & ~rmask)")
            else:
                self.line(f"{state} = tl.where(rmask, {text}, {state})")

    def finish_state(self, group: list[Reduce]) -> None:
        """The results of a state, one for each row."""
        first = group[0]
        kind = first.kind
        dtype = self.definition[first.arg].dtype
        count = len(self.identity(kind, dtype))
        states = [f"s{first.id}_{n}" for n in range(count)]
        if count == 1:
            for reduce in group:
                self.define(reduce, self.fold(kind, dtype, states[0], 1))
            return
        names = [f"w{first.id}_{n}" for n in range(count)]
        joined = f"tl.reduce(({', '.join(states)}), 1, {COMBINE[kind]}, keep_dims=True)"
        self.line(f"{', '.join(names)} = {joined}")
        place = {
            "welford": {"mean": 0, "m2": 1},
            "lse": {"maximum": 0, "sum": 1},
        }.get(kind, {"value": 0, "index": 1})
        for reduce in group:
            self.define(reduce, names[place[reduce.part]])

    def accumulated(self, accumulate: Accumulate, extent: Extent) -> str:
        """What a tile adds to an accumulator."""
        dtype = self.definition[accumulate.arg].dtype
        if accumulate.kind not in ("sum", "prod", "max", "min", "any", "all"):
            raise CannotEmit(f"accumulation of {accumulate.kind}")
        text = self.names[accumulate.arg]
        return self.padded(text, accumulate.kind, dtype, extent, self.bounds(extent))
