"""One question to one process: does MODEL fail when it is compiled with the options in force?"""

from __future__ import annotations

import copy
import os
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from deepcompile.child.signature import CRASHES, Signature, signature_of_error

Fail = Literal["numerics", "crash", "slow", "exit"]
Mode = Literal["auto", "train", "infer"]
SKIP = 125
LoadModel = Callable[[str], tuple[Callable[..., Any], tuple[Any, ...]]]


@dataclass(frozen=True)
class Question:
    """What to run, and how.

    Attributes:
        seed: of the factory, of the random numbers of the model and of gradients of outputs.
        mode: `train` goes backward; `auto`: where the model is in training mode.
        rtol: largest relative error; None: by dtype, see `compare.TOLERANCE`.
        timed: also measure seconds of a step.
        eager: leave the compiler out, to see that the model itself is right.
    """

    model: str
    seed: int = 0
    mode: Mode = "auto"
    dynamic: bool = False
    rtol: float | None = None
    timed: bool = False
    eager: bool = False


@dataclass(frozen=True)
class Answer:
    """What was seen: a failure or none, seconds of a step compiled and in eager if timed."""

    failure: Signature | None = None
    seconds: float | None = None
    eager_seconds: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Answer:
        """From `to_dict`."""
        found = fields.get("failure")
        signature = Signature.from_dict(found) if found else None
        return cls(signature, fields.get("seconds"), fields.get("eager_seconds"))


def is_of_kind(failure: Signature, fail: Fail) -> bool:
    """Whether a failure is one that `--fail` asks for."""
    if fail == "exit":
        return True
    return failure.kind in CRASHES if fail == "crash" else failure.kind == fail


def ask(question: Question, load_model: LoadModel) -> Answer:
    """Run the model in eager and compiled, and compare.

    Args:
        load_model: from MODEL to a model or function and a tuple of its inputs.

    Raises:
        Exception: whatever the model or its factory raises in eager.
    """
    import torch

    from deepcompile.child.compare import seconds_of
    from deepcompile.child.redirect import deepep

    if question.timed:
        torch.set_num_threads(1)
    torch.manual_seed(question.seed)
    model, inputs = load_model(question.model)
    reference = copy.deepcopy(model) if isinstance(model, torch.nn.Module) else model
    backend: Any = "eager" if question.eager else deepep
    compiled = torch.compile(model, backend=backend, dynamic=question.dynamic or None)
    backward = None if question.mode == "auto" else question.mode == "train"
    found = check(reference, compiled, inputs, backward=backward, question=question)
    if found is not None or not question.timed:
        return Answer(found)
    if question.eager:
        compiled = reference
    times = [
        seconds_of(f, inputs, backward=backward, seed=question.seed) for f in (compiled, reference)
    ]
    return Answer(None, *times)


def check(
    reference: Callable[..., Any],
    compiled: Callable[..., Any],
    inputs: Any,
    *,
    backward: bool | None,
    question: Question,
) -> Signature | None:
    """How a compiled function fails, given what it was compiled from; None: it does not."""
    import torch

    from deepcompile.child.compare import difference, run_step
    from deepcompile.errors import DeepCompileError

    expected = run_step(reference, inputs, backward=backward, seed=question.seed)
    if expected.draws:
        # The same numbers as in eager, so that there is something to compare.
        os.environ["DEEPCOMPILE_RNG"] = "eager"
    try:
        actual = run_step(compiled, inputs, backward=backward, seed=question.seed)
    except Exception as error:
        ours = isinstance(error, DeepCompileError | torch._dynamo.exc.TorchDynamoException)
        traceback.print_exc()
        return signature_of_error(error, "compile" if ours else "run")
    found = difference(expected, actual, question.rtol)
    return found[0] if found else None


def judged(answer: Answer, slower_than: float) -> Answer:
    """An answer with a failure if a step took longer than so many seconds."""
    if answer.failure is not None or answer.seconds is None or answer.seconds <= slower_than:
        return answer
    text = f"{answer.seconds * 1e3:.3g} ms, more than {slower_than * 1e3:.3g} ms"
    failure = Signature("slow", "", text, answer.seconds / slower_than)
    return replace(answer, failure=failure)
