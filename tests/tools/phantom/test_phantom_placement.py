"""Which lesion masks the subjects of the built-in cohort get, and what label maps mean for the split."""

import numpy as np

from sa_swin.phantom.datalists import SPLITS, splits
from sa_swin.phantom.geometry import random_deformation
from sa_swin.phantom.head import icbm_anatomy
from sa_swin.phantom.lesion import plan_lesion
from sa_swin.phantom.subject import Config, lesion_masks


def test_a_midline_lesion_is_painted_even_where_real_masks_are_given():
    generator = np.random.default_rng(0)
    arguments = (generator, "infarct", 1, icbm_anatomy(4), random_deformation(generator, np.zeros(3), 1.0, 0.2))
    assert plan_lesion(*arguments, masks=["not read"], place="midline").mask is None


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
    assigned = splits(participants, 0, (0.4, 0.1, 0.5))
    parts: dict[int, set[str]] = {}
    for row in participants:
        parts.setdefault(row["anatomy"], set()).add(assigned[row["participant_id"]][0])
    assert all(len(names) == 1 for names in parts.values())
    names = [next(iter(found)) for found in parts.values()]
    assert sorted(map(names.count, SPLITS)) == [1, 4, 5]
