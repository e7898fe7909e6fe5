"""What passes know of a node beside its call and its value, as `{static=up.weight}`.

static=NAME           placeholders: a parameter or a buffer (see `static_inputs`)
recompute=POLICY      whether backward may compute it again, a `CheckpointPolicy` in lower case
segment=N             the segment of a checkpointed backward half that it works for
recomputed_for=N      the segment that a copy was made for
backward, untagged    joint graphs: the half that it was traced in; nothing is forward
tag=NAME              joint graphs: another `partitioner_tag` of torch
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch.fx import Node
from torch.utils.checkpoint import CheckpointPolicy

from deepcompile.ir.static_inputs import STATIC_KEY

_NUMBERS = ("segment", "recomputed_for")
_TAG = "partitioner_tag"
_KEYS = frozenset((STATIC_KEY, "recompute", *_NUMBERS))
_ATTRIBUTE = re.compile(r"(\w+)(?:=(-?[\w.]+))?")
_POLICIES = {policy.name.lower(): policy for policy in CheckpointPolicy}


def print_attributes(node: Node, joint: bool) -> str:
    """The text for a node, with a blank before it; empty where nothing is to be said.

    Args:
        joint: whether the node is one of a joint graph.
    """
    meta = node.meta
    found = [] if _KEYS.isdisjoint(meta) else _plain(meta)
    if joint:
        tag = meta.get(_TAG)
        if tag != "is_forward":
            found.append({None: "untagged", "is_backward": "backward"}.get(tag) or f"tag={tag}")
    return f" {{{', '.join(found)}}}" if found else ""


def _plain(meta: Mapping[str, Any]) -> list[str]:
    found = [f"static={meta[STATIC_KEY]}"] if STATIC_KEY in meta else []
    policy = meta.get("recompute")
    if policy is not None:
        found.append(f"recompute={CheckpointPolicy(policy).name.lower()}")
    return found + [f"{key}={meta[key]}" for key in _NUMBERS if key in meta]


def parse_attributes(text: str, joint: bool) -> dict[str, Any]:
    """The metadata that prints as `{text}`. Raises ValueError for an attribute that is none."""
    meta: dict[str, Any] = {_TAG: "is_forward"} if joint else {}
    for part in filter(None, map(str.strip, text.split(","))):
        match = _ATTRIBUTE.fullmatch(part)
        name, value = match.groups() if match else (part, None)
        if name == "static" and value is not None:
            meta[STATIC_KEY] = value
        elif name == "recompute" and value in _POLICIES:
            meta["recompute"] = _POLICIES[value]
        elif name in _NUMBERS and value is not None and value.lstrip("-").isdigit():
            meta[name] = int(value)
        elif name == "untagged" and value is None:
            meta.pop(_TAG, None)
        elif name == "backward" and value is None:
            meta[_TAG] = "is_backward"
        elif name == "tag" and value is not None:
            meta[_TAG] = value
        else:
            raise ValueError(f"unknown attribute {part!r}")
    return meta
