"""Ten bugs: for each, modules of the compiler and what is changed in them after their import."""

from __future__ import annotations

from types import MappingProxyType, SimpleNamespace
from typing import Any


def wrong_constant(identities: Any) -> None:
    """Multiplying by a half counts as multiplying by one."""
    aten = identities.aten
    by_one = identities.IDENTITIES[aten.mul.Tensor]

    def by_one_or_half(node: Any) -> bool:
        return by_one(node) or identities._is_number(identities.argument(node, 1, "other"), 0.5)

    identities.IDENTITIES[aten.mul.Tensor] = by_one_or_half


def dropped_cast(rewrite: Any) -> None:
    """A way over integers is taken for a detour."""
    rewrite.is_detour = lambda source, middle, target: True


def wrong_reduction_identity(monoids: Any) -> None:
    """A maximum starts at zero."""
    from dataclasses import replace

    zero = MappingProxyType({**monoids.MONOIDS["max"].identity, "f32": (0.0,)})
    changed = {"max": replace(monoids.MONOIDS["max"], identity=zero)}
    monoids.MONOIDS = MappingProxyType({**monoids.MONOIDS, **changed})


def bad_recompute(torch_private: Any) -> None:
    """What backward computes again of tanh is the sine."""
    split = torch_private.split_joint_graph
    aten = torch_private.torch.ops.aten

    def wrong(joint: Any, *args: Any, **kwargs: Any) -> Any:
        forward, backward = split(joint, *args, **kwargs)
        for node in backward.graph.nodes:
            if node.target is aten.tanh.default:
                node.target = aten.sin.default
        return forward, backward

    torch_private.split_joint_graph = wrong


def missing_collective(emit: Any) -> None:
    """Sums over ranks are left out."""
    launch, finish = emit.Emitter.launch, emit.Emitter.finish

    def without_launch(self: Any, step: Any, value: Any) -> Any:
        return value if step.kind == "all_reduce" else launch(self, step, value)

    def without_wait(self: Any, step: Any, launched: Any, before: Any) -> Any:
        return launched if step.kind == "all_reduce" else finish(self, step, launched, before)

    emit.Emitter.launch, emit.Emitter.finish = without_launch, without_wait


def aliasing_error(memory: Any) -> None:
    """A copy gives way to what it was copied from, written or not."""
    may_replace = memory.Memory.may_replace

    def careless(self: Any, node: Any, source: Any) -> bool:
        is_copy = str(node.target) == "aten.clone.default"
        return is_copy or may_replace(self, node, source)

    memory.Memory.may_replace = careless


def _change_kernels(program: Any, suspect: Any, line: str) -> None:
    emit_kernel = program.emit_kernel

    def changed(kernel: Any, name: str, **kwargs: Any) -> Any:
        made = emit_kernel(kernel, name, **kwargs)
        if not suspect(kernel):
            return made
        head = f"static void {name}_body(void *call_, i64 tid, i64 threads) {{"
        assert head in made.body
        return SimpleNamespace(
            body=made.body.replace(head, f"{head}\n{line}"), workspace=made.workspace
        )

    program.emit_kernel = changed


def _has(op: str) -> Any:
    return lambda kernel: any(getattr(i, "op", None) == op for i in kernel.instructions())


def slow_kernel(program: Any) -> None:
    """Kernels with an exponential wait."""
    line = "for (volatile int wait = 0; wait < 100000000; ++wait) {}"
    _change_kernels(program, _has("exp"), line)


def crash_in_lowering(rewrite: Any) -> None:
    """GELU has no lowering and says so in the wrong way."""
    probe = rewrite.probe

    def failing(node: Any, *args: Any) -> Any:
        if str(node.target).startswith("aten.gelu"):
            raise KeyError(f"no rule for {node.target} of {node.name}")
        return probe(node, *args)

    rewrite.probe = failing


def crash_at_run_time(program: Any) -> None:
    """Kernels with an exponential end the process."""
    _change_kernels(program, _has("exp"), "__builtin_trap();")


def nan_for_one_shape(program: Any) -> None:
    """Kernels with a size of 24 and an exponential write what is no number."""
    call = program._call

    def wrong(step: Any, names: Any) -> str:
        text: str = call(step, names)
        outs = [n for n, b in enumerate(step.op.nest.buffers) if b.role == "out"]
        if not outs or not step.sizes or not _has("exp")(step.op.nest):
            return text
        found = " || ".join(f"z[{n}] == 24" for n in range(len(step.sizes)))
        line = f'if ({found}) *(float *)b[{outs[-1]}] = __builtin_nanf("");'
        return f"{text.removesuffix('}')}{line} }}"

    program._call = wrong


_PROGRAM = "deepcompile.codegen.cpp_program"
_CANONICALISE = "deepcompile.passes.canonicalise"

BUGS = {
    "wrong-constant": [(f"{_CANONICALISE}.identities", wrong_constant)],
    "dropped-cast": [(f"{_CANONICALISE}.rewrite", dropped_cast)],
    "wrong-reduction-identity": [("deepcompile.ir.monoids", wrong_reduction_identity)],
    "bad-recompute": [("deepcompile.capture.torch_private", bad_recompute)],
    "missing-collective": [("deepcompile.passes.partition.emit", missing_collective)],
    "aliasing-error": [(f"{_CANONICALISE}.memory", aliasing_error)],
    "slow-kernel": [(_PROGRAM, slow_kernel)],
    "crash-in-lowering": [("deepcompile.passes.fuse_rows.rewrite", crash_in_lowering)],
    "crash-at-run-time": [(_PROGRAM, crash_at_run_time)],
    "nan-for-one-shape": [(_PROGRAM, nan_for_one_shape)],
}
