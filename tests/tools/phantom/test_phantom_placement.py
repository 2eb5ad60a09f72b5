"""Which subject of the built-in cohort gets what lesion, and where."""

from collections import Counter

import numpy as np
import pytest

from sa_swin.phantom import cohort as phantom
from sa_swin.phantom.geometry import random_deformation
from sa_swin.phantom.head import icbm_anatomy
from sa_swin.phantom.lesion import plan_lesion
from sa_swin.phantom.subject import Config, diagnosis, lesion_masks, placement


def test_a_midline_lesion_is_painted_even_where_real_masks_are_given():
    generator = np.random.default_rng(0)
    arguments = (generator, "infarct", 1, icbm_anatomy(4), random_deformation(generator, np.zeros(3), 1.0, 0.2))
    assert plan_lesion(*arguments, masks=["not read"], place="midline").mask is None


@pytest.mark.parametrize(("bilateral", "midline"), [(0.5, 0.1), (0.4, 0.2), (0.25, 0.25), (0.0, 1.0), (0.3, 0.5)])
def test_each_placement_has_its_share_of_the_rounds(bilateral, midline):
    config = Config(4, bilateral=bilateral, midline=midline)
    found = Counter(placement(config, turn) for turn in range(200))
    assert (found["bilateral"], found["midline"]) == (200 * bilateral, 200 * midline)


def test_placements_take_turns_among_the_patients_of_each_finding():
    config = Config(96, findings=("tumour", "infarct"), bilateral=0.25, midline=0.25)
    rows = [row for number in range(1, 97) if (row := diagnosis(config, number))[1]]
    counts = Counter((finding, place) for finding, _, place in rows)
    shares = {"one-sided": 12, "bilateral": 6, "midline": 6}
    assert counts == {(finding, place): n for finding in ("tumour", "infarct") for place, n in shares.items()}
    assert {side for _, side, place in rows if place == "one-sided"} == {-1, 1}


def test_label_maps_share_no_lesion_mask(tmp_path, write_volume):
    for folder, number in (("anatomies", 3), ("lesions", 10)):
        for i in range(number):
            write_volume(tmp_path / folder / f"{i}.nii.gz", np.zeros((2, 2, 2), np.uint8))
    config = Config(4, anatomies=str(tmp_path / "anatomies"), lesions=str(tmp_path / "lesions"))
    masks = [lesion_masks(config, number) for number in range(3)]
    assert sorted(path for own in masks for path in own) == sorted(map(str, (tmp_path / "lesions").iterdir()))
    assert all(masks)


def test_subjects_of_one_label_map_are_in_one_part_of_the_split():
    participants = [
        {"participant_id": f"sub-{i:03d}", "healthy": i % 2 == 0, "side": "left", "diagnosis": "x", "anatomy": i // 10}
        for i in range(100)
    ]
    assigned = phantom.splits(participants, 0, (0.4, 0.1, 0.5))
    parts: dict[int, set[str]] = {}
    for row in participants:
        parts.setdefault(row["anatomy"], set()).add(assigned[row["participant_id"]][0])
    assert all(len(names) == 1 for names in parts.values())
    names = [next(iter(found)) for found in parts.values()]
    assert sorted(map(names.count, phantom.SPLITS)) == [1, 4, 5]
