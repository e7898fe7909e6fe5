"""MODEL on the command line: `file.py:factory`, `pkg.mod:factory` or `demo:NAME`.

A factory takes nothing and returns a module (or function) and a tuple of inputs.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from deepcompile.errors import nearest

DEMOS = ("transformer",)


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
        close = nearest(name, [n for n in vars(module) if not n.startswith("_")])
        hint = f"; did you mean {close!r}?" if close else ""
        raise click.BadParameter(f"{place} has no {name!r}{hint}", param_hint="MODEL")
    made = factory()
    if not (isinstance(made, tuple) and len(made) == 2 and callable(made[0])):
        raise click.BadParameter(
            f"{name} returned {type(made).__name__}, not a model and its inputs",
            param_hint="MODEL",
        )
    model, inputs = made
    return model, inputs if isinstance(inputs, tuple) else (inputs,)


def _module(place: str) -> Any:
    if not place.endswith(".py"):
        sys.path.insert(0, "")
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name is None or not place.startswith(error.name):
                raise
            raise click.BadParameter(f"no module {place!r}", param_hint="MODEL") from None
        finally:
            sys.path.remove("")
    path = Path(place)
    if not path.is_file():
        raise click.BadParameter(f"no file {place!r}", param_hint="MODEL")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _demo(name: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    if name not in DEMOS:
        raise click.BadParameter(
            f"no demo {name!r}; there is {', '.join(DEMOS)}", param_hint="MODEL"
        )
    import torch

    from deepcompile.demo.model import ModelConfig, Transformer

    config = ModelConfig()
    tokens = torch.randint(config.vocabulary, (8, config.context))
    return Transformer(config), (tokens, tokens)
