"""A mesh of devices as data: named axes with sizes. Imports no torch and knows no process group."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from deepcompile.errors import MeshError

_DEFAULT_DATA = frozenset(("dp",))
_AXIS = re.compile(r"^\s*([A-Za-z_]\w*)\s*[=:]\s*(\d+)\s*$")


@dataclass(frozen=True)
class Mesh:
    """Named axes of a grid of ranks, the last axis fastest.

    Attributes:
        axes: name and number of ranks of each axis, outermost first.
        data: the axes on which each rank has a batch of its own, as in data parallelism. Ranks of
            every other axis have equal inputs and work on them together.
    """

    axes: tuple[tuple[str, int], ...]
    data: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        names = [name for name, _ in self.axes]
        if not names:
            raise MeshError("a mesh has at least one axis, e.g. 'tp=2'")
        if len(set(names)) != len(names):
            raise MeshError(f"a mesh names each axis once, not {', '.join(names)}")
        for name, size in self.axes:
            if size < 1:
                raise MeshError(f"axis {name!r} has {size} ranks; it needs at least 1")
        object.__setattr__(self, "data", frozenset(self.data) & set(names))

    @classmethod
    def of(cls, value: object, data: frozenset[str] | tuple[str, ...] = ("dp",)) -> Mesh:
        """`Mesh`, `{"dp": 2, "tp": 4}`, `"dp=2,tp=4"`, or a number of ranks of one axis `tp`.

        Raises:
            MeshError: for anything else.
        """
        if isinstance(value, Mesh):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return cls((("tp", value),), frozenset(data))
        if isinstance(value, str):
            if value.strip().isdigit():
                return cls((("tp", int(value)),), frozenset(data))
            found = [_AXIS.match(part) for part in value.split(",")]
            if all(found):
                axes = tuple((match[1], int(match[2])) for match in found if match)
                return cls(axes, frozenset(data))
        if isinstance(value, Mapping):
            items = list(value.items())
            if all(isinstance(name, str) and type(size) is int for name, size in items):
                return cls(tuple(items), frozenset(data))
        raise MeshError(
            f"{value!r} is no mesh; give a number of ranks, 'dp=2,tp=4', "
            "{'dp': 2, 'tp': 4} or a DeviceMesh with names"
        )

    @classmethod
    def with_data(cls, value: object, data_axes: Iterable[str] | str) -> Mesh:
        """As `of`, with the axes of data as users give them: names, or text as in `"dp,ep"`.

        Raises:
            MeshError: also for a name that is none of the mesh's; the default `dp` may be none.
        """
        given = data_axes.split(",") if isinstance(data_axes, str) else data_axes
        data = frozenset(name.strip() for name in given if name.strip())
        mesh = cls.of(value, data)
        unknown = sorted(data - set(mesh.names))
        if unknown and data != _DEFAULT_DATA:
            raise MeshError(
                f"data_axes names {unknown[0]!r}, which is no axis of the mesh {mesh}; its axes "
                f"are {', '.join(mesh.names)}"
            )
        return mesh

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.axes)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        return tuple(size for _, size in self.axes)

    @cached_property
    def ranks(self) -> int:
        """How many there are."""
        return math.prod(self.sizes)

    def is_data(self, axis: int) -> bool:
        """Whether ranks along an axis have a batch each."""
        return self.axes[axis][0] in self.data

    @cached_property
    def tensor_axes(self) -> tuple[int, ...]:
        """Axes on which ranks share tensors: those of more than one rank that are not of data."""
        return tuple(
            axis for axis, size in enumerate(self.sizes) if size > 1 and not self.is_data(axis)
        )

    def coordinates(self) -> Iterator[tuple[int, ...]]:
        """Of each rank, in the order of ranks."""
        return itertools.product(*(range(size) for size in self.sizes))

    def groups(self, axis: int) -> list[list[int]]:
        """The ranks that differ in one axis only, by group."""
        found: dict[tuple[int, ...], list[int]] = {}
        for rank, place in enumerate(self.coordinates()):
            found.setdefault(place[:axis] + place[axis + 1 :], []).append(rank)
        return list(found.values())

    def __str__(self) -> str:
        return ",".join(f"{name}={size}" for name, size in self.axes)
