import csv
import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.data import MetaTensor
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from nilearn.datasets import load_mni152_template
from scipy import ndimage
from torch import nn

from custom.symmetry import split_pair
from custom.transforms.findings import (
    RemoveSmallFindingsd,
    asymmetry_index,
    central_plane,
    finding_rows,
    laterality_row,
    right_share,
    segmented_row,
)
from custom.weights.settings import carrying

ROOT = Path(__file__).resolve().parents[2]


def grid(spacing, center, shape, flip=False):
    """Affine of a grid of this spacing about a world point; `flip` stores the lateral axis from right to left."""
    affine = np.diag([*spacing, 1.0])
    affine[0, 0] *= -1 if flip else 1
    affine[:3, 3] = np.array(center) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def mask_of(array, affine):
    return MetaTensor(torch.from_numpy(array[None].astype(np.uint8)), affine=torch.from_numpy(affine))


ALIGNED = MetaTensor(torch.zeros(2, 8, 8, 8), affine=torch.from_numpy(grid((2, 2, 2), (10, 0, 0), (8, 8, 8))))
"""Its midsagittal plane is x = 10 mm."""


@pytest.mark.parametrize("flip", [False, True])
def test_sides_and_volumes_are_those_counted_by_hand(flip):
    shape = (10, 6, 6)
    affine = grid((2, 1, 1), (10, 0, 0), shape, flip)  # the plane lies between voxels 4 and 5
    array = np.zeros(shape)
    array[8:10, 1:3, 1:3] = 1  # 8 voxels at one end
    array[3:6, 4:6, 4:6] = 2  # 12 voxels, 8 of them on the side of the lower indices
    first, second = finding_rows(mask_of(array, affine), ALIGNED)
    near, far = ("left_ml", "right_ml") if flip else ("right_ml", "left_ml")
    assert (first["class"], second["class"]) == (2, 1)
    assert first[near] == pytest.approx(4 * 0.002)
    assert first[far] == pytest.approx(8 * 0.002)
    assert first["side"] == "both"
    assert second["side"] == ("left" if flip else "right")
    assert second["volume_ml"] == pytest.approx(8 * 0.002)
    assert second["x_mm"] == pytest.approx(10 + (-8 if flip else 8))
    row = laterality_row([first, second], num_classes=4)
    assert row["asymmetry_index_class2"] == pytest.approx((1 if flip else -1) * 4 / 12)
    assert row["asymmetry_index_class1"] == pytest.approx(-1 if flip else 1)
    assert [row[f"findings_class{i}"] for i in (1, 2, 3)] == [1, 1, 0]
    assert row["side_class3"] == ""
    assert math.isnan(row["asymmetry_index_class3"])


def test_a_voxel_that_the_plane_cuts_counts_to_both_sides_by_its_shares():
    affine = grid((4, 1, 1), (11, 0, 0), (1, 1, 1))  # from 9 to 13 mm, the plane at 10
    assert right_share(np.zeros((1, 3)), affine, central_plane(ALIGNED)) == pytest.approx(0.75)


def test_the_index_runs_from_all_left_to_all_right():
    assert [asymmetry_index(*ml) for ml in ((3, 0), (0, 3), (1, 1), (1, 3))] == [-1, 1, 0, 0.5]
    assert math.isnan(asymmetry_index(0, 0))


def test_voxels_that_share_a_corner_are_one_finding_and_classes_are_kept_apart():
    array = np.zeros((6, 6, 6))
    array[1, 1, 1] = array[2, 2, 2] = 1
    array[3, 3, 3] = 2
    rows = finding_rows(mask_of(array, np.eye(4)), ALIGNED)
    assert sorted((row["class"], row["volume_ml"]) for row in rows) == [(1, 0.002), (2, 0.001)]


@pytest.mark.parametrize("workflow", ["inference", "evaluate"])
def test_by_default_a_ball_of_5_mm_is_a_speck_and_one_of_7_mm_a_finding(workflow):
    config = ConfigParser.load_config_file(ROOT / f"bundles/sa_swin_segment/configs/{workflow}.yaml")
    x, y, z = np.indices((12, 12, 30))
    small, large = ((x - 6) ** 2 + (y - 6) ** 2 + (z - at) ** 2 <= r**2 for at, r in ((6, 2.5), (20, 3.5)))
    kept = RemoveSmallFindingsd("pred", config["min_volume_ml"])({"pred": mask_of(small | large, np.eye(4))})["pred"]
    np.testing.assert_array_equal(kept[0].numpy(), large)


def test_only_findings_below_the_volume_are_removed():
    array = np.zeros((10, 6, 6))
    array[0:2, 0, 0] = 1  # 2 voxels of 0.5 ml
    array[5:8, 0, 0] = 1
    array[9, 3, 3] = 2
    mask = mask_of(array, np.diag([5.0, 10, 10, 1]))
    kept = RemoveSmallFindingsd("pred", min_volume_ml=1.2)({"pred": mask})["pred"]
    assert kept.sum() == 3
    assert kept[0, 5:8, 0, 0].tolist() == [1, 1, 1]
    assert mask.sum() == 7
    assert torch.equal(kept.affine, mask.affine)
    assert RemoveSmallFindingsd("pred")({"pred": mask})["pred"] is mask
    with pytest.raises(ValueError, match="min_volume_ml must be 0 or more, got -1"):
        RemoveSmallFindingsd("pred", min_volume_ml=-1)


def test_a_case_without_findings_has_its_columns():
    row = segmented_row({"pred": mask_of(np.zeros((4, 4, 4)), np.eye(4)), "image": ALIGNED})
    assert row["volume_ml_class1"] == row["left_ml_class1"] == row["right_ml_class1"] == 0
    assert row["findings"] == []


# ---- the inference of the segment bundle, on one head stored in many ways


class BrightIsLesion(nn.Module):
    """Stands for a trained network: what is far above the head's mean is class 1."""

    def __init__(self):
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(3.0))

    def forward(self, pair):
        excess = 20 * (split_pair(pair)[0] - self.threshold)
        return torch.cat([-excess, excess], dim=1)


POSE = np.array(  # yaw of 9 and roll of -6 degrees, off centre
    nib.affines.from_matvec(nib.eulerangles.euler2mat(math.radians(9), math.radians(-6), 0), (12, 20, -30))
)
LESION_MM = (38.0, -20.0, 25.0)  # in the brain's own space, on the patient's right
RADII_MM = (16.0, 22.0, 19.0)
LESION_ML = 4 / 3 * math.pi * math.prod(RADII_MM) / 1000


def posed_head():
    """The ICBM template with a bright ellipsoid in the right hemisphere, turned and shifted in the world."""
    template = load_mni152_template(resolution=2)
    array = template.get_fdata(dtype=np.float32) * 100
    points = np.stack(np.meshgrid(*map(np.arange, array.shape), indexing="ij"), -1)
    world = points @ template.affine[:3, :3].T + template.affine[:3, 3]
    inside = (((world - LESION_MM) / RADII_MM) ** 2).sum(-1) < 1
    return nib.Nifti1Image(np.where(inside, 500, array).astype(np.float32), POSE @ template.affine)


def stored_as(image, axes):
    """The same voxels in another order."""
    return image.as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt(axes)))


def sampled(image, directions, spacing, shape):
    """The same head scanned on another grid about its centre."""
    center = image.affine[:3, :3] @ ((np.array(image.shape) - 1) / 2) + image.affine[:3, 3]
    affine = np.eye(4)
    affine[:3, :3] = directions * np.array(spacing)
    affine[:3, 3] = center - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    inverse = np.linalg.inv(image.affine) @ affine
    array = ndimage.affine_transform(np.asarray(image.dataobj), inverse, output_shape=shape, order=1)
    return nib.Nifti1Image(array, affine)


@pytest.fixture(scope="module")
def stored_heads(tmp_path_factory):
    """The inference of the segment bundle on one head, stored in six ways: folder of images, folder of results."""
    folder = tmp_path_factory.mktemp("stored")
    head = posed_head()
    images = {axes: stored_as(head, axes) for axes in ("RAS", "LPS", "LIA", "PIR")}
    turn = nib.eulerangles.euler2mat(math.radians(-14), math.radians(10), math.radians(12))
    images["oblique"] = sampled(head, turn, (2.2, 2.2, 2.2), (100, 110, 100))
    images["anisotropic"] = stored_as(sampled(head, np.eye(3), (1.4, 1.4, 4.5), (150, 160, 48)), "LPS")
    for name, image in images.items():
        (folder / "images").mkdir(exist_ok=True)
        nib.save(image, folder / "images" / f"{name}.nii.gz")
    torch.save(carrying(BrightIsLesion().state_dict(), settings={"modality": "MR"}), folder / "bright.pt")
    infer(folder, folder / "results")
    return folder


def infer(folder, output, **changes):
    settings = {
        "bundle_root": str(ROOT / "bundles" / "sa_swin_segment"),
        "dataset_dir": str(folder / "images"),
        "output_dir": str(output),
        "checkpoint": str(folder / "bright.pt"),
        "network_def": {"_target_": f"{__name__}.BrightIsLesion"},
        "device": "$torch.device('cpu')",
        "spacing": 3.0,
        "spatial_size": [64, 64, 64],
        "roi_size": [64, 64, 64],
        "num_workers": 0,
        "save_probabilities": True,
    }
    config = str(ROOT / "bundles" / "sa_swin_segment" / "configs" / "inference.yaml")
    workflow = ConfigWorkflow(config, logging_file=False, workflow_type="infer", **{**settings, **changes})
    workflow.initialize()
    workflow.run()


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_one_head_has_one_result_however_it_is_stored(stored_heads):
    masks = {}
    for path in sorted((stored_heads / "images").iterdir()):
        image, name = nib.load(path), path.name.removesuffix(".nii.gz")
        mask = nib.load(stored_heads / "results" / f"{name}_pred.nii.gz")
        probability = nib.load(stored_heads / "results" / f"{name}_probability.nii.gz")
        assert mask.shape == image.shape == probability.shape[:3]
        for written in (mask, probability):
            np.testing.assert_allclose(written.affine, image.affine, atol=1e-3)
        masks[name] = mask
    reference = np.asarray(masks["RAS"].dataobj)
    for name in ("LPS", "LIA", "PIR"):
        array = np.asarray(stored_as(masks[name], "RAS").dataobj)
        assert (array != reference).sum() <= 2e-3 * reference.sum(), name  # rounding, at the border
    for name in ("oblique", "anisotropic"):
        moved = np.linalg.inv(masks[name].affine) @ masks["RAS"].affine
        array = ndimage.affine_transform(np.asarray(masks[name].dataobj, float), moved, output_shape=reference.shape)
        assert 2 * ((array > 0.5) & (reference > 0)).sum() > 0.93 * ((array > 0.5).sum() + reference.sum()), name


def test_side_and_volume_do_not_depend_on_the_storage(stored_heads):
    rows = table(stored_heads / "results" / "cases.csv")
    volumes = {row["subject"]: float(row["volume_ml_class1"]) for row in rows}
    assert volumes["RAS"] == pytest.approx(LESION_ML, rel=0.25)  # the stand-in's threshold lies below half the contrast
    assert [volumes[axes] for axes in ("LPS", "LIA", "PIR")] == pytest.approx([volumes["RAS"]] * 3, rel=2e-3)
    # Slices of 4.5 mm blur the border, and the stand-in's threshold takes the blur for lesion.
    assert [volumes["oblique"], volumes["anisotropic"]] == pytest.approx([volumes["RAS"]] * 2, rel=0.1)
    for row in rows:
        assert row["plane"] == "estimated"
        assert (row["side_class1"], row["findings_class1"]) == ("right", "1")
        assert float(row["right_ml_class1"]) == pytest.approx(float(row["volume_ml_class1"]))
        assert float(row["asymmetry_index_class1"]) == pytest.approx(1)
    expected = POSE[:3, :3] @ LESION_MM + POSE[:3, 3]
    for row in table(stored_heads / "results" / "findings.csv"):
        center = [float(row[f"{axis}_mm"]) for axis in "xyz"]
        assert np.linalg.norm(center - expected) < 1


def test_a_rerun_does_only_what_is_missing(stored_heads, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name in ("RAS", "LPS"):
        (images / f"{name}.nii.gz").write_bytes((stored_heads / "images" / f"{name}.nii.gz").read_bytes())
    (tmp_path / "bright.pt").write_bytes((stored_heads / "bright.pt").read_bytes())
    results = tmp_path / "results"

    def times():
        return {path.name: path.stat().st_mtime_ns for path in results.glob("*_pred.nii.gz")}

    def after(**changes):
        infer(tmp_path, results, **changes)
        assert len(table(results / "cases.csv")) == 2
        return times()

    first = after()
    table_text = (results / "cases.csv").read_text(), (results / "findings.csv").read_text()
    assert after() == first
    assert ((results / "cases.csv").read_text(), (results / "findings.csv").read_text()) == table_text
    (results / "LPS_pred.nii.gz").unlink()
    second = after()
    assert second["RAS_pred.nii.gz"] == first["RAS_pred.nii.gz"]
    assert second["LPS_pred.nii.gz"] > first["LPS_pred.nii.gz"]
    third = after(min_volume_ml=1000.0)  # another setting: everything anew
    assert all(third[name] > second[name] for name in third)
    assert [row["findings_class1"] for row in table(results / "cases.csv")] == ["0", "0"]
    record = json.loads((results / "run_inference.json").read_text())
    assert record["config"]["min_volume_ml"] == record["settings"]["min_volume_ml"] == 1000.0
    assert record["paths"]["checkpoint"] == str(tmp_path / "bright.pt")
    assert record["versions"]["monai"] == "1.6.1"
