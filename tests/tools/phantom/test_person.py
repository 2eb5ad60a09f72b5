"""Lesions on real heads: where the tables say, with the tissue's own values, and nothing else that gives them away."""

import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sa_swin.phantom import cohort as phantom
from sa_swin.phantom import lesion, person
from sa_swin.phantom.config import Config
from sa_swin.phantom.lesion import MARGIN_MM
from sa_swin.phantom.people import chosen, healthy_people
from sa_swin.phantom.person import lesion_shapes, make_person
from sa_swin.phantom.plan import is_patient
from sa_swin.phantom.real import Head, read_head
from sa_swin.phantom.repaint import Lesion, outline_distance, pushed
from sa_swin.phantom.subject import Subject, make_subject

SHARED = Path(os.environ.get("SA_SWIN_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))
REAL = [name for name in ("ixi", "oasis") if (SHARED / "cohorts" / name).is_dir()]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A BIDS folder of four heads, two and two alike, which the built-in cohort painted, and six lesion masks."""
    root = tmp_path_factory.mktemp("people")
    config = Config(4, 5, spacing=3.0, patients=0.0)
    heads = [make_subject(config, number).images["T1w"] for number in (1, 2)]
    for number in range(1, 5):
        path = root / "images" / f"sub-{number}" / "anat" / f"sub-{number}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        nib.save(heads[number % 2], path)
    (root / "lesions").mkdir()
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = (-78, -112, -50)
    points = nib.affines.apply_affine(affine, np.moveaxis(np.indices((79, 95, 68)), 0, -1))
    for i in range(6):
        inside = np.linalg.norm((points - [(-1) ** i * 30, 20 - 14 * i, 24]) / [1, 1.4, 1], axis=-1) < 10 + 2 * i
        nib.save(nib.Nifti1Image(inside.astype(np.uint8), affine), root / "lesions" / f"{i}.nii.gz")
    return {"images": str(root / "images"), "lesions": str(root / "lesions")}


@pytest.fixture(scope="module", autouse=True)
def heads_are_read_once() -> Iterator[None]:
    """What is found in a head depends on the file alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(person, "read_head", cache(read_head))
        yield


def config_of(folders: dict[str, str], **options: object) -> Config:
    return Config(4, **{"findings": ("infarct",), "lesion_ml": (8.0, 30.0), **folders, **options})


def volumes(subject: Subject) -> tuple[np.ndarray, np.ndarray]:
    """Image and lesion mask in RAS."""
    images = (subject.images["T1w"], subject.mask)
    return tuple(np.asarray(nib.as_closest_canonical(image).dataobj).astype(float) for image in images)


@pytest.mark.parametrize(("finding", "reach"), [("infarct", 0.0), ("haemorrhage", 3.0)])
def test_away_from_the_lesion_a_patient_is_the_same_person_as_a_healthy_one(folders, finding, reach):
    config = config_of(folders, findings=(finding,))
    patient, healthy = make_person(config, 2), make_person(config, 2, healthy=True)
    image, mask = volumes(patient)
    same = np.asarray(nib.as_closest_canonical(healthy.images["T1w"]).dataobj).astype(float)
    radius = (3000 * patient.participant["lesion_ml"] / (4 * np.pi)) ** (1 / 3)
    away = ndimage.distance_transform_edt(mask == 0, patient.images["T1w"].header.get_zooms()) > 9 + reach * radius
    np.testing.assert_array_equal(image[away], same[away])
    inside = mask > 0
    assert np.abs(image - same)[inside].mean() > 10 * np.abs(image - same)[~inside].mean()
    assert healthy.mask is None
    assert healthy.participant["diagnosis"] == "healthy"


def test_a_lesion_has_its_volume_its_side_and_its_look(folders):
    means = {}
    for finding in ("infarct", "haemorrhage"):
        subject = make_person(config_of(folders, findings=(finding,)), 4)
        image, mask = volumes(subject)
        head, _ = person.read_head(chosen(folders["images"], 4, 0)[3].path)
        lateral = head.points[..., 0].numpy()[mask > 0] * {"left": -1, "right": 1}[subject.participant["side"]]
        assert lateral.min() > MARGIN_MM - 1e-3
        assert subject.participant["lesion_ml"] == pytest.approx(mask.sum() * 0.027, abs=1e-3)
        assert 7 < subject.participant["lesion_ml"] < 36
        core = ndimage.binary_erosion(mask > 0)
        means[finding] = np.mean(image[core] / head.shading[core])
    fluid, grey, white = head.means
    assert fluid < means["infarct"] < grey
    assert means["haemorrhage"] > white


@pytest.mark.parametrize(("side", "shares"), [("both", {"bilateral": 1.0}), ("midline", {"midline": 1.0})])
def test_a_lesion_without_a_side_has_as_much_on_either(folders, side, shares):
    subject = make_person(config_of(folders, **shares), 2)
    _, mask = volumes(subject)
    affine = nib.as_closest_canonical(subject.mask).affine
    lateral = nib.affines.apply_affine(affine, np.argwhere(mask > 0)) @ subject.pose.normal - subject.pose.offset
    assert subject.participant["side"] == side
    assert 0.35 < np.mean(lateral > 0) < 0.65
    assert (np.abs(lateral).min() < 1.5) == (side == "midline")  # mm


def test_a_cohort_uses_each_person_once_and_keeps_grid_and_orientation(folders, tmp_path):
    phantom.phantom_command(str(tmp_path / "out"), lesion_ml=(8, 30), **folders)
    names, *rows = (line.split("\t") for line in (tmp_path / "out" / "participants.tsv").read_text().splitlines())
    table = [dict(zip(names, row, strict=True)) for row in rows]
    assert sorted(row["source"] for row in table) == ["sub-1", "sub-2", "sub-3", "sub-4"]
    assert [row["healthy"] for row in table] == ["true", "false"] * 2
    for row in table:
        source = nib.load(f"{folders['images']}/{row['source']}/anat/{row['source']}_T1w.nii.gz")
        image = nib.load(tmp_path / "out" / phantom.image_path(row["participant_id"], "T1w"))
        np.testing.assert_allclose(image.affine, source.affine)
        assert image.shape == source.shape
        assert image.get_data_dtype() == source.get_data_dtype()
        assert not np.asarray(image.dataobj)[np.asarray(source.dataobj) == 0].any()
    lists = json.loads((tmp_path / "out" / "datalists" / "classify.json").read_text())
    assert sum(len(lists[part]) for part in ("training", "validation", "testing")) == 4


def test_no_two_patients_have_one_lesion_mask(folders):
    config = config_of(folders)
    pools = [lesion_shapes(config, number) for number in range(1, 5) if is_patient(config, number)]
    assert sorted(path for pool in pools for path in pool) == sorted(map(str, Path(folders["lesions"]).iterdir()))


def test_a_patient_whose_own_masks_have_no_side_gets_another_ones(folders, monkeypatch):
    own = str(folders["lesions"]) + "/0.nii.gz"
    known = person.volume_and_side
    for module in (person, lesion):
        monkeypatch.setattr(module, "volume_and_side", lambda path: (known(path)[0], known(path)[1] * (path != own)))
    monkeypatch.setattr(person, "lesion_shapes", lambda config, number: [own])
    assert make_person(config_of(folders), 2).participant["lesion_ml"] > 7


def test_scans_of_one_person_are_one(folders, tmp_path, write_volume):
    for name in ("sub-1", "sub-2", "sub-3"):
        write_volume(tmp_path / name / "anat" / f"{name}_T1w.nii.gz", np.zeros((2, 2, 2), np.uint8))
    text = "participant_id\tperson\tsite\nsub-1\ta\tx\nsub-2\tb\ty\nsub-3\ta\tx\n"
    (tmp_path / "participants.tsv").write_text(text)
    assert [(own.name, own.site) for own in healthy_people(str(tmp_path))] == [("sub-1", "x"), ("sub-2", "y")]


def test_people_are_found_in_a_table_that_writes_their_names_in_another_way(tmp_path, write_volume):
    for name in ("sub-01", "sub-02", "sub-03"):
        write_volume(tmp_path / name / "anat" / f"{name}_T1w.nii.gz", np.zeros((2, 2, 2), np.uint8))
    (tmp_path / "participants.tsv").write_text("participant_id\tperson\tsite\n01\ta\tx\n2\tb\ty\n03\ta\tx\n")
    assert [(own.name, own.site) for own in healthy_people(str(tmp_path))] == [("sub-01", "x"), ("sub-02", "y")]


def test_people_of_whom_nobody_says_who_they_are_are_not_one(tmp_path, write_volume):
    for name in ("sub-1", "sub-2", "sub-3"):
        write_volume(tmp_path / name / "anat" / f"{name}_T1w.nii.gz", np.zeros((2, 2, 2), np.uint8))
    text = "participant_id\tperson\nsub-1\tn/a\nsub-2\tn/a\nsub-3\t\n"
    (tmp_path / "participants.tsv").write_text(text)
    assert [own.name for own in healthy_people(str(tmp_path))] == ["sub-1", "sub-2", "sub-3"]


def test_outline_distance_of_a_ball_is_known():
    x, y, z = np.indices((40, 40, 40)) - 19.5
    ball = torch.from_numpy((np.sqrt(x**2 + y**2 + z**2) < 10).astype(np.float32))
    points = torch.tensor([[19.5, 19.5, 19.5], [25.5, 19.5, 19.5], [35.5, 19.5, 19.5], [69.5, 19.5, 19.5]])
    found = outline_distance(ball, np.eye(4), points)
    np.testing.assert_allclose(found, [-10, -4, 6, 40], atol=4)  # by voxels of 2 mm, and beyond the array roughly


def test_a_mass_effect_moves_tissue_outward(folders):
    head, _ = person.read_head(f"{folders['images']}/sub-1/anat/sub-1_T1w.nii.gz")
    lateral = head.points[..., 0].numpy()
    centre = torch.tensor([35.0, 0.0, 10.0])
    lesion = Lesion(np.zeros(lateral.shape, bool), centre, 1, 12.0, False)
    shift = pushed(lateral, head, lesion, "tumour") - lateral  # of what lies there now, mm: it came from nearer
    offset = head.points.numpy() - centre.numpy()
    distance = np.linalg.norm(offset, axis=-1)
    near = (np.abs(distance - 12) < 3) & (np.abs(offset[..., 0]) > 8) & (head.depth > 0.5)
    assert (shift[near] * offset[near, 0]).max() < 0
    assert np.abs(shift[distance > 60]).max() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lesions": None}, "with images, lesions must be a folder"),
        ({"subjects": 5}, "subjects must be 4 at most, the people in .*; got 5"),
        ({"findings": "atrophy"}, "with images, findings must be among tumour, infarct, haemorrhage; got atrophy"),
        ({"modality": "FLAIR", "spacing": 3.0}, "with images, leave out modality, spacing"),
        ({"images": "nowhere"}, r"nowhere: expected T1w images of a BIDS folder .*, found none"),
    ],
)
def test_options_that_real_heads_do_not_allow_are_refused(folders, tmp_path, options, message):
    with pytest.raises(SystemExit, match=message):
        phantom.phantom_command(str(tmp_path / "out"), **(folders | options))


def surroundings(image: np.ndarray, mask: np.ndarray, head: Head) -> list[float]:
    """What a scan shows outside of a lesion: values, noise and sharpness near it and elsewhere in the brain."""
    away = ndimage.distance_transform_edt(mask == 0, head.spacing)
    fine = np.abs(image - ndimage.gaussian_filter(image, 1))
    found = []
    for part in ((away > 6) & (away <= 16), away > 16):
        own = part & head.brain
        scaled = image[own] / image[head.brain].mean()
        found += [*np.quantile(scaled, [0.05, 0.25, 0.5, 0.75, 0.95]), scaled.std()]
        found += [fine[own].mean() / image[own].mean(), np.median(fine[own]) / image[own].mean()]
    return found


@pytest.mark.slow
@pytest.mark.skipif("ixi" not in REAL, reason="the shared real heads are not here")
def test_around_a_lesion_nothing_gives_it_away():
    """24 people, each as patient and as healthy one: a classifier of the surroundings cannot tell which is which."""
    folders = {"images": str(SHARED / "cohorts" / "ixi"), "lesions": str(SHARED / "lesions")}
    config = Config(48, findings=("tumour", "infarct", "haemorrhage"), bilateral=0.25, midline=0.1, **folders)
    rows, people = [], chosen(folders["images"], 48, 0)
    for number in range(2, 49, 2):
        image, mask = volumes(make_person(config, number))
        twin = np.asarray(nib.as_closest_canonical(make_person(config, number, healthy=True).images["T1w"]).dataobj)
        head, _ = person.read_head(people[number - 1].path)
        rows += [surroundings(volume, mask, head) for volume in (image, twin.astype(float))]
    labels, groups = np.tile([1, 0], 24), np.repeat(np.arange(24), 2)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1))
    scores = cross_val_predict(classifier, rows, labels, groups=groups, cv=GroupKFold(6), method="decision_function")
    if out := os.environ.get("LEAKS"):
        np.savez(out, rows=rows, labels=labels, groups=groups, scores=scores)
    assert 0.3 < roc_auc_score(labels, scores) < 0.7
