"""Passes of other packages: what they declare as entry points, read without importing them.

[project.entry-points."deepcompile.passes"]
acme-fold = "acme.fold:AcmeFold"
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

ENTRY_POINT_GROUP = "deepcompile.passes"
KEBAB = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class Plugin:
    """A pass as another package declares it.

    Attributes:
        name: of the entry point, and so of the pass.
        target: `module:Class`.
        source: the package and its version.
    """

    name: str
    target: str
    source: str


@dataclass(frozen=True)
class Plugins:
    """All of them by name, and one line on each declaration that cannot be used."""

    passes: Mapping[str, Plugin]
    problems: tuple[str, ...] = ()


def installed_plugins(own: Container[str] = ()) -> Plugins:
    """What installed packages declare; `own` are the names of our passes. Imports none of them."""
    return read_plugins(_declared(), own)


def read_plugins(declared: Iterable[Plugin], own: Container[str] = ()) -> Plugins:
    """The declarations that can be used; of two for one name the first by package counts."""
    found: dict[str, Plugin] = {}
    problems = []
    for plugin in sorted(declared, key=lambda p: (p.name, p.source, p.target)):
        known = found.get(plugin.name)
        problem = _problem(plugin, own)
        if problem is None and known is not None and known.target != plugin.target:
            problem = f"{known.source} has a pass of this name"
        if problem is not None:
            problems.append(f"the pass {plugin.name!r} of {plugin.source} is left out: {problem}")
        elif known is None:
            found[plugin.name] = plugin
    return Plugins(found, tuple(dict.fromkeys(problems)))


def _problem(plugin: Plugin, own: Container[str]) -> str | None:
    if plugin.name in own:
        return "deepcompile has a pass of this name"
    if not KEBAB.fullmatch(plugin.name):
        return "its name is not kebab-case"
    if not _TARGET.fullmatch(plugin.target):
        return f"{plugin.target!r} is not module:Class"
    top = plugin.target.partition(":")[0].partition(".")[0]
    try:
        missing = importlib.util.find_spec(top) is None
    except (ImportError, ValueError):
        missing = True
    return f"there is no module {top!r}" if missing else None


@functools.cache
def _declared() -> tuple[Plugin, ...]:
    from importlib.metadata import distributions

    found = []
    for distribution in distributions():
        entries = _or(lambda d=distribution: list(d.entry_points), [])  # type: ignore[misc]
        for entry in entries:
            if entry.group == ENTRY_POINT_GROUP:
                found.append(Plugin(entry.name, entry.value, _source(distribution)))
    return tuple(found)


def _source(distribution: Any) -> str:
    name = _or(lambda: distribution.metadata["Name"], None) or "a package without a name"
    version = _or(lambda: distribution.version, None)
    return f"{name} {version}" if version else str(name)


def _or(read: Callable[[], Any], default: Any) -> Any:
    """What is read from the metadata of a package; `default` where it is broken."""
    try:
        return read()
    except Exception:  # metadata of others may be broken in any way, which is no concern of ours
        return default
