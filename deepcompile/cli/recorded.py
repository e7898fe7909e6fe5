"""What a command does around the model it runs: keeps its output apart, records how it ended."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from deepcompile.pipeline.rundir import open_run


@contextmanager
def recorded(root: str | os.PathLike[str] | None) -> Iterator[None]:
    """The run of this process below `root`, if there is one, says how the body ended.

    What the body prints goes to stderr.
    """
    try:
        # What a model prints is not the command's result.
        with redirect_stdout(sys.stderr):
            yield
    except BaseException as error:
        run = None if root is None else open_run(root)
        if run is not None:
            stopped = isinstance(error, KeyboardInterrupt)
            text = f"{type(error).__name__}: {error}".splitlines()[0]
            run.finish("interrupted" if stopped else "failed", error=text)
        raise
