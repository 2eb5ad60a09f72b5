from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from custom.data.case import CohortError
from custom.data.splits import connected, label_fraction, split_subjects

SHARES = st.sampled_from(
    [{"training": 0.6, "validation": 0.15, "testing": 0.25}, dict.fromkeys(range(5), 0.2), {"a": 0.9, "b": 0.1}]
)
CLASSES = st.lists(st.integers(0, 3), min_size=1, max_size=120)


@given(CLASSES, SHARES, st.integers(0, 9))
def test_every_class_is_within_one_subject_of_its_share_in_every_part(classes, shares, seed):
    strata = {f"s{i}": stratum for i, stratum in enumerate(classes)}
    parts = split_subjects(strata, shares, seed=seed)
    assert set(parts) == set(strata)
    for stratum, size in Counter(classes).items():
        found = Counter(part for subject, part in parts.items() if strata[subject] == stratum)
        assert all(abs(found[part] - size * share) < 1 for part, share in shares.items())


@given(CLASSES, SHARES)
def test_rounding_does_not_add_up_over_the_classes(classes, shares):
    parts = Counter(split_subjects({f"s{i}": stratum for i, stratum in enumerate(classes)}, shares).values())
    assert all(abs(parts[part] - len(classes) * share) < 2 for part, share in shares.items())


@given(CLASSES, SHARES, st.data())
def test_joined_subjects_are_in_one_part(classes, shares, data):
    strata = {f"s{i}": stratum for i, stratum in enumerate(classes)}
    groups = data.draw(st.lists(st.lists(st.sampled_from(sorted(strata)), min_size=1, max_size=5), max_size=8))
    parts = split_subjects(strata, shares, groups)
    assert set(parts) == set(strata)
    for group in groups:
        assert len({parts[subject] for subject in group}) == 1


def test_groups_that_overlap_become_one():
    assert connected("abcdef", ["ab", "bc", "ef"]) == [["a", "b", "c"], ["d"], ["e", "f"]]


def test_families_leave_the_shares_about_right():
    strata = {f"s{i}": i % 2 for i in range(100)}
    families = [[f"s{i + j}" for j in range(4)] for i in range(0, 80, 4)]
    parts = Counter(split_subjects(strata, {"training": 0.6, "validation": 0.2, "testing": 0.2}, families).values())
    assert abs(parts["training"] - 60) <= 4
    assert abs(parts["validation"] - 20) <= 4
    assert abs(parts["testing"] - 20) <= 4


def test_as_many_groups_as_parts_fill_every_part():
    strata = {f"s{i}": i % 2 for i in range(6)}
    sites = [["s0", "s1"], ["s2", "s3"], ["s4", "s5"]]  # by the shares alone, two of them would go to training
    parts = split_subjects(strata, {"training": 0.6, "validation": 0.15, "testing": 0.25}, sites)
    assert set(parts.values()) == {"training", "validation", "testing"}


def test_a_split_depends_on_the_seed_alone_not_on_the_order_of_the_subjects():
    strata = {f"s{i}": i % 2 for i in range(40)}
    shares = {"training": 0.5, "testing": 0.5}
    assert split_subjects(strata, shares, seed=1) == split_subjects(dict(reversed(strata.items())), shares, seed=1)
    assert split_subjects(strata, shares, seed=1) != split_subjects(strata, shares, seed=2)


@pytest.mark.parametrize("shares", [{}, {"a": 0.5, "b": 0.4}, {"a": 1.0, "b": 0.0}, {"a": 1.5, "b": -0.5}])
def test_shares_that_are_none_are_refused(shares):
    with pytest.raises(CohortError, match="shares must be positive and sum to 1"):
        split_subjects({"a": 0}, shares)


ENTRIES = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 2)), min_size=1, max_size=120).map(
    lambda pairs: [{"image": f"{i}.nii", "subject": f"s{s}", "label": c} for i, (s, c) in enumerate(pairs)]
)


@given(ENTRIES, st.integers(0, 5))
def test_fractions_are_nested_by_subject_and_stratified(entries, seed):
    previous = []
    for percent in (1, 5, 10, 30, 50, 100):
        kept = label_fraction(entries, percent, seed)
        assert all(entry in kept for entry in previous)
        subjects = {entry["subject"] for entry in kept}
        assert kept == [entry for entry in entries if entry["subject"] in subjects]
        previous = kept
    assert previous == entries


@given(CLASSES, st.sampled_from([1, 5, 10, 30, 50]))
def test_a_fraction_holds_its_share_of_every_class_within_one_subject_and_at_least_one(classes, percent):
    entries = [{"image": "x", "subject": f"s{i}", "label": c} for i, c in enumerate(classes)]
    found = Counter(entry["label"] for entry in label_fraction(entries, percent))
    for label, size in Counter(classes).items():
        assert max(1, size * percent / 100) <= found[label] + 1e-9
        assert found[label] - size * percent / 100 < 1


def test_another_seed_is_another_fraction_of_the_same_size():
    entries = [{"image": "x", "subject": f"s{i}", "healthy": i % 2 == 0} for i in range(60)]
    first, second = ([entry["subject"] for entry in label_fraction(entries, 10, seed)] for seed in (0, 1))
    assert first != second
    assert len(first) == len(second) == 6


@pytest.mark.parametrize("percent", [0, -1, 101])
def test_a_fraction_out_of_range_is_refused(percent):
    with pytest.raises(CohortError, match=f"above 0 and up to 100, got {percent}"):
        label_fraction([{"image": "x"}], percent)
