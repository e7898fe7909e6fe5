"""What is bisected: a MODEL, asked in forks of a server, or a command. Imports no torch."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from deepcompile.bisect.outcome import Outcome
from deepcompile.child import report
from deepcompile.child.environment import BACKEND, CHECK, REPORT, child_environment, variables
from deepcompile.child.probe import SKIP, Answer, Fail, Question
from deepcompile.child.processes import kill_running, kill_tree, run_command
from deepcompile.child.signature import Signature, normalised
from deepcompile.errors import DeepCompileError

Settings = Mapping[str, str]
"""Options by name, as text."""


class ChildError(DeepCompileError):
    """A child process did not start, or said nothing that can be understood."""


@dataclass(frozen=True)
class Trial:
    """One run: with which options, and of which of the seeds; `eager`: without the compiler."""

    settings: Settings = field(default_factory=dict)
    seed: int = 0
    eager: bool = False


class Subject(Protocol):
    """Something that can be run again and again."""

    @property
    def seeds(self) -> Sequence[int]:
        """One for each run that confirms what is good and what is bad."""
        ...

    def run(self, trial: Trial, place: Path) -> Outcome:
        """Run it once; files go to `place`, and run directories of what it compiles."""
        ...

    def line(self, trial: Trial, slower_than: float | None) -> str:
        """The shell command that runs it so again."""
        ...

    def is_fresh(self) -> bool:
        """Whether each run is a process of its own from the start."""
        ...

    def close(self) -> None:
        """End all processes."""
        ...


def runs_of(place: Path) -> Path:
    """Where the run directories of a trial lie."""
    return place / "runs"


class Server:
    """A `deepcompile.cli.probe_server`; one question at a time."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "deepcompile.cli.probe_server"],
            env=dict(environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._ready = False

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Its answer.

        Raises:
            ChildError: the server has ended, with what it said.
        """
        with self._lock:
            if not self._ready:
                self._read()
                self._ready = True
            assert self._process.stdin is not None
            try:
                self._process.stdin.write(json.dumps(request) + "\n")
                self._process.stdin.flush()
            except BrokenPipeError:
                raise self._ended() from None
            return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        found: dict[str, Any] = json.loads(line)
        return found

    def _ended(self) -> ChildError:
        assert self._process.stderr is not None
        said = self._process.stderr.read()[-2000:].strip()
        return ChildError(f"the process that compiles has ended:\n{said}")

    def stop(self) -> None:
        """End it, and what it runs."""
        kill_tree(self._process.pid)
        self._process.wait()


class ModelSubject:
    """A MODEL; each trial is a fork of a server that has imported torch."""

    def __init__(
        self, question: Question, fail: Fail, *, timeout: float, jobs: int, seeds: Sequence[int]
    ) -> None:
        self.question = question
        self.fail = fail
        self.timeout = timeout
        self.seeds = seeds
        environ = child_environment({}, redirect=False)
        self._servers = [Server(environ) for _ in range(jobs)]
        self._free = list(self._servers)
        self._turn = threading.Condition()

    def run(self, trial: Trial, place: Path) -> Outcome:
        """Ask a server that is free."""
        question = replace(
            self.question, seed=trial.seed, eager=trial.eager, timed=self.fail == "slow"
        )
        environ = variables({**trial.settings, "run_dir": str(runs_of(place))})
        request = {
            "question": asdict(question),
            "environ": environ,
            "timeout": self.timeout,
            "log": str(place / "log"),
        }
        with self._turn:
            while not self._free:
                self._turn.wait()
            server = self._free.pop()
        try:
            answer = Answer.from_dict(server.ask(request))
        finally:
            with self._turn:
                self._free.append(server)
                self._turn.notify()
        return Outcome(answer.failure, answer.seconds, place=place, seed=trial.seed)

    def argv(self, trial: Trial, slower_than: float | None) -> list[str]:
        """The command of one process that asks the same."""
        words = ["-m", "deepcompile", "probe", self.question.model, "--fail", self.fail]
        words += ["--seed", str(trial.seed)]
        if self.question.mode != "auto":
            words += ["--mode", self.question.mode]
        if self.question.dynamic:
            words.append("--dynamic")
        if self.question.rtol is not None:
            words += ["--rtol", str(self.question.rtol)]
        if slower_than is not None:
            words += ["--slower-than", f"{slower_than:.3g}"]
        return words

    def line(self, trial: Trial, slower_than: float | None) -> str:
        """With the variables before it."""
        return _line(variables(trial.settings), ["python", *self.argv(trial, slower_than)])

    def run_fresh(self, trial: Trial, slower_than: float | None, place: Path) -> int | None:
        """The exit status of the command that `line` prints."""
        command = [sys.executable, *self.argv(trial, slower_than)]
        environ = child_environment(trial.settings, redirect=False)
        return run_command(command, environ, timeout=self.timeout, log=place / "fresh").status

    def is_fresh(self) -> bool:
        """Forks are not."""
        return False

    def close(self) -> None:
        """End the servers."""
        for server in self._servers:
            server.stop()


class CommandSubject:
    """A command, in which every `torch.compile` is ours."""

    def __init__(self, command: Sequence[str], fail: Fail, *, timeout: float) -> None:
        self.command = list(command)
        self.fail = fail
        self.timeout = timeout
        self.seeds = (0, 1)

    def _settings(self, trial: Trial) -> dict[str, str]:
        settings = dict(trial.settings)
        if trial.eager:
            settings[BACKEND] = "eager"
        elif self.fail == "numerics":
            settings[CHECK] = "numerics"
        return settings

    def run(self, trial: Trial, place: Path) -> Outcome:
        """Start it and wait for its end."""
        said = place / "report"
        said.mkdir()
        settings = self._settings(trial) | {"run_dir": str(runs_of(place)), REPORT: str(said)}
        try:
            environ = child_environment(settings)
            ended = run_command(self.command, environ, timeout=self.timeout, log=place / "log")
        except OSError as error:
            raise ChildError(f"{self.command[0]} cannot be started: {error.strerror}") from None
        lines = list(report.lines(said))
        outcome = Outcome(
            None,
            ended.seconds,
            place=place,
            seed=trial.seed,
            compiles=sum(line["event"] == "compile" for line in lines),
        )
        if ended.status == 0:
            return outcome
        if ended.status == SKIP:
            return replace(outcome, is_skip=True)
        return replace(outcome, failure=failure_of(ended.status, ended.said, lines, self.timeout))

    def line(self, trial: Trial, slower_than: float | None) -> str:
        """With the variables before it."""
        settings = self._settings(trial)
        path = child_environment(settings)["PYTHONPATH"]
        return _line({"PYTHONPATH": path, **variables(settings)}, self.command)

    def is_fresh(self) -> bool:
        """Always."""
        return True

    def close(self) -> None:
        """End what runs."""
        kill_running()


def failure_of(
    status: int | None, said: str, lines: Sequence[Mapping[str, Any]], timeout: float
) -> Signature:
    """The signature of a command that did not end well, from what its processes reported."""
    if status is None:
        return Signature("timeout", "", f"no end after {timeout:.0f} s")
    found = [line for line in lines if line["event"] == "failure"]
    thrown = [line for line in lines if line["event"] == "exception"]
    # torchrun itself ends with an exception on account of its ranks.
    own = [line for line in thrown if line.get("what") != "ChildFailedError"]
    for line in (*found, *own):
        return Signature.from_dict(line)
    if status < 0:
        return Signature("signal", signal.Signals(-status).name)
    match = normalised(said.strip().splitlines()[-1]) if said.strip() else ""
    for name in ("SIGSEGV", "SIGABRT", "SIGILL", "SIGFPE", "SIGBUS", "SIGTRAP"):
        if f"Signal {int(signal.Signals[name])} ({name})" in said:
            return Signature("signal", name)
    return Signature("exit", str(status), match)


def _line(settings: Mapping[str, str], words: Sequence[str]) -> str:
    values = [f"{name}={shlex.quote(value)}" for name, value in settings.items()]
    return " ".join([*values, shlex.join(words)])


def run_all(subject: Subject, trials: Sequence[tuple[Trial, Path]], jobs: int) -> list[Outcome]:
    """Several trials, so many at once."""
    for _, place in trials:
        os.makedirs(place)
    if jobs == 1 or len(trials) == 1:
        return [subject.run(trial, place) for trial, place in trials]
    with ThreadPoolExecutor(jobs) as pool:
        try:
            return list(pool.map(lambda pair: subject.run(*pair), trials))
        except BaseException:
            subject.close()  # else the pool would wait for what runs
            raise
