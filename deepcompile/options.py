"""`Options`: what a user can set for one compile, and the only reader of DEEPCOMPILE_* variables.

Order, later wins: the default, the preset of `mode=`, the environment variable, `options={...}`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from deepcompile.errors import OptionError, nearest, unknown_name

ENV_PREFIX = "DEEPCOMPILE_"
# Of test and benchmark drivers and of children of commands: no options of the compiler.
_FOREIGN_PREFIXES = (f"{ENV_PREFIX}TEST_", f"{ENV_PREFIX}BENCH_", f"{ENV_PREFIX}CHILD_")

MODES: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    # On the CPU a graph is one call as it is, and the option does nothing there.
    "reduce-overhead": {"cuda_graphs": True},
    # Inductor's trade of speed for a simpler graph; there is no such trade to make here.
    "lite": {},
    "max-autotune": {"tune": "measure", "cuda_graphs": True},
    "max-autotune-no-cudagraphs": {"tune": "measure"},
}
"""What each `torch.compile(mode=...)` sets, unless the user sets the same option otherwise."""

_SIZE = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*|%)\s*$", re.IGNORECASE)
_UNITS = {
    "": 1,
    "b": 1,
    **{u: 1000**p for p, u in enumerate(("kb", "mb", "gb", "tb"), start=1)},
    **{u: 1024**p for p, u in enumerate(("kib", "mib", "gib", "tib"), start=1)},
}


def parse_size(text: str | int, total: int | None = None) -> int:
    """Bytes in `"6GiB"`, `"500 MB"`, `4096` or, given the `total` it is a share of, `"60%"`.

    Raises ValueError with what is wrong, for the caller to say which option it was.
    """
    if isinstance(text, bool):
        raise ValueError("expected a size such as '6GiB' or a number of bytes")
    if isinstance(text, int):
        if text < 0:
            raise ValueError("a size cannot be negative")
        return text
    match = _SIZE.match(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError("expected a size such as '6GiB' or a number of bytes")
    amount, unit = float(match[1]), match[2].lower()
    if unit == "%":
        if total is None:
            raise ValueError("a percentage has no meaning here; give bytes or e.g. '6GiB'")
        if amount > 100:
            raise ValueError("a percentage lies between 0% and 100%")
        return int(total * amount / 100)
    if unit not in _UNITS:
        raise ValueError(f"unknown unit {match[2]!r}; units: KiB, MiB, GiB, TiB, KB, MB, GB, TB")
    return int(amount * _UNITS[unit])


def _budget(value: Any) -> str | int:
    """A size, a share of the device's memory, or "auto"; shares are resolved by the compile."""
    if isinstance(value, str):
        text = value.strip().lower()
        if text == "auto":
            return text
        if text.endswith("%"):
            if parse_size(text, 10**6) == 0:
                raise ValueError("a budget of nothing")
            return text
    size = parse_size(value)
    if size == 0:
        raise ValueError("a budget of nothing")
    return size


def _error_bound(value: Any) -> float:
    """A relative error; True is that of 8-bit integers with a scale a row, 0.4 %."""
    if isinstance(value, bool) or (isinstance(value, str) and not value.strip()[:1].isdigit()):
        return 0.004 if _bool(value) else 0.0
    if not isinstance(value, str | int | float):
        raise ValueError("expected True, False or a relative error such as 0.004")
    bound = float(value)
    if not 0 <= bound < 1:
        raise ValueError("expected True, False or a relative error such as 0.004")
    return bound


def _on_off(value: Any) -> str:
    if isinstance(value, str) and value.strip().lower() in ("auto", "on", "off"):
        return value.strip().lower()
    try:
        return "on" if _bool(value) else "off"
    except ValueError:
        raise ValueError("expected 'auto', 'on' or 'off'") from None


def format_size(size: int) -> str:
    """`size` bytes in the largest binary unit, e.g. `1.5 GiB`."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.4g} {unit}"
        amount /= 1024
    return f"{amount:.4g} TiB"


def _bool(value: Any) -> bool:
    if isinstance(value, bool) or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    words = {"1": True, "true": True, "yes": True, "on": True}
    words |= {"0": False, "false": False, "no": False, "off": False}
    if isinstance(value, str) and value.strip().lower() in words:
        return words[value.strip().lower()]
    raise ValueError("expected True or False")


def _integer(value: Any, least: int) -> int:
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]+\s*", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"expected a whole number, at least {least}")
    return value


_AXIS = re.compile(r"^\s*([A-Za-z_]\w*)(\*?)\s*=\s*([0-9]+)(?:@(\S+))?\s*$")


def _mesh(value: Any) -> str:
    """Axes as text: `dp*=2,tp=4`, a star for those of data, `@group` behind those of a DeviceMesh.

    `dp` is of data unless some other axis has a star.
    """
    names = getattr(value, "mesh_dim_names", None)
    if names is not None:
        groups = [value.get_group(axis).group_name for axis in range(len(names))]
        parts = [
            f"{name}={size}@{group}"
            for name, size, group in zip(names, value.shape, groups, strict=True)
        ]
        value = ",".join(parts)
    elif isinstance(value, Mapping):
        value = ",".join(f"{name}={size}" for name, size in value.items())
    elif isinstance(value, int) and not isinstance(value, bool):
        value = f"tp={value}"
    if isinstance(value, str) and value.strip().isdigit():
        value = f"tp={value.strip()}"
    matches = [_AXIS.match(part) for part in value.split(",")] if isinstance(value, str) else []
    if not matches or not all(matches) or any(int(match[3]) < 1 for match in matches if match):
        raise ValueError("expected a mesh such as 'dp=2,tp=4', {'tp': 2}, 2 or a DeviceMesh")
    axes = [(match[1], match[2], match[3], match[4]) for match in matches if match]
    if len({name for name, *_ in axes}) < len(axes):
        raise ValueError("a mesh names each axis once")
    if not any(star for _, star, *_ in axes):
        axes = [(name, "*" if name == "dp" else "", size, group) for name, _, size, group in axes]
    return ",".join(
        f"{name}{star}={size}" + (f"@{group}" if group else "") for name, star, size, group in axes
    )


def _text(value: Any) -> str:
    if isinstance(value, str) and value.strip():
        return value
    raise ValueError("expected a non-empty string")


def _path(value: Any) -> str:
    if isinstance(value, (str, os.PathLike)) and os.fspath(value):
        return os.path.expanduser(os.fspath(value))
    raise ValueError("expected a path")


def _names(value: Any) -> tuple[str, ...]:
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, (list, tuple, set, frozenset)):
        raise ValueError("expected names, as a list or separated by commas")
    if not all(isinstance(item, str) for item in items):
        raise ValueError("expected names, as a list or separated by commas")
    ordered = sorted(items) if isinstance(items, (set, frozenset)) else items
    return tuple(dict.fromkeys(item.strip() for item in ordered if item.strip()))


def _rewrite_limit(value: Any) -> tuple[str, int]:
    if isinstance(value, str):
        name, colon, count = value.rpartition(":")
        if not colon or not name.strip():
            raise ValueError("expected 'pass:N', e.g. 'fuse-rows:12'")
        return name.strip(), _integer(count, 0)
    if isinstance(value, (tuple, list)) and len(value) == 2 and isinstance(value[0], str):
        return value[0], _integer(value[1], 0)
    raise ValueError("expected 'pass:N', e.g. 'fuse-rows:12'")


def _choice(*allowed: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if isinstance(value, str) and value in allowed:
            return value
        close = nearest(value, allowed) if isinstance(value, str) else None
        hint = f"; did you mean {close!r}?" if close else ""
        raise ValueError(f"expected one of {', '.join(map(repr, allowed))}{hint}")

    return parse


def _option(
    default: Any, parse: Callable[[Any], Any], kind: str, doc: str, *, in_key: bool = False
) -> Any:
    """A field. `in_key` marks options that change the generated code, hence its cache key."""
    metadata = {"parse": parse, "kind": kind, "doc": doc, "in_key": in_key}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class OptionInfo:
    """One row of the option table."""

    name: str
    kind: str
    default: Any
    env: str
    doc: str


@dataclass(frozen=True)
class Options:
    """Everything that can be set for one compile; each field is checked and converted on creation.

    Raises `OptionError` for a value that an option does not take.
    """

    passes: str | None = _option(
        None,
        _text,
        "pipeline",
        "Passes to run, e.g. 'canonicalise,fuse-rows{max-ops=64}'; default: the whole pipeline.",
        in_key=True,
    )
    verify: bool = _option(
        False,
        _bool,
        "bool",
        "Check the graph after each pass, and run it before and after on the same inputs.",
    )
    run_dir: str | None = _option(
        None, _path, "path", "Directory in which each run leaves its graphs, kernels and events."
    )
    dump: Literal["none", "changed", "all"] = _option(
        "changed",
        _choice("none", "changed", "all"),
        "none|changed|all",
        "Which states of a graph a run directory keeps as text: none, changed ones, or all.",
    )
    strict: bool = _option(
        False, _bool, "bool", "Raise when a part fails to compile, instead of running it in eager."
    )
    cache: bool = _option(True, _bool, "bool", "Keep built kernels on disk and reuse them.")
    cache_dir: str | None = _option(
        None, _path, "path", "Where built kernels are kept; default: the user's cache directory."
    )
    cache_size: int = _option(
        1 << 30, parse_size, "size", "Largest size of the kernel cache, e.g. '1GiB'."
    )
    threads: int | None = _option(
        None,
        functools.partial(_integer, least=1),
        "int",
        "Threads of the generated CPU code; default: torch.get_num_threads() at each call.",
    )
    codegen: Literal["auto", "cpp", "triton"] = _option(
        "auto",
        _choice("auto", "cpp", "triton"),
        "auto|cpp|triton",
        "Language of kernels: by device; 'triton' on a CPU needs TRITON_INTERPRET=1, for tests.",
        in_key=True,
    )
    numerics: Literal["fast", "eager"] = _option(
        "fast",
        _choice("fast", "eager"),
        "fast|eager",
        "'eager' rounds to the tensor's dtype after each op as eager does; 'fast' rounds once.",
        in_key=True,
    )
    rng: Literal["philox", "eager"] = _option(
        "philox",
        _choice("philox", "eager"),
        "philox|eager",
        "Random numbers from our counter-based kernels, or from torch's own calls.",
        in_key=True,
    )
    disable: tuple[str, ...] = _option(
        (),
        _names,
        "names",
        "Passes ('fuse-rows') or rewrites ('fuse-rows/fuse-edge') to leave out.",
        in_key=True,
    )
    opt_limit: int | None = _option(
        None,
        functools.partial(_integer, least=0),
        "int",
        "Apply only the first N skippable passes of this process (for bisecting).",
        in_key=True,
    )
    rewrite_limit: tuple[str, int] | None = _option(
        None,
        _rewrite_limit,
        "pass:N",
        "Apply only the first N rewrites of this pass in this process (for bisecting).",
        in_key=True,
    )
    kernel_limit: int | None = _option(
        None,
        functools.partial(_integer, least=0),
        "int",
        "Run only the first N kernels of this process as generated code (for bisecting).",
        in_key=True,
    )
    deterministic: bool = _option(
        False,
        _bool,
        "bool",
        "Same bits on every run with as many threads, whatever the budget; sums may take longer.",
        in_key=True,
    )
    cuda_graphs: bool = _option(
        False,
        _bool,
        "bool",
        "On a GPU, replay each graph's launches as a CUDA graph where that cannot be noticed.",
    )
    tune: Literal["off", "measure"] = _option(
        "off",
        _choice("off", "measure"),
        "off|measure",
        "Choose the library of matrix products from a table, or by timing it here.",
        in_key=True,
    )
    mesh: str | None = _option(
        None,
        _mesh,
        "mesh",
        "Share the work of plain parameters among ranks: 'tp=2', or a DeviceMesh of more axes.",
        in_key=True,
    )
    memory_budget: str | int | None = _option(
        None,
        _budget,
        "size|N%|auto",
        "Peak memory of a training step: '6GiB', '70%' of the device, or 'auto' (what is free).",
        in_key=True,
    )
    optimizer_bytes: int | None = _option(
        None,
        parse_size,
        "size",
        "State of the optimizer, for memory_budget; default: 8 bytes for each trained number.",
        in_key=True,
    )
    compress: float = _option(
        0.0,
        _error_bound,
        "error|bool",
        "Under memory_budget, keep tensors in fewer bits: the largest relative error, or True.",
        in_key=True,
    )
    offload: Literal["auto", "on", "off"] = _option(
        "auto",
        _on_off,
        "auto|on|off",
        "Under memory_budget, keep tensors in the host's memory; 'auto': on a GPU.",
        in_key=True,
    )
    rates: Literal["auto", "table"] = _option(
        "auto",
        _choice("auto", "table"),
        "auto|table",
        "Rates of the device for memory_budget: as `doctor --calibrate` measured, or of a table.",
        in_key=True,
    )
    memory_plan: str | None = _option(
        None,
        _path,
        "path",
        'A plan file: its rows with "pinned": true bind what memory_budget decides.',
        in_key=True,
    )
    log_level: Literal["debug", "info", "warning", "error"] = _option(
        "warning",
        _choice("debug", "info", "warning", "error"),
        "debug|info|warning|error",
        "How much the 'deepcompile' logger says: fallbacks at info, all events at debug.",
    )

    provided: frozenset[str] = dataclasses.field(default=frozenset(), compare=False, repr=False)
    """The options that the user set, whether or not to their default value."""

    def __post_init__(self) -> None:
        differing = set(self.provided)
        for option in _FIELDS:
            value = getattr(self, option.name)
            if value is None and option.default is None:
                continue
            object.__setattr__(self, option.name, _parse(option.name, value, option.name))
            if getattr(self, option.name) != option.default:
                differing.add(option.name)
        object.__setattr__(self, "provided", frozenset(differing))

    @classmethod
    def resolve(
        cls,
        options: Mapping[str, Any] | Options | None = None,
        mode: str | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Options:
        """The options of one compile: defaults < preset of `mode` < environment < `options`.

        Raises `OptionError` for an unknown name or mode, or a value that the option does not take.
        """
        if mode is not None and mode not in MODES:
            raise OptionError(unknown_name("mode", str(mode), MODES))
        values: dict[str, Any] = dict(MODES[mode]) if mode is not None else {}
        values |= _from_environment(os.environ if environ is None else environ)
        if isinstance(options, Options):
            values |= {name: getattr(options, name) for name in options.provided}
        elif isinstance(options, Mapping):
            values |= _from_mapping(options)
        elif options is not None:
            raise OptionError(f"options must be a dict or Options, not {type(options).__name__}")
        return cls(**values, provided=frozenset(values))

    def to_dict(self) -> dict[str, Any]:
        """All options as JSON-ready values, in the order of the table."""
        as_dict = {option.name: getattr(self, option.name) for option in _FIELDS}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in as_dict.items()}

    def cache_key(self) -> str:
        """One line of text that differs whenever options that change generated code differ."""
        values = self.to_dict()
        in_key = {o.name: values[o.name] for o in _FIELDS if o.metadata["in_key"]}
        return json.dumps(in_key, sort_keys=True)


_FIELDS = tuple(f for f in dataclasses.fields(Options) if f.name != "provided")
_BY_NAME = {option.name: option for option in _FIELDS}


def option_table() -> tuple[OptionInfo, ...]:
    """Name, type, default, environment variable and doc line of every option."""
    return tuple(
        OptionInfo(f.name, f.metadata["kind"], f.default, _env_name(f.name), f.metadata["doc"])
        for f in _FIELDS
    )


def _env_name(name: str) -> str:
    return ENV_PREFIX + name.upper()


def _parse(name: str, value: Any, shown_as: str) -> Any:
    try:
        return _BY_NAME[name].metadata["parse"](value)
    except ValueError as error:
        raise OptionError(f"{shown_as} = {value!r}: {error}") from None


def _from_mapping(options: Mapping[str, Any]) -> dict[str, Any]:
    values = {}
    for name, value in options.items():
        if name not in _BY_NAME:
            raise OptionError(unknown_name("option", str(name), _BY_NAME))
        unset = value is None and _BY_NAME[name].default is None
        values[name] = None if unset else _parse(name, value, f"option {name}")
    return values


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    values = {}
    for variable in sorted(v for v in environ if v.startswith(ENV_PREFIX)):
        if variable.startswith(_FOREIGN_PREFIXES) or not environ[variable]:
            continue
        name = variable.removeprefix(ENV_PREFIX).lower()
        if name in _BY_NAME and variable == _env_name(name):
            values[name] = _parse(name, environ[variable], variable)
            continue
        known = [_env_name(option) for option in _BY_NAME]
        warnings.warn(unknown_name("environment variable", variable, known), stacklevel=4)
    return values
