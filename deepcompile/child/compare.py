"""One function in eager and compiled, on equal inputs: how they differ, and how long they take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deepcompile.child.signature import Signature

TOLERANCE: Mapping[torch.dtype, float] = {
    torch.float64: 1e-7,
    torch.float32: 1e-3,
    torch.float16: 2e-2,
    torch.bfloat16: 6e-2,
    torch.complex128: 1e-7,
    torch.complex64: 1e-3,
}
"""Largest error, relative to the largest magnitude of the tensor, that is no failure: fused code
keeps digits that eager rounds away, and adds in another order. Mistakes are larger."""
_ROUNDS = 7
_SECONDS = 1.0


@dataclass
class Step:
    """What one call gave: named tensors and numbers, in order; `draws`: random numbers were drawn.

    Names are `output 0`, `gradient of weight`, `input 1 afterwards`.
    """

    values: list[tuple[str, Any]]
    draws: bool = False


def run_step(
    function: Callable[..., Any], inputs: Sequence[Any], *, backward: bool | None, seed: int
) -> Step:
    """Call a function or module, then go backward from what it returns, where that is possible.

    Inputs are copied before, so that neither values nor gradients of the given ones change.

    Args:
        backward: whether gradients are wanted; None: in training mode, where there are any.
        seed: of the random numbers that the call draws, and of the gradients of the outputs.
    """
    given = copied(inputs)
    module = function if isinstance(function, nn.Module) else None
    if backward is None:
        backward = module is None or module.training
    torch.manual_seed(seed)
    state = torch.get_rng_state()
    with torch.enable_grad() if backward else torch.no_grad():
        outputs = function(*given)
    draws = not torch.equal(state, torch.get_rng_state())
    found = _leaves(outputs)
    values = [(f"output {n}", _detached(v)) for n, v in enumerate(found)]
    if backward:
        sources = _sources(module, given)
        values += _gradients(found, sources, seed)
    flat = enumerate(pytree.tree_leaves(given))
    values += [(f"input {n} afterwards", v.detach()) for n, v in flat if isinstance(v, Tensor)]
    if module is not None:
        values += [(f"buffer {n} afterwards", b.detach()) for n, b in module.named_buffers()]
    return Step(values, draws)


def copied(inputs: Sequence[Any]) -> list[Any]:
    """Equal inputs in memory of their own, that want gradients where the given ones do."""

    def copy(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        with torch.no_grad():
            made = value.clone()
            moved = value.layout is torch.strided and made.stride() != value.stride()
            if moved and not _overlaps(value):
                made = torch.empty_strided(
                    value.shape, value.stride(), dtype=value.dtype, device=value.device
                ).copy_(value)
        return made.requires_grad_(value.requires_grad)

    return [pytree.tree_map(copy, value) for value in inputs]


def _overlaps(tensor: Tensor) -> bool:
    return any(s == 0 and n > 1 for n, s in zip(tensor.shape, tensor.stride(), strict=True))


def _leaves(outputs: Any) -> list[Any]:
    """Tensors and numbers in what a model returned; of objects, in their fields."""
    found = []
    for leaf in pytree.tree_leaves(outputs):
        if isinstance(leaf, Tensor | int | float | bool | complex):
            found.append(leaf)
        elif hasattr(leaf, "__dict__"):
            found += [v for v in vars(leaf).values() if isinstance(v, Tensor)]
    return found


def _detached(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _sources(module: nn.Module | None, given: Sequence[Any]) -> list[tuple[str, Tensor]]:
    found: list[tuple[str, Tensor]] = list(module.named_parameters()) if module is not None else []
    for number, value in enumerate(pytree.tree_leaves(list(given))):
        if isinstance(value, Tensor):
            found.append((f"input {number}", value))
    return [(name.replace("_orig_mod.", ""), value) for name, value in found if value.requires_grad]


def _gradients(
    outputs: Sequence[Any], sources: Sequence[tuple[str, Tensor]], seed: int
) -> list[tuple[str, Any]]:
    wanted = [v for v in outputs if isinstance(v, Tensor) and v.requires_grad]
    if not wanted or not sources:
        return []
    generator = torch.Generator().manual_seed(seed)
    given = [
        torch.rand(v.shape, generator=generator, dtype=torch.float32).add_(0.5).to(v)
        for v in wanted
    ]
    tensors = [tensor for _, tensor in sources]
    found = torch.autograd.grad(wanted, tensors, given, allow_unused=True)
    return [(f"gradient of {name}", g) for (name, _), g in zip(sources, found, strict=True)]


def difference(
    expected: Step, actual: Step, rtol: float | None = None
) -> tuple[Signature, str] | None:
    """The largest failure of numbers, and the name of the value that has it; None: no failure."""
    if len(expected.values) != len(actual.values):
        text = f"{len(expected.values)} values became {len(actual.values)}"
        return Signature("numerics", "shape", text), ""
    worst: tuple[Signature, str] | None = None
    for (name, a), (_, b) in zip(expected.values, actual.values, strict=True):
        found = _difference(a, b, rtol)
        if found is None:
            continue
        found = replace(found, detail=f"{name}: {found.detail}")
        if worst is None or found.error > worst[0].error:
            worst = found, name
    return worst


def _difference(a: Any, b: Any, rtol: float | None) -> Signature | None:
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        same = type(a) is type(b) and (a == b or a != a or _near(a, b, rtol))
        return None if same else Signature("numerics", "values", f"{a!r} became {b!r}", 1.0)
    if a.dtype != b.dtype or a.shape != b.shape:
        text = f"{a.dtype} {list(a.shape)} became {b.dtype} {list(b.shape)}"
        return Signature("numerics", "shape", text, 1.0)
    if not a.numel():
        return None
    wide = torch.complex128 if a.dtype.is_complex else torch.float64
    x, y = (t.detach().to_dense().to("cpu", wide) for t in (a, b))
    for what, mark in (("nan", torch.isnan), ("inf", torch.isinf)):
        count = int((mark(x) != mark(y)).sum())
        if count:
            text = f"{what} in other places, {count} of {x.numel()}"
            return Signature("numerics", what, text, count / x.numel())
    finite = x.isfinite()
    if not bool(finite.any()):
        return None
    scale = float(x[finite].abs().max())
    error = float((x[finite] - y[finite]).abs().max())
    bound = TOLERANCE.get(a.dtype, 0.0) if rtol is None else rtol
    if error <= bound * max(scale, 1e-6):
        return None
    relative = error / scale if scale else float("inf")
    return Signature("numerics", "values", f"largest error {error:.3g} of {scale:.3g}", relative)


def _near(a: Any, b: Any, rtol: float | None) -> bool:
    bound = TOLERANCE[torch.float32] if rtol is None else rtol
    return isinstance(a, float) and abs(a - b) <= bound * abs(a)


def seconds_of(
    function: Callable[..., Any], inputs: Sequence[Any], *, backward: bool | None, seed: int
) -> float:
    """The shortest time of a call, of up to seven within a second, after one that is not timed.

    On a CPU it is the processor's time, and the caller sees to it that there is one thread: so it
    is nearly the same on a machine that others use too.
    """
    clock = time.perf_counter if torch.cuda.is_initialized() else time.process_time
    run_step(function, inputs, backward=backward, seed=seed)
    best, start = float("inf"), time.perf_counter()
    for _ in range(_ROUNDS):
        before = clock()
        run_step(function, inputs, backward=backward, seed=seed)
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        best = min(best, clock() - before)
        if time.perf_counter() - start > _SECONDS:
            break
    return best


@contextmanager
def random_state_kept() -> Iterator[None]:
    """What the body draws is drawn again after it."""
    with torch.random.fork_rng(devices=[]):
        yield
