"""What graphs of one model hold counts for those after them, as long as they are there."""

from __future__ import annotations

import gc

import torch
from torch import nn

from deepcompile.budget.ledger import Ledger, ledger_of
from deepcompile.recording import recording


def test_a_graph_counts_what_those_before_it_hold() -> None:
    ledger = Ledger()
    ledger.enter("first", 5)
    ledger.enter("second", 7)
    assert [ledger.before(graph) for graph in ("first", "second", "third")] == [0, 5, 12]
    ledger.enter("first", 6)  # a new version takes the place of the old one
    assert [ledger.before(graph) for graph in ("first", "second", "third")] == [0, 6, 13]


def test_what_nobody_can_call_any_more_holds_nothing() -> None:
    def compiled() -> None: ...

    ledger = Ledger()
    ledger.enter("first", 5)
    ledger.compiled("first", compiled)
    assert ledger.before("second") == 5
    del compiled
    gc.collect()
    assert ledger.before("second") == 0


def test_one_call_of_compile_has_one_ledger() -> None:
    options = {"memory_budget": "1GiB"}
    assert ledger_of(options) is ledger_of(options)
    assert ledger_of(dict(options)) is not ledger_of(options)


def test_models_one_after_the_other_do_not_count_for_each_other() -> None:
    options = {"memory_budget": 1 << 40}
    with recording() as record:
        for width in (32, 64):
            model = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
            compiled = torch.compile(model, backend="deepep", options=options)
            compiled(torch.randn(4, width)).sum().backward()
            del model, compiled
            torch._dynamo.reset()
            gc.collect()
    assert [report.pinned.others for report in record.budgets] == [0, 0]
