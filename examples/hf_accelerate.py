"""Accelerate: the model is compiled before `prepare`, for the list of its own backends is closed.

python examples/hf_accelerate.py --steps 50
accelerate launch --cpu --num_processes 1 examples/hf_accelerate.py
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from common_data import parsed, report, sequences
from hf_model import tiny_gpt2
from torch.utils.data import DataLoader


def main(arguments: Sequence[str] | None = None) -> None:
    steps, backend = parsed(arguments)
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    model = tiny_gpt2()
    model.compile(backend=backend)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loader = DataLoader(sequences(16 * steps), batch_size=16)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    losses = []
    for (tokens,) in loader:
        loss = model(input_ids=tokens, labels=tokens).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    if accelerator.is_main_process:
        report(losses)


if __name__ == "__main__":
    main()
