"""Each recipe on a small tree, laid out and named as the data set is published."""

import json
import re
from itertools import chain

import numpy as np
import pytest

from custom.data.case import CohortError
from custom.data.datalist import load_datalist
from sa_swin.cohort.command import build_command
from sa_swin.cohort.recipes import names, read_recipe, recipe_scans, table_rows
from sa_swin.commands import command_of

PARTS = ("training", "validation", "testing")
ATLAS = "R{0:03d}/sub-r{0:03d}s001/ses-1/anat/sub-r{0:03d}s001_ses-1_space-MNI152NLin2009aSym_"
ISLES = "sub-strokecase{0:04d}/ses-0001/{1}/sub-strokecase{0:04d}_ses-0001_{2}.nii.gz"
ISLES_MASK = "derivatives/sub-strokecase{0:04d}/ses-0001/sub-strokecase{0:04d}_ses-0001_msk.nii.gz"
GLI = "BraTS-GLI-{0:05d}-000/BraTS-GLI-{0:05d}-000-"
ARC = "sub-M200{0}/ses-12{0}/anat/sub-M200{0}_ses-12{0}_acq-spc3_run-{0}_T2w"
OASIS = "disc1/OAS1_000{0}_MR1/PROCESSED/MPRAGE/{1}/OAS1_000{0}_MR1_mpr_n4_anon_{2}.nii.gz"
MIND = "OpenMind/ds00000{0}/sub-01/ses-a/anat/sub-01_ses-a_{1}.nii.gz"
TREES = {
    "atlas2": [[ATLAS.format(n) + end for end in ("T1w.nii.gz", "label-L_desc-T1lesion_mask.nii.gz")] for n in (1, 2)],
    "isles2022": [
        [*(ISLES.format(n, folder, kind) for folder, kind in (("dwi", "dwi"), ("dwi", "adc"), ("anat", "FLAIR"))),
         ISLES_MASK.format(n)] for n in (1, 2)
    ],
    "brats2021": [
        [f"BraTS2021_0000{n}/BraTS2021_0000{n}_{kind}.nii.gz" for kind in ("t1", "t1ce", "t2", "flair", "seg")]
        for n in (0, 2)
    ],
    "brats2023": [[GLI.format(n) + f"{kind}.nii.gz" for kind in ("t1n", "t1c", "t2w", "t2f", "seg")] for n in (0, 2)],
    "soop": [
        [f"sub-{n}/anat/sub-{n}_T1w.nii.gz", f"sub-{n}/dwi/sub-{n}_rec-TRACE_dwi.nii.gz",
         f"sub-{n}/dwi/sub-{n}_rec-ADC_dwi.nii.gz",
         *(f"derivatives/lesion_masks/sub-{n}/dwi/sub-{n}_space-TRACE_desc-lesion{which}_mask.nii.gz"
           for which in ("", "Acute"))] for n in (2, 6)
    ],
    "arc": [
        [ARC.format(n) + ".nii.gz", f"derivatives/lesion_masks/{ARC.format(n)}_desc-lesion_mask.nii.gz"] for n in (1, 2)
    ],
    "ixi": [[f"IXI-T1/IXI{n}-T1.nii.gz", f"IXI-T2/IXI{n}-T2.nii.gz"] for n in ("002-Guys-0828", "012-HH-1211")],
    "oasis1": [
        [OASIS.format(n, "SUBJ_111", "sbj_111"), OASIS.format(n, "T88_111", "111_t88_masked_gfc")] for n in (1, 2)
    ],
    "cq500": [[f"{name}/anat/{name}_CT.nii.gz"] for name in ("sub-CQ500CT0CQ500CT0", "sub-CQ500CT12")],
    "openmind": [[MIND.format(n, "T1w"), MIND.format(n, "T2w")] for n in (1, 2)],
}  # fmt: skip
"""Files of two persons."""
READS = "name,Category,R1:ICH,R2:ICH,R3:ICH\nCQ500-CT-0,B1,1,0,1\nCQ500-CT-12,B2,0,0,1\n"
TABLES = {
    "soop": ("participants.tsv", "participant_id\tage\tacuteischaemicstroke\nsub-2\t78\t1\nsub-6\tn/a\tn/a\n"),
    "arc": ("participants.tsv", "participant_id\tsex\twab_aq\nsub-M2001\tF\t40\nsub-M2002\tM\t90\n"),
    "ixi": ("IXI.csv", 'IXI_ID,"SEX_ID (1=m, 2=f)",AGE\n2,2,35.8\n12,1,38.8\n'),
    "oasis1": ("oasis_cross-sectional.csv", "ID,M/F,Age,CDR\nOAS1_0001_MR1,F,74,0\nOAS1_0002_MR1,F,55,0.5\n"),
    "cq500": ("reads.csv", READS),
    "openmind": (
        "openneuro_metadata.csv",
        f"image_path,age,image_quality_score\n{MIND.format(1, 'T1w')[9:]},31,1.5\n{MIND.format(2, 'T1w')[9:]},,4.0\n",
    ),
}


@pytest.fixture
def lists(tmp_path, write_volume):
    """Build from a data set's tree; the datalists by bundle."""
    volume = write_volume(tmp_path / "any.nii.gz", np.zeros((4, 4, 4), np.uint8))  # an image as well as a mask

    def build(name, **options):
        for place in chain(*TREES[name]):
            (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / place).hardlink_to(volume)
        if name in TABLES:
            (tmp_path / TABLES[name][0]).write_text(TABLES[name][1])
        build_command(str(tmp_path / "lists"), bids=str(tmp_path), recipe=name, split=(1, 0, 0), **options)
        return {path.stem: json.loads(path.read_text()) for path in (tmp_path / "lists").glob("*.json")}

    return build


def test_persons_whose_folders_are_links_are_found(lists, tmp_path, tmp_path_factory):
    lists("brats2021")
    person = tmp_path / "BraTS2021_00002"
    person.symlink_to(person.rename(tmp_path_factory.mktemp("store") / "p"))
    scans, _, _ = recipe_scans(tmp_path, read_recipe("brats2021"), ["flair"], "seg")
    assert [scan.subject for scan in scans] == ["BraTS2021_00000", "BraTS2021_00002"]


def of(lists, bundle, key):
    return {entry["subject"]: entry.get(key) for entry in lists[bundle]["training"]}


def test_every_recipe_has_a_tree_and_says_where_and_under_which_licence_the_data_are_had():
    assert set(names()) == set(TREES)
    build = command_of("sa_swin.cohort.command:build_command", "sa-swin cohort build")
    about = next(option.about for option in build.options if option.name == "recipe")
    assert set(names()) <= set(re.findall(r"\w+", about))
    for name in names():
        recipe = read_recipe(name)
        assert recipe.source
        assert recipe.licence
        assert recipe.traps
        assert recipe.unverified


EXPECTED = {  # subjects, place of the images among each one's files, place of the mask
    "atlas2": (["r001s001", "r002s001"], [0], 1),
    "isles2022": (["strokecase0001", "strokecase0002"], [0, 1], 3),
    "brats2021": (["BraTS2021_00000", "BraTS2021_00002"], [3], 4),
    "brats2023": (["BraTS-GLI-00000", "BraTS-GLI-00002"], [3], 4),
    "soop": (["2", "6"], [1], 3),
    "arc": (["M2001", "M2002"], [0], 1),
    "ixi": (["IXI002", "IXI012"], [0], None),
    "oasis1": (["OAS1_0001", "OAS1_0002"], [0], None),
    "cq500": (["CQ500CT0", "CQ500CT12"], [0], None),
    "openmind": (["ds000001-sub-01", "ds000002-sub-01"], [0], None),
}


@pytest.mark.parametrize("name", TREES)
def test_the_images_and_masks_of_each_person_are_found(name, lists, tmp_path):
    built = lists(name)
    subjects, images, mask = EXPECTED[name]
    expected = {subject: [own[i] for i in images] for subject, own in zip(subjects, TREES[name], strict=True)}
    found = of(built, "pretrain", "image")
    assert {who: paths if isinstance(paths, list) else [paths] for who, paths in found.items()} == expected
    assert ("segment" in built) == (mask is not None)
    if mask is not None:
        assert of(built, "segment", "label") == {who: own[mask] for who, own in zip(subjects, TREES[name], strict=True)}
        load_datalist(tmp_path / "lists" / "segment.json", "training", tmp_path, "mask", len(images))


@pytest.mark.parametrize(
    ("name", "healthy"),
    [("atlas2", [False, False]), ("ixi", [True, True]), ("oasis1", [True, False]), ("soop", [None, None]),
     ("openmind", [None, None])],
)  # fmt: skip
def test_who_is_healthy_is_what_the_data_set_says(name, healthy, lists):
    assert list(of(lists(name), "pretrain", "healthy").values()) == healthy


def test_the_tables_rows_reach_their_persons(lists):
    assert of(lists("ixi", keep="AGE,site"), "pretrain", "AGE") == {"IXI002": "35.8", "IXI012": "38.8"}


def test_a_part_of_a_files_name_is_a_column(lists):
    built = lists("ixi", include="site=HH")
    assert list(of(built, "pretrain", "image")) == ["IXI012"]
    assert [item["reason"] for item in built["pretrain"]["left_out"]] == ["not site=HH"]


def test_a_row_may_be_that_of_a_file(lists):
    assert list(of(lists("openmind", include="image_quality_score<=2.5"), "pretrain", "image")) == ["ds000001-sub-01"]


def test_of_three_readers_the_majority_counts(lists):
    assert of(lists("cq500"), "classify", "label") == {"CQ500CT0": 1, "CQ500CT12": 0}


def test_what_is_typed_goes_before_the_recipe(lists):
    built = lists("brats2021", image="t1,t2", mask="seg")
    assert built["pretrain"]["built"]["image"] == "t1,t2"
    assert of(built, "segment", "image")["BraTS2021_00000"] == [TREES["brats2021"][0][0], TREES["brats2021"][0][2]]


def test_a_user_is_told_the_traps(lists, capsys):
    lists("atlas2")
    said = capsys.readouterr().out
    assert "trap: label-L is a part of the mask's name" in said
    assert "not verified: columns" in said


def test_a_person_with_two_rows_that_differ_gets_none(tmp_path):
    (tmp_path / "t.csv").write_text("ID,AGE\n1,30\n1,31\n2,40\n2,40\n")
    rows, left_out = table_rows(tmp_path, {"file": "t.csv", "key": "ID"})
    assert rows == {"2": {"AGE": "40"}}
    assert [item["subject"] for item in left_out] == ["1"]


def test_a_recipe_that_is_none_and_a_folder_of_something_else_are_refused(tmp_path):
    with pytest.raises(CohortError, match="no recipe 'atlas'; there are arc, atlas2, brats2021"):
        build_command(str(tmp_path), bids=str(tmp_path), recipe="atlas")
    with pytest.raises(CohortError, match="has no T1 image of this recipe, but no file that it describes"):
        build_command(str(tmp_path / "lists"), bids=str(tmp_path), recipe="ixi")
    with pytest.raises(CohortError, match="--recipe ixi needs --bids"):
        build_command(str(tmp_path), recipe="ixi", table="x.csv")
