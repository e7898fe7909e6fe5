"""The models of `benchmarks.memory_models`, small: one training step equals eager's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from benchmarks.memory_models import NAMES, MemoryModel, build
from benchmarks.torch_budget import joint_graph, matmul_flops, redrawn, split_with_budget, sweep
from deepcompile.backend import recording

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4
# A gradient that is zero but for rounding (of a key's bias) is measured against the largest one.
NOISE = 1e-3


def train_step(model: MemoryModel, **options: object) -> tuple[float, dict[str, Tensor]]:
    """The loss, and gradients and buffers by name, of one step with one seed; eager for none."""
    module = copy.deepcopy(model.module)
    call = model.loss
    if options:
        torch._dynamo.reset()
        call = torch.compile(model.loss, backend="deepep", fullgraph=True, options=options)
    torch.manual_seed(0)
    loss = call(module, model.batch)
    loss.backward()
    values = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    assert len(values) == len(list(module.parameters()))
    return loss.item(), values | dict(module.named_buffers())


def largest_error(mine: dict[str, Tensor], eager: dict[str, Tensor]) -> float:
    """The largest relative error of a tensor, by its largest element."""
    assert mine.keys() == eager.keys()
    floor = NOISE * max(value.abs().max().item() for value in eager.values())
    return max(
        (mine[name] - value).abs().max().item() / max(value.abs().max().item(), floor)
        for name, value in eager.items()
    )


def has_dropout(module: nn.Module) -> bool:
    return any(isinstance(child, nn.Dropout) for child in module.modules())


@pytest.mark.parametrize("name", NAMES)
def test_one_training_step_equals_eager(name: str) -> None:
    model = build(name, "small")
    loss, eager = train_step(model)
    # With torch's own random numbers, so that dropout is compared too.
    with recording() as record:
        my_loss, mine = train_step(model, strict=True, rng="eager")
    assert [graph.kind for graph in record.graphs] == ["forward", "backward"]
    assert not [fields for event, fields in record.events if event == "fallback"]
    assert my_loss == pytest.approx(loss, rel=TOLERANCE)
    assert largest_error(mine, eager) <= TOLERANCE


def test_dropout_by_counters_gives_finite_gradients_of_the_right_shape() -> None:
    model = build("bert", "small")
    assert has_dropout(model.module)
    loss, eager = train_step(model)
    my_loss, mine = train_step(model, strict=True)
    assert my_loss == pytest.approx(loss, rel=0.1)
    assert {n: v.shape for n, v in mine.items()} == {n: v.shape for n, v in eager.items()}
    assert all(value.isfinite().all() for value in mine.values())


@pytest.mark.parametrize("name", NAMES)
def test_full_models_are_built_without_memory(name: str) -> None:
    with torch.device("meta"):
        model = build(name)
    assert {value.device.type for value in model.module.state_dict().values()} == {"meta"}
    assert model.loss(model.module, model.batch).shape == ()


def test_building_leaves_the_generator_alone_and_repeats() -> None:
    before = torch.get_rng_state()
    first, second = build("vit", "small"), build("vit", "small")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, first.module.parameters(), second.module.parameters()))
    assert torch.equal(first.batch["inputs"], second.batch["inputs"])


def test_torch_recomputes_more_products_the_less_it_may_save() -> None:
    model = build("gpt16", "small")
    joint, inputs, kwargs = joint_graph(model.module, model.batch, model.loss)
    assert len(list(joint.graph.find_nodes(op="placeholder"))) == sum(map(len, inputs))
    names = [node.name for node in joint.graph.nodes]
    whole = matmul_flops(joint)
    splits = sweep(joint, inputs, (1.0, 0.3, 0.0), **kwargs)
    spent = [
        matmul_flops(forward) + matmul_flops(backward) for forward, backward in splits.values()
    ]
    assert whole == spent[0] < spent[1] < spent[2] <= whole + matmul_flops(splits[0.0][0])
    assert [node.name for node in joint.graph.nodes] == names
    # Attention without dropout is recomputed, and is not random.
    assert not any(redrawn(backward) for _, backward in splits.values())


def test_torch_draws_dropout_again_under_a_budget() -> None:
    model = build("bert", "small")
    joint, inputs, kwargs = joint_graph(
        model.module, model.batch, model.loss, options={"rng": "eager"}
    )
    assert not redrawn(split_with_budget(joint, inputs, 1.0, **kwargs)[1])
    if not redrawn(split_with_budget(joint, inputs, 0.0, **kwargs)[1]):
        pytest.skip("this torch keeps the dropout mask under an activation budget")


def test_products_of_each_kind_are_counted() -> None:
    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 4)
            self.convolution = nn.Conv2d(3, 8, 3, padding=1)

        def forward(self, images: Tensor) -> Tensor:
            rows = self.linear(self.convolution(images).flatten(2).transpose(1, 2))
            heads = rows.unflatten(-1, (2, 2)).transpose(1, 2)
            return nn.functional.scaled_dot_product_attention(heads, heads, heads)

    module, batch = Products(), {"images": torch.randn(2, 3, 4, 4)}
    joint, inputs, kwargs = joint_graph(
        module, batch, lambda module, batch: module(**batch).square().sum()
    )
    forward, backward = split_with_budget(joint, inputs, 1.0, **kwargs)
    rows, attention = 2 * 16, 2 * 2 * (16 * 16 * 2) * 2
    linear, convolution = rows * 8 * 4 * 2, rows * 3 * 8 * 9 * 2
    assert matmul_flops(forward) == linear + convolution + 2 * attention
    # The images need no gradient; attention's backward computes its scores again.
    assert matmul_flops(backward) == 2 * linear + convolution + 5 * attention


def test_a_step_without_gradients_has_no_joint_graph() -> None:
    model = build("vit", "small")
    with pytest.raises(RuntimeError, match="no joint graph"):
        joint_graph(model.module.requires_grad_(False), model.batch, model.loss)
