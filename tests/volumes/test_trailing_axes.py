"""A file of shape (X, Y, Z, 1), as FSL and others write a 3D volume, is that volume by every way in."""

import json

import nibabel as nib
import numpy as np
import pytest

from custom.data.contents import file_hashes
from custom.data.datalist import load_datalist
from custom.data.headers import case_problems
from custom.transforms.contract import InputContract
from custom.volumes.loading import load_volume
from custom.volumes.nifti import VolumeFileError, open_volume, read_volume
from sa_swin.cohort.voxels import Expected, check_case
from sa_swin.prepare.case import CaseFiles, Grid, align_case

SHAPE, AFFINE = (32, 36, 30), np.array([[-4.0, 0, 0, 60], [0, 4.0, 0, -70], [0, 0, 4.0, -50], [0, 0, 0, 1]])


@pytest.fixture(params=["nii", "nii.gz", "hdr"])
def files(request, tmp_path):
    """A scaled head and its mask as 3D files, and the same with one and two further axes of length 1."""
    kind = nib.Nifti1Pair if request.param == "hdr" else nib.Nifti1Image
    generator = np.random.default_rng(0)
    head = np.zeros(SHAPE, np.int16)
    head[5:-5, 5:-5, 5:-5] = generator.integers(90, 130, (22, 26, 20))
    mask = np.zeros(SHAPE, np.uint8)
    mask[8:12, 10:16, 10:16] = 1
    for name, array in (("image", head), ("mask", mask)):
        for axes in range(3):
            image = kind(array.reshape(SHAPE + (1,) * axes), AFFINE)
            image.set_sform(AFFINE, 2)
            image.set_qform(AFFINE, 1)
            image.header.set_slope_inter(*((2, 5) if name == "image" else (1, 0)))
            image.to_filename(tmp_path / f"{name}{axes}.{request.param}")
    return lambda name: str(tmp_path / f"{name}.{request.param}")


@pytest.mark.parametrize("axes", [1, 2])
def test_it_is_read_as_the_3d_file_is(files, axes):
    first, other = files("image0"), files(f"image{axes}")
    for reader in (open_volume, read_volume):
        assert reader(other).shape == SHAPE
        assert reader(other).get_sform(coded=True)[1] == 2
        np.testing.assert_array_equal(reader(other).affine, AFFINE)
    np.testing.assert_array_equal(read_volume(other).get_fdata(), read_volume(first).get_fdata())
    np.testing.assert_array_equal(load_volume(other).numpy(), load_volume(first).numpy())
    assert load_volume([first, other]).shape == (2, *SHAPE)
    assert file_hashes(other) == file_hashes(first)


def test_neither_check_nor_a_datalist_finds_fault_with_it_or_with_its_mask(files, tmp_path):
    for image, mask in (("image1", "mask0"), ("image0", "mask1"), ("image2", "mask2")):
        case = {"image": files(image), "label": files(mask), "subject": "1"}
        assert case_problems(case, "mask", 1, 2) == []
        assert check_case(case, Expected("mask", 1, 2)).findings == []
        path = tmp_path / "list.json"
        path.write_text(json.dumps({"training": [{"image": files(image), "label": files(mask)}]}))
        assert len(load_datalist(path, "training", tmp_path, "mask")) == 1


def test_the_input_contract_takes_it_as_the_3d_file(files):
    contract = InputContract(label_key="label", spacing=4, spatial_size=(32, 64, 32), align=False)
    first, other = (contract({"image": files(f"image{n}"), "label": files(f"mask{n}")}) for n in (0, 1))
    for key in ("image", "label"):
        np.testing.assert_array_equal(other[key].numpy(), first[key].numpy())


def test_prepare_aligns_it_as_the_3d_file(tmp_path):
    generator = np.random.default_rng(0)
    head = np.zeros(SHAPE, np.float32)
    head[5:-5, 5:-5, 5:-5] = generator.uniform(90, 130, (22, 26, 20))
    nib.save(nib.Nifti1Image(head[..., None], AFFINE), tmp_path / "image.nii")
    nib.save(nib.Nifti1Image((head > 120).astype(np.uint8), AFFINE), tmp_path / "mask.nii")
    grid = Grid((4.0, 4.0, 4.0), (32, 64, 32), untrusted="as_it_lies")
    record = align_case(CaseFiles(str(tmp_path), ("image.nii",), "mask.nii"), tmp_path / "out", grid)
    assert record["source_size"] == list(SHAPE)
    assert nib.load(tmp_path / "out" / "image.nii").shape == grid.spatial_size


def test_several_volumes_in_one_file_are_still_refused(files, tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((*SHAPE, 1, 2), np.int16), AFFINE), tmp_path / "series.nii")
    (problem,) = case_problems({"image": str(tmp_path / "series.nii")}, "none", 1, None)
    assert "expected a 3D volume, got shape (32, 36, 30, 1, 2)" in problem


def test_a_header_without_its_voxels_is_named(tmp_path):
    nib.save(nib.Nifti1Pair(np.zeros((4, 4, 4), np.int16), np.eye(4)), tmp_path / "image.hdr")
    (tmp_path / "image.img").unlink()
    with pytest.raises(VolumeFileError, match="a header without its voxels: no image"):
        read_volume(tmp_path / "image.hdr")
