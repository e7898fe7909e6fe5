"""Random numbers as functions of one seed: right gradients, right distributions, nothing stored."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

from deepcompile.capture import philox
from deepcompile.capture.aot import compile_through_aot, interpret
from deepcompile.options import Options
from deepcompile.passes.functionalise_random import FunctionaliseRandom
from deepcompile.passes.fuse_rows import FuseRows
from deepcompile.pipeline.manager import PassManager

aten = torch.ops.aten


class Compiled:
    """A function compiled with the pass alone; its graphs by kind."""

    def __init__(self, function, options=None, **kwargs):
        torch._dynamo.reset()
        self.graphs = {}
        self._manager = PassManager(
            [FunctionaliseRandom()], options=options or Options(strict=True)
        )
        self._call = torch.compile(function, backend=self._backend, fullgraph=True, **kwargs)

    def __call__(self, *args):
        return self._call(*args)

    def _backend(self, gm, example_inputs):
        return compile_through_aot(
            gm,
            example_inputs,
            compile_graph=self._compile_graph,
            run_joint_passes=lambda joint: self._manager.run(joint, "joint", "graph"),
            options=Options(strict=True),
        )

    def _compile_graph(self, gm, example_inputs, *, kind, static_input_idxs):
        if kind == "inference":
            gm = self._manager.run(gm, "inference", "graph")
        self.graphs[kind] = gm
        return interpret(gm)

    def targets(self, kind):
        return [node.target for node in self.graphs[kind].graph.nodes]

    def saved(self, num_outputs=1):
        outputs = self.graphs["forward"].graph.output_node().args[0][num_outputs:]
        return [node for node in outputs if node.op != "placeholder"]


def big(function, *args, seed=0):
    torch.manual_seed(seed)
    return Compiled(function)(*args)


class TestDropout:
    def test_only_the_seed_is_saved(self):
        f = Compiled(lambda x: F.dropout(x * 2, 0.3))
        f(torch.randn(64, 8, requires_grad=True)).sum().backward()
        assert [node.target for node in f.saved()] == [philox.philox_seed]
        assert f.targets("backward").count(philox.philox_uniform) == 1
        assert f.targets("forward").count(philox.philox_seed) == 1
        assert philox.philox_seed not in f.targets("backward")

    def test_one_seed_serves_several_sites(self):
        f = Compiled(lambda x: F.dropout(F.dropout(x, 0.3).relu(), 0.6))
        f(torch.randn(64, 8, requires_grad=True)).sum().backward()
        draws = [n for n in f.graphs["forward"].graph.nodes if n.target is philox.philox_uniform]
        assert f.targets("forward").count(philox.philox_seed) == 1
        assert sorted(node.args[1] for node in draws) == [0, 1]

    def test_gradient_has_the_mask_of_the_output(self):
        x = torch.ones(1000, requires_grad=True)
        y = Compiled(lambda x: F.dropout(x, 0.25))(x)
        y.backward(torch.ones_like(y))
        assert_close(x.grad, y.detach())
        assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}

    def test_gradient_through_a_network_is_that_of_the_drawn_masks(self):
        model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.4), nn.GELU(), nn.Dropout(0.2))
        compiled = Compiled(model)
        x = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
        model.double()

        def at(x):
            torch.manual_seed(3)
            return compiled(x).square().sum()

        (gradient,) = torch.autograd.grad(at(x), x)
        direction = torch.randn_like(x)
        step = 1e-6 * direction
        slope = (at(x.detach() + step) - at(x.detach() - step)) / 2e-6
        assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 1.0])
    def test_rate(self, p):
        x = torch.ones(200_000)
        y = big(lambda x: F.dropout(x, p), x)
        kept = (y != 0).float().mean().item()
        assert abs(kept - (1 - p)) <= 4 * math.sqrt(p * (1 - p) / x.numel())
        if p < 1:
            assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / (1 - p)))

    def test_nan_is_not_hidden(self):
        y = big(lambda x: F.dropout(x, 0.5), torch.full((64,), torch.nan))
        assert y.isnan().all()

    def test_eval_draws_nothing(self):
        f = Compiled(lambda x: F.dropout(x, 0.5, training=False) + 1)
        assert_close(f(torch.zeros(3)), torch.ones(3))
        assert philox.philox_seed not in f.targets("inference")

    def test_attention_weights(self):
        q = torch.randn(1, 2, 16, 8, requires_grad=True)
        f = Compiled(lambda q: F.scaled_dot_product_attention(q, q, q, dropout_p=0.2))
        f(q).sum().backward()
        assert not [node for node in f.saved() if node.meta["val"].dtype == torch.bool]

    def test_dynamic_sizes(self):
        f = Compiled(lambda x: F.dropout(x, 0.5), dynamic=True)
        for rows in (3, 5, 8):
            x = torch.ones(rows, 64, requires_grad=True)
            y = f(x)
            y.sum().backward()
            assert_close(x.grad, y.detach())

    def test_checkpointed_region(self):
        from torch.utils.checkpoint import checkpoint

        layer = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.5), nn.Tanh())
        x = torch.randn(4, 16, requires_grad=True)
        plain, checkpointed = (
            Compiled(f) for f in (layer, lambda x: checkpoint(layer, x, use_reentrant=False))
        )
        gradients = []
        for f in (plain, checkpointed):
            torch.manual_seed(5)
            gradients.append(torch.autograd.grad(f(x).sum(), x)[0])
        assert_close(*gradients)


class TestReproducibility:
    def test_the_seed_of_torch_decides(self):
        f = Compiled(lambda x: F.dropout(x, 0.5))
        x = torch.ones(256)
        torch.manual_seed(7)
        first, second = f(x), f(x)
        torch.manual_seed(7)
        assert torch.equal(f(x), first)
        assert not torch.equal(first, second)

    def test_two_sites_are_independent(self):
        a, b = big(lambda: (torch.rand(100_000), torch.rand(100_000)))
        assert abs(torch.corrcoef(torch.stack((a, b)))[0, 1]) < 0.015

    def test_neighbouring_numbers_are_independent(self):
        u = big(lambda: torch.rand(100_000))
        for lag in (1, 2, 4):
            assert abs(torch.corrcoef(torch.stack((u[:-lag], u[lag:])))[0, 1]) < 0.015


class TestDistributions:
    """Kolmogorov-Smirnov at a fixed seed; 1.95 / sqrt(n) is passed by chance once in 1000."""

    COUNT = 100_000

    def distance(self, sample, cdf):
        ordered = cdf(sample.double().flatten().sort().values)
        grid = torch.arange(1, ordered.numel() + 1, dtype=torch.float64) / ordered.numel()
        return (ordered - grid).abs().max().item()

    def check(self, sample, cdf):
        assert sample.numel() == self.COUNT
        assert self.distance(sample, cdf) < 1.95 / math.sqrt(self.COUNT)

    @staticmethod
    def normal_cdf(x):
        return 0.5 * (1 + torch.erf(x / math.sqrt(2)))

    def test_uniform(self):
        u = big(lambda: torch.rand(self.COUNT))
        self.check(u, lambda x: x)
        assert u.min() >= 0
        assert u.max() < 1

    def test_uniform_between(self):
        u = big(lambda: torch.empty(self.COUNT).uniform_(-2, 4))
        self.check(u, lambda x: (x + 2) / 6)

    def test_normal(self):
        self.check(big(lambda: torch.randn(self.COUNT)), self.normal_cdf)

    def test_normal_with_mean_and_deviation(self):
        z = big(lambda: torch.empty(self.COUNT).normal_(3, 0.5))
        self.check(z, lambda x: self.normal_cdf((x - 3) / 0.5))

    def test_like_another_tensor(self):
        x = torch.zeros(self.COUNT)
        u, z = big(lambda x: (torch.rand_like(x), torch.randn_like(x)), x)
        self.check(u, lambda x: x)
        self.check(z, self.normal_cdf)

    def test_exponential(self):
        e = big(lambda: torch.empty(self.COUNT).exponential_(2.0))
        self.check(e, lambda x: 1 - torch.exp(-2 * x))
        assert e.min() > 0

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_uniform_stays_below_one(self, dtype):
        u = big(lambda: torch.rand(self.COUNT, dtype=dtype))
        assert u.dtype == dtype
        assert u.max() < 1
        assert abs(u.float().mean() - 0.5) < 0.01

    def test_bernoulli_of_a_tensor_of_probabilities(self):
        p = torch.tensor([0.0, 0.2, 0.7, 1.0]).repeat_interleave(50_000)
        rates = big(torch.bernoulli, p).view(4, -1).mean(1)
        assert_close(rates, torch.tensor([0.0, 0.2, 0.7, 1.0]), rtol=0, atol=0.01)


class TestLeftAlone:
    def test_eager_numbers_on_request(self):
        f = Compiled(lambda x: F.dropout(x, 0.5), options=Options(rng="eager"))
        f(torch.randn(8, requires_grad=True)).sum().backward()
        assert aten.native_dropout.default in f.targets("forward")

    @pytest.mark.parametrize(
        "function",
        [
            lambda: torch.randperm(5),
            lambda: torch.randint(0, 9, (4,)),
            lambda: torch.rand(4, dtype=torch.float64),
        ],
    )
    def test_what_has_no_counter_based_form(self, function):
        f = Compiled(function)
        torch.manual_seed(0)
        got = f()
        torch.manual_seed(0)
        assert_close(got, function())
        assert philox.philox_seed not in f.targets("inference")

    def test_graphs_without_random_ops_are_returned_as_they_are(self):
        graph = make_fx(lambda x: x + 1)(torch.ones(2))
        result = PassManager([FunctionaliseRandom()]).run(graph, "inference", "graph")
        assert result is graph

    def test_running_the_pass_again_changes_nothing(self):
        f = Compiled(lambda: torch.rand(4))
        f()
        graph = f.graphs["inference"]
        assert PassManager([FunctionaliseRandom()]).run(graph, "inference", "graph") is graph

    def test_the_input_graph_is_not_touched(self):
        graph = make_fx(lambda x: torch.rand_like(x), tracing_mode="fake")(torch.ones(2))
        before = copy.deepcopy(str(graph.graph))
        PassManager([FunctionaliseRandom()]).run(graph, "inference", "graph")
        assert str(graph.graph) == before


class TestReferenceOps:
    def test_uniform_is_a_function_of_seed_site_and_position(self):
        seed = torch.tensor([123456789012345])
        kwargs = {"dtype": torch.float32, "device": torch.device("cpu")}
        whole = philox.philox_uniform(seed, 3, [6, 4], **kwargs)
        assert torch.equal(philox.philox_uniform(seed, 3, [24], **kwargs), whole.flatten())
        assert not torch.equal(philox.philox_uniform(seed, 4, [6, 4], **kwargs), whole)
        assert not torch.equal(philox.philox_uniform(seed + 1, 3, [6, 4], **kwargs), whole)

    def test_parts_have_the_numbers_of_the_whole(self):
        seed = torch.tensor([123456789012345])
        kwargs = {"dtype": torch.float32, "device": torch.device("cpu")}
        whole = philox.philox_uniform(seed, 3, [8, 32], **kwargs)
        start = torch.tensor(4 * 32 + 8)
        part = philox.philox_uniform_part(seed, 3, start, [4, 8], [32, 1], **kwargs)
        assert torch.equal(part, whole[4:, 8:16])

    def test_parts_become_kernels(self):
        seed, x = torch.tensor([-123456789012345]), torch.randn(4, 8)
        kwargs = {"dtype": torch.float32, "device": torch.device("cpu")}

        def masked(x, start, seed):
            part = torch.ops.deepcompile.philox_uniform_part
            return torch.relu(x) * (part(seed, 3, start, [4, 8], [32, 1], **kwargs) < 0.5)

        graph = make_fx(masked, tracing_mode="fake")(x, torch.tensor(136), seed)
        torch._dynamo.reset()
        compiled = torch.compile(masked, backend="deepep", options={"strict": True})
        for start in (0, 8, 136):
            given = x, torch.tensor(start), seed
            assert torch.equal(compiled(*given), masked(*given))
        fused = PassManager([FuseRows()], options=Options(strict=True)).run(graph, "inference", "g")
        assert philox.philox_uniform_part not in [node.target for node in fused.graph.nodes]

    def test_schemas_and_fake_implementations(self):
        seed = torch.tensor([1])
        kwargs = {"dtype": torch.float32, "device": torch.device("cpu")}
        for op in (philox.philox_uniform, philox.philox_normal):
            torch.library.opcheck(op, (seed, 0, [2, 3]), kwargs)
        for op in (philox.philox_uniform_part, philox.philox_normal_part):
            torch.library.opcheck(op, (seed, 0, torch.tensor(4), [2, 3], [6, 1]), kwargs)
