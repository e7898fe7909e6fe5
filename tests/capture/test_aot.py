"""Captured models do what eager does: losses, gradients, buffers, mutations, aliases, errors."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.testing import assert_close

from deepcompile.errors import CompileError, OptionError
from deepcompile.options import Options


class Block(nn.Module):
    """A small transformer block with a tied head."""

    def __init__(self, vocabulary: int = 19, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        q, k, v = self.qkv(self.norm(x)).unsqueeze(1).chunk(3, dim=-1)
        x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True).squeeze(1)
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return F.cross_entropy(self.head(x).flatten(0, 1), tokens.roll(-1, 1).flatten())


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.GroupNorm(2, 8), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(8 * 9, 4),
    )  # fmt: skip


def train_both(capture, model, inputs, steps=3, loss=lambda out: out.float().square().mean()):
    """Train a copy in eager and a copy compiled; compare losses, gradients and state."""
    twin = copy.deepcopy(model)
    compiled = capture.compile(twin)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, twin)]
    for _ in range(steps):
        losses = []
        for module, optimizer in zip((model, compiled), optimizers, strict=True):
            optimizer.zero_grad()
            value = loss(module(*inputs))
            value.backward()
            losses.append(value.detach())
        assert_close(*losses)
        total = sum(p.grad.norm() for p in model.parameters() if p.grad is not None)
        for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None), name
            if p.grad is not None:
                assert (q.grad - p.grad).norm() <= 1e-4 * (p.grad.norm() + 1e-4 * total), name
        for optimizer in optimizers:
            optimizer.step()
    for name, value in model.state_dict().items():
        assert_close(twin.state_dict()[name], value, rtol=1e-4, atol=1e-6)
    assert not capture.events


class TestTraining:
    def test_transformer_with_tied_weights(self, capture):
        model = Block()
        train_both(capture, model, [torch.randint(0, 19, (2, 12))], loss=lambda out: out)
        assert capture.count("forward") == capture.count("backward") == 1

    def test_running_statistics_follow_eager(self, capture):
        train_both(capture, conv_net(), [torch.randn(4, 3, 8, 8)])

    def test_frozen_parameters_get_no_gradient(self, capture):
        model = Block()
        model.qkv.requires_grad_(False)
        model.norm.weight.requires_grad_(False)
        train_both(capture, model, [torch.randint(0, 19, (2, 12))], loss=lambda out: out)

    def test_unused_parameters_keep_none_gradients(self, capture):
        model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        model.unused = nn.Parameter(torch.ones(3))
        train_both(capture, model, [torch.randn(2, 4)])
        assert model.unused.grad is None

    def test_graph_breaks_make_several_graphs(self, capture):
        class Broken(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

            def forward(self, x):
                x = torch.tanh(self.first(x))
                torch._dynamo.graph_break()
                return self.second(x)

        train_both(capture, Broken(), [torch.randn(3, 4)])
        assert capture.count("forward") == capture.count("backward") == 2

    def test_autocast_bfloat16(self, capture):
        class Autocast(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.block = Block()

            def forward(self, tokens):
                with torch.autocast("cpu", torch.bfloat16):
                    return self.block(tokens)

        tokens = torch.randint(0, 19, (2, 12))
        model = Autocast()
        twin = copy.deepcopy(model)
        exact = copy.deepcopy(model).block.double()
        exact(tokens).backward()
        model(tokens).backward()
        capture.compile(twin)(tokens).backward()
        total = sum(p.grad.norm() ** 2 for p in exact.parameters()) ** 0.5
        for reference, eager, ours in zip(
            exact.parameters(), model.parameters(), twin.parameters(), strict=True
        ):
            assert ours.grad.dtype == eager.grad.dtype
            error = (eager.grad - reference.grad).norm()
            assert (ours.grad - reference.grad).norm() <= 2 * error + 1e-3 * total

    def test_gradient_scaler(self, capture):
        model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 1))
        twin = copy.deepcopy(model)
        x = torch.randn(4, 8)
        for module in (model, capture.compile(twin)):
            optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
            scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
            for scale in (1.0, float("inf"), 1.0):
                optimizer.zero_grad()
                with torch.autocast("cpu", torch.float16):
                    loss = module(x * scale).float().square().mean()
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
            assert scaler.get_scale() == 32.0
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            assert_close(q, p, rtol=1e-3, atol=1e-4)

    def test_two_forwards_before_two_backwards(self, capture):
        weight = torch.randn(4, 4, requires_grad=True)
        f = capture.compile(lambda x: torch.tanh(x @ weight))
        x = torch.randn(3, 4)
        first, second = f(x), f(2 * x)
        (first.sum() + second.sum()).backward()
        got, weight.grad = weight.grad, None
        (torch.tanh(x @ weight).sum() + torch.tanh(2 * x @ weight).sum()).backward()
        assert_close(got, weight.grad)

    def test_backward_twice_with_retained_graph(self, capture):
        x = torch.randn(3, 4, requires_grad=True)
        y = capture.compile(lambda x: torch.softmax(x * x, -1)[0].log().sum())(x)
        (first,) = torch.autograd.grad(y, x, retain_graph=True)
        (second,) = torch.autograd.grad(y, x)
        assert_close(first, second, rtol=0, atol=0)

    def test_unused_output_gets_none_gradient(self, capture):
        x = torch.randn(3, requires_grad=True)
        w = torch.randn(3, requires_grad=True)
        f = lambda x, w: (x.sin(), w.cos())  # noqa: E731
        capture.compile(f)(x, w)[0].sum().backward()
        assert_close(x.grad, x.detach().cos())
        assert w.grad is None or not w.grad.any()

    def test_activation_checkpointing(self, capture):
        from torch.utils.checkpoint import checkpoint

        class Checkpointed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))

            def forward(self, x):
                return x + checkpoint(self.net, x, use_reentrant=False)

        train_both(capture, Checkpointed(), [torch.randn(4, 8)])


class TestInference:
    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    def test_without_gradient_is_one_graph(self, capture, mode):
        model = Block()
        tokens = torch.randint(0, 19, (2, 12))
        with mode():
            assert_close(capture.compile(model)(tokens), model(tokens))
        assert [kind for kind, _ in capture.graphs] == ["inference"]

    def test_eval_leaves_running_statistics_alone(self, capture):
        model = conv_net()
        model(torch.randn(4, 3, 8, 8))
        model.eval()
        before = copy.deepcopy(model.state_dict())
        x = torch.randn(4, 3, 8, 8)
        with torch.no_grad():
            assert_close(capture.compile(model)(x), model(x))
        for name, value in before.items():
            assert torch.equal(model.state_dict()[name], value)

    def test_statistics_move_without_gradient(self, capture):
        model = nn.BatchNorm1d(4)
        twin = copy.deepcopy(model)
        x = torch.randn(6, 4)
        with torch.no_grad():
            assert_close(capture.compile(twin)(x), model(x))
        assert_close(twin.state_dict(), model.state_dict())

    def test_gradient_mode_is_a_guard_not_a_constant(self, capture):
        model = nn.Linear(3, 3)
        compiled = capture.compile(model)
        x = torch.randn(2, 3)
        with torch.no_grad():
            assert not compiled(x).requires_grad
        assert compiled(x).requires_grad


class TestMutationAndAliasing:
    def test_mutated_input(self, capture):
        def f(x, cache):
            cache[1].copy_(x)
            cache.mul_(2)
            return cache.sum() + x

        x = torch.randn(3)
        caches = [torch.ones(2, 3) for _ in range(2)]
        assert_close(capture.compile(f)(x, caches[0]), f(x, caches[1]))
        assert_close(*caches)
        assert any(
            node.target is torch.ops.aten.copy_.default
            for node in capture.graph("inference").graph.nodes
        )

    def test_mutated_buffer_in_training(self, capture):
        class Counter(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(3, 3)
                self.register_buffer("seen", torch.zeros(3))

            def forward(self, x):
                self.seen.add_(x.detach().sum(0))
                return self.linear(x) * self.seen

        train_both(capture, Counter(), [torch.randn(2, 3)])

    def test_gradient_reads_the_buffer_before_its_mutation(self, capture):
        def f(x, w, buffer):
            old = buffer * 1.0
            buffer.add_(1)
            return (x * w) * old + w * buffer.view(-1)

        x, w = torch.randn(3), torch.randn(3, requires_grad=True)
        buffers = [torch.full((3,), 2.0) for _ in range(2)]
        grads = [
            torch.autograd.grad(g(x, w, buffer).sum(), w)[0]
            for g, buffer in zip((f, capture.compile(f)), buffers, strict=True)
        ]
        assert_close(*grads)
        assert_close(*buffers)

    def test_mutated_input_that_needs_gradient(self, capture):
        def f(x):
            y = x * 2
            y.add_(1)
            x = x.clone()
            x.mul_(y)
            return x

        x = torch.randn(4, requires_grad=True)
        got = torch.autograd.grad(capture.compile(f)(x).sum(), x)
        assert_close(got, torch.autograd.grad(f(x).sum(), x))

    def test_view_of_input_is_a_view(self, capture):
        x = torch.randn(4, 6)
        view = capture.compile(lambda x: x[1:3].t())(x)
        assert view.data_ptr() == x[1:3].data_ptr()
        view.zero_()
        assert not x[1:3].any()

    def test_returned_input_is_the_input(self, capture):
        x = torch.randn(3)
        out, double = capture.compile(lambda x: (x, x * 2))(x)
        assert out is x
        assert_close(double, x * 2)

    def test_aliased_inputs(self, capture):
        def f(a, b):
            a.add_(1)
            return a * b

        base, twin = torch.randn(6), None
        twin = base.clone()
        assert_close(capture.compile(f)(base[:4], base[2:]), f(twin[:4], twin[2:]))
        assert_close(base, twin)

    def test_outputs_that_share_memory(self, capture):
        def f(x):
            y = x + 1
            return y, y[0], y.view(-1)

        x = torch.randn(2, 3, requires_grad=True)
        outs = capture.compile(f)(x)
        assert outs[0].data_ptr() == outs[1].data_ptr() == outs[2].data_ptr()
        sum(out.sum() for out in outs).backward()
        assert_close(x.grad[0], torch.full((3,), 3.0))


class TestDynamicShapes:
    def test_marked_dynamic_compiles_once(self, capture):
        model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU())
        compiled = capture.compile(model, dynamic=True)
        for batch in (3, 5, 7, 11):
            x = torch.randn(batch, 8, requires_grad=True)
            y = torch.randn(batch, 8)
            got = torch.autograd.grad((compiled(x) * y).sum(), x)
            assert_close(got, torch.autograd.grad((model(x) * y).sum(), x))
        assert capture.count("forward") == capture.count("backward") == 1

    def test_second_shape_makes_the_size_symbolic(self, capture):
        f = capture.compile(lambda x: F.cross_entropy(x, torch.arange(x.shape[0]) % 5))
        for batch in (4, 6, 9, 13):
            x = torch.randn(batch, 5, requires_grad=True)
            f(x).backward()
        assert capture.count("forward") == 2

    def test_symbolic_sizes_are_graph_inputs(self, capture):
        with torch.no_grad():
            capture.compile(lambda x: torch.softmax(x, -1), dynamic=True)(torch.randn(3, 4))
        values = [node.meta["val"] for node in capture.placeholders(capture.graph("inference"))]
        assert any(isinstance(value, torch.SymInt) for value in values)


class TestStaticInputs:
    def test_parameters_are_static_in_forward_and_backward(self, capture):
        seen = {}
        record = capture.compile_graph

        def spy(gm, example_inputs, *, kind, static_input_idxs):
            seen[kind] = [example_inputs[i].shape for i in static_input_idxs]
            return record(gm, example_inputs, kind=kind, static_input_idxs=static_input_idxs)

        capture.compile_graph = spy
        capture.compile(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6)))(
            torch.randn(2, 4, requires_grad=True)
        ).sum().backward()
        assert torch.Size((5, 4)) in seen["forward"]
        assert torch.Size((2, 4)) not in seen["forward"]
        assert set(seen["backward"]) == {torch.Size((5, 4)), torch.Size((6, 5))}


class TestFailures:
    @pytest.mark.parametrize("kind", ["forward", "backward"])
    def test_a_graph_that_fails_to_compile_runs_in_eager(self, capture, kind):
        capture.fail_on = (kind,)
        x = torch.randn(3, requires_grad=True)
        capture.compile(torch.sin)(x).sum().backward()
        assert_close(x.grad, x.detach().cos())
        ((event, fields),) = capture.events
        assert event == "fallback"
        assert fields == {"stage": "compile", "kind": kind, "reason": "RuntimeError: made to fail"}

    def test_strict_raises_for_the_user(self, capture):
        capture.options, capture.fail_on = Options(strict=True), ("inference",)
        with pytest.raises(CompileError, match="made to fail"):
            capture.compile(torch.sin)(torch.randn(3))

    def test_strict_raises_from_backward(self, capture):
        capture.options, capture.fail_on = Options(strict=True), ("backward",)
        y = capture.compile(torch.sin)(torch.randn(3, requires_grad=True)).sum()
        with pytest.raises(CompileError, match="made to fail"):
            y.backward()

    def test_wrong_options_are_never_swallowed(self, capture):
        capture.fail_on, capture.error = ("inference",), OptionError("no such option")
        with pytest.raises(OptionError, match="no such option"):
            capture.compile(torch.sin)(torch.randn(3))

    def test_what_cannot_be_captured_runs_in_eager(self, capture):
        def failing_pass(joint):
            raise RuntimeError("a pass broke")

        capture.run_joint_passes = failing_pass
        x = torch.randn(3, requires_grad=True)
        capture.compile(torch.sin)(x).sum().backward()
        assert_close(x.grad, x.detach().cos())
        ((event, fields),) = capture.events
        assert (event, fields["stage"]) == ("fallback", "capture")

    def test_data_dependent_shapes_break_the_graph(self, capture):
        x = torch.tensor([0.0, 1.0, 2.0])
        assert_close(capture.compile(lambda x: x[x > 0] * 2)(x), torch.tensor([2.0, 4.0]))

    def test_errors_of_the_model_are_those_of_eager(self, capture):
        with pytest.raises(Exception, match=r"reduction dim|mat1 and mat2"):
            capture.compile(lambda x: x @ x)(torch.randn(2, 3))
