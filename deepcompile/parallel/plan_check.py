"""Whether a plan is for the model and the mesh that it is given for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deepcompile.errors import PartitionError, nearest
from deepcompile.ir.mesh import Mesh
from deepcompile.passes.partition.plan import Plan

_NAMED = 4


def refuse_plan_of_another_model(
    plan: Plan, mesh: Mesh, parameters: Mapping[tuple[str, ...], tuple[int, ...]]
) -> None:
    """Raise `PartitionError` for a plan of another mesh, or of other parameters or shapes.

    Args:
        parameters: shape by names; a tied parameter has several, of which a plan has at least one.
    """
    if plan.mesh != mesh:
        raise PartitionError(
            f"the plan is for the mesh {_mesh(plan.mesh)}, not for {_mesh(mesh)}; plan again with "
            f"`deepcompile sharding plan MODEL --mesh {mesh}`"
        )
    shapes = {name: shape for names, shape in parameters.items() for name in names}
    unknown = [name for name in plan.parameters if name not in shapes]
    missing = [names[0] for names in parameters if not set(names) & set(plan.parameters)]
    if unknown or missing:
        found = [
            *_listed("that the model does not have", unknown, "the model", shapes),
            *_listed("of the model that the plan does not have", missing, "the plan", unknown),
        ]
        raise PartitionError(f"the plan is for another model: {'; '.join(found)}")
    for name, fact in plan.facts.items():
        if name in shapes and tuple(fact.shape) != shapes[name]:
            raise PartitionError(
                f"the plan is for another model: {name!r} is {tuple(fact.shape)} in the plan and "
                f"{shapes[name]} in the model"
            )


def _listed(
    what: str, names: Sequence[str], other: str, known: Sequence[str] | Mapping[str, object]
) -> list[str]:
    if not names:
        return []
    shown = []
    for name in names[:_NAMED]:
        close = nearest(name, known)
        shown.append(f"{name!r}" + (f" ({other} has {close!r})" if close else ""))
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    count = f"{len(names)} parameter{'s' if len(names) > 1 else ''}"
    return [f"{count} {what}: {', '.join(shown)}{more}"]


def _mesh(mesh: Mesh) -> str:
    data = [name for name in mesh.names if name in mesh.data]
    return f"{mesh} (data axes: {', '.join(data)})" if data else str(mesh)
