import logging

import numpy as np
import pytest
import torch
from ignite.engine import Events
from small_training import EPOCHS, STEPS, Training, content, same

from custom.support.errors import NumbersError
from custom.training.randomness import SampleOrder


def spoil(training, steps, value):
    """Give these iterations images that are not finite."""

    def images(engine):
        if engine.state.iteration in steps:
            engine.state.batch["image"] *= value

    training.trainer.add_event_handler(Events.ITERATION_STARTED, images)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_is_skipped_and_its_cases_are_named(tmp_path, caplog, value):
    training = Training(tmp_path)
    spoil(training, {2}, value)
    weights = []
    for event in (Events.ITERATION_STARTED, Events.ITERATION_COMPLETED):
        training.trainer.add_event_handler(
            event, lambda: weights.append([value.clone() for value in training.network.state_dict().values()])
        )
    with caplog.at_level(logging.WARNING):
        training.run()
    assert same(weights[2], weights[3])
    assert not same(weights[4], weights[5])
    order = SampleOrder(range(6), 2)
    order.set_epoch(1)
    named = [index for _, index in list(order)[2:4]]
    message = next(record.message for record in caplog.records if "may be skipped" in record.message)
    assert "step 1 of 3 that may be skipped, epoch 1, iteration 2: the loss is nan in the batch of" in message
    assert [f"sub-{i} (/data/{i}.nii.gz)" in message for i in range(6)] == [i in named for i in range(6)]
    assert np.isfinite(content(tmp_path)[0]["trainer"]["best_metric"])


def test_gradients_that_are_not_finite_are_skipped_where_the_loss_is(tmp_path, caplog):
    training = Training(tmp_path)
    training.network[0].weight.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(NumbersError, match=r"the gradients' norm is (nan|inf)"):
        training.run()
    last, best = content(tmp_path)
    assert all(tensor.isfinite().all() for state in (last["network"], best) for tensor in state.values())


def test_a_scale_that_is_too_large_is_lowered_and_not_counted(tmp_path):
    training, scales = Training(tmp_path, scale=2.0**127, max_skipped=0), []
    training.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: scales.append(engine.scaler.get_scale())
    )
    training.run()
    assert content(tmp_path)[0]["step_guard"] == {"skipped": 0}
    assert scales[0] == 2.0**126


def test_with_a_scale_a_loss_that_is_not_finite_counts(tmp_path):
    training = Training(tmp_path, scale=4.0, max_skipped=1)
    spoil(training, {2, 4}, float("nan"))
    with pytest.raises(NumbersError, match=r"epoch 2, iteration 4"):
        training.run()
    assert all(tensor.isfinite().all() for tensor in content(tmp_path)[0]["network"].values())


def test_beyond_the_budget_training_stops_and_the_last_good_checkpoint_stays(tmp_path):
    training = Training(tmp_path, max_skipped=2)
    spoil(training, {2, 5, 6}, float("nan"))
    with pytest.raises(NumbersError, match=r"epoch 2, iteration 6: .*sub-\d .*; 2 such steps are allowed") as raised:
        training.run()
    assert "--resume True goes on from the last checkpoint" in str(raised.value)
    last, best = content(tmp_path)
    assert last["trainer"]["iteration"] == STEPS
    assert last["step_guard"] == {"skipped": 1}
    assert all(tensor.isfinite().all() for state in (last["network"], best) for tensor in state.values())
    Training(tmp_path).run()  # the images are mended
    assert content(tmp_path)[0]["trainer"]["iteration"] == EPOCHS * STEPS


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    training = Training(tmp_path)

    def poison():
        with torch.no_grad():
            training.network[3].bias.fill_(float("nan"))

    training.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=5), poison)
    with pytest.raises(NumbersError):
        training.run()
    last, best = content(tmp_path)
    assert last["trainer"]["iteration"] == STEPS
    assert all(tensor.isfinite().all() for state in (last["network"], best) for tensor in state.values())


def test_a_validation_that_is_not_finite_is_no_progress(tmp_path):
    training = Training(tmp_path, max_epochs=9, patience=2)
    training.evaluator.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: engine.state.metrics.update(auc=float("nan"))
    )
    training.run()
    assert training.trainer.state.epoch == 3
