"""Options: where values come from, which are refused, and what the refusal says."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from deepcompile.errors import (
    CompileError,
    DeepCompileError,
    OptionError,
    VerificationError,
    for_dynamo,
)
from deepcompile.options import MODES, Options, format_size, option_table, parse_size


def resolve(options=None, mode=None, **environ: str) -> Options:
    return Options.resolve(options, mode, {f"DEEPCOMPILE_{k}": v for k, v in environ.items()})


def test_later_sources_win() -> None:
    assert resolve().tune == "off"
    assert resolve(mode="max-autotune").tune == "measure"
    assert resolve(mode="max-autotune", TUNE="off").tune == "off"
    assert resolve({"tune": "measure"}, TUNE="off").tune == "measure"
    assert resolve({"run_dir": None}, RUN_DIR="/x").run_dir is None


@pytest.mark.parametrize("mode", MODES)
def test_all_torch_modes_are_known(mode: str) -> None:
    assert set(resolve(mode=mode).provided) == set(MODES[mode])


def test_torch_has_no_mode_we_do_not_know() -> None:
    assert set(torch._inductor.list_mode_options()) | {"default"} <= set(MODES)


def test_values_from_the_environment_are_converted() -> None:
    options = resolve(
        VERIFY="1", DISABLE="a, b", OPT_LIMIT="3", REWRITE_LIMIT="fuse-rows:7", CACHE_SIZE="2GiB",
        THREADS="", PASSES="canonicalise",
    )  # fmt: skip
    assert options.verify is True
    assert options.disable == ("a", "b")
    assert options.opt_limit == 3
    assert options.rewrite_limit == ("fuse-rows", 7)
    assert options.cache_size == 2 << 30
    assert options.threads is None
    assert options.provided == {
        "verify", "disable", "opt_limit", "rewrite_limit", "cache_size", "passes",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runn_dir": "x"}, "unknown option 'runn_dir'; did you mean 'run_dir'"),
        ({"zzz": 1}, "unknown option 'zzz'; known: cache, cache_dir"),
        ({"numerics": "fats"}, "did you mean 'fast'"),
        ({"rng": 3}, "expected one of 'philox', 'eager'"),
        ({"threads": 0}, "at least 1"),
        ({"threads": True}, "at least 1"),
        ({"threads": "two"}, "whole number"),
        ({"verify": "maybe"}, "expected True or False"),
        ({"verify": None}, "expected True or False"),
        ({"cache_size": "6GB1"}, "expected a size"),
        ({"cache_size": "6QiB"}, "unknown unit"),
        ({"cache_size": "60%"}, "a percentage has no meaning here"),
        ({"cache_size": -1}, "negative"),
        ({"rewrite_limit": "fuse-rows"}, "expected 'pass:N'"),
        ({"disable": 3}, "expected names"),
        ({"run_dir": 3}, "expected a path"),
        ({"passes": ""}, "non-empty"),
        (7, "options must be a dict or Options, not int"),
    ],
)
def test_refusals(options, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        resolve(options)


def test_refusals_elsewhere() -> None:
    with pytest.raises(
        OptionError, match="unknown mode 'max-autotun'; did you mean 'max-autotune'"
    ):
        resolve(mode="max-autotun")
    with pytest.raises(OptionError, match=r"DEEPCOMPILE_THREADS = 'x': expected a whole number"):
        resolve(THREADS="x")
    with pytest.raises(OptionError, match="threads = -1"):
        Options(threads=-1)
    with pytest.warns(UserWarning, match="'DEEPCOMPILE_VERFY'; did you mean 'DEEPCOMPILE_VERIFY'"):
        resolve(VERFY="1")


def test_options_object_is_taken_as_it_is() -> None:
    given = Options(threads=3, cache_size="1KiB")
    options = resolve(given, THREADS="5", VERIFY="1")
    assert (options.threads, options.cache_size, options.verify) == (3, 1024, True)


def test_cache_key_sees_what_changes_code_and_nothing_else() -> None:
    assert Options().cache_key() != Options(numerics="eager").cache_key()
    assert Options().cache_key() == Options(run_dir="x", log_level="debug").cache_key()


def test_table_covers_every_option() -> None:
    table = {row.name: row for row in option_table()}
    assert set(table) == set(Options().to_dict())
    assert table["run_dir"].env == "DEEPCOMPILE_RUN_DIR"
    assert all(row.doc.endswith(".") for row in table.values())


@pytest.mark.parametrize(
    ("text", "size"),
    [("6GiB", 6 << 30), ("1.5 kib", 1536), (4096, 4096), ("10", 10), ("2MB", 2_000_000), ("0", 0)],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


def test_share_of_a_total() -> None:
    assert parse_size("60%", 1000) == 600
    with pytest.raises(ValueError, match="between 0% and 100%"):
        parse_size("101%", 1000)


def test_format_size() -> None:
    assert [format_size(n) for n in (0, 1023, 1536, 6 << 30)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "6 GiB",
    ]


@pytest.mark.parametrize(
    "error",
    [
        OptionError("x"),
        CompileError("cannot", origin="model.py:3", source="  y = x @ w"),
        VerificationError("fuse-rows", "values differ", node="add", max_error=0.5),
    ],
    ids=lambda e: type(e).__name__,
)
def test_errors_pass_through_dynamo(error: DeepCompileError) -> None:
    def backend(gm, example_inputs):
        raise for_dynamo(error)

    torch._dynamo.reset()
    with pytest.raises(type(error)) as caught:
        torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2))
    assert str(caught.value).startswith(str(error))  # Dynamo appends a hint of its own
    assert {**vars(caught.value)}.items() >= vars(error).items()
    assert not isinstance(caught.value, torch._dynamo.exc.BackendCompilerFailed)


def test_compile_error_shows_the_users_line() -> None:
    error = CompileError("cannot", origin="model.py:3", source="  y = x @ w")
    assert "from model.py:3: y = x @ w" in str(error)


def test_public_names_need_no_torch() -> None:
    program = (
        "import sys, deepcompile; deepcompile.Options(); deepcompile.OptionError\n"
        "assert 'torch' not in sys.modules and set(deepcompile.__all__) <= set(dir(deepcompile))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
