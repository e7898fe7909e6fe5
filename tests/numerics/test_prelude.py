"""The C++ prelude against torch in higher precision, for every target the compiler can aim at."""

from __future__ import annotations

import ctypes
import itertools
import math
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import deepcompile.codegen
from deepcompile.codegen.cpp_dtypes import C_STORAGE
from deepcompile.ir.ops import OPERAND_DTYPES, OPS, ScalarOp
from deepcompile.ir.references import philox_u32, uniform

PRELUDE = Path(deepcompile.codegen.__file__).with_name("prelude.h")
FLAGS = [
    "-std=c++17",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-shared",
    "-fPIC",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-psabi",
]
TARGETS = ("native", "x86-64-v3", "x86-64")
TORCH = {
    "f32": torch.float32,
    "f64": torch.float64,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "f8e4m3": torch.float8_e4m3fn,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "b1": torch.bool,
}
RANDOM = ("philox_u32", "uniform", "normal")
HOT = ("exp", "log", "tanh", "sigmoid", "erf", "pow", "sin", "log1p", "maximum", "lt", "where")
INF, NAN = float("inf"), float("nan")


def result_dtype(op: ScalarOp, dtype: str) -> str:
    return {"same": dtype, "bool": "b1", "int64": "i64", "float32": "f32"}[op.result]


def operand_dtypes(op: ScalarOp, dtype: str) -> list[str]:
    return ["b1" if op.name == "where" and k == 0 else dtype for k in range(op.arity)]


def loop(function: str, inputs: list[str], output: str, call: str, lead: str = "") -> str:
    """Return C++ for `function` over arrays: `v_` with vectors and a masked tail, `s_` scalar.

    `call` has one `{}` for the loaded arguments.
    """
    parameters = ", ".join(f"const {C_STORAGE[d]} *x{k}" for k, d in enumerate(inputs))
    parameters = f"{lead}{parameters}, {C_STORAGE[output]} *y, i64 n"
    full, tail, one = (
        call.format(", ".join(text.format(k=k) for k in range(len(inputs))))
        for text in ("dc_load(x{k} + i)", "dc_loadn(x{k} + i, n - i)", "dc_load1(x{k} + i)")
    )
    return f"""
void v_{function}({parameters}) {{
  i64 i = 0;
  for (; i + 16 <= n; i += 16) dc_store(y + i, {full});
  if (i < n) dc_storen(y + i, {tail}, n - i);
}}
void s_{function}({parameters}) {{
  for (i64 i = 0; i < n; ++i) dc_store1(y + i, {one});
}}"""


def sources(names: list[str]) -> str:
    parts = []
    for op in (OPS[name] for name in names):
        if op.name in RANDOM:
            output = result_dtype(op, "i64")
            parts.append(loop(op.name, ["i64"], output, f"dc_{op.name}(seed, {{}})", "i64 seed, "))
            continue
        for dtype in OPERAND_DTYPES[op.operands]:
            inputs, output = operand_dtypes(op, dtype), result_dtype(op, dtype)
            parts.append(loop(f"{op.name}_{dtype}", inputs, output, f"dc_{op.name}({{}})"))
    for source, (target, convert) in itertools.product(
        C_STORAGE,
        {
            "f32": "to_f32",
            "f64": "to_f64",
            "i32": "to_i32",
            "i64": "to_i64",
            "b1": "to_bool",
            "bf16": "to_f32",
            "f16": "to_f32",
            "f8e4m3": "to_f32",
            "i16": "to_i32",
            "i8": "to_i32",
            "u8": "to_i32",
        }.items(),
    ):
        parts.append(loop(f"cast_{source}_{target}", [source], target, f"dc_{convert}({{}})"))
    return "\n".join(parts) + EXTRA


EXTRA = """
void strided(const float *x, float *y, i64 stride, i64 n) {
  if (n == 16) dc_stores(y, stride, dc_loads(x, stride));
  else dc_stores(y, stride, dc_loadsn(x, stride, n), n);
}
void gather(const float *x, const i64 *at, i64 n, float *y) {
  dc_store(y, dc_gather(x, dc_load(at), dc_lane_mask(n)));
}
void pow_by(const float *x, float e, float *y) { dc_store(y, dc_pow(dc_load(x), e)); }
void round_bf16(const float *x, float *y) { dc_store(y, dc_round_bf16(dc_load(x))); }
void round_f16(const float *x, float *y) { dc_store(y, dc_round_f16(dc_load(x))); }
void wrap(const i32 *x, i32 *y) {
  dc_store(y, dc_wrap_i8(dc_load(x)));
  dc_store(y + 16, dc_wrap_u8(dc_load(x)));
  dc_store(y + 32, dc_wrap_i16(dc_load(x)));
}
void iota(i64 base, i64 step, i64 *y) { dc_store(y, dc_iota_i64(base, step)); }
float hsum(const float *x) { return dc_hsum(dc_load(x)); }
float hprod(const float *x) { return dc_hprod(dc_load(x)); }
float hmax(const float *x) { return dc_hmax(dc_load(x)); }
float hmin(const float *x) { return dc_hmin(dc_load(x)); }
i64 hsum_i64(const i64 *x) { return dc_hsum(dc_load(x)); }
i64 hmax_i64(const i64 *x) { return dc_hmax(dc_load(x)); }
i64 hargmax(const float *x) {
  float v;
  i64 at;
  dc_hargmax(dc_load(x), dc_iota_i64(0, 1), &v, &at);
  return at;
}
i64 hargmin(const float *x) {
  float v;
  i64 at;
  dc_hargmin(dc_load(x), dc_iota_i64(0, 1), &v, &at);
  return at;
}
i64 argmax(const float *x, i64 n) {
  vf32 v = dc_splat_f32(-__builtin_inff());
  vi64 at = dc_splat_i64(0x7fffffffffffffffLL);
  for (i64 i = 0; i + 16 <= n; i += 16)
    dc_argmax_combine(v, at, dc_load(x + i), dc_iota_i64(i, 1));
  float value;
  i64 best;
  dc_hargmax(v, at, &value, &best);
  return best;
}
i64 any_all(const bool8 *x) { return dc_hany(dc_load(x)) + 2 * dc_hall(dc_load(x)); }
void welford(const float *x, i64 n, float *out) {
  vf32 mean{}, m2{}, count{};
  for (i64 i = 0; i < n; i += 16)
    dc_welford_combine(mean, m2, count, dc_load(x + i), vf32{}, dc_splat_f32(1));
  dc_hwelford(mean, m2, count, out, out + 1, out + 2);
}
float lse(const float *x, i64 n) {
  vf32 m = dc_splat_f32(-__builtin_inff()), s{};
  for (i64 i = 0; i < n; i += 16) dc_lse_combine(m, s, dc_load(x + i), dc_splat_f32(1));
  float top, sum;
  dc_hlse(m, s, &top, &sum);
  return top + dc_log(sum);
}
"""


def build(folder: Path, target: str, names: list[str]) -> ctypes.CDLL:
    source = folder / "prelude_test.cpp"
    source.write_text(PRELUDE.read_text() + 'extern "C" {' + sources(names) + "}\n")
    library = folder / "prelude_test.so"
    command = ["g++", *FLAGS, "-O1", f"-march={target}", str(source), "-o", str(library)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return build(tmp_path_factory.mktemp("native"), "native", list(OPS))


@pytest.fixture(
    scope="module",
    params=[pytest.param(t, marks=[pytest.mark.slow] * (t != "native")) for t in TARGETS],
)
def every_target(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> ctypes.CDLL:
    flags = Path("/proc/cpuinfo").read_text().split()
    if request.param == "x86-64-v3" and not {"avx2", "fma"} <= set(flags):
        pytest.skip("this machine cannot run AVX2 code")
    return build(tmp_path_factory.mktemp("target"), request.param, list(HOT))


def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def call(function: Callable[..., None], inputs: list[torch.Tensor], output: str) -> torch.Tensor:
    """Run a loop function; a guard after the result must stay untouched."""
    n = inputs[0].numel()
    result = torch.full((n + 32,), 1, dtype=TORCH[output])
    function(*(pointer(x) for x in inputs), pointer(result), ctypes.c_longlong(n))
    assert torch.equal(result[n:], torch.full((32,), 1, dtype=TORCH[output]))
    return result[:n]


def special_floats(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    tiny = torch.finfo(dtype).tiny
    values = [0.0, -0.0, INF, -INF, NAN, 1.0, -1.0, 2.0, -2.0, 3.0, 0.5, -0.5, 1.5, 2.5, -2.5]
    values += [tiny, -tiny, tiny / 8, torch.finfo(dtype).max, -torch.finfo(dtype).max]
    values += [88.72, 88.73, -87.34, -103.9, -104.1, 127.9, 128.0, -149.0, -150.1, 1e-20, 1e6, 1e7]
    return torch.tensor(values, dtype=dtype)


def every_float(step: int = 4001) -> torch.Tensor:
    """Floats over all bit patterns, densely around zero, and the special ones."""
    patterns = torch.arange(-(2**31), 2**31, step, dtype=torch.int64).to(torch.int32)
    dense = torch.linspace(-20, 20, 400_003)
    return torch.cat([patterns.view(torch.float32), dense, special_floats()])


def assert_within(actual: torch.Tensor, exact: torch.Tensor, bound: float, x: object = "") -> None:
    """Check that `actual` (f32) lies within `bound` ulp of `exact` (f64), special values equal."""
    rounded = exact.float()
    finite = rounded.isfinite() & actual.isfinite()
    assert torch.equal(actual[~finite].nan_to_num(7.0), rounded[~finite].nan_to_num(7.0)), x
    exponent = torch.frexp(rounded[finite].double().abs()).exponent.clamp(min=-125)
    ulp = torch.exp2((exponent - 24).double())
    error = (actual[finite].double() - exact[finite]).abs() / ulp
    assert error.max() <= bound, (error.max(), x)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if not a.is_floating_point():
        return torch.equal(a, b)
    integers = torch.int32 if a.dtype == torch.float32 else torch.int64
    both_nan = a.isnan() & b.isnan()
    return bool(((a.view(integers) == b.view(integers)) | both_nan).all())


UNARY = [op for op in OPS.values() if op.arity == 1]
BINARY = [op for op in OPS.values() if op.arity == 2 and op.name not in RANDOM]


@pytest.mark.parametrize(
    "op", [op for op in UNARY if "f32" in OPERAND_DTYPES[op.operands]], ids=lambda op: op.name
)
def test_unary_f32(library: ctypes.CDLL, op: ScalarOp) -> None:
    x = every_float()
    output = result_dtype(op, "f32")
    vector = call(getattr(library, f"v_{op.name}_f32"), [x], output)
    scalar = call(getattr(library, f"s_{op.name}_f32"), [x], output)
    assert same_bits(vector, scalar)
    exact = op.resolve_reference()(x.double())
    if output == "b1":
        assert torch.equal(vector, op.resolve_reference()(x))
        return
    keep = where_reference_is_good(op, x)
    exact, vector = exact[keep], vector[keep]
    assert_within(vector, exact, 4.0 if op.ulp is None else max(op.ulp, 0.5), op.name)


def test_signed_zeros(library: ctypes.CDLL) -> None:
    x = torch.tensor([0.0, -0.0])
    odd = "neg abs square recip floor ceil trunc round expm1 log1p sqrt rsqrt tanh erf sin tan asin"
    for name in odd.split():
        y = call(getattr(library, f"v_{name}_f32"), [x], "f32")
        assert same_bits(y, OPS[name].resolve_reference()(x)), name


def where_reference_is_good(op: ScalarOp, x: torch.Tensor) -> torch.Tensor:
    """Leave out inputs on which eager in float64 is itself wrong, or libm only absolutely right."""
    if op.name == "lgamma":  # libm close to the zeros
        return x > 3
    if op.name in ("i0", "i0e", "i1", "i1e"):  # eager gives NaN
        return ~(x.double().abs() > 1e300)
    if op.name == "sinc":  # eager rounds pi x before it takes off the turns
        return (x.abs() < 100) & ((x - x.round()).abs() > 0.02) | (x.abs() < 1e-3)
    return torch.ones_like(x, dtype=torch.bool)


def pairs(dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    if dtype in ("f32", "f64"):
        special = special_floats(TORCH[dtype])
        a, b = (t.reshape(-1) for t in torch.meshgrid(special, special, indexing="ij"))
        normal = torch.randn(2, 20_003, generator=generator, dtype=TORCH[dtype]) * 10
        whole = torch.randint(-9, 10, (2, 5000), generator=generator).to(TORCH[dtype])
        return torch.cat([a, normal[0], whole[0]]), torch.cat([b, normal[1], whole[1]])
    if dtype == "b1":
        return torch.tensor([0, 0, 1, 1] * 9).bool(), torch.tensor([0, 1, 0, 1] * 9).bool()
    small = torch.randint(-9, 10, (2, 5003), generator=generator)
    big = torch.randint(-(2**31), 2**31, (2, 5000), generator=generator)
    edges = torch.tensor([-(2**31), 2**31 - 1, -1, 0, 1, 7])
    a, b = (t.reshape(-1) for t in torch.meshgrid(edges, edges, indexing="ij"))
    a, b = torch.cat([small[0], big[0], a]), torch.cat([small[1], big[1], b])
    return a.to(TORCH[dtype]), b.to(TORCH[dtype])


def binary_inputs(op: ScalarOp, dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = pairs(dtype)
    if dtype in ("f32", "f64") and op.name in ("fmod", "remainder"):
        keep = ~((a / b).abs() > 2**28) | (b == 0)  # eager's vectors give NaN where libm does not
        return a[keep], b[keep]
    if dtype not in ("i32", "i64"):
        return a, b
    if op.name in ("floordiv", "trunc_div", "remainder", "fmod"):
        keep = (b != 0) & ~((b == -1) & (a == torch.iinfo(a.dtype).min))  # eager raises or traps
        return a[keep], b[keep]
    if op.name in ("gcd", "lcm"):
        keep = (a != torch.iinfo(a.dtype).min) & (b != torch.iinfo(a.dtype).min)  # eager traps
        return a[keep], b[keep]
    if op.name in ("shl", "shr"):
        return a, b & 31
    if op.name == "pow":
        return a, b.clamp(0, 40)  # eager refuses a negative exponent
    return a, b


@pytest.mark.parametrize(
    ("op", "dtype"),
    [(op, dtype) for op in BINARY for dtype in OPERAND_DTYPES[op.operands]],
    ids=lambda value: value.name if isinstance(value, ScalarOp) else value,
)
def test_binary(library: ctypes.CDLL, op: ScalarOp, dtype: str) -> None:
    a, b = binary_inputs(op, dtype)
    output = result_dtype(op, dtype)
    vector = call(getattr(library, f"v_{op.name}_{dtype}"), [a, b], output)
    scalar = call(getattr(library, f"s_{op.name}_{dtype}"), [a, b], output)
    assert same_bits(vector, scalar)
    reference = op.resolve_reference()
    if dtype == "f32" and op.ulp:
        assert_within(vector, reference(a.double(), b.double()), op.ulp, op.name)
    elif op.ulp == 0:
        expected = reference(a, b)
        torch.testing.assert_close(vector, expected, rtol=0, atol=0, equal_nan=True)
    else:
        torch.testing.assert_close(vector, reference(a, b), rtol=1e-5, atol=1e-44, equal_nan=True)


def test_fmod_of_huge_quotients(library: ctypes.CDLL) -> None:
    a = torch.tensor([1.0, 1e30, -1e30, 3e38, 1e9, 7.5]).repeat(3)
    b = torch.tensor([2.0**-129, 3e-10, 3e-10, 1e-45, 0.3, 2.0]).repeat(3)
    expected = torch.tensor([math.fmod(x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)])
    for form in "vs":
        y = call(getattr(library, f"{form}_fmod_f32"), [a, b], "f32")
        assert torch.equal(y, expected)


@pytest.mark.parametrize(
    ("op", "dtype"),
    [
        (op, dtype)
        for op in UNARY
        for dtype in OPERAND_DTYPES[op.operands]
        if dtype != "f32" and not (op.name == "frac" and dtype != "f64")  # eager has no int frac
    ],
    ids=lambda value: value.name if isinstance(value, ScalarOp) else value,
)
def test_unary_other_dtypes(library: ctypes.CDLL, op: ScalarOp, dtype: str) -> None:
    x = pairs(dtype)[0]
    if op.name == "recip":
        x = x[x != 0]
    output = result_dtype(op, dtype)
    vector = call(getattr(library, f"v_{op.name}_{dtype}"), [x], output)
    scalar = call(getattr(library, f"s_{op.name}_{dtype}"), [x], output)
    assert same_bits(vector, scalar)
    keep = where_reference_is_good(op, x)
    expected = op.resolve_reference()(x)[keep]
    atol = 1e-14 if op.name == "digamma" else 0  # close to its zeros
    torch.testing.assert_close(vector[keep], expected, rtol=1e-12, atol=atol, equal_nan=True)


@pytest.mark.parametrize("dtype", OPERAND_DTYPES["any"])
def test_where(library: ctypes.CDLL, dtype: str) -> None:
    a, b = pairs(dtype)
    condition = torch.arange(a.numel()) % 3 == 0
    for form in "vs":
        y = call(getattr(library, f"{form}_where_{dtype}"), [condition, a, b], dtype)
        assert same_bits(y, torch.where(condition, a, b))


@pytest.mark.parametrize("name", ["exp", "log", "tanh", "sigmoid", "erf", "sin", "log1p"])
def test_hot_functions_on_every_target(every_target: ctypes.CDLL, name: str) -> None:
    x = every_float(40_009)
    vector = call(getattr(every_target, f"v_{name}_f32"), [x], "f32")
    assert_within(vector, OPS[name].resolve_reference()(x.double()), OPS[name].ulp or 0.5, name)


@pytest.mark.parametrize("name", ["pow", "maximum"])
def test_hot_binaries_on_every_target(every_target: ctypes.CDLL, name: str) -> None:
    a, b = pairs("f32")
    vector = call(getattr(every_target, f"v_{name}_f32"), [a, b], "f32")
    exact = OPS[name].resolve_reference()(a.double(), b.double())
    assert_within(vector, exact, OPS[name].ulp or 0.5, name)


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0, 0.5, -0.5, -1.0, -2.0, 0.0, 2.7])
def test_pow_by_a_uniform_exponent(library: ctypes.CDLL, exponent: float) -> None:
    x = torch.tensor([0.0, -0.0, INF, -INF, NAN, 1, -1, 2, -2, 0.3, 7, 1e20, 1e-20, -3, 9, 100.0])
    y = torch.empty(16)
    library.pow_by(pointer(x), ctypes.c_float(exponent), pointer(y))
    torch.testing.assert_close(y, torch.pow(x, exponent), rtol=3e-7, atol=0, equal_nan=True)


@pytest.mark.parametrize("target", list(C_STORAGE))
@pytest.mark.parametrize("source", list(C_STORAGE))
def test_load_convert_store(every_target: ctypes.CDLL, source: str, target: str) -> None:
    small = ["i8", "u8", "i16", "b1"]
    if TORCH[source].is_floating_point:
        x = pairs("f32")[0].to(TORCH[source])
        if not TORCH[target].is_floating_point and target != "b1":
            wide = x.float() if source == "f8e4m3" else x  # which eager does not compare
            x = x[wide.abs() < (100 if target in small else 1e9)]  # beyond is undefined in eager
            x = x.to(wide.dtype).abs().to(x.dtype) if target == "u8" else x
    else:
        x = pairs("i64")[0].to(TORCH[source])
    for form in "vs":
        y = call(getattr(every_target, f"{form}_cast_{source}_{target}"), [x], target)
        if source in ("f64", "i32", "i64") and target in ("bf16", "f16", "f8e4m3"):
            expected = x.float().to(TORCH[target])  # the register dtype is f32
        else:
            expected = x.to(TORCH[target])
        if target == "f8e4m3":
            assert torch.equal(y.view(torch.uint8), expected.view(torch.uint8))
            continue
        torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)


def f32_samples() -> torch.Tensor:
    """Numbers over all exponents, dense where 8-bit floats are, with ties and their neighbours."""
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    finite = codes[codes.isfinite()].sort().values
    ties = torch.cat([(finite[1:] + finite[:-1]) / 2, torch.tensor([464.0, -464.0, 480.0, -480.0])])
    exact = torch.cat([finite, ties])
    bits = exact.view(torch.int32)
    near = torch.cat([(bits + step).view(torch.float32) for step in (-2, -1, 1, 2)])
    every = torch.arange(-(2**31), 2**31, 40961).to(torch.int32).view(torch.float32)
    dense = torch.linspace(-500, 500, 100_003)
    edge = torch.tensor([0.0, -0.0, INF, -INF, NAN, 1e-45, -1e-45, 2**-9, 2**-10, 2**-10 * 1.001])
    return torch.cat([exact, near, every, dense, dense / 2**14, edge])


def test_8_bit_floats_are_those_of_torch(every_target: ctypes.CDLL) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    x = f32_samples()
    for form in "vs":
        wide = call(getattr(every_target, f"{form}_cast_f8e4m3_f32"), [codes], "f32")
        torch.testing.assert_close(wide, codes.float(), rtol=0, atol=0, equal_nan=True)
        assert torch.equal(wide.signbit(), codes.float().signbit())
        narrow = call(getattr(every_target, f"{form}_cast_f32_f8e4m3"), [x], "f8e4m3")
        expected = x.to(torch.float8_e4m3fn)
        assert torch.equal(narrow.view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize("n", range(17))
def test_tails_touch_nothing_else(every_target: ctypes.CDLL, n: int) -> None:
    for dtype in C_STORAGE:
        x = (torch.arange(n) % 2).to(TORCH[dtype])
        y = call(getattr(every_target, f"v_cast_{dtype}_{dtype}"), [x], dtype)
        assert torch.equal(x, y)


def test_tail_stops_at_the_end_of_a_mapping(every_target: ctypes.CDLL) -> None:
    """Read and write the last elements before an unmapped page."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    page = 4096
    base = libc.mmap(None, ctypes.c_size_t(2 * page), 3, 0x22, -1, ctypes.c_long(0))
    assert libc.mprotect(ctypes.c_void_p(base + page), ctypes.c_size_t(page), 0) == 0
    for dtype, n in itertools.product(C_STORAGE, (1, 7, 15)):
        at = ctypes.c_void_p(base + page - n * TORCH[dtype].itemsize)
        getattr(every_target, f"v_cast_{dtype}_{dtype}")(at, at, ctypes.c_longlong(n))
    libc.munmap(ctypes.c_void_p(base), ctypes.c_size_t(2 * page))


@pytest.mark.parametrize("n", [1, 5, 16])
def test_strided(every_target: ctypes.CDLL, n: int) -> None:
    x, y = torch.randn(64), torch.zeros(64)
    every_target.strided(pointer(x), pointer(y), ctypes.c_longlong(3), ctypes.c_longlong(n))
    expected = torch.zeros(64)
    expected[: 3 * n : 3] = x[: 3 * n : 3]
    assert torch.equal(y, expected)


@pytest.mark.parametrize("n", [0, 5, 16])
def test_gather_leaves_masked_lanes_alone(every_target: ctypes.CDLL, n: int) -> None:
    x, y = torch.randn(40), torch.ones(16)
    at = torch.randint(0, 40, (16,))
    at[n:] = 2**50
    every_target.gather(pointer(x), pointer(at), ctypes.c_longlong(n), pointer(y))
    expected = torch.zeros(16)
    expected[:n] = x[at[:n]]
    assert torch.equal(y, expected)


def test_rounding_kept_in_register(every_target: ctypes.CDLL) -> None:
    for x in torch.cat([special_floats(), torch.randn(480) * 1e3, torch.randn(992) * 1e-6])[
        : 1504 // 16 * 16
    ].split(16):
        if x.numel() < 16:
            continue
        x, y = x.clone(), torch.empty(16)
        every_target.round_bf16(pointer(x), pointer(y))
        torch.testing.assert_close(y, x.bfloat16().float(), rtol=0, atol=0, equal_nan=True)
        every_target.round_f16(pointer(x), pointer(y))
        torch.testing.assert_close(y, x.half().float(), rtol=0, atol=0, equal_nan=True)


def test_wrap_and_iota(every_target: ctypes.CDLL) -> None:
    x = torch.randint(-(2**31), 2**31, (16,)).int()
    y = torch.empty(48, dtype=torch.int32)
    every_target.wrap(pointer(x), pointer(y))
    assert torch.equal(
        y, torch.cat([x.to(d).int() for d in (torch.int8, torch.uint8, torch.int16)])
    )
    z = torch.empty(16, dtype=torch.int64)
    every_target.iota(ctypes.c_longlong(2**40), ctypes.c_longlong(-3), pointer(z))
    assert torch.equal(z, 2**40 - 3 * torch.arange(16))


def test_horizontal(every_target: ctypes.CDLL) -> None:
    for name in ("hsum", "hprod", "hmax", "hmin"):
        getattr(every_target, name).restype = ctypes.c_float
    every_target.hsum_i64.restype = every_target.hmax_i64.restype = ctypes.c_longlong
    x = torch.randn(16, generator=torch.Generator().manual_seed(1))
    assert every_target.hsum(pointer(x)) == pytest.approx(x.double().sum().item(), abs=1e-6)
    assert every_target.hprod(pointer(x)) == pytest.approx(x.double().prod().item(), rel=1e-5)
    assert every_target.hmax(pointer(x)) == x.max()
    assert every_target.hmin(pointer(x)) == x.min()
    whole = torch.randint(-(2**60), 2**60, (16,)) // 16
    assert every_target.hsum_i64(pointer(whole)) == whole.sum()
    assert every_target.hmax_i64(pointer(whole)) == whole.max()
    for k in range(16):
        y = x.clone()
        y[k] = NAN
        assert every_target.hmax(pointer(y)) != every_target.hmax(pointer(y))
        assert every_target.hargmax(pointer(y)) == every_target.hargmin(pointer(y)) == k
        y[k] = 100
        assert every_target.hargmax(pointer(y)) == k
        y[k] = y[15] = -100
        assert every_target.hargmin(pointer(y)) == k
        bits = torch.arange(16) == k
        assert every_target.any_all(pointer(bits)) == 1
        assert every_target.any_all(pointer(~bits)) == 1
    assert every_target.any_all(pointer(torch.ones(16).bool())) == 3
    assert every_target.any_all(pointer(torch.zeros(16).bool())) == 0


def test_argmax_state(every_target: ctypes.CDLL) -> None:
    x = torch.randint(-5, 6, (512,), generator=torch.Generator().manual_seed(2)).float()
    assert every_target.argmax(pointer(x), ctypes.c_longlong(512)) == x.argmax()
    x[[77, 300]] = NAN
    assert every_target.argmax(pointer(x), ctypes.c_longlong(512)) == 77
    x = torch.full((512,), -INF)
    assert every_target.argmax(pointer(x), ctypes.c_longlong(512)) == 0


def test_welford_and_lse_states(every_target: ctypes.CDLL) -> None:
    every_target.lse.restype = ctypes.c_float
    x = torch.randn(1024, generator=torch.Generator().manual_seed(3)) * 3 + 1000
    out = torch.empty(3)
    every_target.welford(pointer(x), ctypes.c_longlong(1024), pointer(out))
    assert out[0] == pytest.approx(x.double().mean().item(), rel=1e-6)
    assert out[1] / 1024 == pytest.approx(x.double().var(correction=0).item(), rel=1e-4)
    assert out[2] == 1024
    x[::7] = -INF
    exact = x.double().logsumexp(0).item()
    assert every_target.lse(pointer(x), ctypes.c_longlong(1024)) == pytest.approx(exact, rel=1e-6)
    for extreme in (INF, -INF):
        x.fill_(extreme)
        assert every_target.lse(pointer(x), ctypes.c_longlong(1024)) == extreme


@pytest.mark.parametrize("seed", [0, 1, -1, 2**40 + 12345])
@pytest.mark.parametrize("offset", [0, 3, 2**34 + 5])
def test_random_numbers_match_the_reference(library: ctypes.CDLL, seed: int, offset: int) -> None:
    at = torch.arange(offset, offset + 1003)

    def run(name: str, output: str) -> torch.Tensor:
        result = torch.empty(at.numel(), dtype=TORCH[output])
        split = torch.empty_like(result)
        for form, y in (("v", result), ("s", split)):
            function = getattr(library, f"{form}_{name}")
            function(ctypes.c_longlong(seed), pointer(at), pointer(y), ctypes.c_longlong(1003))
        assert same_bits(result, split)
        return result

    words = run("philox_u32", "i64")
    assert torch.equal(words, philox_u32(seed, at))
    assert words[5].item() == philox_u32(seed, offset + 5)
    assert torch.equal(run("uniform", "f32"), uniform(seed, at))
    normals = OPS["normal"].resolve_reference()(seed, at)
    torch.testing.assert_close(run("normal", "f32"), normals, rtol=1e-5, atol=1e-6)


def test_the_prelude_alone_compiles_fast(tmp_path: Path) -> None:
    source = tmp_path / "empty.cpp"
    source.write_text(PRELUDE.read_text())
    command = ["g++", *FLAGS, "-O3", "-march=native", "-c", str(source), "-o", "/dev/null"]
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run(command, check=True)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5  # 0.1 s on an idle machine


def test_the_prelude_includes_nothing() -> None:
    assert "#include" not in PRELUDE.read_text()
