"""Static calls: what is recorded, replayed, refused and given up, with a recorder for a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sdxl_worker.graphs.calls import How, StaticCalls, Why
from sdxl_worker.graphs.tree import NotStatic, shape_key
from testkit.doubles.graphs import FakeRecorder


def double(x: Tensor) -> Tensor:
    return x * 2


def called(calls: StaticCalls, size: int, value: float = 1.0, **options: Any) -> Tensor:
    found: Tensor = calls.call("double", double, {"x": torch.full((size,), value)}, **options)
    assert torch.equal(found, torch.full((size,), 2 * value))
    return found


def hows(calls: StaticCalls) -> list[tuple[str, str | None, int]]:
    return [(how.value, why.value if why else None, n)
            for (_, how, why), n in calls.take_counts().items()]  # fmt: skip


def test_a_shape_is_recorded_once_and_replayed_ever_after() -> None:
    recorder = FakeRecorder()
    calls = StaticCalls(recorder, 100)
    outputs = [called(calls, 3, value) for value in (1.0, 2.0, 3.0)]

    assert hows(calls) == [("captured", None, 1), ("replayed", None, 2)]
    assert len(recorder.made) == 1
    # What was given before must not change when the recording is replayed.
    assert [float(one[0]) for one in outputs] == [2.0, 4.0, 6.0]


def test_the_recorder_in_a_graph_s_place_is_as_blind_as_one() -> None:
    """Else nothing here would find a recording that is used where it must not be."""
    layer = nn.Linear(2, 2, bias=False).requires_grad_(False)
    recording = FakeRecorder().record(lambda: layer(torch.ones(1, 2)), "kept")
    layer.weight.fill_(2)
    assert float(recording.replay()[0, 0]) == 4
    layer.weight.data = torch.full((2, 2), 3.0)
    assert float(recording.replay()[0, 0]) == 4
    with pytest.raises(RuntimeError, match="capturing"):
        FakeRecorder().record(lambda: float(layer.weight.sum()), "kept")


def test_a_network_has_recordings_of_its_own_and_they_go_with_it() -> None:
    calls = StaticCalls(FakeRecorder(), 100)
    networks = [torch.full((3,), value) for value in (2.0, 5.0)]

    def drawn(network: Tensor, value: float) -> None:
        found = calls.call(
            "by", lambda x: x * network, {"x": torch.full((3,), value)}, of=[network]
        )
        assert torch.equal(found, value * network)

    for network in networks:
        drawn(network, 1.0)
        drawn(network, 3.0)
    assert hows(calls) == [("captured", None, 2), ("replayed", None, 2)]
    calls.forget(networks[0])
    assert len(calls) == 1
    drawn(networks[0], 3.0)
    drawn(networks[1], 3.0)
    assert hows(calls) == [("captured", None, 1), ("replayed", None, 1)]


def test_what_could_not_be_recorded_of_a_network_is_not_held_against_the_next_one() -> None:
    """In the place of one that is gone another one may lie."""
    recorder = FakeRecorder()
    calls = StaticCalls(recorder, 100)
    network = torch.ones(3)
    recorder.failing = RuntimeError("no graph")
    for failing, how in ((recorder.failing, "eager"), (None, "eager"), (None, "captured")):
        recorder.failing = failing
        if how == "captured":
            calls.forget(network)
        calls.call("by", double, {"x": torch.ones(3)}, of=[network])
        assert hows(calls)[0][0] == how


@pytest.mark.parametrize(
    "other",
    [
        {"x": torch.ones(3, dtype=torch.float64)},
        {"x": torch.ones(1, 3)},
        {"x": torch.ones(6)[::2]},
        {"x": torch.ones(3), "flag": True},
        {"x": torch.ones(3), "more": [torch.ones(1)]},
        {"x": torch.ones(3), "more": [torch.ones(1), torch.ones(1)]},
        {"x": torch.ones(3), "more": {"a": torch.ones(1)}},
        {"x": None},
    ],
)
def test_whatever_is_not_a_value_makes_another_shape(other: dict[str, Any]) -> None:
    assert shape_key(other) == shape_key(dict(other))
    assert shape_key(other) != shape_key({"x": torch.ones(3)})
    assert shape_key({"x": torch.zeros(3)}) == shape_key({"x": torch.ones(3)})


def test_an_argument_that_cannot_be_compared_is_called_eagerly() -> None:
    with pytest.raises(NotStatic):
        shape_key({"x": object()})
    calls = StaticCalls(FakeRecorder(), 100)

    assert calls.call("f", lambda x: 5, {"x": object()}) == 5
    assert hows(calls) == [("eager", "arguments", 1)]


def test_a_callee_may_take_out_of_the_lists_that_it_is_given() -> None:
    def use(parts: list[Tensor]) -> Tensor:
        total = torch.zeros(2)
        while parts:
            total = total + parts.pop()
        return total

    calls = StaticCalls(FakeRecorder(), 100)
    for value in (1.0, 2.0, 3.0):
        parts = [torch.full((2,), value), torch.full((2,), 1.0)]
        found = calls.call("use", use, {"parts": parts})
        assert torch.equal(found, torch.full((2,), value + 1))
        assert len(parts) == 2
    assert ("replayed", None, 2) in hows(calls)


def test_weights_written_in_place_are_seen_and_a_moved_one_is_the_control() -> None:
    """What a LoRA relies on; a recording keeps the memory that it was made with."""
    layer = nn.Linear(2, 2, bias=False).requires_grad_(False)
    held: Tensor = layer.weight.data

    def run(x: Tensor) -> Tensor:
        return x @ held.T

    calls = StaticCalls(FakeRecorder(), 100)
    x = torch.ones(1, 2)
    before = calls.call("layer", run, {"x": x})
    layer.weight.data.mul_(3)
    assert torch.equal(calls.call("layer", run, {"x": x}), layer(x))
    assert not torch.equal(layer(x), before)
    layer.weight.data = layer.weight.data * 2
    assert not torch.equal(calls.call("layer", run, {"x": x}), layer(x))


def test_a_recording_that_gives_other_bits_is_not_used() -> None:
    recorder = FakeRecorder()
    recorder.wrong = True
    calls = StaticCalls(recorder, 100)
    for value in (1.0, 2.0):
        called(calls, 3, value)

    assert hows(calls) == [("eager", "differs", 2)]
    assert all(one.discarded for _, one in recorder.made)


def test_numbers_that_are_none_are_the_same_where_their_bits_are() -> None:
    """What a LoRA that overflows draws must not be taken for a recording that is wrong."""
    calls = StaticCalls(FakeRecorder(), 100)
    for _ in range(2):
        found = calls.call("root", torch.sqrt, {"input": torch.tensor([-1.0, 4.0])})
        assert found.isnan().tolist() == [True, False]

    assert hows(calls) == [("captured", None, 1), ("replayed", None, 1)]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("operation not permitted when stream is capturing"),
        TypeError("graph() got an unexpected keyword argument"),
        AttributeError("module has no attribute"),
    ],
)
def test_what_cannot_be_recorded_is_called_eagerly_and_not_tried_again(error: Exception) -> None:
    recorder = FakeRecorder()
    recorder.failing = error
    calls = StaticCalls(recorder, 100)
    called(calls, 3)
    recorder.failing = None
    called(calls, 3)
    called(calls, 4)

    assert hows(calls) == [("eager", "capture_failed", 2), ("captured", None, 1)]


def test_without_a_gpu_or_with_something_attached_nothing_is_recorded() -> None:
    calls = StaticCalls(None)
    called(calls, 3)
    assert hows(calls) == [("eager", "no_gpu", 1)]

    recorder = FakeRecorder()
    calls = StaticCalls(recorder, 100)
    called(calls, 3)
    called(calls, 3, bypass=Why.ATTACHED)
    assert hows(calls) == [("captured", None, 1), ("eager", "attached", 1)]


def test_guests_beyond_their_budget_all_go_and_the_wanted_one_is_recorded_anew() -> None:
    recorder = FakeRecorder(price=40)
    calls = StaticCalls(recorder, 100)
    for size in (1, 2, 3):
        called(calls, size)

    assert recorder.anew == ["guests"]
    assert (len(calls), calls.nbytes) == (1, 40)
    calls.take_counts()
    called(calls, 3)
    called(calls, 1)
    assert hows(calls) == [("replayed", None, 1), ("captured", None, 1)]


def test_a_guest_that_alone_is_beyond_the_budget_is_refused_for_good() -> None:
    recorder = FakeRecorder(price=500)
    calls = StaticCalls(recorder, 100)
    called(calls, 1)
    called(calls, 1)

    assert hows(calls) == [("eager", "budget", 2)]
    assert calls.nbytes == 0
    assert all(one.discarded for _, one in recorder.made)


def test_only_so_many_guests_are_held_and_the_least_recently_used_goes_first() -> None:
    recorder = FakeRecorder(price=1)
    calls = StaticCalls(recorder, 100, guests_max=2)
    for size in (1, 2, 1, 3):
        called(calls, size)
    calls.take_counts()
    called(calls, 1)
    assert hows(calls) == [("replayed", None, 1)]
    called(calls, 2)
    assert hows(calls) == [("captured", None, 1)]


def test_what_was_recorded_while_warming_stays_whatever_the_guests_do() -> None:
    recorder = FakeRecorder(price=60)
    calls = StaticCalls(recorder, 100, guests_max=1)
    calls.warming = True
    called(calls, 9)
    calls.warming = False
    for size in range(1, 6):
        called(calls, size)
    calls.take_counts()
    called(calls, 9)

    assert hows(calls) == [("replayed", None, 1)]
    assert {pool for pool, _ in recorder.made} == {"kept", "guests"}


def test_without_a_budget_for_guests_none_is_tried() -> None:
    recorder = FakeRecorder()
    calls = StaticCalls(recorder, 0)
    called(calls, 1)

    assert hows(calls) == [("eager", "budget", 1)]
    assert recorder.made == []


class Cramped:
    """A callee that lacks memory while recordings are held."""

    def __init__(self, calls: StaticCalls) -> None:
        self.calls = calls

    def __call__(self, x: Tensor) -> Tensor:
        if len(self.calls):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x * 2


def test_memory_that_runs_out_takes_the_recordings_before_it_fails_a_request() -> None:
    recorder = FakeRecorder()
    calls = StaticCalls(recorder, 100)
    calls.warming = True
    called(calls, 3)
    calls.warming = False
    found = calls.call("big", Cramped(calls), {"x": torch.ones(2)}, bypass=Why.ATTACHED)

    assert torch.equal(found, torch.full((2,), 2.0))
    assert len(calls) == 0
    assert sorted(recorder.anew) == ["guests", "kept"]
    assert all(one.discarded for _, one in recorder.made)


def test_what_the_warm_up_recorded_is_kept_again_after_memory_ran_out() -> None:
    """On a small card nothing else is recorded: it would be eager until the next start."""
    calls = StaticCalls(FakeRecorder(), 0)
    calls.warming = True
    called(calls, 3)
    calls.warming = False
    calls.drop_all()
    calls.take_counts()
    for size in (3, 3, 4):
        called(calls, size)

    assert hows(calls) == [("captured", None, 1), ("replayed", None, 1), ("eager", "budget", 1)]
    assert len(calls) == 1


def test_memory_that_runs_out_with_nothing_to_give_up_is_the_caller_s() -> None:
    def fails(x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        StaticCalls(FakeRecorder(), 100).call("f", fails, {"x": torch.ones(1)})


def test_a_capture_for_which_memory_is_short_is_tried_again_only_much_later() -> None:
    recorder = FakeRecorder()
    recorder.failing = torch.OutOfMemoryError("CUDA out of memory")
    calls = StaticCalls(recorder, 100)
    for _ in range(500):
        called(calls, 3)
    assert hows(calls) == [("eager", "memory", 500)]
    recorder.failing = None
    for _ in range(3):
        called(calls, 3)
    counted = {(how, why): n for how, why, n in hows(calls)}
    assert counted[How.RECORDED.value, None] == 1


def test_an_error_of_the_callee_itself_is_the_caller_s() -> None:
    def fails(x: Tensor) -> Tensor:
        raise ValueError("the callee's own")

    with pytest.raises(ValueError, match="own"):
        StaticCalls(FakeRecorder(), 100).call("f", fails, {"x": torch.ones(1)})
