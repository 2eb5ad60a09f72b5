import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.metrics import roc_auc_score

from custom.evaluation.calibration import calibration_error
from sa_swin.study.statistics import (
    delong,
    difference_interval,
    figure_interval,
    mean_auc,
    mean_score,
    placements,
    sign_flip,
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
    assert delong(strata, moved, own) == 1.0
    low, high = figure_interval(mean_auc, strata, moved)
    assert low < mean_auc(strata, moved) < high


def test_the_auc_is_the_mean_of_scikit_learns_over_the_seeds_ties_included():
    truth, own = scores(0, 1.0)
    own = own.round(1)
    assert mean_auc(truth, own) == pytest.approx(np.mean([roc_auc_score(truth, row) for row in own]), abs=1e-12)


def test_delong_gives_the_p_value_worked_out_by_hand():
    # Positives 4 3 1 against negatives 2 0: components 1, 1, 1/2 and 2/3, 1. Positives 1 3 2 against 2.5 0: 1/2, 1, 1/2
    # and 1/3, 1. Differences 1/2, 0, 0 (variance 1/12, by three 1/36) and 1/3, 0 (variance 1/18, by two 1/36); their
    # mean 1/6 over the root of 1/18 is z = 0.7071, two-sided p 0.4795.
    truth = np.array([True, True, True, False, False])
    first, second = np.array([[4, 3, 1, 2, 0.0]]), np.array([[1, 3, 2, 2.5, 0.0]])
    of_positives, of_negatives = placements(truth, first[0])
    np.testing.assert_allclose(of_positives, [1, 1, 0.5])
    np.testing.assert_allclose(of_negatives, [2 / 3, 1])
    assert delong(truth, first, second) == pytest.approx(0.4795, abs=5e-5)


def test_delong_of_one_arm_with_itself_is_one_and_of_opposites_is_small():
    truth, own = scores(1, 1.0)
    assert delong(truth, own, own) == 1.0
    assert delong(truth, own, -own) < 1e-6


def test_delong_rejects_one_time_in_twenty_where_there_is_no_difference():
    p = []
    for seed in range(300):
        generator = np.random.default_rng(seed)
        truth = np.arange(60) % 2 == 1
        common = truth + generator.standard_normal(60)
        p.append(delong(truth, *(common + 0.5 * generator.standard_normal((2, 1, 60)))))
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.09


def test_repeating_a_training_changes_neither_figure_nor_p_value():
    truth, first = scores(2, 1.0, seeds=1)
    _, second = scores(3, 0.5, seeds=1)
    repeated = [np.repeat(arm, 3, axis=0) for arm in (first, second)]
    assert mean_auc(truth, repeated[0]) == pytest.approx(mean_auc(truth, first))
    assert delong(truth, *repeated) == pytest.approx(delong(truth, first, second))


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


def test_the_sign_flip_test_finds_a_shift_of_every_case_and_nothing_where_signs_alternate():
    base = np.random.default_rng(7).uniform(0.5, 0.9, (3, 30))
    assert sign_flip(base + 0.02, base) < 0.001
    assert sign_flip(base + 0.02 * np.resize([1, -1], 30), base) > 0.5


def test_the_sign_flip_test_counts_all_assignments_of_a_few_cases():
    assert sign_flip(np.array([[0.3, 0.2, 0.1]]), np.zeros((1, 3))) == pytest.approx(2 / 2**3)


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
