"""How the demo shows itself: progress while it trains, tables when it is done."""

from __future__ import annotations

from typing import Any, Self

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from deepcompile.demo.run_record import RunRecord
from deepcompile.demo.train import (
    TOLERANCE,
    TOLERANCE_STEPS,
    Comparison,
    Trainee,
    relative_difference,
)


class TrainingProgress:
    """One bar a run, each with its latest loss. Leaving the context restores the cursor."""

    def __init__(self, console: Console, steps: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description:9}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._tasks = {
            name: self._progress.add_task(name, total=steps, state="waiting for its turn")
            for name in ("eager", "compiled")
        }
        self._progress.update(self._tasks["eager"], state="first step")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def step(self, trainee: Trainee) -> None:
        """Move a run's bar; the compiled run starts when the first eager block ends."""
        state = f"loss {trainee.losses[-1]:.3f}"
        self._progress.update(self._tasks[trainee.name], advance=1, state=state)
        compiled = self._tasks["compiled"]
        if trainee.name == "eager" and not self._progress.tasks[compiled].completed:
            self._progress.update(compiled, state="compiling at its first step")


def show(
    console: Console,
    comparison: Comparison,
    backend: str,
    record: RunRecord | None,
    text: str,
) -> None:
    """Print the loss table, the speed table, the compile's facts and the sample."""
    console.print(_losses(comparison))
    console.print(_speeds(comparison))
    console.print(_facts(comparison, backend, record))
    console.print(Panel(Text(text), title="a sample of the compiled run", title_align="left"))


def as_json(
    comparison: Comparison,
    backend: str,
    record: RunRecord | None,
    text: str,
) -> dict[str, Any]:
    """The same facts as `show`, for a program to read."""
    runs = {
        trainee.name: {
            "losses": trainee.losses,
            "held_out": trainee.held_out,
            "step_seconds": trainee.step_seconds,
            "first_step_seconds": trainee.seconds[0],
            "tokens_per_second": comparison.tokens_per_second(trainee),
        }
        for trainee in (comparison.reference, comparison.compiled)
    }
    return {
        "backend": backend,
        "runs": runs,
        "speedup": comparison.speedup,
        "difference": comparison.difference,
        "agrees": comparison.agrees,
        "run": str(record.path) if record else None,
        "kernels": record.kernels if record else None,
        "fallbacks": record.fallbacks if record else None,
        "kernels_from_cache": record.all_cached if record else None,
        "sample": text,
    }


def _losses(comparison: Comparison) -> Table:
    table = Table(title="Cross-entropy in nats per token", title_justify="left")
    columns = ("step", "eager", "compiled", "difference", "held out eager", "compiled")
    for column in columns:
        table.add_column(column, justify="right")
    eager, compiled = comparison.reference, comparison.compiled
    for step, held_out in eager.held_out.items():
        reference, value = eager.losses[step - 1], compiled.losses[step - 1]
        table.add_row(
            str(step),
            f"{reference:.5f}",
            f"{value:.5f}",
            f"{relative_difference(reference, value):.1e}",
            f"{held_out:.5f}",
            f"{compiled.held_out[step]:.5f}",
        )
    return table


def _speeds(comparison: Comparison) -> Table:
    table = Table(title="Speed, median of alternating blocks", title_justify="left")
    for column in ("run", "ms/step", "tokens/s", "against eager", "first step"):
        table.add_column(column, justify="left" if column == "run" else "right")
    for trainee in (comparison.reference, comparison.compiled):
        table.add_row(
            trainee.name,
            f"{trainee.step_seconds * 1e3:.0f}",
            f"{comparison.tokens_per_second(trainee):,.0f}",
            f"{comparison.reference.step_seconds / trainee.step_seconds:.2f}x",
            f"{trainee.seconds[0]:.1f} s",
        )
    return table


def _facts(comparison: Comparison, backend: str, record: RunRecord | None) -> Text:
    steps = min(len(comparison.reference.losses), TOLERANCE_STEPS)
    verdict = "agree" if comparison.agrees else "DISAGREE"
    apart = f"at most {comparison.difference:.1e} apart over {steps} steps"
    lines = [
        f"losses    {verdict}: {apart} (tolerance {TOLERANCE:.0e})",
        f"backend   {backend}",
    ]
    if record:
        origin = "from the cache" if record.all_cached else "built now; the next run finds them"
        lines.append(f"kernels   {record.kernels} generated, {origin}")
        lines.append(f"fallbacks {record.fallbacks}")
        lines.append(f"run       {record.path}")
    return Text("\n".join(lines), style="" if comparison.agrees else "red")
