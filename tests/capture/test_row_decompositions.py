"""Norms, softmax and losses: as precise as ATen, and only row statistics saved for backward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

ROWS, COLUMNS = 24, 40


def leaf(*shape, dtype=torch.float32, scale=1.0, shift=0.0):
    return (torch.randn(*shape) * scale + shift).to(dtype).requires_grad_()


def run(function, inputs, cotangent):
    """Output and gradients of `function`, on fresh leaves."""
    leaves = [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]
    out = function(*leaves)
    out.backward(cotangent.to(out.dtype))
    return [out.detach(), *(x.grad for x in leaves if x.requires_grad)]


def assert_as_precise_as_eager(capture, function, *inputs):
    """Error against float64 at most twice that of eager, or close to machine precision."""
    cotangent = torch.randn_like(function(*inputs))
    exact_inputs = [x.double() if x.is_floating_point() else x for x in inputs]
    exact_inputs = [
        x.detach().requires_grad_(y.requires_grad)
        for x, y in zip(exact_inputs, inputs, strict=True)
    ]
    exact = run(function, exact_inputs, cotangent.double())
    eager = run(function, inputs, cotangent)
    ours = run(capture.compile(function), inputs, cotangent)
    assert not capture.events
    for reference, theirs, mine in zip(exact, eager, ours, strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.shape == theirs.shape
        error, allowed = (mine - reference).norm(), 2 * (theirs - reference).norm()
        assert error <= allowed + 8 * torch.finfo(mine.dtype).eps * reference.norm()


DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
class TestPrecision:
    def test_layer_norm(self, capture, dtype):
        x = leaf(ROWS, COLUMNS, dtype=dtype, shift=5.0)
        w, b = leaf(COLUMNS, dtype=dtype), leaf(COLUMNS, dtype=dtype)
        assert_as_precise_as_eager(
            capture, lambda x, w, b: F.layer_norm(x, (COLUMNS,), w, b), x, w, b
        )

    def test_layer_norm_over_two_dimensions_without_bias(self, capture, dtype):
        x, w = leaf(3, 4, 5, 6, dtype=dtype), leaf(5, 6, dtype=dtype)
        assert_as_precise_as_eager(capture, lambda x, w: F.layer_norm(x, (5, 6), w), x, w)

    def test_rms_norm(self, capture, dtype):
        x, w = leaf(ROWS, COLUMNS, dtype=dtype, scale=3.0), leaf(COLUMNS, dtype=dtype)
        assert_as_precise_as_eager(capture, lambda x, w: F.rms_norm(x, (COLUMNS,), w), x, w)

    def test_group_norm(self, capture, dtype):
        x, w, b = leaf(3, 8, 5, 5, dtype=dtype), leaf(8, dtype=dtype), leaf(8, dtype=dtype)
        assert_as_precise_as_eager(capture, lambda x, w, b: F.group_norm(x, 2, w, b), x, w, b)

    @pytest.mark.parametrize("dim", [-1, 0])
    def test_softmax(self, capture, dtype, dim):
        x = leaf(ROWS, COLUMNS, dtype=dtype, scale=4.0)
        assert_as_precise_as_eager(capture, lambda x: torch.softmax(x, dim), x)

    def test_log_softmax_of_large_values(self, capture, dtype):
        x = leaf(ROWS, COLUMNS, dtype=dtype, shift=500.0)
        assert_as_precise_as_eager(capture, lambda x: torch.log_softmax(x, -1), x)

    @pytest.mark.parametrize("training", [True, False])
    def test_batch_norm(self, capture, dtype, training):
        mean, var = torch.randn(6), torch.rand(6) + 0.5
        x, w, b = leaf(4, 6, 3, 3, dtype=dtype), leaf(6, dtype=dtype), leaf(6, dtype=dtype)

        def f(x, w, b):
            return F.batch_norm(x, mean.to(x.dtype), var.to(x.dtype), w, b, training=training)

        assert_as_precise_as_eager(capture, f, x, w, b)


CROSS_ENTROPY = {
    "mean": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "weights": {"weight": True},
    "weights-sum": {"weight": True, "reduction": "sum"},
    "weights-none": {"weight": True, "reduction": "none"},
    "smoothing": {"label_smoothing": 0.1},
    "smoothing-weights": {"label_smoothing": 0.1, "weight": True},
    "ignore-0": {"ignore_index": 0},
}


class TestCrossEntropy:
    @staticmethod
    def options(case):
        options = dict(CROSS_ENTROPY[case])
        if "weight" in options:
            options["weight"] = torch.rand(COLUMNS) + 0.1
        return options

    @pytest.mark.parametrize("case", CROSS_ENTROPY)
    def test_class_targets(self, capture, case):
        target = torch.randint(0, COLUMNS, (ROWS,))
        target[::5] = CROSS_ENTROPY[case].get("ignore_index", -100)
        options = self.options(case)

        def f(x):
            weight = options.get("weight")
            cast = {} if weight is None else {"weight": weight.to(x.dtype)}
            return F.cross_entropy(x, target, **(options | cast))

        assert_as_precise_as_eager(capture, f, leaf(ROWS, COLUMNS, scale=3.0))

    def test_probability_targets(self, capture):
        target = torch.rand(ROWS, COLUMNS).softmax(-1)
        assert_as_precise_as_eager(
            capture,
            lambda x: F.cross_entropy(x, target.to(x.dtype), label_smoothing=0.2),
            leaf(ROWS, COLUMNS),
        )

    def test_spatial_targets(self, capture):
        target = torch.randint(0, 5, (2, 3, 4))
        assert_as_precise_as_eager(
            capture, lambda x: F.cross_entropy(x, target, ignore_index=2), leaf(2, 5, 3, 4)
        )

    def test_one_sample_without_batch(self, capture):
        target = torch.tensor(3)
        assert_as_precise_as_eager(capture, lambda x: F.cross_entropy(x, target), leaf(5))

    def test_half_precision_logits(self, capture):
        target = torch.randint(0, COLUMNS, (ROWS,))
        for dtype in DTYPES[1:]:
            x = leaf(ROWS, COLUMNS, dtype=dtype)
            assert_as_precise_as_eager(capture, lambda x: F.cross_entropy(x, target), x)

    def test_all_targets_ignored_is_nan_as_in_eager(self, capture):
        target = torch.full((ROWS,), -100)
        x = leaf(ROWS, COLUMNS)
        assert capture.compile(F.cross_entropy)(x, target).isnan()

    def test_the_gradient_holds_no_scatter(self, capture):
        capture.compile(F.cross_entropy)(
            leaf(ROWS, COLUMNS), torch.randint(0, COLUMNS, (ROWS,))
        ).backward()
        targets = {str(node.target) for node in capture.graph("backward").graph.nodes}
        assert not any("scatter" in target or "index_put" in target for target in targets)


class TestSpecialValues:
    def test_infinite_logits(self, capture):
        x = torch.tensor([[0.0, -torch.inf, 1.0], [-torch.inf] * 3, [torch.inf, 0.0, 0.0]])
        f = lambda x: (torch.softmax(x, -1), torch.log_softmax(x, -1))  # noqa: E731
        torch.testing.assert_close(capture.compile(f)(x), f(x), equal_nan=True)

    def test_fully_masked_attention_rows_are_zero(self, capture):
        scores = torch.tensor([[0.0, 1.0], [-torch.inf, -torch.inf]])
        f = lambda x: torch.ops.aten._safe_softmax(x, -1)  # noqa: E731
        torch.testing.assert_close(capture.compile(f)(scores), f(scores))

    @pytest.mark.filterwarnings("ignore:.*degrees of freedom")
    def test_empty_rows_and_columns(self, capture):
        for shape in ((0, 4), (4, 0)):
            x = torch.randn(shape)
            assert capture.compile(lambda x: torch.softmax(x, -1))(x).shape == shape
        assert capture.compile(nn.LayerNorm(4))(torch.randn(0, 4)).shape == (0, 4)

    def test_statistics_asked_for_have_the_dtype_of_eager(self, capture):
        x = torch.randn(4, 8, dtype=torch.bfloat16)
        f = lambda x: torch.native_layer_norm(x, (8,), None, None, 1e-5)  # noqa: E731
        dtypes = [[out.dtype for out in g(x)] for g in (f, capture.compile(f))]
        assert dtypes[0] == dtypes[1]


class TestSavedForBackward:
    """Between the kernels of forward and backward travel inputs and row statistics, no more."""

    def check(self, capture, function, *inputs, num_outputs=1):
        capture.compile(function)(*inputs).sum().backward()
        sizes = [node.meta["val"].numel() for node in capture.saved(num_outputs)]
        assert all(size <= ROWS for size in sizes), capture.saved(num_outputs)
        return len(sizes)

    def test_layer_norm(self, capture):
        x, w, b = leaf(ROWS, COLUMNS), leaf(COLUMNS), leaf(COLUMNS)
        assert self.check(capture, lambda *a: F.layer_norm(a[0], (COLUMNS,), *a[1:]), x, w, b) == 2

    def test_rms_norm(self, capture):
        x, w = leaf(ROWS, COLUMNS), leaf(COLUMNS)
        assert self.check(capture, lambda x, w: F.rms_norm(x, (COLUMNS,), w), x, w) == 1

    def test_softmax_of_a_long_expression(self, capture):
        # The result is at hand as an output; only it is needed.
        capture.compile(lambda x: torch.softmax(x * 2, -1))(leaf(ROWS, COLUMNS)).sum().backward()
        outputs = capture.graph("forward").graph.output_node().args[0]
        assert len(set(outputs)) == 1

    def test_cross_entropy(self, capture):
        target = torch.randint(0, COLUMNS, (ROWS,))
        # Row maximum, logarithm of the row sum, and the number of rows that count.
        assert self.check(capture, lambda x: F.cross_entropy(x, target), leaf(ROWS, COLUMNS)) == 3

    def test_cross_entropy_of_half_precision_logits(self, capture):
        target = torch.randint(0, COLUMNS, (ROWS,))
        x = leaf(ROWS, COLUMNS, dtype=torch.bfloat16)
        assert self.check(capture, lambda x: F.cross_entropy(x, target), x) == 3

    def test_cross_entropy_widened_by_the_user(self, capture):
        target = torch.randint(0, COLUMNS, (ROWS,))
        x = leaf(ROWS, COLUMNS, dtype=torch.bfloat16)
        assert self.check(capture, lambda x: F.cross_entropy(x.float(), target), x) == 3

    def test_batch_norm(self, capture):
        x = leaf(ROWS, 6, 3, 3)
        module = nn.BatchNorm2d(6)
        capture.compile(module)(x).sum().backward()
        assert all(node.meta["val"].numel() <= 6 for node in capture.saved(1))
