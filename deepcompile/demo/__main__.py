"""Command line of the demo. Exit codes: 0 done, 1 losses disagree, 2 cannot run, 130 Ctrl-C."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

STOPPED = 130
RUNS = Path(".deepcompile", "runs")
PROMPT = "def "
SAMPLE_TOKENS = 96


@dataclass(frozen=True)
class Choices:
    """What the command line chose; see its `--help`."""

    steps: int = 100
    batch: int = 8
    layers: int = 4
    hidden: int = 256
    context: int = 256
    seed: int = 0
    device: str = "cpu"
    backend: str = "deepep"
    run_dir: Path | None = None


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--steps", type=click.IntRange(min=1), default=100, show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--layers", type=click.IntRange(min=1), default=4, show_default=True)
@click.option("--hidden", type=click.IntRange(min=64), default=256, show_default=True)
@click.option("--context", type=click.IntRange(min=8), default=256, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--backend", default="deepep", show_default=True, help="Any torch.compile backend.")
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path),
    help="Below it the compile is recorded.  [default: .deepcompile/runs]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def main(as_json: bool, **choices: Any) -> None:
    """Train a small transformer on Python's own sources, in eager and compiled, side by side."""
    if choices["hidden"] % 64:
        raise click.BadParameter("must be a multiple of 64, the head size", param_hint="--hidden")
    try:
        sys.exit(run(Choices(**choices), as_json))
    except KeyboardInterrupt:
        click.echo("stopped", err=True)
        sys.exit(STOPPED)


def run(choices: Choices, as_json: bool) -> int:
    """Train, then print tables or JSON; returns the exit code."""
    # Here and not above: `--help` answers at once, and Ctrl-C during these seconds is clean too.
    import torch
    from rich.console import Console

    from deepcompile.demo import data, model, report, run_record, train

    console = Console(stderr=as_json)
    if choices.device == "cuda" and not torch.cuda.is_available():
        click.echo("no CUDA device here: run with --device cpu", err=True)
        return 2
    settings = train.Settings(
        steps=choices.steps,
        batch=choices.batch,
        seed=choices.seed,
        device=choices.device,
        model=model.ModelConfig(
            layers=choices.layers,
            hidden=choices.hidden,
            heads=choices.hidden // 64,
            feedforward=choices.hidden * 11 // 4,
            context=choices.context,
        ),
    )
    options: dict[str, Any] | None = None
    run_dir = choices.run_dir
    if choices.backend == "deepep":
        run_dir = run_dir or RUNS
        options = {"run_dir": str(run_dir)}
    try:
        corpus = data.load_corpus(settings.model.vocabulary)
    except data.NoTextError as error:
        click.echo(str(error), err=True)
        return 2
    comparison = train.prepare(
        settings, lambda module: torch.compile(module, backend=choices.backend, options=options)
    )
    size = sum(parameter.numel() for parameter in comparison.reference.module.parameters())
    console.print(
        f"{size / 1e6:.1f} M parameters, {len(corpus.train):,} tokens of Python's own sources, "
        f"{choices.steps} steps of {settings.tokens_per_step:,} tokens on {choices.device}, "
        f"{torch.get_num_threads()} threads"
    )
    with report.TrainingProgress(console, choices.steps) as progress:
        train.train(comparison, corpus, progress.step)
    text = train.sample(comparison.compiled.module, corpus, PROMPT, SAMPLE_TOKENS, choices.seed)
    record = run_record.newest_run(run_dir) if run_dir else None
    facts = (comparison, choices.backend, record, text)
    if as_json:
        click.echo(json.dumps(report.as_json(*facts)))
    else:
        report.show(console, *facts)
    return 0 if comparison.agrees else 1


if __name__ == "__main__":
    main()
