"""Saved tensors in the memory of the host, as graph nodes: `deepcompile::offload` and `::reload`.

On a GPU a copy to pinned memory runs on a stream of its own beside what follows, and a copy back
waits for it. On a CPU, where both memories are one, the same nodes are plain copies: nothing is
gained there, but the graph is the one that a GPU would run.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("deepcompile", "FRAGMENT")
_LIBRARY.define("offload(Tensor tensor) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
_LIBRARY.define(
    "reload(Tensor tensor, *, Device device) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,)
)


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The stream that copies between a device and the host."""
    return torch.cuda.Stream(device)


def _offload(tensor: Tensor) -> Tensor:
    if tensor.device.type != "cuda":
        return tensor.clone()
    stream = _stream(tensor.device)
    stream.wait_stream(torch.cuda.current_stream(tensor.device))
    host = torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu", pin_memory=True
    )
    with torch.cuda.stream(stream):
        host.copy_(tensor, non_blocking=True)
    # The allocator must not hand the memory out again before the copy has read it.
    tensor.record_stream(stream)
    return host


def _reload(tensor: Tensor, *, device: torch.device) -> Tensor:
    if device.type != "cuda":
        return tensor.clone()
    # Pinned memory goes back to its pool by what this stream has done: it does all copies.
    stream, current = _stream(device), torch.cuda.current_stream(device)
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        made.copy_(tensor, non_blocking=True)
    made.record_stream(stream)
    current.wait_stream(stream)
    return made


def _fake_offload(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")


def _fake_reload(tensor: Tensor, *, device: torch.device) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)


_LIBRARY.impl("offload", _offload, "CompositeExplicitAutograd")
_LIBRARY.impl("reload", _reload, "CompositeExplicitAutograd")
torch.library.register_fake("deepcompile::offload", _fake_offload, lib=_LIBRARY)
torch.library.register_fake("deepcompile::reload", _fake_reload, lib=_LIBRARY)

OFFLOAD = torch.ops.deepcompile.offload.default
RELOAD = torch.ops.deepcompile.reload.default
