"""Sphinx: pages in Markdown, reference pages generated from the code they describe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
sys.path[:0] = [str(FOLDER.parent), str(FOLDER)]

import deepcompile  # noqa: E402

project = "deepcompile"
author = "the authors of deepcompile"
version = release = deepcompile.__version__

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "images"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nitpicky = True
smartquotes = False  # quotes in sentences are often those of code
pygments_style = "default"

html_theme = "furo"
html_title = f"deepcompile {version}"
html_show_copyright = False
html_show_sourcelink = False
html_copy_source = False


def _write_reference(app: Any) -> None:
    from generate_reference import write

    write(FOLDER / "reference")


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("builder-inited", _write_reference)
