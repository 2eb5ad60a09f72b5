"""Which files of a BIDS folder become cases, which mask a case gets, and what is told of the rest; no file is read."""

import json
import os
from pathlib import Path

import pytest

from custom.data.bids_names import ignored, misplaced, parse_name
from custom.data.case import CohortError
from sa_swin.cohort.bids import find_scans
from sa_swin.cohort.bids_masks import match_mask
from sa_swin.cohort.command import build_command

LESION = "label-lesion_mask"


@pytest.fixture
def tree(tmp_path):
    """A BIDS folder of empty files: three subjects with a FLAIR image; `add` puts further ones into it."""

    def add(*paths):
        for path in paths:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).touch()
        return tmp_path

    add(*(f"sub-00{n}/anat/sub-00{n}_FLAIR.nii.gz" for n in (1, 2, 3)), "dataset_description.json")
    return add


def found(root, *channels, mask=None, derivative=None, runs="all"):
    """Images by subject, and reasons by what was left out."""
    scans, left_out = find_scans(root, channels, mask, derivative, runs)
    return {scan.subject: scan.images for scan in scans}, {item["subject"]: item["reason"] for item in left_out}


def masks_of(root, *channels, mask=LESION, derivative=None):
    scans, left_out = find_scans(root, channels or ("FLAIR",), mask, derivative)
    return {scan.subject: scan.mask for scan in scans}, {item["subject"]: item["reason"] for item in left_out}


FLAIRS = {f"sub-00{n}": (f"sub-00{n}/anat/sub-00{n}_FLAIR.nii.gz",) for n in (1, 2, 3)}
NOT_BELOW_SUBJECT = "not in a folder sub-<label> of the dataset"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("excluded/sub-099/anat/sub-099_FLAIR.nii.gz", NOT_BELOW_SUBJECT),
        ("derivatives_old/sub-001/anat/sub-001_FLAIR.nii.gz", NOT_BELOW_SUBJECT),
        ("sub-004_FLAIR.nii.gz", NOT_BELOW_SUBJECT),
        ("sub-001/anat/old/sub-001_FLAIR.nii.gz", "not in anat, or another folder of BIDS"),
        ("sub-001/excluded/sub-001_FLAIR.nii.gz", "not in anat, or another folder of BIDS"),
        ("sub-004/sub-004_FLAIR.nii.gz", "not in anat, or another folder of BIDS"),
        ("sub-002/anat/sub-005_FLAIR.nii.gz", "named sub-005, but in sub-002/anat"),
        ("sub-004/ses-2/anat/sub-004_ses-1_FLAIR.nii.gz", "named sub-004_ses-1, but in sub-004/ses-2/anat"),
        ("sub-004/ses-2/anat/sub-004_FLAIR.nii.gz", "named sub-004, but in sub-004/ses-2/anat"),
    ],
)
def test_what_lies_where_bids_has_no_raw_image_is_no_case_and_is_told(tree, path, reason):
    images, left_out = found(tree(path), "FLAIR")
    assert images == FLAIRS
    assert left_out[path].startswith(reason)


@pytest.mark.parametrize("folder", ["derivatives/x", "sourcedata", "code", ".git/x", ".heudiconv"])
def test_what_bids_keeps_apart_is_no_case_and_needs_no_word(tree, folder):
    assert found(tree(f"{folder}/sub-009/anat/sub-009_FLAIR.nii.gz"), "FLAIR") == (FLAIRS, {})


def test_subjects_whose_folders_are_links_are_cases_like_others(tree, tmp_path_factory):
    store, root = tmp_path_factory.mktemp("store"), tree()
    (store / "anat").mkdir()
    (store / "anat" / "sub-009_FLAIR.nii.gz").touch()
    (root / "sub-009").symlink_to(store)
    assert found(root, "FLAIR")[0] == FLAIRS | {"sub-009": ("sub-009/anat/sub-009_FLAIR.nii.gz",)}


@pytest.mark.parametrize("place", ["beside", "inside", "by a link"])
def test_masks_are_named_from_the_dataset_and_absolutely_where_they_are_outside(
    tree, place, tmp_path_factory, monkeypatch
):
    mask = f"sub-001/anat/sub-001_{LESION}.nii.gz"
    outside = tmp_path_factory.mktemp("masks")
    root = tree(f"derivatives/mine/x/{mask}")
    (outside / mask).parent.mkdir(parents=True)
    (outside / mask).touch()
    (outside / "link").symlink_to(root)
    folder = {
        "beside": outside,
        "inside": root / "derivatives/mine/x",
        "by a link": outside / "link/derivatives/mine/x",
    }
    expected = str(outside / mask) if place == "beside" else f"derivatives/mine/x/{mask}"
    monkeypatch.chdir(root)
    for own in (".", str(root)):
        for named_so in (os.path.relpath(folder[place]), str(folder[place])):
            assert masks_of(Path(own), derivative=named_so)[0]["sub-001"] == expected


def test_sessions_and_other_datatypes_are_raw_images(tree):
    root = tree("sub-004/ses-a/anat/sub-004_ses-a_FLAIR.nii", "sub-005/ct/sub-005_ct.nii.gz")
    assert found(root, "FLAIR")[0]["sub-004"] == ("sub-004/ses-a/anat/sub-004_ses-a_FLAIR.nii",)
    assert found(root, "ct")[0] == {"sub-005": ("sub-005/ct/sub-005_ct.nii.gz",)}


@pytest.mark.parametrize(
    ("line", "path", "is_ignored"),
    [
        ("sub-003/", "sub-003/anat/a.nii", True),
        ("sub-003", "sub-003/anat/a.nii", True),
        ("sub-003/", "sub-0033/anat/a.nii", False),
        ("extra/", "sub-1/extra/a.nii", True),
        ("/extra/", "sub-1/extra/a.nii", False),
        ("sub-*/extra/", "sub-1/extra/a.nii", True),
        ("**/extra/*.nii", "sub-1/b/extra/a.nii", True),
        ("*_T2w.nii.gz", "sub-1/anat/sub-1_T2w.nii.gz", True),
        ("*_T2w.nii.gz", "sub-1/anat/sub-1_T1w.nii.gz", False),
        ("sub-1/**", "sub-1/anat/a.nii", True),
        ("sub-?", "sub-1/anat/a.nii", True),
        ("a.nii/", "sub-1/a.nii", False),
        ("# sub-1", "sub-1/a.nii", False),
        ("", "sub-1/a.nii", False),
    ],
)
def test_bidsignore_is_read_as_git_reads_gitignore(tmp_path, line, path, is_ignored):
    (tmp_path / ".bidsignore").write_text(f"{line}\n")
    assert ignored(tmp_path)(path) is is_ignored


def test_a_later_line_of_bidsignore_keeps_what_an_earlier_one_left_out(tmp_path):
    (tmp_path / ".bidsignore").write_text("\ufeff*.nii\r\n!b.nii\r\n", encoding="utf-8")
    is_ignored = ignored(tmp_path)
    assert is_ignored("a.nii")
    assert not is_ignored("b.nii")
    assert not ignored(tmp_path / "none")("a.nii")


def test_what_bidsignore_names_is_no_case_and_is_told(tree):
    root = tree()
    (root / ".bidsignore").write_text("sub-003/\n")
    images, left_out = found(root, "FLAIR")
    assert set(images) == {"sub-001", "sub-002"}
    assert left_out == {"sub-003/anat/sub-003_FLAIR.nii.gz": "in .bidsignore"}


@pytest.mark.parametrize("entity", ["ce-gd", "space-MNI", "desc-brain", "part-phase", "echo-1", "mt-on", "label-x"])
def test_an_image_whose_name_says_more_than_was_asked_for_is_not_taken(tree, entity):
    more = f"sub-001/anat/sub-001_{entity}_FLAIR.nii.gz"
    images, left_out = found(tree(more), "FLAIR")
    assert images == FLAIRS
    assert left_out == {more: f"{entity}_FLAIR, which FLAIR does not ask for"}
    assert found(tree(), f"{entity}_FLAIR")[0] == {"sub-001": (more,)}


def test_the_contrast_enhanced_image_is_never_the_plain_channel(tree):
    root = tree("sub-001/anat/sub-001_ce-gd_T1w.nii.gz", "sub-002/anat/sub-002_T1w.nii.gz",
                "sub-002/anat/sub-002_ce-gd_T1w.nii.gz")  # fmt: skip
    images, left_out = found(root, "FLAIR", "T1w")
    assert images == {"sub-002": (*FLAIRS["sub-002"], "sub-002/anat/sub-002_T1w.nii.gz")}
    assert left_out["sub-001"] == "no T1w image"
    both = found(root, "T1w", "ce-gd_T1w")[0]
    assert both == {"sub-002": ("sub-002/anat/sub-002_T1w.nii.gz", "sub-002/anat/sub-002_ce-gd_T1w.nii.gz")}


def test_a_variant_is_taken_where_it_is_the_only_one_and_not_beside_the_plain_image(tree):
    alone, beside = "sub-004/anat/sub-004_acq-tse_FLAIR.nii.gz", "sub-001/anat/sub-001_acq-low_FLAIR.nii.gz"
    images, left_out = found(tree(alone, beside), "FLAIR")
    assert images == {**FLAIRS, "sub-004": (alone,)}
    assert left_out == {beside: "acq-low_FLAIR, beside one without acq-low"}


@pytest.mark.parametrize("variants", [("acq-a", "acq-b"), ("rec-norm", "acq-a"), ("acq-a", "acq-a_rec-norm")])
def test_of_several_variants_none_is_guessed(tree, variants):
    paths = [f"sub-004/anat/sub-004_{variant}_FLAIR.nii.gz" for variant in variants]
    images, left_out = found(tree(*paths), "FLAIR")
    assert images == FLAIRS
    assert all(left_out[path].startswith("one of several FLAIR; name ") for path in paths)
    assert f"{variants[0]}_FLAIR" in left_out[paths[0]]


def test_runs_stay_what_the_user_says_they_are(tree):
    paths = [f"sub-004/anat/sub-004_acq-tse_run-{n}_FLAIR.nii.gz" for n in (1, 2)]
    scans, _ = find_scans(tree(*paths), ["FLAIR"], None, None)
    assert [scan.images[0] for scan in scans if scan.subject == "sub-004"] == paths
    assert found(tree(), "FLAIR", runs="last")[0]["sub-004"] == (paths[1],)


def test_channels_of_different_runs_are_not_put_together(tree):
    root = tree(*(f"sub-004/anat/sub-004_{name}.nii.gz" for name in ("run-1_T1w", "run-2_T1w", "run-1_FLAIR")))
    images, _ = found(root, "T1w", "FLAIR", runs="last")
    assert images["sub-004"] == tuple(f"sub-004/anat/sub-004_run-1_{suffix}.nii.gz" for suffix in ("T1w", "FLAIR"))
    assert "channels do not match by run" in found(root, "T1w", "FLAIR")[1]["sub-004"]
    root = tree("sub-005/anat/sub-005_run-1_T1w.nii.gz", "sub-005/anat/sub-005_FLAIR.nii.gz")
    assert len(found(root, "T1w", "FLAIR")[0]["sub-005"]) == 2  # one without a run stands for any


def test_a_file_that_is_there_compressed_and_not_is_one_scan(tree):
    images, left_out = found(tree("sub-001/anat/sub-001_FLAIR.nii"), "FLAIR")
    assert images == FLAIRS
    told = "the same scan as sub-001/anat/sub-001_FLAIR.nii.gz; remove one of the two"
    assert left_out["sub-001/anat/sub-001_FLAIR.nii"] == told


def test_if_nothing_is_left_the_others_are_named(tree):
    with pytest.raises(
        CohortError, match=r"has no T1w image; 1 file\(s\) are others, such as .*ce-gd_T1w.nii.gz: ce-gd"
    ):
        found(tree("sub-001/anat/sub-001_ce-gd_T1w.nii.gz"), "T1w")
    with pytest.raises(
        CohortError, match=r"has no T2w image; there are FLAIR \(3\), T1w \(1\); 1 such file\(s\) are not in a"
    ):
        found(tree("old/sub-001_T2w.nii.gz"), "T2w")


# ---- masks


def lesion(subject, name, place="derivatives/lesions"):
    return f"{place}/{subject}/anat/{subject}_{name}.nii.gz"


def test_the_mask_on_the_images_grid_goes_before_the_one_in_standard_space(tree):
    native, standard = lesion("sub-001", LESION), lesion("sub-001", f"space-MNI152NLin2009cAsym_{LESION}")
    root = tree(native, standard, lesion("sub-002", f"space-MNI152NLin2009cAsym_{LESION}"))
    masks, left_out = masks_of(root)
    assert masks == {"sub-001": native, "sub-002": None, "sub-003": None}
    assert left_out["sub-002"] == (
        f"its {LESION} is in another space (space-MNI152NLin2009cAsym), not on the image's grid"
    )
    assert masks_of(root, mask=f"space-MNI152NLin2009cAsym_{LESION}")[0]["sub-001"] == standard


@pytest.mark.parametrize("space", ["orig", "native", "individual", "FLAIR"])
def test_a_space_that_is_the_images_own_is_its_grid(tree, space):
    path = lesion("sub-001", f"space-{space}_{LESION}")
    assert masks_of(tree(path))[0]["sub-001"] == path


def test_a_space_of_another_channel_is_that_channels_grid(tree):
    path = lesion("sub-001", f"space-FLAIR_{LESION}")
    assert masks_of(tree(path, "sub-001/anat/sub-001_T1w.nii.gz"), "T1w", "FLAIR")[0]["sub-001"] == path


def test_a_mask_may_be_named_after_any_of_the_channels(tree):
    root = tree("sub-004/anat/sub-004_acq-mprage_T1w.nii.gz", "sub-004/anat/sub-004_acq-tse_FLAIR.nii.gz")
    path = lesion("sub-004", f"acq-tse_{LESION}")
    assert masks_of(tree(path), "T1w", "FLAIR")[0] == {"sub-004": path}
    assert masks_of(root, "T1w")[0] == {"sub-004": None}
    of_modality = lesion("sub-001", f"mod-FLAIR_{LESION}")
    assert masks_of(tree(of_modality))[0]["sub-001"] == of_modality


def test_masks_beside_their_images_are_found(tree):
    path = "sub-001/anat/sub-001_label-lesion_mask.nii.gz"
    assert masks_of(tree(path))[0]["sub-001"] == path
    assert found(tree(), "FLAIR")[0] == FLAIRS


def test_of_several_masks_the_one_that_says_the_least_beyond_the_choice_is_meant(tree):
    plain, manual = lesion("sub-001", LESION), lesion("sub-001", f"desc-manual_{LESION}")
    assert masks_of(tree(plain, manual))[0]["sub-001"] == plain
    assert masks_of(tree(), mask="desc-manual_label-lesion_mask")[0]["sub-001"] == manual
    two = [lesion("sub-002", f"desc-{who}_{LESION}") for who in ("ann", "bob")]
    masks, left_out = masks_of(tree(*two))
    assert masks["sub-002"] is None
    assert left_out["sub-002"].startswith("2 files are its label-lesion_mask: ")
    assert left_out["sub-002"].endswith("name an entity, as in desc-x_label-lesion_mask, or --derivative")


def test_a_mask_without_a_session_is_that_of_the_only_session(tree):
    root = tree("sub-004/ses-1/anat/sub-004_ses-1_FLAIR.nii.gz", lesion("sub-004", LESION))
    assert masks_of(root)[0]["sub-004"] == lesion("sub-004", LESION)
    tree("sub-004/ses-2/anat/sub-004_ses-2_FLAIR.nii.gz")
    assert masks_of(root)[0]["sub-004"] is None


def test_masks_that_bidsignore_names_are_no_masks(tree):
    root = tree(lesion("sub-001", LESION))
    (root / ".bidsignore").write_text("derivatives/lesions/sub-001/\n")
    assert masks_of(root)[0]["sub-001"] is None


def test_no_choice_is_no_mask():
    image = parse_name("sub-1/anat/sub-1_T1w.nii.gz")
    assert match_mask([image], [parse_name("sub-1_mask.nii.gz")], None) == (None, None)
    assert misplaced(image) is None


# ---- what a build makes of it


def built(root, tmp_path, **options):
    build_command(str(tmp_path / "lists"), str(root), overwrite=True, **({"image": "FLAIR"} | options))
    return {path.stem: json.loads(path.read_text()) for path in (tmp_path / "lists").glob("*.json")}


def subjects(lists):
    return {entry["subject"] for part in ("training", "validation", "testing") for entry in lists.get(part, [])}


def test_masks_that_are_asked_for_and_not_there_are_an_error(tree, tmp_path):
    with pytest.raises(
        CohortError, match=r"no scan has a mask \(label-lesion_mask\), .* 3 no label-lesion_mask: sub-001"
    ):
        built(tree(), tmp_path, mask=LESION)
    assert not (tmp_path / "lists").exists()


def test_a_subject_without_a_class_is_in_the_lists_that_need_none(tree, tmp_path, capsys):
    root = tree(*(f"sub-{n:03d}/anat/sub-{n:03d}_FLAIR.nii.gz" for n in range(1, 13)),
                *(lesion(f"sub-{n:03d}", LESION) for n in (1, 2)))  # fmt: skip
    rows = [f"sub-{n:03d}\t{'n/a' if n == 1 else 'ab'[n % 2]}" for n in range(1, 12)]
    (root / "participants.tsv").write_text("participant_id\tgroup\n" + "\n".join(rows) + "\n")
    lists = built(root, tmp_path, mask=LESION, target="group")
    everybody = {f"sub-{n:03d}" for n in range(1, 13)}
    assert subjects(lists["pretrain"]) == everybody
    assert subjects(lists["segment"]) == {"sub-001", "sub-002"}
    assert subjects(lists["classify"]) == everybody - {"sub-001", "sub-012"}
    assert {"subject": "sub-001", "reason": "group is missing (classify)"} in lists["classify"]["left_out"]
    assert "note: no mask in " in capsys.readouterr().out
    lists = built(root, tmp_path, mask=LESION, target="group", healthy="group=a")
    assert subjects(lists["pretrain"]) == everybody - {"sub-001", "sub-012"}
    assert subjects(lists["segment"]) == {"sub-001", "sub-002"}


def test_a_class_that_this_modality_lacks_is_told_and_a_misspelt_one_refused(tree, tmp_path, capsys):
    root = tree("sub-004/anat/sub-004_T1w.nii.gz")
    text = "participant_id\tdx\nsub-001\thealthy\nsub-002\ttumour\nsub-003\thealthy\nsub-004\tstroke\n"
    (root / "participants.tsv").write_text(text)
    options = {"target": "dx", "split": (1, 0, 0)}
    lists = built(root, tmp_path, classes="healthy=0,tumour=1,stroke=2", **options)
    assert lists["classify"]["labels"] == {"0": "healthy", "1": "tumour", "2": "stroke"}
    assert "note: nobody has stroke, a class of classify.json" in capsys.readouterr().out
    with pytest.raises(CohortError, match="no subject has strok; the target's values are healthy, stroke, tumour"):
        built(root, tmp_path, classes="healthy=0,tumour=1,strok=2", **options)


def test_a_split_without_a_mask_for_validation_is_told(tree, tmp_path, capsys):
    lists = built(tree(lesion("sub-001", LESION)), tmp_path, mask=LESION, split=(0.4, 0.3, 0.3))
    lacking = [part for part in ("training", "validation", "testing") if not lists["segment"].get(part)]
    assert len(lacking) == 2
    assert f"note: no mask in {', '.join(lacking)} of segment.json" in capsys.readouterr().out


def test_a_mask_is_named_after_its_label(tree, tmp_path):
    lists = built(tree(lesion("sub-001", LESION)), tmp_path, mask=LESION)
    assert lists["segment"]["labels"] == {"0": "background", "1": "lesion"}
