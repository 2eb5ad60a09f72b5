import math
import warnings
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.transforms import Invertd, LoadImage
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from nilearn.datasets import load_mni152_template

from custom.alignment.grid import central_affine
from custom.alignment.plane import MidsagittalPlane, grid_affine
from custom.evaluation.case_table import plane_columns
from custom.support.errors import UserError
from custom.symmetry import mirror, split_pair
from custom.transforms.checks import CheckLabeld, CheckVolumed, VolumeError
from custom.transforms.contract import (
    InputContract,
    MidsagittalAlignd,
    StandardizeIntensityd,
    SymmetricPaird,
    UntrustedPlaneError,
)

ORIENTATIONS = ["RAS", "LPS", "LIA", "PIR"]
UNCLIPPED = {"modality": "CT", "intensity_range": (0, 2000)}  # keeps the order of intensities up to 2000


def rotation(roll, yaw, pitch):
    """Turn of the world by degrees about y, z and x."""
    turns = []
    for angle, (a, b) in ((roll, (2, 0)), (yaw, (0, 1)), (pitch, (1, 2))):
        turn = np.eye(4)
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        turn[a, a], turn[a, b], turn[b, a], turn[b, b] = c, -s, s, c
        turns.append(turn)
    return turns[0] @ turns[1] @ turns[2]


def affine_of(spacing, origin=(-40.0, -55.0, -31.0), motion=None):
    """RAS grid with the given voxel sizes, moved."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    return affine if motion is None else motion @ affine


def stored_as(array, affine, orientation):
    """The same volume in another storage orientation."""
    ornt = ornt_transform(io_orientation(affine), axcodes2ornt(orientation))
    return (
        nib.as_closest_canonical(nib.Nifti1Image(array, affine)).as_reoriented(ornt)
        if orientation != "RAS"
        else nib.Nifti1Image(array, affine)
    )


def saved(path, image):
    nib.save(image, path)
    return str(path)


def symmetric_head(shape):
    """A textured box that equals its mirror image about the middle of axis 0, with background around."""
    generator = np.random.default_rng(0)
    array = np.zeros(shape, np.float32)
    inner = tuple(slice(3, size - 3) for size in shape)
    array[inner] = 100 + 30 * generator.standard_normal(array[inner].shape)
    return array + array[::-1]


def symmetry_error(pair):
    image, mirrored = split_pair(pair.as_tensor())
    return (image - mirrored).abs().max() / image.std()


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("width", [20, 21])
@pytest.mark.parametrize("new_width", [16, 17, 32, 33])
def test_a_symmetric_head_stays_symmetric_whatever_the_parity_and_the_storage(tmp_path, orientation, width, new_width):
    image = stored_as(symmetric_head((width, 24, 18)), affine_of((2, 2.5, 3)), orientation)
    contract = InputContract(spacing=(2, 2.5, 3), spatial_size=(new_width, 32, 32), align=False)
    pair = contract({"image": saved(tmp_path / "head.nii.gz", image)})["image"]
    assert pair.shape == (2, new_width, 32, 32)
    assert pair[0].std() > 0.5
    assert symmetry_error(pair) < 1e-3


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_symmetric_head_stays_symmetric_on_an_oblique_grid_and_another_spacing(tmp_path, orientation):
    affine = affine_of((2, 2, 2), motion=rotation(20, -15, 10))
    image = stored_as(symmetric_head((21, 24, 18)), affine, orientation)
    contract = InputContract(spacing=1.5, spatial_size=(32, 32, 32), align=False)
    assert symmetry_error(contract({"image": saved(tmp_path / "head.nii.gz", image)})["image"]) < 1e-3


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_left_is_left_in_every_storage_orientation(tmp_path, orientation):
    array = 0.2 * symmetric_head((20, 24, 18))  # a brain's Hounsfield units
    array[4, 18, 5] = 1000  # left (RAS: low x), front, low
    image = stored_as(array, affine_of((2, 2, 2)), orientation)
    contract = InputContract(**UNCLIPPED, spacing=2, spatial_size=(24, 32, 20), align=False)
    pair = contract({"image": saved(tmp_path / "head.nii.gz", image)})["image"]
    brightest = [np.unravel_index(half.argmax(), half.shape) for half in pair.numpy()]
    # the grid grows about the centre: 2, 4 and 1 voxels before the old first one
    assert tuple(brightest[0]) == (4 + 2, 18 + 4, 5 + 1)
    assert tuple(brightest[1]) == (24 - 1 - (4 + 2), 18 + 4, 5 + 1)


def test_world_coordinates_stay_what_they_were(tmp_path):
    affine = affine_of((2, 3, 1.5), motion=rotation(5, 8, -3))
    array = np.zeros((20, 24, 30), np.float32)
    array[5, 17, 9] = 1000
    array[3:17, 3:20, 3:27] += np.random.default_rng(0).uniform(20, 60, (14, 17, 24))
    contract = InputContract(**UNCLIPPED, spacing=1, spatial_size=(64, 96, 64), align=False)
    image = contract({"image": saved(tmp_path / "head.nii.gz", nib.Nifti1Image(array, affine))})["image"]
    peak = np.array(np.unravel_index(image[0].numpy().argmax(), image.shape[1:]))
    found = image.affine.numpy() @ [*peak, 1]
    assert np.abs(found - affine @ [5, 17, 9, 1]).max() < 1  # mm, within a voxel of the grid


def ball(shape, affine, center, radius):
    """Voxels within a radius (mm) of a world point."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    return (np.linalg.norm(world - center, axis=-1) < radius).astype(np.uint8)


def centroid(mask):
    return np.argwhere(mask).mean(0)


def assert_lands_on_its_own_voxels(contract, image_path, label_path):
    """Carry a mask to the network's grid and back as a prediction, and compare it with the file voxel by voxel."""
    data = contract({"image": image_path, "label": label_path})
    assert data["label"].shape[1:] == data["image"].shape[1:]
    data["pred"] = MetaTensor(data.pop("label").as_tensor().float())
    pred = Invertd("pred", transform=contract, orig_keys="image", nearest_interp=False)(data)["pred"]
    file = nib.load(label_path)
    truth, back = file.get_fdata() > 0.5, pred[0].numpy() > 0.5
    assert back.shape == truth.shape
    np.testing.assert_allclose(pred.affine.numpy(), file.affine, atol=1e-3)
    assert np.abs(centroid(back) - centroid(truth)).max() < 0.25  # voxels
    assert 2 * (back & truth).sum() / (back.sum() + truth.sum()) > 0.9


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize(
    ("spacing", "motion"),
    [((2, 2, 2), None), ((1, 1.5, 4), None), ((1.5, 2, 3), rotation(12, -20, 8))],
    ids=["isotropic", "anisotropic", "oblique"],
)
def test_a_prediction_lands_on_the_voxels_of_its_file(tmp_path, orientation, spacing, motion):
    shape = tuple(int(96 / step) + 1 for step in spacing)
    affine = affine_of(spacing, motion=motion)
    blob = ball(shape, affine, (affine @ [shape[0] * 0.3, shape[1] * 0.6, shape[2] * 0.4, 1])[:3], 14)
    head = symmetric_head(shape)
    image = saved(tmp_path / "head.nii.gz", stored_as(head, affine, orientation))
    label = saved(tmp_path / "label.nii.gz", stored_as(blob, affine, orientation))
    contract = InputContract(label_key="label", spacing=1, spatial_size=(128, 128, 128), align=False)
    assert_lands_on_its_own_voxels(contract, image, label)


@pytest.fixture(scope="module")
def tilted_brain(tmp_path_factory):
    """The ICBM template on a tilted, shifted, anisotropic grid stored as LIA, with a ball in its left hemisphere.

    Its midsagittal plane is x = 0 of the template's world, moved: files, and the true plane's normal and offset.
    """
    root = tmp_path_factory.mktemp("tilted")
    template = load_mni152_template(resolution=2)
    motion = rotation(9, -7, 5)
    motion[:3, 3] = [6, -4, 3]
    array = template.get_fdata(dtype=np.float32) * 500
    array = array + array[::-1]  # x = 0 is its middle plane
    affine = motion @ template.affine
    blob = ball(array.shape, template.affine, np.array([-40.0, 10, 20]), 14)
    normal = motion[:3, 0]
    return {
        "image": saved(root / "brain.nii.gz", stored_as(array, affine, "LIA")),
        "label": saved(root / "label.nii.gz", stored_as(blob, affine, "LIA")),
        "normal": normal,
        "offset": normal @ motion[:3, 3],
    }


def test_after_alignment_the_midsagittal_plane_is_the_central_plane_and_predictions_still_land(tilted_brain):
    contract = InputContract(label_key="label", spacing=2, spatial_size=(97, 112, 96))
    data = contract({key: tilted_brain[key] for key in ("image", "label")})
    affine = data["image"].affine.numpy()
    corners = [affine @ [48, j, k, 1] for j in (0, 111) for k in (0, 95)]
    distances = [tilted_brain["normal"] @ corner[:3] - tilted_brain["offset"] for corner in corners]
    assert np.abs(distances).max() < 0.5  # mm, a quarter of a voxel
    assert set(data["image"].meta["midsagittal"]) >= {"similarity", "overlap", "margin", "angle_error", "offset_error"}
    assert np.argwhere(data["label"][0].numpy())[:, 0].max() < 48  # left stays left
    assert_lands_on_its_own_voxels(contract, tilted_brain["image"], tilted_brain["label"])


def test_a_volume_aligned_already_is_left_as_it_is(tilted_brain):
    align = MidsagittalAlignd("image", 2, (97, 112, 96))
    raw = LoadImage(ensure_channel_first=True)(tilted_brain["image"])
    once = align({"image": raw})["image"]
    assert not torch.equal(once.affine, raw.affine)
    twice = align({"image": once})["image"]
    assert torch.equal(twice, once)
    assert torch.equal(twice.affine, once.affine)
    shifted = MetaTensor(once.as_tensor().roll(2, dims=1), affine=once.affine)  # 4 mm off its middle
    assert not torch.allclose(align({"image": shifted})["image"].affine, once.affine, atol=1)


def test_outside_the_field_of_view_is_background_and_labels_are_zero(tmp_path):
    array = np.full((2, 8, 8, 8), -1024, np.float32)
    array[1] = 7
    array[:, 2:6, 2:6, 2:6] += np.arange(64).reshape(4, 4, 4)
    image = MetaTensor(torch.from_numpy(array), affine=torch.eye(4))
    out = MidsagittalAlignd(["image", "label"], 1.0, (16, 16, 16), align=False)(
        {"image": image, "label": image[:1] * 0 + 3}
    )
    assert out["image"][:, 0, 0, 0].tolist() == [-1024, 7]
    assert out["label"][:, 0, 0, 0].tolist() == [0]
    assert out["label"][:, 8, 8, 8].tolist() == [3]


def test_lazy_resampling_gives_the_same_grid(tmp_path):
    image = MetaTensor(
        torch.from_numpy(symmetric_head((20, 24, 18)))[None], affine=torch.from_numpy(affine_of((2, 2, 2)))
    )
    eager = MidsagittalAlignd("image", 2.0, (16, 16, 16), align=False)({"image": image})["image"]
    lazy = MidsagittalAlignd("image", 2.0, (16, 16, 16), align=False, lazy=True)({"image": image.clone()})["image"]
    assert lazy.peek_pending_shape() == (16, 16, 16)
    torch.testing.assert_close(lazy.peek_pending_affine(), eager.affine.to(lazy.peek_pending_affine().dtype))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_central_grid_is_in_ras_order_and_centred_on_the_array(orientation):
    image = stored_as(np.zeros((5, 6, 7), np.float32), affine_of((2, 3, 4)), orientation)
    volume = MetaTensor(torch.from_numpy(image.get_fdata())[None], affine=torch.from_numpy(image.affine))
    affine = central_affine(volume, (1, 1, 1), (9, 8, 11))
    center = affine @ torch.tensor([4, 3.5, 5, 1], dtype=torch.float64)
    assert torch.equal(affine[:3, :3], torch.eye(3, dtype=torch.float64))
    assert center[:3].tolist() == pytest.approx([-40 + 2 * 2, -55 + 2.5 * 3, -31 + 3 * 4])


def test_a_grid_has_its_centre_where_it_was_put():
    affine = grid_affine(torch.eye(3, dtype=torch.float64), torch.tensor([10.0, 20, 30]), (1, 2, 3), (3, 4, 5))
    assert affine.tolist() == [[1, 0, 0, 9], [0, 2, 0, 17], [0, 0, 3, 24], [0, 0, 0, 1]]


def test_several_channels_share_the_grid_and_pair_up_in_order(tmp_path):
    first, second = symmetric_head((20, 24, 18)), symmetric_head((20, 24, 18)) ** 2
    first[5] += 100
    paths = [
        saved(tmp_path / f"{i}.nii.gz", nib.Nifti1Image(a, affine_of((2, 2, 2)))) for i, a in enumerate((first, second))
    ]
    contract = InputContract(in_channels=2, spacing=2, spatial_size=(32, 32, 32), align=False)
    pair = contract({"image": paths})["image"].as_tensor()
    assert pair.shape == (4, 32, 32, 32)
    assert torch.equal(pair[2:], mirror(pair[:2]))
    alone = InputContract(spacing=2, spatial_size=(32, 32, 32), align=False)({"image": paths[1]})["image"].as_tensor()
    torch.testing.assert_close(pair[1], alone[0])


def test_ct_is_windowed_and_its_surroundings_are_air(tmp_path):
    array = np.full((20, 24, 18), -1000, np.float32)
    array[4:16, 4:20, 4:14] = 40
    array[4, 4:20, 4:14] = 1200
    path = saved(tmp_path / "ct.nii.gz", nib.Nifti1Image(array, affine_of((2, 2, 2))))
    options = {"modality": "CT", "spacing": 2, "spatial_size": (32, 32, 32), "align": False}
    image = InputContract(**options)({"image": path})["image"][0]
    assert image[0, 0, 0] == 0
    assert image[16, 16, 16] == 0.5
    assert image.max() == 1
    assert InputContract(**options, intensity_range=(0, 40))({"image": path})["image"][0, 16, 16, 16] == 1


@pytest.fixture
def flat(monkeypatch):
    """A plane that cannot be trusted, for whatever volume."""
    monkeypatch.setattr(
        "custom.alignment.grid.distrust", lambda plane: "the two sides hardly resemble each other (similarity 0.05)"
    )
    plane = MidsagittalPlane((1.0, 0, 0), 9.5, (9.5, 11.5, 8.5), *(0.05,) * 6)
    monkeypatch.setattr("custom.alignment.grid.estimate_plane", lambda image, affine: plane)
    return MetaTensor(torch.from_numpy(symmetric_head((20, 24, 18)))[None], meta={"filename_or_obj": "odd.nii.gz"})


def test_a_plane_that_cannot_be_trusted_stops_the_run_with_file_and_reason(flat):
    sentence = r"odd.nii.gz: yaw \+0.0, roll \+0.0 degrees, offset .* mm: the two sides hardly .* \(similarity 0.05\)"
    with pytest.raises(UntrustedPlaneError, match=sentence):
        MidsagittalAlignd("image", 1.0, (16, 16, 16))({"image": flat})


def test_with_a_warning_the_arrays_central_plane_stands_in(flat):
    with pytest.warns(UserWarning, match=r"odd.nii.gz: .* kept as it lies"):
        out = MidsagittalAlignd("image", 1.0, (16, 16, 16), untrusted="as_it_lies")({"image": flat})["image"]
    torch.testing.assert_close(out.affine, central_affine(flat, (1, 1, 1), (16, 16, 16)))


def test_the_plane_that_was_found_is_taken_where_that_is_chosen(flat):
    with pytest.warns(UserWarning, match=r"odd.nii.gz: .* the plane that was found is taken"):
        out = MidsagittalAlignd("image", 1.0, (16, 16, 16), untrusted="found")({"image": flat})["image"]
    torch.testing.assert_close(out.affine[:3, 3], torch.tensor([9.5, 11.5, 8.5]).double() - 7.5)
    assert out.meta["plane"] == "found, not trusted"
    assert "similarity 0.05" in out.meta["plane_reason"]


def test_a_refusal_says_what_helps(flat):
    with pytest.raises(UntrustedPlaneError, match=r"--planes TABLE.csv.*--untrusted found.*--untrusted as_it_lies"):
        MidsagittalAlignd("image", 1.0, (16, 16, 16))({"image": flat})


def test_a_plane_set_by_hand_is_taken_without_asking(flat, tmp_path):
    table = tmp_path / "planes.csv"
    table.write_text("image,yaw_deg,roll_deg,offset_mm\nodd.nii.gz,10,-5,3\n")
    out = MidsagittalAlignd("image", 1.0, (16, 16, 16), planes=str(table))({"image": flat})["image"]
    normal = torch.nn.functional.normalize(
        torch.tensor([1, math.tan(math.radians(10)), math.tan(math.radians(-5))]).double(), dim=0
    )
    torch.testing.assert_close(out.affine[:3, 0], normal)
    middle = out.affine[:3, :3] @ torch.full((3,), 7.5).double() + out.affine[:3, 3]
    assert (middle - torch.tensor([9.5, 11.5, 8.5]).double()) @ normal == pytest.approx(3, abs=1e-6)
    assert out.meta["plane"] == "by hand"


@pytest.mark.parametrize("first", ["good", "half"])
def test_trusted_heads_and_heads_as_they_lie_can_be_batched_in_any_order(monkeypatch, first):
    planes = {"good": MidsagittalPlane((1.0, 0, 0), 9.5, (9.5, 11.5, 8.5), *(0.9,) * 6)}
    planes["half"] = replace(planes["good"], similarity=0.05)
    monkeypatch.setattr("custom.alignment.grid.distrust", lambda plane: "unlike" if plane.similarity < 0.1 else None)
    rows = {}
    for name in sorted(planes, key=lambda name: name != first):
        monkeypatch.setattr("custom.alignment.grid.estimate_plane", lambda *_, name=name: planes[name])
        image = MetaTensor(torch.from_numpy(symmetric_head((20, 24, 18)))[None], meta={"filename_or_obj": name})
        align = MidsagittalAlignd("image", 1.0, (16, 16, 16), untrusted="as_it_lies")
        with warnings.catch_warnings(action="ignore"):
            rows[name] = align({"image": image})
    batch = list_data_collate(list(rows.values()))
    told = {row["plane"]: row for row in map(plane_columns, decollate_batch(batch))}
    assert told["estimated"] == plane_columns(rows["good"])
    assert told["estimated"]["plane_similarity"] == pytest.approx(0.9)
    assert told["as it lies"].keys() == {"plane", "plane_reason"}


def test_planes_that_nobody_would_ask_for_are_refused(tmp_path):
    table = tmp_path / "planes.csv"
    table.write_text("image,yaw_deg,roll_deg,offset_mm\nodd.nii.gz,10,-5,3\n")
    with pytest.raises(UserError, match=r"with --align False .*planes.csv; leave out --planes, or align"):
        InputContract(align=False, planes=str(table))


def test_a_volume_without_a_head_is_handled_as_chosen_too():
    empty = MetaTensor(torch.rand(1, 40, 40, 40) * torch.eye(40), meta={"filename_or_obj": "odd.nii.gz"})
    with pytest.raises(UntrustedPlaneError, match=r"odd.nii.gz: no head found: the largest bright body is \d+ ml"):
        MidsagittalAlignd("image", 1.0, (16, 16, 16))({"image": empty})
    with pytest.warns(UserWarning, match=r"odd.nii.gz: no head found.* kept as it lies"):
        out = MidsagittalAlignd("image", 1.0, (16, 16, 16), untrusted="as_it_lies")({"image": empty})["image"]
    torch.testing.assert_close(out.affine, central_affine(empty, (1, 1, 1), (16, 16, 16)))


def test_an_unknown_choice_is_refused():
    with pytest.raises(ValueError, match="leave_out"):
        MidsagittalAlignd("image", untrusted="ignore")
    with pytest.raises(ValueError, match="MR"):
        StandardizeIntensityd("image", "PET")


def volume_named(tensor):
    return {"image": MetaTensor(tensor, meta={"filename_or_obj": "case.nii.gz"})}


def test_a_wrong_number_of_channels_is_refused():
    with pytest.raises(VolumeError, match=r"case.nii.gz: expected 2 channel\(s\) of a 3D volume, got \(1, 4, 4, 4\)"):
        CheckVolumed("image", 2)(volume_named(torch.zeros(1, 4, 4, 4)))


def test_voxels_that_are_not_finite_are_refused():
    volume = torch.zeros(1, 4, 4, 4)
    volume[0, 0, 0, :2] = torch.tensor([float("nan"), float("inf")])
    with pytest.raises(VolumeError, match=r"case.nii.gz: 2 voxels are not finite"):
        CheckVolumed("image", 1)(volume_named(volume))


@pytest.mark.parametrize("value", [2.0, -1.0, 0.5])
def test_a_mask_value_that_is_no_class_is_refused(value):
    mask = torch.zeros(1, 4, 4, 4)
    mask[0, 1] = value
    with pytest.raises(VolumeError, match=rf"case.nii.gz: a mask holds whole numbers from 0 to 1, found .*{value:g}"):
        CheckLabeld("image", 2)(volume_named(mask))
    CheckLabeld("image", 3)(volume_named(mask * 0 + 2))


def test_a_mask_on_the_way_in_is_checked(tmp_path):
    image = saved(tmp_path / "head.nii.gz", nib.Nifti1Image(symmetric_head((20, 24, 18)), np.eye(4)))
    label = saved(tmp_path / "label.nii.gz", nib.Nifti1Image(np.full((20, 24, 18), 4, np.uint8), np.eye(4)))
    contract = InputContract(label_key="label", spatial_size=(32, 32, 32), align=False)
    with pytest.raises(RuntimeError) as raised:
        contract({"image": image, "label": label})
    assert "label.nii.gz: a mask holds whole numbers from 0 to 1, found 4" in str(raised.value.__cause__)


def test_the_pair_is_made_of_the_whole_volume():
    volume = torch.arange(24.0).reshape(1, 4, 3, 2)
    assert torch.equal(SymmetricPaird("image")({"image": volume})["image"], torch.cat([volume, volume.flip(1)]))


@pytest.fixture
def asymmetric(tmp_path):
    """A head whose left half is drawn out forwards, with a mask: contract arguments to two files."""
    head = symmetric_head((24, 24, 24))
    head[:12] = np.roll(head[:12], 1, axis=1)
    blob = np.zeros(head.shape, np.uint8)
    blob[5:9, 10:14, 10:14] = 1
    affine = affine_of((4, 4, 4))
    return {
        "image": saved(tmp_path / "head.nii.gz", nib.Nifti1Image(head, affine)),
        "label": saved(tmp_path / "label.nii.gz", nib.Nifti1Image(blob, affine)),
    }


def test_the_homologous_counterpart_leaves_the_image_its_grid_and_its_mask_where_they_were(asymmetric):
    options = {"label_key": "label", "spacing": 4, "spatial_size": (32, 32, 32), "align": False}
    mirrored = InputContract(**options)(asymmetric)
    contract = InputContract(**options, counterpart="homologous")
    found = contract(asymmetric)
    assert found["image"].shape == (2, 32, 32, 32)
    assert torch.equal(found["image"][0], mirrored["image"][0])
    assert torch.equal(found["label"].as_tensor(), mirrored["label"].as_tensor())
    assert torch.equal(found["image"].affine, mirrored["image"].affine)
    assert not torch.equal(found["image"][1], mirrored["image"][1])
    assert_lands_on_its_own_voxels(contract, asymmetric["image"], asymmetric["label"])


def test_the_quality_of_the_counterpart_goes_with_the_case(asymmetric):
    options = {"spacing": 4, "spatial_size": (32, 32, 32), "align": False}
    image = {"image": asymmetric["image"]}
    figures = InputContract(**options, counterpart="homologous")(image)["image"].meta["counterpart"]
    assert set(figures) >= {"similarity", "mirror_similarity", "trusted", "largest_mm", "reason"}
    assert "counterpart" not in InputContract(**options)(image)["image"].meta


def test_where_the_counterpart_cannot_be_trusted_the_mirror_is_used_and_named(asymmetric, monkeypatch):
    monkeypatch.setattr("custom.alignment.homologous.distrust_counterpart", lambda quality: "unlike sides")
    monkeypatch.setattr("custom.transforms.contract.distrust_counterpart", lambda quality: "unlike sides")
    contract = InputContract(spacing=4, spatial_size=(32, 32, 32), align=False, counterpart="homologous")
    with pytest.warns(UserWarning, match=r"head\.nii\.gz: unlike sides; the mirror image is used"):
        pair = contract({"image": asymmetric["image"]})["image"]
    assert symmetry_error_of_halves(pair) < 1e-5
    assert pair.meta["counterpart"]["reason"] == "unlike sides"


def symmetry_error_of_halves(pair):
    image, counterpart = split_pair(pair.as_tensor())
    return (counterpart - mirror(image)).abs().max()
