"""Models whose tensors have shapes but no memory, for tracing without running."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch._guards import CompileContext
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
)

aten = torch.ops.aten


class AnsweringMode(FakeTensorMode):
    """A fake mode in which eager code may ask for the value of a tensor: it is 1, or true.

    Code that Dynamo leaves in eager, at a branch on a tensor or an `item()`, goes on so, and what a
    mask selects is everything. A graph that is being captured gets no answers, because they would
    be constants of it.
    """

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return super().dispatch(func, types, args, kwargs)
        except DynamicOutputShapeException:
            if func is not aten.nonzero.default or CompileContext.current_compile_id() is not None:
                raise
            with self:
                return torch.empty(args[0].numel(), args[0].dim(), dtype=torch.int64)
        except DataDependentOutputException:
            asks = func is aten._local_scalar_dense.default
            if not asks or CompileContext.current_compile_id() is not None:
                raise
            dtype = args[0].dtype
            return True if dtype is torch.bool else 1.0 if dtype.is_floating_point else 1


def fake_tensor(value: Any) -> Any:
    """A fake CPU tensor like a tensor, within a fake mode; anything else as it is.

    On `meta`, and on a CUDA that is not there, attention would be traced in another form.
    """
    if not isinstance(value, Tensor):
        return value
    fake = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cpu")
    return fake.requires_grad_(value.requires_grad)


def fake_model(model: nn.Module, mode: FakeTensorMode) -> tuple[nn.Module, dict[int, str]]:
    """A copy with fake parameters and buffers, tied ones still tied, and the names of the former.

    Names are of the parameters of the copy, by `id`: of several for one parameter the first.
    """
    memo: dict[int, Any] = {}
    names: dict[int, str] = {}
    with mode:
        for tensor in (*model.parameters(), *model.buffers()):
            fake = fake_tensor(tensor.detach())
            if isinstance(tensor, nn.Parameter):
                fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
            memo[id(tensor)] = fake
        made = {id(tensor): memo[id(tensor)] for tensor in model.parameters()}
        for name, parameter in model.named_parameters():
            names[id(made[id(parameter)])] = name
        return copy.deepcopy(model, memo), names
