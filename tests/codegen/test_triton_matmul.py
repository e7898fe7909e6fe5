"""Matrix products in Triton that take the kernel after them along."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from deepcompile.codegen.triton_matmul import (
    TILES,
    MatmulShape,
    MatmulTile,
    emit_matmul,
    is_epilogue,
)
from deepcompile.codegen.triton_spelling import CannotEmit
from deepcompile.ir.nest import Kernel
from deepcompile.ir.nest_text import parse_kernel

pytest.importorskip("triton")

from deepcompile.runtime.triton_interpreter import install
from deepcompile.runtime.triton_modules import load_source

EPILOGUE = """kernel @e(in c: bf16[{M}, {N}], in b: bf16[{N}], in r: bf16[{M}, {N}], out y: bf16[{M}, {N}]) {{
  axes p0: parallel {M}, p1: parallel {N}
  row:
    v0: f32 = load c[{N}*p0 + p1]
    v1: f32 = load b[p1]
    v2: f32 = mul v0 v1
    v3: f32 = load r[{N}*p0 + p1]
    v4: f32 = add v2 v3
    store y[{N}*p0 + p1] v4
}}"""  # noqa: E501
FLAT = """kernel @e(in c: bf16[{P}], out y: bf16[{P}]) {{
  axes p0: parallel {P}
  row:
    v0: f32 = load c[p0]
    v1: f32 = neg v0
    store y[p0] v1
}}"""
SMALL = MatmulTile(16, 32, 32, 4, 2)


def nest(rows: int, columns: int) -> Kernel:
    return parse_kernel(EPILOGUE.format(M=rows, N=columns))


def shape(rows: int, columns: int, depth: int, **changes: object) -> MatmulShape:
    given = {"left": (depth, 1), "right": (1, depth), "dtype": "bf16"} | changes
    return MatmulShape(rows, columns, depth, **given)  # type: ignore[arg-type]


def bf16(*sizes: int) -> Tensor:
    return torch.randn(sizes).to(torch.bfloat16)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("sizes", [(40, 72, 50), (16, 32, 64), (3, 5, 7)])
def test_a_product_and_its_epilogue_equal_the_library_and_the_kernel(
    sizes: tuple[int, int, int], bias: bool
) -> None:
    install()
    rows, columns, depth = sizes
    kernel = nest(rows, columns)
    code = emit_matmul(kernel, "c", shape(*sizes, bias=bias), SMALL, "kernel")
    left, right, extra = bf16(rows, depth), bf16(columns, depth), bf16(columns)
    scale, other = bf16(columns), bf16(rows, columns)
    out, unused = torch.empty_like(other), torch.empty_like(other)
    operands = [left, right, extra] if bias else [left, right]
    module = load_source(code.source, None)
    module.kernel[(code.programs,)](*operands, unused, scale, other, out)
    product = left.float() @ right.t().float() + (extra.float() if bias else 0)
    wanted = product.to(torch.bfloat16).float() * scale.float() + other.float()
    torch.testing.assert_close(out.float(), wanted, rtol=2e-2, atol=2e-2)


def test_operands_may_lie_transposed_and_axes_may_be_one() -> None:
    install()
    rows, columns, depth = 20, 24, 40
    kernel = parse_kernel(FLAT.format(P=rows * columns))
    given = shape(rows, columns, depth, left=(1, rows), right=(columns, 1))
    assert is_epilogue(kernel, "c", given)
    code = emit_matmul(kernel, "c", given, SMALL, "kernel")
    left, right, out = bf16(depth, rows), bf16(depth, columns), bf16(rows, columns)
    load_source(code.source, None).kernel[(code.programs,)](left, right, out, out)
    wanted = -(left.t().float() @ right.float())
    torch.testing.assert_close(out.float(), wanted, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (("load c[32*p0 + p1]", "load c[p0 + 16*p1]"), "another place"),
        (("in b: bf16[32]", "in b: bf16[32], in c2: bf16[16, 32]"), None),
        (("v4: f32 = add v2 v3", "v4: f32 = accumulate sum v3"), "an accumulator"),
    ],
)
def test_what_may_follow_a_product(change: tuple[str, str], what: str | None) -> None:
    text = EPILOGUE.format(M=16, N=32).replace(*change)
    if what == "an accumulator":
        text = text.replace(
            "store y[32*p0 + p1] v4", "v5: f32 = neg v3\n    store y[32*p0 + p1] v5"
        )
    kernel = parse_kernel(text)
    assert is_epilogue(kernel, "c", shape(16, 32, 8)) == (what is None)


def test_other_sizes_than_those_of_the_product_are_no_epilogue() -> None:
    assert not is_epilogue(nest(16, 32), "c", shape(16, 16, 8))
    assert not is_epilogue(nest(16, 32), "y", shape(16, 32, 8))


def test_products_of_wide_floats_are_left_to_the_library() -> None:
    with pytest.raises(CannotEmit):
        emit_matmul(nest(16, 32), "c", shape(16, 32, 8, dtype="f32"), SMALL, "kernel")


def test_operands_of_more_than_32_bits_of_elements_have_wide_indices() -> None:
    small = emit_matmul(nest(16, 32), "c", shape(16, 32, 64), SMALL, "kernel")
    large = emit_matmul(nest(16, 32), "c", shape(16, 32, 1 << 28), SMALL, "kernel")
    assert ".to(tl.int64)" not in small.source
    assert "inner = tl.arange(0, 32).to(tl.int64)" in large.source


def test_tiles_that_would_be_mostly_empty_are_not_tried() -> None:
    assert {tile.rows for tile in shape(8, 4096, 64).tiles()} == {16, 32}
    assert len(shape(4096, 4096, 64).tiles()) == len(TILES)


COMPILE = """
import json, sys
from deepcompile.codegen.triton_build import compile_function
from deepcompile.codegen.triton_matmul import TILES, MatmulShape, emit_matmul
from deepcompile.ir.nest_text import parse_kernel
from deepcompile.runtime.triton_modules import load_source
found = []
for text, rows in json.loads(sys.stdin.read()):
    given = MatmulShape(rows, 512, 256, (256, 1), (1, 256), "bf16", True)
    for tile in TILES:
        code = emit_matmul(parse_kernel(text), "c", given, tile, "kernel")
        module = load_source(code.source, None)
        for capability in (80, 90):
            made = compile_function(module, code.function, capability)
            tensor = "mma" in made.ptx
            found.append((str(tile), capability, made.spilled, made.shared, tensor))
print(json.dumps(found))
"""


@pytest.mark.slow
def test_all_tiles_compile_without_spills_for_tensor_cores() -> None:
    given = json.dumps([(EPILOGUE.format(M=512, N=512), 512), (EPILOGUE.format(M=500, N=512), 500)])
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], input=given, env=environment, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    for tile, capability, spilled, shared, tensor in json.loads(done.stdout):
        assert spilled == 0, (tile, capability)
        assert tensor, (tile, capability)
        # sm_80 has 163 KB for a program, sm_90 227 KB; what does not fit is dropped when tuning.
        assert shared <= 227 << 10, (tile, capability)
