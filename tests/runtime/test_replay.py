"""Captured graphs: that replaying one is never noticed, on a driver that only pretends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deepcompile.backend
from deepcompile.backend import recording
from deepcompile.runtime import replay
from tests.runtime.recording_driver import RecordingDriver

pytest.importorskip("triton")

OPTIONS = {"codegen": "triton", "cuda_graphs": True}


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordingDriver]:
    made = RecordingDriver()
    monkeypatch.setattr(deepcompile.backend, "driver_of", lambda device: made)
    torch._dynamo.reset()
    yield made
    torch._dynamo.reset()


def compiled(function: Callable[..., Any], **options: Any) -> Any:
    return torch.compile(function, backend="deepep", options=OPTIONS | options)


def replays(driver: RecordingDriver) -> int:
    return driver.log.count("replay")


def scaled(x: Tensor, w: Tensor) -> Tensor:
    return torch.softmax(x @ w, -1) * 2


def refusals(events: list[tuple[str, dict[str, Any]]]) -> list[str]:
    return [fields["reason"] for event, fields in events if event == "device-graph-refused"]


def test_calls_are_replayed_after_warming_up_and_agree(driver: RecordingDriver) -> None:
    function, w = compiled(scaled), torch.randn(8, 8)
    x = torch.empty(4, 8)
    for number in range(6):
        x.normal_()
        torch.testing.assert_close(function(x, w), scaled(x, w))
        assert replays(driver) == max(0, number + 1 - replay.WARM_UP)
    assert driver.log.count("capture") == 1


def test_an_input_that_moves_is_copied(driver: RecordingDriver) -> None:
    function, w = compiled(scaled), torch.randn(8, 8)
    kept = []
    for _ in range(8):
        kept.append(torch.randn(4, 8))
        torch.testing.assert_close(function(kept[-1], w), scaled(kept[-1], w))
    assert replays(driver) == 8 - replay.WARM_UP - replay.WAITS


def test_an_input_that_begins_to_move_is_copied_by_a_new_capture(driver: RecordingDriver) -> None:
    function, w = compiled(scaled), torch.randn(8, 8)
    x = torch.randn(4, 8)
    for _ in range(4):
        function(x, w)
    kept = []
    for _ in range(10):
        kept.append(torch.randn(4, 8))
        torch.testing.assert_close(function(kept[-1], w), scaled(kept[-1], w))
    assert driver.log.count("capture") == 2
    assert replays(driver) > 4


def test_expanded_inputs_and_outputs_are_copied_as_they_lie(driver: RecordingDriver) -> None:
    def masked(x: Tensor, mask: Tensor) -> Tensor:
        return torch.softmax(x + mask, -1).sum(-1, keepdim=True).expand(4, 8)

    function, x = compiled(masked), torch.empty(4, 8)
    held = []
    for _ in range(12):
        x.normal_()
        held.append(function(x, mask := torch.randn(1, 8).expand(4, 8)))
        torch.testing.assert_close(held[-1], masked(x, mask))
    assert replays(driver) >= 2


def test_who_holds_only_the_storage_still_holds_it(driver: RecordingDriver) -> None:
    function, w = compiled(scaled), torch.randn(8, 8)
    x = torch.empty(4, 8).normal_()
    for _ in range(3):
        y = function(x, w)
    storage, wanted = y.untyped_storage(), y.clone()
    del y
    x.normal_()
    function(x, w)
    found = torch.empty(0).set_(storage, 0, (4, 8), (8, 1))
    torch.testing.assert_close(found, wanted)
    assert replays(driver) == 1


@pytest.mark.parametrize("size", [0, 1000])
def test_memory_that_was_resized_is_not_written_to(driver: RecordingDriver, size: int) -> None:
    function, w = compiled(scaled), torch.randn(8, 8)
    x = torch.empty(4, 8).normal_()
    for _ in range(3):
        y = function(x, w)
    y.untyped_storage().resize_(size)
    del y
    for _ in range(3):
        x.normal_()
        torch.testing.assert_close(function(x, w), scaled(x, w))
    assert driver.log.count("capture") == 2


def test_backward_waits_for_what_forward_keeps_to_lie_still(driver: RecordingDriver) -> None:
    w = torch.randn(8, 8, requires_grad=True)
    function, x = compiled(lambda x: torch.softmax(x @ w, -1).square().sum()), torch.randn(4, 8)
    with recording() as record:
        for _ in range(8):
            w.grad = None
            function(x).backward()
    captures = [fields for event, fields in record.events if event == "device-graph"]
    # What enters backward is new each time; what forward has saved is not.
    (backward,) = [fields for fields in captures if "backward" in fields["graph"]]
    assert backward["copied"] <= 1
    assert backward["fixed"] >= 2


def test_outputs_that_are_held_are_not_overwritten(driver: RecordingDriver) -> None:
    function, w = compiled(scaled), torch.randn(8, 8)
    x = torch.empty(4, 8)
    held, wanted = [], []
    for _ in range(8):
        x.normal_()
        held.append(function(x, w))
        wanted.append(scaled(x, w))
    assert replays(driver) >= 1
    for one, other in zip(held, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_a_view_of_an_output_is_enough_to_hold_it(driver: RecordingDriver) -> None:
    function, w = compiled(scaled), torch.randn(8, 8)
    x = torch.empty(4, 8).normal_()
    for _ in range(3):
        view = function(x, w)[1:]
    assert replays(driver) == 1
    before = view.clone()
    x.normal_()
    function(x, w)
    assert replays(driver) == 1
    torch.testing.assert_close(view, before)
    del view
    torch.testing.assert_close(function(x, w), scaled(x, w))
    assert replays(driver) == 2


def test_outputs_that_aten_allocates_are_not_overwritten(driver: RecordingDriver) -> None:
    def sorted_twice(x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sort(x.sin())[0], torch.sort(x.cos())[0]

    function, x = compiled(sorted_twice), torch.empty(16)
    for _ in range(6):
        x.normal_()
        first, second = function(x)
        torch.testing.assert_close((first, second), sorted_twice(x))
        del first, second
    assert replays(driver) == 4


def test_a_small_output_that_a_loop_holds_is_copied(driver: RecordingDriver) -> None:
    def loss_of(x: Tensor, w: Tensor) -> Tensor:
        return torch.softmax(x @ w, -1).square().mean()

    function, w = compiled(loss_of), torch.randn(8, 8)
    x, losses = torch.empty(4, 8), []
    for _ in range(12):
        x.normal_()
        loss = function(x, w)
        losses.append(loss)
        torch.testing.assert_close(loss, loss_of(x, w))
    assert replays(driver) >= 6
    assert len({loss.item() for loss in losses}) == 12


@pytest.mark.parametrize("accumulate", [1, 3])
def test_training_gives_the_losses_and_weights_of_eager(
    driver: RecordingDriver, accumulate: int
) -> None:
    def train(compile_it: bool) -> tuple[list[float], list[Tensor]]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 4))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        run = compiled(model) if compile_it else model
        losses = []
        for _ in range(6):
            optimizer.zero_grad()
            for _ in range(accumulate):
                loss = run(torch.randn(5, 8)).square().mean()
                loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses, [p.detach() for p in model.parameters()]

    wanted = train(False)
    got = train(True)
    assert replays(driver) > 0
    torch.testing.assert_close(got, wanted)


def test_buffers_that_are_written_to_are_written_to_by_replays(driver: RecordingDriver) -> None:
    torch.manual_seed(0)
    norm, other = nn.BatchNorm1d(6), nn.BatchNorm1d(6)
    function = compiled(norm)
    for _ in range(6):
        x = torch.randn(10, 6)
        torch.testing.assert_close(function(x), other(x))
    assert replays(driver) > 0
    torch.testing.assert_close(norm.running_var, other.running_var)
    assert norm.num_batches_tracked == other.num_batches_tracked


def test_an_input_that_is_written_to_and_moves_is_refused(driver: RecordingDriver) -> None:
    def add_one(x: Tensor) -> Tensor:
        x.add_(1)
        return x * 2

    function = compiled(add_one)
    kept = []
    with recording() as record:
        for _ in range(5):
            kept.append(torch.zeros(4))
            torch.testing.assert_close(function(kept[-1]), torch.full((4,), 2.0))
            assert bool((kept[-1] == 1).all())
    assert replays(driver) == 0
    assert "written to" in refusals(record.events)[0]


def test_random_numbers_are_new_in_each_replay_and_those_of_an_ordinary_run(
    driver: RecordingDriver,
) -> None:
    def noise(x: Tensor) -> Tensor:
        return torch.nn.functional.dropout(x, 0.5)

    x = torch.ones(64)
    torch.manual_seed(3)
    plain = compiled(noise, cuda_graphs=False)
    wanted = [plain(x) for _ in range(6)]
    torch._dynamo.reset()
    torch.manual_seed(3)
    function = compiled(noise)
    got = [function(x).clone() for _ in range(6)]
    assert replays(driver) == 4
    torch.testing.assert_close(got[:2], wanted[:2])
    assert len({tuple(one.tolist()) for one in got}) == 6


def test_other_settings_of_libraries_have_captures_of_their_own(driver: RecordingDriver) -> None:
    function, w = compiled(scaled), torch.randn(8, 8)
    x = torch.randn(4, 8)
    for _ in range(3):
        function(x, w)
    before = torch.backends.cuda.math_sdp_enabled()
    torch.backends.cuda.enable_math_sdp(not before)
    try:
        function(x, w)
    finally:
        torch.backends.cuda.enable_math_sdp(before)
    assert replays(driver) == 1
    function(x, w)
    assert replays(driver) == 2


def test_another_stream_runs_as_usual(driver: RecordingDriver) -> None:
    function, w = compiled(scaled), torch.randn(8, 8)
    x = torch.randn(4, 8)
    for _ in range(3):
        function(x, w)
    driver.current_stream = 8
    torch.testing.assert_close(function(x, w), scaled(x, w))
    assert replays(driver) == 1
    driver.current_stream = 7
    function(x, w)
    assert replays(driver) == 2


def test_within_a_capture_of_the_user_launches_are_ordinary(driver: RecordingDriver) -> None:
    function, w = compiled(scaled), torch.randn(8, 8)
    x = torch.randn(4, 8)
    for _ in range(3):
        function(x, w)
    driver.user_captures = True
    torch.testing.assert_close(function(x, w), scaled(x, w))
    assert replays(driver) == 1


def test_within_a_capture_of_the_user_no_memory_is_shared(driver: RecordingDriver) -> None:
    def chain(x: Tensor, w: Tensor) -> Tensor:
        return torch.softmax(torch.softmax(x @ w, -1) @ w, -1) @ w

    function, w = compiled(chain, cuda_graphs=False), torch.randn(8, 8)
    x = torch.randn(4, 8)
    function(x, w)
    pool = driver.memory.pool(driver.stream())
    before = [id(block) for block in pool._free]
    driver.user_captures = True
    pool._free[0].fill_(7)
    torch.testing.assert_close(function(x, w), chain(x, w))
    assert [id(block) for block in pool._free] == before
    assert bool((pool._free[0] == 7).all())


def test_a_capture_that_fails_leaves_the_graph_running(driver: RecordingDriver) -> None:
    driver.refuse = "operation not permitted when stream is capturing"
    function, w = compiled(scaled), torch.randn(8, 8)
    x = torch.randn(4, 8)
    with recording() as record:
        for _ in range(5):
            torch.testing.assert_close(function(x, w), scaled(x, w))
    assert driver.log.count("capture") == 1
    assert refusals(record.events) == [driver.refuse]


def test_an_operator_of_others_is_not_captured(driver: RecordingDriver) -> None:
    calls = []

    @torch.library.custom_op("replaytest::counted", mutates_args=())
    def counted(x: Tensor) -> Tensor:
        calls.append(1)
        return x + 1

    @counted.register_fake
    def _(x: Tensor) -> Tensor:
        return torch.empty_like(x)

    function = compiled(lambda x: counted(x.sin()) * 2)
    x = torch.randn(4)
    with recording() as record:
        for _ in range(5):
            function(x)
    assert len(calls) == 5
    assert "operator of others" in refusals(record.events)[0]


def test_each_size_has_its_capture(driver: RecordingDriver) -> None:
    function = torch.compile(scaled, backend="deepep", options=OPTIONS, dynamic=True)
    w = torch.randn(8, 8)
    # Held, so that each lies elsewhere: memory that is free may be where the last one of its size
    # lay, or not, and a capture waits for inputs that move.
    kept = []
    for _ in range(6):
        for rows in (3, 5):
            kept.append(torch.randn(rows, 8))
            torch.testing.assert_close(function(kept[-1], w), scaled(kept[-1], w))
    assert driver.log.count("capture") == 2
    assert replays(driver) == 2 * (6 - replay.WARM_UP - replay.WAITS)


def test_two_graphs_share_the_memory_of_intermediates(driver: RecordingDriver) -> None:
    def chain(x: Tensor, w: Tensor) -> Tensor:
        y = torch.softmax(x @ w, -1) @ w
        return torch.softmax(y, -1) @ w

    first, second = compiled(chain), compiled(lambda x, w: chain(x, w) + 1)
    w, x, y = torch.randn(8, 8), torch.randn(4, 8), torch.randn(4, 8)
    for _ in range(6):
        a, b = first(x, w), second(y, w)
        torch.testing.assert_close((a, b), (chain(x, w), chain(y, w) + 1))
        del a, b
    assert replays(driver) == 8
    assert len(driver.memory.pool(driver.stream())._free) == 1


def test_without_the_option_nothing_is_captured(driver: RecordingDriver) -> None:
    function, w = compiled(scaled, cuda_graphs=False), torch.randn(8, 8)
    x = torch.randn(4, 8)
    for _ in range(5):
        function(x, w)
    assert "capture" not in driver.log


def test_the_interpreter_refuses_and_goes_on() -> None:
    torch._dynamo.reset()
    function, w = compiled(scaled), torch.randn(8, 8)
    x = torch.randn(4, 8)
    with recording() as record:
        for _ in range(4):
            torch.testing.assert_close(function(x, w), scaled(x, w))
    assert refusals(record.events) == ["Triton's interpreter has no graphs"]
