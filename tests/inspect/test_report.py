"""The report as a file: what it holds, that nothing of a run is taken for markup, partial runs."""

from __future__ import annotations

import base64
import itertools
import json
import random
import re
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

from deepcompile.cli.exit import Exit
from deepcompile.cli.main import run as command
from deepcompile.inspect.ir_text import parse_ir
from deepcompile.inspect.reader import read_run
from deepcompile.inspect.report.edits import Edit, edits
from deepcompile.inspect.report.layout import GAP_X, HEIGHT, WIDTH, place
from deepcompile.inspect.report.page import make_report
from deepcompile.inspect.report.pictures import MOST_BLOCKS, neighbourhood, overview
from deepcompile.inspect.report.text import clean
from tests.inspect.runs import small_run

HOSTILE = (
    "</script><script>window.owned=1</script><img src=x onerror=owned=1>\"'&\u2028\u202e\x1b[31m"
)


def applied(before: list[str], steps: list[Edit]) -> list[str]:
    found: list[str] = []
    at = 0
    for step in steps:
        if isinstance(step, str):
            found.append(step)
        elif isinstance(step, list):
            found += step
            at += 1
        else:
            found += before[at : at + max(step, 0)]
            at += abs(step)
    assert at == len(before)
    return found


def unpack(html: str, name: str) -> Any:
    found = re.search(rf'<script type="text/plain" id="packed-{name}">([^<]*)</script>', html)
    assert found is not None, name
    return json.loads(zlib.decompress(base64.b64decode(found[1])))


def line(name: str, text: str) -> str:
    return f"  %{name} : f32[4] = aten.{text}"


class TestEdits:
    def test_a_changed_line_is_an_edit_of_that_node(self):
        before = [line("a", "add(%x)"), line("b", "mul(%a)"), line("c", "neg(%b)")]
        after = [before[0], line("b", "div(%a)"), before[2]]
        assert edits(before, after) == [1, [after[1]], 1]

    def test_new_and_removed_lines_leave_their_neighbours_alone(self):
        before = [line(n, "neg(%x)") for n in "abcd"]
        after = [before[0], line("new", "neg(%x)"), before[1], before[3]]
        assert edits(before, after) == [1, after[1], 1, -1, 1]

    def test_a_node_that_moved_is_removed_and_added_and_the_others_stay(self):
        before = [line(n, "neg(%x)") for n in "abcd"]
        after = [before[1], before[2], before[3], before[0]]
        assert edits(before, after) == [-1, 3, before[0]]

    def test_names_inside_a_body_are_not_those_outside(self):
        before = [
            "graph {",
            "  graph @f {",
            "  " + line("a", "neg(%x)"),
            "  }",
            line("a", "add(%x)"),
            "}",
        ]
        after = ["graph {", line("a", "add(%x)"), "}"]
        assert edits(before, after) == [1, -3, 2]

    @pytest.mark.parametrize("seed", range(30))
    def test_the_steps_make_the_one_of_the_other(self, seed: int):
        draw = random.Random(seed)
        pool = [line(f"n{n}", "neg(%x)") for n in range(20)] + ["}", "return", ""]
        before, after = (draw.choices(pool, k=draw.randrange(30)) for _ in range(2))
        after = [text.replace("neg", "abs") if draw.random() < 0.2 else text for text in after]
        assert applied(before, edits(before, after)) == after


class TestPictures:
    GRAPH = "graph {\n  %x = placeholder\n" + "\n".join(
        f"  %n{n} : f32[4] = aten.neg.default(%{'x' if n == 0 else f'n{n - 1}'})  # m.py:{n // 40}"
        for n in range(400)
    ) + "\n  return (%n399,)\n}"  # fmt: skip

    def test_a_neighbourhood_has_the_nearest_nodes_and_no_more_than_asked_for(self):
        picture = neighbourhood(parse_ir(self.GRAPH), "n200", 21, reach=30)
        assert picture is not None
        assert {box.node for box in picture.boxes} == {f"n{n}" for n in range(190, 211)}
        assert [box.node for box in picture.boxes if box.kind == "centre"] == ["n200"]
        assert len(picture.edges) == 20
        near = neighbourhood(parse_ir(self.GRAPH), "n200", 300, reach=2)
        assert near is not None
        assert {box.node for box in near.boxes} == {f"n{n}" for n in range(198, 203)}

    def test_inputs_that_all_nodes_take_do_not_bring_all_nodes(self):
        users = "\n".join(f"  %u{n} = aten.neg.default(%w)" for n in range(100))
        picture = neighbourhood(parse_ir(f"graph {{\n  %w = placeholder\n{users}\n}}"), "u3", 300)
        assert picture is not None
        assert sorted(box.node for box in picture.boxes) == ["u3", "w"]

    def test_blocks_are_modules_else_lines_and_few(self):
        graph = parse_ir(self.GRAPH)
        by_line = overview(graph, {})
        assert by_line is not None
        assert [box.title for box in by_line.boxes] == [f"m.py:{n}" for n in range(10)]
        deep = {f"layers.{n // 20}.part{n % 20}": f"n{n}" for n in range(400)}
        by_module = overview(graph, deep)
        assert by_module is not None
        assert [box.title for box in by_module.boxes] == [f"layers.{n}" for n in range(20)]

    def test_many_lines_become_equal_parts(self):
        text = re.sub(r"m\.py:\d+", lambda found: f"f{found.start()}.py:1", self.GRAPH)
        picture = overview(parse_ir(text), {})
        assert picture is not None
        assert 1 < len(picture.boxes) <= MOST_BLOCKS

    def test_boxes_do_not_overlap_and_edges_go_down(self):
        draw = random.Random(0)
        names = [f"n{n}" for n in range(120)]
        edges = [(names[draw.randrange(n)], names[n]) for n in range(1, 120) for _ in range(2)]
        placed = place(names, list(dict.fromkeys(edges)))
        corners = sorted(placed.corners.values(), key=lambda corner: (corner[1], corner[0]))
        for (x0, y0), (x1, y1) in itertools.pairwise(corners):
            assert y1 >= y0 + HEIGHT or (y1 == y0 and x1 >= x0 + WIDTH + GAP_X - 1)
        assert all(placed.corners[a][1] < placed.corners[b][1] for a, b in edges)
        assert all(0 <= x <= placed.width - WIDTH for x, _ in corners)

    def test_no_graph_gives_no_picture(self):
        assert overview(parse_ir(""), {}) is None
        assert neighbourhood(parse_ir(""), "x", 10) is None


def test_a_page_holds_all_of_a_run(tmp_path: Path):
    report = make_report(read_run(small_run(tmp_path)))
    assert (report.graphs, report.kernels, report.events) == (1, 2, 2)
    assert report.problems == ()
    content = unpack(report.html, "graph-0")
    states = [content["first"]]
    for steps in content["later"]:
        states.append(applied(states[-1], steps))
    texts = [s.text for s in read_run(tmp_path).graphs[0].states if s.path is not None]
    assert ["\n".join(state) + "\n" for state in states] == texts
    rows = {row["name"]: row for row in unpack(report.html, "kernels")}
    assert rows["mm"]["computing"] > rows["mm"]["moving"] > 0
    (found,) = unpack(report.html, "lines")
    assert found["count"] == 3
    assert len(found["kernels"]) == 2
    for part in ("dp=2,tp=4", "all_reduce", "recompute", "2.0 KiB", "layers.0"):
        assert part in report.html


def test_nothing_of_a_run_is_taken_for_markup(tmp_path: Path):
    html = make_report(read_run(small_run(tmp_path, HOSTILE))).html
    assert len(re.findall(r"<script[ >]", html)) == len(re.findall(r"</script>", html))
    outside = re.sub(r"<script[^>]*>[^<]*</script>", "", html)
    assert "<script>window" not in outside
    assert "<img" not in html
    assert "\x1b" not in html
    assert "\u2028" not in html
    assert "\u202e" not in html
    data = re.search(r'id="page-data">([^<]*)</script>', html)
    assert data is not None
    assert "<script>window" in json.loads(data[1])["graphs"][0]["name"]


def test_a_page_may_run_its_own_script_and_load_nothing(tmp_path: Path):
    html = make_report(read_run(small_run(tmp_path))).html
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert re.search(r"script-src (&#39;|')sha256-[A-Za-z0-9+/=]+(&#39;|');", policy[1])
    own = re.sub(r"<(style|script)[^>]*>.*?</\1>", "", html, flags=re.DOTALL)
    assert not re.search(r"(src|href)=[\"'](?!#)", own)
    assert not re.search(r"\son\w+=", own)


def test_long_lines_are_cut_and_say_so():
    assert clean("x" * 5000).endswith("(1000 more characters)")


class TestPartialRuns:
    def spoil(self, folder: Path, what: str) -> None:
        if what == "no kernels":
            for file in sorted(folder.glob("kernels/**/*"), reverse=True):
                file.unlink() if file.is_file() else file.rmdir()
        elif what == "no programs":
            next(folder.glob("programs/*.json")).unlink()
        elif what == "cut":
            for file in folder.rglob("*.json*"):
                data = file.read_bytes()
                file.write_bytes(data[: len(data) // 2])
        elif what == "no texts":
            for file in folder.rglob("*.ir"):
                file.unlink()
        elif what == "wrong types":
            for file in folder.rglob("*.json"):
                record = json.loads(file.read_text())
                for name in record:
                    if name != "schema":
                        record[name] = {"status": 3, "graph": None}.get(name, [1, "x", None])
                file.write_text(json.dumps(record))
        elif what == "nothing":
            for file in sorted(folder.rglob("*"), reverse=True):
                if file.name != "run.json":
                    file.unlink() if file.is_file() else file.rmdir()

    @pytest.mark.parametrize(
        "what", ["no kernels", "no programs", "cut", "no texts", "wrong types", "nothing"]
    )
    def test_what_is_there_is_shown(self, tmp_path: Path, what: str):
        folder = small_run(tmp_path)
        self.spoil(folder, what)
        report = make_report(read_run(folder))
        assert folder.name in report.html
        assert report.html.rstrip().endswith("</html>")
        if what in ("cut", "wrong types"):
            assert report.problems
            assert all(problem.split()[0] in report.html for problem in report.problems)
        if what == "no programs":
            assert report.kernels == 1
        if what in ("no kernels", "no programs"):
            assert unpack(report.html, "graph-0")["first"]


def test_the_command_writes_one_file_and_says_what_is_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder, out = small_run(tmp_path), tmp_path / "page.html"
    assert command(["report", str(folder), "-o", str(out), "--json"]) == Exit.OK
    document = json.loads(capsys.readouterr().out)
    assert document["bytes"] == out.stat().st_size
    assert (document["graphs"], document["kernels"]) == (1, 2)
    assert command(["report", str(folder), "-o", str(tmp_path / "no" / "page.html")]) == Exit.USAGE
    assert "cannot be written" in capsys.readouterr().err


def test_the_command_imports_no_torch(tmp_path: Path):
    folder = small_run(tmp_path)
    program = (
        "import sys; from deepcompile.cli.main import run; "
        f"run(['-q', 'report', {str(folder)!r}, '-o', {str(tmp_path / 'r.html')!r}]); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
