"""The monoid table agrees with torch and with itself."""

from __future__ import annotations

import pytest
import torch

from deepcompile.ir.monoids import MONOIDS, Monoid


@pytest.mark.parametrize("monoid", MONOIDS.values(), ids=lambda monoid: monoid.name)
def test_states_have_an_identity_of_their_arity(monoid: Monoid) -> None:
    assert len(monoid.state) == monoid.arity
    assert all(len(identity) == monoid.arity for identity in monoid.identity.values())


@pytest.mark.parametrize(
    ("name", "combine"),
    [
        ("sum", torch.add),
        ("prod", torch.mul),
        ("max", torch.maximum),
        ("min", torch.minimum),
        ("any", torch.logical_or),
        ("all", torch.logical_and),
    ],
)
def test_identities_change_nothing(name: str, combine: object) -> None:
    dtypes = {
        "f32": torch.float32,
        "f64": torch.float64,
        "i32": torch.int32,
        "i64": torch.int64,
        "b1": torch.bool,
    }
    for dtype, (identity,) in MONOIDS[name].identity.items():
        info = torch.finfo if "f" in dtype else torch.iinfo
        edges = (
            [0, 1]
            if dtype == "b1"
            else [info(dtypes[dtype]).min, -1, 0, 1, info(dtypes[dtype]).max]
        )
        x = torch.tensor(edges, dtype=dtypes[dtype])
        assert callable(combine)
        assert torch.equal(combine(x, torch.tensor(identity, dtype=dtypes[dtype])), x)
