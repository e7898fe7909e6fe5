"""A process that has imported torch, and forks for each question: `python -m` and lines of JSON.

Given `{"question": {...}, "environ": {...}, "timeout": S, "log": FILE}` it says what
`Answer.to_dict` gives, or how the fork failed. It ends when its input does.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from deepcompile.child.forks import in_a_fork, kill_children
from deepcompile.child.probe import Question, ask
from deepcompile.cli.model_argument import load_model


def main() -> None:
    """Answer until the input ends."""
    signal.signal(signal.SIGTERM, _stop)
    # What models print must not come between.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    import torch._dynamo

    import deepcompile.child.checked  # noqa: F401 the compiler, once for all forks

    answers.write(json.dumps({"ready": torch.__version__}) + "\n")
    answers.flush()
    for line in sys.stdin:
        request = json.loads(line)
        question = Question(**request["question"])
        found = in_a_fork(
            lambda question=question: ask(question, load_model).to_dict(),  # type: ignore[misc]
            environ=request["environ"],
            timeout=request["timeout"],
            log=Path(request["log"]),
        )
        answers.write(json.dumps(found) + "\n")
        answers.flush()


def _stop(number: int, frame: object) -> NoReturn:
    kill_children()
    os._exit(128 + number)


if __name__ == "__main__":
    main()
