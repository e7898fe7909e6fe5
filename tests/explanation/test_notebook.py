"""An explanation in a notebook: HTML beside text, nothing of a model is taken for markup."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from deepcompile.explanation.facts import Explanation, Extern, GraphBreak, GraphFacts, KernelFacts


class Reader(HTMLParser):
    """Text and tags, and that each tag that opens is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.opened = 0
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.add(tag)
        self.opened += tag == "details" and ("open", None) in attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def explanation(hostile: str = "x") -> Explanation:
    kernels = tuple(KernelFacts(f"k{n}", ("aten.add.Tensor",), (hostile,), 8, 8) for n in range(20))
    externs = (Extern("aten.mm.default", 2, (hostile,)),)
    graph = GraphFacts(
        "g0_inference", "inference", None, kernels, externs, 99, 100, 64, 64, {"build": 0.1}, False
    )
    return Explanation(
        graphs=(graph,),
        fallbacks=((hostile, f"{hostile} & more"),),
        graph_breaks=(GraphBreak(hostile, "m.py:3", 1),),
        rejected=(),
        not_lowered=(),
        failed_passes=(),
        seconds=1.0,
    )


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert not reader.open
    return reader


def test_everything_is_there_and_reasons_are_open() -> None:
    found = read(explanation()._repr_html_())
    assert "1 graph (1 inference), 20 kernels" in found.text
    for number in range(20):  # unlike the page as text, nothing is left out
        assert f"k{number} " in found.text
    assert "fusions rejected, 0: none" in found.text
    assert found.opened == 3


def test_names_of_a_model_are_text() -> None:
    hostile = "</pre><script>alert(1)</script><img src=x onerror=alert(1)>\"'"
    found = read(explanation(hostile)._repr_html_())
    assert found.tags == {"div", "strong", "details", "summary", "pre"}
    assert hostile in found.text


def test_nothing_compiled() -> None:
    empty = Explanation((), (), (), (), (), (), 0.1)
    assert "Nothing was compiled" in read(empty._repr_html_()).text


def test_what_ipython_shows() -> None:
    formatters = pytest.importorskip("IPython.core.interactiveshell")
    shell = formatters.InteractiveShell.instance()
    data, _ = shell.display_formatter.format(explanation())
    assert data["text/plain"] == str(explanation())
    assert data["text/html"] == explanation()._repr_html_()
    formatters.InteractiveShell.clear_instance()


def test_the_bundle_without_ipython() -> None:
    bundle = explanation()._repr_mimebundle_(include=None, exclude=None)
    assert bundle == {
        "text/plain": str(explanation()),
        "text/html": explanation()._repr_html_(),
    }
