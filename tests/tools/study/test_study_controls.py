import json
from pathlib import Path

import numpy as np
import pytest
import torch

from custom.support.errors import UserError
from custom.symmetry import mirror, split_pair, symmetric_pair
from custom.transforms.asymmetry_channel import with_asymmetry
from custom.transforms.contract import InputContract
from sa_swin.study.controls import ControlledContract, misaligned, other_images, own_image, wrong_axis

SIZE = {"spacing": 6.0, "spatial_size": [32, 64, 64], "align": False}


@pytest.fixture
def image():
    return torch.randn(1, 8, 6, 4)


def test_the_wrong_axis_is_front_to_back(image):
    torch.testing.assert_close(wrong_axis(mirror(image)), image.flip(2))


def test_the_own_image_is_the_image(image):
    torch.testing.assert_close(own_image(mirror(image)), image)


def test_a_shift_by_the_voxel_size_moves_by_one_voxel_to_the_right(image):
    moved = misaligned(image, (5.0, 3.0, 3.0), shift_mm=5.0)
    torch.testing.assert_close(moved[:, 1:], image[:, :-1], atol=1e-5, rtol=0)


def test_nothing_moves_by_0_mm_and_0_degrees(image):
    torch.testing.assert_close(misaligned(image, (5.0, 3.0, 3.0)), image, atol=1e-5, rtol=0)


def test_a_turn_is_about_the_vertical_axis_in_millimetres():
    ball = torch.zeros(1, 21, 41, 9)
    ball[0, 15, 20, 2] = 1.0  # 20 mm to the right of the centre, at 4 mm per voxel
    moved = misaligned(ball, (4.0, 2.0, 4.0), degrees=90.0)
    assert np.unravel_index(int(moved.argmax()), moved.shape) in [(0, 10, 30, 2), (0, 10, 10, 2)]


def cases(root):
    return json.loads((root / "datalists" / "classify.json").read_text())


def data_of(root, entry):
    return {"image": str(root / entry["image"]), "label": entry["label"], "subject": entry["subject"]}


def test_without_a_control_the_contract_is_the_bundles(tiny_cohort):
    entry = data_of(tiny_cohort, cases(tiny_cohort)["training"][0])
    torch.testing.assert_close(ControlledContract(**SIZE)(entry)["image"], InputContract(**SIZE)(entry)["image"])


def test_a_second_call_comes_from_memory_and_what_was_done_to_the_first_is_not_in_it(tiny_cohort, tmp_path):
    entry = data_of(tiny_cohort, cases(tiny_cohort)["training"][0])
    contract = ControlledContract(**SIZE)
    first = contract(entry)["image"]
    kept = first.clone()
    first.zero_()
    torch.testing.assert_close(contract(entry)["image"], kept)


def test_another_subjects_mirror_image_is_of_the_same_list(tiny_cohort):
    lists = cases(tiny_cohort)
    others = {"datalist": str(tiny_cohort / "datalists" / "classify.json"), "dataset_dir": str(tiny_cohort)}
    contract = ControlledContract("other_subject", **others, **SIZE)
    plain = ControlledContract(**SIZE)
    one, two = (data_of(tiny_cohort, entry) for entry in lists["testing"])
    image, counterpart = split_pair(contract(one)["image"])
    torch.testing.assert_close(image, split_pair(plain(one)["image"])[0])
    torch.testing.assert_close(counterpart.as_tensor(), split_pair(plain(two)["image"])[1].as_tensor())
    sections = {str(tiny_cohort / e["image"]): name for name, entries in lists.items() for e in entries}
    pairs = other_images(**others)
    assert pairs.keys() == sections.keys()
    assert all(sections[path] == sections[other] and path != other for path, other in pairs.items())


def test_another_subject_is_found_where_the_folder_is_named_in_another_way(tiny_cohort):
    folder = tiny_cohort / "datalists" / ".."
    datalist = str(tiny_cohort / "datalists" / "classify.json")
    contract = ControlledContract("other_subject", datalist=datalist, dataset_dir=str(folder), **SIZE)
    for root in (tiny_cohort, folder):
        contract(data_of(root, cases(tiny_cohort)["training"][0]))


def test_another_subject_is_nobodys_own_other_scan_and_tells_nothing_of_the_label(tmp_path):
    scans = [
        {"image": f"{i}_{scan}.nii", "subject": f"sub-{i}", "label": int(i >= 40)} for i in range(80) for scan in "ab"
    ]
    lists = {"training": scans, "validation": [{"image": "v.nii", "subject": "v"}], "testing": []}
    (tmp_path / "list.json").write_text(json.dumps(lists))
    pairs = {Path(a).name: Path(b).name for a, b in other_images(tmp_path / "list.json", ".").items()}
    subject = {e["image"]: e["subject"] for own in lists.values() for e in own}
    assert all(subject[path] != subject[other] for path, other in pairs.items())
    assert subject[pairs["v.nii"]] != "v"  # alone in its list: of the training
    label = {e["image"]: e["label"] for e in scans}
    assert 0.35 < np.mean([label[path] == label[pairs[path]] for path in label]) < 0.65  # the next one's: 0.98
    (tmp_path / "list.json").write_text(json.dumps({"training": scans[:2], "validation": [], "testing": []}))
    with pytest.raises(UserError, match="needs two subjects, training has one"):
        other_images(tmp_path / "list.json", ".")


def test_a_mask_goes_through_a_controlled_contract_unchanged(tiny_cohort):
    entry = json.loads((tiny_cohort / "datalists" / "segment.json").read_text())["training"][0]
    data = {key: str(tiny_cohort / entry[key]) for key in ("image", "label")}
    results = [ControlledContract(kind, label_key="label", **SIZE)(data) for kind in ("none", "misaligned")]
    torch.testing.assert_close(results[0]["label"], results[1]["label"])
    assert results[0]["label"].sum() > 0


def test_the_pair_of_the_reflected_brain_is_that_of_its_reflected_image(tiny_cohort):
    entry = data_of(tiny_cohort, cases(tiny_cohort)["training"][0])
    image, _ = split_pair(ControlledContract(**SIZE)(entry)["image"])
    torch.testing.assert_close(ControlledContract("reflected", **SIZE)(entry)["image"], symmetric_pair(mirror(image)))


def test_the_asymmetry_map_is_of_the_counterpart_that_the_control_says(tiny_cohort):
    entry = data_of(tiny_cohort, cases(tiny_cohort)["training"][0])
    kinds = ("none", "own_image", "wrong_axis")
    pairs = {kind: ControlledContract(kind, asymmetry_map=True, **SIZE)(entry)["image"] for kind in kinds}
    maps = {kind: split_pair(pair)[0][1] for kind, pair in pairs.items()}
    torch.testing.assert_close(pairs["none"], InputContract(asymmetry_map=True, **SIZE)(entry)["image"])
    assert maps["own_image"].max() <= maps["none"].min() + 0.01  # nothing differs from itself
    wrong = ControlledContract("wrong_axis", **SIZE)(entry)["image"].as_tensor()
    torch.testing.assert_close(pairs["wrong_axis"].as_tensor(), with_asymmetry(wrong[None], (6.0,) * 3)[0])
    assert not torch.allclose(maps["wrong_axis"], maps["none"])


def test_an_unknown_control_is_refused():
    with pytest.raises(UserError, match="unknown control 'sideways', choose one of none, other_subject"):
        ControlledContract("sideways", **SIZE)
