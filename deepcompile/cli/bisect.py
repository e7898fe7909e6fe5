"""`deepcompile bisect`: the pass, the rewrite and the kernel behind a failure."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

import click

from deepcompile.bisect.result import LEVELS, Culprit, Level, Result
from deepcompile.bisect.steps import SLOWER, Bisection, NotReproduced, scratch
from deepcompile.bisect.subject import CommandSubject, ModelSubject
from deepcompile.child.probe import Fail, Mode, Question
from deepcompile.cli.exit import Exit
from deepcompile.cli.model_argument import check_model
from deepcompile.cli.output import json_option, not_reproduced, print_json
from deepcompile.cli.terminal import note, styled

SEEDS = (0, 1, 2)
_WITHOUT_LIMIT = 80
"""Lines of a diff that a terminal shows; what is piped is never cut."""


@click.command(
    epilog="Example: deepcompile bisect model.py:factory; "
    "deepcompile bisect --fail crash -- torchrun --nproc-per-node 2 train.py",
    context_settings={"ignore_unknown_options": False},
)
@click.argument("target", nargs=-1, required=True, metavar="MODEL | -- CMD...")
@click.option(
    "--fail", type=click.Choice(get_args(Fail)),
    help="What goes wrong; default: numerics or else crash, of a command its exit status.",
)  # fmt: skip
@click.option("--level", type=click.Choice(LEVELS), default="kernel", help="How deep to look.")
@click.option("--graph", metavar="NAME", help="Suspect passes on this graph only.")
@click.option("--range", "limits", metavar="A:B", help="Suspect applications A+1 to B only.")
@click.option("--timeout", type=float, default=300.0, show_default=True, help="Seconds of a run.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Runs at once.")
@click.option("--mode", type=click.Choice(get_args(Mode)), default="auto", help="Of a MODEL.")
@click.option("--dynamic", is_flag=True, help="Compile MODEL with symbolic sizes.")
@click.option("--rtol", type=float, help="Largest relative error; default: by dtype.")
@click.option(
    "--slower", type=float, default=SLOWER, show_default=True,
    help="Times slower than without passes that --fail slow looks for.",
)  # fmt: skip
@json_option
@click.pass_context
def bisect(
    ctx: click.Context,
    target: tuple[str, ...],
    fail: Fail | None,
    level: Level,
    graph: str | None,
    limits: str | None,
    timeout: float,
    jobs: int,
    mode: Mode,
    dynamic: bool,
    rtol: float | None,
    slower: float,
    as_json: bool,
) -> Exit:
    """Find what makes MODEL, or the command CMD, wrong, slow or crash.

    Each run is a child process that differs in environment variables only; nothing is left
    behind. A command is good with exit status 0, bad with any other, and 125 tells nothing. Every
    torch.compile in it is sent to deepcompile. Time of a command is that of all of it.
    """
    is_command = len(target) > 1 or _follows_dashes(target)
    between = _range(limits)
    if not is_command:
        check_model(target[0])
    with scratch() as folder:
        attempts: tuple[Fail, ...] = (fail,) if fail else ("numerics", "crash")
        if is_command and fail is None:
            attempts = ("exit",)
        subject: CommandSubject | ModelSubject
        if is_command:
            subject = CommandSubject(target, attempts[0], timeout=timeout)
        else:
            question = Question(target[0], 0, mode, dynamic, rtol)
            subject = ModelSubject(question, attempts[0], timeout=timeout, jobs=jobs, seeds=SEEDS)
        with closing(subject):
            for number, kind in enumerate(attempts):
                subject.fail = kind
                place = Path(folder) / kind
                try:
                    result = Bisection(
                    subject, kind, base={"strict": "1"} if kind == "crash" else {}, level=level,
                    graph=graph, limits=between, jobs=jobs, say=note, place=place, slower=slower,
                ).run()  # fmt: skip
                except NotReproduced as error:
                    if number + 1 < len(attempts):
                        note(f"{error}; trying --fail {attempts[number + 1]}")
                        continue
                    return not_reproduced("bisect", str(error), as_json)
                return _show(result, kind, as_json)
    raise AssertionError("an attempt returns")


def _follows_dashes(target: tuple[str, ...]) -> bool:
    """Whether the one word is a command: MODEL always has a colon."""
    return ":" not in target[0]


def _range(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise click.BadParameter(f"{text!r} is not A:B with A < B", param_hint="--range")
    return int(match[1]), int(match[2])


def _show(result: Result, fail: Fail, as_json: bool) -> Exit:
    if as_json:
        print_json("bisect", **_document(result, fail))
    else:
        click.echo("\n".join(_page(result)))
    return Exit.OK if result.deepest is not None and result.fresh is not False else Exit.NO


def _document(result: Result, fail: Fail) -> dict[str, Any]:
    return {
        "reproduced": True,
        "fail": fail,
        "failure": result.failure.to_dict(),
        "seeds": {str(seed): text for seed, text in result.seeds.items()},
        "levels": [culprit.to_dict() for culprit in result.culprits],
        "last_good": result.good_line,
        "first_bad": result.bad_line,
        "confirmed": result.fresh,
        "runs": result.runs,
        "other_failures": result.others,
    }


def _page(result: Result) -> Iterator[str]:
    yield f"failure    {result.failure}"
    for culprit in result.culprits:
        yield from _culprit(culprit)
    if result.others:
        yield f"also seen  {'; '.join(result.others)} (these runs tell nothing)"
    yield ""
    if result.deepest is None:
        yield "no pass, rewrite or kernel alone is at fault; this shows the failure:"
        yield f"  {result.bad_line}"
        return
    shown = {True: "confirmed in new processes", False: "NOT THE SAME in new processes", None: ""}
    yield f"last good  {result.good_line}"
    yield f"first bad  {result.bad_line}"
    if shown[result.fresh]:
        yield f"           {shown[result.fresh]}"
    diffs = [culprit for culprit in result.culprits if culprit.diff is not None]
    if diffs:
        yield ""
        yield from _diff(diffs[-1])


def _culprit(culprit: Culprit) -> Iterator[str]:
    label = f"{culprit.level:<9}"
    if culprit.name is None:
        yield f"{label}  none: {culprit.note}"
        return
    count = f" ({culprit.number} of {culprit.total})" if culprit.total else ""
    where = f" {'on ' if culprit.level == 'pass' else ''}{culprit.where}" if culprit.where else ""
    yield f"{label}  {styled(culprit.name, bold=True)}{where}{count}"
    if culprit.note:
        yield f"           {culprit.note}"
    found = culprit.found
    if found is not None and not found.is_monotone:
        yield f"           not monotone, so there may be more than one: {found.describe()}"


def _diff(culprit: Culprit) -> Iterator[str]:
    assert culprit.diff is not None
    what = "this pass" if culprit.level == "pass" else "this rewrite"
    before, after = (text.splitlines() for text in culprit.diff)
    lines = list(
        difflib.unified_diff(before, after, f"without {what}", f"with {what}", lineterm="", n=2)
    )
    colours = {"+": "green", "-": "red", "@": "cyan"}
    shown = lines if not sys.stdout.isatty() else lines[:_WITHOUT_LIMIT]
    for line in shown:
        colour = colours.get(line[:1])
        yield styled(line, fg=colour) if colour else line
    if len(shown) < len(lines):
        yield f"… {len(lines) - len(shown)} more lines; pipe the output to see all"
