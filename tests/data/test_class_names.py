"""Names of classes go with a datalist into every table; all-empty masks are told; datalists may come from Windows."""

import codecs
import json
import logging

import pytest

from custom.data.case import CohortError
from custom.data.datalist import class_names, read_json, read_section
from custom.evaluation.case_table import named
from custom.evaluation.metrics import segmentation_summary
from sa_swin.cohort.sources import table_scans


def written(tmp_path, content):
    path = tmp_path / "list.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({"labels": {"1": "tumour|infarct", "0": "healthy"}, "training": []}, ["healthy", "tumour|infarct"]),
        ({"labels": {"1": "a", "2": "b"}}, None),
        ({"labels": {}}, None),
        ({"labels": ["a"]}, None),
        ({}, None),
        ([], None),
    ],
)
def test_a_datalist_names_its_classes_as_the_decathlon_does(tmp_path, content, names):
    assert class_names(written(tmp_path, content)) == names


def test_no_datalist_has_no_names(tmp_path):
    assert class_names(None) is None
    assert class_names(tmp_path / "none.json") is None


def test_a_row_has_names_beside_the_numbers_of_its_classes():
    row = {"probability_0": 0.2, "prediction": 1, "label": 0, "findings": [{"class": 1, "side": "left"}]}
    assert named(row, None) == row
    assert named(row, ["healthy", "tumour"]) == {
        "probability_0": 0.2,
        "prediction": 1,
        "prediction_name": "tumour",
        "label": 0,
        "label_name": "healthy",
        "findings": [{"class": 1, "class_name": "tumour", "side": "left"}],
    }


def case(volume, suffix=""):
    return {f"dice{suffix}": 0.0, f"hd95_mm{suffix}": float("nan"), f"volume_ml{suffix}": volume,
            f"predicted_ml{suffix}": 1.0, f"volume_error_ml{suffix}": 1.0 - volume}  # fmt: skip


def test_masks_that_mark_nothing_are_told_since_their_dice_cannot_choose_an_epoch(caplog):
    with caplog.at_level(logging.WARNING):
        summary = segmentation_summary([case(0.0), case(0.0)])
    assert summary["n_marked"] == 0
    assert "none of the 2 masks marks anything: its Dice" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert segmentation_summary([case(0.0), case(2.0)])["n_marked"] == 1
        assert caplog.text == ""
        summary = segmentation_summary([{**case(1.0, "_class1"), **case(0.0, "_class2")}])
    assert (summary["n_marked_class1"], summary["n_marked_class2"]) == (1, 0)
    assert "none of the 1 masks marks anything of class 2: " in caplog.text


LIST = {"training": [{"image": "sub-1\\anat\\a.nii", "label": "masks\\a.nii"}, {"image": ["x\\a.nii", "x/b.nii"]}]}


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(LIST).encode(),
        codecs.BOM_UTF8 + json.dumps(LIST).encode(),
        json.dumps(LIST).encode("utf-16"),
        json.dumps(LIST, indent=1).replace("\n", "\r\n").encode(),
    ],
)
def test_a_datalist_from_windows_is_read_as_any_other(tmp_path, content):
    first, second = read_section(written(tmp_path, content), "training")
    assert first == {"image": "sub-1/anat/a.nii", "label": "masks/a.nii"}
    assert second == {"image": ["x/a.nii", "x/b.nii"]}


def test_a_name_with_a_backslash_in_a_path_with_slashes_stays(tmp_path):
    entries = {"training": [{"image": "sub-1/odd\\name.nii", "label": 1}]}
    assert read_json(written(tmp_path, entries)) == entries


@pytest.mark.parametrize("path", ["C:\\data\\a.nii", "c:/data/a.nii", "\\\\server\\share\\a.nii"])
def test_a_path_with_a_drive_is_refused_with_what_to_do(tmp_path, path):
    with pytest.raises(CohortError, match="is a path of Windows; give paths relative to --dataset_dir"):
        read_section(written(tmp_path, {"training": [{"image": path}]}), "training")


def test_a_table_from_windows_gives_paths_as_any_other(tmp_path):
    (tmp_path / "t.csv").write_text("subject;image;mask\r\n1;sub-1\\a.nii;m\\a.nii\r\n;;\r\n")
    (scan,), left_out = table_scans(tmp_path / "t.csv", ["image"], "mask", "subject", None)
    assert (scan.images, scan.mask, left_out) == (("sub-1/a.nii",), "m/a.nii", [])
