"""What counts as a difference from eager, and as the same failure."""

from __future__ import annotations

import torch
from torch import nn

from deepcompile.child.compare import Step, copied, difference, run_step
from deepcompile.child.signature import Signature, signature_of_error
from deepcompile.errors import CompileError


def found(a: torch.Tensor, b: torch.Tensor) -> Signature | None:
    pair = difference(Step([("output 0", a)]), Step([("output 0", b)]))
    return pair[0] if pair else None


def test_kinds_of_differences() -> None:
    x = torch.linspace(1, 2, 8)
    assert found(x, x * (1 + 1e-5)) is None
    wrong = found(x, x * 1.1)
    assert wrong is not None
    assert wrong.what == "values"
    assert abs(wrong.error - 0.1) < 1e-3
    nan = found(x, x.log().where(x > 1.5, float("nan")))
    assert nan is not None
    assert nan.what == "nan"
    shape = found(x, x.double())
    assert shape is not None
    assert shape.what == "shape"
    assert found(x.bfloat16(), (x * 1.02).bfloat16()) is None


def test_infinite_and_missing_numbers_may_agree() -> None:
    x = torch.tensor([float("nan"), float("inf"), 1.0])
    assert found(x, x.clone()) is None
    assert found(x, -x) is not None


def test_a_step_keeps_gradients_buffers_and_inputs() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    x = torch.randn(8, 4)
    names = [name for name, _ in run_step(module, (x,), backward=None, seed=0).values]
    assert "gradient of 0.weight" in names
    assert "buffer 1.running_mean afterwards" in names
    assert "input 0 afterwards" in names
    assert module[0].weight.grad is None
    assert not run_step(module, (x,), backward=False, seed=0).draws
    assert run_step(nn.Dropout(), (x,), backward=False, seed=0).draws


def test_copies_keep_strides_and_the_wish_for_gradients() -> None:
    x = torch.randn(4, 6).t().requires_grad_()
    (y,) = copied((x,))
    assert y.stride() == x.stride()
    assert y.requires_grad
    assert y.data_ptr() != x.data_ptr()
    assert torch.equal(x, y)


def test_signatures_forget_names_and_numbers() -> None:
    a = Signature("compile", "KeyError", "no rule for gelu_3 at 0x7f00 in /a/b.py:12")
    b = Signature("compile", "KeyError", "no rule for gelu_11 at 0x8e in /c/b.py:9\nmore")
    assert a.matches(b)
    assert not a.matches(Signature("compile", "KeyError", "no shape for gelu_3"))
    assert not a.matches(Signature("run", "KeyError", a.detail))
    assert Signature("numerics", "nan", "x").matches(Signature("numerics", "nan", "y"))


def test_the_cause_is_what_counts_but_for_errors_of_ours() -> None:
    error = RuntimeError("outer")
    error.__cause__ = KeyError("inner")
    assert signature_of_error(error, "run").what == "KeyError"
    ours = CompileError("pass 'x' failed: KeyError: 3")
    ours.__cause__ = KeyError(3)
    assert signature_of_error(ours, "compile").what == "CompileError"
