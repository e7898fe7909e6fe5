"""Scalar instructions in C++: one value, or sixteen along the vector axis."""

from __future__ import annotations

from ..ir.index import ONE, ZERO, Index
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
    Valued,
    index_values,
    operands,
)
from ..ir.ops import REGISTER_OF
from .cpp_text import Writer, literal
from .schedule import LANES

_ROUND = {
    "bf16": "dc_round_bf16",
    "f16": "dc_round_f16",
    "f8e4m3": "dc_round_f8e4m3",
    "i8": "dc_wrap_i8",
    "i16": "dc_wrap_i16",
    "u8": "dc_wrap_u8",
}


class Values(Writer):
    """Instructions that compute, load or store a value."""

    def _effect_accumulate(self, accumulate: Accumulate, position: Index) -> None:
        raise NotImplementedError

    def _uniform(self, instr: Instr) -> bool:
        if isinstance(instr, (Store, Reduce, Accumulate)):
            return False
        if self.varies[instr.id]:
            return False
        if any(
            isinstance(self.definition[read], (Reduce, Accumulate))
            or not self._uniform(self.definition[read])
            for read in operands(instr)
        ):
            return False
        if isinstance(instr, Load):
            return self.kernel.buffer(instr.buffer).role == "in"
        return True

    def _kept_vector(self) -> bool:
        return self.vector is not None and not self.vector_in_rows

    def _write_kept(self, instr: Valued, position: Index) -> None:
        name = f"keep{instr.id}"
        if self._kept_vector():
            self.line(f"{name}[{self._c(position)}] = {self._as_vector(instr.id)};")
            return
        value = self._as_vector(instr.id) if self.vector_in_rows else self._value(instr.id)
        if not self.vector_in_rows:
            self.line(f"dc_store1({name} + {self._c(position)}, {value});")
        else:
            # A row buffer has room for a whole vector behind its end.
            self.line(f"dc_store({name} + {self._c(position)}, {value});")

    def _read_kept(self, instr: Valued, position: Index) -> None:
        name, at = f"keep{instr.id}", self._c(position)
        if self._kept_vector():
            self._define(instr, f"{name}[{at}]", True)
        elif self.vector_in_rows:
            self._define(instr, f"dc_load({name} + {at})", True)
        else:
            self._define(instr, f"dc_load1({name} + {at})", False)

    def _loopy(self, instr: Instr) -> bool:
        return not isinstance(instr, Store) and bool(self.varies[instr.id] & self.reduced)

    def _instr(self, instr: Instr) -> None:
        match instr:
            case Const(id=id, dtype=dtype, value=value):
                self._name(id, literal(value, dtype), False)
                if dtype == "b1":
                    self.scope.known[id] = bool(value)
            case IndexValue(index=index):
                vector = self._index_is_vector(index)
                self._define(instr, self._vector_index(index) if vector else self._c(index), vector)
            case InRange():
                self._in_range(instr)
            case Load():
                self._load(instr)
            case Apply():
                self._apply(instr)
            case Cast():
                self._cast(instr)
            case Check():
                self._check(instr)
            case Rand(kind=kind, seed=seed, offset=offset):
                vector = self._index_is_vector(offset)
                at = self._vector_index(offset) if vector else self._c(offset)
                function = {"uniform": "dc_uniform", "normal": "dc_normal"}[kind]
                self._define(instr, f"{function}({self._value(seed)}, {at})", vector)
            case Store():
                self._store(instr)
            case Accumulate():
                self._effect_accumulate(instr, ZERO)
            case _:
                raise AssertionError(f"unplaced {instr}")

    def _in_range(self, instr: InRange) -> None:
        known = self.scope.known.get(instr.id)
        if known is not None:
            self._name(instr.id, "true" if known else "false", False)
            return
        if self._index_is_vector(instr.index):
            index = self._vector_index(instr.index)
            low, high = (f"dc_splat_i64({self._c(bound)})" for bound in (instr.low, instr.high))
            self._define(
                instr, f"dc_bitwise_and(dc_ge({index}, {low}), dc_lt({index}, {high}))", True
            )
            return
        index = self._c(instr.index)
        self._define(
            instr, f"{index} >= {self._c(instr.low)} && {index} < {self._c(instr.high)}", False
        )

    def _check(self, instr: Check) -> None:
        vector = instr.arg in self.scope.vectors
        text = self._value(instr.arg)
        known = self.scope.known.get(instr.arg)
        self._name(instr.id, text, vector)
        if known is not None:
            self.scope.known[instr.id] = known
        if vector and self.tail:
            unused = f"dc_bitwise_not(dc_lane_mask({self.tail}))"
            text = f"dc_bitwise_or({text}, {unused})"
        self.line(f"if (!dc_hall({text})) *failed = 1;")

    def _load(self, instr: Load) -> None:
        register = REGISTER_OF[self.kernel.buffer(instr.buffer).dtype]
        mask = instr.mask
        known = None if mask is None else self.scope.known.get(mask)
        if known is False:
            self._name(instr.id, literal(0, register), False)
            return
        if known is True:
            mask = None
        vector_mask = mask is not None and mask in self.scope.vectors
        if not self._index_is_vector(instr.index) and not vector_mask:
            text = f"dc_load1({instr.buffer} + {self._c(instr.index)})"
            if mask is not None:
                text = f"{self._value(mask)} ? {text} : {literal(0, register)}"
            self._define(instr, text, False)
            return
        vector = self.vector
        assert vector is not None
        stride = instr.index.coefficient(vector)
        gathers = any(value in self.scope.vectors for value in index_values(instr.index))
        if stride is None or gathers or vector_mask:
            lanes = f"dc_lane_mask({self.tail})" if self.tail else "dc_splat_b1(true)"
            if mask is not None:
                inside = self._as_vector(mask)
                lanes = f"dc_bitwise_and({lanes}, {inside})" if self.tail else inside
            index = self._vector_index(instr.index)
            self._define(instr, f"dc_gather({instr.buffer}, {index}, {lanes})", True)
            return
        pointer = f"{instr.buffer} + {self._c(instr.index)}"
        if stride == ONE:
            text = f"dc_loadn({pointer}, {self.tail})" if self.tail else f"dc_load({pointer})"
        elif self.tail:
            text = f"dc_loadsn({pointer}, {self._c(stride)}, {self.tail})"
        else:
            text = f"dc_loads({pointer}, {self._c(stride)})"
        if mask is not None:
            text = f"{self._value(mask)} ? {text} : {self._splat_literal(0, register)}"
        self._define(instr, text, True)

    def _apply(self, instr: Apply) -> None:
        if instr.op in ("logical_and", "logical_or") and self._fold_logic(instr):
            return
        if instr.op == "where":
            known = self.scope.known.get(instr.args[0])
            if known is not None:
                chosen = instr.args[1] if known else instr.args[2]
                self._name(instr.id, self.scope.names[chosen], chosen in self.scope.vectors)
                if chosen in self.scope.known:
                    self.scope.known[instr.id] = self.scope.known[chosen]
                return
        if instr.op in ("eq", "ne") and self._compare_position(instr):
            return
        vector = any(argument in self.scope.vectors for argument in instr.args)
        read = self._as_vector if vector else self._value
        arguments = [read(argument) for argument in instr.args]
        if instr.op in ("uniform", "normal", "philox_u32"):
            arguments[0] = self._value(instr.args[0])
        self._define(instr, f"dc_{instr.op}({', '.join(arguments)})", vector)

    def _compare_position(self, instr: Apply) -> bool:
        """Compare the position along the vector axis with one number: in 32-bit lanes."""
        for here, there in (instr.args, instr.args[::-1]):
            position = self.definition[here]
            if not isinstance(position, IndexValue) or there in self.scope.vectors:
                continue
            if self.vector is None or position.index.coefficient(self.vector) != ONE:
                continue
            if any(value in self.scope.vectors for value in index_values(position.index)):
                continue
            base = self._c(position.index)
            lane = f"dc_near({self._value(there)} - {base})"
            test = f"dc_{instr.op}(dc_iota_i32(0, 1), dc_splat_i32({lane}))"
            self._define(instr, test, True)
            return True
        return False

    def _fold_logic(self, instr: Apply) -> bool:
        absorbing = instr.op == "logical_or"
        known = [self.scope.known.get(argument) for argument in instr.args]
        if absorbing in known:
            self._name(instr.id, "true" if absorbing else "false", False)
            self.scope.known[instr.id] = absorbing
            return True
        for value, other in zip(known, reversed(instr.args), strict=True):
            if value is not None and self.definition[other].dtype == "b1":
                self._name(instr.id, self.scope.names[other], other in self.scope.vectors)
                if other in self.scope.known:
                    self.scope.known[instr.id] = self.scope.known[other]
                return True
        return False

    def _cast(self, instr: Cast) -> None:
        vector = instr.arg in self.scope.vectors
        text = self._value(instr.arg)
        if self.definition[instr.arg].dtype != instr.dtype:
            text = f"dc_to_{instr.dtype}({text})"
        if instr.to in _ROUND:
            text = f"{_ROUND[instr.to]}({text})"
        self._define(instr, text, vector)

    def _store(self, store: Store) -> None:
        vector = self.vector
        stride = None if vector is None else store.index.coefficient(vector)
        pointer = f"{store.buffer} + {self._c(store.index)}"
        if vector is None or not self._index_is_vector(store.index):
            self.line(f"dc_store1({pointer}, {self._value(store.value)});")
            return
        value = self._as_vector(store.value)
        assert stride is not None
        if stride == ONE:
            lanes = f", {self.tail}" if self.tail else ""
            self.line(f"dc_store{'n' if self.tail else ''}({pointer}, {value}{lanes});")
            return
        self.line(f"dc_stores({pointer}, {self._c(stride)}, {value}, {self.tail or LANES});")
