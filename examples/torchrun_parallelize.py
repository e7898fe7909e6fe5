"""Two processes share one model: `deepcompile.parallelize` places it, torchrun starts them.

torchrun --nproc-per-node 2 examples/torchrun_parallelize.py --steps 50
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from common_data import parsed, report, sequences
from plain_loop import NextToken
from torch.utils.data import DataLoader

import deepcompile


def main(arguments: Sequence[str] | None = None) -> None:
    steps, backend = parsed(arguments)
    torch.manual_seed(0)
    mesh = deepcompile.runtime.init({"tp": int(os.environ.get("WORLD_SIZE", "1"))})
    data = sequences(16 * steps)
    model = deepcompile.parallelize(NextToken(), mesh, data[:16])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    compiled = torch.compile(model, backend=backend)
    losses = []
    for (tokens,) in DataLoader(data, batch_size=16):
        loss = compiled(tokens)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    if mesh.get_rank() == 0:
        shares = [p for p in model.parameters() if not p.placements[0].is_replicate()]
        print(f"{len(shares)} of {len(list(model.parameters()))} parameters are sharded")
        report(losses)
    deepcompile.runtime.shutdown()


if __name__ == "__main__":
    main()
