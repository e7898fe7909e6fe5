"""Pipeline text: prints, parses back, and errors name the nearest valid word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest

from deepcompile.errors import OptionError, PipelineError
from deepcompile.options import Options
from deepcompile.pipeline.plugins import Plugin, Plugins
from deepcompile.pipeline.registry import Registry
from deepcompile.pipeline.spec import Pipeline, parse_passes, print_passes


@dataclass(frozen=True)
class Fold:
    """Folds things.

    Before and after follow here.
    """

    name: ClassVar[str] = "fold"
    phase: ClassVar[str] = "graph"
    requires: ClassVar[frozenset[str]] = frozenset()
    establishes: ClassVar[frozenset[str]] = frozenset({"folded"})
    skippable: ClassVar[bool] = True

    max_ops: int = 64
    share: float = 0.5
    verbose: bool = False
    label: str = ""
    mode: Literal["fast", "slow"] = "fast"
    only: tuple[str, ...] = ()
    limit: int | None = None

    def run(self, graph, ctx): ...


@dataclass(frozen=True)
class Needed(Fold):
    """Must run."""

    name: ClassVar[str] = "needed"
    phase: ClassVar[str] = "joint"
    skippable: ClassVar[bool] = False


@dataclass
class NotFrozen:
    """Wrong."""


REGISTRY = Registry(
    {
        "fold": f"{__name__}:Fold",
        "needed": f"{__name__}:Needed",
        "thawed": f"{__name__}:NotFrozen",
        "misnamed": f"{__name__}:Fold",
        "absent": "deepcompile.no_such_module:X",
    }
)


@pytest.mark.parametrize(
    "passes",
    [
        (),
        (Fold(),),
        (Fold(max_ops=3), Fold(verbose=True), Needed()),
        (Fold(label='a "quoted" {label}, true', share=1e-9, mode="slow"),),
        (Fold(label="true", only=("a", "b c", "d.e"), limit=7),),
        (Fold(only=("one",), limit=0),),
    ],
    ids=print_passes,
)
def test_round_trip(passes: tuple[Fold, ...]) -> None:
    text = print_passes(passes)
    assert (parse_passes(text, REGISTRY) if text else ()) == passes


def test_text_leaves_defaults_out() -> None:
    assert print_passes([Fold(max_ops=3, verbose=True), Needed()]) == (
        "fold{max-ops=3 verbose=true},needed"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flod", "unknown pass 'flod'; did you mean 'fold'"),
        ("fold{max-op=3}", "'max-op'; did you mean 'max-ops'.*column 6"),
        ("fold{max-ops=x}", "'max-ops' of pass 'fold': expected a number, not x.*column 14"),
        ("fold{verbose=yes}", "expected true or false"),
        ("fold{mode=fasst}", "did you mean 'fast'"),
        ("fold{max-ops=[1,2]}", "one value, not a list"),
        ("fold{max-ops}", "expected '='"),
        ("fold,", "expected the name of a pass"),
        ("fold}", "unexpected '}'"),
        ("fold;x", "unexpected ';' at column 5"),
        ("thawed", "not frozen"),
        ("misnamed", "calls itself 'fold'"),
        ("absent", "cannot be loaded"),
    ],
)
def test_errors_say_what_and_where(text: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        parse_passes(text, REGISTRY)


def test_phases_round_trip() -> None:
    text = "joint(needed,fold),graph(fold{max-ops=3})"
    pipeline = Pipeline.parse(text, REGISTRY)
    assert pipeline == Pipeline((Needed(), Fold()), (Fold(max_ops=3),))
    assert str(pipeline) == text
    assert Pipeline.parse("joint(),graph()", REGISTRY) == Pipeline((), ())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("joint(),graph(needed)", r"works on the joint graph; write joint\(needed"),
        ("graph(fold),graph(fold)", "appears twice"),
        ("joint(),other(fold)", r"expected one of joint\(...\), graph"),
        ("joint(fold", r"expected '\)'"),
    ],
)
def test_phase_errors(text: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        Pipeline.parse(text, REGISTRY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"disable": "flod"}, "option disable: unknown pass 'flod'; did you mean 'fold'"),
        ({"disable": "needed"}, "required and cannot be left out"),
        ({"rewrite_limit": "flod:3"}, "option rewrite_limit: unknown pass 'flod'"),
    ],
)
def test_pass_names_in_options_are_checked(options: dict[str, str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Pipeline.of(
            Options.resolve({"passes": "joint(),graph(fold)", **options}, environ={}), REGISTRY
        )


def test_options_choose_the_pipeline() -> None:
    options = Options(passes="joint(),graph(fold)", disable=("fold", "needed/one-rewrite"))
    assert Pipeline.of(options, REGISTRY) == Pipeline((), (Fold(),))


def test_registry_describes_passes() -> None:
    info = REGISTRY.get("fold")
    assert info.summary == "Folds things."
    assert [(o.name, o.kind) for o in info.options][:5] == [
        ("max-ops", "int"),
        ("share", "float"),
        ("verbose", "bool"),
        ("label", "str"),
        ("mode", "fast|slow"),
    ]


def test_passes_of_other_packages() -> None:
    plugin = Plugin("fold", f"{__name__}:Fold", "acme 1.0")
    table = {"needed": f"{__name__}:Needed"}
    registry = Registry(table, lambda: Plugins({"fold": plugin}))
    assert registry.names() == ("needed", "fold")
    assert parse_passes("fold", registry) == (Fold(),)
    assert registry.get("fold").source == "acme 1.0"
