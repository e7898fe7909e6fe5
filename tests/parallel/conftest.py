"""A process group of this process alone, and no trace of it afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist


@pytest.fixture
def alone() -> Iterator[None]:
    """Whatever process group a test makes ends with it; so do compiled graphs, which hold it."""
    assert not dist.is_initialized()
    yield
    torch._dynamo.reset()
    if dist.is_initialized():
        dist.destroy_process_group()
