"""Generated C++ kernels against the interpreter: every reduction, both vector modes, all edges."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from deepcompile.codegen.cpp_kernel import emit_kernel
from deepcompile.codegen.cpp_program import prelude
from deepcompile.codegen.schedule import expand, plan
from deepcompile.ir.interpret import TORCH_DTYPES, interpret
from deepcompile.ir.nest import Kernel
from deepcompile.ir.nest_text import parse_kernel
from deepcompile.ir.verify import verify_kernel
from deepcompile.options import Options
from deepcompile.runtime.build import build
from deepcompile.runtime.threads import openmp_entry_points

EXTENTS = (1, 3, 15, 16, 17, 33, 1000)
INF, NAN = float("inf"), float("nan")


@dataclass
class Case:
    """One call of a kernel: tensors by buffer name and values of its sizes."""

    text: str
    tensors: dict[str, Tensor]
    sizes: dict[str, int] = field(default_factory=dict)
    kernel: Kernel = field(init=False)

    def __post_init__(self) -> None:
        self.kernel = parse_kernel(self.text)
        verify_kernel(self.kernel)

    def copies(self) -> dict[str, Tensor]:
        """Tensors whose memory is like that of the originals."""
        return {name: copy_of(tensor) for name, tensor in self.tensors.items()}


def copy_of(tensor: Tensor) -> Tensor:
    """A tensor with the same values, strides and offset in a storage of its own."""
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    base = torch.as_strided(tensor, (size,), (1,), 0).clone()
    return base.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


class Compiled:
    """Kernels of several cases in one library."""

    def __init__(self, cases: Sequence[Case], *, keeps_order: bool = False) -> None:
        self.numbers: dict[str, int] = {}
        self.workspaces = []
        bodies = []
        for case in cases:
            if case.text in self.numbers:
                continue
            number = self.numbers[case.text] = len(bodies)
            emitted = emit_kernel(case.kernel, f"k{number}", keeps_order=keeps_order)
            bodies.append(emitted.body)
            self.workspaces.append(emitted.workspace)
        source = "\n".join([prelude(), *bodies])
        options = Options(cache=False, deterministic=keeps_order)
        self.handle = build(source, options, lambda *_, **__: None).handle
        entries = openmp_entry_points()
        assert entries is not None
        self.handle.deepcompile_threads.argtypes = [ctypes.c_void_p] * 3
        self.handle.deepcompile_threads(*entries)

    def call(self, case: Case, tensors: Mapping[str, Tensor], threads: int) -> int:
        """Run a case in place; what the kernel says about its checks."""
        number = self.numbers[case.text]
        function = self.handle[f"k{number}"]
        function.restype = None
        buffers = case.kernel.buffers
        pointers = (ctypes.c_void_p * len(buffers))(*(tensors[b.name].data_ptr() for b in buffers))
        names = case.kernel.sizes
        sizes = (ctypes.c_int64 * max(len(names), 1))(*(case.sizes[name] for name in names))
        nbytes = int(self.workspaces[number].evaluate(case.sizes)) * threads
        scratch = torch.empty(nbytes + 64, dtype=torch.uint8)
        aligned = ctypes.c_void_p(scratch.data_ptr() + -scratch.data_ptr() % 64)
        failed = ctypes.c_int(0)
        function(pointers, sizes, aligned, ctypes.c_int64(threads), ctypes.byref(failed))
        return failed.value


def check(
    cases: Sequence[Case],
    *,
    threads: Sequence[int] = (1, 2),
    exact: bool = False,
    rtol: float = 2e-5,
    atol: float = 2e-4,
) -> None:
    """Compiled kernels write what the interpreter writes, and nothing else."""
    library = Compiled(cases)
    for case in cases:
        expected = case.copies()
        interpret(case.kernel, expected, case.sizes)
        for count in threads:
            found = case.copies()
            assert library.call(case, found, count) == 0
            for name, tensor in expected.items():
                a, b = (whole(t) for t in (found[name], tensor))
                message = f"{name} with {count} threads, sizes {case.sizes}:\n{case.text}"
                if exact or not tensor.is_floating_point():
                    assert torch.equal(a.isnan(), b.isnan()), message
                    assert torch.equal(a.nan_to_num(), b.nan_to_num()), message
                else:
                    narrow = tensor.dtype in (torch.bfloat16, torch.float16)
                    close = {"rtol": 1e-2, "atol": 1e-2} if narrow else {"rtol": rtol, "atol": atol}
                    torch.testing.assert_close(
                        a, b, equal_nan=True, **close, msg=lambda text, m=message: f"{text}\n{m}"
                    )


def whole(tensor: Tensor) -> Tensor:
    """All memory under a tensor, so that stray stores show."""
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.as_strided((size,), (1,), 0)


def vector_kind(text: str) -> str | None:
    """Whether the vector axis of a kernel's schedule is parallel or reduced."""
    kernel = expand(parse_kernel(text))
    name = plan(kernel).vector
    return next((axis.kind for axis in kernel.axes if axis.name == name), None)


def values(shape: tuple[int, ...], dtype: str, seed: int = 0) -> Tensor:
    """Random values of a storage dtype; small, so that products stay finite."""
    random_numbers = torch.Generator().manual_seed(seed)
    if dtype == "b1":
        return torch.randint(0, 9, shape, generator=random_numbers) == 0
    if dtype in ("f32", "f64", "bf16", "f16"):
        numbers = torch.randn(shape, generator=random_numbers, dtype=torch.float64)
        return numbers.to(TORCH_DTYPES[dtype])
    low = 0 if dtype == "u8" else -5
    return torch.randint(low, 6, shape, generator=random_numbers).to(TORCH_DTYPES[dtype])


# -- reductions of rows ---------------------------------------------------------------------------

FLOAT_REDUCTIONS = (
    ("sum", ""),
    ("prod", ""),
    ("max", ""),
    ("min", ""),
    ("argmax", "index"),
    ("argmax", "value"),
    ("argmin", "index"),
    ("argmin", "value"),
    ("welford", "mean"),
    ("welford", "m2"),
    ("lse", "max"),
    ("lse", "sum"),
)
INT_REDUCTIONS = FLOAT_REDUCTIONS[:8]
BOOL_REDUCTIONS = (("any", ""), ("all", ""))


def reduction_text(
    dtype: str, parts: Sequence[tuple[str, str]], mode: str, points: str, length: str
) -> str:
    """A kernel of all `parts` over x[points, length]; `mode` is the axis that is contiguous."""
    axes = f"axes p0: parallel {points}, r0: reduced {length}"
    sizes = ", ".join(size for size in (points, length) if not size.isdigit())
    at = f"{length}*p0 + r0" if mode == "reduced" else f"p0 + {points}*r0"
    shape = f"{points}, {length}" if mode == "reduced" else f"{length}, {points}"
    outs, loop, row = [], [f"v0: {dtype} = load x[{at}]"], []
    for number, (kind, part) in enumerate(parts, 1):
        result = "i64" if part == "index" else dtype
        outs.append(f"out y{number}: {result}[{points}]")
        dotted = f"{kind}.{part}" if part else kind
        loop.append(f"v{number}: {result} = reduce {dotted} v0")
        row.append(f"store y{number}[p0] v{number}")
    lines = [f"kernel @k(in x: {dtype}[{shape}], {', '.join(outs)}) {{"]
    lines += [f"sizes {sizes}"] if sizes else []
    return "\n".join([*lines, axes, "loop:", *loop, "row:", *row, "}"])


def reduction_case(
    dtype: str,
    parts: Sequence[tuple[str, str]],
    mode: str,
    points: int,
    length: int,
    *,
    dynamic: bool,
    x: Tensor | None = None,
) -> Case:
    names = ("s0", "s1") if dynamic else (str(points), str(length))
    text = reduction_text(dtype, parts, mode, *names)
    shape = (points, length) if mode == "reduced" else (length, points)
    tensors = {"x": values(shape, dtype, seed=points + length) if x is None else x}
    for number, (_, part) in enumerate(parts, 1):
        result = TORCH_DTYPES["i64" if part == "index" else dtype]
        tensors[f"y{number}"] = torch.zeros(points, dtype=result)
    return Case(text, tensors, {"s0": points, "s1": length} if dynamic else {})


REDUCTIONS = [
    ("f32", FLOAT_REDUCTIONS),
    ("f64", FLOAT_REDUCTIONS),
    ("i64", INT_REDUCTIONS),
    ("i32", INT_REDUCTIONS),
    ("b1", BOOL_REDUCTIONS),
]
MODES = ("reduced", "parallel")


@pytest.mark.parametrize(("dtype", "parts"), REDUCTIONS, ids=[dtype for dtype, _ in REDUCTIONS])
@pytest.mark.parametrize("mode", MODES)
def test_row_reductions_of_any_size(dtype: str, parts: Sequence[tuple[str, str]], mode: str):
    other = [(5, extent) for extent in EXTENTS] + [(extent, 5) for extent in EXTENTS] + [(40, 40)]
    cases = [reduction_case(dtype, parts, mode, p, r, dynamic=True) for p, r in other]
    assert vector_kind(cases[0].text) == mode
    # A product of many values of the same sign has a relative error only.
    check(cases, rtol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_row_reductions_of_known_size(mode: str):
    cases = []
    for extent in EXTENTS:
        points, length = (6, extent) if mode == "reduced" else (extent, 6)
        cases.append(reduction_case("f32", FLOAT_REDUCTIONS, mode, points, length, dynamic=False))
    check(cases, rtol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_rows_with_infinities_and_nans(mode: str):
    rows = [
        [INF, 1.0, -INF],
        [-INF] * 3,
        [NAN, INF, 0.0],
        [1.0, NAN, NAN],
        [INF, INF, 2.0],
        [-0.0, 0.0, -1.0],
        [5.0, 5.0, 5.0],
    ]
    cases = []
    for repeat in (1, 7, 40):
        x = torch.tensor(rows).repeat(1, repeat)
        x = x if mode == "reduced" else x.T.contiguous()
        case = reduction_case("f32", FLOAT_REDUCTIONS, mode, 7, 3 * repeat, dynamic=True, x=x)
        cases.append(case)
    check(cases)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ["f32", "i64", "b1"])
def test_empty_rows_and_no_rows(dtype: str, mode: str):
    parts = {"f32": FLOAT_REDUCTIONS[:2], "i64": INT_REDUCTIONS[:2], "b1": BOOL_REDUCTIONS}[dtype]
    pairs = ((5, 0), (40, 0), (0, 5), (0, 40), (0, 0))
    check([reduction_case(dtype, parts, mode, p, r, dynamic=True) for p, r in pairs])
    check([reduction_case(dtype, parts, mode, p, r, dynamic=False) for p, r in pairs])


def test_rows_of_several_axes():
    """The index of argmax counts in the order of the axes, whichever of them is the vector axis."""
    text = """
    kernel @k(in x: f32[3, 5, {a}, {b}], out y: f32[5], out z: i64[5],
              out w: f32[5, 3, {a}, {b}]) {{
      axes p0: parallel 5, r0: reduced 3, r1: reduced {a}, r2: reduced {b}
      loop:
        v0: f32 = load x[{x}]
        v1: f32 = reduce sum v0
        v2: i64 = reduce argmax.index v0
      row:
        store y[p0] v1
        store z[p0] v2
      loop:
        v3: f32 = sub v0 v1
        store w[{n}*p0 + {ab}*r0 + {b}*r1 + r2] v3
    }}
    """
    cases = []
    for a, b in ((4, 33), (33, 4), (16, 16), (1, 7)):
        for layout in ("rows", "columns"):
            ab = a * b
            at = f"{5 * ab}*r0 + {ab}*p0 + " + (
                f"{b}*r1 + r2" if layout == "rows" else f"r1 + {a}*r2"
            )
            x = values((3, 5, a, b), "f32", seed=a)
            tensors = {"x": x, "y": torch.zeros(5), "z": torch.zeros(5, dtype=torch.int64)}
            tensors["w"] = torch.zeros(5, 3, a, b)
            cases.append(Case(text.format(a=a, b=b, ab=ab, n=3 * ab, x=at), tensors))
    check(cases)


# -- sums over rows -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f32", "f64", "i64", "i32"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_columns_and_totals(dtype: str, dynamic: bool):
    """Accumulators of each thread are joined: of columns, of row values and of whole tensors."""
    text = """
    kernel @k(in x: {t}[{p}, {r}], out sums: {t}[{r}], out tops: {t}[{r}], out total: {t}[1],
              out most: {t}[1], out rows: {t}[{p}], out scaled: {t}[{r}]) {{
      {sizes}
      axes p0: parallel {p}, r0: reduced {r}
      loop:
        v0: {t} = load x[{r}*p0 + r0]
        v1: {t} = accumulate sum v0
        v2: {t} = accumulate max v0
        v3: {t} = reduce sum v0
        v11: {t} = reduce max v0
      row:
        v4: {t} = accumulate sum v3
        v5: {t} = accumulate max v11
        store rows[p0] v3
      total:
        v6: {t} = add v4 v4
        store total[0] v6
        store most[0] v5
      columns:
        v7: {t} = mul v1 v6
        store sums[r0] v1
        store tops[r0] v2
        store scaled[r0] v7
    }}
    """
    kind = TORCH_DTYPES[dtype]
    cases = []
    for p, r in ((1, 17), (300, 1000), (4000, 33), (2000, 3), (3, 15), (64, 16), (1, 1)):
        sizes = {"s0": p, "s1": r} if dynamic else {}
        names = {"p": "s0", "r": "s1", "sizes": "sizes s0, s1"} if dynamic else {}
        names = names or {"p": str(p), "r": str(r), "sizes": ""}
        tensors = {"x": values((p, r), dtype, seed=p), "rows": torch.zeros(p, dtype=kind)}
        tensors |= {name: torch.zeros(r, dtype=kind) for name in ("sums", "tops", "scaled")}
        tensors |= {name: torch.zeros(1, dtype=kind) for name in ("total", "most")}
        cases.append(Case(text.format(t=dtype, **names), tensors, sizes))
    check(cases, rtol=1e-3, atol=2e-2)


def test_columns_of_booleans():
    text = """
    kernel @k(in x: b1[{p}, {r}], out some: b1[{r}], out every: b1[{r}], out one: b1[1]) {{
      axes p0: parallel {p}, r0: reduced {r}
      loop:
        v0: b1 = load x[{r}*p0 + r0]
        v1: b1 = accumulate any v0
        v2: b1 = accumulate all v0
        v3: b1 = reduce any v0
      row:
        v4: b1 = accumulate all v3
      total:
        store one[0] v4
      columns:
        store some[r0] v1
        store every[r0] v2
    }}
    """
    cases = []
    for p, r in ((5, 3), (500, 100), (2, 17), (3000, 40)):
        tensors = {"x": values((p, r), "b1", seed=p), "one": torch.zeros(1, dtype=torch.bool)}
        tensors |= {name: torch.zeros(r, dtype=torch.bool) for name in ("some", "every")}
        cases.append(Case(text.format(p=p, r=r), tensors))
    check(cases)


@pytest.mark.parametrize("points", [0, 1, 3, 16, 100, 100_000])
def test_totals_without_rows(points: int):
    """A total over a parallel vector axis; of nothing it is the identity."""
    text = """
    kernel @k(in x: f32[s0], out y: f32[1], out z: f32[1]) {
      sizes s0
      axes p0: parallel s0
      row:
        v0: f32 = load x[p0]
        v1: f32 = accumulate sum v0
        v2: f32 = accumulate prod v0
      total:
        store y[0] v1
        store z[0] v2
    }
    """
    tensors = {"x": values((points,), "f32"), "y": torch.zeros(1), "z": torch.zeros(1)}
    check([Case(text, tensors, {"s0": points})], rtol=1e-4)


# -- values kept between loops --------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "storage",
    ["f32", "bf16", *(pytest.param(s, marks=pytest.mark.slow) for s in ("f16", "f64"))],
)
def test_softmax_keeps_its_exponentials(storage: str, mode: str):
    """Three loops over a row; the last reads what the second computed, or computes it again."""
    register = "f64" if storage == "f64" else "f32"
    text = """
    kernel @k(in x: {t}[{p}, {n}], out y: {t}[{p}, {n}]) {{
      axes p0: parallel {p}, r0: reduced {n}
      loop:
        v0: {f} = load x[{at}]
        v1: {f} = reduce max v0
      loop:
        v2: {f} = sub v0 v1
        v3: {f} = exp v2
        v4: {f} = reduce sum v3
      loop:
        v5: {f} = div v3 v4
        store y[{at}] v5
    }}
    """
    cases = []
    for extent in (*EXTENTS, 20000):
        n, p = (extent, 5) if mode == "reduced" else (9, extent)
        at = f"{n}*p0 + r0" if mode == "reduced" else f"p0 + {p}*r0"
        x = values((p, n), storage, seed=extent)
        body = text.format(t=storage, f=register, p=p, n=n, at=at)
        cases.append(Case(body, {"x": x, "y": torch.zeros_like(x)}))
    check(cases, rtol=1e-5, atol=1e-6)


def test_kept_booleans_and_integers():
    text = """
    kernel @k(in x: i64[6, {n}], in w: f32[97], out y: f32[6, {n}], out z: f32[6]) {{
      axes p0: parallel 6, r0: reduced {n}
      loop:
        v0: i64 = load x[{n}*p0 + r0]
        v1: b1 = in_range 0 <= v0 < 97
        v2: f32 = load w[v0] if v1
        v3: f32 = exp v2
        v4: f32 = reduce sum v3
      row:
        store z[p0] v4
      loop:
        v5: f32 = div v3 v4
        v6: f32 = where v1 v5 v2
        store y[{n}*p0 + r0] v6
    }}
    """
    cases = []
    for n in EXTENTS:
        x = torch.randint(-30, 130, (6, n), generator=torch.Generator().manual_seed(n))
        tensors = {"x": x, "w": values((97,), "f32"), "y": torch.zeros(6, n), "z": torch.zeros(6)}
        cases.append(Case(text.format(n=n), tensors))
    check(cases)


# -- addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize("extent", EXTENTS)
def test_strides_of_any_sign(extent: int):
    text = f"""
    kernel @k(in x: f32[{extent}], in w: f32[{3 * extent + 2}], out y: f32[{extent}],
              out z: f32[{2 * extent}]) {{
      axes p0: parallel {extent}
      row:
        v0: f32 = load x[-p0 + {extent - 1}]
        v1: f32 = load w[3*p0 + 2]
        v2: f32 = load w[1]
        v3: f32 = add v0 v1
        v4: f32 = add v3 v2
        store y[-p0 + {extent - 1}] v4
        store z[2*p0 + 1] v0
    }}
    """
    tensors = {"x": values((extent,), "f32"), "w": values((3 * extent + 2,), "f32")}
    tensors |= {"y": torch.zeros(extent), "z": torch.full((2 * extent,), 7.0)}
    check([Case(text, tensors)], exact=True)


def test_floor_divisions_and_remainders():
    text = """
    kernel @k(in x: f32[40], out y: f32[{n}], out z: i64[{n}]) {{
      axes p0: parallel {n}
      row:
        v0: f32 = load x[mod(p0, 7) + 5*floordiv(mod(p0, 35), 5)]
        v1: i64 = index floordiv(p0 - 100, 3) + mod(p0 - 100, 6)
        store y[p0] v0
        store z[p0] v1
    }}
    """
    cases = []
    for n in (1, 16, 33, 300):
        tensors = {"x": values((40,), "f32"), "y": torch.zeros(n)}
        tensors["z"] = torch.zeros(n, dtype=torch.int64)
        cases.append(Case(text.format(n=n), tensors))
    check(cases, exact=True)


@pytest.mark.parametrize("dtype", ["f32", "f64", "bf16", "i64", "i32", "u8", "b1"])
def test_gathers_under_masks(dtype: str):
    """No access where the mask is false, though the index lies far outside."""
    register = {"bf16": "f32", "u8": "i32"}.get(dtype, dtype)
    text = """
    kernel @k(in i: i64[s0], in x: {t}[50, 3], out y: {t}[s0, 3]) {{
      sizes s0
      axes p0: parallel s0, p1: parallel 3
      row:
        v0: i64 = load i[p0]
        v1: b1 = in_range 0 <= v0 < 50
        v2: {r} = load x[3*v0 + p1] if v1
        store y[3*p0 + p1] v2
    }}
    """
    cases = []
    for n in (0, 1, 16, 1000):
        i = torch.randint(-60, 120, (n,), generator=torch.Generator().manual_seed(n))
        i[::7] = 2**40
        kind = TORCH_DTYPES[dtype]
        tensors = {"i": i, "x": values((50, 3), dtype), "y": torch.ones(n, 3, dtype=kind)}
        cases.append(Case(text.format(t=dtype, r=register), tensors, {"s0": n}))
    check(cases, exact=True)


@pytest.mark.parametrize("n", [5, 16, 17, 40, 1000])
def test_range_tests_split_the_loop(n: int):
    """A concatenation: both parts and the seam between them, whole vectors or not."""
    text = f"""
    kernel @k(in a: f32[3, {n}], in b: f32[3, {n + 3}], out y: f32[3, {2 * n + 3}],
              out s: f32[3]) {{
      axes p0: parallel 3, r0: reduced {2 * n + 3}
      loop:
        v0: b1 = in_range 0 <= r0 < {n}
        v1: f32 = load a[{n}*p0 + r0] if v0
        v2: b1 = in_range 0 <= r0 - {n} < {n + 3}
        v3: f32 = load b[{n + 3}*p0 + r0 - {n}] if v2
        v4: f32 = where v0 v1 v3
        v5: f32 = reduce sum v4
        store y[{2 * n + 3}*p0 + r0] v4
      row:
        store s[p0] v5
      loop:
        v6: f32 = sub v4 v5
        v7: f32 = reduce max v6
    }}
    """
    text = text.replace("out s: f32[3]", "out s: f32[3], out m: f32[3]")
    text = text.rstrip().removesuffix("}") + "  row:\n        store m[p0] v7\n    }\n"
    tensors = {"a": values((3, n), "f32"), "b": values((3, n + 3), "f32", seed=1)}
    tensors |= {"y": torch.zeros(3, 2 * n + 3), "s": torch.zeros(3), "m": torch.zeros(3)}
    check([Case(text, tensors)])


# -- dtypes ---------------------------------------------------------------------------------------

REGISTERS = {"f32": "f32", "f64": "f64", "bf16": "f32", "f16": "f32", "i64": "i64", "i32": "i32"}
REGISTERS |= {"i16": "i32", "i8": "i32", "u8": "i32", "b1": "b1"}


@pytest.mark.parametrize("mode", ["contiguous", "strided"])
def test_every_storage_dtype_is_read_cast_and_written(mode: str):
    step = 1 if mode == "contiguous" else 2
    cases = []
    for n in (1, 15, 16, 17, 1000):
        for source in REGISTERS:
            # Narrow floats hold all of the small whole numbers used here.
            outs = ", ".join(f"out y{k}: {to}[{step * n}]" for k, to in enumerate(REGISTERS))
            lines = [f"kernel @k(in x: {source}[{step * n}], {outs}) {{"]
            lines += [f"axes p0: parallel {n}", "row:"]
            lines += [f"v100: {REGISTERS[source]} = load x[{step}*p0]"]
            x = values((step * n,), source)
            if x.is_floating_point():
                x = (x * 3).round()
            # Negative numbers have no unsigned value that everybody agrees on.
            stores, tensors = [], {"x": x if source == "b1" else x.abs()}
            for k, (to, register) in enumerate(REGISTERS.items()):
                lines.append(f"v{k}: {register} = cast v100 to {to}")
                stores.append(f"store y{k}[{step}*p0] v{k}")
                tensors[f"y{k}"] = torch.zeros(step * n, dtype=TORCH_DTYPES[to])
            cases.append(Case("\n".join([*lines, *stores, "}"]), tensors))
    check(cases, exact=True)


@pytest.mark.parametrize("storage", ["bf16", "f16"])
def test_narrow_floats_round_to_nearest_even(storage: str):
    text = f"""
    kernel @k(in x: f32[s0], out y: {storage}[s0], out z: f32[s0]) {{
      sizes s0
      axes p0: parallel s0
      row:
        v0: f32 = load x[p0]
        v1: f32 = cast v0 to {storage}
        store y[p0] v0
        store z[p0] v1
    }}
    """
    edges = [0.0, -0.0, 1e-40, 6e-8, 3e-8, 65504.0, 65519.0, 65520.0, 1e38, 3.4e38, INF, -INF, NAN]
    bits = torch.randint(-(2**31), 2**31 - 1, (5000,), generator=torch.Generator().manual_seed(0))
    x = torch.cat([torch.tensor(edges), bits.to(torch.int32).view(torch.float32)])
    kind = TORCH_DTYPES[storage]
    tensors = {"x": x, "y": torch.zeros(len(x), dtype=kind), "z": torch.zeros(len(x))}
    check([Case(text, tensors, {"s0": len(x)})], exact=True)


# -- random numbers, writing in place, no axes ----------------------------------------------------


@pytest.mark.parametrize("extent", [1, 3, 16, 17, 1000])
def test_random_numbers_are_those_of_the_interpreter(extent: int):
    text = f"""
    kernel @k(in seed: i64[1], out flat: f32[7, {extent}], out bell: f32[7, {extent}]) {{
      axes p0: parallel 7, p1: parallel {extent}
      row:
        v0: i64 = load seed[0]
        v1: f32 = rand uniform v0 at {extent}*p0 + p1 + 12345678901
        v2: f32 = rand normal v0 at {extent}*p0 + p1
        store flat[{extent}*p0 + p1] v1
        store bell[{extent}*p0 + p1] v2
    }}
    """
    uniform = {"seed": torch.tensor([2**62 + 99]), "flat": torch.zeros(7, extent)}
    case = Case(text, uniform | {"bell": torch.zeros(7, extent)})
    check([case], rtol=1e-5, atol=1e-5)
    library = Compiled([case])
    found, expected = case.copies(), case.copies()
    library.call(case, found, 1)
    interpret(case.kernel, expected, {})
    assert torch.equal(found["flat"], expected["flat"])


@pytest.mark.parametrize("n", [1, 16, 33, 5000])
def test_a_buffer_is_updated_in_place(n: int):
    text = """
    kernel @k(inout x: f32[s0], in g: f32[s0], out old: f32[s0]) {
      sizes s0
      axes p0: parallel s0
      row:
        v0: f32 = load x[p0]
        v1: f32 = load g[p0]
        v2: f32 = const -0.5
        v3: f32 = mul v1 v2
        v4: f32 = add v0 v3
        store old[p0] v0
        store x[p0] v4
    }
    """
    tensors = {"x": values((n,), "f32"), "g": values((n,), "f32", seed=1), "old": torch.zeros(n)}
    check([Case(text, tensors, {"s0": n})])


def test_a_kernel_without_axes():
    text = """
    kernel @k(in x: f32[1], out y: f32[1]) {
      row:
        v0: f32 = load x[0]
        v1: f32 = exp v0
        store y[0] v1
    }
    """
    check([Case(text, {"x": torch.tensor([0.5]), "y": torch.zeros(1)})])


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_more_threads_than_rows(threads: int):
    text = """
    kernel @k(in x: f32[s0, 30000], out y: f32[s0], out t: f32[1]) {
      sizes s0
      axes p0: parallel s0, r0: reduced 30000
      loop:
        v0: f32 = load x[30000*p0 + r0]
        v1: f32 = reduce sum v0
      row:
        v2: f32 = accumulate sum v1
        store y[p0] v1
      total:
        store t[0] v2
    }
    """
    cases = []
    for rows in (1, 2, 3, 10):
        tensors = {"x": values((rows, 30000), "f32"), "y": torch.zeros(rows), "t": torch.zeros(1)}
        cases.append(Case(text, tensors, {"s0": rows}))
    check(cases, threads=[threads], rtol=1e-4, atol=1e-2)
