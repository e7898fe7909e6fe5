"""What C code prints while a solver runs is no part of standard output."""

from __future__ import annotations

import subprocess
import sys
import threading

from deepcompile.pipeline.solver_output import solver_output_apart

SCRIPT = """
import ctypes, os, sys
from deepcompile.pipeline.solver_output import solver_output_apart

libc = ctypes.CDLL(None)
print("python, before")
libc.printf(b"C, before\\n")
try:
    with solver_output_apart():
        libc.printf(b"from the solver\\n")
        raise ValueError
except ValueError:
    pass
libc.printf(b"C, after\\n")
print("python, after")
if len(sys.argv) > 1:
    os.close(int(sys.argv[1]))
    with solver_output_apart():
        libc.printf(b"to nobody\\n")
"""


def run(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT, *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_prints_of_c_go_to_standard_error_and_only_those() -> None:
    done = run()
    lines = sorted(done.stdout.splitlines())
    assert lines == ["C, after", "C, before", "python, after", "python, before"]
    assert done.stderr == "from the solver\n"


def test_closed_streams_are_no_error() -> None:
    assert "Error" not in run("1").stderr
    assert run("2").returncode == 0


def test_one_at_a_time() -> None:
    done = []

    def work() -> None:
        for _ in range(50):
            with solver_output_apart():
                done.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 200
