"""The table of passes: found by name and described without importing torch."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from deepcompile.errors import PipelineError, unknown_name
from deepcompile.pipeline.plugins import KEBAB, Plugin, Plugins, installed_plugins
from deepcompile.pipeline.protocol import Pass

_BUILTIN_PACKAGE = "deepcompile.passes"


@dataclass(frozen=True)
class PassOption:
    """One typed option of a pass; `name` is kebab-case, `field` the dataclass field behind it."""

    name: str
    field: str
    type: Any
    default: Any

    @property
    def kind(self) -> str:
        """The type as a user writes it, e.g. `int`, `bool`, `a|b`."""
        if typing.get_origin(self.type) is Literal:
            return "|".join(map(str, typing.get_args(self.type)))
        return self.type.__name__ if isinstance(self.type, type) else str(self.type)


@dataclass(frozen=True)
class PassInfo:
    """What can be said about a pass without running it."""

    name: str
    cls: type
    target: str
    source: str = ""
    """The package of others that it is from."""

    @property
    def doc(self) -> str:
        return inspect.getdoc(self.cls) or ""

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return self.doc.partition("\n")[0]

    @property
    def phase(self) -> Literal["joint", "graph"]:
        return self.cls.phase  # type: ignore[attr-defined, no-any-return]

    @property
    def skippable(self) -> bool:
        return self.cls.skippable  # type: ignore[attr-defined, no-any-return]

    @property
    def requires(self) -> frozenset[str]:
        return self.cls.requires  # type: ignore[attr-defined, no-any-return]

    @property
    def establishes(self) -> frozenset[str]:
        return self.cls.establishes  # type: ignore[attr-defined, no-any-return]

    @property
    def options(self) -> tuple[PassOption, ...]:
        return pass_options(self.cls)


@functools.cache
def pass_options(cls: type) -> tuple[PassOption, ...]:
    """The options of a pass class, in the order of its fields."""
    try:
        hints = typing.get_type_hints(cls)
    except NameError as error:
        raise PipelineError(
            f"{cls.__name__}: the type of an option is not known: {error}"
        ) from error
    options = []
    for field in dataclasses.fields(cls):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        name = field.name.replace("_", "-")
        options.append(PassOption(name, field.name, hints[field.name], default))
    return tuple(options)


class Registry:
    """Passes by name: a fixed table, and what installed packages declare as entry points.

    `table` maps a name to "module:Class". A class is imported when it is first asked for.
    """

    def __init__(
        self, table: Mapping[str, str], plugins: Callable[[], Plugins] | None = None
    ) -> None:
        self._table = dict(table)
        self._plugins = functools.cache(plugins or _no_plugins)
        self._loaded: dict[str, PassInfo] = {}

    def names(self) -> tuple[str, ...]:
        """All pass names: ours in their declared order, then those of other packages."""
        return (*self._table, *self._plugins().passes)

    def own(self) -> tuple[PassInfo, ...]:
        """Our passes, loaded."""
        return tuple(self.get(name) for name in self._table)

    def plugins(self) -> tuple[Plugin, ...]:
        """Passes of other packages, not loaded."""
        return tuple(self._plugins().passes.values())

    @property
    def problems(self) -> tuple[str, ...]:
        """One line on each pass that another package declares in a way that cannot be used."""
        return self._plugins().problems

    def get(self, name: str) -> PassInfo:
        """The pass called `name`; `PipelineError` naming the nearest when there is none."""
        if name in self._loaded:
            return self._loaded[name]
        target, source = self._table.get(name), ""
        if target is None:
            plugin = self._plugins().passes.get(name)
            if plugin is None:
                raise PipelineError(self._unknown(name))
            target, source = plugin.target, plugin.source
        self._loaded[name] = PassInfo(name, _load(name, target, source), target, source)
        return self._loaded[name]

    def _unknown(self, name: str) -> str:
        for problem in self.problems:
            if problem.startswith(f"the pass {name!r} "):
                return problem
        return unknown_name("pass", name, self.names())

    def all(self) -> tuple[PassInfo, ...]:
        """Every pass, loaded."""
        return tuple(self.get(name) for name in self.names())


def _no_plugins() -> Plugins:
    return Plugins({})


def _load(name: str, target: str, source: str) -> type:
    module_name, _, class_name = target.partition(":")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except Exception as error:  # a package of others may fail in any way when it is imported
        whose = f" of {source}" if source else ""
        raise PipelineError(
            f"the pass {name!r}{whose} cannot be loaded from {target}: "
            f"{type(error).__name__}: {error}"
        ) from error
    problem = _contract_problem(name, cls)
    if problem:
        raise PipelineError(f"{target} does not keep the contract of a pass: {problem}")
    return typing.cast(type, cls)


def _contract_problem(name: str, cls: Any) -> str | None:
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        return "it is not a dataclass"
    if not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        return "the dataclass is not frozen"
    missing = [a for a in (*Pass.__annotations__, "run") if not hasattr(cls, a)]
    if missing:
        return f"it lacks {', '.join(missing)}"
    if cls.name != name:  # type: ignore[attr-defined]
        return f"it is registered as {name!r} but calls itself {cls.name!r}"  # type: ignore[attr-defined]
    if not KEBAB.fullmatch(name):
        return "its name is not kebab-case"
    required = [
        f.name
        for f in dataclasses.fields(cls)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if required:
        return f"options without a default: {', '.join(required)}"
    return None


@functools.cache
def default_registry() -> Registry:
    """Our own passes and those of installed packages (entry-point group "deepcompile.passes")."""
    table = importlib.import_module(_BUILTIN_PACKAGE).PASSES
    return Registry(table, lambda: installed_plugins(table))


def default_pipeline_text() -> str:
    """The pipeline of a compile that names none."""
    return typing.cast(str, importlib.import_module(_BUILTIN_PACKAGE).DEFAULT_PIPELINE)
