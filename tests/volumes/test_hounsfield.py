import os
import re
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from custom.transforms.checks import CheckUnitsd, VolumeError
from custom.transforms.contract import InputContract
from custom.volumes.hounsfield import hounsfield_problem, modality_of, units_problem
from sa_swin.cohort.voxels import Expected, check_case
from sa_swin.prepare.case import CaseFiles, Grid, align_case

SHARED = Path(os.environ.get("SA_SWIN_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
REAL_CT = SHARED / "real" / "d4_ct_pycerr" / "ct.nii.gz"
REAL_MR = sorted(path for path in SHARED.glob("real/*/*.nii.gz") if path.name[:2] in ("T1", "T2", "FL"))


def shells(radius):
    """Distance from the middle of 48 x 56 x 44 voxels, as a share of an ellipsoid's radius."""
    axes = [(np.arange(n) - (n - 1) / 2) / (n / 2 * radius) for n in (48, 56, 44)]
    return np.sqrt(sum(a**2 for a in np.meshgrid(*axes, indexing="ij", sparse=True)))


@pytest.fixture(scope="module")
def head():
    """A head in HU: air -1000, skin 40, bone 300-1500, brain 32, ventricles 8, noise 5 HU; and where the brain is."""
    generator = np.random.default_rng(0)
    distance = shells(0.8)
    volume = np.full(distance.shape, -1000.0)
    volume[distance < 1] = 40
    bone = (distance < 0.9) & (distance >= 0.78)
    volume[bone] = generator.uniform(300, 1500, bone.sum())
    volume[distance < 0.78] = 32
    volume[distance < 0.15] = 8
    return volume + 5 * generator.standard_normal(volume.shape), distance < 0.78


def scaled(volume, low, high, top):
    return (np.clip(volume, low, high) - low) / (high - low) * top


GOOD = {
    "full range": lambda v, brain: v,
    "12 bit": lambda v, brain: v.clip(-1024, 3071).astype(np.int16),
    "clipped at 0": lambda v, brain: v.clip(0),
    "clipped at +-1000": lambda v, brain: v.clip(-1000, 1000),
    "clipped at 300": lambda v, brain: v.clip(-100, 300),
    "stripped, 0": lambda v, brain: np.where(brain, v, 0),
    "stripped, -1024": lambda v, brain: np.where(brain, v, -1024),
    "stripped, clipped to 0-80": lambda v, brain: np.where(brain, v.clip(0, 80), 0),
    "stripped, large haemorrhage": lambda v, brain: np.where(brain, np.where(shells(0.3) < 1, v + 43, v), 0),
    "padding -2000": lambda v, brain: np.where(shells(0.95) < 1, v, -2000),
    "padding -3024": lambda v, brain: np.where(shells(0.95) < 1, v, -3024),
    "contrast": lambda v, brain: v + 12 * brain + 250 * (brain & (np.indices(v.shape).sum(0) % 25 == 0)),
    "thin slices": lambda v, brain: v + 30 * np.random.default_rng(1).standard_normal(v.shape),
    "metal": lambda v, brain: np.where(np.indices(v.shape).sum(0) == 60, 30000, v),
    "other axes": lambda v, brain: v.transpose(2, 0, 1)[::-1],
    "no air around": lambda v, brain: v[6:-6, 7:-7, 6:-6],
}
BAD = {
    "no intercept": (lambda v, brain: (v + 1024).clip(0).astype(np.uint16), "-1024 to all values would make it"),
    "no intercept, noisy air": (lambda v, brain: v + 1024 + 10 * (v < -900), "-1024 to all values would make it"),
    "no intercept, padding": (lambda v, brain: np.where(shells(0.95) < 1, v + 1024, -2000), "-1024 to all values"),
    "no intercept, stripped": (lambda v, brain: np.where(brain, v + 1024, 0), "-1024 to all values would make it"),
    "intercept twice": (lambda v, brain: v - 1024, r"\+1024 to all values would make it"),
    "slope of ten": (lambda v, brain: 10 * v, "the middle of the head is about 3..*, where brain is -20 to 80"),
    "slope of a half": (lambda v, brain: v / 2, "what surrounds the head is about -500"),
    "0 to 1": (lambda v, brain: scaled(v, -1024, 3071, 1), "no bone"),
    "0 to 1 of a window": (lambda v, brain: scaled(v, 0, 80, 1), "is 1, so a window has cut its bone off"),
    "0 to 255": (lambda v, brain: scaled(v, -1024, 3071, 255).astype(np.uint8), "the tissue is about 65"),
    "0 to 255 of a brain window": (lambda v, brain: scaled(v, 0, 80, 255).round(), "the middle of the head is about"),
    "0 to 255 of a wide window": (lambda v, brain: scaled(v, 0, 200, 255).round(), "is 255, so a window has cut"),
    "0 to 4095": (lambda v, brain: scaled(v, -1000, 2000, 4095), "the middle of the head is about 14"),
    "windowed": (lambda v, brain: v.clip(0, 80), "is 80, so a window has cut its bone off"),
    "windowed to -20..100": (lambda v, brain: v.clip(-20, 100), "is 100, so a window has cut its bone off"),
    "z-scores": (lambda v, brain: (v - v.mean()) / v.std(), "no bone"),
    "MR, 12 bit": (lambda v, brain: np.where(brain, 500 + 8 * v, 30), "the middle of the head is about 59"),
    "MR of FreeSurfer": (
        lambda v, brain: np.where(shells(0.8) < 1, 80 + v.clip(-30, 100), 1),
        "the middle of the head",
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_head_in_hounsfield_units_is_one_however_it_was_clipped_padded_or_stripped(head, name):
    assert hounsfield_problem(GOOD[name](*head)) is None


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_in_hounsfield_units_is_told_with_what_was_found(head, name):
    change, sentence = BAD[name]
    problem = hounsfield_problem(change(*head))
    assert problem is not None
    assert re.search(sentence, problem), problem


def test_a_ct_that_is_taken_for_mr_is_told_and_an_mr_image_never_is(head):
    for name in ("full range", "stripped, -1024", "padding -3024", "thin slices"):
        assert "give --modality CT" in units_problem(GOOD[name](*head), "MR")
    for change, _ in BAD.values():
        assert units_problem(change(*head), "MR") is None
    assert units_problem(head[0], None) is None


@pytest.mark.parametrize("value", [0.0, -1024.0, 40.0])
def test_a_constant_volume_ends_in_a_sentence_or_nothing_but_never_in_an_error(value):
    hounsfield_problem(np.full((12, 12, 12), value))
    assert units_problem(np.full((12, 12, 12), value), "MR") is None


@pytest.mark.skipif(not REAL_CT.is_file(), reason="the shared real images are not here")
def test_a_real_ct_is_one_and_without_its_intercept_it_is_not():
    values = nib.load(REAL_CT).get_fdata(dtype=np.float32)
    assert hounsfield_problem(values) is None
    assert hounsfield_problem(values.clip(0)) is None
    assert hounsfield_problem(values[:, :, 20:]) is None
    assert "-1024 to all values" in hounsfield_problem(values + 1024)


@pytest.mark.skipif(not REAL_MR, reason="the shared real images are not here")
@pytest.mark.parametrize("path", REAL_MR, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_real_mr_is_mr_and_no_ct(path):
    values = nib.load(path).get_fdata(dtype=np.float32)
    assert units_problem(values, "MR") is None
    assert hounsfield_problem(values) is not None


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("sub-1/anat/sub-1_ct.nii.gz", "CT"),
        ("a_CT.nii", "CT"),
        ("CT.nii.gz", "CT"),
        ("sub-1_ce-gd_T1w.nii.gz", "MR"),
        ("T1.mgz", "MR"),
        ("BraTS_001_flair.nii.gz", "MR"),
        ("contact.nii", None),
        ("scan.nii.gz", None),
    ],
)
def test_a_files_name_tells_the_modality(name, modality):
    assert modality_of(name) == modality


@pytest.fixture
def files(head, tmp_path):
    """The head in HU, and without the intercept, as files."""
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    for name, values in (("good", head[0]), ("bad", head[0] + 1024)):
        nib.save(nib.Nifti1Image(values.astype(np.float32), affine), tmp_path / f"{name}_ct.nii.gz")
        nib.save(nib.Nifti1Image(values.astype(np.float32), affine), tmp_path / f"{name}.nii.gz")
    return tmp_path


def test_check_finds_it_by_the_files_name_or_by_the_modality_that_is_given(files):
    def kinds(name, modality=None):
        case = {"image": str(files / name), "subject": "1"}
        return {finding.kind for finding in check_case(case, Expected("none", 1, None, modality=modality)).findings}

    assert kinds("good_ct.nii.gz") == kinds("good.nii.gz") == kinds("bad.nii.gz") == set()
    assert kinds("bad_ct.nii.gz") == kinds("bad.nii.gz", "CT") == kinds("good.nii.gz", "MR") == {"units"}


def test_prepare_refuses_it_before_it_aligns(files, tmp_path):
    grid = Grid((4.0, 4.0, 4.0), (48, 56, 48))
    with pytest.raises(ValueError, match=r"bad_ct.nii.gz: no CT in Hounsfield units: .* -1024 to all values"):
        align_case(CaseFiles(str(files), ("bad_ct.nii.gz",), None), tmp_path / "out", grid)
    with pytest.raises(ValueError, match=r"good.nii.gz: a CT in Hounsfield units, to be taken for MR"):
        align_case(CaseFiles(str(files), ("good.nii.gz",), None), tmp_path / "out", replace(grid, modality="MR"))


def test_the_input_contract_refuses_it_with_its_file(files):
    options = {"spacing": 4, "spatial_size": (64, 64, 64), "align": False}
    InputContract("CT", **options)({"image": str(files / "good.nii.gz")})
    for modality, name in (("CT", "bad.nii.gz"), ("MR", "good.nii.gz")):
        with pytest.raises(RuntimeError) as raised:
            InputContract(modality, **options)({"image": str(files / name)})
        assert isinstance(raised.value.__cause__, VolumeError)
        assert str(files / name) in str(raised.value.__cause__)


def test_an_unknown_modality_is_refused():
    with pytest.raises(ValueError, match="PET"):
        CheckUnitsd("image", "PET")
