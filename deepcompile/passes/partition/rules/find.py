"""Which rule a node has."""

from __future__ import annotations

import operator

import torch
from torch.fx import Node

from deepcompile.passes.partition.rules.experts import BY_NAME
from deepcompile.passes.partition.rules.pointwise import pointwise_rule
from deepcompile.passes.partition.rules.random import drawn_rule
from deepcompile.passes.partition.strategy import (
    Rule,
    outputs_of,
    registered_rule,
    shape_of,
    tensor_inputs,
)


def rule_of(node: Node) -> Rule | None:
    """What is known of a node that calls a function; None where nothing is, then it replicates.

    Operators without a rule of their own that torch tags as pointwise have that of pointwise ones.
    """
    if node.op != "call_function":
        return None
    tags = getattr(node.target, "tags", ())
    found = _known_rule(node) if _is_static(node) else None
    if found is not None:
        return found
    if torch.Tag.nondeterministic_seeded in tags:
        return drawn_rule(node)
    if not _is_static(node):
        return None
    if torch.Tag.pointwise in tags and len(outputs_of(node)) == 1:
        return pointwise_rule(node)
    return None


def _known_rule(node: Node) -> Rule | None:
    schema = getattr(node.target, "_schema", None)
    maker = BY_NAME.get(schema.name) if schema is not None else None
    return registered_rule(node) if maker is None else maker(node)


def is_getitem(node: Node) -> bool:
    """Whether a node takes one of the tensors of another: it has that one's placement."""
    return node.target is operator.getitem


def _is_static(node: Node) -> bool:
    tensors = [value for value in outputs_of(node) if value is not None]
    shapes = [tuple(value.shape) for value in tensors] + [shape_of(i) for i in tensor_inputs(node)]
    return bool(tensors) and all(isinstance(extent, int) for shape in shapes for extent in shape)
