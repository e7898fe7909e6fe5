"""Modules whose parameters are DTensors and are read whole.

A module that owns parameters gets a class made for it: a subclass of its own with the same name, in
which each parameter is a property that returns `deepcompile::unshard` of this rank's share. The
parameters themselves stay registered under their old names, so everything that goes through
`named_parameters` or `state_dict` (optimizers, gradient clipping, checkpoints) finds DTensors, and
everything that reads `self.weight` finds an ordinary tensor of the whole shape.

Reading a parameter communicates, so all ranks must do it, and what is written to the result is
lost: change a parameter through `named_parameters()`. `self._parameters["weight"]` and
`self.parameters()` give DTensors; torch refuses to mix those with other tensors.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from deepcompile.capture.markers import MarkerSpec, share, unshard
from deepcompile.errors import PartitionError
from deepcompile.parallel.dtensors import from_share, spec_of

#: Attribute of an instance: name of a parameter -> text of its `MarkerSpec`.
SPECS = "_deepcompile_specs"


def place(module: nn.Module, specs: Mapping[str, MarkerSpec]) -> None:
    """Let a module read its own parameters, which are DTensors by now, through markers."""
    base: Any = type(module)
    module.__class__ = _placed_class(base, tuple(specs))
    setattr(module, SPECS, {name: str(spec) for name, spec in specs.items()})
    if isinstance(module, nn.RNNBase):
        module.__dict__.pop("_flat_weights", None)
        module._flat_weight_refs = []


def is_placed(module: nn.Module) -> bool:
    """Whether `place` was called with it."""
    return SPECS in module.__dict__


@functools.cache
def _placed_class(base: Any, names: tuple[str, ...]) -> Any:
    """The class of modules of a class of which some parameters are placed."""
    namespace: dict[str, Any] = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        **{name: property(_reader(name)) for name in names},
        **_methods(base, names),
    }
    if issubclass(base, nn.RNNBase):
        namespace |= _RECURRENT
    return type(base)(base.__name__, (base,), namespace)


def _reader(name: str) -> Callable[[nn.Module], Any]:
    def read(module: nn.Module) -> Any:
        value = module._parameters.get(name)
        # None for a bias that is not there, and `torch.func.functional_call` puts plain tensors.
        if not isinstance(value, DTensor):
            return value
        return unshard(value.to_local(), module._deepcompile_specs[name])

    return read


def _methods(base: type[nn.Module], names: tuple[str, ...]) -> dict[str, Any]:
    """What a placed class does differently from its base besides reading parameters."""

    def register_parameter(self: Any, name: str, parameter: nn.Parameter | None) -> None:
        base.register_parameter(self, name, parameter)
        specs = self.__dict__.get(SPECS, {})
        if name in specs and isinstance(parameter, DTensor):
            old = MarkerSpec.parse(specs[name])
            specs[name] = str(spec_of(parameter, old.label, old.mesh.data))

    def load_from_state_dict(
        self: Any, state_dict: dict[str, Any], prefix: str, *args: Any
    ) -> None:
        for name in names:
            given: Any = state_dict.get(prefix + name)
            own = self._parameters.get(name)
            if isinstance(own, DTensor) and _is_whole(given, own):
                state_dict[prefix + name] = share_of_whole(given, own)
        base._load_from_state_dict(self, state_dict, prefix, *args)

    def reduce_ex(self: Any, protocol: Any) -> Any:
        made = base.__reduce_ex__(self, protocol)
        arguments = tuple(base if value is type(self) else value for value in made[1])
        return (_rebuild, (base, names, made[0], arguments), *made[2:])

    def get_parameter(self: Any, target: str) -> Any:
        path, _, name = target.rpartition(".")
        owner = self.get_submodule(path)
        placed = owner._parameters.get(name) if is_placed(owner) else None
        return base.get_parameter(self, target) if placed is None else placed

    return {
        "get_parameter": get_parameter,
        "register_parameter": register_parameter,
        "_load_from_state_dict": load_from_state_dict,
        "__reduce_ex__": reduce_ex,
    }


def _rebuild(
    base: Any,
    names: tuple[str, ...],
    make: Callable[..., Any],
    arguments: Iterable[Any],
) -> nn.Module:
    module = make(*arguments)
    module.__class__ = _placed_class(base, names)
    return module


def _is_whole(given: Any, own: DTensor) -> bool:
    is_plain = isinstance(given, Tensor) and not isinstance(given, DTensor)
    return is_plain and given.shape == own.shape


def share_of_whole(given: Tensor, own: DTensor) -> DTensor:
    """A whole tensor placed as `own` is; every rank has it, nothing is communicated."""
    spec = spec_of(own)
    local = share(given.detach(), spec).to(own.device).clone(memory_format=torch.contiguous_format)
    return from_share(local, spec, own.device_mesh)


# Recurrent modules keep their parameters in a list besides, for cuDNN, which reads them as one
# piece of memory. That list is made anew here at every read.


def _flat_weights(module: Any) -> list[Tensor | None]:
    return [getattr(module, name, None) for name in module._flat_weights_names]


def _no_flat_weights(module: Any, value: Any) -> None:
    """What is set is what was read."""


def _nothing(module: Any) -> None:
    """There is no memory to keep together."""


def _set_state(module: Any, state: dict[str, Any]) -> None:
    nn.Module.__setstate__(module, state)


_RECURRENT: dict[str, Any] = {
    "_flat_weights": property(_flat_weights, _no_flat_weights),
    "_init_flat_weights": _nothing,
    "_update_flat_weights": _nothing,
    "flatten_parameters": _nothing,
    "__setstate__": _set_state,
}


def refuse_what_cannot_be_placed(model: nn.Module) -> None:
    """Modules that would not read their parameters through a property.

    Raises:
        PartitionError: names the module and what to do.
    """
    parameters = {id(p): name for name, p in model.named_parameters()}
    for path, module in model.named_modules():
        where = f"{path or 'the model'} ({type(module).__name__})"
        if isinstance(module, torch.jit.ScriptModule):
            raise PartitionError(f"{where} is a TorchScript module; give the module it was made of")
        if type(module).__name__ == "OptimizedModule" and hasattr(module, "_orig_mod"):
            raise PartitionError(f"{where} is compiled; call parallelize before torch.compile")
        if isinstance(module, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            raise PartitionError(
                f"{where} wraps a model; give parallelize the model itself: a data axis of the "
                "mesh averages gradients"
            )
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse:
            raise PartitionError(f"{where} has sparse gradients; make it with sparse=False")
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
            raise PartitionError(
                f"{where} scales rows of its weight as it reads them (max_norm), which would be "
                "lost: parameters of a mesh are read as copies; make it with max_norm=None"
            )
        for name, parameter in module._parameters.items():
            label = f"{path}.{name}" if path else name
            if isinstance(parameter, DTensor):
                raise PartitionError(
                    f"parameter {label!r} is a DTensor: the model has been placed already; "
                    "parallelize one that has not"
                )
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                raise PartitionError(
                    f"parameter {label!r} has no shape yet; run the model once before parallelize"
                )
            if parameter is not None and parameter.grad is not None:
                raise PartitionError(
                    f"parameter {label!r} has a gradient; call model.zero_grad() first"
                )
        for attribute, value in module.__dict__.items():
            if attribute == "_flat_weights" and isinstance(module, nn.RNNBase):
                continue
            kept = next((parameters[id(t)] for t in _tensors(value) if id(t) in parameters), None)
            if kept is not None and attribute != "_parameters":
                raise PartitionError(
                    f"{where} keeps parameter {kept!r} in its attribute {attribute!r} besides; it "
                    "would go on reading the old one. Read it by its name, or keep it in a "
                    "ParameterList"
                )


def _tensors(value: Any) -> Iterable[Any]:
    if isinstance(value, Tensor):
        return (value,)
    if isinstance(value, (list, tuple, set)):
        return value
    if isinstance(value, dict):
        return value.values()
    return ()
