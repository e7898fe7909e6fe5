"""Train the same model from the same seed in two ways, in alternating blocks."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deepcompile.demo.data import Corpus
from deepcompile.demo.model import ModelConfig, Transformer

TOLERANCE = 1e-4  # relative difference of the two losses, fp32
TOLERANCE_STEPS = 100  # rounding differences grow with training; the promise covers these steps
ROWS = 5  # rows of the loss table after the first
BLOCKS_PER_ROW = 4

LossFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Settings:
    """How to train. A step sees `batch * model.context` tokens, over all ranks together.

    The rate and its warm-up keep training stable: where the loss spikes, rounding differences of
    1e-7 grow to 1e-2 within 50 steps (tried: 1e-3 after 10 steps), and no two backends agree.
    """

    steps: int = 100
    batch: int = 8
    learning_rate: float = 6e-4
    warmup: int = 40
    clip: float = 1.0
    seed: int = 0
    device: str = "cpu"
    held_out_batches: int = 2
    rank: int = 0
    ranks: int = 1
    model: ModelConfig = field(default_factory=ModelConfig)

    @property
    def tokens_per_step(self) -> int:
        return self.batch * self.model.context

    @property
    def row_steps(self) -> int:
        """Steps between two rows of the loss table."""
        return max(1, self.steps // ROWS)

    @property
    def block_steps(self) -> int:
        """Steps of one mode before the other has its turn."""
        return max(1, self.row_steps // BLOCKS_PER_ROW)


@dataclass
class Trainee:
    """One copy of the model in training, and what its steps cost."""

    name: str
    module: Transformer
    loss: LossFunction
    optimizer: torch.optim.Optimizer
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    held_out: dict[int, float] = field(default_factory=dict)

    def step(self, corpus: Corpus, settings: Settings) -> None:
        """Forward, backward, clip, AdamW; the time ends when the loss is on the host."""
        index = len(self.losses)
        batch = corpus.batch(index, settings.seed, settings.batch, settings.model.context)
        own = slice(settings.rank, None, settings.ranks)
        tokens, targets = (part[own].to(settings.device) for part in batch)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * min(1.0, (index + 1) / settings.warmup)
        started = time.perf_counter()
        loss = self.loss(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(_mean_over_ranks(loss, settings.ranks))
        self.seconds.append(time.perf_counter() - started)

    @torch.no_grad()
    def evaluate(self, corpus: Corpus, settings: Settings) -> None:
        """Mean loss on held-out text, noted under the number of steps taken."""
        batches = corpus.held_out_batches(
            settings.held_out_batches, settings.batch, settings.model.context
        )
        losses = [
            self.loss(tokens.to(settings.device), targets.to(settings.device)).item()
            for tokens, targets in batches
        ]
        self.held_out[len(self.losses)] = statistics.fmean(losses)

    @property
    def step_seconds(self) -> float:
        """Median of the steps after the first."""
        return statistics.median(self.seconds[1:] or self.seconds)


def _mean_over_ranks(loss: Tensor, ranks: int) -> float:
    if ranks == 1:
        return loss.item()
    total = loss.detach().clone()
    torch.distributed.all_reduce(total)
    return total.item() / ranks


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side, which took the same steps on the same text."""

    reference: Trainee
    compiled: Trainee
    settings: Settings

    @property
    def difference(self) -> float:
        """Largest relative difference of the two losses over the steps the tolerance covers."""
        pairs = zip(self.reference.losses, self.compiled.losses, strict=True)
        return max(relative_difference(a, b) for a, b in list(pairs)[:TOLERANCE_STEPS])

    @property
    def divergence(self) -> int | None:
        """The first step, from 1, at which the losses differ by more than the tolerance."""
        pairs = zip(self.reference.losses, self.compiled.losses, strict=True)
        apart = (n for n, (a, b) in enumerate(pairs, 1) if relative_difference(a, b) > TOLERANCE)
        return next(apart, None)

    @property
    def agrees(self) -> bool:
        return self.difference <= TOLERANCE

    @property
    def speedup(self) -> float:
        return self.reference.step_seconds / self.compiled.step_seconds

    def tokens_per_second(self, trainee: Trainee) -> float:
        return self.settings.tokens_per_step / trainee.step_seconds


def relative_difference(reference: float, value: float) -> float:
    """|value - reference| / |reference|; infinite where either is not a number."""
    difference = abs(value - reference) / max(abs(reference), 1e-12)
    return math.inf if math.isnan(difference) else difference


def prepare(
    settings: Settings,
    compile_model: Callable[[Transformer], LossFunction],
    reference: Callable[[Transformer], LossFunction] | None = None,
    reference_name: str = "eager",
    place: Callable[[Transformer], Transformer] | None = None,
) -> Comparison:
    """The model twice with equal weights.

    Args:
        compile_model: turns one into its compiled form.
        reference: the same for the one that it is compared with; left in eager where None.
        place: shares a model among ranks.
    """
    torch.manual_seed(settings.seed)
    module = Transformer(settings.model).to(settings.device)
    twin = copy.deepcopy(module)
    if place is not None:
        module, twin = place(module), place(twin)
    called = module if reference is None else reference(module)
    return Comparison(
        _trainee(reference_name, module, called, settings),
        _trainee("compiled", twin, compile_model(twin), settings),
        settings,
    )


def train(
    comparison: Comparison,
    corpus: Corpus,
    on_step: Callable[[Trainee], None],
    on_row: Callable[[], None] = lambda: None,
) -> None:
    """Run the steps that are left in alternating blocks.

    Calls `on_step` after each step of either run, and `on_row` after each row of the loss table.
    """
    settings = comparison.settings
    trainees = (comparison.reference, comparison.compiled)
    done = len(comparison.compiled.losses)
    while done < settings.steps:
        until_row = settings.row_steps - done % settings.row_steps
        block = min(settings.block_steps, until_row, settings.steps - done)
        done += block
        for trainee in trainees:
            for _ in range(block):
                trainee.step(corpus, settings)
                on_step(trainee)
        if done == block or done % settings.row_steps == 0 or done == settings.steps:
            for trainee in trainees:
                trainee.evaluate(corpus, settings)
            on_row()


@torch.no_grad()
def sample(module: Transformer, corpus: Corpus, prompt: str, tokens: int, seed: int) -> str:
    """Continue `prompt` by `tokens` tokens drawn at temperature 0.8."""
    device = next(module.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    text = corpus.vocabulary.encode(prompt)
    for _ in range(tokens):
        window = torch.tensor([text[-module.config.context :]], device=device)
        logits = module(window)[0, -1].float().cpu()
        text.append(int(torch.multinomial((logits / 0.8).softmax(0), 1, generator=generator)))
    return corpus.vocabulary.decode(text)


def _trainee(name: str, module: Transformer, loss: LossFunction, settings: Settings) -> Trainee:
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), fused=True
    )
    return Trainee(name, module, loss, optimizer)
