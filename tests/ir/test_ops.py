"""The op and monoid tables agree with torch and with themselves."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from deepcompile.ir import ops
from deepcompile.ir.ops import BY_ATEN, MONOIDS, OPS, Monoid, ScalarOp


def test_the_table_imports_without_torch() -> None:
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('ops', {ops.__file__!r})\n"
        "module = sys.modules['ops'] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "assert 'torch' not in sys.modules and module.OPS\n"
    )
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


def test_every_storage_dtype_has_names() -> None:
    assert set(ops.REGISTER_OF) == set(ops.C_STORAGE) == set(ops.STORAGE_DTYPES)
    assert set(ops.REGISTER_OF.values()) == set(ops.C_VECTOR) == set(ops.C_SCALAR)


@pytest.mark.parametrize("monoid", MONOIDS.values(), ids=lambda monoid: monoid.name)
def test_states_have_an_identity_of_their_arity(monoid: Monoid) -> None:
    assert len(monoid.state) == monoid.arity
    assert all(len(identity) == monoid.arity for identity in monoid.identity.values())


@pytest.mark.parametrize(
    ("name", "combine"),
    [
        ("sum", torch.add),
        ("prod", torch.mul),
        ("max", torch.maximum),
        ("min", torch.minimum),
        ("any", torch.logical_or),
        ("all", torch.logical_and),
    ],
)
def test_identities_change_nothing(name: str, combine: object) -> None:
    dtypes = {
        "f32": torch.float32,
        "f64": torch.float64,
        "i32": torch.int32,
        "i64": torch.int64,
        "b1": torch.bool,
    }
    for dtype, (identity,) in MONOIDS[name].identity.items():
        info = torch.finfo if "f" in dtype else torch.iinfo
        edges = (
            [0, 1]
            if dtype == "b1"
            else [info(dtypes[dtype]).min, -1, 0, 1, info(dtypes[dtype]).max]
        )
        x = torch.tensor(edges, dtype=dtypes[dtype])
        assert callable(combine)
        assert torch.equal(combine(x, torch.tensor(identity, dtype=dtypes[dtype])), x)


def test_philox_known_answers() -> None:
    """Random123's kat_vectors: philox 4x32 10."""
    assert [ops.philox_u32(0, k) for k in range(4)] == [
        0x6627E8D5,
        0xE169C58D,
        0xBC57AC4C,
        0x9B00DBD8,
    ]


def test_random_numbers_have_the_right_moments() -> None:
    at = torch.arange(200_000)
    u, z = ops.uniform(5, at), ops.normal(5, at)
    assert u.dtype == z.dtype == torch.float32
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 0.005
    assert abs(u.var() - 1 / 12) < 0.001
    assert abs(z.mean()) < 0.01
    assert abs(z.var() - 1) < 0.02
    assert abs((z[::2] * z[1::2]).mean()) < 0.01
    assert not torch.equal(u, ops.uniform(6, at))


def test_scalars_and_tensors_agree() -> None:
    at = torch.arange(8)
    assert ops.uniform(9, at).tolist() == [ops.uniform(9, k) for k in range(8)]
    assert ops.normal(9, at).tolist() == pytest.approx(
        [ops.normal(9, k) for k in range(8)], rel=1e-5
    )


def test_the_markdown_table_has_a_row_for_each_operation() -> None:
    lines = ops.markdown_table().splitlines()
    assert len(lines) == len(OPS) + 2
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
