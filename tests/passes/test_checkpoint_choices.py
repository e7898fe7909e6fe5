"""Sets of tensors to keep: each lets backward have what it needs, and nothing fixed runs twice."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import scipy.optimize
import torch
from scipy.optimize import OptimizeResult
from torch import Tensor, nn
from torch.fx import Node
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from deepcompile.passes.checkpoints.choices import Layer, keep_sets, layer_of
from deepcompile.passes.checkpoints.emit import Recompute
from deepcompile.passes.checkpoints.joint import Joint, is_symbol, must_recompute, why_kept
from deepcompile.passes.checkpoints.place import Options, Part, alternatives
from deepcompile.passes.checkpoints.segments import segment
from deepcompile.passes.checkpoints.unsolved import NO_SCIPY
from tests.passes.checkpoint_graphs import joint_of

aten = torch.ops.aten


@torch.library.custom_op("checkpointtest::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return x * 2


@twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


twice.register_autograd(lambda ctx, grad: grad * 2)


class Layers(nn.Module):
    """Layers that something is done to between two products; each may be a marked region."""

    def __init__(
        self,
        between: Callable[[Tensor], Tensor] = nn.functional.gelu,
        region: Callable[..., Tensor] | None = None,
        depth: int = 5,
    ) -> None:
        super().__init__()
        self.wide = nn.ModuleList(nn.Linear(32, 64) for _ in range(depth))
        self.narrow = nn.ModuleList(nn.Linear(64, 32) for _ in range(depth))
        self.between, self.region = between, region

    def forward(self, x: Tensor) -> Tensor:
        for wide, narrow in zip(self.wide, self.narrow, strict=True):
            layer = lambda x, wide=wide, narrow=narrow: narrow(self.between(wide(x)))  # noqa: E731
            x = torch.tanh(layer(x) if self.region is None else self.region(layer, x))
        return x


def saving(packets: tuple[Any, ...], otherwise: CheckpointPolicy) -> Callable[..., Tensor]:
    """A region that must save the results of some operators."""

    def policy(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if op in packets else otherwise

    contexts = partial(create_selective_checkpoint_contexts, policy)
    return partial(checkpoint, use_reentrant=False, context_fn=contexts)


plain = partial(checkpoint, use_reentrant=False)
save_gelu = saving((aten.gelu.default,), CheckpointPolicy.MUST_RECOMPUTE)
save_products = saving((aten.addmm.default, aten.mm.default), CheckpointPolicy.MUST_RECOMPUTE)

CASES: dict[str, Callable[[], Joint]] = {
    "plain": lambda: joint_of(Layers(), torch.randn(16, 32)),
    "dropout of torch": lambda: joint_of(
        Layers(lambda x: nn.functional.dropout(x.tanh(), 0.5)), torch.randn(16, 32), rng="eager"
    ),
    "a custom operator": lambda: joint_of(Layers(lambda x: twice(x.tanh())), torch.randn(16, 32)),
    "batch norm": lambda: joint_of(Layers(nn.BatchNorm1d(64)), torch.randn(16, 32)),
    "a region": lambda: joint_of(Layers(region=plain), torch.randn(16, 32)),
    "saved by a policy": lambda: joint_of(Layers(region=save_gelu), torch.randn(16, 32)),
    "products saved by a policy": lambda: joint_of(
        Layers(region=save_products), torch.randn(16, 32)
    ),
}


@pytest.fixture(params=CASES, scope="module")
def joint(request: pytest.FixtureRequest) -> Joint:
    return CASES[request.param]()


def check_set(layer: Layer, kept: frozenset[int]) -> None:
    """What is needed is kept, or made of what is kept or comes from outside the layer."""
    assert all(layer.nbytes[at] for at in kept)
    wanted = [at for at in layer.needed | layer.always if at not in kept and layer.nbytes[at]]
    wanted += [at for at in layer.needed if at not in kept and not layer.nbytes[at]]
    seen = set(wanted)
    while wanted:
        at = wanted.pop()
        assert at not in layer.fixed, layer.nodes[at]
        assert at not in layer.always or not layer.nbytes[at], layer.nodes[at]
        for source in layer.sources[at]:
            if source not in kept and source not in seen:
                seen.add(source)
                wanted.append(source)


def sets_of(joint: Joint) -> Iterator[tuple[Layer, list[frozenset[int]]]]:
    segments = segment(joint)
    for number in range(segments.count):
        layer = layer_of(joint, segments, number)
        yield layer, keep_sets(layer)


def sizes_of(layer: Layer, sets: list[frozenset[int]]) -> list[int]:
    return [sum(layer.nbytes[at] for at in kept) for kept in sets]


def test_every_set_is_enough_and_sets_shrink(joint: Joint) -> None:
    for layer, sets in sets_of(joint):
        sizes = sizes_of(layer, sets)
        assert (sizes[0], sizes[-1]) == (max(sizes), min(sizes))
        assert len(set(sets)) == len(sets) >= 1
        for kept in sets:
            check_set(layer, kept)


def test_no_set_has_more_bytes_than_one_before_it() -> None:
    for layer, sets in sets_of(CASES["batch norm"]()):
        sizes = sizes_of(layer, sets)
        assert sizes == sorted(sizes, reverse=True)


def test_sets_without_scipy_shrink(joint: Joint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    for layer, sets in sets_of(joint):
        sizes = sizes_of(layer, sets)
        assert sizes == sorted(sizes, reverse=True)
        assert set().union(*sets) == sets[0]
        assert {at for at in layer.always if layer.nbytes[at]} <= sets[-1]


@pytest.mark.parametrize("failing", [0, 1, 5])
def test_a_solver_that_fails_is_told(failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the number of the call: for the richest set, for the leanest, for one between."""
    joint = CASES["batch norm"]()
    segments = segment(joint)
    layer = max(
        (layer_of(joint, segments, number) for number in range(segments.count)),
        key=lambda layer: len(layer.nodes),
    )
    real, calls = scipy.optimize.milp, itertools.count()

    def milp(*args: Any, **kwargs: Any) -> OptimizeResult:
        if next(calls) == failing:
            return OptimizeResult(status=4, message="Numerical difficulties.", x=None)
        return real(*args, **kwargs)

    monkeypatch.setattr(scipy.optimize, "milp", milp)
    reasons: list[str] = []
    for kept in keep_sets(layer, reasons.append):
        if failing == 5:
            check_set(layer, kept)
    assert reasons == ["HiGHS failed with status 4: Numerical difficulties."]
    reasons.clear()
    keep_sets(layer, reasons.append)
    assert not reasons
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    keep_sets(layer, reasons.append)
    assert reasons == [NO_SCIPY]


def plans(options: Options) -> Iterator[list[Part]]:
    """The richest and the leanest choice everywhere, and groups wherever there are some."""
    own = [[part for part in parts if part.end == part.start + 1] for parts in options.parts]
    yield [parts[0] for parts in own]
    yield [parts[-1] for parts in own]
    for longest in (2, 4, 8):
        chosen: list[Part] = []
        while not chosen or chosen[-1].end < len(own):
            parts = options.parts[chosen[-1].end if chosen else 0]
            fitting = [part for part in parts if part.end - part.start <= longest]
            chosen.append(max(fitting, key=lambda part: (part.end, -len(part.keep))))
        yield chosen


def check_recompute(joint: Joint, found: Recompute) -> None:
    """Copies come after what they read, none of what is fixed; nothing marked is saved."""
    there: set[object] = set(found.saved) | set(found.inputs)
    there |= {node for node in joint.position if node.op == "placeholder"}
    for entry in found.walk.nodes:
        assert all(source in there for source in found.walk.sources[entry]), entry
        there.add(entry)
        if isinstance(entry, tuple):
            assert why_kept(entry[0]) is None, entry
    for node in found.saved:
        assert isinstance(node, Node)
        assert not is_symbol(node)
        assert not must_recompute(node)


@pytest.mark.parametrize("scipy", [True, False])
def test_plans_of_all_sorts_run_nothing_fixed_twice(
    joint: Joint, scipy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not scipy:
        monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    options = alternatives(joint)[0]
    longest = 0
    for parts in plans(options):
        assert [part.start for part in parts[1:]] == [part.end for part in parts[:-1]]
        longest = max(longest, *(part.end - part.start for part in parts))
        check_recompute(joint, options.recompute(parts))
    assert longest >= 2


def test_reasons_to_keep() -> None:
    found = {name: {why_kept(node) for node in make().forward} for name, make in CASES.items()}
    assert found["plain"] == found["a region"] == {None}
    assert found["dropout of torch"] == {None, "it draws random numbers"}
    assert found["a custom operator"] == {None, "a custom operator (checkpointtest)"}
    assert found["saved by a policy"] == {None, "marked to be saved"}


def test_what_a_policy_saves_is_saved_by_every_plan() -> None:
    joint = CASES["saved by a policy"]()
    options = alternatives(joint)[0]
    for parts in plans(options):
        saved = options.recompute(parts).saved
        for node in joint.needed:
            if node.target is aten.gelu.default:
                assert node in saved
            if node.target is aten.addmm.default and must_recompute(node):
                assert node not in saved


def test_a_region_is_computed_again_by_every_plan() -> None:
    joint = CASES["a region"]()
    options = alternatives(joint)[0]
    marked = [node for node in joint.forward if must_recompute(node)]
    assert marked
    for parts in plans(options):
        assert not set(marked) & set(options.recompute(parts).saved)
