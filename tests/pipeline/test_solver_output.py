"""What C code prints while a solver runs is no part of standard output."""

from __future__ import annotations

import subprocess
import sys

BEGIN = """
import ctypes, os, sys, threading
from deepcompile.pipeline.solver_output import solver_output_apart

libc = ctypes.CDLL(None)
"""
PRINTS = """
print("python, before")
libc.printf(b"C, before\\n")
try:
    with solver_output_apart():
        libc.printf(b"from the solver\\n")
        with solver_output_apart():
            libc.printf(b"from another in it\\n")
        libc.printf(b"from the solver again\\n")
        raise ValueError
except ValueError:
    pass
libc.printf(b"C, after\\n")
print("python, after")
"""
FORKS = """
with solver_output_apart():
    child = os.fork()
    if not child:
        os.write(1, b"a child\\n")
        os._exit(0)
    os.waitpid(child, 0)
    os.write(1, b"the parent\\n")
os.write(1, b"afterwards\\n")
"""
THREADS = """
def work():
    with solver_output_apart():
        os.write(1, b"another thread\\n")

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""
WAITS = """
def wait():
    ctypes.CDLL(None).getchar()

threading.Thread(target=wait, daemon=True).start()
with solver_output_apart():
    os.write(1, b"apart\\n")
os.write(1, b"here\\n")
os._exit(0)
"""
CLOSED = """
os.close(int(sys.argv[1]))
with solver_output_apart():
    os.write(2 if sys.argv[1] == "1" else 1, b"written\\n")
"""


def run(script: str, *args: str) -> tuple[list[str], list[str]]:
    """Lines of standard output and of standard error."""
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN + script, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.wait(timeout=60) == 0  # while its standard input is open
    out, error = process.communicate()
    return out.splitlines(), error.splitlines()


def test_prints_of_c_go_to_standard_error_and_only_those() -> None:
    out, error = run(PRINTS)
    assert sorted(out) == ["C, after", "C, before", "python, after", "python, before"]
    assert error == ["from the solver", "from another in it", "from the solver again"]


def test_a_process_that_is_forked_meanwhile_has_its_own() -> None:
    assert run(FORKS) == (["a child", "afterwards"], ["the parent"])


def test_other_threads_are_left_alone() -> None:
    assert run(THREADS) == (["another thread"], [])


def test_somebody_who_reads_standard_input_stops_nothing() -> None:
    assert run(WAITS) == (["here"], ["apart"])


def test_closed_streams_are_no_error() -> None:
    assert run(CLOSED, "1") == ([], ["written"])
    assert run(CLOSED, "2") == (["written"], [])
