"""An explanation as HTML for a notebook: what the page says, in parts that fold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_FRAME = "border:1px solid rgba(128,128,128,.4);border-radius:6px;padding:.6em 1em;max-width:72em"
_ROWS = "margin:.2em 0 .6em;overflow-x:auto;white-space:pre;background:none;font-size:90%"


def as_html(summary: Iterable[str], sections: Iterable[tuple[str, Sequence[str]]]) -> str:
    """One element without scripts, identifiers or colours: it fits light and dark notebooks.

    Args:
        summary: lines; the first stands out.
        sections: title and rows. The first is open, and so is each that starts with "fallbacks"
            or "graph breaks" and has rows; sections without rows are lines.
    """
    head, *rest = [escape(line) for line in summary]
    parts = [f"<div><strong>{head}</strong></div>", *(f"<div>{line}</div>" for line in rest)]
    for number, (title, rows) in enumerate(sections):
        if not rows:
            parts.append(f"<div>{escape(title)}: none</div>")
            continue
        is_open = not number or title.startswith(("fallbacks", "graph breaks"))
        parts.append(
            f"<details{' open' if is_open else ''}><summary>{escape(title)} ({len(rows)})</summary>"
            f'<pre style="{_ROWS}">{escape(chr(10).join(rows))}</pre></details>'
        )
    return f'<div class="deepcompile-explanation" style="{_FRAME}">{"".join(parts)}</div>'
