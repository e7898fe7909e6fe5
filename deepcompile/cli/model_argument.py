"""MODEL on the command line: `file.py:factory`, `pkg.mod:factory` or `demo:NAME`.

A factory takes nothing and returns a module (or function) and a tuple of inputs.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from deepcompile.errors import DeepCompileError, ModelError, nearest

DEMOS = ("transformer",)
_LIBRARY = re.compile(r"[/\\](site-packages|lib[/\\]python\d[.\d]*)[/\\]|^<frozen ")


def check_model(text: str) -> None:
    """What can be known of MODEL without running it, for commands that leave that to children.

    Raises:
        click.BadParameter: it is wrong for certain.
    """
    place, _, name = text.rpartition(":")
    if place == "demo":
        _check_demo(name)
    if not place.endswith(".py"):
        return
    path = _file(place)
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return  # a child says where
    names = _assigned(tree)
    if names is not None and name not in names:
        raise _no_such(place, name, names)


def _assigned(tree: ast.Module) -> set[str] | None:
    """Names that a module may have, or None where that is not to be seen."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.alias):
            found.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name):
            found.add(node.id)
    return None if found & {"*", "globals", "exec", "setattr", "vars", "__getattr__"} else found


def load_model(text: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The model and inputs that MODEL names.

    Raises:
        click.BadParameter: naming what is wrong with it.
    """
    place, _, name = text.rpartition(":")
    if not place:
        raise click.BadParameter(
            f"{text!r} is not file.py:factory, pkg.mod:factory or demo:NAME", param_hint="MODEL"
        )
    if place == "demo":
        return _demo(name)
    module = _module(place)
    factory = getattr(module, name, None)
    if factory is None:
        raise _no_such(place, name, vars(module))
    if not callable(factory):
        raise click.BadParameter(
            f"{name} in {place} is {type(factory).__name__}, not a function that returns a model "
            "and its inputs",
            param_hint="MODEL",
        )
    with _theirs(text):
        made = factory()
    if not (isinstance(made, tuple) and len(made) == 2 and callable(made[0])):
        raise click.BadParameter(
            f"{name} returned {type(made).__name__}, not a model and its inputs",
            param_hint="MODEL",
        )
    model, inputs = made
    return model, inputs if isinstance(inputs, tuple) else (inputs,)


def _no_such(place: str, name: str, names: Iterable[str]) -> click.BadParameter:
    close = nearest(name, [n for n in names if not n.startswith("_")])
    hint = f"; did you mean {close!r}?" if close else ""
    return click.BadParameter(f"{place} has no {name!r}{hint}", param_hint="MODEL")


def _file(place: str) -> Path:
    path = Path(place)
    if not path.is_file():
        raise click.BadParameter(f"no file {place!r}", param_hint="MODEL")
    return path


def _module(place: str) -> Any:
    if not place.endswith(".py"):
        sys.path.insert(0, "")
        try:
            with _theirs(place):
                return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name is None or not place.startswith(error.name):
                raise
            raise click.BadParameter(f"no module {place!r}", param_hint="MODEL") from None
        finally:
            sys.path.remove("")
    path = _file(place)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    with _theirs(place):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _theirs(what: str) -> Iterator[None]:
    """What goes wrong in the user's code, as an error that says where."""
    try:
        yield
    except SyntaxError as error:
        where = f"{error.filename}:{error.lineno}"
        raise ModelError(f"{what}: SyntaxError: {error.msg}, at {where}") from error
    except SystemExit as error:
        raise ModelError(f"{what} ended the process with status {error.code}") from error
    except (DeepCompileError, click.ClickException):
        raise
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and what.startswith(error.name):
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        for found in traceback.extract_tb(error.__traceback__):
            if not _LIBRARY.search(found.filename):
                frame = found
        detail = f"{type(error).__name__}: {error}".rstrip(": ")
        at = f", at {frame.filename}:{frame.lineno}: {frame.line}"
        raise ModelError(f"{what}: {detail}{at if frame.filename != __file__ else ''}") from error


def _check_demo(name: str) -> None:
    if name not in DEMOS:
        raise click.BadParameter(
            f"no demo {name!r}; there is {', '.join(DEMOS)}", param_hint="MODEL"
        )


def _demo(name: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    _check_demo(name)
    import torch

    from deepcompile.demo.model import ModelConfig, Transformer

    config = ModelConfig()
    tokens = torch.randint(config.vocabulary, (8, config.context))
    return Transformer(config), (tokens, tokens)
