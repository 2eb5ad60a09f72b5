import json
import logging
import math

import numpy as np
import pytest
from scipy.stats import binom

from custom.evaluation.conformal import (
    UNTRUSTED_PLANE,
    Conformal,
    class_set,
    fit,
    radius,
    sides_within,
    volume_interval,
    volume_score,
)
from custom.support.errors import UserError
from custom.transforms.findings import side_of


def found_within(successes, trials, share):
    """Whether a number of successes is in the central 99.9 % of its binomial distribution."""
    low, high = binom.interval(0.999, trials, share)
    return low <= successes <= high


def test_the_radius_is_the_corrected_quantile_by_hand():
    assert radius([5, 1, 4, 2, 3], 0.5) == 3  # rank 3 of 5
    assert radius(range(1, 10), 0.9) == 9
    assert radius(range(1, 9), 0.9) == math.inf  # 9 of 8
    assert radius(range(1, 20), 0.9) == 18
    assert radius([], 0.9) == math.inf


@pytest.mark.parametrize("number", [9, 12, 40])
def test_exchangeable_draws_are_covered_as_often_as_asked(number):
    """The rank of the next score among n is uniform, so the coverage is exactly `rank / (n + 1)`."""
    draws = np.random.default_rng(0).lognormal(size=(20000, number + 1))
    hits = sum(new <= radius(scores, 0.9) for *scores, new in draws)
    exact = math.ceil(0.9 * (number + 1) - 1e-9) / (number + 1)
    assert exact >= 0.9
    assert found_within(hits, len(draws), exact)


def of_people(rows):
    """Rows of one subject each."""
    return [row | {"subject": str(number)} for number, row in enumerate(rows)]


def drawn_lesions(generator, number):
    """Rows of an evaluation whose predictions are off by a factor, and whose findings may be on the other side."""
    volumes = generator.lognormal(2, 1, number)
    predicted = volumes * generator.lognormal(-0.2, 0.4, number)
    index = np.clip(generator.normal(0, 1, number), -1, 1)
    seen = np.clip(index + generator.normal(0, 0.1, number), -1, 1)
    columns = zip(volumes, predicted, index, seen, strict=True)
    names = ("volume_ml", "predicted_ml", "asymmetry_index", "predicted_asymmetry_index")
    return of_people(dict(zip(names, map(float, values), strict=True)) for values in columns)


def as_predicted(row, suffix="_class1"):
    """The row that inference has of the same case."""
    return {
        f"volume_ml{suffix}": row["predicted_ml"],
        f"asymmetry_index{suffix}": row["predicted_asymmetry_index"],
    }


@pytest.fixture
def conformal(tmp_path):
    """Intervals from rows, by the file."""

    def made(rows, coverage=0.9, digest="ab", used="ab", evaluated=(), settings=None):
        path = tmp_path / "conformal.json"
        figures = fit(rows, coverage) | {"weights_sha256": [digest], "settings": dict(evaluated)}
        path.write_text(json.dumps(figures, allow_nan=False))
        return Conformal(path, lambda: used, settings)

    return made


def side(index):
    return side_of((1 - index) / 2, (1 + index) / 2)


def test_volumes_and_sides_of_new_cases_lie_within_as_often_as_asked(conformal):
    generator = np.random.default_rng(1)
    volumes = sides = 0
    for _ in range(300):
        *rows, new = drawn_lesions(generator, 30)
        told = conformal(rows)(as_predicted(new))
        volumes += told["volume_low_class1"] <= new["volume_ml"] <= told["volume_high_class1"]
        sides += side(new["asymmetry_index"]) in told["side_set_class1"].split(" or ")
    assert found_within(volumes, 300, 27 / 30)
    assert sides >= binom.ppf(0.0005, 300, 27 / 30)


def test_every_class_is_in_its_set_as_often_as_asked_however_rare_it_is(conformal):
    generator = np.random.default_rng(2)

    def case(label):
        evidence = generator.normal(1.0 if label else -1.0)
        share = 1 / (1 + math.exp(-evidence))
        return {"probability_0": 1 - share, "probability_1": share, "label": label}

    hits = [0, 0]
    for _ in range(200):
        told = conformal(of_people(case(int(index < 12)) for index in range(60)))
        for label in (0, 1):
            hits[label] += str(label) in told(case(label))["class_set"]
    assert min(hits) >= binom.ppf(0.0005, 200, 0.9)


def test_an_interval_holds_what_its_radius_says():
    low, high = volume_interval(9.0, math.log(2))
    assert (low, high) == pytest.approx((4.0, 19.0))  # (9 + 1) / 2 - 1, (9 + 1) * 2 - 1
    assert volume_score(low, 9.0) == pytest.approx(volume_score(high, 9.0)) == pytest.approx(math.log(2))
    assert volume_interval(0.0, math.log(2)) == pytest.approx((0.0, 1.0))
    assert volume_interval(5.0, math.inf) == (0.0, math.inf)


@pytest.mark.parametrize(
    ("low", "high", "sides"),
    [(0.85, 1.2, ["right"]), (0.5, 0.9, ["both", "right"]), (-0.1, 0.1, ["both"]), (-2, 2, ["left", "both", "right"]),
     (-1, -0.8, ["left"]), (math.nan, math.nan, [])],
)  # fmt: skip
def test_an_interval_of_the_asymmetry_index_meets_sides(low, high, sides):
    assert sides_within(low, high) == sides


def test_a_set_has_the_classes_that_are_likely_enough():
    assert class_set([0.7, 0.2, 0.1], [0.5, 0.85, 0.85]) == [0, 1]
    assert class_set([0.4, 0.6], [0.5, 0.3]) == []
    assert class_set([0.99, 0.01], [math.inf, math.inf]) == [0, 1]


def test_a_plane_that_cannot_be_trusted_lets_nothing_be_told(conformal):
    row = drawn_lesions(np.random.default_rng(0), 20)
    told = conformal(row)(as_predicted(row[0]) | {"plane_reason": "margin 0.14"})
    assert told == {
        "volume_low_class1": None, "volume_high_class1": None, "side_set_class1": None,
        "cannot_tell_class1": UNTRUSTED_PLANE, "coverage": 0.9,
    }  # fmt: skip


def test_too_few_cases_and_intervals_that_hold_everything_cannot_tell(conformal):
    rows = drawn_lesions(np.random.default_rng(0), 8)
    told = conformal(rows)(as_predicted(rows[0]))
    assert told["volume_high_class1"] is None
    assert told["cannot_tell_class1"] == (
        "volume: 8 validation subjects are too few; side: 8 validation subjects are too few"
    )
    guessed = of_people(row | {"predicted_ml": 8.0, "predicted_asymmetry_index": 0.0} for row in rows * 4)
    told = conformal(guessed)(as_predicted(guessed[0]))
    assert (
        told["cannot_tell_class1"]
        == "volume: the interval holds what the validation cases have; side: it may be either"
    )
    assert told["side_set_class1"] == "left or both or right"


def test_a_class_with_too_few_cases_is_always_in_the_set(conformal):
    rows = [{"probability_0": 0.9, "probability_1": 0.1, "label": 0}] * 20
    rows += [{"probability_0": 0.2, "probability_1": 0.8, "label": 1}] * 5
    told = conformal(of_people(rows))(rows[0], ["healthy", "patient"])
    assert told["class_set"] == "healthy or patient"
    assert told["cannot_tell"] == "it may be any class; class 1: 5 validation subjects are too few"
    sure = conformal(of_people(rows + rows[-5:]))(rows[0], ["healthy", "patient"])
    assert (sure["class_set"], sure["cannot_tell"]) == ("healthy", "")


def test_figures_of_other_weights_are_not_used(conformal, caplog):
    rows = drawn_lesions(np.random.default_rng(0), 20)
    with caplog.at_level(logging.WARNING):
        assert conformal(rows, digest="ab", used="cd")(as_predicted(rows[0])) == {}
    assert "is of other weights" in caplog.text
    assert Conformal(None, lambda: "ab")(as_predicted(rows[0])) == {}


def test_a_person_of_many_sessions_counts_once_with_the_largest_score():
    sessions = [{**row, "subject": "sub-1"} for row in drawn_lesions(np.random.default_rng(0), 9)]
    assert fit(sessions, 0.9)["lesions"]["1"]["volume"]["radius"] is None
    score = max(volume_score(row["volume_ml"], row["predicted_ml"]) for row in sessions)
    found = fit([*sessions, *({**row, "subject": "1"} for row in sessions)], 0.5)  # sub-1 and 1 are the same
    assert found["subjects"] == found["lesions"]["1"]["side"]["subjects"] == 1
    assert found["lesions"]["1"]["volume"]["radius"] == pytest.approx(score)
    classes = [{"probability_0": share, "probability_1": 1 - share, "label": 0, "subject": "1"} for share in (0.9, 0.6)]
    assert fit(classes, 0.5)["classes"][0] == {"radius": pytest.approx(0.4), "subjects": 1}


def test_where_nothing_is_predicted_no_side_can_be_told(conformal):
    rows = drawn_lesions(np.random.default_rng(0), 20)
    told = conformal(rows)({"volume_ml_class1": 0.0, "asymmetry_index_class1": math.nan})
    assert told["side_set_class1"] == ""
    assert "side: nothing is predicted" in told["cannot_tell_class1"].split("; ")
    assert "nothing is predicted" not in conformal(rows)(as_predicted(rows[0]))["cannot_tell_class1"]


def test_figures_of_evaluations_with_other_settings_are_not_used(conformal, caplog):
    rows, evaluated = drawn_lesions(np.random.default_rng(0), 20), {"mirror_tta": False, "overlap": 0.5}
    alike = conformal(rows, evaluated=evaluated, settings={**evaluated, "min_volume_ml": 1.0})
    assert alike(as_predicted(rows[0]))["coverage"] == 0.9
    other = conformal(rows, evaluated=evaluated, settings={**evaluated, "mirror_tta": True})
    assert other(as_predicted(rows[0])) == {}
    assert "is of other settings (--mirror_tta False, here True) than those in use" in caplog.text


def test_what_is_no_evaluation_and_no_file_of_figures_is_refused(tmp_path):
    with pytest.raises(UserError, match="cases of an evaluation"):
        fit([{"volume_ml": 1.0}], 0.9)
    with pytest.raises(UserError, match="no validation cases"):
        fit([], 0.9)
    with pytest.raises(UserError, match=r"0\.5 to below 1, got 1"):
        fit(drawn_lesions(np.random.default_rng(0), 9), 1.0)
    (tmp_path / "conformal.json").write_text("[]")
    with pytest.raises(UserError, match="holds no figures"):
        Conformal(tmp_path / "conformal.json", lambda: "ab")
