import math

import pytest

from sa_swin.study.coverage import intervals, volumes, write_coverage
from sa_swin.study.plan import StudyError


def test_each_fold_is_measured_by_the_errors_of_the_others():
    exact, off = [(9.0, 9.0)] * 9, [(19.0, 9.0)] * 9  # off by a factor of 2, of ml + 1
    held, ratios = zip(*intervals([exact, off], 0.9), strict=True)
    assert held == (True,) * 9 + (False,) * 9  # the first has the wide radius of the second, which has none
    assert ratios[0] == pytest.approx(4.0)
    assert ratios[-1] == pytest.approx(1.0)


def test_too_few_others_give_no_bound():
    ((held, ratio), *_) = intervals([[(1.0, 50.0)], [(2.0, 2.0)]], 0.9)
    assert held
    assert math.isinf(ratio)


def test_a_subject_counts_once_with_the_scan_that_was_predicted_worst(tmp_path):
    rows = "subject,volume_ml,predicted_ml\na,10,9\na,10,2\na,10,11\nb,5,5\n"
    (tmp_path / "cases.csv").write_text(rows)
    assert volumes(tmp_path / "cases.csv") == [(10.0, 2.0), (5.0, 5.0)]


def test_a_study_without_folds_has_nobody_to_measure_by(tmp_path):
    text = (
        "cohort: {subjects: 4}\ngrid: {spacing: 4.0}\nvariants: {plain: {}}\narms: [{task: segment, variant: plain}]\n"
    )
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(StudyError, match="has no folds: each fold is measured by the others"):
        write_coverage(str(tmp_path / "study.yaml"), str(tmp_path), str(tmp_path))
