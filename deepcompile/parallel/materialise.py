"""Parameters of a model put in place share by share, from what it holds, a file or an initialiser.

Module by module, children before their parents, as `model.apply` goes. Of a model on `meta` no more
than the parameters of one module are ever in memory whole, and with a checkpoint not even those.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from deepcompile.capture.markers import MarkerAxis, MarkerSpec, share
from deepcompile.errors import PartitionError
from deepcompile.ir.placements import Placements
from deepcompile.parallel.dtensors import from_share
from deepcompile.parallel.modules import place
from deepcompile.parallel.safetensors_files import Checkpoint
from deepcompile.parallel.shares import ranges

#: `(name, shape, dtype) -> tensor` of a whole parameter or buffer, equal on all ranks.
Initialiser = Callable[[str, tuple[int, ...], torch.dtype], Tensor]
Init = Initialiser | Literal["model"]


@dataclass
class Entry:
    """A parameter or buffer with all its names; several when it is tied."""

    names: list[str]
    shape: tuple[int, ...]
    dtype: torch.dtype
    is_meta: bool
    is_parameter: bool
    is_persistent: bool = True


def parameters(model: nn.Module) -> list[Entry]:
    """Each parameter once."""
    return list(_entries(model.named_parameters(remove_duplicate=False)).values())


def _entries(named: Iterable[tuple[str, Tensor]]) -> dict[int, Entry]:
    """By the identity of the tensor: they hold none, so that what is placed can be freed."""
    found: dict[int, Entry] = {}
    for name, tensor in named:
        known = found.get(id(tensor))
        if known is not None:
            known.names.append(name)
            continue
        is_parameter = isinstance(tensor, nn.Parameter)
        found[id(tensor)] = Entry(
            [name], tuple(tensor.shape), tensor.dtype, tensor.is_meta, is_parameter
        )
    return found


def materialise(
    model: nn.Module,
    placements: Mapping[str, Placements],
    mesh: DeviceMesh,
    axes: tuple[MarkerAxis, ...],
    device: torch.device,
    checkpoint: Checkpoint | None,
    init: Init | None,
) -> None:
    """Make every parameter the DTensor of this rank's share, and let modules read them whole.

    Args:
        model: changed in place.
        placements: of each parameter, under its first name.
        mesh: the processes; `axes` is the same for markers.
        device: where parameters and buffers are put.
        checkpoint: where values come from; `None` for what the model holds, or `init` on `meta`.
        init: for what is on `meta` and in no checkpoint.

    Raises:
        PartitionError: where there is no value for a parameter.
    """
    work = _Work(_all_entries(model), placements, mesh, axes, device, checkpoint, init)
    with _generators_of_rank_0(device, mesh):
        for module, ancestors in _children_first(model):
            work.fill(module, ancestors)
    for _, module in model.named_modules():
        specs = {
            name: work.specs[id(parameter)]
            for name, parameter in module._parameters.items()
            if parameter is not None
        }
        if specs or module is model:
            place(module, specs)


def refuse_what_a_checkpoint_lacks(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Of parameters, and of buffers that are on `meta` and belong in a state dict.

    Raises:
        PartitionError: names the first and what comes closest.
    """
    wanted = [
        entry.names[0]
        for entry in _all_entries(model).values()
        if (entry.is_parameter or (entry.is_meta and entry.is_persistent))
        and checkpoint.find(entry.names) is None
    ]
    if not wanted:
        return
    close = checkpoint.nearest(wanted[0])
    raise PartitionError(
        f"the checkpoint has no {wanted[0]!r}"
        + (f" (it has {close!r})" if close else "")
        + (f" and lacks {len(wanted) - 1} more" if len(wanted) > 1 else "")
        + "; give init='model' or a function to initialise what it lacks"
    )


def _all_entries(model: nn.Module) -> dict[int, Entry]:
    buffers = _entries(model.named_buffers(remove_duplicate=False))
    kept = set(model.state_dict(keep_vars=True))
    for entry in buffers.values():
        entry.is_persistent = any(name in kept for name in entry.names)
    return _entries(model.named_parameters(remove_duplicate=False)) | buffers


@dataclass
class _Work:
    entries: Mapping[int, Entry]
    placements: Mapping[str, Placements]
    mesh: DeviceMesh
    axes: tuple[MarkerAxis, ...]
    device: torch.device
    checkpoint: Checkpoint | None
    init: Init | None
    #: id of a tensor of the model -> what is in its place now
    made: dict[int, Tensor] = field(default_factory=dict)
    #: id of a placed parameter -> what reads it
    specs: dict[int, MarkerSpec] = field(default_factory=dict)

    def fill(self, module: nn.Module, ancestors: list[nn.Module]) -> None:
        """Put the module's own parameters and buffers in place."""
        missing: dict[str, Tensor] = {}
        for name, tensor in _own(module):
            if id(tensor) in self.made:
                continue
            entry = self.entries[id(tensor)]
            found = self.checkpoint.find(entry.names) if self.checkpoint else None
            if found is not None:
                self.made[id(tensor)] = self._from_checkpoint(tensor, entry, found)
            elif not tensor.is_meta:
                self.made[id(tensor)] = self._placed(tensor, entry, self._of_rank_0(tensor))
            else:
                missing[name] = tensor
        values = {}
        if missing and not callable(self.init):
            values = _initialised_by_model(module, ancestors, self.device, set(missing))
        for name, tensor in missing.items():
            entry = self.entries[id(tensor)]
            whole = values.pop(name) if name in values else self._initialised(entry)
            self.made[id(tensor)] = self._placed(tensor, entry, whole)
        for holder in (module._parameters, module._buffers):
            for name, old in holder.items():
                if old is not None:
                    holder[name] = self.made[id(old)]  # type: ignore[assignment]

    def _spec(self, entry: Entry) -> MarkerSpec:
        name = entry.names[0]
        return MarkerSpec(entry.shape, self.placements[name], self.axes, name)

    def _from_checkpoint(self, tensor: Tensor, entry: Entry, name: str) -> Tensor:
        assert self.checkpoint is not None
        if not entry.is_parameter:
            whole = tuple(((0, extent),) for extent in entry.shape)
            values = self.checkpoint.read(name, entry.shape, whole)
            return values.to(self.device, entry.dtype)
        spec = self._spec(entry)
        rank = tuple(axis.rank for axis in self.axes)
        wanted = ranges(entry.shape, spec.placements, spec.sizes, rank)
        local = self.checkpoint.read(name, entry.shape, wanted)
        return self._parameter(tensor, local.to(self.device, entry.dtype), spec)

    def _initialised(self, entry: Entry) -> Tensor:
        assert callable(self.init)
        name, dtype = entry.names[0], entry.dtype
        value = self.init(name, entry.shape, dtype)
        if not isinstance(value, Tensor) or tuple(value.shape) != entry.shape:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise PartitionError(f"init gave {shape} for {name!r}; it has shape {entry.shape}")
        return value.detach().to(self.device, dtype)

    def _of_rank_0(self, tensor: Tensor) -> Tensor:
        """The same values on all ranks, as `distribute_tensor` has it."""
        values = tensor.detach().to(self.device).contiguous()
        if self.mesh.size() == 1:
            return values
        if values.data_ptr() == tensor.data_ptr() and dist.get_rank() != 0:
            values = values.clone()
        dist.broadcast(as_bytes(values), src=0)
        return values

    def _placed(self, tensor: Tensor, entry: Entry, whole: Tensor) -> Tensor:
        if not entry.is_parameter:
            if tensor.device != self.device or not tensor.is_contiguous():
                return whole
            with torch.no_grad():  # the same buffer: others may hold it
                return tensor.copy_(whole)
        spec = self._spec(entry)
        local = share(whole, spec).clone(memory_format=torch.contiguous_format)
        return self._parameter(tensor, local, spec)

    def _parameter(self, old: Tensor, local: Tensor, spec: MarkerSpec) -> Tensor:
        placed = from_share(local.contiguous(), spec, self.mesh)
        parameter = nn.Parameter(placed, requires_grad=old.requires_grad)
        for attribute, value in vars(old).items():
            setattr(parameter, attribute, value)
        self.specs[id(parameter)] = spec
        return parameter


def as_bytes(tensor: Tensor) -> Tensor:
    """The memory of a contiguous tensor: what process groups send whatever its type is."""
    return tensor.view(-1).view(torch.uint8)


def _own(module: nn.Module) -> list[tuple[str, Tensor]]:
    own = [*module._parameters.items(), *module._buffers.items()]
    return [(name, tensor) for name, tensor in own if tensor is not None]


def _children_first(
    module: nn.Module, ancestors: tuple[nn.Module, ...] = (), seen: set[int] | None = None
) -> Iterator[tuple[nn.Module, list[nn.Module]]]:
    """Each module once, with those it is in, innermost first."""
    seen = set() if seen is None else seen
    if id(module) in seen:
        return
    seen.add(id(module))
    for child in module.children():
        yield from _children_first(child, (module, *ancestors), seen)
    yield module, list(ancestors)


def _initialised_by_model(
    module: nn.Module, ancestors: list[nn.Module], device: torch.device, names: set[str]
) -> dict[str, Tensor]:
    """What the module's own initialisation gives for some of its parameters and buffers.

    That is `_init_weights(module)` of the innermost module around it that has one, as models of
    `transformers` do, and `reset_parameters()` of its own for what that leaves.

    Raises:
        PartitionError: where neither gives a value.
    """
    before = (module._parameters.copy(), module._buffers.copy())
    try:
        for name, tensor in _own(module):
            values = _no_value(torch.empty(tensor.shape, dtype=tensor.dtype, device=device))
            if name in module._buffers:
                module._buffers[name] = values
            else:
                module._parameters[name] = nn.Parameter(values, requires_grad=tensor.requires_grad)
        with torch.no_grad():
            for initialise in _initialisers(module, ancestors):
                initialise()
                if not _without_value(module, names):
                    break
        found = {name: tensor.detach() for name, tensor in _own(module) if name in names}
        left = _without_value(module, names)
    finally:
        module._parameters.clear()
        module._parameters.update(before[0])
        module._buffers.clear()
        module._buffers.update(before[1])
    if left:
        raise PartitionError(
            f"{type(module).__name__} does not initialise its {', '.join(map(repr, left))}; give "
            "it a method reset_parameters(), or call parallelize with checkpoint= or "
            "init=a function of (name, shape, dtype)"
        )
    return found


def _initialisers(module: nn.Module, ancestors: list[nn.Module]) -> list[Callable[[], Any]]:
    owners: list[Any] = [owner for owner in (module, *ancestors) if hasattr(owner, "_init_weights")]
    resets = [name for name in ("reset_parameters", "_reset_parameters") if hasattr(module, name)]
    return [functools.partial(owner._init_weights, module) for owner in owners[:1]] + [
        getattr(module, name) for name in resets[:1]
    ]


def _without_value(module: nn.Module, names: set[str]) -> list[str]:
    return [
        name
        for name, tensor in _own(module)
        if name in names and tensor.numel() and _lacks_value(tensor.detach())
    ]


def _no_value(tensor: Tensor) -> Tensor:
    """Filled with what no initialisation gives, to see what it leaves."""
    if tensor.is_floating_point() or tensor.is_complex():
        return tensor.fill_(float("nan"))
    if tensor.dtype is torch.bool:
        return tensor.zero_()
    return tensor.fill_(torch.iinfo(tensor.dtype).max)


def _lacks_value(tensor: Tensor) -> bool:
    if tensor.is_floating_point() or tensor.is_complex():
        return bool(tensor.isnan().any())
    if tensor.dtype is torch.bool:
        return False
    return bool((tensor == torch.iinfo(tensor.dtype).max).all())


@contextmanager
def _generators_of_rank_0(device: torch.device, mesh: DeviceMesh) -> Iterator[None]:
    """Random numbers as rank 0 draws them, on all ranks.

    Afterwards a rank whose generator stood as that of rank 0 has moved on with it, and one that was
    seeded otherwise is where it was.
    """
    if mesh.size() == 1:
        yield
        return
    own = [torch.get_rng_state()]
    if device.type == "cuda":
        own.append(torch.cuda.get_rng_state(device))
    shared: list[Any] = [own]
    dist.broadcast_object_list(shared, src=0)
    _set_generators(shared[0], device)
    yield
    if any(not torch.equal(a, b) for a, b in zip(own, shared[0], strict=True)):
        _set_generators(own, device)


def _set_generators(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state, device)
