"""Damaged and lying volume files through every way in: each is refused with a sentence, in bounded memory."""

import gzip
import json
import os
import shutil
import struct
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
import torch

from custom.data.case import CohortError
from custom.data.contents import file_hashes
from custom.data.datalist import load_datalist
from custom.data.dataset import TolerantDataset
from custom.data.headers import left_right_findings
from custom.transforms.contract import InputContract
from custom.volumes import nifti
from custom.volumes.loading import load_volume
from custom.volumes.nifti import VolumeFileError, open_volume, read_volume
from custom.volumes.saving import SaveVolumed
from sa_swin.cohort.voxels import Expected, check_case
from sa_swin.prepare.case import CaseFiles, Grid
from sa_swin.prepare.cohort import attempt

SHAPE, AFFINE = (12, 14, 10), np.diag([-8.0, -8.0, 8.0, 1.0])
DIM, DATATYPE, PIXDIM, VOX_OFFSET, SLOPE, INTER, QUATERN, SROW, MAGIC = 40, 70, 76, 108, 112, 116, 256, 280, 344
"""Bytes of the NIfTI-1 header where these fields begin."""


def voxels():
    return np.random.default_rng(0).normal(100, 10, SHAPE).astype(np.int16)


def content(array=None, affine=AFFINE, **changes):
    """A volume's bytes, with numbers put into the header: `at_<byte>=(format, values...)`."""
    image = nib.Nifti1Image(voxels() if array is None else array, affine)
    image.set_qform(np.asarray(affine), 1)
    raw = bytearray(image.to_bytes())
    for place, (kind, *values) in changes.items():
        struct.pack_into("<" + kind, raw, int(place.removeprefix("at_")), *values)
    return bytes(raw)


def at(place, kind, *values):
    return content(**{f"at_{place}": (kind, *values)})


def gz(raw):
    return gzip.compress(raw, 1, mtime=0)


def flipped(raw, place):
    return raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]


def extended(size):
    """A volume with 64 kB of extensions, the first of which claims another size."""
    raw = at(VOX_OFFSET, "f", 352.0 + 2**16)
    return raw[:348] + struct.pack("<4Bii", 1, 0, 0, 0, size, 6) + bytes(2**16 - 8) + raw[352:]


RGB = np.zeros(SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
HEADERS = {
    "4D": (content(np.zeros((*SHAPE, 2), np.int16)), "not_3d", r"expected a 3D volume, got shape \(12, 14, 10, 2\)"),
    "2D": (content(np.zeros((12, 14), np.int16)), "not_3d", r"expected a 3D volume, got shape \(12, 14\)"),
    "no voxel": (at(DIM, "hhhh", 3, 12, 0, 10), "not_3d", "which holds no voxel"),
    "complex": (content(np.zeros(SHAPE, np.complex64)), "type", "got complex numbers"),
    "colours": (content(RGB), "type", "got colours"),
    "another magic": (at(MAGIC, "4s", b"nope"), "unreadable", "not a readable image"),
    "no image": (b"no image at all", "unreadable", "not a readable image"),
    "empty": (b"", "unreadable", "not a readable image"),
    "unknown type": (at(DATATYPE, "h", 77), "unreadable", "not a readable image"),
    "more dimensions than there are": (at(DIM, "h", 99), "unreadable", "not a readable image"),
    "negative size": (at(DIM, "hhhh", 3, -12, 14, 10), "unreadable|not_3d", "not a readable image|no voxel"),
    "more voxels than the file": (at(DIM, "hhhh", 3, 512, 512, 90), "unreadable", "claims 47185920 bytes"),
    "more voxels than a head": (at(DIM, "hhhh", 3, 32000, 32000, 32000), "claims", "claims 32000 x 32000 x 32000"),
    "far offset": (at(VOX_OFFSET, "f", 3e9), "claims", r"at byte 3e\+09"),
    "endless offset": (at(VOX_OFFSET, "f", np.inf), "claims", "at byte inf"),
    "offset that is none": (at(VOX_OFFSET, "f", np.nan), "claims", "at byte nan"),
    "negative offset": (at(VOX_OFFSET, "f", -352.0), "claims", "at byte -352"),
    "extension of 2 GB": (extended(2**31 - 16), "claims", "an extension of its header claims 2147483632 bytes"),
    "extension of less than nothing": (extended(-2), "claims", "an extension of its header claims -2 bytes"),
    "infinite slope": (at(SLOPE, "f", np.inf), "scale", "scales values by inf"),
    "huge slope": (at(SLOPE, "ff", 3e38, 0.0), "scale", r"scales values by 3e\+38"),
    "offset of values that is none": (at(SLOPE, "ff", 2.0, np.nan), "scale", "adds nan"),
    "spacing 0": (at(SROW, "12f", *[0.0] * 12), "affine", "cannot be inverted"),
    "affine that is none": (at(SROW, "f", np.nan), "affine", "cannot be inverted"),
    "singular affine": (at(SROW, "12f", 8, 8, 0, 0, 8, 8, 0, 0, 0, 0, 8, 0), "affine", "cannot be inverted"),
    "axes that nearly coincide": (at(SROW, "12f", 8, 8, 0, 0, 0, 0.5, 0, 0, 0, 0, 8, 0), "affine", "nearly coincide"),
    "spacing in metres": (at(SROW, "12f", 0.008, 0, 0, 0, 0, 0.008, 0, 0, 0, 0, 0.008, 0), "spacing", r"0\.008"),
    "spacing of a street": (at(SROW, "12f", 8000, 0, 0, 0, 0, 8000, 0, 0, 0, 0, 8000, 0), "spacing", r"8000"),
    "far away": (at(SROW, "12f", 8, 0, 0, 1e30, 0, 8, 0, 0, 0, 0, 8, 0), "affine", r"first voxel at \[1e\+30"),
    "qform that is no rotation": (at(QUATERN, "3f", 9.0, 9.0, 9.0), "left_right", "sform or qform is no affine"),
}
WHOLE = gz(content())
VOXELS = {
    "cut short": (WHOLE[:-700], "not all voxels"),
    "cut before the checksum": (WHOLE[:-8], "not all voxels"),
    "a bit flipped in the checksum": (flipped(WHOLE, len(WHOLE) - 6), "CRC check failed"),
    "an end before the last voxel": (gz(content()[:-10]), "it ends after 3702 bytes of 3712"),
}


def written(folder, name, raw, suffix):
    path = folder / f"{name.replace(' ', '_')}{suffix}"
    path.write_bytes(gz(raw) if suffix.endswith("gz") else raw)
    return path


def is_left_out(path, folder):
    """The bad file beside a good one: what inference yields, and what preparation says."""
    good = folder / "good.nii"
    good.write_bytes(content())
    contract = InputContract(spacing=8.0, spatial_size=(32, 32, 32), untrusted="as_it_lies")
    cases = [{"image": str(path), "subject": "bad"}, {"image": str(good), "subject": "good"}]
    bad, taken = TolerantDataset(cases, contract)
    assert (bad.image, taken["subject"]) == (str(path), "good")
    record = attempt(
        CaseFiles(str(folder), (path.name,), None),
        folder / "out",
        Grid((8.0,) * 3, (32, 32, 32), untrusted="as_it_lies"),
    )
    assert record["status"] == "failed"
    assert not (folder / "out").exists()
    return record["reason"]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("fault", sorted(HEADERS))
def test_a_header_that_lies_is_refused_at_every_way_in(fault, suffix, tmp_path, caplog):
    raw, kinds, sentence = HEADERS[fault]
    path = written(tmp_path, fault, raw, suffix)
    if fault == "more voxels than the file" and suffix == ".nii.gz":
        sentence = "not all voxels"
    checked = check_case({"image": str(path)}, Expected("none", 1, None))
    assert {finding.kind for finding in checked.findings} & set(kinds.split("|"))
    (tmp_path / "list.json").write_text(json.dumps({"training": [{"image": path.name, "label": path.name}]}))
    for label in ("none", "mask"):
        with pytest.raises(CohortError, match=f"{path}: .*(?:{sentence})"):
            load_datalist(tmp_path / "list.json", "training", tmp_path, label=label, workers=1)
    is_left_out(path, tmp_path)
    assert f"left out: {path}: " in caplog.text


@pytest.mark.parametrize("fault", sorted(VOXELS))
def test_damaged_voxels_are_refused_wherever_voxels_are_read(fault, tmp_path, caplog):
    raw, sentence = VOXELS[fault]
    path = tmp_path / "damaged.nii.gz"
    path.write_bytes(raw)
    checked = check_case({"image": str(path)}, Expected("none", 1, None))
    assert [finding.kind for finding in checked.findings] == ["unreadable"]
    for read in (load_volume, file_hashes):
        with pytest.raises((VolumeFileError, CohortError), match=f"{path}: .*{sentence}"):
            read(str(path))
    assert sentence in is_left_out(path, tmp_path)
    assert f"left out: {path}: " in caplog.text


def test_no_flipped_bit_of_a_compressed_volume_is_taken_for_sound(tmp_path):
    """Nibabel by itself takes three out of four."""
    path, wrong, passed = tmp_path / "flipped.nii.gz", 0, 0
    expected = voxels()
    for place in np.random.default_rng(0).integers(10, len(WHOLE), 200):
        path.write_bytes(flipped(WHOLE, int(place)))
        try:
            wrong += not np.array_equal(np.asarray(read_volume(path).dataobj), expected)
            passed += 1
        except VolumeFileError:
            continue
    assert (wrong, passed) == (0, 0)


@pytest.mark.parametrize("slope", [0.0, np.nan])
def test_a_slope_of_0_or_none_means_unscaled_as_the_standard_has_it(slope, tmp_path):
    path = written(tmp_path, "unscaled", at(SLOPE, "ff", slope, 0.0), ".nii")
    np.testing.assert_array_equal(load_volume(str(path))[0].numpy(), voxels())


def test_values_that_are_finite_but_none_of_a_scan_are_refused(tmp_path):
    """Their variance overflows: the network would be given NaN."""
    path = written(tmp_path, "huge", content(voxels().astype(np.float32) * 1e30), ".nii")
    kinds = {finding.kind for finding in check_case({"image": str(path)}, Expected("none", 1, None)).findings}
    assert kinds == {"not_finite"}
    with pytest.raises(RuntimeError) as error:
        InputContract(spacing=8.0, spatial_size=(32, 32, 32), align=False)({"image": str(path)})
    assert "voxels are not finite, or beyond 1e+12" in str(error.value.__cause__)


@pytest.mark.parametrize("maximum", [2**18, 2**23])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_claim_takes_no_memory(suffix, maximum, tmp_path):
    """A header of a few bytes may claim gigabytes, also behind gzip, and for an extension."""
    faults = [at(DIM, "hhhh", 3, 1000, 1000, 1000), extended(2**31 - 16), extended(-2), at(VOX_OFFSET, "f", 2e9)]
    tracemalloc.start()
    for raw in faults:
        with pytest.raises(VolumeFileError):
            read_volume(written(tmp_path, "claim", raw + bytes(maximum), suffix))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20 + 3 * maximum  # what this test itself holds


def test_gzip_that_goes_on_after_the_voxels_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(nifti, "MOST_BEFORE", 1000)
    path = written(tmp_path, "bomb", content() + bytes(10**6), ".nii.gz")
    with pytest.raises(VolumeFileError, match="far more than its header claims"):
        read_volume(path)


def test_a_sheared_affine_as_of_a_tilted_gantry_is_taken(tmp_path):
    sheared = AFFINE.copy()
    sheared[1, 2] = 3.0
    image = load_volume(str(written(tmp_path, "sheared", content(affine=sheared), ".nii")))
    np.testing.assert_allclose(image.affine.numpy(), sheared)


def test_sform_and_qform_that_disagree_on_left_and_right_are_refused_and_smaller_differences_said(tmp_path):
    image = nib.Nifti1Image(voxels(), AFFINE)
    for flip, shift, kind, severity in ((-1, 0, "left_right", "error"), (1, 30, "forms", "warning")):
        other = np.diag([flip, 1, 1, 1]) @ AFFINE
        other[:3, 3] += shift
        image.set_sform(AFFINE, 1)
        image.set_qform(other, 1)
        nib.save(image, tmp_path / "two.nii")
        found = left_right_findings("two.nii", open_volume(tmp_path / "two.nii"))
        assert [(finding.kind, finding.severity) for finding in found] == [(kind, severity)]
    assert "up to 52 mm apart; the sform is taken" in found[0].problem


def test_the_affine_that_is_loaded_is_the_one_that_is_checked(tmp_path):
    """MONAI's loader takes the qform where the sform's spacing is not that of pixdim."""
    image = nib.Nifti1Image(voxels(), AFFINE)
    image.set_qform(np.diag([-6.0, -6.0, 6.0, 1.0]), 1)
    image.header["pixdim"][1:4] = 6
    nib.save(image, tmp_path / "two.nii")
    np.testing.assert_array_equal(load_volume(str(tmp_path / "two.nii")).affine.numpy(), AFFINE)
    assert (open_volume(tmp_path / "two.nii").affine == AFFINE).all()


@pytest.mark.parametrize("name", ["pipe.nii", "folder.nii", "x.png", "x.nii.bz2", "x.mnc"])
def test_what_is_no_volume_file_is_refused_and_not_waited_for(name, tmp_path):
    (tmp_path / name).mkdir() if "folder" in name else os.mkfifo(tmp_path / name)
    with pytest.raises(VolumeFileError, match="not a"):
        open_volume(tmp_path / name)


def test_channels_of_two_shapes_are_refused(tmp_path):
    paths = [str(written(tmp_path, "a", content(), ".nii")), str(written(tmp_path, "b", content(voxels()[1:]), ".nii"))]
    with pytest.raises(VolumeFileError, match=r"b.nii: shape \(11, 14, 10\) differs from \(12, 14, 10\) of .*a.nii"):
        load_volume(paths)


@pytest.mark.parametrize("kind", ["i1", "u1", "i2", ">i2", "u2", "i4", "u4", "i8", "u8", "f4", ">f4", "f8"])
def test_every_type_of_real_number_is_read_as_it_is(kind, tmp_path):
    array = voxels().astype(kind) if kind != "i1" else (voxels() - 100).astype(kind)
    header = nib.Nifti1Header(endianness=">" if kind[0] == ">" else "<")
    header.set_data_dtype(kind)
    nib.save(nib.Nifti1Image(array, AFFINE, header), tmp_path / "a.nii")
    for dtype in (None, torch.float32):
        np.testing.assert_array_equal(load_volume(str(tmp_path / "a.nii"), dtype)[0].numpy(), array)


# ---- what of a source's header goes into results


PLANTED = ("Doe^Jane", "descrip_1970", "intent_id77", "aux_secret", "db_hospital", "HISTORY born")


@pytest.fixture
def planted(tmp_path):
    """A volume whose header says who it is of, in every field that takes text, and in an extension."""
    image = nib.Nifti1Image(voxels().astype(np.float32), AFFINE)
    image.set_qform(AFFINE, 1)
    header = image.header
    header["descrip"], header["intent_name"], header["aux_file"], header["db_name"] = PLANTED[1:5]
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", PLANTED[0].encode()))
    header.extensions.append(nib.nifti1.Nifti1Extension("afni", PLANTED[5].encode()))
    nib.save(image, tmp_path / "T1w.nii.gz")
    shutil.copy(tmp_path / "T1w.nii.gz", tmp_path / "mask.nii.gz")
    raw = gzip.decompress((tmp_path / "T1w.nii.gz").read_bytes())
    assert all(text.encode() in raw for text in PLANTED)
    return tmp_path


def texts_in(folder):
    """The planted texts that occur in a folder's files, unpacked."""
    contents = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    contents = [gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw for raw in contents]
    assert contents
    return [text for text in PLANTED if any(text.encode() in raw for raw in contents)]


def test_nothing_of_the_sources_text_is_in_masks_and_probability_maps(planted):
    contract = InputContract(spacing=8.0, spatial_size=(32, 32, 32), untrusted="as_it_lies")
    image = contract({"image": str(planted / "T1w.nii.gz")})["image"]
    assert not any(text in str(image.meta) for text in PLANTED)
    pred = contract.inverse({"image": image[:1]})["image"]
    SaveVolumed("pred", planted / "out", "pred", planted, np.uint8)({"pred": pred})
    SaveVolumed("pred", planted / "out", "probability", planted)({"pred": pred})
    assert texts_in(planted / "out") == []
    saved = nib.load(planted / "out" / "T1w_pred.nii.gz")
    assert saved.shape == SHAPE
    np.testing.assert_allclose(saved.affine, AFFINE, atol=1e-5)


def test_nothing_of_the_sources_text_is_in_a_prepared_cohort(planted):
    case = CaseFiles(str(planted), ("T1w.nii.gz",), "mask.nii.gz")
    record = attempt(case, planted / "out", Grid((8.0,) * 3, (32, 32, 32), untrusted="as_it_lies"))
    assert record["status"] == "as it lies", record
    assert {path.name for path in (planted / "out").iterdir()} >= {"T1w.nii", "T1w_label.nii", "T1w.json"}
    assert texts_in(planted / "out") == []
