"""Ranks of one attempt find each other in a store that outlives attempts.

torchrun keeps one store for all restarts of a job. Whatever a failed attempt left there (addresses
of its ranks, NCCL's identifiers) is read by the next one, which then connects to the dead or waits
for them. So each attempt needs a prefix of its own, equal on its ranks and never used before.

Nothing in the environment is that: the run's id and the address of the store stay the same, and
`TORCHELASTIC_RESTART_COUNT` is counted by each agent alone. With several of them it differs within
one attempt (an agent that restarts because another one left counts nothing), and it does not change
when nodes join. So ranks agree through the store itself, with numbers that are used once:

    rank r  writes a new nonce under `join/r` and waits for `answer/<nonce>`
    rank 0  chooses a new name for the round, answers every nonce it sees in `join/*` with it, and
            goes on until each rank has written `<round>/here/r`, with what it was started for
    rank 0  writes `<round>/go`, for which all ranks wait: empty, or what is wrong

A nonce of an earlier attempt may get an answer, which nobody reads; it cannot stand in for a rank,
because ranks sign in under the name of the round. A rank cannot read an answer of an earlier
attempt, because its nonce is new. What has to hold: at most one rank 0 is alive at this point; an
agent stops its workers before it meets the others, so torchrun holds to that.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

from deepcompile.errors import MeshError, RankError

_MESH = "mesh"
_LONGEST_PAUSE = 0.05


def start_round(store: Any, rank: int, size: int, purpose: str, timeout: float) -> str:
    """A name that exactly the ranks of this attempt have; collective.

    Args:
        store: of torch.distributed, common to all ranks and perhaps to earlier attempts.
        purpose: what this rank starts for, here its mesh; must be equal on all ranks.
        timeout: seconds to wait for the other ranks.

    Raises:
        RankError: ranks that have not come in time.
        MeshError: ranks that were started for something else.
    """
    deadline = time.monotonic() + timeout
    if rank == 0:
        return _lead(store, size, purpose, deadline, timeout)
    nonce = uuid.uuid4().hex
    store.set(f"join/{rank}", nonce)
    name = _wait_for(store, f"answer/{nonce}", deadline, f"rank 0 has not come in {timeout:g} s")
    store.set(f"{name}/here/{rank}", purpose)
    # Rank 0 may have joined at the very end of its own wait.
    wrong = _wait_for(
        store, f"{name}/go", deadline + timeout, "rank 0 has left while ranks were still joining"
    )
    _raise_if_wrong(wrong)
    return name


def _lead(store: Any, size: int, purpose: str, deadline: float, timeout: float) -> str:
    name = uuid.uuid4().hex
    missing = set(range(1, size))
    purposes = {0: purpose}
    answered: set[str] = set()

    def all_here() -> bool:
        for rank in sorted(missing):
            if store.check([f"join/{rank}"]):
                nonce = store.get(f"join/{rank}").decode()
                if nonce not in answered:
                    answered.add(nonce)
                    store.set(f"answer/{nonce}", name)
            if store.check([f"{name}/here/{rank}"]):
                purposes[rank] = store.get(f"{name}/here/{rank}").decode()
                missing.discard(rank)
        return not missing

    wrong = ""
    if not poll(all_here, deadline):
        wrong = (
            f"{ranks_text(missing)} of {size} {_have(missing)} not come in {timeout:g} s; see the "
            "output of these processes, or give init() a longer timeout"
        )
    elif len(set(purposes.values())) > 1:
        wrong = f"{_MESH}: ranks were started for different meshes: {_by_purpose(purposes)}"
    store.set(f"{name}/go", wrong or "ok")
    if wrong:
        time.sleep(4 * _LONGEST_PAUSE)  # this process may keep the store that others read it from
    _raise_if_wrong(wrong or "ok")
    return name


def _raise_if_wrong(text: str) -> None:
    if text.startswith(f"{_MESH}: "):
        raise MeshError(text.removeprefix(f"{_MESH}: "))
    if text != "ok":
        raise RankError(text)


def _by_purpose(purposes: dict[int, str]) -> str:
    ranks: dict[str, list[int]] = {}
    for rank, purpose in sorted(purposes.items()):
        ranks.setdefault(purpose, []).append(rank)
    return "; ".join(f"{ranks_text(where)} for {purpose!r}" for purpose, where in ranks.items())


def _wait_for(store: Any, key: str, deadline: float, otherwise: str) -> str:
    if not poll(lambda: store.check([key]), deadline):
        raise RankError(f"{otherwise}; see the output of rank 0")
    return store.get(key).decode()


def poll(ready: Callable[[], bool], deadline: float) -> bool:
    """Whether `ready()` became true before the monotonic `deadline`; asked at growing distances.

    Not the store's own wait: that one holds the client's lock, which NCCL's watchdog needs too.
    """
    pause = 0.0005
    while not ready():
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(pause, left))
        pause = min(2 * pause, _LONGEST_PAUSE)
    return True


def ranks_text(ranks: Any) -> str:
    """`rank 2`, or `ranks 0,1,4-6`."""
    spans: list[list[int]] = []
    for rank in sorted(ranks):
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    parts = []
    for first, last in spans:
        if last - first < 2:
            parts += [str(rank) for rank in range(first, last + 1)]
        else:
            parts.append(f"{first}-{last}")
    return ("ranks " if len(list(ranks)) != 1 else "rank ") + ",".join(parts)


def _have(ranks: Any) -> str:
    return "have" if len(ranks) != 1 else "has"
