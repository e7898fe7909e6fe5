"""All commands on all kinds of terminals: pipes, narrow, without UTF-8; interrupted."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from deepcompile.cli.completion import _PLACES
from deepcompile.cli.exit import Exit
from deepcompile.cli.main import COMPLETE, cli, run
from deepcompile.cli.terminal import note
from deepcompile.inspect.reader import find_run

WITHOUT_JSON: frozenset[tuple[str, ...]] = frozenset()
"""Commands whose result is no document."""


def walk(
    command: click.Command = cli, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if path:
        yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None, f"{path} lists {name}, which is not there"
            yield from walk(found, (*path, name))


COMMANDS = dict(walk())


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example_and_json(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*path, "--help"]) is Exit.OK
    shown = capsys.readouterr().out
    assert re.search(rf"deepcompile {path[0]}\b", shown.partition("\n")[2]), "no example"
    assert COMMANDS[path].help
    if isinstance(COMMANDS[path], click.Group) or path in WITHOUT_JSON:
        return
    assert "--json" in shown
    assert any(p.name == "as_json" for p in COMMANDS[path].params)


# -- reading commands ------------------------------------------------------------------------------

READING = [
    ["--help"],
    ["show"],
    ["show", "g0_forward"],
    ["show", "g0_forward", "--node", "k0", "--around", "2"],
    ["show", "g0_forward", "--collapse", "1"],
    ["show", "g0_forward", "--format", "dot"],
    ["show", "--format", "model-explorer"],
    ["diff"],
    ["diff", "fuse-rows"],
    ["diff", "fuse-rows", "--side"],
    ["kernels", "list"],
    ["kernels", "show", "g0_forward.k0"],
    ["runs", "list"],
    ["runs", "show"],
    ["runs", "pack", "--json"],
    ["memory", "show"],
    ["memory", "diff", "latest", "latest"],
    ["sharding", "show", "--all"],
    ["sharding", "show", "--why", "*"],
    ["passes", "list"],
    ["cache", "path"],
    ["options"],
    ["completion", "zsh"],
    ["version"],
]
NO_TORCH = """
import sys
from deepcompile.cli.main import run
status = run(sys.argv[1:])
assert status in (0, 1), status
assert "torch" not in sys.modules, "torch was imported"
"""


def start(
    arguments: list[str], program: str | None = None, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    command = ["-c", program] if program else ["-m", "deepcompile"]
    return subprocess.run(
        [sys.executable, *command, *arguments],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])} | environment,
        capture_output=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    "arguments",
    [["show", "g0_forward"], ["diff"], ["kernels", "list"], ["passes", "pipeline"], ["version"]],
)
@pytest.mark.usefixtures("root")
def test_reading_starts_quickly(arguments: list[str]) -> None:
    """User time of the whole process; other work on the machine costs retries, not failures."""
    assert any(user_seconds(arguments) < 0.25 for _ in range(10))


def user_seconds(arguments: list[str]) -> float:
    before = os.times().children_user
    start(arguments)
    return os.times().children_user - before


# -- terminals -------------------------------------------------------------------------------------

RAW = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
ODD = "größe_→_模块\x1b[31m\udce4"


MEMORY = {
    "graph": ODD,
    "facts": {"budget": 8, "peak": 7, "unplanned_peak": 9, "parameters": 1, "optimizer": 2,
              "recompute_seconds": 0.5, "sizes": {ODD: 3}, "unsolved": [ODD]},
    "tensors": [{"tensor": ODD, "nbytes": 4, "decision": ODD, "origin": ODD, "why": ODD}],
    "timeline": {ODD: {"live": [1, 2], "peak_step": 1,
                       "owners": [{"nbytes": 1, "role": ODD, "tensor": ODD}]}},
}  # fmt: skip
SHARDING = {
    "graph": ODD,
    "kind": ODD,
    "plan": {
        "mesh": "tp=2",
        "device": ODD,
        "parameters": {ODD.replace(".", ""): "R"},
        "facts": {ODD.replace(".", ""): {"shape": [2], "options": ["R", ODD], "dropped": [ODD]}},
        "moves": [{"phase": ODD, "kind": ODD, "axis": ODD, "bytes": 1, "seconds": 1.0}],
    },
}


@pytest.fixture
def odd(root: Path) -> Path:
    """Names that no terminal without UTF-8 can show."""
    path = find_run(root)
    for file in [*path.rglob("*.json"), *path.rglob("*.ir"), *path.rglob("*.cpp")]:
        text = file.read_text()
        new = json.dumps(ODD)[1:-1] if file.suffix == ".json" else ODD
        text = text.replace("model.py", new).replace("void", new)
        file.write_text(text, errors="replace")
    for folder, document in (("memory", {"plans": [MEMORY]}), ("sharding", SHARDING)):
        (path / folder).mkdir()
        (path / folder / f"{ODD[:5]}.json").write_text(json.dumps(document))
    return path


@pytest.mark.parametrize("arguments", READING, ids=" ".join)
@pytest.mark.usefixtures("odd")
def test_reading_without_utf8_and_without_torch(arguments: list[str]) -> None:
    done = start(arguments, NO_TORCH, LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert not RAW.search((done.stdout + done.stderr).decode())


@pytest.mark.parametrize("arguments", READING, ids=" ".join)
@pytest.mark.usefixtures("odd")
def test_control_characters_are_never_raw(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) in (Exit.OK, Exit.NO)
    shown = capsys.readouterr()
    assert not RAW.search(shown.out + shown.err)


@pytest.mark.usefixtures("odd")
def test_colours_are_ours_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments in (["show", "g0_forward"], ["diff", "-u"], ["kernels", "show", "g0_forward.k0"]):
        run(["--color", "always", *arguments])
        out = capsys.readouterr().out
        assert "\x1b[" in out
        assert "\x1b[31m\udce4" not in out
        assert "\\x1b[31m" in out or arguments[0] == "kernels"
        monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
        monkeypatch.setenv("NO_COLOR", "1")
        run(arguments)
        assert "\x1b" not in capsys.readouterr().out
        monkeypatch.delenv("NO_COLOR")
        run(["--color", "never", *arguments])
        assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_fits_40_columns(path: tuple[str, ...]) -> None:
    context = COMMANDS[path].context_class(COMMANDS[path], info_name="x", terminal_width=40)
    wide = [line for line in COMMANDS[path].get_help(context).splitlines() if len(line) > 40]
    # A single word, an example that is to be copied, or the usage cannot be folded.
    assert all(
        "deepcompile" in line.lower() or len(line.split()) <= 2 or line.startswith("Usage")
        for line in wide
    ), wide


@pytest.mark.usefixtures("root")
def test_nothing_is_cut_in_a_pipe() -> None:
    done = start(["kernels", "list"], COLUMNS="40")
    assert "BYTES  OPS       FROM\n" in done.stdout.decode()


@pytest.mark.parametrize("lines", [0, 1])
@pytest.mark.usefixtures("root")
def test_a_reader_that_goes_away(root: Path, lines: int) -> None:
    file = find_run(root) / "graphs/g0_forward/002_fuse-rows.ir"
    file.write_text("graph {\n" + "  %x = f()\n" * 100_000 + "}\n")
    with subprocess.Popen(
        [sys.executable, "-m", "deepcompile", "-q", "show", "g0_forward"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for _ in range(lines):
            process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


INTERRUPTED = """
import os, signal, sys, time
import deepcompile.cli.{module} as module
def late(*args, **kwargs):
    print("ready", flush=True)
    time.sleep(60)
module.{function} = late
from deepcompile.cli.main import main
main()
"""


@pytest.mark.parametrize(
    ("arguments", "module", "function"),
    [
        (["show"], "show", "run_and_graph"),
        (["diff"], "diff", "chosen_run"),
        (["kernels", "list"], "kernels", "chosen_run"),
        (["runs", "list"], "runs", "list_runs"),
        (["memory", "show"], "memory", "read_plans"),
        (["sharding", "show"], "sharding", "read_shardings"),
        (["passes", "list"], "passes", "default_registry"),
        (["doctor"], "doctor", "asdict"),
        (["cache", "size"], "cache", "entries"),
        pytest.param(
            ["compile", "demo:transformer"], "compile", "load_model", marks=pytest.mark.slow
        ),
    ],
)
def test_ctrl_c(arguments: list[str], module: str, function: str, tmp_path: Path) -> None:
    program = INTERRUPTED.format(module=module, function=function)
    if module == "doctor":
        program = program.replace("module.asdict = late", "module._CHECKS[:] = [late]")
    interrupt(program, arguments, tmp_path)


def interrupt(program: str, arguments: list[str], folder: Path) -> bytes:
    """Ctrl-C once the program says it is ready; what it still writes to stdout."""
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"ready\n", process.stderr.read()
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == Exit.INTERRUPTED
        assert process.stderr.read().decode().strip() == "interrupted"
        return process.stdout.read()


IMPORTING = """
import sys, time
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            print("ready", flush=True)
            time.sleep(60)
sys.meta_path.insert(0, Slow())
from deepcompile.cli.start import main
main()
"""
LOSING = """
import sys, time
from deepcompile.cli import start
import deepcompile.cli.runs as module
def late(*args):
    print("ready", flush=True)
    try:
        import losing
    except BaseException as error:
        print(f"lost {error!r}", flush=True)
    time.sleep(60)
module.list_runs = late
start._LOSING = ("losing",)
start.main()
"""


@pytest.mark.parametrize("program", [IMPORTING, LOSING])
def test_ctrl_c_while_modules_are_imported(program: str, tmp_path: Path) -> None:
    (tmp_path / "losing.py").write_text("import time\ntime.sleep(0.3)\n")
    assert interrupt(program, ["runs", "list"], tmp_path) == b""


@pytest.mark.parametrize(
    ("target", "status", "message"),
    [(">/dev/full", Exit.USAGE, "error: the result cannot be written: No space left"),
     (">&-", Exit.OK, "")],
)  # fmt: skip
def test_a_stdout_that_takes_nothing(
    target: str, status: Exit, message: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        f"{sys.executable} -m deepcompile options {target}",
        shell=True,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == status
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == (1 if message else 0)


def test_notes_drive_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    note("a\x1b]0;title\x07")
    assert capsys.readouterr().err == "a\\x1b]0;title\\x07\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shwo"], "did you mean 'show'"),
        (["show", "--collaps", "1"], "--collapse"),
        (["kernels", "lst"], "'list'"),
        (["runs", "pck"], "'pack'"),
        (["passes", "shw"], "'show'"),
        (["memory", "shw"], "'show'"),
        (["sharding", "pln"], "'plan'"),
        (["diff", "fuse-row"], "did you mean 'fuse-rows'"),
        (["passes", "show", "fuse-row"], "did you mean 'fuse-rows'"),
        (["show", "--format", "dto"], "'dot'"),
        (["completion", "tcsh"], "'bash'"),
    ],
)
@pytest.mark.usefixtures("root")
def test_unknown_words_suggest_the_nearest(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) is Exit.USAGE
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", ["runs show", "report", "trace", "memory show", "memory", "sharding", "diff --run"]
)
def test_names_of_runs_suggest_the_nearest(
    words: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = find_run(root).name
    assert run([*words.split(), name[:-1]]) is Exit.USAGE
    assert f"did you mean {name!r}?" in capsys.readouterr().err


# -- completion ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", list(_PLACES))
def test_scripts_of_shells(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) is Exit.OK
    assert COMPLETE in capsys.readouterr().out


COMPLETE_WITHOUT_TORCH = """
import atexit, os, sys
atexit.register(lambda: "torch" in sys.modules and os._exit(9))
from deepcompile.cli.main import main
main()
"""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("dif", {"diff"}),
        ("kernels l", {"list"}),
        ("show g", {"g0_forward", "g1_inference"}),
        ("show latest g1", {"g1_inference"}),
        ("show g0_forward --at f", {"fuse-rows"}),
        ("show --form", {"--format"}),
        ("show --format do", {"dot"}),
        ("diff can", {"canonicalise"}),
        ("diff --graph g0", {"g0_forward"}),
        ("kernels show g1", {"g1_inference.k0"}),
        ("completion z", {"zsh"}),
    ],
)
@pytest.mark.usefixtures("root")
def test_words_are_completed(words: str, expected: set[str]) -> None:
    line = f"deepcompile {words}"
    done = start(
        [], COMPLETE_WITHOUT_TORCH,
        COMP_WORDS=line, COMP_CWORD=str(len(line.split()) - 1), **{COMPLETE: "bash_complete"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [line.split(",", 1) for line in done.stdout.decode().splitlines()]
    assert {value for kind, value in found if kind == "plain"} == expected


def test_runs_are_completed_by_name(root: Path) -> None:
    name = find_run(root).name
    line = f"deepcompile runs show {name[:9]}"
    done = start(
        [], COMPLETE_WITHOUT_TORCH, COMP_WORDS=line, COMP_CWORD="3", **{COMPLETE: "bash_complete"}
    )
    assert f"plain,{name}" in done.stdout.decode().splitlines()
    done = start(
        [], COMPLETE_WITHOUT_TORCH, DEEPCOMPILE_RUN_DIR="/nowhere", COMP_WORDS="deepcompile show g",
        COMP_CWORD="2", **{COMPLETE: "bash_complete"},
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stderr == b""
