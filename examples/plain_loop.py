"""A training loop in plain PyTorch: model with its loss, and the step of the optimizer.

python examples/plain_loop.py --steps 50
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from common_data import VOCABULARY, parsed, report, sequences
from torch import Tensor, nn
from torch.utils.data import DataLoader


class NextToken(nn.Module):
    """Predicts each token from the one before it; forward returns the loss, a scalar."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.body = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        mask = nn.Transformer.generate_square_subsequent_mask(inputs.shape[1])
        logits = self.head(self.body(self.embed(inputs), src_mask=mask, is_causal=True))
        return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def main(arguments: Sequence[str] | None = None) -> None:
    steps, backend = parsed(arguments)
    torch.manual_seed(0)
    model = torch.compile(NextToken(), backend=backend)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, foreach=True)
    update = torch.compile(optimizer.step, backend=backend)
    losses = []
    for (tokens,) in DataLoader(sequences(16 * steps), batch_size=16):
        loss = model(tokens)
        loss.backward()
        update()
        optimizer.zero_grad()
        losses.append(loss.item())
    report(losses)


if __name__ == "__main__":
    main()
