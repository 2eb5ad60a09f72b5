"""What of a folder becomes a case of inference, and what is told of the rest; no volume is read."""

import logging

import pytest

from custom.data.case import CohortError, sequences_of
from custom.data.datalist import find_cases
from custom.data.folders import files_below, image_files


@pytest.fixture
def folder(tmp_path):
    """Puts empty files into a folder."""

    def add(*paths):
        for path in paths:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).touch()
        return tmp_path

    return add


def test_the_results_of_a_run_in_the_folder_are_no_images_of_the_next(folder):
    root = folder("a.nii.gz", "b/c.nii", "out/a_pred.nii.gz", "out/b/c_pred.nii.gz", "out/finished.jsonl")
    for output in (root / "out", "out", root / "other"):
        taken, left_out = image_files(root, output_dir=output)
        assert taken == ["a.nii.gz", "b/c.nii"]
        assert set(left_out) == {"out/a_pred.nii.gz", "out/b/c_pred.nii.gz"}
    assert image_files(root, output_dir=root / "out")[1]["out/b/c_pred.nii.gz"] == "in the output folder"
    assert image_files(root)[1]["out/b/c_pred.nii.gz"] == "in out, among the results of a run"


def test_folders_that_links_lead_to_are_looked_into_once_and_files_outside_are_refused(folder, tmp_path):
    root = folder("up.nii", "study/a.nii", "study/b/c.nii", "study/sourcedata/x/d.nii", "elsewhere/s1/e.nii") / "study"
    for link, target in (
        ("0_first", "b"), ("b/up", ".."), ("b/own", "."), ("top", ".."), ("gone.nii", "gone.nii"),
        ("raw", "sourcedata/x"), ("sub-1", "../elsewhere/s1"), ("sub-2", "../elsewhere/s1"),
    ):  # fmt: skip
        (root / link).symlink_to(target)
    assert image_files(root)[0] == ["a.nii", "b/c.nii", "gone.nii", "raw/d.nii", "sub-1/e.nii"]
    with pytest.raises(CohortError, match=r"1 file\(s\) are not of the dataset\n  sub-1/e.nii: lies outside"):
        find_cases(None, root)
    assert len(find_cases(None, root, allow_outside=True)) == 5
    assert sorted(files_below(root, lambda name: name != "b")) == [
        "0_first/c.nii", "a.nii", "gone.nii", "raw/d.nii", "sub-1/e.nii",
    ]  # fmt: skip


@pytest.mark.parametrize("trace", ["run_inference.json", "finished.jsonl", "planes.csv"])
def test_results_of_whatever_run_are_known_by_its_traces(folder, trace):
    root = folder("a.nii.gz", f"x/{trace}", "x/deep/a.nii")
    assert image_files(root)[0] == ["a.nii.gz"]
    assert image_files(folder(trace))[0] == ["a.nii.gz"]  # results beside their images


def test_results_beside_their_images_are_known_by_their_names(folder):
    results = [f"a_{kind}.nii.gz" for kind in ("pred", "probability", "asymmetry", "disagreement")]
    root = folder("a.nii.gz", "b_pred.nii.gz", *results)
    taken, left_out = image_files(root, output_dir=root)
    assert taken == ["a.nii.gz", "b_pred.nii.gz"]  # b is not there: who knows what that is
    assert set(left_out.values()) == {"a result of the image beside it"}


@pytest.mark.parametrize(
    "path",
    ["a_mask.nii.gz", "mask.nii", "lesion.nii.gz", "BraTS_001_seg.nii.gz", "a-label.nii", "x/aparc+aseg.nii.gz",
     "sub-1/anat/sub-1_dseg.nii.gz", "A_ROI.nii"],
)  # fmt: skip
def test_masks_beside_images_are_known_by_their_names(folder, path):
    root = folder("a.nii.gz", "imagesTr/b_0000.nii.gz", path)
    taken, left_out = image_files(root)
    assert taken == ["a.nii.gz", "imagesTr/b_0000.nii.gz"]
    assert left_out == {path: "named like a mask"}
    assert path in image_files(root, path.rpartition("/")[2])[0]  # it was asked for


@pytest.mark.parametrize("folder_of_masks", ["labelsTr", "masks", "labels/final", "x/Seg", "labels_old"])
def test_a_folder_of_masks_holds_no_images_whatever_is_asked_for(folder, folder_of_masks):
    root = folder("imagesTr/a_FLAIR.nii.gz", f"{folder_of_masks}/a_FLAIR.nii.gz")
    for images in ("*", "*_FLAIR.nii.gz"):
        taken, left_out = image_files(root, images)
        assert taken == ["imagesTr/a_FLAIR.nii.gz"]
        assert left_out == {f"{folder_of_masks}/a_FLAIR.nii.gz": "in a folder of masks"}


@pytest.mark.parametrize("path", ["a_T1w.nii.gz", "unmasked.nii", "segmented/a.nii.gz", "image_lesions2.nii"])
def test_other_names_are_no_masks(folder, path):
    assert image_files(folder(path))[0] == [path]


def test_a_pattern_of_names_chooses(folder):
    root = folder("sub-1/a_FLAIR.nii.gz", "sub-1/a_T1w.nii.gz", "derivatives/b_FLAIR.nii.gz", ".x/c_FLAIR.nii.gz")
    assert image_files(root, "*_FLAIR.nii.gz") == (
        ["sub-1/a_FLAIR.nii.gz"],
        {
            ".x/c_FLAIR.nii.gz": "hidden",
            "derivatives/b_FLAIR.nii.gz": "in derivatives, sourcedata or code",
            "sub-1/a_T1w.nii.gz": "not like *_FLAIR.nii.gz",
        },
    )
    with pytest.raises(CohortError, match=r"below .*; left out are 2 not like \*_CT.nii: sub-1/a_FLAIR.nii.gz, "):
        find_cases(None, root, images="*_CT.nii")


BIDS = "sub-1/anat/sub-1_FLAIR.nii.gz"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("excluded/sub-9/anat/sub-9_FLAIR.nii.gz", "not in a folder sub-<label> of the dataset"),
        ("derivatives_old/sub-1/anat/sub-1_FLAIR.nii.gz", "in a folder derivatives*"),
        ("sub-1/anat/copy.nii.gz", "not named as BIDS has it"),
        ("sub-1/old/sub-1_FLAIR.nii.gz", "not in anat, or another folder of BIDS, right below its subject or session"),
        ("sourcedata/x.nii", "in derivatives, sourcedata or code"),
        ("sub-1/anat/sub-1_label-lesion_mask.nii.gz", "named like a mask"),
        ("sub-2/anat/sub-2_FLAIR.nii.gz", "in .bidsignore"),
    ],
)
def test_of_a_bids_folder_its_raw_images_are_taken(folder, path, reason):
    root = folder(BIDS, path)
    (root / ".bidsignore").write_text("sub-2/\n*_CT.nii.gz\nct/\n")
    assert image_files(root) == ([BIDS], {path: reason})


def test_of_a_bids_folder_only_the_sequence_of_the_training_is_taken(folder, caplog):
    t1w, named = "sub-1/anat/sub-1_T1w.nii.gz", "sub-1/anat/sub-1_acq-3d_FLAIR.nii"
    root = folder(BIDS, named, t1w)
    assert [case["image"] for case in find_cases(None, root, sequences=["T1w"])] == [str(root / t1w)]
    assert "2 not FLAIR, as" not in caplog.text
    assert "2 not T1w, as the weights or the norm (--images '*_FLAIR.nii*' takes them): " in caplog.text
    caplog.clear()
    assert len(find_cases(None, root, images="*_FLAIR.nii*", sequences=["T1w"])) == 2
    assert "2 of 2 images of channel 1 are FLAIR; the weights or the norm are of T1w" in caplog.text
    assert len(find_cases(None, root, images="sub-*", sequences=["T1w"])) == 3
    assert "2 of 3 images of channel 1 are FLAIR; the weights or the norm are of T1w" in caplog.text
    assert len(find_cases(None, root, sequences=["flair"])) == 2  # as a user may write it
    for sequences in (None, [], [None], ["T1w", "FLAIR"]):  # weights that do not say, or take several files
        assert len(find_cases(None, root, sequences=sequences)) == 3
    with pytest.raises(CohortError, match=r"left out are 2 not T2w, .*; 1 not T2w"):
        find_cases(None, root, sequences=["T2w"])


def test_names_that_say_no_sequence_are_taken_whatever_the_weights_saw(folder):
    root = folder("patient1.nii.gz", "b/scan_FLAIR.nii", "sub-3_FLAIR.nii")  # none where BIDS has them
    assert len(find_cases(None, root, sequences=["T1w"])) == 3
    root = folder(BIDS, "sub-2/anat/sub-2_brain.nii.gz", "sub-2/ct/sub-2_ct.nii.gz")
    assert len(find_cases(None, root, sequences=["CT"])) == 2  # a name without a sequence, and one by another spelling


def test_what_names_of_cases_say_of_each_channel():
    cases = [{"image": [f"sub-{i}/anat/sub-{i}_{kind}.nii.gz" for kind in ("T1w", "FLAIR")]} for i in (1, 2)]
    assert sequences_of(cases) == ["T1w", "FLAIR"]
    assert sequences_of([*cases, {"image": ["sub-3_T2w.nii", "sub-3_FLAIR.nii"]}]) == [None, "FLAIR"]
    assert sequences_of([{"image": "sub-1_T1w.nii"}, {"image": "scan.nii"}]) == [None]
    assert sequences_of([{"image": "sub-1_brain.nii"}, {"image": "sub-2_brain.nii"}]) == [None]
    assert sequences_of([{"image": "sub-1_ct.nii"}, {"image": "sub-2_CT.nii.gz"}]) == ["CT"]
    assert sequences_of([]) == []


def test_that_bids_has_no_ct_is_no_reason_to_leave_it_out(folder):
    root = folder("sub-1/anat/sub-1_CT.nii.gz", "sub-2/ct/sub-2_ct.nii.gz")
    (root / ".bidsignore").write_text("*_CT.nii.gz\nct/\nsub-*/ct/\n**/*_ct.*\n")
    assert len(image_files(root)[0]) == 2
    (root / ".bidsignore").write_text("sub-1/anat/sub-1_CT.nii.gz\n")
    assert image_files(root)[0] == ["sub-2/ct/sub-2_ct.nii.gz"]


def test_what_is_left_out_is_told_unless_it_goes_without_saying(folder, caplog):
    root = folder(BIDS, "derivatives/x.nii", ".x/y.nii", "old/a.nii", "old/b.nii", "sub-1/anat/sub-1_T1w.nii.gz")
    with caplog.at_level(logging.WARNING):
        assert len(find_cases(None, root)) == 2
    assert f"2 file(s) below {root} are left out: 2 not named as BIDS has it: old/a.nii, old/b.nii" in caplog.text
    assert "1 FLAIR, 1 T1w: each is a case of its own; choose with --images '*_FLAIR.nii.gz'" in caplog.text
    caplog.clear()
    assert len(find_cases(None, root, images="*_FLAIR.nii.gz")) == 1
    assert "each is a case" not in caplog.text
