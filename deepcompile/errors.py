"""One class per failure a user can meet. Importing this module does not import torch.

Dynamo wraps what a backend raises into `BackendCompilerFailed` (and may swallow it), unless the
exception derives from its `ShortenTraceback`. Deriving from that here would cost every command-line
start the import of torch, so the backend raises `for_dynamo(error)` instead: the same error, of a
subclass of its own class that is also a `ShortenTraceback`. `except OptionError` catches both.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest to `name`, or None when nothing is close."""
    candidates = sorted(known)
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    matches = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[matches[0]] if matches else None


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """The message for an unknown name: the nearest known one, else all of them."""
    known = sorted(known)
    close = nearest(name, known)
    if close is not None:
        return f"unknown {what} {name!r}; did you mean {close!r}?"
    return f"unknown {what} {name!r}; known: {', '.join(known) or 'none'}"


class DeepCompileError(Exception):
    """Base of everything deepcompile raises for a user."""


class OptionError(DeepCompileError):
    """An option that does not exist, or a value it does not take."""


class PipelineError(DeepCompileError):
    """A pipeline string, a pass name or the order of passes is wrong."""


class VerificationError(DeepCompileError):
    """A pass broke the graph or changed what it computes.

    `pass_name` is the pass; `node` the first node that differs (None when the graph is malformed);
    `max_error` the largest absolute difference at the outputs (None when shapes already differ).
    """

    def __init__(
        self,
        pass_name: str,
        detail: str,
        *,
        node: str | None = None,
        max_error: float | None = None,
    ) -> None:
        where = f" (first differing node: {node})" if node else ""
        error = f" (max error {max_error:.3g})" if max_error is not None else ""
        super().__init__(
            f"pass {pass_name!r} failed verification: {detail}{where}{error}\n"
            f"Run with DEEPCOMPILE_DISABLE={pass_name} to go on without it."
        )
        self.pass_name = pass_name
        self.detail = detail
        self.node = node
        self.max_error = max_error


class CompileError(DeepCompileError):
    """The compiler failed on a graph, and strict mode forbids the fallback to eager.

    `origin` is the user's own `file:line` the failing node came from, where there is one, and
    `source` the text of that line.
    """

    def __init__(
        self, detail: str, *, origin: str | None = None, source: str | None = None
    ) -> None:
        lines = [detail]
        if origin:
            lines.append(f"  from {origin}" + (f": {source.strip()}" if source else ""))
        lines.append("Leave out strict=True to run this part in eager.")
        super().__init__("\n".join(lines))
        self.detail = detail
        self.origin = origin
        self.source = source


class ModelError(CompileError):
    """A model given to the command line that cannot be called or traced."""

    def __init__(self, detail: str) -> None:
        DeepCompileError.__init__(self, detail)
        self.detail, self.origin, self.source = detail, None, None


class MemoryBudgetError(DeepCompileError):
    """A training step cannot fit the budget; the graph that does not fit has not run.

    `budget` and `smallest` are bytes: what was given, and the least that a plan was found for.
    """

    def __init__(self, detail: str, budget: int = 0, smallest: int = 0) -> None:
        super().__init__(detail)
        self.budget = budget
        self.smallest = smallest


class MeshError(DeepCompileError):
    """A mesh that is none, or that does not match the processes there are."""


class PartitionError(DeepCompileError):
    """A model cannot be placed on a mesh as asked: constraints, a memory limit, a plan file."""


class RankError(DeepCompileError):
    """Ranks that differ or are missing; the text names them and what they differ in."""


class CompilerMissing(DeepCompileError):
    """No usable C++ compiler on this machine."""

    def __init__(self, tried: Iterable[str], detail: str = "") -> None:
        tried = tuple(tried)
        reason = f": {detail}" if detail else ""
        super().__init__(
            f"no working C++ compiler (tried {', '.join(tried) or 'none'}){reason}\n"
            "Install g++ or clang++, or name one in CXX; `deepcompile doctor` checks it."
        )
        self.tried = tried


class IRSyntaxError(DeepCompileError):
    """Text that does not parse as a graph or a kernel; `line` counts from 1."""

    def __init__(self, detail: str, line: int, text: str = "") -> None:
        shown = f"\n  {text.strip()}" if text.strip() else ""
        super().__init__(f"line {line}: {detail}{shown}")
        self.detail = detail
        self.line = line
        self.text = text


class CacheError(DeepCompileError):
    """The kernel cache cannot be read, written or cleared."""


class CalibrationError(DeepCompileError):
    """The file of measured rates cannot be read or written, or holds something else."""


class RunDirError(DeepCompileError):
    """A path that is not a run directory, or one this version cannot read."""


@functools.cache
def _dynamo_class(cls: type[DeepCompileError]) -> type[DeepCompileError]:
    from torch._dynamo.exc import ShortenTraceback

    if issubclass(cls, ShortenTraceback):
        return cls
    namespace = {"__module__": cls.__module__, "__doc__": cls.__doc__, "__slots__": ()}
    return type(cls.__name__, (cls, ShortenTraceback), namespace)


def for_dynamo(error: DeepCompileError) -> DeepCompileError:
    """The same error in a class that Dynamo passes through undisturbed.

    The backend's outermost function ends with
    `except DeepCompileError as e: raise for_dynamo(e) from e.__cause__`.
    The result is an instance of `type(error)` and of `ShortenTraceback`.
    """
    cls = _dynamo_class(type(error))  # type: ignore[arg-type]
    if isinstance(error, cls):
        return error
    twin = cls.__new__(cls, *error.args)
    twin.args = error.args
    twin.__dict__.update(error.__dict__)
    twin.__dict__["first_useful_frame"] = None
    return twin.with_traceback(error.__traceback__)
