from pathlib import Path

from sa_swin.study.evidence import read
from sa_swin.study.overview import SENTENCES, Headline, answer, found, overview, sentences

RESULTS = Path(__file__).resolve().parents[3] / "studies" / "results"


def test_an_answer_needs_three_trainings_an_interval_without_zero_and_a_small_q():
    row = {"difference": 0.1, "low": 0.05, "high": 0.15, "q": 0.01, "seeds": 3}
    assert answer(row | {"seeds": 2}) == "too few"
    assert answer(row) == "yes"
    assert answer(row | {"q": 0.2}) == "not shown"
    assert answer(row | {"low": -0.01}) == "not shown"
    assert answer(row | {"difference": -0.1, "low": -0.2, "high": -0.05}) == "the opposite"


def study(**changes):
    """One comparison of two arms, as a study's JSON has it."""
    compared = {"task": "classify", "arm": "saca", "against": "plain", "group": "unilateral", "difference": 0.25}
    figures = {"value": 0.75, "other": 0.5, "low": 0.1, "high": 0.4, "q": 0.01, "seeds": 3}
    return {"study": {"name": "classify"}, "summary": {"comparisons": [compared | figures | changes]}}


def test_a_headline_is_the_comparison_of_its_own_group():
    row = found([study()], Headline("x", "classify", "saca", "plain"))
    assert row["difference"] == 0.25
    assert found([study()], Headline("x", "flair", "saca", "plain")) is None
    assert found([study()], Headline("x", "classify", "saca", "plain", "bilateral")) is None


def test_the_verdict_of_a_sentence_follows_the_numbers():
    assert "(0.750 against 0.500, **better**)" in sentences([study()])
    assert "(0.750 against 0.500, **no difference shown**)" in sentences([study(low=-0.1)])
    assert "(0.750 against 0.500, **fewer than three trainings, no verdict**)" in sentences([study(seeds=2)])
    assert "(0.750 against 0.500, **worse**)" in sentences([study(difference=-0.25, low=-0.4, high=-0.1)])


def test_every_chosen_comparison_is_in_the_committed_results():
    studies = read(RESULTS)
    headlines = [headline for _, own in SENTENCES for headline in own]
    assert [headline for headline in headlines if found(studies, headline) is None] == []
    assert sentences(studies).count("\n") == len(SENTENCES) == 5


def test_the_plot_has_a_mark_where_each_difference_is():
    figure = overview([study()])
    marks = [container.lines[0].get_xydata().tolist() for container in figure.axes[0].containers]
    assert marks == [[[0.25, 0.0]]]
