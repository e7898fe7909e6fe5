"""Modules that read placed parameters whole do what they did, in all that one does with modules."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.distributed.tensor import DTensor

import deepcompile
from deepcompile.errors import PartitionError
from deepcompile.parallel.modules import is_placed

pytestmark = pytest.mark.usefixtures("alone")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, 16)
        self.qkv = nn.Linear(16, 48)
        self.norm = nn.LayerNorm(16)
        self.out = nn.Linear(16, 16, bias=False)
        self.head = nn.Linear(16, 8, bias=False)
        self.head.weight = self.embedding.weight
        self.scale = nn.Parameter(torch.ones(()))
        self.frozen = nn.Parameter(torch.randn(16), requires_grad=False)
        self.register_buffer("offset", torch.randn(16))

    def forward(self, tokens):
        x = self.embedding(tokens) + self.frozen
        q, k, v = self.qkv(self.norm(x) + self.offset).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v)) * self.scale
        return F.cross_entropy(self.head(x).flatten(0, 1), tokens.flatten())


PLAN = {"qkv.weight": "S(0;16,16,16)", "qkv.bias": "S(0;3x16)", "out.weight": "S(1)"}
PLAN["embedding.weight"] = "S(0)"


def models() -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """A placed one, its twin and an input."""
    torch.manual_seed(0)
    twin = Tied()
    placed = deepcompile.parallelize(copy.deepcopy(twin), 1, plan=PLAN)
    return placed, twin, torch.randint(0, 8, (2, 5))


def whole(value: torch.Tensor) -> torch.Tensor:
    return value.to_local() if isinstance(value, DTensor) else value  # one rank has it all


def check_same(placed: nn.Module, twin: nn.Module, tokens: torch.Tensor) -> None:
    loss, expected = placed(tokens), twin(tokens)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for name, parameter in placed.named_parameters():
        theirs = twin.get_parameter(name)
        assert isinstance(parameter, DTensor)
        assert isinstance(parameter, nn.Parameter)
        assert (parameter.grad is None) == (theirs.grad is None)
        if parameter.grad is not None:
            assert parameter.grad.placements == parameter.placements
            torch.testing.assert_close(whole(parameter.grad), theirs.grad)


def test_what_a_module_looks_like_stays():
    placed, twin, _ = models()
    assert str(placed) == str(twin)
    assert isinstance(placed.qkv, nn.Linear)
    assert type(placed.qkv).__module__ == nn.Linear.__module__
    assert type(placed.qkv) is type(placed.out) or type(placed.qkv).__name__ == "Linear"
    assert is_placed(placed.qkv)
    assert placed.qkv.weight.shape == (48, 16)
    assert type(placed.qkv.weight) is torch.Tensor
    assert dict(placed.named_parameters()).keys() == dict(twin.named_parameters()).keys()
    assert placed.state_dict().keys() == twin.state_dict().keys()
    registered = dict(placed.named_parameters())["qkv.weight"]
    assert placed.get_parameter("qkv.weight") is registered
    assert placed.qkv.get_parameter("weight") is registered
    assert placed.frozen.requires_grad is False


def test_classes_are_made_once():
    placed = deepcompile.parallelize(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), 1, plan={})
    assert type(placed[0]) is type(placed[1])


def test_forward_and_backward():
    check_same(*models())


@pytest.mark.parametrize("kind", [{"foreach": True}, {"foreach": False}, {"fused": True}])
def test_training_steps(kind):
    placed, twin, tokens = models()
    optimizers = [torch.optim.AdamW(m.parameters(), lr=0.1, **kind) for m in (placed, twin)]
    for _ in range(3):
        check_same(placed, twin, tokens)
        norms = [nn.utils.clip_grad_norm_(m.parameters(), 0.1) for m in (placed, twin)]
        torch.testing.assert_close(norms[0].full_tensor(), norms[1])
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for name, parameter in placed.named_parameters():
        torch.testing.assert_close(whole(parameter), twin.get_parameter(name))


def test_copies_and_pickles_are_placed_and_tied():
    placed, twin, tokens = models()
    file = io.BytesIO()
    torch.save(placed, file)
    file.seek(0)
    for again in (
        copy.deepcopy(placed),
        pickle.loads(pickle.dumps(placed)),
        torch.load(file, weights_only=False),
    ):
        held = again.head._parameters["weight"]
        assert held is again.embedding._parameters["weight"]
        assert held is not placed.head._parameters["weight"]
        twin.zero_grad()
        check_same(again, twin, tokens)


def test_state_dicts():
    placed, twin, tokens = models()
    other, other_twin, _ = models()
    other.load_state_dict(placed.state_dict())
    other.load_state_dict(twin.state_dict())  # of whole tensors
    other_twin.load_state_dict(deepcompile.full_state_dict(placed))
    full = deepcompile.full_state_dict(placed)
    assert full["head.weight"] is full["embedding.weight"]
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict({**twin.state_dict(), "scale": torch.ones(2)})
    check_same(other, other_twin, tokens)
    other.load_state_dict(twin.state_dict(), assign=True)  # which unties, as ever
    assert all(isinstance(p, DTensor) for p in other.parameters())
    torch.testing.assert_close(other(tokens), twin(tokens))


def test_casts_and_flags():
    placed, twin, tokens = models()
    check_same(placed.to(torch.float64), twin.to(torch.float64), tokens)
    placed.requires_grad_(False)
    assert not placed(tokens).requires_grad
    placed.requires_grad_(True)
    placed.zero_grad()
    assert all(p.grad is None for p in placed.parameters())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inference(mode):
    placed, twin, tokens = models()
    with mode():
        torch.testing.assert_close(placed(tokens), twin(tokens))


def test_recomputed_activations():
    from torch.utils.checkpoint import checkpoint

    placed, twin, tokens = models()
    twin(tokens).backward()
    checkpoint(placed, tokens, use_reentrant=False).backward()
    grad = placed.get_parameter("qkv.weight").grad
    torch.testing.assert_close(whole(grad), twin.qkv.weight.grad)


def test_a_parameter_that_is_set():
    placed, twin, tokens = models()
    placed.out.weight = nn.Parameter(torch.zeros(16, 16))
    twin.out.weight = nn.Parameter(torch.zeros(16, 16))
    torch.testing.assert_close(placed(tokens), twin(tokens))
    placed.out.weight = dict(placed.named_parameters())["frozen"]  # another one's: its own spec
    assert placed.out.weight.shape == (16,)
    placed.qkv.bias = None
    assert placed.qkv.bias is None
    with pytest.raises(TypeError, match="cannot assign"):
        placed.qkv.weight = torch.zeros(48, 16)


def test_functional_call():
    placed, twin, tokens = models()
    plain = dict(twin.named_parameters())
    got = torch.func.functional_call(placed, plain, (tokens,))
    torch.testing.assert_close(got, twin(tokens))


class Holders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.many = nn.ParameterList([torch.randn(4, 4), torch.randn(4, 4)])
        self.named = nn.ParameterDict({"a b": torch.randn(4, 4)})
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))

    def forward(self, x):
        for weight in self.many:
            x = F.linear(x, weight)
        return self.normed(x @ self.named["a b"])


def test_lists_dicts_and_parametrisations():
    torch.manual_seed(0)
    twin = Holders()
    placed = deepcompile.parallelize(copy.deepcopy(twin), 1, plan={"many.0": "S(0)"})
    x = torch.randn(2, 4)
    torch.testing.assert_close(placed(x), twin(x))
    placed(x).sum().backward()
    assert all(p.grad is not None for p in placed.parameters())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.MultiheadAttention(8, 2, batch_first=True),
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0),
        lambda: nn.LSTM(8, 6, 2, bidirectional=True),
        lambda: nn.GRU(8, 6),
    ],
    ids=["attention", "encoder-layer", "lstm", "gru"],
)
def test_modules_with_ways_of_their_own_to_read(make, training):
    """In evaluation attention and encoder layers hand their weights to one fused op."""
    torch.manual_seed(0)
    twin = make().train(training)
    x = torch.randn(3, 5, 8)
    inputs = (x, x, x) if isinstance(twin, nn.MultiheadAttention) else (x,)
    placed = deepcompile.parallelize(copy.deepcopy(twin), 1, plan={})
    with torch.set_grad_enabled(training):
        for module in (placed, copy.deepcopy(placed), pickle.loads(pickle.dumps(placed))):
            got, expected = module(*inputs), twin(*inputs)
            torch.testing.assert_close(got, expected)
            if training:
                first = got[0] if isinstance(got, tuple) else got
                first.sum().backward()
                assert all(p.grad is not None for p in module.parameters())
    with torch.no_grad():  # values that are stale would show
        for parameter, theirs in zip(placed.parameters(), twin.parameters(), strict=True):
            parameter.mul_(2)
            theirs.mul_(2)
        torch.testing.assert_close(placed(*inputs), twin(*inputs))
        torch.testing.assert_close(
            placed.double()(*(i.double() for i in inputs)),
            twin.double()(*(i.double() for i in inputs)),
        )


def test_reading_the_registry_is_refused_by_torch():
    class Raw(nn.Linear):
        def forward(self, x):
            return F.linear(x, self._parameters["weight"])

    placed = deepcompile.parallelize(Raw(2, 2), 1, plan={})
    with pytest.raises(RuntimeError, match=r"mixed torch\.Tensor and DTensor"):
        placed(torch.randn(2, 2))


class Hoarder(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 2)
        self.cache = [self.weight]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (Hoarder, "keeps parameter 'weight' in its attribute 'cache'"),
        (lambda: nn.Sequential(nn.LazyLinear(2)), "'0.weight' has no shape yet"),
        (lambda: torch.jit.script(nn.Linear(2, 2)), "TorchScript"),
        (lambda: torch.compile(nn.Linear(2, 2)), "call parallelize before torch.compile"),
        (lambda: nn.Embedding(4, 2, sparse=True), "sparse gradients"),
        (lambda: nn.Embedding(4, 2, max_norm=1.0), "would be lost.*max_norm=None"),
        (lambda: nn.DataParallel(nn.Linear(2, 2)), "wraps a model"),
        (
            lambda: deepcompile.parallelize(nn.Linear(2, 2), 1, plan={}),
            "'weight' is a DTensor: the model has been placed already",
        ),
        (lambda: with_gradient(nn.Linear(2, 2)), "call model.zero_grad"),
        (lambda: 3, "takes a torch.nn.Module, not int"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_what_cannot_be_placed_is_refused(make, says):
    with pytest.raises(PartitionError, match=says):
        deepcompile.parallelize(make(), 1, plan={})


def with_gradient(module: nn.Module) -> nn.Module:
    module(torch.ones(1, 2)).sum().backward()
    return module


def test_dynamo_sees_one_graph_with_markers():
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    placed, twin, tokens = models()
    graphs = []

    def keep(module, inputs):
        graphs.append(module.graph)
        return make_boxed_func(module.forward)

    compiled = torch.compile(placed, backend=aot_autograd(fw_compiler=keep), fullgraph=True)
    loss, expected = compiled(tokens), twin(tokens)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for name, parameter in placed.named_parameters():
        if parameter.requires_grad:
            assert isinstance(parameter.grad, DTensor)
            assert parameter.grad.placements == parameter.placements
            torch.testing.assert_close(whole(parameter.grad), twin.get_parameter(name).grad)
    forward, backward = graphs
    ops = torch.ops.deepcompile
    reads = forward.find_nodes(op="call_function", target=ops.unshard.default)
    labels = sorted(node.args[1].rpartition(" | ")[2] for node in reads)
    assert set(labels) == {name for name, _ in placed.named_parameters()}
    assert len(backward.find_nodes(op="call_function", target=ops.reshard_grad.default)) >= 7
