"""Graphs as text for graphviz, and as SVG where its program `dot` is there."""

from __future__ import annotations

import shutil
import subprocess

from deepcompile.errors import RunDirError
from deepcompile.inspect.ir_text import RETURN, IRGraph, IRNode

MAX_NODES = 500
"""Nodes that `dot` is asked to lay out; it takes minutes for thousands."""
SECONDS = 20
"""Time that it has."""
_FILLS = {"placeholder": "#e8e8e8", "get_attr": "#e8e8e8", "kernel": "#d5e8d4", "block": "#dae8fc"}


def dot_text(graph: IRGraph, *, title: str = "", marked: str = "") -> str:
    """`graph` in the language of graphviz: a box for each node, an arrow for each use.

    `marked` names a node that gets a thick border. Values that other nodes take but that are not
    part of the graph are left out.
    """
    numbers = {node.name: f"n{at}" for at, node in enumerate(graph.nodes)}
    lines = [
        "digraph {",
        f"  graph [label={quoted(title)}, labelloc=t, fontname=monospace];",
        "  node [shape=box, fontname=monospace, fontsize=10, style=filled, fillcolor=white];",
    ]
    for node in graph.nodes:
        fill = _FILLS.get(node.op)
        attributes = f"label={_label(node)}"
        attributes += f", fillcolor={quoted(fill)}" if fill else ""
        attributes += ", penwidth=3" if node.name == marked else ""
        attributes += f", tooltip={quoted(node.origin)}" if node.origin else ""
        lines.append(f"  {numbers[node.name]} [{attributes}];")
    for node in graph.nodes:
        lines += [
            f"  {numbers[name]} -> {numbers[node.name]};"
            for name in dict.fromkeys(node.inputs)
            if name in numbers
        ]
    return "\n".join([*lines, "}"]) + "\n"


def _label(node: IRNode) -> str:
    name = node.name if node.op in ("block", RETURN) else f"%{node.name}"
    parts = [name, node.label if node.op not in ("block", RETURN) else "", node.type]
    if node.op == "block":
        parts.append(node.arguments)
    elif node.target and node.label == node.op:
        parts[1] = f"{node.op} @{node.target}"
    return quoted("\n".join(part for part in parts if part))


def quoted(text: str) -> str:
    """`text` as one string of the language; nothing in it has a meaning there."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\0", "")
    return '"' + escaped.replace("\r", "").replace("\n", "\\n") + '"'


def svg_text(dot: str, nodes: int) -> str:
    """The drawing that `dot` makes.

    Raises:
        RunDirError: there is no `dot`, the graph is too large for it, it takes too long or fails.
    """
    if nodes > MAX_NODES:
        raise RunDirError(
            f"{nodes} nodes are too many to lay out (at most {MAX_NODES}); take part of the graph "
            "with --node NAME --around K, or fold it with --collapse DEPTH"
        )
    program = shutil.which("dot")
    if program is None:
        raise RunDirError(
            "there is no graphviz here (the program dot); install it, or use --format dot and draw "
            "the text elsewhere"
        )
    try:
        done = subprocess.run(
            [program, "-Tsvg"], input=dot, capture_output=True, text=True, encoding="utf-8",
            timeout=SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise RunDirError(
            f"dot takes more than {SECONDS} s for {nodes} nodes; take a smaller part of the graph"
        ) from None
    except OSError as error:
        raise RunDirError(f"{program} does not run: {error.strerror}") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[0]
        raise RunDirError(f"dot fails: {reason}")
    return done.stdout
