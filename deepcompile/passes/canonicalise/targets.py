"""What is known about an op: whether it has effects, aliases its input, can be shared."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx.node import _side_effectful_functions

from deepcompile.ir.collectives import communicates, is_wait

aten = torch.ops.aten
prims = torch.ops.prims

#: Libraries whose schemas can be trusted about aliasing and writing.
_KNOWN_LIBRARIES = frozenset(("aten", "prims", "deepcompile", "_c10d_functional"))
#: Their contents, or the symbol they introduce, differ from call to call.
_NEVER_EQUAL = frozenset(("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided"))
_DIFFERS = frozenset((torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output))
#: Cost nothing worth saving; the pointwise ones without that tag.
_CHEAP = frozenset(
    (
        aten._to_copy.default,
        prims.convert_element_type.default,
        aten.clone.default,
        aten.full.default,
        aten.arange.start_step,
        aten.scalar_tensor.default,
        prims.iota.default,
        aten.sym_size.int,
        aten.sym_stride.int,
        aten.sym_numel.default,
    )
)
_COMMUTATIVE = frozenset(
    (
        aten.add.Tensor,
        aten.mul.Tensor,
        aten.maximum.default,
        aten.minimum.default,
        aten.eq.Tensor,
        aten.ne.Tensor,
        aten.logical_and.default,
        aten.logical_or.default,
        aten.logical_xor.default,
        aten.bitwise_and.Tensor,
        aten.bitwise_or.Tensor,
        aten.bitwise_xor.Tensor,
    )
)


@dataclass(frozen=True)
class Target:
    """Facts about one op.

    known: its schema tells all it reads, writes and aliases. effects: it must stay although nobody
    reads it. view: its results lie in the memory of its first argument. shareable: two calls with
    equal arguments give equal results. cheap: recomputing it costs no more than loading it.
    """

    known: bool
    effects: bool
    view: bool = False
    shareable: bool = False
    cheap: bool = False
    commutative: bool = False


@functools.cache
def target_of(target: Any) -> Target:
    """The facts about the target of a `call_function` node."""
    if not isinstance(target, torch._ops.OpOverload):
        number = _is_number_function(target)
        return Target(known=number, effects=not number, shareable=number, cheap=number)
    schema = target._schema
    library, _, name = schema.name.partition("::")
    known = library in _KNOWN_LIBRARIES and torch.Tag.maybe_aliasing_or_mutating not in target.tags
    random = torch.Tag.nondeterministic_seeded in target.tags
    effects = (
        not known
        or schema.is_mutable
        or random
        or communicates(target)
        or not schema.returns
        or target in _side_effectful_functions
    )
    # Some share their input's memory without saying so in the schema.
    undeclared = target is aten._unsafe_view.default or is_wait(target)
    view = not schema.is_mutable and (
        undeclared or any(value.alias_info for value in schema.returns)
    )
    return Target(
        known=known,
        effects=effects,
        view=view,
        shareable=not effects and name not in _NEVER_EQUAL and not _DIFFERS & set(target.tags),
        cheap=view or torch.Tag.pointwise in target.tags or target in _CHEAP,
        commutative=target in _COMMUTATIVE,
    )


def _is_number_function(target: Any) -> bool:
    """Whether `target` is a function of numbers, as symbolic sizes use them, or `getitem`."""
    module, name = getattr(target, "__module__", None), getattr(target, "__name__", "")
    if module == "_operator":
        return not (name.startswith("i") and name not in ("invert", "index")) and name not in (
            "setitem",
            "delitem",
        )
    return module == "math" or (module == "torch" and name.startswith(("sym_", "_sym_")))
