"""The plan of a cohort has no tell: no attribute, and no part or fold of the split, says anything about another one."""

from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import asdict
from itertools import combinations, product

import numpy as np
import pytest
from scipy.stats import chi2

from sa_swin.phantom.config import Config
from sa_swin.phantom.datalists import SPLITS, splits
from sa_swin.phantom.lesion import FINDINGS
from sa_swin.phantom.plan import Balance, apportion, plans

Row = dict[str, Hashable]
SHAPES = [
    {"subjects": subjects, "findings": FINDINGS[:kinds], "bilateral": bilateral, "midline": midline, "skull": "mixed"}
    for subjects, kinds, bilateral, midline in (
        (12, 1, 0.0, 0.0), (12, 2, 0.25, 0.25), (16, 4, 0.0, 0.0), (24, 3, 0.0, 0.0), (24, 2, 0.5, 0.0),
        (40, 3, 0.25, 0.1), (40, 4, 0.0, 0.5), (72, 3, 0.0, 0.0), (96, 2, 0.25, 0.25), (160, 3, 0.0, 0.0),
        (160, 1, 0.5, 0.1), (160, 4, 0.25, 0.25),
    )
]  # fmt: skip


def rows_of(config: Config, shares: tuple[float, float, float] = (0.6, 0.15, 0.25)) -> list[Row]:
    """Everything that the plan and the split of a cohort say of each subject, without any image."""
    rows: list[Row] = [asdict(plan) | {"healthy": plan.diagnosis == "healthy"} for plan in plans(config)]
    generator = np.random.default_rng(config.seed)
    participants = [
        row
        | {
            "participant_id": str(i),
            "skull": not row["bare"],
            "lesion_ml": 0.0 if row["healthy"] else 3 * 2.0 ** (row["quarter"] + generator.random()),
        }
        for i, row in enumerate(rows)
    ]
    assigned = splits(participants, config.seed, shares)
    return [row | dict(zip(("part", "fold"), assigned[str(i)], strict=True)) for i, row in enumerate(rows)]


def pairs(rows: list[Row]) -> Iterator[tuple[str, str, list[Row]]]:
    """Pairs of attributes with the subjects that have both; what only a lesion has is compared among patients.

    Which label maps are reflected says nothing about the split, which is drawn by another generator.
    """
    own = ("diagnosis", "side", "quarter")
    for a, b in combinations((*own, "healthy", "site", "bare", "reflected", "part", "fold"), 2):
        if ("healthy" in (a, b) and {a, b} & set(own)) or ("reflected" in (a, b) and {a, b} & {"part", "fold"}):
            continue
        yield a, b, [row for row in rows if not ({a, b} & set(own) and row["healthy"])]


def excess(values: list[tuple[Hashable, ...]]) -> np.ndarray:
    """Of every combination of values: how many subjects have it beyond what independence expects, in all, `(2, n)`."""
    number = len(values)
    margins = [Counter(column) for column in zip(*values, strict=True)]
    found = Counter(values)
    cells = np.array(np.meshgrid(*[np.arange(len(margin)) for margin in margins])).reshape(len(margins), -1).T
    keys = [tuple(list(margin)[i] for margin, i in zip(margins, cell, strict=True)) for cell in cells]
    expected = [number * np.prod([margin[v] / number for margin, v in zip(margins, key, strict=True)]) for key in keys]
    return np.array([[found[key] for key in keys], expected])


def chance(values: list[tuple[Hashable, ...]]) -> float:
    """Probability that attributes which have nothing to do with each other are associated as much (chi-square)."""
    found, expected = excess(values)
    levels = [len(set(column)) for column in zip(*values, strict=True)]
    freedom = np.prod(levels) - 1 - sum(n - 1 for n in levels)
    return float(chi2.sf((((found - expected) ** 2) / expected).sum(), freedom)) if freedom else 1.0


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, list(shape.values())[:4])))
def test_no_two_attributes_of_a_cohort_are_associated(shape, seed):
    for a, b, rows in pairs(rows_of(Config(seed=seed, **shape))):
        found, expected = excess([(row[a], row[b]) for row in rows])
        assert np.abs(found - expected).max() < 3.1, f"{a} and {b}"  # subjects


@pytest.mark.parametrize("shape", [SHAPES[3], SHAPES[5]], ids=["one-sided", "all placements"])
def test_over_many_seeds_no_two_and_no_three_attributes_are_associated(shape):
    rows = [row for seed in range(40) for row in rows_of(Config(seed=seed, **shape)) if not row["healthy"]]
    names = ("diagnosis", "side", "quarter", "site", "bare", "part", "fold")
    for group in (*combinations(names, 2), *combinations(names, 3)):
        assert chance([tuple(row[name] for name in group) for row in rows]) > 0.001, group


def test_on_label_maps_the_map_and_with_it_the_part_say_nothing(tmp_path, write_volume):
    for i in range(10):
        write_volume(tmp_path / f"{i}.nii.gz", np.zeros((2, 2, 2), np.uint8))
    rows = rows_of(Config(160, findings=FINDINGS[:3], bilateral=0.25, anatomies=str(tmp_path)), (0.4, 0.1, 0.5))
    for a, b in product(("anatomy", "part", "fold"), ("diagnosis", "side", "quarter", "site", "reflected")):
        found, expected = excess([(row[a], row[b]) for row in rows])
        assert np.abs(found - expected).max() < 3, f"{a} and {b}"


def test_side_that_follows_the_finding_would_be_noticed():
    tied = [("tumour", "left"), ("infarct", "right")] * 6
    found, expected = excess(tied)
    assert np.abs(found - expected).max() == 3
    assert chance(tied) < 0.001


@pytest.mark.parametrize(("bilateral", "midline"), [(0.5, 0.1), (0.4, 0.2), (0.25, 0.25), (0.0, 1.0), (0.3, 0.5)])
def test_sides_placements_and_volumes_have_their_shares_of_the_patients(bilateral, midline):
    rows = [plan for plan in plans(Config(400, bilateral=bilateral, midline=midline)) if plan.diagnosis != "healthy"]
    sides, quarters = Counter(plan.side for plan in rows), Counter(plan.quarter for plan in rows)
    one_sided = (1 - bilateral - midline) / 2
    for side, share in {"left": one_sided, "right": one_sided, "both": bilateral, "midline": midline}.items():
        assert sides[side] == pytest.approx(200 * share, abs=1)
    assert all(quarters[i] == pytest.approx(50, abs=1) for i in range(4))


def test_healthy_and_patients_take_turns_by_the_share_of_patients():
    assert [plan.diagnosis == "healthy" for plan in plans(Config(6))] == [True, False] * 3
    assert Counter(plan.diagnosis == "healthy" for plan in plans(Config(100, patients=0.3))) == {True: 70, False: 30}


def test_a_plan_does_not_depend_on_how_many_follow_but_on_the_seed():
    assert plans(Config(160, skull="mixed"))[:24] == plans(Config(24, skull="mixed"))
    assert plans(Config(24, seed=1)) != plans(Config(24))


def test_a_value_goes_to_who_lags_most_and_never_to_one_without_a_share():
    generator, balance = np.random.default_rng(0), Balance({"a": 0.5, "b": 0.5, "never": 0.0})
    first = [balance.choose([("site", site)], generator) for site in ("north", "north", "south", "south")]
    assert set(first[:2]) == set(first[2:]) == {"a", "b"}


def test_each_class_gets_its_rounded_share_of_every_part():
    rows = [[("healthy", i % 2 == 0), ("site", i % 3)] for i in range(40)]
    parts = apportion(rows, dict(zip(SPLITS, (0.6, 0.15, 0.25), strict=True)), np.random.default_rng(0))
    for healthy in (0, 1):
        assert Counter(parts[healthy::2]) == {"training": 12, "validation": 3, "testing": 5}
