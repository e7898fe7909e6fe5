"""The op table agrees with torch and with itself."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from deepcompile.ir.ops import BY_ATEN, OPS, ScalarOp, markdown_table


def test_the_table_imports_without_torch() -> None:
    code = "import sys, deepcompile.ir.ops as ops; assert ops.OPS and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.name)
def test_every_reference_and_overload_exists(op: ScalarOp) -> None:
    assert callable(op.resolve_reference())
    for overload in op.aten:
        _, packet, name = overload.split(".")
        schema = getattr(getattr(torch.ops.aten, packet), name)._schema
        required = [a for a in schema.arguments if not a.has_default_value()]
        assert len(required) == op.arity, overload


def test_overloads_belong_to_one_operation() -> None:
    assert sum(len(op.aten) for op in OPS.values()) == len(BY_ATEN)


def test_operations_with_alpha_are_composed_elsewhere() -> None:
    assert not {"aten.add.Tensor", "aten.sub.Tensor", "aten.rsub.Scalar"} & set(BY_ATEN)
    assert {"add", "sub"} <= set(OPS)


@pytest.mark.parametrize("overload", sorted(BY_ATEN))
def test_promotion_and_result_dtype_match_eager(overload: str) -> None:
    """Run each overload on int64 or bool tensors where the operation takes integers."""
    op = BY_ATEN[overload]
    _, packet, name = overload.split(".")
    function = getattr(getattr(torch.ops.aten, packet), name)
    x = torch.tensor([3, 5])
    arguments = [
        x if str(a.type) == "Tensor" else 2 for a in function._schema.arguments[: op.arity]
    ]
    if op.name == "where":
        arguments[0] = x > 3
    if op.name in ("frac", "hypot", "nextafter", "copysign", "logaddexp"):
        arguments = [a.float() if isinstance(a, torch.Tensor) else a for a in arguments]
    result = function(*arguments)
    if op.result == "bool":
        assert result.dtype == torch.bool
    elif op.int_to_float:
        assert result.dtype == torch.float32
    elif op.name not in ("frac", "hypot", "nextafter", "logaddexp"):
        assert result.dtype == torch.int64


def test_the_markdown_table_has_a_row_for_each_operation() -> None:
    lines = markdown_table().splitlines()
    assert len(lines) == len(OPS) + 2
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
