"""`deepcompile minify`: a small script that fails as a model, a command or a recorded run does."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import click

from deepcompile.bisect.subject import ModelSubject, Trial
from deepcompile.child.environment import CHECK, REPORT, child_environment
from deepcompile.child.probe import Fail, Mode, Question
from deepcompile.child.processes import kill_tree, run_command
from deepcompile.child.signature import Signature, normalised
from deepcompile.cli.exit import Exit
from deepcompile.cli.model_argument import check_model
from deepcompile.cli.output import json_option, not_reproduced, print_json
from deepcompile.cli.run_argument import DEFAULT_ROOT
from deepcompile.cli.terminal import note, progress
from deepcompile.inspect.reader import read_run


@click.command(
    epilog="Example: deepcompile minify model.py:factory --fail numerics -o repro.py",
)
@click.argument("target", nargs=-1, required=True, metavar="MODEL | RUN | -- CMD...")
@click.option(
    "--fail", type=click.Choice(["numerics", "crash", "slow"]),
    help="What goes wrong; default: numerics, or else crash.",
)  # fmt: skip
@click.option("--keep", default="", metavar="TEXT", help="Text that the failure must contain.")
@click.option("--budget", type=float, default=5.0, show_default=True, help="Minutes to search.")
@click.option("--timeout", type=float, default=60.0, show_default=True, help="Seconds of a try.")
@click.option("--no-isolate", is_flag=True, help="Try in one process; not for crashes.")
@click.option("--mode", type=click.Choice(get_args(Mode)), default="auto", help="Of a MODEL.")
@click.option("--dynamic", is_flag=True, help="Compile MODEL with symbolic sizes.")
@click.option("-o", "--output", default="repro.py", show_default=True, help="The script.")
@json_option
def minify(
    target: tuple[str, ...],
    fail: Fail | None,
    keep: str,
    budget: float,
    timeout: float,
    no_isolate: bool,
    mode: Mode,
    dynamic: bool,
    output: str,
    as_json: bool,
) -> Exit:
    """Write a small script that fails as MODEL, CMD or the recorded RUN does.

    The graph that fails is kept with its inputs, and made smaller as long as the failure is the
    same one: exceptions of one type and message, numbers that differ in one way. The script is then
    run in a new process; only if it fails so there too is it called a success. RUN is a run
    directory, whose command is run again.
    """
    attempts: tuple[Fail, ...] = (fail,) if fail is not None else ("numerics", "crash")
    with tempfile.TemporaryDirectory(prefix="deepcompile-minify-", ignore_cleanup_errors=True) as f:
        folder, said = Path(f), ""
        for kind in attempts:
            options: dict[str, Any] = {"strict": True} if kind == "crash" else {}
            place = folder / kind
            place.mkdir()
            note(f"looking for the graph that fails (--fail {kind})")
            said = _capture(target, kind, Question(target[0], 0, mode, dynamic), place, budget * 60)
            graphs = _kept(place / "report")
            if not graphs:
                continue
            spec = {
                "options": options, "keep": keep, "budget": budget * 60, "timeout": timeout,
                "isolate": not no_isolate, "output": str(Path(output).absolute()),
                "log": str(place / "log"), "scratch": str(place),
            }  # fmt: skip
            done: Mapping[str, Any] = {}
            for graph in graphs:
                done = _reduce(spec | {"kept": str(graph)}, place)
                if done.get("done"):
                    return _finish(done, output, place, timeout, as_json)
                note(f"  {done.get('failed')}")
            said = str(done.get("failed", ""))
        return not_reproduced("minify", said or "no compiled graph fails", as_json)


def _capture(
    target: tuple[str, ...], fail: Fail, question: Question, place: Path, timeout: float
) -> str:
    """Run the target with graphs kept where they fail; how it ended."""
    report = place / "report"
    report.mkdir()
    settings = {CHECK: "keep" if fail == "slow" else "capture", REPORT: str(report)}
    if fail == "crash":
        settings["strict"] = "1"
    command = _command(target)
    if command is None:
        subject = ModelSubject(question, fail, timeout=timeout, jobs=1, seeds=(0,))
        try:
            found = subject.run(Trial(settings), place)
        finally:
            subject.close()
        return f"{target[0]} does not fail" if found.failure is None else str(found.failure)
    environ = child_environment(settings)
    ended = run_command(command, environ, timeout=timeout, log=place / "log")
    return f"no graph of the command fails; it ended with status {ended.status}"


def _command(target: tuple[str, ...]) -> list[str] | None:
    """The command that is meant; None for a MODEL."""
    if len(target) > 1:
        return list(target)
    if Path(target[0]).is_dir() or target[0] == "latest":
        run = read_run(DEFAULT_ROOT if target[0] == "latest" else target[0])
        words = [str(word) for word in run.info.get("argv", [])]
        if not words or words[0] in ("", "-c"):
            raise click.UsageError(f"{run.path} does not say which command recorded it")
        note(f"running again: {' '.join(words)}")
        return [sys.executable, *words]
    if ":" not in target[0]:
        return list(target)
    check_model(target[0])
    return None


def _kept(report: Path) -> list[Path]:
    """Folders of kept graphs: those that failed, else those that were running at the end."""
    found = [sorted(report.glob(pattern)) for pattern in ("failed-*", "pending-*", "kept-*")]
    return next((folders for folders in found if folders), [])


def _reduce(spec: Mapping[str, Any], place: Path) -> Mapping[str, Any]:
    """What the engine said last."""
    file = place / "spec.json"
    file.write_text(json.dumps(spec), encoding="utf-8")
    errors = place / "engine.log"
    with open(errors, "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "deepcompile.minify.engine", str(file)],
            env=child_environment({}, redirect=False),
            stdout=subprocess.PIPE,
            stderr=log,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
    last: dict[str, Any] = {}
    try:
        with progress("minify") as advance:
            for last in _documents(process):
                text = str(last.get("say", ""))
                if text:
                    counts = ""
                    if "operations" in last:
                        counts = f" ({last['operations']} operations, {last['tried']} tries)"
                    advance(text)
                    note(f"  {text}{counts}")
        process.wait(10)
    finally:
        kill_tree(process.pid)
        process.wait()
    if not (last.get("done") or last.get("failed")):
        said = errors.read_text(encoding="utf-8", errors="replace").strip()[-1500:]
        return {
            "failed": f"the process that reduces ended early (status {process.returncode}):\n{said}"
        }
    return last


def _documents(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)


def _finish(
    done: Mapping[str, Any], output: str, place: Path, timeout: float, as_json: bool
) -> Exit:
    """Run the script in a new process, and say what came of it."""
    signature = Signature.from_dict(done["failure"])
    note("running the script in a new process")
    environ = child_environment({}, redirect=False)
    ended = run_command([sys.executable, output], environ, timeout=timeout, log=place / "script")
    same = shows(signature, ended.status, ended.said)
    document = {
        "reproduced": same,
        "output": output,
        "failure": signature.to_dict(),
        "operations": done["operations"],
        "operations_before": done["before"],
        "tries": done["tried"],
        "out_of_time": done["late"],
    }
    if as_json:
        print_json("minify", **document)
    else:
        click.echo(f"failure   {signature}")
        click.echo(f"script    {output}: {done['operations']} of {done['before']} operations")
        if done["late"]:
            click.echo("          the budget ended before the search did")
        verdict = "fails in the same way in a new process"
        if not same:
            verdict = f"does NOT fail in the same way in a new process:\n{ended.said[-1500:]}"
        click.echo(f"          {verdict}")
    return Exit.OK if same else Exit.NO


def shows(signature: Signature, status: int | None, said: str) -> bool:
    """Whether a script that ended so shows a failure."""
    if signature.kind == "timeout":
        return status is None
    if status is None:
        return False
    if signature.kind == "signal":
        import signal

        return status == -signal.Signals[signature.what].value
    if signature.kind in ("numerics", "slow"):
        wanted = f"FAILED {signature.kind} {signature.what}".rstrip()
        return status == 1 and any(line.startswith(wanted) for line in said.splitlines())
    lines = [line.partition(": ") for line in said.splitlines() if not line.startswith(" ")]
    return status != 0 and any(
        kind.rpartition(".")[2] == signature.what and normalised(rest) == signature.message
        for kind, _, rest in lines
    )
