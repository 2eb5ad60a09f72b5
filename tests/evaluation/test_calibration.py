"""Calibration: what temperature and biases do to probabilities, how they are fitted, saved and used."""

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from scipy.special import expit, softmax

from custom.evaluation.calibration import bins, calibration_error, fit_calibration
from custom.evaluation.case_table import CalibrationFit
from custom.evaluation.metrics import classification_summary
from custom.networks.classifier import SASwinClassifier

SMALL = {"feature_size": 12, "window_size": 2, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)}


def drawn(factor: float, shift: float = 0.0, cases: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Cases whose logits are `factor` times what they should be, and then shifted."""
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 2, cases)
    labels = (generator.random(cases) < expit(logits)).astype(int)
    positive = expit(factor * logits + shift)
    return np.stack([1 - positive, positive], axis=1), labels


def calibrated(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    temperature, bias = fit_calibration(probabilities, labels)
    return softmax(np.log(probabilities) / temperature + bias, axis=1)


@pytest.mark.parametrize("shift", [0.0, 2.0])
@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_a_factor_on_the_logits_and_a_leaning_to_one_class_are_undone(factor, shift):
    temperature, bias = fit_calibration(*drawn(factor, shift))
    assert temperature == pytest.approx(factor, rel=0.08)
    assert bias[1] - bias[0] == pytest.approx(-shift / factor, abs=0.15)
    assert bias.sum() == pytest.approx(0)


def test_three_classes_each_have_a_bias():
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 2, (4000, 3))
    labels = np.array([generator.choice(3, p=p) for p in softmax(logits, axis=1)])
    shift = np.array([1.0, -2.0, 0.5])
    temperature, bias = fit_calibration(softmax(2 * logits + shift, axis=1), labels)
    assert temperature == pytest.approx(2.0, rel=0.08)
    np.testing.assert_allclose(bias, -(shift - shift.mean()) / 2, atol=0.15)


def test_what_is_fitted_makes_cases_better_calibrated():
    probabilities, labels = drawn(3.0, 2.0)
    before, after = (
        calibration_error(labels == 1, p[:, 1]) for p in (probabilities, calibrated(probabilities, labels))
    )
    assert after < 0.2 * before


def test_a_few_cases_that_are_all_told_apart_do_not_make_it_certain():
    sure = np.array([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.1, 0.9]])
    found = calibrated(sure, np.array([0, 0, 1, 1]))
    assert found[:2, 0].mean() == pytest.approx(0.75, abs=0.03)  # (2 + 1) / (2 + 2)


def test_predictions_no_better_than_chance_become_the_share_of_their_class():
    probabilities = np.array([[0.99, 0.01], [0.01, 0.99]] * 60)
    found = calibrated(probabilities, np.array([0, 0, 1, 1, 0, 0] * 20))
    np.testing.assert_allclose(found[:, 0], 2 / 3, atol=0.07)


def test_probabilities_that_underflow_are_calibrated():
    temperature, bias = fit_calibration(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 1]))
    assert np.isfinite([temperature, *bias]).all()


def test_calibration_is_counted_by_hand():
    truth = np.array([False, True, True, False])
    probability = np.array([0.21, 0.95, 1.0, 0.95])
    predicted, observed, counts = bins(truth, probability)
    np.testing.assert_allclose(predicted, [0.21, 2.9 / 3])
    np.testing.assert_allclose(observed, [0, 2 / 3])
    assert counts.tolist() == [1, 3]
    assert calibration_error(truth, probability) == pytest.approx((0.21 + 3 * (2.9 / 3 - 2 / 3)) / 4)


def test_the_summary_has_the_figures_of_calibration():
    rows = [
        {"probability_0": 0.9, "probability_1": 0.1, "prediction": 0, "label": 0},
        {"probability_0": 0.4, "probability_1": 0.6, "prediction": 1, "label": 0},
    ]
    summary = classification_summary(rows)
    assert summary["log_loss"] == pytest.approx(-(np.log(0.9) + np.log(0.4)) / 2)
    assert summary["brier"] == pytest.approx((0.1**2 + 0.6**2) / 2)
    assert summary["calibration_error"] == pytest.approx((0.1 + 0.6) / 2)


@pytest.mark.parametrize("readout", ["places", "paper"])
def test_temperature_and_biases_act_in_eval_mode_alone(readout):
    torch.manual_seed(0)
    network = SASwinClassifier(**SMALL, readout=readout)
    pair = torch.randn(2, 2, 64, 32, 32)
    network.eval()
    before = network(pair)
    network.temperature.fill_(4.0)
    network.class_bias.copy_(torch.tensor([-0.5, 0.5]))
    torch.testing.assert_close(network(pair), before / 4 + torch.tensor([-0.5, 0.5]))
    network.train()
    torch.manual_seed(1)
    trained = network(pair)
    network.temperature.fill_(1.0)
    network.class_bias.zero_()
    torch.manual_seed(1)
    torch.testing.assert_close(network(pair), trained)


@pytest.mark.parametrize(("enabled", "negatives", "fitted"), [(True, 19, False), (True, 20, True), (False, 20, False)])
def test_with_fewer_than_20_cases_in_a_class_or_switched_off_nothing_is_fitted(enabled, negatives, fitted, caplog):
    network = SASwinClassifier(**SMALL)
    network.temperature.fill_(5.0)  # of an earlier validation
    engine = Engine(lambda engine, batch: None)
    engine.state.cases = [
        {"probability_0": 0.8, "probability_1": 0.2, "label": label} for label in [0] * negatives + [1] * 30
    ]
    CalibrationFit(network, enabled).attach(engine)
    engine.run([0])
    assert (network.temperature.item() != 1) == bool(network.class_bias.any()) == fitted
    told = "the validation has 19 of class 0; expected 20 or more of each class"
    assert (told in caplog.text) == (negatives < 20)


def test_the_handler_fits_at_the_end_of_each_validation_which_runs_without():
    network = SASwinClassifier(**SMALL)
    probabilities, labels = drawn(3.0, 2.0, 400)
    seen = []

    def step(engine: Engine, batch: int) -> None:
        seen.append((network.temperature.item(), network.class_bias.abs().sum().item()))

    engine = Engine(step)
    engine.state.cases = [
        {"probability_0": p[0], "probability_1": p[1], "label": label}
        for p, label in zip(probabilities, labels, strict=True)
    ]
    CalibrationFit(network).attach(engine)
    for _ in range(2):
        engine.run([0])
        assert network.temperature.item() == pytest.approx(3.0, rel=0.25)
        assert network.class_bias[1].item() == pytest.approx(-1 / 3, abs=0.2)
    assert seen == [(1.0, 0.0), (1.0, 0.0)]
    assert {"temperature", "class_bias"} <= network.state_dict().keys()
