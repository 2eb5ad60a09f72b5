"""The aligned grid and the resampling onto it, on files as scanners write them: sheared, thick-sliced, oblique."""

import math
import warnings
from unittest.mock import patch

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.transforms import Affined, Compose, LoadImaged
from nilearn.datasets import load_mni152_template

from custom.alignment.grid import UNTRUSTED, aligned_grid, central_affine, from_grid, plane_figures, remedy, to_grid
from custom.alignment.head import resample
from custom.alignment.plane import estimate_plane
from custom.transforms.contract import MidsagittalAlignd

SIZE = (192, 224, 192)


def shear(**amounts: float) -> np.ndarray:
    """A world map `(4, 4)` whose columns are sheared: `yz=20` tilts the slice axis z by 20 degrees towards y."""
    out = np.eye(4)
    for (towards, axis), degrees in amounts.items():
        out["xyz".index(towards), "xyz".index(axis)] = math.tan(math.radians(degrees))
    return out


def turn(yaw: float, roll: float) -> np.ndarray:
    """Rotation of the world by degrees about z, then about y."""
    out = np.eye(4)
    for angle, (a, b) in ((yaw, (0, 1)), (roll, (2, 0))):
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        step = np.eye(4)
        step[a, a], step[a, b], step[b, a], step[b, b] = c, -s, s, c
        out = step @ out
    return out


TWO = np.diag([2, 2, 2, 1])
GRIDS = {
    "gantry tilt": shear(yz=-22),
    "sheared sideways": shear(xz=15, yz=10) @ TWO,
    "sheared and stored LIA": shear(xz=12, yz=-18) @ TWO @ [[-1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]],
    "6.5 mm slices": np.diag([1, 1, 6.5, 1]),
    "gantry tilt and 5 mm slices": shear(yz=20) @ np.diag([1, 1, 5, 1]),
}
MOTION = turn(9, -7)
MOTION[:3, 3] = 6, -4, 30


@pytest.fixture(scope="module")
def head():
    """The ICBM template at 1 mm, made symmetric about x = 0, then moved by `MOTION`: voxels and affine."""
    template = load_mni152_template(resolution=1)
    grid = torch.eye(4, dtype=torch.float64)
    grid[:3, 3] = torch.tensor([-99.5, -134, -72])
    affine = torch.from_numpy(template.affine)
    half, _ = resample(torch.from_numpy(template.get_fdata(dtype=np.float32)), affine, grid, (100, 233, 189))
    return torch.cat([half, half.flip(0)]) * 1000, torch.from_numpy(MOTION) @ grid


def scan_grid(name: str) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """One of `GRIDS`, with its size and place so that the head is inside."""
    affine = torch.from_numpy(GRIDS[name].astype(np.float64))
    corners = torch.cartesian_prod(*[torch.tensor([-90.0, 90], dtype=torch.float64)] * 3) * torch.tensor([1, 1.2, 1])
    index = torch.linalg.solve(affine[:3, :3], corners.T)
    low, high = index.amin(1), index.amax(1)
    affine[:3, 3] = affine[:3, :3] @ low + torch.tensor([6.0, -21, 52])
    return affine, tuple((high - low).ceil().int().tolist())


def scan(head, name: str) -> MetaTensor:
    """The head as a scanner with this grid has it."""
    affine, shape = scan_grid(name)
    return MetaTensor(resample(*head, affine, shape, padding_mode="zeros")[0][None], affine=affine)


def balls(affine: torch.Tensor, shape: tuple[int, ...]) -> MetaTensor:
    """Label 1: 14 ml in the left hemisphere; label 2: 1.15 ml in the right one."""
    index = torch.stack(torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in shape], indexing="ij"))
    world = torch.einsum("ij,jxyz->ixyz", affine[:3, :3], index) + affine[:3, 3, None, None, None]
    label = torch.zeros(shape)
    for value, center, radius in ((1, (-35.0, 10, 20), 15), (2, (30.0, -30, 15), 6.5)):
        moved = torch.from_numpy(MOTION) @ torch.tensor([*center, 1.0], dtype=torch.float64)
        label[(world - moved[:3, None, None, None]).norm(dim=0) < radius] = value
    return MetaTensor(label[None], affine=affine)


def dice(first: torch.Tensor, second: torch.Tensor) -> float:
    return (2 * (first & second).sum() / (first.sum() + second.sum())).item()


@pytest.mark.parametrize("name", GRIDS)
def test_the_plane_in_the_world_is_that_of_the_head_whatever_the_files_grid(head, name):
    image = scan(head, name)
    plane, expected = estimate_plane(image[0], image.affine), estimate_plane(*head)
    angle = math.degrees(math.acos(min(1, np.dot(plane.normal, expected.normal))))
    offset = plane.offset - np.dot(plane.normal, expected.center)
    limit = 0.4 if "mm" in name else 0.1
    assert angle < limit
    assert abs(offset) < limit
    assert math.degrees(math.acos(min(1, np.dot(expected.normal, MOTION[:3, 0])))) < 0.1


@pytest.mark.parametrize("name", GRIDS)
def test_image_and_mask_go_to_the_aligned_grid_together_and_back(head, name):
    image = scan(head, name)
    label = balls(image.affine, image.shape[1:])
    image = MetaTensor((image + 3000 * (label == 1)).as_tensor(), affine=image.affine)
    align = MidsagittalAlignd(["image", "label"], 1.0, SIZE)
    data = align({"image": image, "label": label})
    assert data["image"].shape == data["label"].shape == (1, *SIZE)

    directions = data["image"].affine[:3, :3]
    torch.testing.assert_close(directions.T @ directions, torch.eye(3, dtype=directions.dtype), atol=1e-6, rtol=0)
    bright, marked = data["image"][0] > 2500, data["label"][0] == 1
    assert dice(bright, marked) > (0.9 if "mm" in name else 0.97)
    left, right = ((data["label"][0] == value).nonzero()[:, 0].float().mean() for value in (1, 2))
    middle = (SIZE[0] - 1) / 2
    assert middle - left == pytest.approx(35, abs=1)  # mm
    assert right - middle == pytest.approx(30, abs=1)

    back = align.inverse(data)
    assert back["label"].shape == label.shape
    torch.testing.assert_close(back["label"].affine, image.affine, atol=1e-6, rtol=0)
    for value in (1, 2):
        assert dice(back["label"] == value, label == value) > 0.98
    inside = F.max_pool3d((image == 0).float(), 3, 1, 1) == 0
    difference = (back["image"] - image).abs()[inside]
    assert difference.median() < 0.05 * image[inside].median()


def test_a_mask_of_a_millimetre_grid_survives_the_round_trip(head):
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, 3] = torch.tensor([-85.0, -129, -40])
    shape = (182, 218, 182)
    image = MetaTensor(resample(*head, affine, shape, padding_mode="zeros")[0][None], affine=affine)
    label = balls(affine, shape)
    align = MidsagittalAlignd(["image", "label"], 1.0, SIZE)
    data = align({"image": image, "label": label})
    assert not torch.allclose(data["label"].affine, affine, atol=1)
    back = align.inverse(data)["label"]
    for value in (1, 2):
        assert dice(back == value, label == value) > 0.98


@pytest.mark.parametrize("name", ["gantry tilt", "sheared and stored LIA"])
def test_a_sheared_array_without_a_plane_is_straightened_along_its_own_axes(name):
    affine, shape = scan_grid(name)
    grid = central_affine(MetaTensor(torch.zeros(1, *shape), affine=affine), (1, 2, 3), (9, 8, 7))
    axes = grid[:3, :3] / torch.tensor([1.0, 2, 3], dtype=torch.float64)
    torch.testing.assert_close(axes.T @ axes, torch.eye(3, dtype=torch.float64))
    assert torch.linalg.det(axes) > 0
    assert nib.aff2axcodes(grid.numpy()) == ("R", "A", "S")
    own = affine[:3, :3] / affine[:3, :3].norm(dim=0)
    in_plane = [axis for axis in own.T if axis[0].abs() < 0.7]
    assert max((axes[:, 0] @ axis).abs() for axis in in_plane) < 1e-9
    middle = grid @ torch.tensor([4, 3.5, 3, 1], dtype=torch.float64)
    expected = affine @ torch.tensor([*((n - 1) / 2 for n in shape), 1], dtype=torch.float64)
    torch.testing.assert_close(middle, expected)


def test_lazily_an_image_is_interpolated_once_in_all(head):
    """Alignment and a following affine augmentation, lazy, are one interpolation: the result of the composed map."""
    image = scan(head, "gantry tilt")
    steps = [
        MidsagittalAlignd("image", 2.0, (96, 112, 96)),
        Affined("image", rotate_params=(0.1, -0.2, 0.05), translate_params=(3, 1, -2), padding_mode="border"),
    ]
    calls = []
    sampler = F.grid_sample

    def counted(*args, **kwargs):
        calls.append(args)
        return sampler(*args, **kwargs)

    grid = aligned_grid(image, (2.0,) * 3, (96, 112, 96))
    with (
        patch("custom.transforms.contract.aligned_grid", return_value=grid),
        patch("torch.nn.functional.grid_sample", counted),
    ):
        lazy = Compose(steps, lazy=True)({"image": image})["image"]
        assert len(calls) == 1
        eager = Compose(steps)({"image": image})["image"]
        assert len(calls) == 3
    assert lazy.shape == eager.shape == (1, 96, 112, 96)
    torch.testing.assert_close(lazy.affine, eager.affine.to(lazy.affine), atol=1e-4, rtol=0)
    once, _ = resample(image[0].as_tensor(), image.affine, lazy.affine.double(), (96, 112, 96))
    torch.testing.assert_close(lazy[0].as_tensor(), once, atol=1.0, rtol=0)
    assert (eager[0].as_tensor() - once).abs().max() > 20  # of 1000: twice interpolated is blurred


def test_a_sheared_nifti_file_is_read_with_its_shear(head, tmp_path):
    image = scan(head, "sheared sideways")
    nib.save(nib.Nifti1Image(image[0].numpy(), image.affine.numpy()), tmp_path / "tilted.nii.gz")
    read = LoadImaged("image", image_only=True, ensure_channel_first=True)({"image": tmp_path / "tilted.nii.gz"})[
        "image"
    ]
    torch.testing.assert_close(read.affine, image.affine, atol=1e-4, rtol=0)


def test_the_figures_say_how_the_head_lies_in_the_file(head):
    image = scan(head, "6.5 mm slices")
    figures = plane_figures(estimate_plane(image[0], image.affine), image)
    assert figures["yaw_deg"] == pytest.approx(9, abs=0.5)
    assert figures["roll_deg"] == pytest.approx(math.degrees(math.atan2(MOTION[2, 0], MOTION[0, 0])), abs=0.5)
    middle = (image.affine @ torch.tensor([*((n - 1) / 2 for n in image.shape[1:]), 1], dtype=torch.float64))[:3]
    truth = MOTION[:3, 0] @ (MOTION[:3, 3] - middle.numpy())
    assert figures["offset_mm"] == pytest.approx(truth, abs=0.5)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_a_volume_on_the_grid_keeps_its_values_there_and_back(mode):
    labels = torch.randint(0, 4, (1, 6, 5, 4)).float()
    volume = MetaTensor(labels + (0.1 if mode == "bilinear" else 0), affine=torch.diag(torch.tensor([2.0, 2, 3, 1])))
    found = to_grid(volume, volume.affine, (6, 5, 4), mode)
    assert torch.equal(found.as_tensor(), volume.as_tensor())
    assert torch.equal(from_grid(found).as_tensor(), volume.as_tensor())
    moved = volume.affine.clone()
    moved[0, 3] += 1
    assert not torch.equal(to_grid(volume, moved, (6, 5, 4), mode).as_tensor(), volume.as_tensor())


def with_air_below(head) -> MetaTensor:
    """The head in a file that reaches 100 mm farther down, so that its crown lies far from the middle of the array."""
    voxels, affine = head
    lower = affine.clone()
    lower[:3, 3] -= 100 * affine[:3, 2]
    return MetaTensor(F.pad(voxels, (100, 0))[None], affine=lower, meta={"filename_or_obj": "tall.nii.gz"})


def test_a_crown_that_is_cut_off_is_told_once_for_each_file_and_not_on_the_grid_itself(head):
    image, size = with_air_below(head), (192, 224, 160)
    align = MidsagittalAlignd("image", 1.0, size, align=False)
    with pytest.warns(UserWarning, match=r"tall.nii.gz: 1\d% of the head lies outside of the grid about the middle"):
        cut = align({"image": image})["image"]
    with warnings.catch_warnings(action="error"):
        align({"image": image})
        MidsagittalAlignd("image", 1.0, size, align=False)({"image": cut})  # as of a prepared cohort
        MidsagittalAlignd("image", 1.0, (192, 240, 300), align=False)({"image": image})


def test_what_is_cut_off_of_a_head_as_it_lies_stands_with_the_reason(head):
    with patch("custom.alignment.grid.distrust", return_value="unlike sides"):
        placed = aligned_grid(with_air_below(head), (1.0,) * 3, (192, 224, 160), "as_it_lies")
    assert placed.reason.startswith("unlike sides; ")
    assert "of the head lies outside of the grid" in placed.reason


def test_the_remedy_offers_the_other_choices_alone():
    for chosen in UNTRUSTED:
        offered = {name for name in UNTRUSTED if f"--untrusted {name}" in remedy(chosen)}
        assert offered == {*UNTRUSTED} - {chosen}
        assert "--planes TABLE.csv" in remedy(chosen)
