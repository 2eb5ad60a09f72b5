"""Temperature: what it does to probabilities, and that it is fitted, saved, used and switched off."""

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from scipy.special import expit

from custom.calibration import LIMITS, bins, calibration_error, fit_temperature
from custom.handlers import TemperatureFit
from custom.metrics import classification_summary
from custom.networks import SASwinClassifier

SMALL = {"feature_size": 12, "window_size": 2, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)}


def drawn(factor: float, cases: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Cases whose logits are `factor` times what they should be."""
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 2, cases)
    labels = (generator.random(cases) < expit(logits)).astype(int)
    positive = expit(factor * logits)
    return np.stack([1 - positive, positive], axis=1), labels


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_a_factor_on_the_logits(factor):
    assert fit_temperature(*drawn(factor)) == pytest.approx(factor, rel=0.06)


def test_a_fitted_temperature_makes_cases_more_likely_and_better_calibrated():
    probabilities, labels = drawn(3.0)
    logits = np.log(probabilities[:, 1] / probabilities[:, 0])
    after = expit(logits / fit_temperature(probabilities, labels))
    assert calibration_error(labels == 1, after) < 0.25 * calibration_error(labels == 1, probabilities[:, 1])


def test_a_few_cases_that_are_all_told_apart_do_not_make_it_certain():
    sure = np.array([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.1, 0.9]])
    temperature = fit_temperature(sure, np.array([0, 0, 1, 1]))
    # Softened labels are 3/4 here: the best constant logit is log 3, and the mean of log 9 and log 4 is log 6.
    assert LIMITS[0] < temperature
    assert np.log(6) / temperature < 1.2 * np.log(3)


def test_predictions_no_better_than_chance_become_uncertain():
    probabilities = np.array([[0.99, 0.01], [0.01, 0.99]] * 50)
    temperature = fit_temperature(probabilities, np.array([0, 1, 1, 0] * 25))
    assert expit(np.log(99) / temperature) < 0.54


def test_probabilities_that_underflow_have_a_temperature():
    assert np.isfinite(fit_temperature(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 1])))


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
def test_logits_are_divided_by_the_temperature_in_eval_mode_alone(readout):
    torch.manual_seed(0)
    network = SASwinClassifier(**SMALL, readout=readout)
    pair = torch.randn(2, 2, 64, 32, 32)
    network.eval()
    before = network(pair)
    network.temperature.fill_(4.0)
    torch.testing.assert_close(network(pair), before / 4)
    network.train()
    torch.manual_seed(1)
    trained = network(pair)
    network.temperature.fill_(1.0)
    torch.manual_seed(1)
    torch.testing.assert_close(network(pair), trained)


def test_the_handler_starts_each_validation_at_1_and_fits_at_its_end():
    network = SASwinClassifier(**SMALL)
    probabilities, labels = drawn(3.0, 400)
    seen = []

    def step(engine: Engine, batch: int) -> None:
        seen.append(network.temperature.item())

    engine = Engine(step)
    engine.state.cases = [
        {"probability_0": p[0], "probability_1": p[1], "label": label}
        for p, label in zip(probabilities, labels, strict=True)
    ]
    TemperatureFit(network).attach(engine)
    for _ in range(2):
        engine.run([0])
        assert network.temperature.item() == pytest.approx(3.0, rel=0.2)
    assert seen == [1.0, 1.0]
    assert "temperature" in network.state_dict()
