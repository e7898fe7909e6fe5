"""Fingerprints as data: parts among members, digests, first differences, text and back."""

from __future__ import annotations

import dataclasses

import pytest

from deepcompile.runtime.collectives.fingerprint import CollectiveEntry, Fingerprint

TP, DP = (0, 1), (0, 2)
REDUCE = CollectiveEntry("all_reduce", "sum", "f32", "8, 16", TP, "layers.4")
GATHER = CollectiveEntry("all_gather_into_tensor", "", "f32", "s7, 16", TP, "layers.5")
GRADIENT = CollectiveEntry("reduce_scatter_tensor", "avg", "bf16", "16, 16", DP, "layers.4.weight")
WHOLE = Fingerprint("forward 0", "v1", (REDUCE, GRADIENT, GATHER))


def test_parts_among_members_keep_their_order():
    assert WHOLE.member_sets == (TP, DP)
    assert [e.op for e in WHOLE.among(TP).entries] == ["all_reduce", "all_gather_into_tensor"]
    assert WHOLE.among(DP).entries == (GRADIENT,)
    assert WHOLE.among((0, 1, 2, 3)).entries == ()


def test_a_group_of_one_rank_shares_with_nobody():
    alone = dataclasses.replace(REDUCE, members=(3,))
    assert Fingerprint("g", "", (alone,)).member_sets == ()


def test_names_of_graphs_and_symbols_are_no_difference():
    renamed = dataclasses.replace(GATHER, shape="s40, 16")
    other = Fingerprint("forward 3", "v1", (REDUCE, GRADIENT, renamed))
    assert other.among(TP).digest == WHOLE.among(TP).digest
    assert other.among(TP).first_difference(WHOLE.among(TP)) is None


def test_symbols_are_told_apart_and_functions_kept():
    def shape(text):
        entry = dataclasses.replace(REDUCE, shape=text)
        return Fingerprint("g", "", (entry,)).among(TP).entries[0].shape

    assert shape("s3, 2*s9 + s3, Mod(s9, 4)") == "n0, 2*n1 + n0, Mod(n1, 4)"
    assert shape("s3, s3") != shape("s3, s4")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"dtype": "bf16"}, "all_reduce(sum) bf16[8, 16] `layers.4`"),
        ({"shape": "16, 8"}, "all_reduce(sum) f32[16, 8] `layers.4`"),
        ({"reduce_op": "max"}, "all_reduce(max) f32[8, 16] `layers.4`"),
        ({"op": "broadcast", "reduce_op": "from 0"}, "broadcast(from 0) f32[8, 16] `layers.4`"),
        ({"label": "layers.3"}, "all_reduce(sum) f32[8, 16] `layers.3`"),
    ],
)
def test_the_first_difference_is_shown(change, text):
    other = Fingerprint("forward 0", "v1", (REDUCE, dataclasses.replace(REDUCE, **change), GATHER))
    mine = Fingerprint("forward 0", "v1", (REDUCE, REDUCE, GRADIENT))
    assert mine.digest != other.digest
    expected = f"collective 2: all_reduce(sum) f32[8, 16] `layers.4` against {text}"
    assert mine.first_difference(other) == expected


def test_missing_collectives_plans_and_orders_of_members():
    shorter = Fingerprint("g", "v1", (REDUCE,))
    longer = Fingerprint("g", "v1", (REDUCE, GATHER))
    gather = "all_gather_into_tensor f32[s7, 16] `layers.5`"
    assert shorter.first_difference(longer) == f"collective 2: none against {gather}"
    assert longer.first_difference(shorter) == f"collective 2: {gather} against none"
    replanned = dataclasses.replace(shorter, plan="v2")
    assert shorter.first_difference(replanned) == "plan 'v1' against plan 'v2'"
    turned = Fingerprint("g", "v1", (dataclasses.replace(REDUCE, members=(1, 0)),))
    assert "(0, 1) against (1, 0)" in shorter.first_difference(turned)
    assert shorter.member_sets == turned.member_sets


def test_text_of_several_tensors():
    entry = CollectiveEntry("all_reduce_coalesced", "sum", "f32;bf16", "8, 16;4", TP)
    assert str(entry) == "all_reduce_coalesced(sum) f32[8, 16] bf16[4]"


def test_json_and_back():
    again = Fingerprint.from_json(WHOLE.to_json())
    assert again == WHOLE
    assert again.digest == WHOLE.digest
