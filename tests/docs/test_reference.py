"""The documentation: its reference has everything there is, and it builds without a warning."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest

from deepcompile import errors
from deepcompile.cli.exit import Exit
from deepcompile.cli.main import cli
from deepcompile.options import MODES, option_table
from deepcompile.passes import PASSES

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generator", DOCS / "generate_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def headings(text: str) -> list[str]:
    return re.findall(r"^#+ (.*)$", text, re.MULTILINE)


def all_commands(command: click.Command, context: click.Context) -> Iterator[str]:
    yield context.command_path
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            if not found.hidden:
                yield from all_commands(found, click.Context(found, context, name))


def test_every_command_and_its_options(generator: ModuleType) -> None:
    text = generator.commands()
    found = list(all_commands(cli, click.Context(cli, info_name="deepcompile")))[1:]
    assert len(found) > 15
    assert set(found) <= set(headings(text))
    assert "`-o, --output TEXT`" in text
    assert "\b" not in text


def test_every_option_pass_error_and_exit_status(generator: ModuleType) -> None:
    options = generator.options()
    assert {row.name for row in option_table()} < set(headings(options))
    assert all(f"Variable: `{row.env}`." in options for row in option_table())
    assert all(f"`{mode}`" in options for mode in MODES)
    assert set(PASSES) <= set(headings(generator.passes()))
    classes = [v for v in vars(errors).values() if isinstance(v, type)]
    named = {c.__name__ for c in classes if issubclass(c, errors.DeepCompileError)}
    assert len(named) > 10
    assert named == set(headings(generator.error_classes())[1:])
    statuses = generator.exit_codes()
    assert all(f"| `{int(code)}` | `{code.name}` |" in statuses for code in Exit)
    assert "events.jsonl" in generator.run_directory()
    assert "deepcompile.explain" in headings(generator.api())


def test_text_of_docstrings_is_not_markup(generator: ModuleType) -> None:
    assert generator.prose("a*b <c> `x*y` [d] #e") == r"a\*b \<c> `x*y` \[d\] \#e"
    lines = list(generator._docstring("Before:\n    %a = b(%c)\n\n    %d\nAfter"))
    assert lines == ["Before:", "", "````text", "%a = b(%c)\n\n%d", "````", "", "After"]
    assert list(generator._help("One.\n\n\b\n  x  y\n\nExample: deepcompile a *")) == [
        *("One.", "", "````text", "x  y", "````", ""),
        *("Example:", "", "````sh", "deepcompile a *", "````", ""),
    ]
    assert generator.table(("a",), [("`b|c`",), (r"d\|e",)])[2:] == [r"| `b\|c` |", r"| d\|e |"]


def test_pages_that_did_not_change_are_not_written_again(
    generator: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generator, "pages", lambda: {"a.md": "# A\n"})
    (tmp_path / "old.md").write_text("# Old\n")
    generator.write(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.md", "index.md"]
    before = (tmp_path / "a.md").stat().st_mtime_ns
    generator.write(tmp_path)
    assert (tmp_path / "a.md").stat().st_mtime_ns == before


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    for package in ("sphinx", "furo", "myst_parser"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install -e '.[docs]'")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    command += ["-d", str(tmp_path / "doctrees"), str(DOCS), str(tmp_path / "html")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for page in ("index", "pass-authors", "reference/commands", "howto/huggingface"):
        text = (tmp_path / "html" / f"{page}.html").read_text()
        # Pages open from disk without a network.
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?:', text)
    example = re.sub(r"<[^>]+>", "", (tmp_path / "html/howto/huggingface.html").read_text())
    assert "trainer = Trainer(model, settings" in example


def test_links_of_the_readme_lead_somewhere() -> None:
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", readme):
        assert (DOCS.parent / target).exists(), target
