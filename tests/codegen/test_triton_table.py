"""Triton over tables of rows: equal to the interpreter of nests, and vectors where they may be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, AdamW, NAdam, Optimizer, RMSprop

from deepcompile.backend import recording
from deepcompile.codegen.steps import TableStep
from deepcompile.codegen.triton_table import CHUNK, chunks_of, emit_triton_table, sources_of
from deepcompile.ir.interpret import interpret
from deepcompile.ir.kernel_op import KernelOp, Origin
from deepcompile.ir.nest import Kernel
from deepcompile.ir.nest_text import parse_kernel, print_kernel

triton = pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

from deepcompile.runtime.triton_interpreter import install  # noqa: E402
from deepcompile.runtime.triton_modules import load_source  # noqa: E402

UPDATE = """
kernel @k(inout p: f32[s0], in g: bf16[s0], in rate: f64[], out m: f16[s0], out big: b1[s0]) {
  sizes s0
  axes p0: parallel s0
  row:
    v0: f32 = load p[p0]
    v1: f32 = load g[p0]
    v2: f64 = load rate[0]
    v3: f32 = cast v2 to f32
    v4: f32 = mul v1 v3
    v5: f32 = sub v0 v4
    v6: f32 = cast v4 to f16
    v7: b1 = gt v4 v3
    store p[p0] v5
    store m[p0] v6
    store big[p0] v7
}
"""
COUNT = """
kernel @k(inout n: f32[], out m: f64[]) {
  row:
    v0: f32 = load n[0]
    v1: f32 = const 1.0
    v2: f32 = add v0 v1
    v3: f64 = cast v2 to f64
    v4: f64 = sqrt v3
    store n[0] v2
    store m[0] v4
}
"""
LENGTHS = (5, 0, 1, 64, 65, 1024, 7, 0, 1000, 5000)


@pytest.fixture(autouse=True, scope="module")
def _libdevice() -> None:
    if DEVICE == "cpu":
        install()


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def assert_equals_interpreter(
    kernel: Kernel,
    rows: list[dict[str, Tensor]],
    extents: tuple[int, ...],
    folder: Path,
    block: int,
) -> None:
    """Run the kernel twice over all rows; `rows` have the buffers' tensors on the device."""
    expected = [{name: tensor.cpu().clone() for name, tensor in row.items()} for row in rows]
    table = emit_triton_table(kernel, "kernel", block)
    names = [buffer.name for buffer in kernel.buffers]
    tensors = [row[name] for row in rows for name in names]
    numbers = iter(range(len(tensors)))
    slots = tuple(tuple(next(numbers) for _ in names) for _ in rows)
    step = TableStep(
        KernelOp(kernel, (), Origin((), ()), lambda *_: ()), 0, slots,
        tuple((0,) * len(names) for _ in rows), extents,
    )  # fmt: skip
    places = torch.tensor(
        [tensors[slot].data_ptr() + offset for slot, offset in sources_of(step)], device=DEVICE
    )
    chunks = torch.tensor(chunks_of(extents, table.block), dtype=torch.int64, device=DEVICE)
    module = load_source(table.source, folder)
    for _ in range(2):
        if len(chunks):
            getattr(module, table.function.name)[(len(chunks) // CHUNK,)](places, chunks)
        for row, extent in zip(expected, extents, strict=True):
            interpret(kernel, row, dict.fromkeys(kernel.sizes, extent))
    for found, wanted in zip(rows, expected, strict=True):
        for name, tensor in wanted.items():
            torch.testing.assert_close(found[name].cpu(), tensor, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("skip", [0, 1], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("block", [64, 1024])
def test_rows_of_all_lengths(block: int, skip: int, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)

    def row(count: int, dtype: torch.dtype) -> Tensor:
        made = torch.randn(count + skip, generator=generator).to(dtype)
        return made.to(DEVICE)[skip:]

    dtypes = {"p": torch.float32, "g": torch.bfloat16, "m": torch.float16, "big": torch.bool}
    rate = torch.tensor(0.1, dtype=torch.float64, device=DEVICE)
    rows = [{name: row(n, dtypes[name]) for name in dtypes} | {"rate": rate} for n in LENGTHS]
    assert_equals_interpreter(parse_kernel(UPDATE), rows, LENGTHS, tmp_path, block)


def test_single_values(tmp_path: Path) -> None:
    rows = [
        {
            "n": torch.tensor(float(number), device=DEVICE),
            "m": torch.tensor(0.0, dtype=torch.float64, device=DEVICE),
        }
        for number in range(5)
    ]
    assert_equals_interpreter(parse_kernel(COUNT), rows, (1,) * 5, tmp_path, 1024)


def test_a_table_of_nothing(tmp_path: Path) -> None:
    empty = {"p": torch.float32, "g": torch.bfloat16, "m": torch.float16, "big": torch.bool}
    row = {name: torch.empty(0, dtype=dtype, device=DEVICE) for name, dtype in empty.items()}
    rate = torch.tensor(1.0, dtype=torch.float64, device=DEVICE)
    assert_equals_interpreter(parse_kernel(UPDATE), [row | {"rate": rate}], (0,), tmp_path, 64)


def test_chunks_part_each_row_by_itself() -> None:
    assert chunks_of((5, 0, 8, 9), 4) == [
        0, 0, 5, 0, 4, 5,
        2, 0, 8, 2, 4, 8,
        3, 0, 9, 3, 4, 9, 3, 8, 9,
    ]  # fmt: skip
    assert chunks_of((0,), 4) == []


def test_places_are_those_of_slots_and_bytes_behind_them() -> None:
    op = KernelOp(parse_kernel(COUNT), (), Origin((), ()), lambda *_: ())
    step = TableStep(op, 0, ((3, 5), (4, 5)), ((0, 64), (0, 128)), (1, 1))
    assert sources_of(step) == [(3, 0), (5, 64), (4, 0), (5, 128)]


RULES: dict[str, Callable[[list[Tensor]], Optimizer]] = {
    "adamw": lambda p: AdamW(p, amsgrad=True),
    "sgd": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "nadam": lambda p: NAdam(p),
    "rmsprop": lambda p: RMSprop(p, momentum=0.9, centered=True),
}
BUILD = """
import json, re, sys
from pathlib import Path
from deepcompile.codegen.triton_build import compile_function
from deepcompile.codegen.triton_table import emit_triton_table
from deepcompile.ir.nest_text import parse_kernel
from deepcompile.runtime.triton_modules import load_source

folder, capability = Path(sys.argv[1]), int(sys.argv[2])
for path in sorted(folder.glob("*.txt")):
    table = emit_triton_table(parse_kernel(path.read_text()), "kernel")
    code = compile_function(load_source(table.source, folder), table.function, capability)
    accesses = re.findall(r"(?:ld|st)[.]global[.\\w]*", code.ptx)
    print(json.dumps([path.stem, code.registers, code.spilled, code.shared, accesses]))
"""


def kernels_of(rule: Callable[[list[Tensor]], Optimizer], dtype: torch.dtype) -> list[Kernel]:
    """The kernels of a rule's second step."""
    params = [torch.nn.Parameter(torch.ones(count, dtype=dtype)) for count in (5, 6)]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = rule(params)
    optimizer.step()
    with recording() as record:
        torch.compile(optimizer.step, backend="deepep")()
    (graph,) = record.graphs
    assert graph.spec is not None
    return [step.op.nest for step in graph.spec.steps if isinstance(step, TableStep)]


@pytest.mark.parametrize("capability", [80, pytest.param(90, marks=pytest.mark.slow)])
def test_compiles_for_a_gpu_without_one(capability: int, tmp_path: Path) -> None:
    """Nothing spills; whole chunks are read and written in vectors, and stay in their threads."""
    along = {}
    for name, rule in RULES.items():
        for dtype in (torch.float32, torch.bfloat16):
            torch._dynamo.reset()
            for number, kernel in enumerate(kernels_of(rule, dtype)):
                stem = f"{name}-{str(dtype).partition('.')[2]}-{number}"
                (tmp_path / f"{stem}.txt").write_text(print_kernel(kernel))
                along[stem] = [buffer for buffer in kernel.buffers if buffer.shape]
    along["mixed"] = [buffer for buffer in parse_kernel(UPDATE).buffers if buffer.shape]
    (tmp_path / "mixed.txt").write_text(UPDATE)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(tmp_path), str(capability)],
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"},
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [stem for stem, *_ in found] == sorted(along)
    for stem, registers, spilled, shared, accesses in found:
        assert spilled == shared == 0, stem
        assert registers <= 128, stem
        vectors = sum(".v2." in access or ".v4." in access for access in accesses)
        # A thread has eight elements of each row: one access in vectors or more.
        rows = [buffer for buffer in along[stem] if buffer.dtype not in ("b1", "i8", "u8")]
        needed = sum(1 + (buffer.role == "inout") for buffer in rows)
        assert vectors >= needed, (stem, accesses)
