"""The options of commands that compile a MODEL, and the model as they ask for it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import click

from deepcompile.cli.model_argument import load_model
from deepcompile.options import Options
from deepcompile.pipeline.spec import Pipeline

DTYPES = ("float32", "float64", "float16", "bfloat16")
_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True)
class ModelChoice:
    """MODEL and what the command line says of it.

    Attributes:
        train: whether gradients are computed; None for: where an output needs one.
        options: of the compile, without those of the environment.
    """

    text: str
    device: str | None = None
    dtype: str | None = None
    train: bool | None = None
    dynamic: bool | None = None
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """The model and its inputs, made from the seed, on the device and in the dtype.

        Raises:
            click.BadParameter: MODEL, the device or the dtype cannot be had.
        """
        import torch
        from torch.utils._pytree import tree_map

        if self.device is not None:
            _check_device(self.device)
        torch.manual_seed(self.seed)
        function, inputs = load_model(self.text)
        dtype = getattr(torch, self.dtype) if self.dtype else None

        def placed(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            wanted = dtype if value.is_floating_point() else None
            moved = value.detach().to(self.device, wanted)
            return moved.requires_grad_(value.requires_grad)

        if isinstance(function, torch.nn.Module):
            function = function.to(self.device, dtype)
            if self.train is not None:
                function.train(self.train)
        return function, tree_map(placed, inputs)

    def pipeline(self) -> Pipeline:
        """The passes of the compile, after checking every name that was given."""
        return Pipeline.of(Options.resolve(self.options))


def _check_device(text: str) -> None:
    import torch

    try:
        device = torch.device(text)
    except RuntimeError:
        raise click.BadParameter(f"{text!r} is no device", param_hint="--device") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise click.BadParameter("no CUDA device here; try cpu", param_hint="--device")
    if device.type not in ("cpu", "cuda"):
        raise click.BadParameter(f"{text!r} is neither cpu nor cuda", param_hint="--device")


_MODEL_OPTIONS = (
    click.argument("model"),
    click.option("--device", help="cpu, cuda or cuda:N.  [default: as MODEL is]"),
    click.option("--dtype", type=click.Choice(DTYPES), help="Convert the model and its inputs."),
    click.option(
        "--mode", type=click.Choice(["infer", "train"]),
        help="With or without gradients.  [default: with, where an output needs one]",
    ),
    click.option("--dynamic/--static", default=None, help="Symbolic sizes, or one size a graph."),
    click.option("--pipeline", "passes", metavar="SPEC", help="Passes, as in `passes pipeline`."),
    click.option("--disable", multiple=True, metavar="PASS", help="Leave out; may be repeated."),
    click.option("--seed", type=int, default=0, show_default=True),
)  # fmt: skip


def model_options(command: _F) -> _F:
    """MODEL and its options; the command gets them as `choice`, a `ModelChoice`."""

    @functools.wraps(command)
    def with_choice(
        *args: Any,
        model: str,
        device: str | None,
        dtype: str | None,
        mode: str | None,
        dynamic: bool | None,
        passes: str | None,
        disable: tuple[str, ...],
        seed: int,
        **kwargs: Any,
    ) -> Any:
        options: dict[str, Any] = {}
        if passes is not None:
            options["passes"] = passes
        if disable:
            options["disable"] = disable
        train = None if mode is None else mode == "train"
        choice = ModelChoice(model, device, dtype, train, dynamic, seed, options)
        choice.pipeline()
        return command(*args, choice=choice, **kwargs)

    for decorate in reversed(_MODEL_OPTIONS):
        with_choice = decorate(with_choice)
    return with_choice  # type: ignore[return-value]


def out_option(command: _F) -> _F:
    """`--out`: where a run is recorded; the command gets it as `out`."""
    decorate = click.option(
        "--out", type=click.Path(path_type=Path), metavar="DIR",
        help="Record the run below DIR.  [default: .deepcompile/runs]",
    )  # fmt: skip
    return decorate(command)
