"""`deepcompile train`: a demo, trained in two ways side by side."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from deepcompile.cli.exit import Exit
from deepcompile.cli.model_argument import DEMOS
from deepcompile.cli.output import json_option, print_json, table
from deepcompile.cli.ranks import is_rank, run_ranks
from deepcompile.cli.recorded import recorded
from deepcompile.cli.run_argument import runs_root
from deepcompile.cli.terminal import note, progress, styled
from deepcompile.errors import nearest

if TYPE_CHECKING:
    from deepcompile.demo.train import Comparison, Trainee

ROOT = ".deepcompile/train"
CHECKPOINT, STEPS = "checkpoint.pt", "steps.jsonl"


@dataclass(frozen=True)
class Sizes:
    """Of the model and its batches, as the command line says."""

    batch: int
    layers: int
    hidden: int
    context: int


@click.command(epilog="Example: deepcompile train transformer --steps 50 --plot losses.svg")
@click.argument("demo")
@click.option("--steps", type=click.IntRange(min=1), help="In all.  [default: 100]")
@click.option(
    "--compare",
    type=click.Choice(["eager", "inductor"]),
    default="eager",
    show_default=True,
    help="What the compiled run is compared with.",
)
@click.option(
    "--nproc",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes that share each batch.",
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Go on with the training in DIR.",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.svg",
    help="Draw the losses.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help=f"Keep losses and a checkpoint in DIR, new.  [default: below {ROOT}]",
)
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--layers", type=click.IntRange(min=1), default=4, show_default=True)
@click.option("--hidden", type=click.IntRange(min=64), default=256, show_default=True)
@click.option("--context", type=click.IntRange(min=8), default=256, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@json_option
def train(
    demo: str,
    steps: int | None,
    compare: str,
    nproc: int,
    resume: Path | None,
    plot: Path | None,
    out: Path | None,
    batch: int,
    layers: int,
    hidden: int,
    context: int,
    seed: int,
    device: str,
    as_json: bool,
) -> Exit:
    """Train DEMO compiled and in another way, from the same weights on the same text.

    The losses of both, the step at which they part, tokens per second. Each step is a line of
    steps.jsonl in the training's folder, which also has a checkpoint: --resume goes on from there.
    Exits with 1 when the losses part within the steps that a promise covers.
    """
    _check(demo, hidden, batch, nproc, resume, out)
    if nproc > 1 and not is_rank():
        return Exit(run_ranks(sys.argv[1:], nproc))
    import torch

    from deepcompile.demo.checkpoint import CheckpointError
    from deepcompile.demo.data import NoTextError

    if device == "cuda" and not torch.cuda.is_available():
        raise click.BadParameter("no CUDA device here; try cpu", param_hint="--device")
    try:
        work = _prepared(
            steps, compare, resume, seed, device, Sizes(batch, layers, hidden, context), nproc
        )
    except (CheckpointError, NoTextError) as error:
        raise click.ClickException(str(error)) from None
    comparison, corpus = work
    folder = resume or out or _new_folder(demo)
    with recorded(runs_root(None)), _steps_file(folder, resume is not None, comparison) as file:
        _train(comparison, corpus, folder, file)
    if comparison.settings.rank:
        return Exit.OK
    if plot is not None:
        _draw(plot, comparison)
    if as_json:
        print_json("train", demo=demo, folder=str(folder), **_document(comparison))
    else:
        click.echo(page(comparison, folder))
    return Exit.OK if comparison.agrees else Exit.NO


def _check(
    demo: str, hidden: int, batch: int, nproc: int, resume: Path | None, out: Path | None
) -> None:
    name = demo.removeprefix("demo:")
    if name not in DEMOS:
        close = nearest(name, DEMOS)
        hint = f"did you mean {close!r}?" if close else f"there is {', '.join(DEMOS)}"
        raise click.BadParameter(f"no demo {demo!r}; {hint}", param_hint="DEMO")
    if hidden % 64:
        raise click.BadParameter("must be a multiple of 64, the head size", param_hint="--hidden")
    if batch % nproc:
        raise click.BadParameter(f"must be a multiple of --nproc {nproc}", param_hint="--batch")
    if resume is not None and nproc > 1:
        raise click.BadParameter("works with one process", param_hint="--resume")
    if resume is not None and not (resume / CHECKPOINT).is_file():
        raise click.BadParameter(f"{resume} has no {CHECKPOINT}", param_hint="--resume")
    if resume is None and out is not None and (out / STEPS).exists() and not is_rank():
        raise click.BadParameter(
            f"{out} has a training; go on with it by --resume {out}", param_hint="--out"
        )


def _prepared(
    steps: int | None,
    compare: str,
    resume: Path | None,
    seed: int,
    device: str,
    sizes: Sizes,
    ranks: int,
) -> tuple[Comparison, Any]:
    """Both runs where they start, and the text to train on."""
    import torch

    from deepcompile.demo import checkpoint, data
    from deepcompile.demo.model import ModelConfig
    from deepcompile.demo.train import Settings, prepare

    state = None if resume is None else checkpoint.read(resume / CHECKPOINT)
    place = None
    if state is not None:
        settings = checkpoint.settings_of(state, steps)
        compare = state["runs"][0]["name"]
    else:
        model = ModelConfig(
            layers=sizes.layers,
            hidden=sizes.hidden,
            heads=sizes.hidden // 64,
            feedforward=sizes.hidden * 11 // 4,
            context=sizes.context,
        )
        rank = int(os.environ["RANK"]) if ranks > 1 else 0
        settings = Settings(
            steps=steps or 100, batch=sizes.batch, seed=seed, device=device, model=model,
            rank=rank, ranks=ranks,
        )  # fmt: skip
    if ranks > 1:
        import deepcompile

        deepcompile.runtime.init({"dp": ranks}, device=device)

        def place(module: Any) -> Any:
            return deepcompile.parallelize(module, {"dp": ranks}, plan={})

    corpus = data.load_corpus(settings.model.vocabulary)
    options: dict[str, Any] = {"run_dir": runs_root(None)}
    comparison = prepare(
        settings,
        lambda module: torch.compile(module, backend="deepep", options=options),
        None if compare == "eager" else lambda module: torch.compile(module, backend=compare),
        compare,
        place,
    )
    if state is not None:
        checkpoint.restore(comparison, state)
    return comparison, corpus


def _new_folder(demo: str) -> Path:
    return Path(
        ROOT, f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{demo.removeprefix('demo:')}-{os.getpid()}"
    )


@contextmanager
def _steps_file(folder: Path, resumed: bool, comparison: Comparison) -> Iterator[IO[str] | None]:
    """The file of steps; of a resumed training up to its checkpoint. Rank 0 has it alone."""
    if comparison.settings.rank:
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / STEPS
    if resumed and path.is_file():
        done = len(comparison.compiled.losses)
        kept = [line for line in path.read_text().splitlines() if _step_of(line) <= done]
        path.write_text("".join(f"{line}\n" for line in kept))
    with path.open("a", encoding="utf-8") as file:
        yield file


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _train(comparison: Comparison, corpus: Any, folder: Path, file: IO[str] | None) -> None:
    from deepcompile.demo import checkpoint
    from deepcompile.demo import train as demo

    settings = comparison.settings
    left = settings.steps - len(comparison.compiled.losses)
    if left <= 0:
        note(f"the training has its {settings.steps} steps already")
        return

    def save() -> None:
        if file is not None and settings.ranks == 1:
            checkpoint.save(folder / CHECKPOINT, comparison)

    with progress("train", 2 * left) as advance:

        def step(trainee: Trainee) -> None:
            if file is not None:
                file.write(json.dumps(_line(trainee)) + "\n")
                file.flush()
            advance(f"{trainee.name} loss {trainee.losses[-1]:.4f}")

        demo.train(comparison, corpus, step, save)


def _line(trainee: Trainee) -> dict[str, Any]:
    return {
        "step": len(trainee.losses),
        "run": trainee.name,
        "loss": trainee.losses[-1],
        "seconds": round(trainee.seconds[-1], 6),
    }


def _draw(path: Path, comparison: Comparison) -> None:
    from deepcompile.demo.plot import losses_svg
    from deepcompile.demo.train import TOLERANCE

    runs = [(t.name, t.losses) for t in (comparison.reference, comparison.compiled)]
    try:
        path.write_text(losses_svg(runs, TOLERANCE), encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"--plot {path}: {error.strerror}") from None


def _document(comparison: Comparison) -> dict[str, Any]:
    return {
        "steps": len(comparison.compiled.losses),
        "runs": {
            trainee.name: {
                "losses": trainee.losses,
                "held_out": trainee.held_out,
                "step_seconds": trainee.step_seconds,
                "first_step_seconds": trainee.seconds[0],
                "tokens_per_second": comparison.tokens_per_second(trainee),
            }
            for trainee in (comparison.reference, comparison.compiled)
        },
        "speedup": comparison.speedup,
        "difference": comparison.difference,
        "divergence_step": comparison.divergence,
        "agrees": comparison.agrees,
    }


def page(comparison: Comparison, folder: Path) -> str:
    """The result for people."""
    from deepcompile.demo.train import TOLERANCE, TOLERANCE_STEPS, relative_difference

    reference, compiled = comparison.reference, comparison.compiled
    rows = [
        (
            str(step),
            f"{reference.losses[step - 1]:.5f}",
            f"{compiled.losses[step - 1]:.5f}",
            f"{relative_difference(reference.losses[step - 1], compiled.losses[step - 1]):.1e}",
            f"{held_out:.5f}",
            f"{compiled.held_out[step]:.5f}",
        )
        for step, held_out in sorted(reference.held_out.items())
    ]
    name = reference.name.upper()
    header = ("STEP", name, "COMPILED", "DIFFERENCE", f"HELD OUT {name}", "COMPILED")
    speeds = [
        (
            trainee.name,
            f"{trainee.step_seconds * 1e3:.1f}",
            f"{comparison.tokens_per_second(trainee):.0f}",
            f"{reference.step_seconds / trainee.step_seconds:.2f}x",
            f"{trainee.seconds[0]:.1f} s",
        )
        for trainee in (reference, compiled)
    ]
    steps = min(len(compiled.losses), TOLERANCE_STEPS)
    apart = (
        f"at most {comparison.difference:.1e} apart over {steps} steps ({TOLERANCE:.0e} allowed)"
    )
    verdict = styled("losses agree", fg="green")
    if not comparison.agrees:
        verdict = styled("losses DISAGREE", fg="red")
    parted = comparison.divergence
    return "\n".join(
        [
            table(header, rows),
            "",
            table(("RUN", "MS/STEP", "TOKENS/S", "SPEED", "FIRST STEP"), speeds),
            "",
            f"{verdict}: {apart}",
            f"first step further apart: {'none' if parted is None else parted}",
            f"steps and checkpoint in {folder}" if comparison.settings.ranks == 1
            else f"steps in {folder}",
        ]
    )  # fmt: skip
