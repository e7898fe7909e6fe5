"""Pictures of a graph that stay small: its modules as blocks, and the surroundings of one node."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deepcompile.inspect.collapse import Block, blocks, namespace, with_modules
from deepcompile.inspect.ir_text import RETURN, IRGraph, IRNode
from deepcompile.inspect.report.layout import HEIGHT, WIDTH, place
from deepcompile.inspect.report.text import clean

MOST_BLOCKS = 60
MOST_EDGES = 1200
REACH = 4
_INPUTS = ("placeholder", "get_attr")


@dataclass(frozen=True)
class Box:
    """A box: where it lies, two lines of text, what they are short for, and the node it shows."""

    x: int
    y: int
    title: str
    detail: str
    told: str
    kind: str
    node: str


@dataclass(frozen=True)
class Edge:
    """A line between boxes as an SVG path; `back` where it goes against the order."""

    path: str
    told: str
    back: bool


@dataclass(frozen=True)
class Picture:
    """Boxes and edges with the size of the whole, in pixels."""

    title: str
    width: int
    height: int
    boxes: tuple[Box, ...]
    edges: tuple[Edge, ...]
    box_width: int = WIDTH
    box_height: int = HEIGHT


def overview(graph: IRGraph, modules: Mapping[str, object]) -> Picture | None:
    """The modules of a graph, as deep as `MOST_BLOCKS` allow; None for a graph without nodes.

    Args:
        modules: as recorded: by path, names of nodes with spaces between.
    """
    kept = [node for node in graph.nodes if node.op not in (*_INPUTS, RETURN)]
    if not kept:
        return None
    known = with_modules(IRGraph("", tuple(kept)), modules)
    nodes = known.nodes
    deepest = min(8, max(len(namespace(node)) for node in nodes))
    by_depth = (blocks(known, depth) for depth in range(deepest, 0, -1))
    found = next((cut for cut in by_depth if len(cut) <= MOST_BLOCKS), None)
    if found is None:  # too many lines or modules even at the top: equal runs of nodes
        each = -(-len(nodes) // MOST_BLOCKS)
        parts = (n._replace(module=f"part{i // each + 1}") for i, n in enumerate(nodes))
        found = blocks(IRGraph("", tuple(parts)), 1)
    crossing = {
        (source, block.name): f"{count} value{'s' * (count > 1)}"
        for block in found
        for source, count in block.inputs.items()
    }
    title = "Modules of the graph before its passes"
    return _draw(title, [block.name for block in found], list(map(_block, found)), crossing)


def neighbourhood(graph: IRGraph, centre: str, most: int, reach: int = REACH) -> Picture | None:
    """Nodes around `centre`, the nearest first, at most `most`; None where there is no such node.

    Nothing is looked for behind an input of the graph: those that all nodes take would bring all.

    Args:
        reach: uses, in either direction, up to which nodes are shown.
    """
    nodes = graph.by_name
    if centre not in nodes or most < 1:
        return None
    found, waiting = {centre}, deque([(centre, 0)])
    while waiting and len(found) < most:
        name, distance = waiting.popleft()
        if distance == reach or (nodes[name].op in _INPUTS and name != centre):
            continue
        for other in (*nodes[name].inputs, *graph.users.get(name, ())):
            if other in nodes and other not in found and other != RETURN and len(found) < most:
                found.add(other)
                waiting.append((other, distance + 1))
    kept = [node for node in graph.nodes if node.name in found]
    edges = {
        (source, node.name): f"%{source} to %{node.name}"
        for node in kept
        for source in dict.fromkeys(node.inputs)
        if source in found
    }
    boxes = [_node(node, node.name == centre) for node in kept]
    shown = f"{len(kept)} of {len(nodes)} nodes around %{clean(centre, 200)}, after the last pass"
    return _draw(shown, [node.name for node in kept], boxes, edges)


def _block(block: Block) -> tuple[str, str, str, str, str]:
    most = ", ".join(f"{n} {op}" for op, n in list(block.ops.items())[:6])
    name = clean(block.name, 300)
    detail = f"{len(block.nodes)} node{'s' * (len(block.nodes) > 1)}"
    told = clean(f"{name}: {detail}: {most}", 600)
    return _end(name), detail, told, "block", clean(block.nodes[0], 200)


def _node(node: IRNode, centre: bool) -> tuple[str, str, str, str, str]:
    kind = "centre" if centre else "kernel" if node.op in ("kernel", "batch") else "node"
    kind = "input" if node.op in _INPUTS and not centre else kind
    label = node.label.removeprefix("aten.").removesuffix(".default")
    label = f"{label} {node.target}" if node.op in ("kernel", "batch") else label
    return (
        _end(clean(f"%{node.name}", 200)), _end(clean(f"{label} {node.type}", 200), first=True),
        clean(node.statement, 600), kind, clean(node.name, 200),
    )  # fmt: skip


def _draw(
    title: str,
    names: Sequence[str],
    texts: Sequence[tuple[str, str, str, str, str]],
    edges: Mapping[tuple[str, str], str],
) -> Picture:
    shown = dict(list(edges.items())[:MOST_EDGES])
    placed = place(names, list(shown))
    boxes = tuple(
        Box(*placed.corners[name], *text) for name, text in zip(names, texts, strict=True)
    )
    order = {name: number for number, name in enumerate(names)}
    lines = tuple(
        Edge(_curve(placed.corners[a], placed.corners[b]), clean(told, 600), order[a] >= order[b])
        for (a, b), told in shown.items()
    )
    return Picture(title, placed.width, placed.height, boxes, lines)


def _curve(source: tuple[int, int], target: tuple[int, int]) -> str:
    x0, y0 = source[0] + WIDTH // 2, source[1] + HEIGHT
    x1, y1 = target[0] + WIDTH // 2, target[1]
    bend = max(16, abs(y1 - y0) // 3)
    return f"M{x0} {y0}C{x0} {y0 + bend} {x1} {y1 - bend} {x1} {y1}"


def _end(text: str, *, first: bool = False) -> str:
    """What fits into a box: the end of a path, where names differ, or the first characters."""
    if len(text) <= 25:
        return text
    return text[:24] + "…" if first else "…" + text[-24:]
