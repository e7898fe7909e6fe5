"""Lightning: the network inside a LightningModule is compiled, the module itself is not.

Lightning calls `training_step`, which logs and talks to its Trainer; what is worth compiling is
the network with its loss. Checkpoints have the names of the network as it was.

    python examples/lightning_module.py --steps 50
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

import lightning
import torch
from common_data import parsed, report, sequences
from plain_loop import NextToken
from torch import Tensor
from torch.utils.data import DataLoader


class Training(lightning.LightningModule):
    """What Lightning trains; keeps the losses."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.network = NextToken()
        self.network.compile(backend=backend)
        self.losses: list[float] = []

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        loss: Tensor = self.network(batch[0])
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def main(arguments: Sequence[str] | None = None) -> None:
    steps, backend = parsed(arguments)
    warnings.filterwarnings("ignore", "The 'train_dataloader' does not have many workers")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    lightning.seed_everything(0, verbose=False)
    training = Training(backend)
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="auto" if torch.cuda.is_available() else "cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(training, DataLoader(sequences(16 * steps), batch_size=16))
    report(training.losses)


if __name__ == "__main__":
    main()
