"""A matrix product in Triton that ends with what reads it: the template and its epilogue.

The epilogue is a pointwise kernel whose points are the elements of the product. It gets the value
rounded as the library would have stored it, so fusing changes no result but by the order of sums.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.index import Index, product
from ..ir.nest import Accumulate, Check, Kernel, Load, Reduce
from .triton_function import TritonFunction
from .triton_kernel import module_text
from .triton_schedule import INT32_SPAN, TritonSchedule, plan_triton
from .triton_spelling import POINTER, TRITON_DTYPE, CannotEmit
from .triton_text import UNIFORM, Extent
from .triton_tiles import Main

GROUP = 8
"""Rows of tiles done side by side, so that they find each other's operands in the cache."""


@dataclass(frozen=True)
class MatmulTile:
    """How a product is cut: the tile of a program, its steps along the depth, warps and stages."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


TILES = (
    MatmulTile(128, 128, 64, 8, 3),
    MatmulTile(128, 256, 64, 8, 3),
    MatmulTile(256, 128, 64, 8, 3),
    MatmulTile(128, 64, 64, 4, 4),
    MatmulTile(64, 128, 64, 4, 4),
    MatmulTile(64, 64, 64, 4, 4),
    MatmulTile(32, 128, 64, 4, 4),
    MatmulTile(16, 128, 128, 4, 4),
)
"""Tiles worth timing."""


@dataclass(frozen=True)
class MatmulShape:
    """`rows x depth` times `depth x columns`; strides in elements, operands of one dtype."""

    rows: int
    columns: int
    depth: int
    left: tuple[int, int]
    right: tuple[int, int]
    dtype: str
    bias: bool = False

    @property
    def reach(self) -> int:
        """The furthest element of an operand from its first one."""
        down, along = self.left
        left = (self.rows - 1) * down + (self.depth - 1) * along
        down, along = self.right
        return max(left, (self.depth - 1) * down + (self.columns - 1) * along)

    def tiles(self) -> list[MatmulTile]:
        """Those of `TILES` that are not mostly empty."""
        most = 2 * max(16, self.rows)
        return [t for t in TILES if t.rows <= most and t.columns <= 2 * max(16, self.columns)]


@dataclass(frozen=True)
class TritonMatmul:
    """A product and its epilogue as one function.

    Its arguments: `left`, `right`, `bias` if there is one, then the buffers of the kernel.
    """

    kernel: Kernel
    shape: MatmulShape
    tile: MatmulTile
    function: TritonFunction

    @property
    def functions(self) -> tuple[TritonFunction, ...]:
        """The one function, as other kernels have several."""
        return (self.function,)

    @property
    def source(self) -> str:
        """The module's text."""
        return module_text(self.functions)

    @property
    def programs(self) -> int:
        """How many programs it is launched with."""
        return -(-self.shape.rows // self.tile.rows) * -(-self.shape.columns // self.tile.columns)


def is_epilogue(kernel: Kernel, buffer: str, shape: MatmulShape) -> bool:
    """Whether a kernel can follow a product tile by tile, reading it from `buffer`.

    It has to be pointwise over the product's elements, each of which it reads at its own place.
    """
    points = product([axis.extent for axis in kernel.parallel])
    if kernel.reduced or kernel.sizes or points.constant() != shape.rows * shape.columns:
        return False
    place, below = Index.of(0), Index.of(1)
    for axis in reversed(kernel.parallel):
        place = place + Index.of(axis.name) * below
        below = below * axis.extent
    found = False
    for instr in kernel.instructions():
        if isinstance(instr, (Accumulate, Check, Reduce)):
            return False
        if isinstance(instr, Load) and instr.buffer == buffer:
            if instr.index != place or instr.mask is not None:
                return False
            found = True
    return found


def emit_matmul(
    kernel: Kernel, buffer: str, shape: MatmulShape, tile: MatmulTile, name: str
) -> TritonMatmul:
    """The Triton of a product whose epilogue is `kernel`, which `is_epilogue` lets pass.

    Raises:
        CannotEmit: when an op has no Triton spelling.
    """
    if shape.dtype not in ("bf16", "f16"):
        raise CannotEmit(f"a product of {shape.dtype}")
    return TritonMatmul(kernel, shape, tile, _Matmul(kernel, buffer, shape, tile, name).emit())


class _Matmul(Main):
    def __init__(
        self, kernel: Kernel, buffer: str, shape: MatmulShape, tile: MatmulTile, name: str
    ) -> None:
        wide = plan_triton(kernel).wide or shape.reach >= INT32_SPAN
        points = tile.rows * tile.columns
        super().__init__(kernel, TritonSchedule(points, 1, True, tile.warps, wide=wide), name)
        self.result = buffer
        self.product = shape
        self.cut = tile
        self.mask_points = bool(shape.rows % tile.rows or shape.columns % tile.columns)

    def shape(self, extent: Extent) -> str:
        return f"[{self.cut.rows}, {self.cut.columns}]" if extent.points else "[1, 1]"

    def pointers(self, buffer: str, index: Index, at_least: Extent = UNIFORM) -> tuple[str, Extent]:
        text, extent = super().pointers(buffer, index, at_least)
        # A bias varies along one side of the tile only, but masks are whole tiles.
        if extent.points and self.mask_points:
            text = f"tl.broadcast_to({text}, {self.shape(extent)})"
        return text, extent

    def _load(self, load: Load) -> None:
        if load.buffer == self.result:
            self.define(load, "product")
        else:
            super()._load(load)

    def emit(self) -> TritonFunction:
        self._place()
        self._multiply()
        shape = self.product
        self.line("m = m[:, None]")
        self.line("n = n[None, :]")
        if self.mask_points:
            self.line(f"xmask = (m < {shape.rows}) & (n < {shape.columns})")
        self._axes()
        for stage in self.kernel.stages:
            self._body(stage.body)
        operand = POINTER[shape.dtype]
        signature = {"left": operand, "right": operand}
        if shape.bias:
            signature["bias"] = operand
        signature |= {buffer.name: POINTER[buffer.dtype] for buffer in self.kernel.buffers}
        text = f"def {self.name}({', '.join(signature)}):\n" + "\n".join(self.lines)
        return TritonFunction(
            self.name, text, signature, self.cut.warps, "product", stages=self.cut.stages
        )

    def _place(self) -> None:
        """Which tile is this program's: down a group of rows of tiles, then on to the right."""
        shape, tile = self.product, self.cut
        down, across = -(-shape.rows // tile.rows), -(-shape.columns // tile.columns)
        self.line("pid = tl.program_id(0)")
        self.line(f"above = pid // {GROUP * across} * {GROUP}")
        self.line(f"height = tl.minimum({down} - above, {GROUP})")
        self.line(f"inside = pid % {GROUP * across}")
        self.line(f"m = (above + inside % height) * {tile.rows} + tl.arange(0, {tile.rows})")
        self.line(f"n = inside // height * {tile.columns} + tl.arange(0, {tile.columns})")
        if self.schedule.wide:
            self.line("m = m.to(tl.int64)")
            self.line("n = n.to(tl.int64)")

    def _multiply(self) -> None:
        shape, tile = self.product, self.cut
        uneven = shape.depth % tile.depth != 0
        wide = ".to(tl.int64)" if self.schedule.wide else ""
        self.line(f"inner = tl.arange(0, {tile.depth}){wide}")
        self.line(f"sums = tl.zeros([{tile.rows}, {tile.columns}], tl.float32)")
        with self.block(f"for start in range(0, {shape.depth}, {tile.depth}):"):
            self.line("k = start + inner")
            self._operand(
                "lhs", "left", ("m[:, None]", "k[None, :]"), shape.left,
                [f"(m[:, None] < {shape.rows})"] * bool(shape.rows % tile.rows)
                + [f"(k[None, :] < {shape.depth})"] * uneven,
            )  # fmt: skip
            self._operand(
                "rhs", "right", ("k[:, None]", "n[None, :]"), shape.right,
                [f"(k[:, None] < {shape.depth})"] * uneven
                + [f"(n[None, :] < {shape.columns})"] * bool(shape.columns % tile.columns),
            )  # fmt: skip
            self.line("sums = tl.dot(lhs, rhs, sums)")
        if shape.bias:
            mask = f", mask=n < {shape.columns}, other=0" * bool(shape.columns % tile.columns)
            self.line(f"sums += tl.load(bias + n{mask}).to(tl.float32)[None, :]")
        self.line(f"product = sums.to({TRITON_DTYPE[shape.dtype]}).to(tl.float32)")

    def _operand(
        self,
        name: str,
        pointer: str,
        places: tuple[str, str],
        strides: tuple[int, int],
        conditions: list[str],
    ) -> None:
        terms = [
            place if stride == 1 else f"{place} * {stride}"
            for place, stride in zip(places, strides, strict=True)
        ]
        mask = f", mask={' & '.join(conditions)}, other=0" if conditions else ""
        self.line(f"{name} = tl.load({pointer} + ({' + '.join(terms)}){mask})")

    def _axes(self) -> None:
        """The kernel's axes: those within a row from `n`, those above from `m`, if that is so."""
        axes = [(axis.name, axis.extent) for axis in self.kernel.parallel]
        for cut in range(len(axes) + 1):
            if product([extent for _, extent in axes[cut:]]).constant() == self.product.columns:
                for part, flat in ((axes[:cut], "m"), (axes[cut:], "n")):
                    if part:
                        self.define_axes(part, flat)
                return
        self.line(f"x = m * {self.product.columns} + n")
        self.define_axes(axes, "x")
