"""The reference of random numbers: known answers, moments, numbers and tensors alike."""

from __future__ import annotations

import pytest
import torch

from deepcompile.ir import references


def test_philox_known_answers() -> None:
    """Random123's kat_vectors: philox 4x32 10."""
    assert [references.philox_u32(0, k) for k in range(4)] == [
        0x6627E8D5,
        0xE169C58D,
        0xBC57AC4C,
        0x9B00DBD8,
    ]


def test_random_numbers_have_the_right_moments() -> None:
    at = torch.arange(200_000)
    u, z = references.uniform(5, at), references.normal(5, at)
    assert u.dtype == z.dtype == torch.float32
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 0.005
    assert abs(u.var() - 1 / 12) < 0.001
    assert abs(z.mean()) < 0.01
    assert abs(z.var() - 1) < 0.02
    assert abs((z[::2] * z[1::2]).mean()) < 0.01
    assert not torch.equal(u, references.uniform(6, at))


def test_scalars_and_tensors_agree() -> None:
    at = torch.arange(8)
    assert references.uniform(9, at).tolist() == [references.uniform(9, k) for k in range(8)]
    assert references.normal(9, at).tolist() == pytest.approx(
        [references.normal(9, k) for k in range(8)], rel=1e-5
    )
