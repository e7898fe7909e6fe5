"""The reference interpreter against torch. The kernels double as examples of the text form."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from deepcompile.ir import references
from deepcompile.ir.interpret import flat_storage, interpret
from deepcompile.ir.nest_text import parse_kernel
from deepcompile.ir.verify import verify_kernel


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def run(text: str, tensors: dict[str, torch.Tensor], **sizes: int) -> None:
    kernel = parse_kernel(text)
    verify_kernel(kernel)
    interpret(kernel, tensors, sizes)


SOFTMAX = """
kernel @softmax(in x: f32[s0, s1], out y: f32[s0, s1]) {
  sizes s0, s1
  axes p0: parallel s0, r0: reduced s1
  loop:
    v0: f32 = load x[p0*s1 + r0]
    v1: f32 = reduce max v0
  loop:
    v2: f32 = sub v0 v1
    v3: f32 = exp v2
    v4: f32 = reduce sum v3
  loop:
    v5: f32 = div v3 v4
    store y[p0*s1 + r0] v5
}
"""


@pytest.mark.parametrize("shape", [(5, 7), (1, 1), (3, 1), (0, 4), (4, 0), (0, 0)])
def test_softmax_of_dynamic_and_empty_sizes(shape):
    x, y = torch.randn(shape), torch.full(shape, math.nan)
    run(SOFTMAX, {"x": x, "y": y}, s0=shape[0], s1=shape[1])
    torch.testing.assert_close(y, x.softmax(1))


def test_softmax_of_infinities_and_nans():
    inf = math.inf
    rows = [[0.0, inf, 1], [-inf, -inf, -inf], [-inf, 0, 1], [math.nan, 0, 1]]
    x, y = torch.tensor(rows), torch.empty(4, 3)
    run(SOFTMAX, {"x": x, "y": y}, s0=4, s1=3)
    torch.testing.assert_close(y, x.softmax(1), equal_nan=True)


LAYER_NORM = """
kernel @layer_norm(in x: f32[6, 16], in w: f32[16], in b: f32[16], out y: f32[6, 16],
                   out mean: f32[6], out rstd: f32[6]) {
  axes p0: parallel 6, r0: reduced 16
  loop:
    v0: f32 = load x[16*p0 + r0]
    v1: f32 = reduce welford.mean v0
    v2: f32 = reduce welford.m2 v0
  row:
    v3: f32 = const 0.0625
    v4: f32 = mul v2 v3
    v5: f32 = const 1e-05
    v6: f32 = add v4 v5
    v7: f32 = rsqrt v6
    store mean[p0] v1
    store rstd[p0] v7
  loop:
    v8: f32 = sub v0 v1
    v9: f32 = mul v8 v7
    v10: f32 = load w[r0]
    v11: f32 = mul v9 v10
    v12: f32 = load b[r0]
    v13: f32 = add v11 v12
    store y[16*p0 + r0] v13
}
"""

LAYER_NORM_BACKWARD = """
kernel @layer_norm_backward(in g: f32[6, 16], in x: f32[6, 16], in w: f32[16], in mean: f32[6],
                            in rstd: f32[6], out dx: f32[6, 16], out dw: f32[16], out db: f32[16]) {
  axes p0: parallel 6, r0: reduced 16
  row:
    v0: f32 = load mean[p0]
    v1: f32 = load rstd[p0]
  loop:
    v2: f32 = load x[16*p0 + r0]
    v3: f32 = sub v2 v0
    v4: f32 = mul v3 v1
    v5: f32 = load g[16*p0 + r0]
    v6: f32 = load w[r0]
    v7: f32 = mul v5 v6
    v8: f32 = mul v7 v4
    v9: f32 = reduce sum v7
    v10: f32 = reduce sum v8
    v11: f32 = mul v5 v4
    v12: f32 = accumulate sum v11
    v13: f32 = accumulate sum v5
  row:
    v14: f32 = const 0.0625
    v15: f32 = mul v9 v14
    v16: f32 = mul v10 v14
  loop:
    v17: f32 = sub v7 v15
    v18: f32 = mul v4 v16
    v19: f32 = sub v17 v18
    v20: f32 = mul v19 v1
    store dx[16*p0 + r0] v20
  columns:
    store dw[r0] v12
    store db[r0] v13
}
"""


def test_layer_norm_forward_and_backward():
    x, g = torch.randn(6, 16, requires_grad=True), torch.randn(6, 16)
    w, b = torch.randn(16, requires_grad=True), torch.randn(16, requires_grad=True)
    expected = functional.layer_norm(x, (16,), w, b)
    y, mean, rstd = torch.empty(6, 16), torch.empty(6), torch.empty(6)
    run(LAYER_NORM, {"x": x, "w": w, "b": b, "y": y, "mean": mean, "rstd": rstd})
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(mean, x.mean(1))

    grads = {"dx": torch.empty(6, 16), "dw": torch.empty(16), "db": torch.empty(16)}
    run(LAYER_NORM_BACKWARD, {"g": g, "x": x, "w": w, "mean": mean, "rstd": rstd, **grads})
    for ours, theirs in zip(
        grads.values(), torch.autograd.grad(expected, (x, w, b), g), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


CROSS_ENTROPY = """
kernel @cross_entropy(in x: f32[4, 9], in target: i64[4], out loss: f32[]) {
  axes p0: parallel 4, r0: reduced 9
  loop:
    v0: f32 = load x[9*p0 + r0]
    v1: f32 = reduce lse.max v0
    v2: f32 = reduce lse.sum v0
  row:
    v3: f32 = log v2
    v4: f32 = add v3 v1
    v5: i64 = load target[p0]
    v6: i64 = const -100
    v7: b1 = ne v5 v6
    v8: f32 = load x[9*p0 + v5] if v7
    v9: f32 = sub v4 v8
    v10: f32 = const 0.0
    v11: f32 = where v7 v9 v10
    v12: f32 = cast v7 to f32
    v13: f32 = accumulate sum v11
    v14: f32 = accumulate sum v12
  total:
    v15: f32 = div v13 v14
    store loss[0] v15
}
"""


def test_cross_entropy_gathers_under_a_mask_and_totals():
    x, target, loss = torch.randn(4, 9), torch.tensor([3, -100, 0, 8]), torch.empty(())
    run(CROSS_ENTROPY, {"x": x, "target": target, "loss": loss})
    torch.testing.assert_close(loss, functional.cross_entropy(x, target))


def test_logsumexp_of_infinities():
    text = """
    kernel @logsumexp(in x: f32[4, s0], out y: f32[4]) {
      sizes s0
      axes p0: parallel 4, r0: reduced s0
      loop:
        v0: f32 = load x[p0*s0 + r0]
        v1: f32 = reduce lse.max v0
        v2: f32 = reduce lse.sum v0
      row:
        v3: f32 = log v2
        v4: f32 = add v3 v1
        store y[p0] v4
    }
    """
    inf, nan = math.inf, math.nan
    x = torch.tensor([[0.0, 1, 2], [-inf, -inf, -inf], [inf, 0, -inf], [nan, inf, 0]])
    y = torch.empty(4)
    run(text, {"x": x, "y": y}, s0=3)
    torch.testing.assert_close(y, x.logsumexp(1), equal_nan=True)
    run(text, {"x": torch.empty(4, 0), "y": y}, s0=0)
    assert y.tolist() == [-inf] * 4


REDUCTIONS = """
kernel @reductions(in x: f32[5, 6], out high: f32[5], out low: f32[5], out first_high: i64[5],
                   out first_low: i64[5], out total: f32[5], out times: f32[5]) {
  axes p0: parallel 5, r0: reduced 2, r1: reduced 3
  loop:
    v0: f32 = load x[6*p0 + 3*r0 + r1]
    v1: f32 = reduce max v0
    v2: f32 = reduce min v0
    v3: i64 = reduce argmax.index v0
    v4: i64 = reduce argmin.index v0
    v5: f32 = reduce sum v0
    v6: f32 = reduce prod v0
  row:
    store high[p0] v1
    store low[p0] v2
    store first_high[p0] v3
    store first_low[p0] v4
    store total[p0] v5
    store times[p0] v6
}
"""


def test_reductions_over_two_axes_with_ties_and_nans():
    x = torch.randn(5, 6)
    x[1] = 2.0
    x[2, 2:] = x[2, 1]
    x[3, 4] = x[3, 5] = math.nan
    x[4, 3] = math.inf
    out = {name: torch.empty(5) for name in ("high", "low", "total", "times")}
    out |= {name: torch.empty(5, dtype=torch.int64) for name in ("first_high", "first_low")}
    run(REDUCTIONS, {"x": x, **out})
    expected = {
        "high": x.amax(1),
        "low": x.amin(1),
        "first_high": x.argmax(1),
        "first_low": x.argmin(1),
        "total": x.sum(1),
        "times": x.prod(1),
    }
    torch.testing.assert_close(out, expected, equal_nan=True)


def test_bool_and_int_ops_and_reductions():
    text = """
    kernel @flags(in a: i32[4, 5], in m: b1[4, 5], out some: b1[4], out every: b1[4],
                  out count: i64[4], out z: i8[4, 5], out most: i32[5], out any_column: b1[5]) {
      axes p0: parallel 4, r0: reduced 5
      loop:
        v0: i32 = load a[5*p0 + r0]
        v1: b1 = load m[5*p0 + r0]
        v2: i32 = const 2
        v3: b1 = gt v0 v2
        v4: b1 = logical_and v1 v3
        v5: b1 = reduce any v4
        v6: b1 = reduce all v1
        v7: i64 = cast v4 to i64
        v8: i64 = reduce sum v7
        v9: i32 = mul v0 v2
        v10: i32 = cast v9 to i8
        store z[5*p0 + r0] v10
        v11: i32 = accumulate max v0
        v12: b1 = accumulate any v4
      row:
        store some[p0] v5
        store every[p0] v6
        store count[p0] v8
      columns:
        store most[r0] v11
        store any_column[r0] v12
    }
    """
    a, m = torch.randint(-100, 100, (4, 5), dtype=torch.int32), torch.rand(4, 5) > 0.4
    m[2] = True
    flags = m & (a > 2)
    expected = {
        "some": flags.any(1),
        "every": m.all(1),
        "count": flags.sum(1),
        "z": (a * 2).to(torch.int8),
        "most": a.amax(0),
        "any_column": flags.any(0),
    }
    out = {name: torch.empty_like(value) for name, value in expected.items()}
    run(text, {"a": a, "m": m, **out})
    torch.testing.assert_close(out, expected)


def test_bf16_rounds_at_a_cast_and_at_a_store_only():
    text = """
    kernel @bf16(in x: bf16[64], in w: f32[64], out kept: f32[64], out cut: f32[64],
                 out y: bf16[64]) {
      axes p0: parallel 64
      row:
        v0: f32 = load x[p0]
        v1: f32 = load w[p0]
        v2: f32 = mul v0 v1
        v3: f32 = cast v2 to bf16
        store kept[p0] v2
        store cut[p0] v3
        store y[p0] v2
    }
    """
    x, w = torch.randn(64).bfloat16(), torch.randn(64)
    kept, cut, y = torch.empty(64), torch.empty(64), torch.empty(64, dtype=torch.bfloat16)
    run(text, {"x": x, "w": w, "kept": kept, "cut": cut, "y": y})
    exact = x.float() * w
    torch.testing.assert_close(kept, exact, rtol=0, atol=0)
    torch.testing.assert_close(y, exact.bfloat16(), rtol=0, atol=0)
    torch.testing.assert_close(cut, exact.bfloat16().float(), rtol=0, atol=0)


def test_a_masked_load_pads_and_touches_nothing_outside():
    text = """
    kernel @pad(in x: f32[3], out y: f32[7]) {
      axes p0: parallel 7
      row:
        v0: b1 = in_range 0 <= p0 - 2 < 3
        v1: f32 = load x[p0 - 2] if v0
        store y[p0] v1
    }
    """
    x, y = torch.randn(3), torch.empty(7)
    run(text, {"x": x, "y": y})
    torch.testing.assert_close(y, functional.pad(x, (2, 2)))


def test_an_access_outside_of_its_buffer_is_an_error():
    text = """
    kernel @shift(in x: f32[3], out y: f32[3]) {
      axes p0: parallel 3
      row:
        v0: f32 = load x[p0 + 1]
        store y[p0] v0
    }
    """
    with pytest.raises(
        IndexError, match=r"element 3 of a buffer of 3: v0: f32 = load x\[p0 \+ 1\]"
    ):
        run(text, {"x": torch.randn(3), "y": torch.empty(3)})


def test_a_view_is_addressed_from_its_first_element():
    text = """
    kernel @transpose(in x: f32[4, 3], inout y: f32[3, 2]) {
      axes p0: parallel 3, p1: parallel 2
      row:
        v0: f32 = load x[3*p1 + p0]
        v1: f32 = load y[4*p0 + p1]
        v2: f32 = add v0 v1
        store y[4*p0 + p1] v2
    }
    """
    x, base = torch.randn(4, 3), torch.randn(3, 4)
    expected = base.clone()
    expected[:, 1:3] += x[2:].T
    run(text, {"x": x.T[:, 2:], "y": base[:, 1:3]})
    torch.testing.assert_close(base, expected)
    assert flat_storage(base[:, 1:3]).shape == (11,)


def test_floor_division_in_indices():
    text = """
    kernel @repeat(in x: f32[s0, 2], out y: f32[s0, 6]) {
      sizes s0
      axes p0: parallel 6*s0
      row:
        v0: f32 = load x[2*floordiv(p0, 6) + floordiv(mod(p0, 6), 3)]
        store y[p0] v0
    }
    """
    for rows in (0, 1, 4):
        x, y = torch.randn(rows, 2), torch.empty(rows, 6)
        run(text, {"x": x, "y": y}, s0=rows)
        torch.testing.assert_close(y, x.repeat_interleave(3, 1))


def test_a_reduction_over_everything_of_an_empty_tensor():
    text = """
    kernel @total(in x: f32[s0], out total: f32[], out high: f32[], out count: i64[]) {
      sizes s0
      axes p0: parallel s0
      row:
        v0: f32 = load x[p0]
        v1: f32 = accumulate sum v0
        v2: f32 = accumulate max v0
        v3: i64 = const 1
        v4: i64 = accumulate sum v3
      total:
        store total[0] v1
        store high[0] v2
        store count[0] v4
    }
    """
    for size in (0, 1, 1000):
        x = torch.randn(size)
        total, high, count = torch.empty(()), torch.empty(()), torch.empty((), dtype=torch.int64)
        run(text, {"x": x, "total": total, "high": high, "count": count}, s0=size)
        torch.testing.assert_close(total, x.sum())
        assert high.item() == max(x.tolist(), default=-math.inf)
        assert count.item() == size


def test_a_kernel_without_axes_runs_once():
    text = """
    kernel @step(inout n: i64[]) {
      row:
        v0: i64 = load n[0]
        v1: i64 = const 1
        v2: i64 = add v0 v1
        store n[0] v2
    }
    """
    n = torch.tensor(41)
    run(text, {"n": n})
    assert n.item() == 42


def test_sums_are_rounded_once():
    text = """
    kernel @sum(in x: f32[1, 100000], out y: f32[1]) {
      axes p0: parallel 1, r0: reduced 100000
      loop:
        v0: f32 = load x[r0]
        v1: f32 = reduce sum v0
      row:
        store y[p0] v1
    }
    """
    x, y = torch.rand(1, 100000), torch.empty(1)
    run(text, {"x": x, "y": y})
    assert y.item() == x.double().sum(1).float().item()


DROPOUT = """
kernel @dropout(in seed: i64[1], in x: f32[s0], out y: f32[s0], out noise: f32[s0]) {
  sizes s0
  axes p0: parallel s0
  row:
    v0: i64 = load seed[0]
    v1: f32 = load x[p0]
    v2: f32 = rand uniform v0 at p0
    v3: f32 = const 0.25
    v4: b1 = ge v2 v3
    v5: f32 = const 0.0
    v6: f32 = where v4 v1 v5
    store y[p0] v6
    v7: f32 = rand normal v0 at p0
    store noise[p0] v7
}
"""


def test_random_numbers_depend_on_seed_and_offset_alone():
    x, seed = torch.randn(20000).abs() + 1, torch.tensor([-(2**40) + 3])
    y, noise = torch.empty_like(x), torch.empty_like(x)
    run(DROPOUT, {"seed": seed, "x": x, "y": y, "noise": noise}, s0=20000)
    kept = y != 0
    assert torch.equal(y[kept], x[kept])
    assert abs(kept.float().mean().item() - 0.75) < 0.01
    assert abs(noise.mean().item()) < 0.03
    assert abs(noise.std().item() - 1) < 0.03

    again = torch.empty(10)
    run(DROPOUT, {"seed": seed, "x": x, "y": again, "noise": torch.empty(10)}, s0=10)
    assert torch.equal(again, y[:10])
    run(DROPOUT, {"seed": seed + 1, "x": x, "y": again, "noise": torch.empty(10)}, s0=10)
    assert not torch.equal(again != 0, kept[:10])


def test_philox_matches_the_published_vectors():
    # Random123's known answers for philox4x32-10: counter and key all zero, then all ones.
    # Our counter has two words, so only the first vector has a counter that it can take.
    words = [references.philox_u32(torch.tensor(0), torch.tensor(i)).item() for i in range(4)]
    assert words == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_philox_matches_a_scalar_implementation_in_unbounded_integers():
    def block(seed: int, counter: int) -> list[int]:
        low = 0xFFFFFFFF
        words = [counter & low, counter >> 32 & low, 0, 0]
        keys = [seed & low, seed >> 32 & low]
        for _ in range(10):
            a, b = 0xD2511F53 * words[0], 0xCD9E8D57 * words[2]
            words = [b >> 32 ^ words[1] ^ keys[0], b & low, a >> 32 ^ words[3] ^ keys[1], a & low]
            keys = [(keys[0] + 0x9E3779B9) & low, (keys[1] + 0xBB67AE85) & low]
        return words

    offsets = [0, 1, 5, 4 * (2**32) + 2, 2**62 + 3]
    for seed in (1, -1, 2**63 - 1, 0x0123456789ABCDEF):
        ours = references.philox_u32(torch.tensor(seed), torch.tensor(offsets)).tolist()
        assert ours == [block(seed, offset // 4)[offset % 4] for offset in offsets]


def test_a_tensor_of_another_dtype_is_an_error():
    with pytest.raises(TypeError, match="x is f32, but its tensor is torch"):
        run(SOFTMAX, {"x": torch.empty(1, 1).double(), "y": torch.empty(1, 1)}, s0=1, s1=1)


def test_columns_divided_by_a_total():
    text = """
    kernel @share(in x: f32[s0, 8], out y: f32[8]) {
      sizes s0
      axes p0: parallel s0, r0: reduced 8
      loop:
        v0: f32 = load x[8*p0 + r0]
        v1: f32 = accumulate sum v0
        v2: f32 = reduce sum v0
      row:
        v3: f32 = accumulate sum v2
      total:
        v4: f32 = const 1.0
        v5: f32 = div v4 v3
      columns:
        v6: f32 = mul v1 v5
        store y[r0] v6
    }
    """
    x, y = torch.rand(5, 8), torch.empty(8)
    run(text, {"x": x, "y": y}, s0=5)
    torch.testing.assert_close(y, x.sum(0) / x.sum())
