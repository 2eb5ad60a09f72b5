import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, logit
from sklearn.metrics import roc_auc_score

from custom.evaluation.calibration import calibration_error
from sa_swin.study.statistics import (
    delong_variance,
    difference_interval,
    difference_test,
    figure_interval,
    mean_auc,
    mean_score,
    placements,
    score_variance,
)
from sa_swin.study.summary import calibration_figures


def scores(seed, shift, seeds=3, n=80):
    """Truth of `n` cases, half of them positive, and scores that tell them apart by `shift` standard deviations."""
    generator = np.random.default_rng(seed)
    truth = np.arange(n) % 2 == 1
    common = generator.standard_normal(n)
    return truth, shift * truth + common + 0.3 * generator.standard_normal((seeds, n))


def test_cases_of_two_folds_are_not_ranked_against_each_other():
    truth, own = scores(0, 1.0)
    fold = np.arange(80) // 2 % 2
    moved = own + 100 * fold  # the scale of another training
    strata = 2 * fold + truth
    within = [mean_auc(truth[fold == number], own[:, fold == number]) for number in (0, 1)]
    assert mean_auc(strata, moved) == pytest.approx(np.mean(within))  # as many pairs in either
    assert mean_auc(truth, moved) < mean_auc(strata, moved) - 0.1
    for part in placements(strata, moved[0]):
        assert part.mean() == pytest.approx(mean_auc(strata, moved[:1]))
    assert [variance for variance, _ in delong_variance(strata, moved, own)] == [0.0, 0.0]
    low, high = figure_interval(mean_auc, strata, moved)
    assert low < mean_auc(strata, moved) < high


def test_the_auc_is_the_mean_of_scikit_learns_over_the_seeds_ties_included():
    truth, own = scores(0, 1.0)
    own = own.round(1)
    assert mean_auc(truth, own) == pytest.approx(np.mean([roc_auc_score(truth, row) for row in own]), abs=1e-12)


def test_delong_gives_the_variance_worked_out_by_hand():
    # Positives 4 3 1 against negatives 2 0: components 1, 1, 1/2 and 2/3, 1. Positives 1 3 2 against 2.5 0: 1/2, 1, 1/2
    # and 1/3, 1. Differences 1/2, 0, 0 (variance 1/12, by three 1/36) and 1/3, 0 (variance 1/18, by two 1/36).
    truth = np.array([True, True, True, False, False])
    first, second = np.array([[4, 3, 1, 2, 0.0]]), np.array([[1, 3, 2, 2.5, 0.0]])
    of_positives, of_negatives = placements(truth, first[0])
    np.testing.assert_allclose(of_positives, [1, 1, 0.5])
    np.testing.assert_allclose(of_negatives, [2 / 3, 1])
    (of_positive, two), (of_negative, one) = delong_variance(truth, first, second)
    assert (of_positive, of_negative, two, one) == pytest.approx((1 / 36, 1 / 36, 2, 1))
    assert delong_variance(truth[1:4], first[:, 1:4], second[:, 1:4])[1][0] == np.inf  # of one negative


def test_a_difference_is_tested_over_cases_and_trainings_as_worked_out_by_hand():
    # Trainings 0.1 and 0.3: variance 0.02, of their mean 0.01. With 0.01 over 11 cases: t = 0.2 / 0.1414 = 1.414 at
    # 0.0004 / (0.0001 / 10 + 0.0001 / 1) = 3.636 degrees of freedom.
    low, high, p = difference_test(np.array([0.1, 0.3]), [(0.01, 10)])
    assert p == pytest.approx(2 * stats.t.sf(2**0.5, 3.6364), rel=1e-3)
    assert (low + high) / 2 == pytest.approx(0.2)
    assert high - low == pytest.approx(2 * stats.t.ppf(0.975, 3.6364) * 0.02**0.5, rel=1e-3)
    _, _, over_cases = difference_test(np.array([0.2]), [(0.01, 10)])
    assert over_cases == pytest.approx(2 * stats.t.sf(2, 10))
    assert difference_test(np.array([0.2, 0.2]), [(0.01, 10)])[2] == pytest.approx(over_cases)  # repeated, not more
    assert difference_test(np.zeros(2), [(0.0, 10)]) == (0.0, 0.0, 1.0)
    assert difference_test(np.array([0.1]), [(np.inf, 1)]) == (-1.0, 1.0, 1.0)


def test_a_small_class_has_the_few_degrees_of_freedom_that_it_has():
    # 0.009 of 3 positives and 0.001 of 97 negatives: 0.01^2 / (0.009^2 / 2 + 0.001^2 / 96) = 2.469.
    _, _, p = difference_test(np.array([0.2]), [(0.009, 2), (0.001, 96)])
    assert p == pytest.approx(2 * stats.t.sf(2, 2.469), rel=1e-3)


@pytest.mark.parametrize("figure", ["auc", "score"])
def test_one_time_in_twenty_a_difference_is_found_where_there_is_none(figure):
    """Trainings that are good or bad as a whole, as seeds of networks are; over cases alone, four times as often."""
    found, over_cases = [], []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        truth = np.arange(60) % 2 == 1
        common = truth + rng.standard_normal(60)
        arms = [common + 0.5 * rng.standard_normal((3, 60)) + 0.4 * rng.standard_normal((3, 1)) * truth for _ in "ab"]
        if figure == "auc":
            of_seeds = np.array(
                [mean_auc(truth, a[None]) - mean_auc(truth, b[None]) for a, b in zip(*arms, strict=True)]
            )
            variance = delong_variance(truth, *arms)
        else:
            of_seeds, variance = (arms[0] - arms[1]).mean(axis=1), score_variance(truth, *arms)
        found.append(difference_test(of_seeds, variance)[2] < 0.05)
        over_cases.append(difference_test(of_seeds.mean(keepdims=True), variance)[2] < 0.05)
    assert 0.01 < np.mean(found) < 0.08
    assert np.mean(over_cases) > 1.5 * np.mean(found)


def test_pairing_makes_the_interval_of_a_difference_narrower():
    truth, first = scores(4, 1.0)
    second = first + 0.2 * np.random.default_rng(5).standard_normal(first.shape)
    low, high = difference_interval(mean_auc, truth, first, second)
    alone = [np.diff(figure_interval(mean_auc, truth, arm))[0] for arm in (first, second)]
    assert high - low < 0.5 * np.hypot(*alone)


def test_the_seeds_are_a_part_of_the_interval():
    truth, own = scores(6, 1.0, seeds=1)
    alike = np.repeat(own, 3, axis=0)
    apart = alike + np.array([-1.0, 0.0, 1.0])[:, None] * truth
    widths = [np.diff(figure_interval(mean_auc, truth, arm))[0] for arm in (alike, apart)]
    assert widths[1] > 1.3 * widths[0]


def test_the_variance_of_a_score_is_that_of_the_mean_paired_difference():
    ((variance, freedom),) = score_variance(np.ones(3), np.array([[0.3, 0.2, 0.1], [0.5, 0.2, 0.1]]), np.zeros((2, 3)))
    assert variance == pytest.approx(np.var([0.4, 0.2, 0.1], ddof=1) / 3)
    assert freedom == 2
    assert score_variance(np.ones(1), np.ones((1, 1)), np.zeros((1, 1))) == [(np.inf, 1)]


def test_dice_is_the_mean_over_seeds_and_cases():
    assert mean_score(np.ones(2, bool), np.array([[0.5, 0.7], [0.9, 0.7]])) == pytest.approx(0.7)


def test_calibration_figures_undo_what_the_arm_was_calibrated_with():
    truth = np.array([True, False, True, False])
    raw = np.array([[0.9, 0.8, 0.7, 0.4], [0.6, 0.2, 0.9, 0.1]])
    parts = [{"temperature": 2.0, "bias": -0.5}, {"temperature": 0.5, "bias": 0.25}]
    scores = np.stack(
        [expit(logit(row) / own["temperature"] + own["bias"]) for row, own in zip(raw, parts, strict=True)]
    )
    found = calibration_figures({"calibration": parts}, truth, scores)
    by_hand = -np.log([0.9, 0.2, 0.7, 0.6, 0.6, 0.8, 0.9, 0.9]).mean()
    assert found["log_loss_before"] == pytest.approx(by_hand)
    assert found["log_loss"] == pytest.approx(-np.log(np.where(truth, scores, 1 - scores)).mean())
    assert found["log_loss_low"] <= found["log_loss"] - found["log_loss_before"] <= found["log_loss_high"]
    sure = calibration_figures(
        {"calibration": [{"temperature": 10.0, "bias": 0.0}]}, np.array([False, True]), np.array([[0.99, 0.9]])
    )
    assert np.isfinite(list(sure.values())).all()  # before, such a probability rounds to 1
    assert found["calibration_error_before"] == pytest.approx(np.mean([calibration_error(truth, row) for row in raw]))
