import json
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from custom.data.case import CohortError, subject_from
from custom.data.datalist import find_cases, load_datalist
from custom.data.dataset import FailedCase, TolerantDataset, collate_cases
from custom.transforms.checks import VolumeError


@pytest.fixture
def cohort(tmp_path, write_volume):
    """Two cases with masks and class labels; returns a function that writes a datalist of changed entries."""
    for name in ("a", "b"):
        write_volume(tmp_path / f"{name}.nii.gz", np.ones((4, 5, 6), np.float32))
        write_volume(tmp_path / f"{name}_mask.nii.gz", np.ones((4, 5, 6), np.uint8))
    entries = [{"image": f"{name}.nii.gz", "label": i, "healthy": i == 0} for i, name in enumerate("ab")]

    def datalist(section="training", **changes):
        path = tmp_path / "list.json"
        path.write_text(json.dumps({section: [entries[0], entries[1] | changes]}))
        return path

    return datalist


def test_paths_become_absolute_and_subjects_fall_back_on_the_file(cohort, tmp_path):
    first, second = load_datalist(cohort(), "training", tmp_path, "class")
    assert first == {"image": str(tmp_path / "a.nii.gz"), "label": 0, "healthy": True, "subject": "a"}
    assert second["label"] == 1


def test_files_of_one_name_in_several_folders_are_not_one_subject(tmp_path, write_volume):
    for name in ("case_1/flair.nii.gz", "case_2/flair.nii.gz", "sub-1/x.nii.gz"):
        write_volume(tmp_path / name, np.ones((4, 4, 4), np.float32))
    assert [case["subject"] for case in find_cases(None, tmp_path)] == ["case_1/flair", "case_2/flair", "sub-1"]


@pytest.mark.parametrize(
    ("path", "subject"),
    [
        ("sub-01/anat/sub-01_T1w.nii.gz", "sub-01"),
        ("sub-01_ses-2_T1w.nii.gz", "sub-01"),
        ("sub-01/ses-2/flair.nii.gz", "sub-01"),
        ("sub-HC_001/anat.nii.gz", "sub-HC_001"),
        ("sub-HC_001.nii.gz", "sub-HC_001"),
        ("sub-HC_001_ses-1_T1w.nii.gz", "sub-HC_001"),
        ("sub-NDAR-INV01_T1w.nii.gz", "sub-NDAR-INV01"),
        ("sub-.nii.gz", "sub-"),
        ("subject1/.nii.gz", "subject1"),
    ],
)
def test_a_path_tells_the_whole_label_of_its_subject(path, subject):
    assert subject_from(path) == subject


def test_subjects_are_text_whatever_the_datalist_has(cohort, tmp_path):
    cases = load_datalist(cohort(subject=17), "training", tmp_path)
    assert [case["subject"] for case in cases] == ["a", "17"]
    next(iter(DataLoader(cases, batch_size=2, collate_fn=collate_cases)))


def test_nobody_is_the_subject_none(cohort, tmp_path):
    assert load_datalist(cohort(subject=None), "training", tmp_path)[1]["subject"] != "None"


def test_a_named_subject_stays(cohort, tmp_path):
    path = cohort()
    lists = json.loads(path.read_text())
    for number, entry in enumerate(lists["training"]):
        entry["subject"] = f"sub-{number}"
    path.write_text(json.dumps(lists))
    assert [case["subject"] for case in load_datalist(path, "training", tmp_path)] == ["sub-0", "sub-1"]


def test_facts_that_only_some_entries_have_are_left_out_so_that_cases_can_be_batched(cohort, tmp_path):
    cases = load_datalist(cohort(age=None, healthy=None, site="north"), "training", tmp_path)
    assert [set(case) for case in cases] == [{"image", "subject"}] * 2


@pytest.mark.parametrize("label", ["none", "healthy"])
def test_a_label_that_is_not_called_for_is_left_out(cohort, tmp_path, label):
    assert all(
        "label" not in case for case in load_datalist(cohort(label="b_mask.nii.gz"), "training", tmp_path, label)
    )


def test_masks_become_absolute_paths(cohort, tmp_path):
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"testing": [{"image": "a.nii.gz", "label": "a_mask.nii.gz"}]}))
    assert load_datalist(path, "testing", tmp_path, "mask")[0]["label"] == str(tmp_path / "a_mask.nii.gz")


def test_a_fold_is_held_out_where_the_file_has_no_validation_list(tmp_path, write_volume):
    write_volume(tmp_path / "a.nii.gz", np.ones((4, 4, 4), np.float32))
    entries = [{"image": "a.nii.gz", "subject": f"s{i}", "fold": i % 3} for i in range(6)]
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"training": entries, "testing": entries[:1]}))

    def subjects(section, fold=1):
        return [case["subject"] for case in load_datalist(path, section, tmp_path, fold=fold)]

    assert subjects("training") == ["s0", "s2", "s3", "s5"]
    assert subjects("validation") == ["s1", "s4"]
    assert subjects("testing") == ["s0"]
    assert len(subjects("training", None)) == 6
    with pytest.raises(CohortError, match="no cases in 'validation'; give the held-out one with --fold"):
        subjects("validation", None)


def test_a_fold_beside_a_validation_list_is_refused_where_it_would_do_nothing(tmp_path, write_volume):
    write_volume(tmp_path / "a.nii.gz", np.ones((4, 4, 4), np.float32))
    entries = [{"image": "a.nii.gz", "subject": f"s{i}", "fold": i} for i in range(3)]
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"training": entries[:1], "validation": entries[1:2], "testing": entries[2:]}))
    for section in ("training", "validation"):
        with pytest.raises(CohortError, match="has a validation list of its own, so that --fold 0 would do nothing"):
            load_datalist(path, section, tmp_path, fold=0)
        assert len(load_datalist(path, section, tmp_path)) == 1
    assert len(load_datalist(path, "testing", tmp_path, fold=0)) == 1


@pytest.mark.parametrize(("limit", "count"), [(1, 1), (0, 2), (None, 2), (5, 2)])
def test_a_limit_keeps_the_first_cases(cohort, tmp_path, limit, count):
    assert len(load_datalist(cohort(), "training", tmp_path, limit=limit)) == count


def test_a_share_of_the_labels_is_of_the_training_subjects_alone(tmp_path, write_volume):
    write_volume(tmp_path / "a.nii.gz", np.ones((4, 4, 4), np.float32))
    entries = [{"image": "a.nii.gz", "subject": f"s{i}", "label": i % 2} for i in range(20)]
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"training": entries, "validation": entries, "testing": entries}))

    def load(section, percent, seed=0):
        return load_datalist(path, section, tmp_path, "class", label_percent=percent, seed=seed)

    few, more = load("training", 10), load("training", 50)
    assert sorted(case["label"] for case in few) == [0, 1]
    assert all(case in more for case in few)
    assert len(more) == 10
    assert load("training", 50, seed=1) != more
    assert len(load("validation", 10)) == len(load("testing", 10)) == 20


@pytest.mark.parametrize(
    ("label", "changes", "sentence"),
    [
        ("none", {"image": "c.nii.gz"}, r"c\.nii\.gz: no such file"),
        (
            "none",
            {"image": ["a.nii.gz", "b.nii.gz"]},
            r"a\.nii\.gz: expected 1 image file\(s\), one per channel, got 2",
        ),
        ("none", {"image": None}, r"expected 1 image file\(s\), one per channel, got 0"),
        ("class", {"label": 2}, r"b\.nii\.gz: label 2 is out of range, expected 0 to 1"),
        ("class", {"label": -1}, r"b\.nii\.gz: label -1 is out of range, expected 0 to 1"),
        ("class", {"label": "1"}, r"b\.nii\.gz: expected 'label' to be a class number, got '1'"),
        ("class", {"label": 0.5}, "to be a class number, got 0.5"),
        ("class", {"label": True}, "to be a class number, got True"),
        ("class", {"label": None}, "to be a class number, got None"),
        ("healthy", {"healthy": 1}, r"b\.nii\.gz: expected 'healthy' true or false, got 1"),
        ("healthy", {"healthy": None}, "expected 'healthy' true or false, got None"),
    ],
)
def test_what_is_wrong_with_a_case_is_said_with_its_file(cohort, tmp_path, label, changes, sentence):
    with pytest.raises(CohortError, match=sentence) as raised:
        load_datalist(cohort(**changes), "training", tmp_path, label, num_classes=2)
    assert "list.json, training: 1 problem(s)" in str(raised.value)


def mask_cohort(tmp_path, write_volume, mask, affine=None):
    write_volume(tmp_path / "image.nii.gz", np.ones((4, 5, 6), np.float32), np.eye(4))
    write_volume(tmp_path / "mask.nii.gz", mask, np.eye(4) if affine is None else affine)
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"training": [{"image": "image.nii.gz", "label": "mask.nii.gz"}]}))
    return path


def test_a_mask_of_another_shape_is_refused(tmp_path, write_volume):
    path = mask_cohort(tmp_path, write_volume, np.ones((4, 5, 7), np.uint8))
    with pytest.raises(CohortError, match=r"mask.nii.gz: shape \(4, 5, 7\) differs from \(4, 5, 6\) of .*image.nii.gz"):
        load_datalist(path, "training", tmp_path, "mask")


@pytest.mark.parametrize(
    "affine", [np.diag([-1.0, 1, 1, 1]), np.array([[1, 0, 0, 0.5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])]
)
def test_a_mask_of_the_same_shape_but_another_affine_is_refused(tmp_path, write_volume, affine):
    path = mask_cohort(tmp_path, write_volume, np.ones((4, 5, 6), np.uint8), affine)
    with pytest.raises(CohortError, match=r"mask.nii.gz: same shape but another affine than .*image.nii.gz"):
        load_datalist(path, "training", tmp_path, "mask")


def test_rounding_of_an_affine_is_forgiven(tmp_path, write_volume):
    affine = np.eye(4)
    affine[0, 3] = 0.001
    path = mask_cohort(tmp_path, write_volume, np.ones((4, 5, 6), np.uint8), affine)
    assert len(load_datalist(path, "training", tmp_path, "mask")) == 1


def test_a_missing_mask_is_refused(tmp_path, write_volume):
    path = mask_cohort(tmp_path, write_volume, np.ones((4, 5, 6), np.uint8))
    (tmp_path / "mask.nii.gz").unlink()
    with pytest.raises(CohortError, match=r"mask.nii.gz: no such file"):
        load_datalist(path, "training", tmp_path, "mask")


@pytest.mark.parametrize("label", [1, None])
def test_a_label_that_is_no_mask_is_refused(cohort, tmp_path, label):
    with pytest.raises(CohortError, match="expected 'label' to be the path of a mask, got"):
        load_datalist(cohort(label=label), "training", tmp_path, "mask")


@pytest.mark.parametrize("content", [b"", b"no image", b"\x1f\x8b" + bytes(20)])
def test_an_unreadable_file_is_named(cohort, tmp_path, content):
    (tmp_path / "b.nii.gz").write_bytes(content)
    with pytest.raises(CohortError, match=r"b\.nii\.gz: not a readable image"):
        load_datalist(cohort(), "training", tmp_path)


def test_a_volume_that_is_not_3d_is_refused(cohort, tmp_path, write_volume):
    write_volume(tmp_path / "b.nii.gz", np.ones((4, 5, 6, 2), np.float32))
    with pytest.raises(CohortError, match=r"b\.nii\.gz: expected a 3D volume, got shape \(4, 5, 6, 2\)"):
        load_datalist(cohort(), "training", tmp_path)


def test_all_problems_come_at_once(cohort, tmp_path):
    path = cohort()
    for name in "ab":
        (tmp_path / f"{name}.nii.gz").unlink()
    with pytest.raises(CohortError) as raised:
        load_datalist(path, "training", tmp_path)
    assert "2 problem(s)" in str(raised.value)
    assert "a.nii.gz: no such file" in str(raised.value)
    assert "b.nii.gz: no such file" in str(raised.value)


def test_no_datalist_is_said_in_a_sentence(tmp_path):
    with pytest.raises(CohortError, match=r"no datalist at .*none.json; make one, or give its place with --datalist"):
        load_datalist(tmp_path / "none.json", "training")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is not JSON"),
        ("[]", "must hold lists"),
        ('{"training": {"image": "a"}}', "must hold lists"),
        ('{"testing": ["a.nii.gz"]}', "must hold lists of cases"),
        ("{}", "has no cases in 'training'"),
        ('{"training": []}', "has no cases in 'training'"),
    ],
)
def test_a_datalist_that_is_none_is_refused(tmp_path, content, sentence):
    path = tmp_path / "list.json"
    path.write_text(content)
    with pytest.raises(CohortError, match=sentence):
        load_datalist(path, "training")


def test_unknown_sections_and_labels_are_refused(cohort):
    with pytest.raises(ValueError, match="testing"):
        load_datalist(cohort(), "test")
    with pytest.raises(ValueError, match="mask"):
        load_datalist(cohort(), "training", label="masks")


def test_a_folder_is_searched_for_images_outside_derivatives_that_are_not_hidden(tmp_path, write_volume):
    for name in ("sub-1/anat/b.nii.gz", "a.nii", "derivatives/lesions/mask.nii.gz", "._a.nii", ".old/c.nii"):
        write_volume(tmp_path / name, np.ones((4, 4, 4), np.float32))
    cases = find_cases(None, tmp_path)
    assert sorted(case["image"] for case in cases) == [str(tmp_path / "a.nii"), str(tmp_path / "sub-1/anat/b.nii.gz")]
    assert {case["subject"] for case in cases} == {"a", "sub-1"}


def test_the_cases_of_a_datalist_come_without_their_labels(cohort, tmp_path):
    cases = find_cases(cohort("testing"), tmp_path)
    assert [case["subject"] for case in cases] == ["a", "b"]
    assert all("label" not in case for case in cases)


def test_a_folder_without_images_is_an_error(tmp_path):
    with pytest.raises(CohortError, match=r"no NIfTI file \(\*.nii, \*.nii.gz\) below"):
        find_cases(None, tmp_path)


def load(case):
    """A transform that reads the voxels, and refuses an image of zeros."""
    array = nib.load(case["image"]).get_fdata()
    if not array.any():
        raise VolumeError(f"{case['image']}: nothing in it")
    return case["subject"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_cases_are_passed_over_and_named_and_the_others_come_once(tmp_path, write_volume, caplog, num_workers):
    for name in "abcde":
        write_volume(tmp_path / f"{name}.nii.gz", np.ones((4, 4, 4), np.float32))
    write_volume(tmp_path / "b.nii.gz", np.zeros((4, 4, 4), np.float32))
    whole = (tmp_path / "c.nii.gz").read_bytes()
    (tmp_path / "c.nii.gz").write_bytes(whole[:-20])  # the header is there, voxels are not
    (tmp_path / "d.nii.gz").write_bytes(b"no image")
    cases = [*find_cases(None, tmp_path), {"image": str(tmp_path / "f.nii.gz"), "subject": "f"}]
    with caplog.at_level(logging.ERROR):
        loader = DataLoader(TolerantDataset(cases, load), batch_size=None, num_workers=num_workers)
        items = list(loader)
    failed = {Path(item.image).name[0]: str(item) for item in items if isinstance(item, FailedCase)}
    assert sorted(item for item in items if not isinstance(item, FailedCase)) == ["a", "e"]
    reasons = {"b": "nothing in it", "c": "Compressed file ended", "d": "not a readable image", "f": "no such file"}
    assert failed.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in failed[name]
        assert failed[name].count(f"{name}.nii.gz") == 1, "the file is named, and once"
        assert num_workers or failed[name] in caplog.text


def test_a_batch_holds_the_cases_that_could_be_taken_and_tells_why_the_others_could_not():
    good, bad = {"image": torch.ones(1, 2), "subject": "a"}, FailedCase("/d/b.nii", "/d/b.nii: damaged")
    batch = collate_cases([good, bad, good])
    assert batch.pop("failed") == {"/d/b.nii": bad}
    assert (batch["image"].shape, batch["subject"]) == ((2, 1, 2), ["a", "a"])
    assert collate_cases([bad]) == {"failed": {"/d/b.nii": bad}}
    assert collate_cases([good]).keys() == good.keys()


def test_headers_alone_are_read(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(nib.Nifti1Image, "get_fdata", lambda *args, **kwargs: pytest.fail("data were read"))
    assert load_datalist(cohort(), "training", tmp_path)


def test_further_facts_stay_as_text_and_their_absence_is_empty(tiny_cohort):
    content = json.loads((tiny_cohort / "datalists" / "pretrain.json").read_text())
    content["training"][0] |= {"label": 3, "age": 71}
    path = tiny_cohort / "facts.json"
    path.write_text(json.dumps(content))
    cases = load_datalist(path, "training", tiny_cohort, facts=["label", "age", "healthy"])
    assert (cases[0]["label"], cases[0]["age"]) == ("3", "71")
    assert {case["age"] for case in cases[1:]} == {""}
    assert cases[0].get("healthy") == content["training"][0].get("healthy")
