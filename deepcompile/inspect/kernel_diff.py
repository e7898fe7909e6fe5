"""Which kernel of one run is which of another, and how their sources differ."""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from deepcompile.inspect.reader import KernelRecord

MAX_LINES = 4_000
"""Lines of a source of which differences are looked for; longer ones are only told to differ."""


@dataclass(frozen=True)
class KernelPair:
    """A kernel before and after; None where it is not there. `lines` is how its files differ."""

    before: KernelRecord | None
    after: KernelRecord | None
    lines: tuple[str, ...] = ()

    @property
    def differs(self) -> bool:
        return bool(self.lines) or self.before is None or self.after is None


def diff_kernels(
    before: Sequence[KernelRecord], after: Sequence[KernelRecord], *, context: int = 3
) -> list[KernelPair]:
    """Match kernels by what they come from, and compare the sources of those that are matched.

    The same ops from the same lines in a graph of the same name come first; then the same ops from
    the same lines; then the same ops: lines and names differ between versions of a program.

    Raises:
        RunDirError: a source cannot be read.
    """
    partner = _match(before, after)
    matched = set(partner.values())
    found = []
    for at, kernel in enumerate(before):
        if at not in partner:
            found.append(KernelPair(kernel, None))
            continue
        other = after[partner[at]]
        found.append(KernelPair(kernel, other, tuple(_lines(kernel, other, context))))
    found += [KernelPair(None, k) for at, k in enumerate(after) if at not in matched]
    return found


_KEYS: tuple[Callable[[KernelRecord], Hashable], ...] = (
    lambda k: (k.graph, k.ops, k.origins, k.name),
    lambda k: (k.graph, k.ops, k.origins),
    lambda k: (k.ops, k.origins),
    lambda k: (k.graph, k.ops),
    lambda k: k.ops,
)


def _match(before: Sequence[KernelRecord], after: Sequence[KernelRecord]) -> dict[int, int]:
    partner: dict[int, int] = {}
    for key in _KEYS:
        taken = set(partner.values())
        waiting: dict[Hashable, list[int]] = defaultdict(list)
        for at, kernel in enumerate(after):
            if at not in taken:
                waiting[key(kernel)].append(at)
        for at, kernel in enumerate(before):
            if at not in partner and waiting.get(key(kernel)):
                partner[at] = waiting[key(kernel)].pop(0)
    return partner


def _lines(before: KernelRecord, after: KernelRecord, context: int) -> list[str]:
    found: list[str] = []
    for file in dict.fromkeys([*before.files, *after.files]):
        if not file.startswith("source"):
            continue
        old, new = _plain(before, file), _plain(after, file)
        if old == new:
            continue
        if max(len(old), len(new)) > MAX_LINES:
            found.append(f"{file} differs: {len(old)} and {len(new)} lines")
            continue
        names = f"{before.name}/{file}", f"{after.name}/{file}"
        found += difflib.unified_diff(old, new, *names, lineterm="", n=context)
    return found


def _plain(kernel: KernelRecord, file: str) -> list[str]:
    """Lines of a file without the number of the kernel, which says nothing about it."""
    if file not in kernel.files:
        return []
    text = kernel.read(file)
    own = {str(kernel.meta.get("function") or ""), kernel.name.rpartition(".")[2]} - {""}
    pattern = r"\b(?:" + "|".join(map(re.escape, sorted(own))) + r")(?=_|\b)"
    return re.sub(pattern, "kernel", text).splitlines() if own else text.splitlines()
