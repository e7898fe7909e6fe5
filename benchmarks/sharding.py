"""Plans of models on meshes: how long they take to find, how good they are, and what they give.

The depth of graphs is that of real models, the tensors of most are on `meta`; nothing here needs a
GPU or a process group.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import resource
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks._measure import Check, Measurement, Plan, SuiteResult
from benchmarks.sharding_models import DECODERS, decoder, decoder_subject, text
from benchmarks.sharding_modules import DecoderSizes, decoder_on_meta
from deepcompile.cost.rates import rates_of
from deepcompile.ir.mesh import Mesh
from deepcompile.ir.placements import Placements, Shard, placements_text
from deepcompile.options import Options
from deepcompile.parallel.planning import BEFORE
from deepcompile.parallel.tracing import trace
from deepcompile.passes.partition.decide import Question
from deepcompile.passes.partition.rules import rule_of
from deepcompile.passes.partition.sites import Sites
from deepcompile.pipeline.spec import parse_passes
from tests.passes.partition.harness import (
    Partitioned,
    collectives,
    compare_with_one_device,
    describe,
    lower,
    replicated_nodes,
    share_of_memory,
    wire_bytes,
)

GIB = 2**30
H100 = rates_of("cuda", 90, 1)

# -- large models ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class LargeCase:
    """A decoder on a mesh, with the seconds that finding and lowering its plan may take."""

    name: str
    sizes: DecoderSizes
    mesh: str
    data: tuple[str, ...] = ()
    limit: float | None = None
    seconds: float = 20.0


EIGHT_B = DecoderSizes(layers=32)
SEVENTY_B = DecoderSizes(layers=80, width=8192, heads=64, key_heads=8, inner=28672)

LARGE = (
    LargeCase("32 layers, tp=8", EIGHT_B, "tp=8", seconds=3.0),
    LargeCase("32 layers, dp=4 tp=8", EIGHT_B, "dp=4,tp=8", ("dp",)),
    LargeCase("32 layers, 4 x 8 tensor", EIGHT_B, "outer=4,inner=8"),
    # A rank's equal share of parameters, gradients and state is 13 GiB of it, of 103 GiB on tp=8.
    LargeCase("70B, dp=8 tp=8", SEVENTY_B, "dp=8,tp=8", ("dp",), limit=40 * GIB),
)
LOWERING = 20.0
WARM = 1.0
GAP = 0.01


@dataclass(frozen=True)
class LargeResult:
    """Seconds of steps, and what was found."""

    trace: float
    solve_and_build: float
    solve_and_build_cpu: float
    warm: float
    lower: float
    gap: float
    method: str
    nodes: int
    held_gib: float
    limit_gib: float
    modelled_milliseconds: float
    wire_megabytes: float
    collectives: Mapping[str, int]
    placements: Mapping[str, Mapping[str, int]]
    peak_gib: float


def measure_large(case: LargeCase, sites: Sites, traced: float) -> LargeResult:
    """Plan with nothing kept, plan again from what was kept, lower."""
    mesh = Mesh.of(case.mesh, case.data)
    with tempfile.TemporaryDirectory(prefix="sharding-") as folder:
        started, worked = time.perf_counter(), time.process_time()
        question = Question((sites,), mesh, H100, "cuda", limit=case.limit)
        choice = question.answer(Path(folder))
        cold, cpu = time.perf_counter() - started, time.process_time() - worked
        started = time.perf_counter()
        again = Question((sites,), mesh, H100, "cuda", limit=case.limit).answer(Path(folder))
        warm = time.perf_counter() - started
    assert again.parameters == choice.parameters
    started = time.perf_counter()
    rules = {node: rule_of(node) for node in sites.steps()}
    graph = lower(sites, mesh, choice, rules, question.mover(choice))
    lowering = time.perf_counter() - started
    found = collectives(graph, mesh)
    placed: dict[str, dict[str, int]] = {}
    for name, placements in choice.parameters.items():
        kind = ".".join("*" if part.isdigit() else part for part in name.split("."))
        counts = placed.setdefault(kind, {})
        label = placements_text(placements)
        counts[label] = counts.get(label, 0) + 1
    held = sum(
        question.formulation.bytes_of(p, choice.parameters[p.name]) for p in sites.parameters
    )
    return LargeResult(
        trace=traced,
        solve_and_build=cold,
        solve_and_build_cpu=cpu,
        warm=warm,
        lower=lowering,
        gap=choice.solution.gap,
        method=choice.solution.method,
        nodes=len(sites.graph.nodes),
        held_gib=held / GIB,
        limit_gib=(case.limit or 0.0) / GIB,
        modelled_milliseconds=choice.solution.seconds * 1e3,
        wire_megabytes=wire_bytes(found, mesh) / 1e6,
        collectives={
            f"{key.kind} on {key.axis} of {key.bytes} bytes": count
            for key, count in sorted(found.items(), key=lambda item: -item[0].bytes * item[1])
        },
        placements=placed,
        peak_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB,
    )


def sites_of(model: nn.Module, batch: Mapping[str, torch.Tensor]) -> tuple[Sites, float]:
    """The one graph of a model, and the seconds it took to trace."""
    started = time.perf_counter()
    (sites,) = trace(model, batch, parse_passes(BEFORE), Options.resolve(None, None))
    return sites, time.perf_counter() - started


# -- architectures of transformers -----------------------------------------------------------------

MEMORY = 0.6
MEMORY_WHERE_ALL_DIVIDES = 0.55


@dataclass(frozen=True)
class ArchitectureResult:
    """A small model on tp=2 against one device."""

    wrong: tuple[str, ...]
    loss: float
    gradient: float
    parameters: float
    memory: float
    replicated: tuple[str, ...]
    without_rule: tuple[str, ...]
    seconds: float


def measure_architecture(name: str) -> ArchitectureResult:
    started = time.perf_counter()
    difference, parts = compare_with_one_device(decoder_subject(name), "tp=2")
    nodes = list(replicated_nodes(parts))
    return ArchitectureResult(
        difference.wrong,
        difference.loss,
        difference.gradient,
        difference.parameters,
        share_of_memory(parts),
        tuple(describe(node) for node, _ in nodes),
        tuple(describe(node) for node, lacks in nodes if lacks),
        time.perf_counter() - started,
    )


# -- plans that transformers ships -----------------------------------------------------------------


@dataclass(frozen=True)
class ShippedResult:
    """Our plan and the one that `transformers` ships, at the architecture's own widths on tp=8."""

    weights: int
    alike: int
    differ: Mapping[str, str]
    our_megabytes: float
    their_megabytes: float
    our_milliseconds: float
    their_milliseconds: float

    @property
    def holds(self) -> bool:
        """Whether all weights are alike, or ours moves no more bytes."""
        return not self.differ or self.our_megabytes <= self.their_megabytes * 1.001


def shipped_styles(config: Any) -> dict[str, str]:
    """By pattern of a module or parameter in the base model: column or row."""
    plan = getattr(config, "base_model_tp_plan", None) or {}
    return {
        pattern: "row" if "rowwise" in style else "column"
        for pattern, style in plan.items()
        if "rowwise" in style or "colwise" in style
    }


def side_of(placements: Placements, dims: int) -> str:
    """Of a weight: what its rows stand for are a layer's columns, as torch keeps them."""
    place = placements[0]
    if not isinstance(place, Shard):
        return str(place)
    return {dims - 2: "column", dims - 1: "row"}.get(place.dim, f"dimension {place.dim}")


def compare_with_shipped(name: str) -> ShippedResult | None:
    """None for an architecture that ships none."""
    import transformers

    config_name, small = DECODERS[name]
    config = getattr(transformers, config_name)()
    styles = shipped_styles(config)
    if not styles:
        return None
    kept = {key: getattr(config, key) for key in small if hasattr(config, key)}
    with torch.device("meta"):
        model = decoder(name, **kept | {"num_hidden_layers": 2})
        batch = {key: torch.zeros(1, 2048, dtype=torch.long) for key in text(1)}
    sites, _ = sites_of(_Loss(model.to(torch.bfloat16)), batch)
    ours = _planned(sites, {})
    theirs, weights = _constraints(sites, styles)
    constrained = _planned(sites, theirs)
    differ = {}
    for parameter in sites.parameters:
        wanted = weights.get(parameter.name)
        found = side_of(ours.choice.parameters[parameter.name], parameter.tensor.dim())
        if wanted is not None and found != wanted:
            differ[parameter.name] = f"{found}, theirs {wanted}"
    return ShippedResult(
        len(weights),
        len(weights) - len(differ),
        differ,
        wire_bytes(collectives(ours.graph, ours.mesh), ours.mesh) / 1e6,
        wire_bytes(collectives(constrained.graph, ours.mesh), ours.mesh) / 1e6,
        ours.choice.solution.seconds * 1e3,
        constrained.choice.solution.seconds * 1e3,
    )


class _Loss(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **batch: torch.Tensor) -> torch.Tensor:
        return self.model(**batch).loss


def _planned(sites: Sites, allowed: Mapping[str, list[Placements]]) -> Partitioned:
    mesh = Mesh.of("tp=8")
    question = Question((sites,), mesh, H100, "cuda", allowed=allowed)
    choice = question.answer(None)
    formulation = question.formulation
    graph = lower(sites, mesh, choice, formulation.rules, formulation.mover)
    return Partitioned(sites, mesh, formulation, choice, graph)


def _constraints(
    sites: Sites, styles: Mapping[str, str]
) -> tuple[dict[str, list[Placements]], dict[str, str]]:
    """Placements that a shipped plan allows, and the side of each weight in it.

    A column of a fused weight may be in pieces: whatever pieces there are.
    """
    allowed: dict[str, list[Placements]] = {}
    sides: dict[str, str] = {}
    mesh = Mesh.of("tp=8")
    free = Question((sites,), mesh, H100, "cuda").formulation.parameter_options
    for parameter in sites.parameters:
        short = parameter.name.removesuffix(".weight")
        side = next((s for p, s in styles.items() if fnmatch.fnmatch(short, f"*{p}")), None)
        dims = parameter.tensor.dim()
        if side is None or dims < 2:
            continue
        fitting = [p for p in free[parameter.name] if side_of(p, dims) == side]
        if fitting:
            allowed[parameter.name], sides[parameter.name] = fitting, side
    return allowed, sides


# -- the suite -------------------------------------------------------------------------------------


def run(plan: Plan) -> SuiteResult:
    """Large models first; then each architecture, where `transformers` is installed."""
    warnings.filterwarnings("ignore")
    measurements: list[Measurement] = []
    checks: list[Check] = []
    details: dict[str, Any] = {"large": {}, "architectures": {}, "shipped": {}}
    known: dict[DecoderSizes, tuple[Sites, float]] = {}
    for case in LARGE[:1] if plan.quick else LARGE:
        if case.sizes not in known:
            known = {case.sizes: sites_of(*decoder_on_meta(case.sizes))}
        large = measure_large(case, *known[case.sizes])
        details["large"][case.name] = asdict(large)
        for step in ("trace", "solve_and_build", "solve_and_build_cpu", "warm", "lower"):
            value = getattr(large, step)
            measurements.append(Measurement(f"{case.name}/{step.replace('_', ' ')}", value, "s"))
        measurements.append(Measurement(f"{case.name}/gap", 100 * large.gap, "%"))
        measurements.append(Measurement(f"{case.name}/peak", large.peak_gib, "GiB"))
        checks += [
            Check(f"{case.name}: solve and build, s", large.solve_and_build, "<=", case.seconds),
            Check(f"{case.name}: kept plan, s", large.warm, "<=", WARM),
            Check(f"{case.name}: lowering, s", large.lower, "<=", LOWERING),
            Check(f"{case.name}: gap", large.gap, "<=", GAP),
        ]
    notes = ["planned for H100s on traces of meta tensors; peak is of this process so far"]
    if importlib.util.find_spec("transformers") is None:
        notes.append("without transformers: no architectures")
        return SuiteResult("sharding", tuple(measurements), tuple(checks), tuple(notes), details)
    for name in list(DECODERS)[: plan.pick(len(DECODERS), 3)]:
        _add_architecture(name, measurements, checks, details)
    notes.append("architectures: two small layers on tp=2, all ranks simulated, against eager")
    notes.append("shipped: two layers at the configuration's own widths on tp=8, 2048 tokens")
    return SuiteResult("sharding", tuple(measurements), tuple(checks), tuple(notes), details)


def _add_architecture(
    name: str, measurements: list[Measurement], checks: list[Check], details: dict[str, Any]
) -> None:
    found = measure_architecture(name)
    details["architectures"][name] = asdict(found)
    measurements += [
        Measurement(f"{name}/loss", found.loss, "relative"),
        Measurement(f"{name}/gradients", found.gradient, "relative"),
        Measurement(f"{name}/memory", found.memory, "of one device"),
    ]
    checks += [
        Check(f"{name}: tensors that differ from one device's", len(found.wrong), "<=", 0),
        Check(f"{name}: memory of a rank", found.memory, "<=", MEMORY_WHERE_ALL_DIVIDES),
        Check(f"{name}: replicated for want of a rule", len(found.without_rule), "<=", 0),
    ]
    shipped = compare_with_shipped(name)
    if shipped is None:
        return
    details["shipped"][name] = asdict(shipped)
    measurements += [
        Measurement(f"{name}/our bytes", shipped.our_megabytes, "MB"),
        Measurement(f"{name}/bytes of the shipped plan", shipped.their_megabytes, "MB"),
    ]
    measurements.append(
        Measurement(f"{name}/weights as shipped", shipped.alike / shipped.weights, "of all")
    )
    checks.append(Check(f"{name}: alike or fewer bytes", float(shipped.holds), ">=", 1.0))
