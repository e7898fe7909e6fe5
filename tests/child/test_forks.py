"""Forks that end well, raise, are killed or never end; and commands with all that they start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deepcompile.child.forks import in_a_fork
from deepcompile.child.processes import run_command


def fork(
    call: Callable[[], Mapping[str, Any]], tmp_path: Path, timeout: float = 20.0
) -> dict[str, Any]:
    environ = {"DEEPCOMPILE_TEST_X": "1", "HOME": ""}
    return in_a_fork(call, environ=environ, timeout=timeout, log=tmp_path / "log")


def test_result_and_environment(tmp_path: Path) -> None:
    def call() -> dict[str, Any]:
        os.write(1, b"printed\n")
        return {"x": os.environ["DEEPCOMPILE_TEST_X"], "home": "HOME" in os.environ}

    assert fork(call, tmp_path) == {"x": "1", "home": False}
    assert (tmp_path / "log").read_text() == "printed\n"
    assert "DEEPCOMPILE_TEST_X" not in os.environ


def test_exceptions_and_signals(tmp_path: Path) -> None:
    def fail() -> dict[str, Any]:
        raise KeyError("k")

    assert fork(fail, tmp_path)["failure"]["what"] == "KeyError"
    killed = fork(lambda: os.kill(os.getpid(), signal.SIGTERM) or {}, tmp_path)
    assert (killed["failure"]["kind"], killed["failure"]["what"]) == ("signal", "SIGTERM")
    gone = fork(lambda: os._exit(7), tmp_path)
    assert (gone["failure"]["kind"], gone["failure"]["what"]) == ("exit", "7")


def is_gone(pid: int) -> bool:
    """Whether a process ends soon; what was killed may take a moment."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def wait_for(file: Path) -> int:
    end = time.monotonic() + 20
    while not (file.is_file() and file.read_text()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return int(file.read_text())


def test_a_fork_without_end_is_killed_with_what_it_started(tmp_path: Path) -> None:
    file = tmp_path / "pid"

    def sleep() -> dict[str, Any]:
        process = subprocess.Popen(["sleep", "60"], start_new_session=True)
        file.write_text(str(process.pid))
        time.sleep(60)
        return {}

    assert fork(sleep, tmp_path, timeout=0.5)["failure"]["kind"] == "timeout"
    assert is_gone(int(file.read_text()))


def test_a_command_without_end_is_killed_with_what_it_started(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    text = (
        "import subprocess, sys, time\n"
        "p = subprocess.Popen(['sleep', '60'], start_new_session=True)\n"
        f"open({str(file)!r}, 'w').write(str(p.pid))\n"
        "print('before', flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-S", "-c", text]
    ended = run_command(command, os.environ, timeout=2.0, log=tmp_path / "log")
    assert ended.status is None
    assert ended.said == "before\n"
    assert is_gone(int(file.read_text()))


def test_an_interrupted_bisection_leaves_nothing_running(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    text = f"import os, time; open({str(file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    command = [sys.executable, "-m", "deepcompile", "bisect", "--", sys.executable, "-c", text]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    child = wait_for(file)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert said.endswith("interrupted\n")
    assert is_gone(child)
