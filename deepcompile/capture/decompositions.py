"""Which ATen ops a captured graph may hold: our decompositions, then a choice of torch's.

An op is taken apart when the pieces are ops that the kernel builder fuses. Kept whole are plain
pointwise ops, reductions, views and indexing, which become kernel code as single nodes, and the
matrix products, convolutions, attention, pooling, sorting and scattering that ATen runs.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch._decomp import get_decompositions
from torch._ops import OpOverload, OpOverloadPacket
from torch.fx import GraphModule

from deepcompile.capture import (
    loss_decompositions,
    norm_decompositions,
    optimizer_decompositions,
    pooling_decompositions,
    small_decompositions,
)

Decomposition = Callable[..., Any]

# Names of overload packets (every overload that torch can take apart) or single overloads.
_FROM_TORCH = """
    _chunk_cat _embedding_bag _euclidean_dist.default _fused_moving_avg_obs_fq_helper _lazy_clone
    _native_batch_norm_legit.default _batch_norm_no_update.default _batch_norm_with_update.default
    _batch_norm_with_update_functional.default batch_norm_backward.default native_batch_norm.default
    _prelu_kernel _prelu_kernel_backward _reshape_alias _unsafe_index
    _unsafe_index_put _unsafe_masked_index _unsafe_masked_index_put_accumulate _unsafe_view
    _adaptive_avg_pool2d.default _upsample_nearest_exact1d _upsample_nearest_exact2d
    _upsample_nearest_exact3d _weight_norm_interface
    addcdiv addcmul addr affine_grid_generator alias_copy all aminmax
    avg_pool2d_backward baddbmm.default binary_cross_entropy binary_cross_entropy_backward
    binary_cross_entropy_with_logits block_diag celu channel_shuffle clamp_max clamp_min
    count_nonzero cudnn_batch_norm cudnn_batch_norm_backward deg2rad detach detach_copy diag_embed
    diagonal_backward diagonal_copy dist dot elu_backward.grad_input expand_as expand_copy eye fill
    floor_divide frac glu glu_backward hann_window hardshrink hardsigmoid hardsigmoid_backward
    hardswish hardswish_backward heaviside huber_loss huber_loss_backward im2col
    index_add index_copy index_fill
    isin isneginf isposinf l1_loss lerp linalg_cross linalg_vector_norm linspace
    log_sigmoid_backward log_sigmoid_forward logaddexp logaddexp2 logit logit_backward
    logspace logsumexp.default masked_fill miopen_batch_norm_backward mish
    mish_backward mse_loss mse_loss_backward multi_margin_loss multilabel_margin_loss_forward mv
    mvlgamma nan_to_num nansum narrow narrow_copy.default new_full new_ones new_zeros
    norm.Scalar norm.ScalarOpt_dim norm.ScalarOpt_dim_dtype norm.ScalarOpt_dtype ones ones_like
    pixel_shuffle pixel_unshuffle rad2deg reflection_pad1d reflection_pad1d_backward
    reflection_pad2d reflection_pad2d_backward reflection_pad3d reflection_pad3d_backward
    permute_copy.default repeat.default unbind_copy.int view_copy.default
    renorm replication_pad1d replication_pad2d replication_pad3d resize_as roll rot90
    rrelu_with_noise_backward rsub select_backward select_scatter sgn sinc slice_backward
    smooth_l1_loss smooth_l1_loss_backward soft_margin_loss soft_margin_loss_backward softshrink
    special_entr special_log_ndtr special_xlog1py special_zeta.self_scalar special_zeta.other_scalar
    split.Tensor split_with_sizes_copy squeeze.default squeeze.dim squeeze_copy stack
    std.correction std_mean.correction sum.default t t_copy take threshold trace transpose.int
    transpose_copy unbind unfold_backward unfold_copy unsafe_split.Tensor unsafe_split_with_sizes
    unsqueeze_copy upsample_bilinear2d.default upsample_bilinear2d.vec upsample_linear1d
    upsample_bicubic2d.default upsample_bicubic2d.vec
    upsample_nearest1d upsample_nearest2d upsample_nearest2d_backward upsample_nearest3d
    upsample_trilinear3d vdot view_as_complex xlogy zero zeros zeros_like
    max_pool2d_with_indices_backward.grad_input
"""

_NORMS_WITH_STATISTICS = frozenset(
    overload.overloadpacket.__name__ for overload in norm_decompositions.FORWARD
) | {"native_batch_norm"}


@functools.cache
def decomposition_table(*, round_statistics: bool = False) -> Mapping[OpOverload, Decomposition]:
    """ATen overload to the function that takes it apart, for AOTAutograd's tracing.

    `round_statistics` leaves the forward norms to ATen, which on the CPU rounds the mean and the
    reciprocal deviation of half-precision inputs; ours stay in float32, as only the backward pass
    reads them unless a program calls `torch.native_layer_norm` and the like itself.

    Ours win over torch's. Names that this torch does not have are left out, so the table serves
    several torch versions.
    """
    table: dict[Any, Decomposition] = dict(get_decompositions(_present(_FROM_TORCH.split())))
    table.update(norm_decompositions.BACKWARD)
    if not round_statistics:
        table.update(norm_decompositions.FORWARD)
    table.update(loss_decompositions.TABLE)
    table.update(small_decompositions.TABLE)
    table.update(pooling_decompositions.TABLE)
    table.update(optimizer_decompositions.TABLE)
    # There only once torch's own compiler has been imported, which AOTAutograd does.
    fused = getattr(torch.ops.prims, "fma", None)
    if fused is not None:
        table[fused.default] = optimizer_decompositions.multiply_add
    return table


def calls_norms_directly(gm: GraphModule) -> bool:
    """Whether the program itself asks for the row statistics of a norm."""
    return any(
        str(getattr(node.target, "__name__", "")).partition(".")[0] in _NORMS_WITH_STATISTICS
        for node in gm.graph.nodes
        if node.op == "call_function"
    )


def _present(names: list[str]) -> list[OpOverload | OpOverloadPacket]:
    found = []
    for name in names:
        try:
            found.append(operator.attrgetter(name)(torch.ops.aten))
        except AttributeError:
            continue
    return found
