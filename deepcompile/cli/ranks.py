"""Several processes of one command on this machine, as torchrun would start them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import click

import deepcompile

_POLL = 0.1


def is_rank() -> bool:
    """Whether something started this process as one of several."""
    return os.environ.get("WORLD_SIZE", "1") != "1" and "RANK" in os.environ


def run_ranks(arguments: Sequence[str], count: int) -> int:
    """Run `python -m deepcompile ARGUMENTS` as so many ranks; the exit status of the first to fail.

    Rank 0 has this process's output. What others say on stderr is shown when they fail.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = [str(Path(deepcompile.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    common = {
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        # This very package, wherever the ranks look for it.
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
    }
    children: list[subprocess.Popen[bytes]] = []
    with ExitStack() as stack:
        said = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(count)]
        stack.callback(_end, children)
        for rank in range(count):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            children.append(
                subprocess.Popen(
                    [sys.executable, "-m", "deepcompile", *arguments],
                    env=os.environ | common | own,
                    stdout=None if rank == 0 else subprocess.DEVNULL,
                    stderr=None if rank == 0 else said[rank],
                )
            )
        return _first_failure(children, said)


def _first_failure(children: Sequence[subprocess.Popen[bytes]], said: Sequence[IO[bytes]]) -> int:
    while True:
        states = [child.poll() for child in children]
        failed = [rank for rank, state in enumerate(states) if state]
        if failed and all(state is not None for state in states):
            return int(states[failed[0]] or 0)
        if failed:
            # The others wait for it in a collective; they get a moment to say so themselves.
            time.sleep(1.0)
            for rank in failed:
                if rank:
                    said[rank].seek(0)
                    text = said[rank].read().decode(errors="replace")
                    click.echo(f"rank {rank} failed:\n{text}", err=True)
            return int(states[failed[0]] or 0)
        if all(state == 0 for state in states):
            return 0
        time.sleep(_POLL)


def _end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    for child in children:
        if child.poll() is None:
            child.terminate()
    for child in children:
        try:
            child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
