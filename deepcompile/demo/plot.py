"""The losses of two runs as an SVG: the curves above, how far they are apart below."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 760, 520
LEFT, RIGHT, TOP, GAP, BOTTOM = 70, 20, 40, 50, 50
_COLOURS = ("#0072b2", "#d55e00")
_LEAST = 1e-9
"""Relative differences below are drawn as this: a logarithm has no zero."""


def losses_svg(runs: Sequence[tuple[str, Sequence[float]]], tolerance: float) -> str:
    """A stand-alone SVG.

    Args:
        runs: names and losses of two runs, by step.
        tolerance: the relative difference at which a line is drawn.
    """
    (name, reference), (_, other) = runs
    steps = len(reference)
    upper = HEIGHT * 3 // 5
    middle = upper + GAP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="14">Loss by step</text>',
    ]
    known = [value for _, losses in runs for value in losses if math.isfinite(value)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    lines += _frame(TOP, upper, _ticks(low, high, 5, "{:.3g}"), low, high, steps)
    for number, (title, losses) in enumerate(runs):
        dash = ' stroke-dasharray="5 3"' if number else ""
        points = _points(losses, steps, low, high, TOP, upper)
        lines.append(_line(points, _COLOURS[number], dash))
        x = WIDTH - RIGHT - 150
        y = TOP + 18 + 18 * number
        lines.append(_line([(x, y - 4), (x + 30, y - 4)], _COLOURS[number], dash))
        lines.append(f'<text x="{x + 38}" y="{y}">{escape(title)}</text>')
    apart = [_log(a, b) for a, b in zip(reference, other, strict=True)]
    low, high = math.log10(_LEAST), max(0.0, *apart, math.log10(tolerance))
    lines.append(
        f'<text x="{LEFT}" y="{middle - 8}">Relative difference to {escape(name)}; '
        f"dotted: tolerance {tolerance:.0e}</text>"
    )
    ticks = [(float(power), f"1e{power}") for power in range(math.ceil(low), int(high) + 1, 3)]
    lines += _frame(middle, HEIGHT - BOTTOM, ticks, low, high, steps)
    at = math.log10(tolerance)
    level = _points([at, at], 2, low, high, middle, HEIGHT - BOTTOM)
    lines.append(_line(level, "#666666", ' stroke-dasharray="2 3"'))
    points = _points(apart, steps, low, high, middle, HEIGHT - BOTTOM)
    lines.append(_line(points, _COLOURS[1], ""))
    lines.append(f'<text x="{(LEFT + WIDTH) // 2}" y="{HEIGHT - 12}">step</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def _log(reference: float, value: float) -> float:
    apart = abs(value - reference) / max(abs(reference), 1e-12)
    return math.log10(max(apart, _LEAST)) if math.isfinite(apart) else 0.0


def _ticks(low: float, high: float, count: int, form: str) -> list[tuple[float, str]]:
    step = (high - low) / (count - 1)
    return [(low + step * n, form.format(low + step * n)) for n in range(count)]


def _frame(
    top: float,
    bottom: float,
    ticks: Iterable[tuple[float, str]],
    low: float,
    high: float,
    steps: int,
) -> list[str]:
    lines = [
        f'<rect x="{LEFT}" y="{top}" width="{WIDTH - LEFT - RIGHT}" height="{bottom - top}" '
        'fill="none" stroke="#999999"/>'
    ]
    for value, text in ticks:
        y = bottom - (value - low) / (high - low) * (bottom - top)
        lines.append(
            f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#e5e5e5"/>'
        )
        lines.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for step in sorted({1, (steps + 1) // 2, steps}):
        x = _x(step - 1, steps)
        lines.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{step}</text>')
    return lines


def _x(index: int, steps: int) -> float:
    return LEFT + index / max(steps - 1, 1) * (WIDTH - LEFT - RIGHT)


def _points(
    values: Sequence[float], steps: int, low: float, high: float, top: float, bottom: float
) -> list[tuple[float, float]]:
    scale = (bottom - top) / (high - low)
    return [
        (_x(index, steps), bottom - (value - low) * scale)
        for index, value in enumerate(values)
        if math.isfinite(value)
    ]


def _line(points: Sequence[tuple[float, float]], colour: str, more: str) -> str:
    text = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{text}" fill="none" stroke="{colour}" stroke-width="1.5"{more}/>'
