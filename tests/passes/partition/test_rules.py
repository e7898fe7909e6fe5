"""Every rule, by brute force: each way to share an operation is run on simulated ranks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from deepcompile.capture import philox
from deepcompile.ir.mesh import Mesh
from tests.passes.partition.one_call import Call, Zeros, call, mistakes

aten = torch.ops.aten
F64 = torch.float64


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=F64)


def ints(high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape)


def pointwise() -> Iterator[Call]:
    x, y = rand(4, 8), rand(4, 8)
    for unary in (aten.neg, aten.clone, aten.alias, aten.exp, aten.relu, aten.silu, aten.rsqrt):
        yield call(unary.default, x.abs() + 0.1)
    yield call(aten._to_copy.default, rand(4, 8).float(), dtype=F64)
    yield call(aten._to_copy.default, x, dtype=torch.float32)
    yield call(aten._to_copy.default, ints(5, 4, 8), dtype=torch.float64)
    for binary in (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor):
        yield call(binary, x, y)
        yield call(binary, x, x)
        yield call(binary, x, 3.0)
        yield call(binary, rand(2, 4, 8), rand(8))
        yield call(binary, rand(1, 8), rand(4, 1))
    yield call(aten.add.Tensor, x, y, alpha=2)
    yield call(aten.sub.Tensor, x, 1.5)
    yield call(aten.mul.Scalar, x, 2.0)
    yield call(aten.div.Scalar, x, 2.0)
    yield call(aten.div.Tensor_mode, x, y, rounding_mode="floor")
    yield call(aten.pow.Tensor_Scalar, x, 2)
    yield call(aten.clamp.default, x, -0.5, 0.5)
    yield call(aten.clamp_min.default, x, 0.1)
    yield call(aten.maximum.default, x, y)
    yield call(aten.minimum.default, x, rand(8))
    yield call(aten.where.self, x > 0, x, y)
    yield call(aten.where.self, x > 0, x, Zeros(()))
    yield call(aten.where.self, x > 0, Zeros(()), x)
    yield call(aten.where.self, rand(8) > 0, rand(4, 1), y)
    yield call(aten.masked_fill.Scalar, x, y > 0, 0)
    yield call(aten.masked_fill.Scalar, x, y > 0, -1.0)
    yield call(aten.eq.Scalar, ints(3, 4, 8), 1)
    yield call(aten.bitwise_and.Tensor, x > 0, y > 0)
    yield call(aten.logical_not.default, x > 0)
    yield call(aten.silu_backward.default, x, y)
    yield call(aten.gelu_backward.default, x, y)
    yield call(aten.tanh_backward.default, x, y)
    yield call(aten.sigmoid_backward.default, x, y)
    yield call(aten.threshold_backward.default, x, y, 0)
    yield call(aten.copy.default, x, y)
    yield call(aten.copy.default, x, rand(8))
    yield call(aten.scalar_tensor.default, 2.0)
    yield call(aten.addcmul.default, x, y, rand(8), value=2.0)
    yield call(aten.fill.Scalar, x, 2.0)


def views() -> Iterator[Call]:
    x = rand(4, 8, 4)
    yield call(aten.permute.default, x, [2, 0, 1])
    yield call(aten.transpose.int, x, -1, 0)
    yield call(aten.t.default, rand(4, 8))
    yield call(aten.expand.default, rand(4, 1, 4), [4, 8, -1])
    yield call(aten.expand.default, rand(8, 1), [4, 8, 4])
    yield call(aten.unsqueeze.default, x, 1)
    yield call(aten.squeeze.dims, rand(4, 1, 8, 1), [1, 3])
    yield call(aten.squeeze.dim, rand(4, 1, 8), 1)
    for source, target in (
        ((4, 8, 4), [4, 32]),
        ((4, 8, 4), [32, 4]),
        ((4, 8, 4), [128]),
        ((4, 32), [4, 8, 4]),
        ((4, 32), [4, 4, 2, 4]),
        ((32, 4), [4, 8, 4]),
        ((4, 8, 4), [4, 4, 2, 4]),
        ((8, 6), [6, 8]),
        ((2, 12), [8, 3]),
        ((1, 8, 4), [8, 1, 4]),
        ((4, 8), [1, 32]),
    ):
        yield call(aten.view.default, rand(*source), target)
        yield call(aten.reshape.default, rand(*source), target)
    yield call(aten.flip.default, x, [1])
    yield call(aten.roll.default, x, [1], [1])
    yield call(aten.roll.default, x, [3])
    yield call(aten.tril.default, rand(8, 4))
    yield call(aten.triu.default, rand(2, 4, 8), 1)
    yield call(aten.diagonal.default, rand(4, 8, 8), 0, 1, 2)
    yield call(aten.unfold.default, rand(4, 8), 1, 4, 2)
    yield call(aten.as_strided.default, x, [4, 32], [32, 1])
    yield call(aten.as_strided.default, rand(8, 4).t(), [8, 2], [4, 2])
    yield call(aten.as_strided_scatter.default, x, rand(4, 8), [4, 8], [32, 1])
    yield call(
        aten.view.default,
        rand(4, 8, 2, 4).transpose(1, 2).contiguous().transpose(1, 2),
        [4, 8, 2, 2, 2],
    )
    yield call(aten.as_strided.default, x, [4, 8, 2], [32, 4, 1])


def joining() -> Iterator[Call]:
    yield call(aten.cat.default, [rand(4, 8), rand(4, 4), rand(4, 8)], 1)
    yield call(aten.cat.default, [rand(4, 8), rand(4, 8)])
    yield call(aten.stack.default, [rand(4, 8), rand(4, 8)], 1)
    yield call(aten.stack.default, [rand(4, 8), rand(4, 8)], -1)
    yield call(aten.split_with_sizes.default, rand(4, 16), [8, 4, 4], 1)
    yield call(aten.split_with_sizes.default, rand(12, 4), [8, 4])
    yield call(aten.split.Tensor, rand(4, 12), 4, -1)
    yield call(aten.unbind.int, rand(4, 3, 8), 1)
    yield call(aten.select.int, rand(4, 3, 8), 1, 2)
    yield call(aten.select.int, rand(4, 8, 8), 1, -1)
    yield call(aten.slice.Tensor, rand(4, 8), 1, 0, 4)
    yield call(aten.slice.Tensor, rand(4, 16), 1, 4, 12)
    yield call(aten.slice.Tensor, rand(4, 16), -1, -4)
    yield call(aten.slice.Tensor, rand(4, 8), 0, 0, 9223372036854775807)
    yield call(aten.slice.Tensor, rand(4, 16), 1, 0, 16, 2)
    yield call(aten.slice_scatter.default, rand(4, 16), rand(4, 8), 1, 4, 12)
    yield call(aten.slice_scatter.default, rand(4, 16), rand(4, 16), 1)
    yield call(aten.constant_pad_nd.default, rand(4, 8), [0, 4])
    yield call(aten.constant_pad_nd.default, rand(4, 8, 4), [1, 1, 0, 0], 2.0)
    yield call(aten.constant_pad_nd.default, rand(4, 8), [-2, -2])
    yield call(aten.select_backward.default, rand(4, 8), [4, 3, 8], 1, 2)
    yield call(aten.select_scatter.default, rand(4, 3, 8), rand(4, 8), 1, 2)
    yield call(aten.slice_backward.default, rand(4, 8), [4, 16], 1, 4, 12, 1)


def reductions() -> Iterator[Call]:
    x = rand(4, 8, 4)
    for dims in ([1], [-1, 0], [0, 1, 2]):
        for keep in (False, True):
            yield call(aten.sum.dim_IntList, x, dims, keep)
            yield call(aten.mean.dim, x, dims, keep)
            yield call(aten.amax.default, x, dims, keep)
            yield call(aten.amin.default, x, dims, keep)
            yield call(aten.var_mean.correction, x, dims, correction=0, keepdim=keep)
            yield call(aten.var.correction, x, dims, correction=1, keepdim=keep)
            yield call(aten.logsumexp.default, x, dims, keep)
    yield call(aten.sum.default, x)
    yield call(aten.sum.dim_IntList, x, None)
    yield call(aten.sum.dim_IntList, x, [1], dtype=torch.float32)
    yield call(aten.sum.default, x > 0)
    yield call(aten.sum.dim_IntList, ints(9, 4, 8), [1])
    yield call(aten.mean.default, x)
    yield call(aten.max.default, x)
    yield call(aten.min.default, x)
    yield call(aten.max.dim, x, 1)
    yield call(aten.prod.dim_int, x, 1)
    yield call(aten.argmax.default, x, 1)
    yield call(aten.argmax.default, x, -1, True)
    yield call(aten.argmax.default, x)
    yield call(aten.argmin.default, x, 2)
    yield call(aten.any.dim, x > 1, 1)
    yield call(aten.any.default, x > 1)
    yield call(aten.all.dim, x > -1, 1, True)
    yield call(aten.cumsum.default, x, 1)
    yield call(aten.cumsum.default, ints(5, 4, 8), -1)
    yield call(aten.cumprod.default, x, 1)
    yield call(aten._softmax.default, x, -1, False)
    yield call(aten._log_softmax.default, x, 1, False)
    soft = torch.softmax(x, -1)
    yield call(aten._softmax_backward_data.default, x, soft, -1, F64)
    yield call(aten._log_softmax_backward_data.default, x, soft.log(), -1, F64)
    yield call(aten.topk.default, x, 3)
    yield call(aten.topk.default, x, 2, 1)
    yield call(aten.sort.default, x, 1)
    yield call(aten.sort.stable, x, stable=True, dim=0)
    yield call(aten.histc.default, ints(4, 32).double(), 4, 0, 3)
    yield call(aten.min.dim, x, 0, True)


def products() -> Iterator[Call]:
    yield call(aten.mm.default, rand(4, 8), rand(8, 12))
    square = rand(4, 4)
    yield call(aten.mm.default, square, square)
    yield call(aten.bmm.default, rand(4, 4, 8), rand(4, 8, 12))
    yield call(aten.addmm.default, rand(12), rand(4, 8), rand(8, 12))
    yield call(aten.addmm.default, rand(4, 12), rand(4, 8), rand(8, 12), beta=0.5, alpha=2)
    yield call(aten.addmm.default, rand(1, 12), rand(4, 8), rand(8, 12))
    yield call(aten.baddbmm.default, rand(4, 1, 12), rand(4, 4, 8), rand(4, 8, 12), beta=2)
    yield call(aten.dot.default, rand(8), rand(8))
    yield call(aten.mv.default, rand(4, 8), rand(8))
    yield call(aten.linear.default, rand(2, 4, 8), rand(12, 8), rand(12))


def convolutions() -> Iterator[Call]:
    def forward(x: Tensor, w: Tensor, b: Tensor | None, transposed: bool, groups: int) -> Call:
        rank = x.dim() - 2
        arguments = [[1] * rank, [1] * rank, [1] * rank, transposed, [0] * rank, groups]
        return call(aten.convolution.default, x, w, b, *arguments)

    def backward(x: Tensor, w: Tensor, transposed: bool, groups: int, bias: bool = True) -> Call:
        rank = x.dim() - 2
        arguments = [[1] * rank, [1] * rank, [1] * rank, transposed, [0] * rank, groups]
        y = aten.convolution.default(x, w, None, *arguments)
        out = w.shape[1] * groups if transposed else w.shape[0]
        mask = [True, True, bias]
        return call(
            aten.convolution_backward.default,
            torch.randn_like(y),
            x,
            w,
            [out] if bias else None,
            *arguments,
            mask,
        )

    x = rand(4, 8, 4, 4)
    yield forward(x, rand(4, 8, 3, 3), rand(4), False, 1)
    yield forward(x, rand(4, 8, 3, 3), None, False, 1)
    yield forward(x, rand(8, 4, 3, 3), rand(4), True, 1)
    yield forward(x, rand(8, 1, 3, 3), rand(8), False, 8)
    yield forward(x, rand(16, 1, 3, 3), rand(16), False, 8)
    yield forward(x, rand(8, 2, 3, 3), rand(8), False, 4)
    yield forward(x, rand(8, 2, 3, 3), rand(8), True, 4)
    yield forward(rand(4, 8, 8), rand(4, 8, 3), rand(4), False, 1)
    yield backward(x, rand(4, 8, 3, 3), False, 1)
    yield backward(x, rand(4, 8, 3, 3), False, 1, bias=False)
    yield backward(x, rand(8, 4, 3, 3), True, 1)
    yield backward(x, rand(8, 1, 3, 3), False, 8)
    yield backward(x, rand(16, 1, 3, 3), False, 8)
    yield backward(x, rand(8, 2, 3, 3), False, 4)
    yield backward(x, rand(8, 2, 3, 3), True, 4)
    yield backward(rand(4, 8, 8), rand(4, 8, 3), False, 1)
    pooled = aten.max_pool2d_with_indices.default(x, [2, 2], [2, 2])
    yield call(aten.max_pool2d_with_indices.default, x, [2, 2], [2, 2])
    yield call(
        aten.max_pool2d_with_indices_backward.default,
        torch.randn_like(pooled[0]),
        x,
        [2, 2],
        [2, 2],
        [0, 0],
        [1, 1],
        False,
        pooled[1],
    )
    yield call(aten.avg_pool2d.default, x, [2, 2], [2, 2])
    yield call(
        aten.avg_pool2d_backward.default,
        rand(4, 8, 2, 2),
        x,
        [2, 2],
        [2, 2],
        [0, 0],
        False,
        True,
        None,
    )
    yield call(aten._adaptive_avg_pool2d.default, x, [2, 2])
    yield call(aten._adaptive_avg_pool2d_backward.default, rand(4, 8, 2, 2), x)
    yield call(aten.upsample_nearest2d.default, x, [8, 8])
    yield call(aten.upsample_nearest2d_backward.default, rand(4, 8, 8, 8), [8, 8], [4, 8, 4, 4])
    yield call(aten.upsample_bilinear2d.default, x, [8, 8], False)
    yield call(
        aten.upsample_bilinear2d_backward.default, rand(4, 8, 8, 8), [8, 8], [4, 8, 4, 4], False
    )


def norms() -> Iterator[Call]:
    x, w, b = rand(4, 4, 8), rand(8), rand(8)
    _, mean, rstd = aten.native_layer_norm.default(x, [8], w, b, 1e-5)
    yield call(aten.native_layer_norm.default, x, [8], w, b, 1e-5)
    yield call(aten.native_layer_norm.default, x, [8], None, None, 1e-5)
    yield call(
        aten.native_layer_norm_backward.default,
        rand(4, 4, 8),
        x,
        [8],
        mean,
        rstd,
        w,
        b,
        [True, True, True],
    )
    yield call(aten._fused_rms_norm.default, x, [8], w, 1e-5)
    image = rand(4, 8, 4, 4)
    yield call(aten.native_group_norm.default, image, rand(8), rand(8), 4, 8, 16, 4, 1e-5)
    _, mean, rstd = aten.native_group_norm.default(image, w, b, 4, 8, 16, 4, 1e-5)
    yield call(
        aten.native_group_norm_backward.default,
        rand(4, 8, 4, 4),
        image,
        mean,
        rstd,
        w,
        4,
        8,
        16,
        4,
        [True, True, True],
    )
    yield call(
        aten._native_batch_norm_legit_functional.default,
        image,
        w,
        b,
        rand(8),
        rand(8).abs(),
        True,
        0.1,
        1e-5,
    )
    yield call(
        aten._native_batch_norm_legit_no_training.default,
        image,
        w,
        b,
        rand(8),
        rand(8).abs(),
        0.1,
        1e-5,
    )


def indexing() -> Iterator[Call]:
    table = rand(8, 12)
    yield call(aten.embedding.default, table, ints(8, 4, 4))
    yield call(aten.embedding.default, table, ints(8, 4, 4), 1)
    yield call(aten.embedding_dense_backward.default, rand(4, 4, 12), ints(8, 4, 4), 8, -1, False)
    yield call(aten.embedding_dense_backward.default, rand(4, 4, 12), ints(8, 4, 4), 8, 3, False)
    yield call(aten.embedding_dense_backward.default, rand(4, 4, 12), ints(8, 4, 4), 8, -1, True)
    yield call(aten.gather.default, rand(4, 8), 1, ints(8, 4, 4))
    yield call(aten.gather.default, rand(4, 8), 1, ints(8, 2, 4))
    yield call(aten.gather.default, rand(4, 8, 4), 0, ints(4, 8, 8, 4))
    yield call(aten.index_select.default, rand(4, 8), 1, ints(8, 4))
    yield call(aten.index.Tensor, table, [ints(8, 4)])
    yield call(aten.index.Tensor, table, [ints(16, 4) - 8])
    yield call(aten.index.Tensor, rand(4, 8, 12), [None, ints(8, 4, 2)])
    yield call(aten.index.Tensor, rand(4, 8, 12), [ints(4, 4), ints(8, 4)])
    yield call(aten.index.Tensor, rand(4, 8, 12), [ints(4, 4, 1), ints(8, 2)])
    yield call(aten.index.Tensor, rand(4, 8, 12), [ints(4, 4), None, ints(12, 4)])
    yield call(aten.index.Tensor, rand(4, 8, 12, 4), [None, ints(8, 4), ints(12, 1)])
    base = rand(4, 8)
    yield call(aten.scatter.src, base, 1, ints(8, 4, 4), rand(4, 4))
    yield call(aten.scatter.src, base, 1, torch.arange(8).expand(4, 8).flip(1), rand(4, 8))
    yield call(aten.scatter.value, base, 1, ints(8, 4, 4), 2.0)
    yield call(aten.scatter.value, base, 0, ints(4, 2, 8), 2.0)
    yield call(aten.scatter_add.default, base, 1, ints(8, 4, 4), rand(4, 4))
    yield call(aten.scatter_add.default, base, 1, ints(8, 4, 4), rand(4, 8))
    yield call(aten.scatter_reduce.two, base, 1, ints(8, 4, 4), rand(4, 4), "sum")
    yield call(aten.index_put.default, base, [ints(4, 4)], rand(4, 8), True)
    yield call(aten.index_put.default, base, [torch.tensor([3, 1])], rand(2, 8))
    yield call(aten.index_put.default, base, [torch.tensor([-1, 1])], rand(8))
    yield call(aten.index_put.default, base, [ints(4, 4, 2)], rand(4, 2, 8), True)
    yield call(aten.index_put.default, base, [ints(4, 8), ints(8, 8)], rand(8), True)
    yield call(aten.index_put.default, base, [ints(4, 8), ints(8, 8)], rand(), True)
    yield call(aten.index_put.default, base, [None, ints(8, 4)], rand(4, 4), True)
    yield call(aten.index_put.default, base, [rand(4) > 0], rand())
    yield call(aten.index_put.default, base, [torch.tensor([3, 1]), torch.tensor([0, 6])], rand(2))
    yield call(
        aten.index_put.default, rand(4, 8, 12), [ints(4, 4), None, ints(12, 4)], rand(4, 8), True
    )
    yield call(
        aten.index_put.default, rand(2, 8, 4), [None, torch.tensor([[3], [1]])], rand(2, 1, 4)
    )
    yield call(aten.searchsorted.Tensor, rand(4, 8).sort(-1)[0], rand(4, 8))
    yield call(aten.index_put.default, base, [rand(4, 8) > 0], rand())
    yield call(aten.index_add.default, base, 1, ints(8, 4), rand(4, 4))
    yield call(aten._unsafe_index.Tensor, rand(4, 8, 4, 4), [None, None, ints(4, 8, 1), ints(4, 8)])
    yield call(
        aten._unsafe_index_put.default,
        rand(4, 8, 4, 4),
        [None, None, ints(4, 8, 1), ints(4, 8)],
        rand(4, 8, 8, 8),
        True,
    )
    yield call(aten.searchsorted.Tensor, torch.arange(8.0), rand(4, 8).float())
    yield call(aten.bucketize.Tensor, rand(4, 8), torch.arange(8.0, dtype=F64))


def creation() -> Iterator[Call]:
    yield call(aten.full.default, [4, 8], 2.0)
    yield call(aten.full.default, [], 2.0)
    yield call(aten.full_like.default, rand(4, 8), 2.0)
    yield call(aten.zeros_like.default, rand(4, 8))
    yield call(aten.zeros.default, [4, 8])
    yield call(aten.new_zeros.default, rand(4, 8), [8, 4])
    yield call(aten.arange.default, 8)
    yield call(aten.arange.start, 3, 11)
    yield call(aten.arange.start_step, 3, 19, 2)
    yield call(aten.arange.start_step, 3, 18, 2, dtype=F64)
    yield call(aten.arange.start_step, 8, 0, -1)
    yield call(
        torch.ops.prims.iota.default,
        8,
        start=3,
        step=2,
        dtype=torch.int64,
        device=torch.device("cpu"),
        requires_grad=False,
    )


def attention() -> Iterator[Call]:
    flash = aten._scaled_dot_product_flash_attention_for_cpu
    q, k, v = rand(4, 4, 6, 8), rand(4, 4, 6, 8), rand(4, 4, 6, 8)
    yield call(flash.default, q, k, v, 0.0, True)
    for few in (rand(4, 2, 6, 8), rand(4, 1, 6, 8)):
        out, lse = flash.default(q, few, few)
        yield call(flash.default, q, few, few + 1.0)
        yield call(
            aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
            rand(4, 4, 6, 8),
            q,
            few,
            few + 1.0,
            out,
            lse,
            0.0,
            False,
        )
    q12, k3 = rand(1, 12, 6, 8), rand(1, 3, 6, 8)
    yield call(flash.default, q12, k3, k3 + 1.0)
    for mask in (rand(6, 6), rand(4, 1, 6, 6), rand(4, 4, 6, 6), rand(1, 1, 6, 6)):
        yield call(flash.default, q, k, v, attn_mask=mask)
        out, lse = flash.default(q, k, v, attn_mask=mask)
        yield call(
            aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
            rand(4, 4, 6, 8),
            q,
            k,
            v,
            out,
            lse,
            0.0,
            False,
            attn_mask=mask,
        )


def draws() -> Iterator[Call]:
    seed = torch.tensor([-(3**39)])
    for kind in (philox.philox_uniform, philox.philox_normal):
        for size in ([8], [4, 8, 4]):
            yield call(
                kind, seed, 3, size, dtype=torch.float32, device=torch.device("cpu"), bitwise=True
            )


def experts() -> Iterator[Call]:
    pytest.importorskip("transformers.integrations.moe")
    fallback = torch.ops.transformers.grouped_mm_fallback.default
    backward = torch.ops.transformers.grouped_mm_fallback_backward.default
    matrices = rand(4, 4, 8)
    for ends in ([2, 2, 9, 12], [0, 5, 7, 12], [0, 0, 0, 12]):
        offs = torch.tensor(ends, dtype=torch.int32)
        yield call(fallback, rand(12, 4), matrices, offs)
        yield call(backward, rand(12, 4), matrices, offs, rand(12, 8))
        half = torch.bfloat16
        left, right = ints(4, 12, 32).to(half), ints(4, 12, 64).to(half)
        yield call(aten._grouped_mm.default, left, ints(4, 4, 32, 64).to(half), offs=offs)
        yield call(aten._grouped_mm.default, left, ints(4, 4, 64, 32).to(half).mT, offs)
        yield call(aten._grouped_mm.default, left.t(), right, offs=offs)


FAMILIES = (
    pointwise, views, joining, reductions, products, convolutions, norms, indexing, creation,
    attention, draws, experts,
)  # fmt: skip
MESHES = ("tp=2", "tp=4", "a=2,b=2")
MARKED = [pytest.param(mesh, marks=[pytest.mark.slow] * (mesh == "tp=4")) for mesh in MESHES]
MOST = {"tp=2": 60, "tp=4": 60, "a=2,b=2": 12}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
@pytest.mark.parametrize("mesh", MARKED)
def test_each_way_to_share_an_operation_computes_it(family, mesh) -> None:
    torch.manual_seed(0)
    found = [
        mistake for given in family() for mistake in mistakes(given, Mesh.of(mesh, ()), MOST[mesh])
    ]
    assert not found, "\n".join([f"{len(found)} mistakes", *found[:40]])


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
@pytest.mark.parametrize("mesh", ["tp=2", "a=2,b=2"])
def test_each_way_in_pieces_computes_it(family, mesh) -> None:
    torch.manual_seed(0)
    found = [
        mistake
        for given in family()
        for mistake in mistakes(given, Mesh.of(mesh, ()), MOST[mesh], pieces=True)
    ]
    assert not found, "\n".join([f"{len(found)} mistakes", *found[:40]])
