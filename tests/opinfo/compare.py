"""When a compiled result counts as equal to eager's."""

from __future__ import annotations

import torch
from torch import Tensor

# A result that is rounded once may be off by half a unit in the last place, whatever eager's is.
_EPSILON = {
    torch.float32: 2.0**-22,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-10,
    torch.float64: 2.0**-51,
}
_FLOOR = {
    torch.float32: 1e-6,
    torch.bfloat16: 1e-5,
    torch.float16: 1e-6,
    torch.float64: 1e-14,
}
# Of `torch.testing.assert_close`.
_FEW_TOLERANCE = {torch.bfloat16: 1.6e-2, torch.float16: 1e-3}
#: With fewer elements than this, eager's largest error in half precision is chance.
FEW = 16


def difference(got: Tensor, eager: Tensor, precise: Tensor | None) -> str | None:
    """Why `got` is wrong, or None.

    Equal means: within the tolerances of `torch.testing.assert_close` for float32 and wider, and
    for less than `FEW` elements; or no element further from `precise` (eager in float64) than twice
    eager's largest error, one rounding aside. Where eager is not finite, `got` may also be what
    `precise` says: an intermediate that overflows in half precision need not overflow in ours.
    """
    if got.shape != eager.shape:
        return f"shape {tuple(got.shape)} instead of {tuple(eager.shape)}"
    if got.dtype != eager.dtype:
        return f"dtype {got.dtype} instead of {eager.dtype}"
    if got.layout != eager.layout or got.device != eager.device:
        return "another layout or device"
    if eager.layout is not torch.strided:
        got, eager = got.to_dense(), eager.to_dense()
        precise = None if precise is None else precise.to_dense()
    if eager.is_quantized:
        got, eager = got.dequantize(), eager.dequantize()
    if got.is_complex():
        got, eager = (
            torch.view_as_real(got.resolve_conj()),
            torch.view_as_real(eager.resolve_conj()),
        )
        precise = None
    if not eager.dtype.is_floating_point:
        if torch.equal(got, eager):
            return None
        if precise is not None and torch.equal(got, precise.to(got.dtype)):
            return None
        return f"{int((got != eager).sum())} of {eager.numel()} elements differ"
    if eager.dtype not in _EPSILON or eager.dtype in (torch.float32, torch.float64):
        try:
            torch.testing.assert_close(got, eager, equal_nan=True)
        except AssertionError as error:
            reason = " ".join(str(error).split())[:200]
        else:
            return None
        if precise is None:
            return reason
    elif precise is None:
        ok = torch.isclose(got.double(), eager.double(), rtol=1.6e-2, atol=1e-5, equal_nan=True)
        return None if bool(ok.all()) else "differs from eager, and there is no float64 reference"
    return _against(got, eager, precise)


def _against(got: Tensor, eager: Tensor, precise: Tensor | None) -> str | None:
    assert precise is not None
    dtype = got.dtype
    wide_got, wide_eager = got.double(), eager.double()
    precise = precise.to(torch.float64)
    finite = wide_eager.isfinite() & precise.isfinite()
    error = torch.where(finite, (wide_eager - precise).abs(), 0.0)
    allowed = 2 * (error.max() if error.numel() else 0.0) + _FLOOR[dtype]
    off = (wide_got - precise).abs()
    close = off <= allowed + _EPSILON[dtype] * precise.abs()
    rounded = precise.to(dtype).double()
    same = (wide_got == wide_eager) | (wide_got.isnan() & wide_eager.isnan())
    same |= (wide_got == rounded) | (wide_got.isnan() & rounded.isnan())
    if dtype in _FEW_TOLERANCE and precise.numel() < FEW:
        rtol = _FEW_TOLERANCE[dtype]
        same |= torch.isclose(wide_got, wide_eager, rtol=rtol, atol=1e-5)
    wrong = ~(close | same)
    if not bool(wrong.any()):
        return None
    first = int(wrong.flatten().nonzero()[0])
    return (
        f"{int(wrong.sum())} of {wrong.numel()} elements: got {wide_got.flatten()[first]:.9g}, "
        f"eager {wide_eager.flatten()[first]:.9g}, float64 {precise.flatten()[first]:.9g}"
    )
