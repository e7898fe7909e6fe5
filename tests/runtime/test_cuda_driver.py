"""What of the CUDA driver can be checked without CUDA."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from deepcompile.codegen.triton_function import TritonFunction
from deepcompile.runtime.cuda_driver import code_key, hidden_arguments
from deepcompile.runtime.launch_table import LoadedRecord

FUNCTION = TritonFunction("kernel", "", {"b0": "*fp32", "s0": "i64"}, 4)
PTX = """
.visible .entry other(
	.param .u64 .ptr .global .align 1 other_param_0
)
{ ret; }
.visible .entry kernel(
	.param .u64 .ptr .global .align 1 kernel_param_0,
	.param .u64 kernel_param_1{more}
)
.reqntid 128
"""
HIDDEN = ",\n\t.param .u64 .ptr .global .align 1 kernel_param_2"


@pytest.mark.parametrize("count", [0, 1, 2])
def test_pointers_that_triton_adds_are_counted(count: int) -> None:
    assert hidden_arguments(PTX.replace("{more}", HIDDEN * count), FUNCTION) == count


def test_ptx_of_another_function_is_an_error() -> None:
    with pytest.raises(ValueError, match="no entry kernel"):
        hidden_arguments(".visible .entry other(\n)", FUNCTION)


def test_code_of_other_types_is_other_code() -> None:
    module = types.ModuleType("m")
    half = replace(FUNCTION, signature={"b0": "*fp16", "s0": "i64"})
    keys = {
        code_key(module, function, divisible)
        for function in (FUNCTION, half, replace(FUNCTION, warps=8), replace(FUNCTION, stages=2))
        for divisible in (frozenset(), frozenset({"b0"}))
    }
    assert len(keys) == 8


def test_records_lie_as_c_reads_them() -> None:
    assert [LoadedRecord.function.offset, LoadedRecord.threads.offset] == [0, 8]
    assert LoadedRecord.shared.offset == 16


COMPILE = """
from deepcompile.codegen.triton_build import compile_for
from deepcompile.codegen.triton_kernel import emit_triton
from deepcompile.codegen.triton_schedule import plan_triton
from deepcompile.ir.nest_text import parse_kernel
from deepcompile.runtime.cuda_driver import hidden_arguments
from deepcompile.runtime.triton_modules import load_source
kernel = parse_kernel('''kernel @copy(in b0: f32[64, s0], out b1: f32[64, s0]) {
  sizes s0
  axes p0: parallel 64, p1: parallel s0
  row:
    v0: f32 = load b0[s0*p0 + p1]
    store b1[s0*p0 + p1] v0
}''')
code = emit_triton(kernel, plan_triton(kernel), "kernel")
module = load_source(code.source, None)
wide = compile_for(module, code.functions[0], 90, {"b0", "b1", "s0"}).asm["ptx"]
narrow = compile_for(module, code.functions[0], 90, set()).asm["ptx"]
print(hidden_arguments(wide, code.functions[0]), "ld.global.v4" in wide, "ld.global.v4" in narrow)
"""


def test_this_triton_adds_some_and_vectors_need_aligned_arguments() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=True
    )
    count, wide, narrow = done.stdout.split()
    assert 0 <= int(count) <= 4
    assert (wide, narrow) == ("True", "False")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_launch_on_the_device() -> None:
    x = torch.randn(1000, device="cuda")
    for given in (x, x[1:]):
        found = torch.compile(lambda t: t.sin() * 2, backend="deepep")(given)
        torch.testing.assert_close(found, given.sin() * 2)
