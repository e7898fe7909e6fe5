"""A picture of placements on a mesh: parameters by layer, divided as their axes shard them.

One SVG without scripts: equal layers are drawn once, colours follow the reader's light or dark
scheme, and each shape has its text as a title and, on focus or under the pointer, below its layer.
The same plan gives the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape

from deepcompile.inspect.sharding import MODEL, ShardingRecord, folded
from deepcompile.options import format_size

_WIDTH, _LEFT, _CELL, _BOX = 960, 190, 110, 96
_TALL, _FLAT = 40, 14  # heights of matrices and of vectors
_LONGEST_BAR = 260
_MOST_LINES = 16
_SHARD = re.compile(r"S\((\d+)(?:;([\dx,]+))?\)")
_NUMBER = re.compile(r"(?:^|\.)\d+(?=\.|$)")
_NO_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

_STYLE = """
svg{--bg:#fff;--fg:#1f2328;--soft:#59636e;--line:#d1d9e0;--r:#8c959f;--s0:#0969da;--s1:#bc4c00;
--sn:#1a7f37;--sd:#8250df;--bar:#656d76;background:var(--bg);font:11px ui-monospace,monospace}
@media(prefers-color-scheme:dark){svg{--bg:#0d1117;--fg:#f0f6fc;--soft:#9198a1;--line:#3d444d;
--r:#656c76;--s0:#4493f8;--s1:#f0883e;--sn:#3fb950;--sd:#ab7df8;--bar:#9198a1}}
text{fill:var(--fg)}.soft{fill:var(--soft)}.head{font-size:15px;font-weight:bold}
.rule,.cut{fill:none;stroke:var(--line)}.cut{stroke:var(--bg);stroke-width:.8}
.r{fill:var(--r)}.s0{fill:var(--s0)}.s1{fill:var(--s1)}.sn{fill:var(--sn)}.sd{fill:var(--sd)}
.whole{fill-opacity:.3}.forward{fill:var(--bar)}.backward{fill:none;stroke:var(--bar)}
.arrow{fill:var(--soft)}.tip{display:none;fill:var(--soft)}
g:focus{outline:none}g:focus>.whole,g:hover>.whole{stroke:var(--fg);stroke-width:1.5}
g:focus>.tip,g:hover>.tip{display:block}
""".strip().replace("\n", "")

_LEGEND = {
    "r": "whole on every rank",
    "s0": "dimension 0 sharded",
    "s1": "dimension 1 sharded",
    "sn": "another dimension sharded",
    "sd": "sharded on data axes only",
}


@dataclass(frozen=True)
class _Cell:
    """Parameters of a layer of one kind."""

    name: str
    placements: str
    shape: tuple[int, ...]
    count: int
    bytes: int


@dataclass(frozen=True)
class _Bar:
    """Collectives of a layer of one kind; bytes and seconds of all of them."""

    phase: str
    kind: str
    axis: str
    count: int
    bytes: int
    microseconds: int


@dataclass
class _Layer:
    """Modules that are drawn as one: from `first` on `count` of them."""

    kind: str
    first: str
    last: str
    cells: tuple[_Cell, ...]
    bars: tuple[_Bar, ...]
    count: int = 1

    @property
    def title(self) -> str:
        if self.count == 1:
            return self.first or "(model)"
        number = self.last.rpartition(".")[2]
        return f"{self.first}-{number}  x{self.count}"


def svg_of(record: ShardingRecord) -> str:
    """The picture of one plan, as text of an SVG file."""
    layers = _folded_layers(_layers(record))
    picture = _Picture(record)
    picture.header(layers)
    for number, layer in enumerate(layers):
        picture.layer(layer, is_last=number == len(layers) - 1)
    return picture.text()


def _layers(record: ShardingRecord) -> list[_Layer]:
    """Modules up to the first number in their names, in the order of the model."""
    parameters: dict[str, list[str]] = {}
    for name in record.parameters:
        parameters.setdefault(_module(name), []).append(name)
    bars: dict[str, dict[tuple[str, str, str], list[float]]] = {}
    for move in record.moves:
        near = str(move.get("near", ""))
        module = _module(near) if near else ""
        key = str(move["phase"]), str(move["kind"]), str(move["axis"])
        total = bars.setdefault(module, {}).setdefault(key, [0, 0, 0.0])
        count = int(move.get("count", 1))
        for place, value in enumerate((1, int(move["bytes"]), float(move["seconds"]))):
            total[place] += count * value
    found = []
    for module in [*parameters, *(module for module in bars if module not in parameters)]:
        moved = tuple(
            _Bar(*key, int(total[0]), int(total[1]), round(total[2] * 1e6))
            for key, total in sorted(
                bars.get(module, {}).items(), key=lambda item: (item[0][0] != "forward", item[0])
            )
        )
        cells = tuple(_cells(record, module, parameters.get(module, ())))
        found.append(_Layer(folded(module), module, module, cells, moved))
    return found


def _module(name: str) -> str:
    number = _NUMBER.search(name)
    return name[: number.end()] if number else name.rpartition(".")[0]


def _cells(record: ShardingRecord, module: str, names: Iterable[str]) -> Iterator[_Cell]:
    groups: dict[tuple[str, str, tuple[int, ...]], list[int]] = {}
    for name in names:
        inside = name.removeprefix(module).removeprefix(".")
        fact = record.fact(name)
        key = folded(inside), record.parameters[name], tuple(fact.get("shape", ()))
        groups.setdefault(key, []).append(int(fact.get("bytes", 0)))
    for (inside, placements, shape), sizes in groups.items():
        yield _Cell(inside, placements, shape, len(sizes), sum(sizes))


def _folded_layers(layers: Sequence[_Layer]) -> list[_Layer]:
    """Neighbours that are alike as one."""
    found: list[_Layer] = []
    for layer in layers:
        before = found[-1] if found else None
        alike = before and (before.kind, before.cells, before.bars) == (
            layer.kind, layer.cells, layer.bars,
        )  # fmt: skip
        if before and alike and "*" in layer.kind:
            before.last, before.count = layer.first, before.count + 1
        else:
            found.append(layer)
    return found


@dataclass
class _Picture:
    """Lines of the picture, from above."""

    record: ShardingRecord
    lines: list[str] = field(default_factory=list)
    height: int = 0
    most: int = 1

    def header(self, layers: Sequence[_Layer]) -> None:
        """What it is of, and what the colours mean."""
        record = self.record
        title = "Plan of the model" if record.graph == MODEL else f"Graph {record.graph}"
        title += f" on {record.mesh}"
        facts = []
        if record.seconds:
            facts.append(
                f"step {record.seconds['total'] * 1e3:.3f} ms by the model, collectives "
                f"{record.seconds['communication'] * 1e3:.3f} ms"
            )
        if record.memory:
            facts.append(
                f"a rank holds {format_size(record.memory['parameters'])} of "
                f"{format_size(record.memory['one device'])}"
            )
        if record.gap is not None:
            facts.append(f"gap to the best plan {record.gap:.2%}")
        device = record.plan.get("device")
        self._text(16, 26, title + (f" ({device})" if device else ""), "head")
        self._text(16, 44, "; ".join(facts), "soft")
        used = {self._colour(cell.placements) for layer in layers for cell in layer.cells}
        x = 16
        for colour, meaning in _LEGEND.items():
            if colour in used:
                self.lines.append(f'<rect x="{x}" y="56" width="12" height="10" class="{colour}"/>')
                self._text(x + 17, 65, meaning)
                x += 17 + 7 * len(meaning) + 16
        note = "strong: the share of the first rank; bars: bytes of collectives, forward filled"
        self._text(16, 84, note, "soft")
        self.most = max((bar.bytes for layer in layers for bar in layer.bars), default=1) or 1
        self.height = 96

    def layer(self, layer: _Layer, *, is_last: bool) -> None:
        """A box of parameters, and under it what it communicates."""
        top = self.height
        per_row = (_WIDTH - _LEFT - 8) // _CELL
        self.lines.append(f'<path class="rule" d="M8 {top}H{_WIDTH - 8}"/>')
        self._text(16, top + 20, _short(layer.title, 24), title=layer.title)
        rows = [layer.cells[at : at + per_row] for at in range(0, len(layer.cells), per_row)]
        drawn: list[tuple[_Cell, int, int]] = []
        y = top + 8
        for row in rows:
            for place, cell in enumerate(row):
                drawn.append((cell, _LEFT + place * _CELL, y))
            y += 30 + max(_height(cell) for cell in row)
        tip = y + 14 * len(layer.bars) + 12
        for cell, x, at in drawn:
            self._cell(layer, cell, x, at, tip)
        for bar in layer.bars:
            self._bar(layer, bar, y, tip)
            y += 14
        self.height = tip + 8
        if not is_last:
            self.lines.append(
                f'<path class="arrow" d="M24 {top + 30}V{self.height - 10}h-4l5 8l5 -8h-4'
                f'V{top + 30}z"/>'
            )

    def _cell(self, layer: _Layer, cell: _Cell, x: int, y: int, tip: int) -> None:
        colour = self._colour(cell.placements)
        height = _height(cell)
        shape = "x".join(map(str, cell.shape)) if cell.shape else "shape not known"
        lies = ", ".join(
            f"{placement} on {axis}={size}"
            for placement, (axis, size) in zip(
                cell.placements.split(), self.record.axes, strict=True
            )
        )
        name = ".".join(part for part in (layer.kind, cell.name) if part)
        many = f", {cell.count} alike" if cell.count > 1 else ""
        held = f", {format_size(cell.bytes)} on a rank" if cell.bytes else ""
        told = f"{name} ({shape}): {lies}{many}{held}"
        count = f" x{cell.count}" if cell.count > 1 else ""
        shares, cuts = _division(cell, self.record.axes, height)
        box = f'x="{x}" y="{y + 14}" width="{_BOX}" height="{height}"'
        self.lines.append(f'<g tabindex="0"><title>{_safe(told)}</title>')
        shown = (cell.name or layer.first).removesuffix(".weight")
        self._text(x, y + 10, _end(shown, 15 - len(count)) + count)
        self.lines.append(f'<rect {box} class="{colour} whole"/>')
        parts = "".join(f"M{x + a} {y + 14 + b}h{w}v{h}h-{w}z" for a, b, w, h in shares)
        self.lines.append(f'<path class="{colour}" d="{parts}"/>')
        if cuts:
            lines = "".join(
                f"M{x + at} {y + 14}v{height}" if upright else f"M{x} {y + 14 + at}h{_BOX}"
                for upright, at in cuts
            )
            self.lines.append(f'<path class="cut" d="{lines}"/>')
        self._text(x, y + 25 + height, _short(cell.placements, 16), "soft")
        self._text(16, tip, told, "tip")
        self.lines.append("</g>")

    def _bar(self, layer: _Layer, bar: _Bar, y: int, tip: int) -> None:
        length = max(2, round(_LONGEST_BAR * bar.bytes / self.most))
        each = " a layer" if layer.count > 1 else ""
        told = (
            f"{bar.phase}: {bar.count} x {bar.kind} on {bar.axis}, {format_size(bar.bytes)}, "
            f"{bar.microseconds / 1e3:.3f} ms{each}"
        )
        self.lines.append(f'<g tabindex="0"><title>{_safe(told)}</title>')
        arrow = "M0 2h6l-3 6z" if bar.phase == "forward" else "M0 8h6l-3 -6z"
        self.lines.append(
            f'<path class="arrow" transform="translate({_LEFT - 10} {y})" d="{arrow}"/>'
            f'<rect x="{_LEFT}" y="{y + 1}" width="{length}" height="9" class="{_phase(bar)}"/>'
        )
        self._text(_LEFT + length + 6, y + 9, told)
        self.lines.append("</g>")

    def _colour(self, placements: str) -> str:
        """By the first dimension that a tensor axis shards."""
        data = set(self.record.plan.get("data_axes", ()))
        sharded = [
            (name in data, match[1])
            for (name, _), text in zip(self.record.axes, placements.split(), strict=True)
            if (match := _SHARD.fullmatch(text))
        ]
        dims = [dim for of_data, dim in sharded if not of_data]
        if not dims:
            return "sd" if sharded else "r"
        return {"0": "s0", "1": "s1"}.get(dims[0], "sn")

    def _text(self, x: int, y: int, text: str, kind: str = "", title: str = "") -> None:
        attribute = f' class="{kind}"' if kind else ""
        told = f"<title>{_safe(title)}</title>" if title and title != text else ""
        self.lines.append(f'<text x="{x}" y="{y}"{attribute}>{told}{_safe(text)}</text>')

    def text(self) -> str:
        """The file."""
        height = self.height + 8
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
                f'width="{_WIDTH}" height="{height}">',
                f"<style>{_STYLE}</style>",
                *self.lines,
                "</svg>",
                "",
            ]
        )


def _height(cell: _Cell) -> int:
    return _FLAT if len(cell.shape) == 1 else _TALL


def _division(
    cell: _Cell, axes: Sequence[tuple[str, int]], height: int
) -> tuple[list[tuple[float, float, float, float]], list[tuple[bool, float]]]:
    """Boxes of what the first rank has, and lines between parts as (upright, position)."""
    pieces, ranks = {False: 1, True: 1}, {False: 1, True: 1}
    for text, (_, size) in zip(cell.placements.split(), axes, strict=True):
        match = _SHARD.fullmatch(text)
        if match:
            # Vectors are drawn lying, so their only dimension goes to the right.
            upright = int(match[1]) > 0 or len(cell.shape) == 1
            pieces[upright] = max(pieces[upright], _pieces(match[2]))
            ranks[upright] *= size
    spans, cuts = {}, []
    for upright, extent in ((True, _BOX), (False, height)):
        shown = min(pieces[upright], _MOST_LINES)
        part = extent / shown
        spans[upright] = [(at * part, part / ranks[upright]) for at in range(shown)]
        count = shown * ranks[upright]
        step = -(-count // _MOST_LINES)
        cuts += [(upright, _round(at * extent / count)) for at in range(step, count, step)]
    boxes = [
        (_round(x), _round(y), _round(width), _round(tall))
        for x, width in spans[True]
        for y, tall in spans[False]
    ]
    return boxes, cuts


def _pieces(text: str | None) -> int:
    if not text:
        return 1
    return int(text.partition("x")[0]) if "x" in text else text.count(",") + 1


def _phase(bar: _Bar) -> str:
    return "forward" if bar.phase == "forward" else "backward"


def _round(value: float) -> float:
    return round(value, 1)


def _short(text: str, length: int) -> str:
    """Its begin and end where it is too long."""
    if len(text) <= length:
        return text
    half = max(1, (length - 1) // 2)
    return f"{text[: length - 1 - half]}…{text[-half:]}"


def _end(text: str, length: int) -> str:
    """Its end where it is too long: names of parameters differ there."""
    return text if len(text) <= length else "…" + text[1 - length :]


def _safe(text: str) -> str:
    return escape(_NO_XML.sub("\ufffd", text))
