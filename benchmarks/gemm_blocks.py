"""One core, one block: `at::native::cpublas::brgemm` (oneDNN's microkernel) against whole products.

libtorch_cpu exports it for fp32, bf16, fp16 and int8. It takes leading dimensions, writes where it
is told, and needs no header, so generated C++ can call it between its own stages. Both operands
must be row-major: a transposed one is packed before. `python -m benchmarks.gemm_blocks`.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.gemm_choice import onednn

# at::native::cpublas::brgemm(M, N, K, lda, ldb, ldc, add_C, float*, float*, float*, is_vnni)
SYMBOL = "_ZN2at6native7cpublas6brgemmEllllllbPKfS3_Pfb"

BLOCKS = ((128, 256, 256), (64, 256, 256), (32, 256, 256), (128, 256, 704), (128, 768, 256))
CALLS = 8


def load() -> Callable[[Tensor, Tensor, Tensor], None]:
    """`brgemm(a, b, out)` on row-major tensors; AttributeError where torch does not export it."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    function = library[SYMBOL]
    function.restype = None
    pointers = [ctypes.c_void_p] * 3
    function.argtypes = [ctypes.c_int64] * 6 + [ctypes.c_bool, *pointers, ctypes.c_bool]

    def brgemm(a: Tensor, b: Tensor, out: Tensor) -> None:
        (rows, inner), columns = a.shape, b.shape[1]
        strides = a.stride(0), b.stride(0), out.stride(0)
        data = a.data_ptr(), b.data_ptr(), out.data_ptr()
        function(rows, columns, inner, *strides, False, *data, False)

    return brgemm


def cpu_seconds(function: Callable[[], object], samples: int = 30) -> float:
    """Least CPU time of a call; other processes cannot add to it."""
    best = float("inf")
    for _ in range(samples):
        started = time.process_time_ns()
        for _ in range(CALLS):
            function()
        best = min(best, (time.process_time_ns() - started) / 1e9 / CALLS)
    return best


def main() -> None:
    """Print GFLOP/s of one core on blocks that fit its L2 cache."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    brgemm = load()
    table = Table("m, n, k", "brgemm GF/s", "oneDNN linear GF/s", "MKL GF/s", "brgemm error")
    for rows, columns, inner in BLOCKS:
        a, b = torch.randn(rows, inner), torch.randn(inner, columns)
        out = torch.empty(rows, columns)
        seconds = (
            cpu_seconds(lambda: brgemm(a, b, out)),  # noqa: B023  # called at once
            cpu_seconds(lambda: onednn(a, b)),  # noqa: B023
            cpu_seconds(lambda: torch.mm(a, b, out=out)),  # noqa: B023
        )
        brgemm(a, b, out)
        exact = a.double() @ b.double()
        error = float((out.double() - exact).abs().max() / exact.abs().max())
        speeds = (f"{2 * rows * columns * inner / 1e9 / value:.0f}" for value in seconds)
        table.add_row(f"{rows}, {columns}, {inner}", *speeds, f"{error:.1e}")
    Console().print(table)


if __name__ == "__main__":
    main()
