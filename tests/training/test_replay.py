import logging

import pytest
import torch
from small_training import Training, content, same
from torch import nn

from custom.training import replay
from custom.training.replay import PLAIN_STEPS, ReplayedStep


class Recording:
    """In the place of a CUDA graph: computes once on tensors of its own, and again whenever it is replayed."""

    made = 0

    def __init__(self, function, inputs, parameters):
        Recording.made += 1
        self.function, self.parameters = function, parameters
        self.inputs = [value.clone() for value in inputs]

    def replay(self, inputs):
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        for parameter in self.parameters:
            parameter.grad = None  # a graph writes gradients, and does not add to them
        return self.function(*self.inputs)


@pytest.fixture
def recorded(monkeypatch):
    """Steps are recorded and replayed on the CPU; `waits` is what they are found to wait for."""
    waits = []
    Recording.made = 0
    monkeypatch.setattr(replay, "Recording", Recording)
    monkeypatch.setattr(replay, "run_and_watch", lambda function, inputs: (function(*inputs), waits))
    return waits


@pytest.fixture
def step():
    """A step that fills the gradient of one weight with the sum of its input, and gives twice that."""
    weight = nn.Parameter(torch.zeros(()))

    def function(values):
        (weight * values.sum()).backward()
        return 2 * values.sum()

    return ReplayedStep(function, [weight])


def results(step, sizes):
    return [step(torch.full((size,), float(number))).item() for number, size in enumerate(sizes)]


def test_a_step_is_recorded_once_and_replayed_with_each_input(recorded, step):
    weight = step.parameters[0]
    for number in range(PLAIN_STEPS + 4):
        assert step(torch.full((3,), float(number))) == 6 * number
        assert Recording.made == int(number >= PLAIN_STEPS)
        assert weight.grad == 3 * number  # not added to the last step's


def test_another_shape_is_run_as_it_is_and_does_not_lose_the_recording(recorded, step):
    sizes = [3] * (PLAIN_STEPS + 2) + [2, 3, 2, 2, 2, 2, 3]
    assert results(step, sizes) == [2 * number * size for number, size in enumerate(sizes)]
    assert Recording.made == 1


def test_a_shape_that_changes_before_it_is_recorded_starts_anew(recorded, step):
    results(step, [3] * PLAIN_STEPS + [2] * PLAIN_STEPS)
    assert Recording.made == 0


def test_a_step_that_waits_is_never_recorded_and_a_sentence_says_why(recorded, step, caplog):
    recorded.append("called a synchronizing CUDA operation")
    with caplog.at_level(logging.WARNING):
        assert results(step, [3] * 6) == [6 * number for number in range(6)]
    assert Recording.made == 0
    assert [r.message for r in caplog.records] == [
        "the step is not replayed as a CUDA graph, and takes longer; it waits for the GPU: called a synchronizing CUDA "
        "operation"
    ]


def test_a_recording_that_fails_leaves_the_step_as_it_is(recorded, step, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("operation not permitted\nmore")

    monkeypatch.setattr(replay, "Recording", fail)
    with caplog.at_level(logging.WARNING):
        assert results(step, [3] * 6) == [6 * number for number in range(6)]
    assert [r.message for r in caplog.records] == [
        "the step is not replayed as a CUDA graph, and takes longer; operation not permitted"
    ]


def test_full_memory_is_not_taken_for_a_step_that_cannot_be_recorded(recorded, step, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(replay, "Recording", fail)
    with pytest.raises(torch.OutOfMemoryError):
        results(step, [3] * 6)


def test_a_step_on_a_cpu_is_not_recorded(recorded, tmp_path):
    Training(tmp_path).run()
    assert Recording.made == 0


@pytest.mark.parametrize("scale", [None, 4.0])
def test_a_training_is_the_same_with_monais_own_iteration_and_replayed(recorded, tmp_path, scale):
    states = {}
    for name in ("ours", "monai", "replayed"):
        training = Training(tmp_path / name, scale=scale)
        if name == "monai":
            training.trainer._process_function = training.trainer._iteration
        if name == "replayed":
            training.step.step_of(training.trainer).enabled = True
        training.run()
        states[name] = content(tmp_path / name)
    assert Recording.made == 1
    assert same(states["ours"], states["monai"])
    assert same(states["ours"], states["replayed"])
