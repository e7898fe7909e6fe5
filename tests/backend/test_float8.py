"""8-bit floats (e4m3) in kernels: the very bits of torch's casts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from deepcompile.recording import recording
from tests.numerics.test_prelude import f32_samples

F8 = torch.float8_e4m3fn
BYTES = torch.uint8
CODEGENS = [{}, pytest.param({"codegen": "triton"}, marks=pytest.mark.slow)]


def run(function: Callable[..., Tensor], *inputs: Tensor, **options: str) -> tuple[Tensor, int]:
    """The result of the compiled function, and how many kernels it has."""
    torch._dynamo.reset()
    with recording() as record:
        given = {"strict": True, **options}
        found = torch.compile(function, backend="deepep", fullgraph=True, options=given)(*inputs)
    (graph,) = record.graphs
    assert graph.fallback is None
    assert graph.spec is not None
    return found, len(graph.spec.kernels)


@pytest.mark.parametrize("options", CODEGENS)
def test_all_codes_are_widened_as_by_torch(options: dict[str, str]) -> None:
    codes = torch.arange(256, dtype=BYTES).view(F8)
    found, kernels = run(lambda x: x.to(torch.float32), codes, **options)
    assert kernels == 1
    expected = codes.float()
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(found.signbit(), expected.signbit())


@pytest.mark.parametrize("options", CODEGENS)
def test_numbers_are_rounded_as_by_torch(options: dict[str, str]) -> None:
    x = f32_samples()
    found, kernels = run(lambda x: x.to(F8), x, **options)
    assert kernels == 1
    assert torch.equal(found.view(BYTES), x.to(F8).view(BYTES))


@pytest.mark.parametrize("options", CODEGENS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int32])
def test_other_dtypes_go_by_way_of_float32(dtype: torch.dtype, options: dict[str, str]) -> None:
    x = torch.linspace(-500, 500, 4001).to(dtype)
    found, _ = run(lambda x: x.to(F8), x, **options)
    assert torch.equal(found.view(BYTES), x.float().to(F8).view(BYTES))
    back, _ = run(lambda x: x.to(dtype), found, **options)
    assert torch.equal(back, found.float().to(dtype))


@pytest.mark.parametrize("options", CODEGENS)
def test_a_cast_there_and_back_in_one_kernel_rounds(options: dict[str, str]) -> None:
    x = torch.randn(3, 700) * 20
    found, kernels = run(lambda x: x.to(F8).to(torch.float32) * 2, x, **options)
    assert kernels == 1
    assert torch.equal(found, x.to(F8).float() * 2)


@pytest.mark.parametrize("options", CODEGENS)
def test_rows_are_scaled_in_one_kernel(options: dict[str, str]) -> None:
    """The form in which tensors may wait for backward."""

    def pack(x: Tensor) -> tuple[Tensor, Tensor]:
        scale = x.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 448
        return (x / scale).to(F8), scale

    x = torch.randn(37, 130)
    torch._dynamo.reset()
    packed, scale = torch.compile(pack, backend="deepep", options={"strict": True, **options})(x)
    expected, expected_scale = pack(x)
    torch.testing.assert_close(scale, expected_scale, rtol=1e-6, atol=0)
    same = (packed.view(BYTES) == expected.view(BYTES)).float().mean()
    assert same > 0.999  # a division may round another way


def test_copies_of_8_bit_floats() -> None:
    codes = torch.arange(256, dtype=BYTES).view(F8).view(16, 16)
    found, _ = run(lambda x: x.t().contiguous(), codes)
    assert torch.equal(found.view(BYTES), codes.view(BYTES).t())
