"""The kernels of a program as a device has them: compiled, loaded, leaner where they spilled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from ..codegen.triton_function import TritonFunction
from ..codegen.triton_kernel import TritonKernel, emit_triton
from ..codegen.triton_matmul import TritonMatmul
from ..codegen.triton_schedule import TritonSchedule, leaner
from ..codegen.triton_table import TritonTable
from ..errors import CompileError
from ..ir.kernel_op import KernelOp
from .driver import Driver, Loaded
from .launch_table import LoadedRecord
from .triton_modules import load_source

Note = Callable[..., None]
Code = TritonKernel | TritonTable | TritonMatmul


@dataclass(frozen=True)
class LoadedKernel:
    """A kernel whose functions can be launched.

    Attributes:
        assuming: each function's code that takes some arguments for multiples of 16.
        general: room for the code that does not, filled when it is needed first.
    """

    kernel: Code
    module: ModuleType
    loaded: tuple[Loaded, ...]
    assuming: tuple[LoadedRecord, ...]
    general: tuple[LoadedRecord, ...]

    @property
    def spilled(self) -> int:
        """Bytes of a thread that did not fit its registers, of the worst function."""
        return max(function.spilled for function in self.loaded)


class TritonKernels:
    """Kernels by number.

    Args:
        ops: what they compute.
        code: their Triton, or why there is none.
        folder: where generated modules are kept; None: only for this process.
        note: told of kernels that the device's compiler refuses and of those that spilled.
        strict: raise instead.
    """

    def __init__(
        self,
        ops: Sequence[KernelOp],
        code: Sequence[Code | str],
        driver: Driver,
        folder: Path | None,
        note: Note,
        strict: bool = False,
    ) -> None:
        self._ops = ops
        self._code = list(code)
        self._by_rule = tuple(code)
        self._driver = driver
        self._folder = folder
        self.note = note
        self._strict = strict
        self._settled: set[int] = set()
        self._made: dict[tuple[int, frozenset[str]], LoadedKernel] = {}

    def __iter__(self) -> Iterator[Code | str]:
        """The Triton of each kernel as it stands, or why it runs as ATen ops."""
        return iter(self._code)

    def emitted(self, number: int) -> Code | str:
        """The Triton of a kernel as it stands, or why it runs as ATen ops."""
        return self._code[number]

    def by_rule(self, number: int) -> TritonKernel:
        """The Triton of a kernel under the schedule by rule."""
        kernel = self._by_rule[number]
        assert isinstance(kernel, TritonKernel)
        return kernel

    def schedule(self, number: int, schedule: TritonSchedule) -> None:
        """Emit a kernel anew under another schedule, for what is bound from now on."""
        kernel = self._code[number]
        assert isinstance(kernel, TritonKernel)
        self._code[number] = emit_triton(kernel.kernel, schedule, kernel.functions[0].name)
        self._settled.add(number)
        for key in [key for key in self._made if key[0] == number]:
            del self._made[key]

    def load(self, number: int, divisible: frozenset[str]) -> LoadedKernel | None:
        """A kernel whose arguments `divisible` are multiples of 16; None: it runs as ATen ops.

        Raises:
            CompileError: in strict mode, when Triton refuses it.
        """
        found = self._made.get((number, divisible))
        if found is not None:
            return found
        kernel = self._code[number]
        if isinstance(kernel, str):
            return None
        try:
            made = self.build(kernel, divisible)
            if number not in self._settled:
                made = self._leanest(made, divisible)
        except Exception as error:
            if kernel is not self._by_rule[number]:
                # A schedule remembered from when the device took it, or leaner than it takes.
                reason = f"{type(error).__name__}: {error}"[:500]
                self.note("candidate-refused", kernel=self._ops[number].nest.name, reason=reason)
                self._code[number] = self._by_rule[number]
                self._settled.discard(number)
                return self.load(number, divisible)
            self._refuse(number, error)
            return None
        self._settled.add(number)
        if made.kernel is not kernel and isinstance(made.kernel, TritonKernel):
            self._code[number] = made.kernel
            name, schedule = kernel.kernel.name, str(made.kernel.schedule)
            self.note("spilled", kernel=name, schedule=schedule, left=made.spilled)
        self._made[number, divisible] = made
        return made

    def build(self, kernel: Code, divisible: frozenset[str]) -> LoadedKernel:
        """Compile and load a kernel, whatever it spills.

        Raises:
            Exception: whatever Triton or the device raises.
        """
        module = load_source(kernel.source, self._folder)
        loaded = tuple(
            self._driver.load(module, function, divisible & frozenset(function.signature))
            for function in kernel.functions
        )
        return LoadedKernel(
            kernel,
            module,
            loaded,
            tuple(map(_record, loaded)),
            tuple(LoadedRecord() for _ in loaded),
        )

    def make_general(self, made: LoadedKernel, number: int, divisible: frozenset[str]) -> None:
        """Fill in the code of function `number` that assumes only `divisible`."""
        function: TritonFunction = made.kernel.functions[number]
        loaded = self._driver.load(made.module, function, divisible)
        record = made.general[number]
        record.threads, record.shared = loaded.threads, loaded.shared
        record.function = loaded.handle

    def _leanest(self, made: LoadedKernel, divisible: frozenset[str]) -> LoadedKernel:
        """The first schedule that does not spill, or the one that spills least."""
        best = last = made
        while last.spilled and isinstance(last.kernel, TritonKernel):
            schedule = leaner(last.kernel.schedule)
            if schedule is None:
                break
            name = last.kernel.functions[0].name
            last = self.build(emit_triton(last.kernel.kernel, schedule, name), divisible)
            if last.spilled < best.spilled:
                best = last
        return best

    def _refuse(self, number: int, error: Exception) -> None:
        """Run a kernel as ATen ops from now on."""
        op = self._ops[number]
        reason = f"Triton refused kernel {op.nest.name}: {type(error).__name__}: {error}"[:2000]
        if self._strict:
            raise CompileError(reason, origin=next(iter(op.origin.lines), None)) from error
        self._code[number] = reason
        self.note("fallback", kernel=op.nest.name, reason=reason)


def _record(loaded: Loaded) -> LoadedRecord:
    return LoadedRecord(loaded.handle, loaded.threads, loaded.shared)
