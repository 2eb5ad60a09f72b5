"""`custom.prepare` on a cohort of small heads: what it writes, resumes, refuses and reports."""

import csv
import json
import math

import nibabel as nib
import numpy as np
import pytest
import torch
from nilearn.datasets import load_mni152_template

from custom import prepare
from custom.contact_sheet import thumbnail
from custom.symmetry import mirror

SIZE = (48, 56, 48)


@pytest.fixture
def cohort(tmp_path):
    """Two turned symmetric brains at 4 mm with a mask, one hemisphere, and a file that is no image."""
    template = load_mni152_template(resolution=4)
    half = template.get_fdata(dtype=np.float32)[:25] * 1000
    brain = np.concatenate([half, half[::-1]])
    mask = np.zeros(brain.shape, np.uint8)
    mask[8:14, 20:30, 18:26] = 1
    c, s = math.cos(0.2), math.sin(0.2)
    for name, turn in (("a", np.eye(3)), ("b", np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]))):
        affine = np.eye(4)
        affine[:3, :3] = turn * 4
        affine[:3, 3] = turn @ [-98, -120, -70]
        (tmp_path / "in" / name).mkdir(parents=True)
        nib.save(nib.Nifti1Image(brain, affine), tmp_path / "in" / name / "T1.nii.gz")
        nib.save(nib.Nifti1Image(mask, affine), tmp_path / "in" / name / "lesion.nii.gz")
    (tmp_path / "in" / "c").mkdir()
    hemisphere = np.where(np.arange(50)[:, None, None] < 25, brain, 0)
    nib.save(nib.Nifti1Image(hemisphere, affine), tmp_path / "in" / "c" / "T1.nii.gz")
    (tmp_path / "in" / "broken.nii.gz").write_text("no image")
    lists = {
        "description": "kept",
        "training": [
            {"image": "a/T1.nii.gz", "label": "a/lesion.nii.gz", "subject": "a", "fold": 0},
            {"image": ["b/T1.nii.gz"], "label": 1, "subject": "b"},
        ],
        "testing": [{"image": "c/T1.nii.gz", "label": 0}, {"image": "broken.nii.gz", "label": 0}],
    }
    (tmp_path / "in" / "list.json").write_text(json.dumps(lists))
    return tmp_path


def run(cohort, **options) -> None:
    prepare.main(str(cohort / "in" / "list.json"), str(cohort / "out"), spacing=4.0, spatial_size=SIZE, **options)


def table(cohort) -> dict[str, dict[str, str]]:
    with (cohort / "out" / "planes.csv").open() as file:
        return {row["image"]: row for row in csv.DictReader(file)}


def test_one_bad_file_does_not_stop_the_rest_and_is_named(cohort, capsys):
    with pytest.raises(SystemExit) as stop:
        run(cohort)
    assert stop.value.code == 1
    rows = table(cohort)
    assert {name: row["status"] for name, row in rows.items()} == {
        "a/T1.nii.gz": "aligned",
        "b/T1.nii.gz": "aligned",
        "c/T1.nii.gz": "failed",
        "broken.nii.gz": "failed",
    }
    stderr = capsys.readouterr().err
    assert "2 failed" in stderr
    assert "broken.nii.gz: " in stderr
    assert rows["c/T1.nii.gz"]["reason"] in stderr

    lists = json.loads((cohort / "out" / "datalist.json").read_text())
    assert lists["description"] == "kept"
    assert lists["testing"] == []
    first, second = lists["training"]
    assert first == {"image": "a/T1.nii.gz", "label": "a/T1_label.nii.gz", "subject": "a", "fold": 0}
    assert second == {"image": ["b/T1.nii.gz"], "label": 1, "subject": "b"}
    assert float(rows["b/T1.nii.gz"]["yaw_deg"]) == pytest.approx(math.degrees(0.2), abs=0.2)
    assert (cohort / "out" / "contact_sheet_01.png").exists()

    image = torch.from_numpy(nib.load(cohort / "out" / "b" / "T1.nii.gz").get_fdata(dtype=np.float32))
    assert image.shape == SIZE
    assert (image - mirror(image)).abs().mean() < 0.1 * image.mean()
    mask = nib.load(cohort / "out" / first["label"])
    assert set(np.unique(mask.dataobj)) == {0, 1}
    assert mask.get_data_dtype() == np.uint8
    record = json.loads((cohort / "out" / "b" / "T1.json").read_text())
    np.testing.assert_allclose(record["aligned_affine"], nib.load(cohort / "out" / "b" / "T1.nii.gz").affine, atol=1e-4)
    assert record["source_size"] == list(nib.load(cohort / "in" / "b" / "T1.nii.gz").shape)


@pytest.mark.parametrize(("untrusted", "status", "kept"), [("warn", "kept", 1), ("drop", "dropped", 0)])
def test_an_untrusted_volume_is_handled_as_chosen(cohort, untrusted, status, kept):
    with pytest.raises(SystemExit):
        run(cohort, untrusted=untrusted)
    assert table(cohort)["c/T1.nii.gz"]["status"] == status
    assert len(json.loads((cohort / "out" / "datalist.json").read_text())["testing"]) == kept
    assert (cohort / "out" / "c" / "T1.nii.gz").exists() == bool(kept)


def test_a_second_run_makes_only_what_is_missing_or_changed(cohort):
    with pytest.raises(SystemExit):
        run(cohort)
    kept, gone = cohort / "out" / "a" / "T1.nii.gz", cohort / "out" / "b"
    before = kept.stat().st_mtime_ns
    (gone / "T1.json").unlink()
    (gone / "T1.nii.gz").unlink()
    with pytest.raises(SystemExit):
        run(cohort)
    assert kept.stat().st_mtime_ns == before
    assert (gone / "T1.nii.gz").exists()
    (cohort / "in" / "a" / "T1.nii.gz").touch()
    with pytest.raises(SystemExit):
        run(cohort)
    assert kept.stat().st_mtime_ns > before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"untrusted": "maybe"}, "untrusted must be one of fail, warn, drop; got maybe"),
        ({"workers": 0}, "at least one worker"),
        ({"dataset_dir": "/nowhere", "untrusted": "later"}, "got later"),
    ],
)
def test_wrong_options_are_one_sentence(cohort, options, message):
    with pytest.raises(SystemExit, match=message):
        run(cohort, **options)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not JSON"), ('{"training": []}', "lists no cases"), ("[]", "lists no cases")],
)
def test_what_is_no_datalist_is_refused(tmp_path, content, message):
    (tmp_path / "list.json").write_text(content)
    with pytest.raises(SystemExit, match=message):
        prepare.main(str(tmp_path / "list.json"), str(tmp_path / "out"))
    with pytest.raises(SystemExit, match="no datalist at"):
        prepare.main(str(tmp_path / "none.json"), str(tmp_path / "out"))


def test_an_image_listed_with_two_labels_is_refused(tmp_path):
    entries = [{"image": "a.nii.gz", "label": "m.nii.gz"}, {"image": "a.nii.gz", "label": "n.nii.gz"}]
    (tmp_path / "list.json").write_text(json.dumps({"training": entries}))
    with pytest.raises(SystemExit, match=r"lists a\.nii\.gz with different labels"):
        prepare.main(str(tmp_path / "list.json"), str(tmp_path / "out"))


def test_the_picture_has_the_patients_right_on_the_left_and_the_front_up():
    image = torch.zeros(10, 12, 10)
    image[8, 10, 5] = 1  # right, anterior
    axial = thumbnail(image)[:, :10]
    row, column = np.argwhere(axial > 0)[0]
    assert column < 5
    assert row < 6
