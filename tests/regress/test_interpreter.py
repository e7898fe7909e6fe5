"""Defects of the interpreter and the verifier that random graphs found."""

from __future__ import annotations

import torch

from deepcompile.ir.index import Index
from deepcompile.ir.kernel_op import KernelOp, Origin, OutputSpec
from deepcompile.ir.nest_text import parse_kernel
from deepcompile.ir.verify import verify_kernel


def test_a_kernel_reads_an_input_from_its_first_element() -> None:
    """Inputs with a storage offset were read from the start of their storage."""
    nest = parse_kernel("""
    kernel @double(in x: f32[4], out y: f32[4]) {
      axes p0: parallel 4
      row:
        v0: f32 = load x[p0]
        v1: f32 = add v0 v0
        store y[p0] v1
    }
    """)
    four, one = (Index.of(4),), (Index.of(1),)
    op = KernelOp(nest, (OutputSpec(four, one, "f32"),), Origin((), ()), lambda *_: ())
    x = torch.arange(7.0)[3:]
    assert torch.equal(op(x)[0], 2 * x)


def test_bit_operations_verify() -> None:
    """The verifier did not know the kind of operand that bitwise operations take."""
    verify_kernel(
        parse_kernel("""
        kernel @invert(in x: b1[4], in y: i32[4], out z: b1[4], out w: i32[4]) {
          axes p0: parallel 4
          row:
            v0: b1 = load x[p0]
            v1: b1 = bitwise_not v0
            v2: i32 = load y[p0]
            v3: i32 = bitwise_not v2
            store z[p0] v1
            store w[p0] v3
        }
        """)
    )
