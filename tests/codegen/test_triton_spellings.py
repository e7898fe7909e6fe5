"""Every op of the table has a Triton spelling that means what the table says.

Where there is no GPU, Triton's interpreter runs them and torch stands for libdevice. So the errors
measured are those of exact ops and of approximations in `triton_library`; libdevice has its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor

from deepcompile.codegen.triton_kernel import emit_triton
from deepcompile.codegen.triton_schedule import TritonSchedule, power_of_two
from deepcompile.codegen.triton_spelling import spell
from deepcompile.ir.nest import Kernel
from deepcompile.ir.nest_text import parse_kernel
from deepcompile.ir.ops import OPERAND_DTYPES, OPS, ScalarOp
from tests.numerics.test_prelude import (
    RANDOM,
    TORCH,
    assert_within,
    binary_inputs,
    every_float,
    operand_dtypes,
    pairs,
    result_dtype,
    where_reference_is_good,
)

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

from deepcompile.runtime.triton_interpreter import install  # noqa: E402
from deepcompile.runtime.triton_modules import load_source  # noqa: E402
from tests.codegen.triton_launch import launch  # noqa: E402

NUMBERS = [(op, dtype) for op in OPS.values() for dtype in OPERAND_DTYPES[op.operands]]
APPROXIMATIONS = ("digamma", "i0e", "i1e")
MEASURED = [
    (op, dtype)
    for op, dtype in NUMBERS
    if op.arity < 3 and op.name not in RANDOM and (op.ulp == 0 or op.name in APPROXIMATIONS)
]


def _name(value: object) -> str:
    return value.name if isinstance(value, ScalarOp) else str(value)


@pytest.mark.parametrize(("op", "dtype"), NUMBERS, ids=_name)
def test_every_op_of_the_table_has_a_spelling(op: ScalarOp, dtype: str) -> None:
    assert spell(op.name, dtype)


def _nest(op: ScalarOp, dtype: str, count: int) -> Kernel:
    dtypes = operand_dtypes(op, dtype)
    made = result_dtype(op, dtype)
    given = "".join(f"in x{n}: {kind}[{count}], " for n, kind in enumerate(dtypes))
    loads = "\n".join(f"v{n}: {kind} = load x{n}[p0]" for n, kind in enumerate(dtypes))
    last = len(dtypes)
    args = " ".join(f"v{n}" for n in range(last))
    return parse_kernel(f"""
    kernel @one({given}out y: {made}[{count}]) {{
      axes p0: parallel {count}
      row:
        {loads}
        v{last}: {made} = {op.name} {args}
        store y[p0] v{last}
    }}
    """)


def _run(op: ScalarOp, dtype: str, inputs: tuple[Tensor, ...], folder: Path) -> Tensor:
    install()
    count = inputs[0].numel()
    nest = _nest(op, dtype, count)
    kernel = emit_triton(nest, TritonSchedule(power_of_two(count), 1, True, 4), "kernel")
    result = torch.empty(count, dtype=TORCH[result_dtype(op, dtype)])
    tensors = {f"x{n}": x for n, x in enumerate(inputs)} | {"y": result}
    tensors = {name: tensor.to(DEVICE, copy=True) for name, tensor in tensors.items()}
    launch(kernel, load_source(kernel.source, folder), tensors, {})
    return tensors["y"].cpu()


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize(("op", "dtype"), MEASURED, ids=_name)
def test_within_the_error_that_the_table_states(op: ScalarOp, dtype: str, tmp_path: Path) -> None:
    inputs: tuple[Tensor, ...]
    if op.arity == 2:
        # torch's fmod gives NaN for huge quotients, where libdevice's does not.
        inputs = binary_inputs(OPS["fmod"] if op.name == "floordiv" else op, dtype)
    else:
        x = every_float(40_009) if dtype == "f32" else pairs(dtype)[0]
        inputs = (x[where_reference_is_good(op, x)],)
    if op.name == "frac" and not inputs[0].is_floating_point():
        pytest.skip("eager has none for integers")
    got = _run(op, dtype, inputs, tmp_path)
    reference = op.resolve_reference()
    if not op.ulp:
        torch.testing.assert_close(got, reference(*inputs), rtol=0, atol=0, equal_nan=True)
    elif dtype == "f32":
        assert_within(got, reference(*(x.double() for x in inputs)), op.ulp, op.name)
    else:
        atol = 1e-14 if op.name == "digamma" else 0  # close to its zeros
        torch.testing.assert_close(got, reference(*inputs), rtol=1e-12, atol=atol, equal_nan=True)


_COMPILE = """
import sys
from pathlib import Path
from deepcompile.codegen.triton_build import compile_function
from deepcompile.codegen.triton_kernel import emit_triton
from deepcompile.codegen.triton_schedule import TritonSchedule
from deepcompile.runtime.triton_modules import load_source
from tests.codegen.test_triton_spellings import _nest
from deepcompile.ir.ops import OPS
for case in sys.argv[2:]:
    op, dtype = case.split(":")
    kernel = emit_triton(_nest(OPS[op], dtype, 4096), TritonSchedule(256, 1, True, 2), "kernel")
    module = load_source(kernel.source, Path(sys.argv[1]))
    code = compile_function(module, kernel.functions[0], 90)
    assert ".target sm_90" in code.ptx, case
    assert code.spilled == 0, (case, code.spilled)
"""

_CONTRACT = """
import sys
from pathlib import Path
from deepcompile.codegen.triton_build import compile_function
from deepcompile.codegen.triton_kernel import emit_triton
from deepcompile.codegen.triton_schedule import TritonSchedule
from deepcompile.ir.nest_text import parse_kernel
from deepcompile.runtime.triton_modules import load_source
nest = parse_kernel('''
kernel @k(in b0: f32[4096], out b1: f32[4096], out b2: f32[1]) {
  axes p0: parallel 4096
  row:
    v0: f32 = load b0[p0]
    v1: f32 = mul v0 v0
    v2: f32 = add v1 v0
    v3: f32 = accumulate sum v2
    store b1[p0] v2
  total:
    v4: f32 = mul v3 v3
    v5: f32 = add v4 v3
    store b2[0] v5
}
''')
for contracts in (True, False):
    schedule = TritonSchedule(256, 1, True, 2, programs=4, contracts=contracts)
    kernel = emit_triton(nest, schedule, "kernel")
    assert len(kernel.functions) == 2
    module = load_source(kernel.source, Path(sys.argv[1]))
    for function in kernel.functions:
        assert ("fma.rn.f32" in compile_function(module, function, 90).ptx) == contracts
"""


def test_products_and_sums_are_contracted_where_a_schedule_says_so(tmp_path: Path) -> None:
    _without_the_interpreter(_CONTRACT, tmp_path)


@pytest.mark.slow
def test_what_is_written_as_loops_compiles_for_a_gpu(tmp_path: Path) -> None:
    cases = ["digamma:f32", "i0e:f32", "i1e:f64", "gcd:i32", "gcd:i64", "lcm:i64"]
    _without_the_interpreter(_COMPILE, tmp_path, *cases)


def _without_the_interpreter(program: str, tmp_path: Path, *arguments: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path), *arguments],
        capture_output=True,
        text=True,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path / "cache")},
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-2000:]
