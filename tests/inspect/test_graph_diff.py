"""Differences by node: what is renumbered, moved, changed, new and gone."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcompile.inspect.graph_diff import GraphDiff, diff_graphs, rows
from deepcompile.inspect.ir_text import parse_ir


def text_of(lines: list[str], last: str = "return ()") -> str:
    return "graph {\n" + "".join(f"  {line}\n" for line in [*lines, last]) + "}\n"


def compare(before: str, after: str) -> GraphDiff:
    return diff_graphs(parse_ir(before), parse_ir(after))


def kinds(diff: GraphDiff) -> Counter[str]:
    return Counter(pair.kind for pair in diff.pairs if pair.kind != "same")


def chain(
    length: int, at: int | None = None, new: str = "", constants: Mapping[int, str] | None = None
) -> str:
    """add_0, add_1, ... of one op; `new` comes in before node `at` and renumbers the rest."""
    lines, before = ["%x : f32[4] = placeholder"], "x"
    for number in range(length):
        for arguments in [new.format(before)] * (number == at):
            lines.append(f"%add_{len(lines) - 1} : f32[4] = {arguments}")
            before = f"add_{len(lines) - 2}"
        constant = (constants or {}).get(number, "1.0")
        lines.append(f"%add_{len(lines) - 1} : f32[4] = aten.add.Tensor(%{before}, {constant})")
        before = f"add_{len(lines) - 2}"
    return text_of(lines, f"return (%{before},)")


def test_equal_graphs() -> None:
    diff = compare(chain(20), chain(20))
    assert not diff.differs()
    assert list(rows(diff)) == []


def test_a_constant_that_changes_is_one_node() -> None:
    diff = compare(chain(30), chain(30, constants={7: "2.0"}))
    assert kinds(diff) == {"changed": 1}
    (row,) = [row for row in rows(diff) if row.mark == "~"]
    assert row.before == "%add_7 : f32[4] = aten.add.Tensor(%add_6, 1.0)"
    assert row.after == "%add_7 : f32[4] = aten.add.Tensor(%add_6, 2.0)"


@pytest.mark.parametrize("new", ["aten.mul.Tensor(%{}, 2.0)", "aten.add.Tensor(%{}, 7.0)"])
def test_a_new_node_does_not_make_what_follows_differ(new: str) -> None:
    diff = compare(chain(200), chain(200, 100, new))
    found = kinds(diff)
    assert found["added"] == 1
    assert found["changed"] <= 1
    assert found["removed"] == 0
    shown = [row for row in rows(diff) if row.mark not in " @"]
    assert len(shown) <= 2
    assert diff.ops == {new.partition("(")[0]: 1}


def test_changes_around_a_new_node_are_found() -> None:
    diff = compare(chain(99), chain(99, 50, "aten.add.Tensor(%{}, 7.0)", {3: "8.0", 90: "9.0"}))
    found = kinds(diff)
    assert found["added"] == 1
    assert found["removed"] == 0
    assert found["changed"] == 3


def test_only_names() -> None:
    diff = compare(chain(9), re.sub(r"add_", "sum_", chain(9)))
    assert kinds(diff) == {"renamed": 9}
    assert diff.differs()
    assert not diff.differs(names=False)
    assert list(rows(diff)) == []


def test_only_order() -> None:
    lines = ["%x = placeholder", *(f"%v{i} = op{i}(%x)" for i in range(6))]
    moved = [*lines[:2], *lines[3:6], lines[2], lines[6]]
    diff = compare(text_of(lines), text_of(moved))
    assert kinds(diff) == {"moved": 1}
    assert not diff.differs(order=False)
    assert [row.mark for row in rows(diff)].count(">") == 1
    assert not any(row.mark == ">" for row in rows(diff, order=False))


def test_inputs_of_other_names_and_types() -> None:
    before = text_of(["%a : f32[2] = placeholder", "%b : f32[2] = neg(%a)"], "return (%b,)")
    renamed = before.replace("%a ", "%arg0 ").replace("(%a)", "(%arg0)")
    assert kinds(compare(before, renamed)) == {"renamed": 1}
    assert kinds(compare(before, before.replace("%b : f32", "%b : f16"))) == {"changed": 1}
    static = before.replace("placeholder", "placeholder {static}")
    assert kinds(compare(before, static)) == {"changed": 1}


def test_texts_of_another_version() -> None:
    before = text_of(["%a : f32[2] = placeholder", "%b : (f32[2]) = k(%a)"], "return (%b,)")
    after = text_of(
        ["%a : f32[2] = placeholder {static}", "%b : (f32[2],) = k(%a)"], "return (%b,)"
    ).replace("graph {", "graph forward {")
    assert not compare(before, after).differs()
    assert kinds(compare(before.replace("graph {", "graph forward {"), after)) == {"changed": 2}


def test_what_a_fusion_does() -> None:
    before = text_of(
        ["%x : f32[4] = placeholder", "%s : f32[4] = sin(%x)", "%c : f32[4] = cos(%s)",
         "%v : f32[2, 2] = view(%c, [2, 2])", "%e : f32[2, 2] = exp(%v)"], "return (%e, %v)",
    )  # fmt: skip
    after = text_of(
        ["%x : f32[4] = placeholder", "%k0 : (f32[4],) = kernel @k0(%x)",
         "%getitem : f32[4] = getitem(%k0, 0)", "%v : f32[2, 2] = view(%getitem, [2, 2])",
         "%e : f32[2, 2] = exp(%v)"], "return (%e, %v)",
    )  # fmt: skip
    diff = compare(before, after)
    assert kinds(diff) == {"added": 2, "removed": 2, "changed": 1}
    assert [p.after.name for p in diff.pairs if p.kind == "changed" and p.after] == ["v"]
    assert diff.ops == {"cos": -1, "getitem": 1, "kernel": 1, "sin": -1}


def test_kernels_of_other_numbers_are_the_same_and_their_code_counts() -> None:
    body = "  kernel @{0}(in b0: f32[4], out b1: f32[4]) {{\n    v0: {1} b0\n  }}\n"
    call = text_of(["%x = placeholder", "%k3 = kernel @k3(%x)"], "return (%k3,)")
    before = call.replace("}\n", body.format("k3", "sin") + "}\n")
    after = before.replace("k3", "k8")
    assert kinds(compare(before, after)) == {"renamed": 1}
    diff = compare(before, after.replace("sin", "cos"))
    assert [line for line in diff.kernels["k8"] if line[0] in "+-"] == [
        "-v0: sin b0",
        "+v0: cos b0",
    ]
    assert diff.differs(names=False)


def test_bodies_and_declarations() -> None:
    body = "  graph @g {\n    %x = placeholder\n    %y = f(%x)\n    return (%y,)\n  }\n"
    before = text_of(["%b = batch @g([], [])"], "return (%b,)").replace("{\n", "{\n" + body, 1)
    diff = compare(before, before.replace("%y = f(%x)", "%y = h(%x)"))
    assert set(diff.bodies) == {"g"}
    assert kinds(diff) == Counter()
    assert diff.differs()
    constant = before.replace("{\n", "{\n  constant @c : f32[] = 1.0\n", 1)
    assert compare(before, constant).declarations == ("+ constant @c : f32[] = 1.0",)


# -- random graphs ---------------------------------------------------------------------------------


def random_lines(seed: int, size: int) -> list[tuple[str, str, list[str]]]:
    """(name, op, inputs) of a random graph; some of its nodes are computed alike."""
    chance = random.Random(seed)
    names = ["x0", "x1"]
    nodes = [("x0", "placeholder", []), ("x1", "placeholder", [])]
    for number in range(size):
        inputs = [chance.choice(names[-6:]) for _ in range(chance.randint(1, 3))]
        nodes.append((f"v{number}", f"op{chance.randint(0, 3)}", inputs))
        names.append(f"v{number}")
    return nodes


def printed(nodes: list[tuple[str, str, list[str]]]) -> str:
    used = {name for _, _, inputs in nodes for name in inputs}
    lines = [
        f"%{name} : f32[4] = placeholder"
        if op == "placeholder"
        else f"%{name} : f32[4] = {op}({', '.join('%' + i for i in inputs)})"
        for name, op, inputs in nodes
    ]
    ends = [name for name, op, _ in nodes if name not in used and op != "placeholder"]
    return text_of(lines, f"return ({', '.join('%' + n for n in ends)},)")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60))
def test_new_names_alone_are_never_a_change(seed: int, size: int) -> None:
    nodes = random_lines(seed, size)
    names = [name for name, _, _ in nodes]
    shuffled = [f"w{number}" for number in range(size)]
    random.Random(seed + 1).shuffle(shuffled)
    new = dict(zip(names, names[:2] + shuffled, strict=True))
    renamed = [(new[name], op, [new[i] for i in inputs]) for name, op, inputs in nodes]
    diff = compare(printed(nodes), printed(renamed))
    assert set(kinds(diff)) <= {"renamed"}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 60), st.integers(0, 59))
def test_every_node_is_told_of_once(seed: int, size: int, at: int) -> None:
    """A node goes and its users take its input: counts add up, and most stays as it is."""
    nodes = random_lines(seed, size)
    gone, _, inputs = nodes[2 + at % size]
    left = [
        (name, op, [inputs[0] if i == gone else i for i in taken])
        for name, op, taken in nodes
        if name != gone
    ]
    before, after = parse_ir(printed(nodes)), parse_ir(printed(left))
    diff = diff_graphs(before, after)
    seen = [pair.before for pair in diff.pairs if pair.before]
    assert sorted(seen) == sorted(before.nodes)
    assert sorted(pair.after for pair in diff.pairs if pair.after) == sorted(after.nodes)
    assert diff.count("removed") - diff.count("added") == 1
    assert diff.count("removed") <= 2
