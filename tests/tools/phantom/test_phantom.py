"""The built-in cohort: reproducible, and true to what its tables say."""

import json
import os
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from sa_swin.phantom import cohort as phantom
from sa_swin.phantom.contrast import CONTRASTS, MR_UNIT
from sa_swin.phantom.head import icbm_anatomy
from sa_swin.phantom.lesion import MARGIN_MM
from sa_swin.phantom.subject import SITES, Config, make_subject

SHARED = Path(os.environ.get("SA_SWIN_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))
BUNDLES = ("pretrain", "classify", "segment")
SMALL = {"subjects": 16, "seed": 3, "spacing": 6.0, "tilt": 15.0, "modality": "T1w,CT"}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished cohort with every finding, every storage orientation and large tilts."""
    root = tmp_path_factory.mktemp("cohort") / "demo"
    phantom.phantom_command(str(root), **SMALL)
    return root


def table(root: Path) -> list[dict[str, str]]:
    names, *rows = (line.split("\t") for line in (root / "participants.tsv").read_text().splitlines())
    return [dict(zip(names, row, strict=True)) for row in rows]


def patients(root: Path) -> list[dict[str, str]]:
    return [row for row in table(root) if row["healthy"] == "false"]


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def mask_of(root: Path, row: dict[str, str]) -> nib.Nifti1Image:
    return nib.load(root / phantom.mask_path(row["participant_id"]))


def pose_of(root: Path, row: dict[str, str]) -> tuple[np.ndarray, float]:
    pose = json.loads((root / phantom.pose_path(row["participant_id"])).read_text())
    return np.array(pose["normal"]), pose["offset_mm"]


def lists_of(root: Path) -> dict[str, dict[str, list]]:
    lists = {name: json.loads((root / "datalists" / f"{name}.json").read_text()) for name in BUNDLES}
    return {
        name: {part: content[part] for part in ("training", "validation", "testing")} for name, content in lists.items()
    }


def mirrored(config: Config, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A subject's image and its mirror image across the stated plane, and where the head is, in RAS."""
    subject = make_subject(config, number)
    image = nib.as_closest_canonical(next(iter(subject.images.values())))
    data = np.asarray(image.dataobj).astype(float)
    world = nib.affines.apply_affine(image.affine, np.moveaxis(np.indices(data.shape), 0, -1))
    normal, offset = subject.pose.normal, subject.pose.offset
    reflected = world - 2 * (world @ normal - offset)[..., None] * normal
    voxels = nib.affines.apply_affine(np.linalg.inv(image.affine), reflected)
    mirror_image = ndimage.map_coordinates(data, np.moveaxis(voxels, -1, 0), order=1, mode="nearest")
    return data, mirror_image, data > 0.1 * data.max()


def test_same_seed_same_bytes(cohort, tmp_path):
    phantom.phantom_command(str(tmp_path / "again"), **SMALL)
    assert files(tmp_path / "again") == files(cohort)


@pytest.mark.slow
def test_two_workers_write_the_same_bytes_as_one(tmp_path):
    (tmp_path / "maps").mkdir()
    label_map(tmp_path / "maps" / "a.nii.gz", (2, 41))
    for workers in (1, 2):
        options = {"workers": workers, "anatomies": str(tmp_path / "maps"), **(SMALL | {"subjects": 4})}
        phantom.phantom_command(str(tmp_path / str(workers)), **options)
    assert files(tmp_path / "1") == files(tmp_path / "2")


def test_another_seed_is_another_cohort(cohort, tmp_path):
    phantom.phantom_command(str(tmp_path), **(SMALL | {"subjects": 4, "seed": 4}))
    path = phantom.image_path("sub-001", "T1w")
    assert (tmp_path / path).read_bytes() != (cohort / path).read_bytes()


def test_a_subject_does_not_depend_on_the_cohorts_size(cohort, tmp_path):
    phantom.phantom_command(str(tmp_path), **(SMALL | {"subjects": 6}))
    path = phantom.image_path("sub-006", "CT")
    assert (tmp_path / path).read_bytes() == (cohort / path).read_bytes()


def test_a_second_run_does_nothing_and_an_interrupted_one_goes_on(cohort, capsys):
    before = files(cohort)
    phantom.phantom_command(str(cohort), **SMALL)
    assert "finished already" in capsys.readouterr().out
    for path in (phantom.pose_path("sub-004"), phantom.image_path("sub-004", "T1w"), "participants.tsv"):
        (cohort / path).unlink()
    phantom.phantom_command(str(cohort), **SMALL)
    assert "1 subjects written" in capsys.readouterr().out
    assert files(cohort) == before


def test_the_fixture_has_every_finding_side_and_orientation(cohort):
    rows = table(cohort)
    assert {row["diagnosis"] for row in rows} == {"healthy", *phantom.FINDINGS}
    assert {row["side"] for row in patients(cohort)} == {"left", "right"}
    images = [nib.load(cohort / phantom.image_path(row["participant_id"], "T1w")) for row in rows]
    assert {"".join(nib.aff2axcodes(image.affine)) for image in images} == {"RAS", "LPS", "LIA"}


def test_every_lesion_lies_wholly_on_the_side_the_table_says(cohort):
    for row in patients(cohort):
        mask, (normal, offset) = mask_of(cohort, row), pose_of(cohort, row)
        lateral = nib.affines.apply_affine(mask.affine, np.argwhere(mask.get_fdata() > 0)) @ normal - offset
        assert (lateral * {"left": -1, "right": 1}[row["side"]]).min() > MARGIN_MM - 1e-3


def test_normals_point_to_the_subjects_right(cohort):
    assert all(pose_of(cohort, row)[0][0] > 0.8 for row in table(cohort))


def test_masks_share_the_grid_of_their_image_and_hold_the_volume_of_the_table(cohort):
    for row in patients(cohort):
        mask, image = mask_of(cohort, row), nib.load(cohort / phantom.image_path(row["participant_id"], "CT"))
        assert mask.shape == image.shape
        np.testing.assert_array_equal(mask.affine, image.affine)
        voxels = np.asarray(mask.dataobj)
        assert set(np.unique(voxels)) == {0, 1}
        assert float(row["lesion_ml"]) == pytest.approx(voxels.sum() * 6.0**3 / 1000, abs=1e-3)
        assert float(row["lesion_ml"]) >= 3


def test_images_are_int16_with_a_scanner_affine(cohort):
    image = nib.load(cohort / phantom.image_path("sub-001", "T1w"))
    assert image.get_data_dtype() == np.int16
    np.testing.assert_allclose(image.header.get_zooms(), 6)
    np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)
    assert (int(image.header["qform_code"]), int(image.header["sform_code"])) == (1, 1)


def test_the_three_datalists_share_one_split_by_subject(cohort):
    lists = lists_of(cohort)
    subjects = {name: {s: [case["subject"] for case in cases] for s, cases in v.items()} for name, v in lists.items()}
    assert subjects["pretrain"] == subjects["classify"]
    everyone = [subject for split in subjects["classify"].values() for subject in split]
    assert sorted(everyone) == [row["participant_id"] for row in table(cohort)]
    ill = {row["participant_id"] for row in patients(cohort)}
    for split, names in subjects["classify"].items():
        assert subjects["segment"][split] == [name for name in names if name in ill]


def test_splits_are_stratified_and_near_60_15_25_percent(cohort):
    sizes = {split: len(cases) for split, cases in lists_of(cohort)["classify"].items()}
    assert sizes == {"training": 10, "validation": 2, "testing": 4}
    for cases in lists_of(cohort)["classify"].values():
        assert sum(case["label"] for case in cases) * 2 == len(cases)


def test_datalists_point_to_files_that_exist_and_carry_what_the_bundles_read(cohort):
    for name, lists in lists_of(cohort).items():
        for case in (case for cases in lists.values() for case in cases):
            labels = [case["label"]] if name == "segment" else []
            assert all((cohort / path).is_file() for path in [*case["image"], *labels])
            assert {"image", "healthy", "subject", "site", "side", "diagnosis", "fold"} <= set(case)
            assert name != "classify" or case["label"] == int(not case["healthy"])
            assert case["fold"] in range(5)


def test_a_healthy_brain_is_nearly_its_own_mirror_image_and_a_lesion_is_not():
    options = {"patients": 0.5, "findings": ("infarct",), "skull": "false", "tilt": 0.0, "noise": 0.0}
    config = Config(4, 0, ("T1w",), 4.0, **options)
    healthy, reflection, brain = mirrored(config, 1)
    natural = np.abs(healthy - reflection)[brain].mean() / healthy[brain].mean()
    assert natural < 0.08
    assert np.corrcoef(healthy[brain], reflection[brain])[0, 1] > 0.9
    ill, reflection, brain = mirrored(config, 2)
    lesion = np.asarray(nib.as_closest_canonical(make_subject(config, 2).mask).dataobj) > 0
    assert np.abs(ill - reflection)[lesion].mean() / ill[brain].mean() > 4 * natural


@pytest.mark.parametrize("skull", ["true", "false"])
def test_the_stated_plane_is_the_plane_of_symmetry(skull):
    config = Config(4, 0, ("T1w",), 4.0, patients=0.0, skull=skull, tilt=20.0, noise=0.0)
    data, reflection, head = mirrored(config, 1)
    assert np.corrcoef(data[head], reflection[head])[0, 1] > 0.85
    assert np.corrcoef(data[head], data[::-1][head])[0, 1] < 0.5


def test_another_plane_is_less_symmetric_than_the_stated_one():
    config = Config(4, 0, ("T1w",), 3.0, patients=0.0, skull="false", tilt=0.0, noise=0.0)
    data, _, brain = mirrored(config, 1)
    shifted = [np.corrcoef(data[brain], np.roll(data[::-1], shift, axis=0)[brain])[0, 1] for shift in (-1, 0, 1)]
    assert np.argmax(shifted) == 1


def test_the_template_anatomy_is_its_own_mirror_image():
    maps = icbm_anatomy(4).maps.astype(int)
    np.testing.assert_allclose(maps, maps[:, ::-1], atol=1)


@pytest.mark.slow
def test_a_bilateral_lesion_lies_as_much_on_either_side_and_keeps_the_symmetry():
    options = {"findings": ("tumour",), "modality": ("FLAIR",), "lesion_ml": (30, 31)}
    one_sided, both = (Config(4, bilateral=share, **options) for share in (0, 1))
    found = {}
    for config in (one_sided, both):
        subject = make_subject(config, 2)
        mask = subject.mask
        lateral = nib.affines.apply_affine(mask.affine, np.argwhere(np.asarray(mask.dataobj) > 0)) @ subject.pose.normal
        data, mirror_image, head = mirrored(config, 2)
        correlation = np.corrcoef(data[head], mirror_image[head])[0, 1]
        found[config.bilateral] = np.mean(lateral > subject.pose.offset), correlation, subject.participant
    assert found[0][0] in (0, 1)
    assert 0.4 < found[1][0] < 0.6
    assert found[1][1] > found[0][1] + 0.02
    assert found[0][2]["side"] in ("left", "right")
    assert found[1][2]["side"] == "both"
    assert found[1][2]["lesion_ml"] == pytest.approx(found[0][2]["lesion_ml"], rel=0.1)


@pytest.mark.parametrize("number", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_a_midline_lesion_lies_across_the_plane_in_one_piece_and_keeps_the_symmetry(number):
    one_sided, midline = (Config(4, findings=("tumour",), modality=("FLAIR",), midline=share) for share in (0, 1))
    subject = make_subject(midline, number)
    lesion = np.asarray(subject.mask.dataobj) > 0
    lateral = nib.affines.apply_affine(subject.mask.affine, np.argwhere(lesion)) @ subject.pose.normal
    lateral -= subject.pose.offset
    assert 0.4 < np.mean(lateral > 0) < 0.6
    assert np.abs(lateral).min() < 1  # mm: no gap about the plane
    assert ndimage.label(lesion, np.ones((3, 3, 3)))[1] == 1
    assert subject.participant["side"] == "midline"
    correlations = []
    for config in (one_sided, midline):
        data, mirror_image, head = mirrored(config, number)
        correlations.append(np.corrcoef(data[head], mirror_image[head])[0, 1])
    assert correlations[1] > correlations[0]


def test_an_option_that_a_cohort_does_not_know_yet_stood_at_its_default(tmp_path):
    config = Config(4)
    (tmp_path / "cohort.json").write_text(json.dumps({k: v for k, v in config.record.items() if k != "midline"}))
    phantom.start(tmp_path, config)
    with pytest.raises(ValueError, match=r"midline 0.0 \(now 0.5\)"):
        phantom.start(tmp_path, Config(4, midline=0.5))


def test_ct_is_in_hounsfield_units():
    config = Config(4, 1, ("CT",), 3.0, patients=1.0, findings=("haemorrhage",), tilt=0.0)
    subject = make_subject(config, 1)
    data, mask = np.asarray(subject.images["CT"].dataobj), np.asarray(subject.mask.dataobj) > 0
    assert np.median(data[:2]) == pytest.approx(-1000, abs=10)
    assert data.max() > 700
    soft = data[(data > 0) & (data < 60) & ~mask]
    assert np.median(soft) == pytest.approx(33, abs=6)
    assert np.percentile(data[mask], 60) == pytest.approx(65, abs=8)


@pytest.mark.parametrize("finding", phantom.FINDINGS)
@pytest.mark.parametrize("modality", ["T1w", "FLAIR", "CT"])
def test_lesions_are_visible_against_their_mirrored_counterpart(finding, modality):
    config = Config(4, 5, (modality,), 6.0, patients=1.0, findings=(finding,), tilt=0.0, noise=0.0)
    subject = make_subject(config, 1)
    image = np.asarray(nib.as_closest_canonical(subject.images[modality]).dataobj).astype(float)
    mask = np.asarray(nib.as_closest_canonical(subject.mask).dataobj) > 0
    change = np.abs(image - image[::-1])[mask].mean()
    unit = 1 if modality == "CT" else MR_UNIT * SITES[str(subject.participant["site"])][1]
    assert change > 0.5 * abs(CONTRASTS[modality]["gm"] - CONTRASTS[modality]["wm"]) * unit


def test_without_skull_nothing_is_left_outside_the_brain():
    config = Config(4, 0, ("T1w",), 6.0, patients=0.0, tilt=0.0, noise=0.0)
    whole = np.asarray(make_subject(config, 1).images["T1w"].dataobj)
    bare_config = Config(4, 0, ("T1w",), 6.0, patients=0.0, skull="false", tilt=0.0, noise=0.0)
    bare = np.asarray(make_subject(bare_config, 1).images["T1w"].dataobj)
    np.testing.assert_array_equal(bare[bare > 0], whole[bare > 0])
    assert (np.asarray(make_subject(replace(bare_config, noise=1.0), 1).images["T1w"].dataobj) == 0).mean() > 0.7
    assert (bare > 0).sum() * 6.0**3 / 1e6 == pytest.approx(1.9, abs=0.5)
    assert (whole > 0).sum() > 1.5 * (bare > 0).sum()


def label_map(path: Path, labels: tuple[int, int]) -> None:
    """Two halves of a ball of white matter, in fluid and a shell of bone, as FreeSurfer labels, stored as LIA."""
    x, y, z = np.indices((90, 90, 90)) * 2 - 89
    radius = np.sqrt(x**2 + y**2 + z**2)
    volume = np.where(radius < 75, 515, 0)
    volume[radius < 65] = 24
    volume[radius < 62] = np.where(x < 0, *labels)[radius < 62]
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = -89
    image = nib.Nifti1Image(volume.astype(np.int16), affine)
    nib.save(image.as_reoriented(nib.orientations.axcodes2ornt("LIA")), path)


def test_one_bad_anatomy_does_not_lose_the_other_subjects(tmp_path, capsys):
    (tmp_path / "maps").mkdir()
    label_map(tmp_path / "maps" / "a.nii.gz", (2, 41))
    label_map(tmp_path / "maps" / "b.nii.gz", (2, 2))
    with pytest.raises(
        SystemExit, match=r"failed:(\n  sub-\d+: ValueError: .*b\.nii\.gz: expected FreeSurfer labels)+"
    ):
        phantom.phantom_command(str(tmp_path / "out"), 10, spacing=6.0, patients=0.3, anatomies=str(tmp_path / "maps"))
    rows = table(tmp_path / "out")
    assert 0 < len(rows) < 10
    assert all((tmp_path / "out" / phantom.image_path(row["participant_id"], "T1w")).is_file() for row in rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modality": "T3w"}, "modality must be one or more of T1w, FLAIR, CT, each once; got T3w"),
        ({"findings": "tumour,cold"}, "findings must be .*; got tumour, cold"),
        ({"subjects": 3}, "subjects must lie between 4 and 999999; got 3"),
        ({"skull": "maybe"}, "skull must be one of true, false, mixed; got maybe"),
        ({"patients": 1.5}, "patients must lie between 0 and 1; got 1.5"),
        ({"bilateral": 2}, "bilateral must lie between 0 and 1; got 2"),
        ({"bilateral": 0.6, "midline": 0.5}, "bilateral and midline together must be 1 at most; got 1.1"),
        ({"shares": (0.5, 0.5, 0.5)}, r"shares must be three positive numbers with sum 1; got \(0.5, 0.5, 0.5\)"),
        ({"workers": 0}, "workers must be at least 1; got 0"),
        ({"anatomies": "nowhere"}, r"nowhere: expected NIfTI files .*, found none"),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(tmp_path, options, message):
    with pytest.raises(SystemExit, match=message):
        phantom.phantom_command(str(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_else_is_left_alone(cohort, tmp_path):
    with pytest.raises(SystemExit, match=r"holds a cohort made with seed 3 \(now 9\); choose another"):
        phantom.phantom_command(str(cohort), **(SMALL | {"seed": 9}))
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(SystemExit, match="is not empty and holds no cohort"):
        phantom.phantom_command(str(tmp_path), **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.skipif(not (SHARED / "anatomies").is_dir(), reason="the shared label maps and lesions are not here")
def test_real_anatomies_get_real_lesions_on_the_stated_side_of_a_plane_that_fits():
    folders = {"anatomies": str(SHARED / "anatomies"), "lesions": str(SHARED / "lesions")}
    config = Config(4, 2, ("T1w",), 5.0, 0.5, ("infarct",), skull="false", noise=0.0, **folders)
    data, reflection, brain = mirrored(config, 1)
    turned = np.corrcoef(data[brain], data[::-1][brain])[0, 1]
    assert np.corrcoef(data[brain], reflection[brain])[0, 1] > max(0.4, turned)
    subject = make_subject(config, 2)
    voxels = np.argwhere(np.asarray(subject.mask.dataobj) > 0)
    lateral = nib.affines.apply_affine(subject.mask.affine, voxels) @ subject.pose.normal - subject.pose.offset
    assert (lateral * {"left": -1, "right": 1}[str(subject.participant["side"])]).min() > MARGIN_MM - 1e-3
