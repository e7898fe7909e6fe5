"""Which library multiplies matrices: MKL through ATen, or oneDNN.

In float32 ATen always asks MKL. On processors of AMD, MKL takes a path that oneDNN beats by 1.4 to
3 times on the shapes of transformer training (`python -m benchmarks.gemm_choice` measures it); on
other processors ATen's own choice stands. `options={"tune": "measure"}` asks the
machine instead of this table.
"""

from __future__ import annotations

from dataclasses import dataclass

from .processor import processor_vendor


@dataclass(frozen=True)
class GemmChoice:
    """Use oneDNN for float32 products of at least `smallest` multiplications.

    Attributes:
        by_layout: sizes and strides alone decide, not also where in its storage an operand begins.
            A view is an operand with an offset in the graph that makes its base, and one without
            where it is an input.
    """

    onednn: bool
    smallest: int = 1 << 18
    by_layout: bool = False

    def prefers_onednn(self, rows: int, columns: int, depth: int) -> bool:
        """Whether a `rows x depth` by `depth x columns` product should go to oneDNN."""
        return self.onednn and rows >= 8 and rows * columns * depth >= self.smallest


def default_gemm_choice(*, by_layout: bool = False) -> GemmChoice:
    """The choice for this machine from the table in the module's docstring."""
    return GemmChoice(onednn=processor_vendor() == "AuthenticAMD", by_layout=by_layout)
