"""The demo at toy size: it trains, it agrees with eager, it says what it did, it fails plainly."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from deepcompile.demo import data, train
from deepcompile.demo.__main__ import STOPPED, main
from deepcompile.demo.run_record import newest_run

BACKEND = "deepep" if importlib.util.find_spec("deepcompile.backend") else "aot_eager"
TOY = ["--layers", "1", "--hidden", "64", "--context", "16", "--batch", "2"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Toy sizes gain nothing from threads and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run_demo(tmp_path: Path, *arguments: str) -> Result:
    torch._dynamo.reset()
    options = ["--backend", BACKEND, "--run-dir", str(tmp_path / "run"), *TOY, *arguments]
    return CliRunner().invoke(main, options, catch_exceptions=False)


def test_trains_and_agrees_with_eager(tmp_path: Path) -> None:
    done = run_demo(tmp_path, "--steps", "6", "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    eager, compiled = facts["runs"]["eager"], facts["runs"]["compiled"]
    assert len(eager["losses"]) == len(compiled["losses"]) == 6
    assert facts["difference"] <= train.TOLERANCE
    assert eager["held_out"].keys() == compiled["held_out"].keys()
    assert "6" in eager["held_out"]
    assert facts["sample"].startswith("def ")


def test_prints_tables(tmp_path: Path) -> None:
    done = run_demo(tmp_path, "--steps", "2")
    assert done.exit_code == 0, done.output
    for part in ("held out", "tokens/s", "first step", "agree"):
        assert part in done.output


def test_disagreement_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "TOLERANCE", -1.0)
    done = run_demo(tmp_path, "--steps", "1")
    assert done.exit_code == 1
    assert "DISAGREE" in done.output


def test_ctrl_c_leaves_with_130(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train.Trainee, "step", interrupt)
    assert run_demo(tmp_path).exit_code == STOPPED


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_says_when_there_is_no_cuda_device(tmp_path: Path) -> None:
    done = run_demo(tmp_path, "--device", "cuda")
    assert done.exit_code == 2
    assert done.output.strip().count("\n") == 0
    assert "CUDA" in done.output


def test_not_a_number_is_not_agreement() -> None:
    assert train.relative_difference(1.0, float("nan")) == float("inf")
    assert train.relative_difference(float("nan"), float("nan")) == float("inf")


def test_text_survives_the_vocabulary() -> None:
    vocabulary = data.Vocabulary.count("def f(x):\n    return x\n" * 3, data.BYTES + 4)
    text = "def g(ü):\n    return 'unseen words'\n"
    assert vocabulary.decode(vocabulary.encode(text)) == text


def test_held_out_text_is_not_trained_on() -> None:
    first, second = data.load_corpus(512, 400_000), data.load_corpus(512, 400_000)
    assert first.vocabulary == second.vocabulary
    assert first.held_out.equal(second.held_out)
    held_out = first.vocabulary.decode(first.held_out[:400].tolist())
    assert held_out not in first.vocabulary.decode(first.train.tolist())


def test_only_the_run_of_this_process_counts(tmp_path: Path) -> None:
    assert newest_run(tmp_path) is None
    for pid, folder in ((1, "2026-other"), (os.getpid(), "2026-own")):
        kernel = tmp_path / folder / "kernels" / "k0"
        kernel.mkdir(parents=True)
        (kernel / "meta.json").write_text("{}")
        (tmp_path / folder / "run.json").write_text(json.dumps({"schema": 1, "pid": pid}))
    (tmp_path / "2026-own" / "events.jsonl").write_text('{"kind": "cache", "hit": true}\n{"ki')
    record = newest_run(tmp_path)
    assert record is not None
    assert (record.kernels, record.fallbacks, record.all_cached) == (1, 0, True)
    (tmp_path / "latest").write_text("2026-other\n")
    assert newest_run(tmp_path) is None
