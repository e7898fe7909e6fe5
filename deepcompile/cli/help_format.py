"""Help that fits a narrow terminal: click's own takes at least 50 columns, most for the options."""

from __future__ import annotations

import shutil
from collections.abc import Iterable

import click


class _Formatter(click.HelpFormatter):
    def __init__(
        self, indent_increment: int = 2, width: int | None = None, max_width: int | None = None
    ) -> None:
        if width is None:
            columns = shutil.get_terminal_size().columns
            width = max(min(columns, max_width or 100) - 1, 30)
        super().__init__(indent_increment, width, max_width)

    def write_dl(
        self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2
    ) -> None:
        super().write_dl(list(rows), min(col_max, max(10, self.width // 2 - 4)), col_spacing)


class HelpContext(click.Context):
    """A context whose help takes the width that there is."""

    formatter_class = _Formatter


def adapt_help(command: click.Command) -> None:
    """Let the help of a command, and of those below it, take the width that there is."""
    command.context_class = HelpContext
    if isinstance(command, click.Group):
        for below in command.commands.values():
            adapt_help(below)
