import math

import pytest

from sa_swin.study.coverage import intervals


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
