import nibabel as nib
import numpy as np
import pytest
import torch

from custom.transforms.contract import InputContract
from custom.volumes.loading import as_classes
from custom.volumes.masks import mask_problem
from sa_swin.cohort.voxels import mask_findings
from sa_swin.prepare.case import CaseFiles, Grid, align_case


@pytest.mark.parametrize("stored", [1.00000006, 0.99999994, 1.0005, 0.9995])
def test_what_storing_has_rounded_is_a_class_everywhere(stored):
    mask = torch.tensor([0.0, stored], dtype=torch.float64)
    assert mask_problem(mask.numpy(), 2) is None
    assert mask_findings("m.nii", mask.numpy(), 2) == []
    assert as_classes(mask, 2).tolist() == [0, 1]


@pytest.mark.parametrize(
    "values", [[0, 0.5], [0, 0.98], [0, 1.01], [-1, 0], [0, 2], [0, float("nan")], [0, float("inf")]]
)
def test_what_is_no_class_is_refused_everywhere_in_the_same_words(values):
    problem = mask_problem(values, 2)
    assert problem.startswith("a mask holds whole numbers from 0 to 1, found ")
    assert [finding.problem for finding in mask_findings("m.nii", np.array(values), 2)] == [problem]
    with pytest.raises(ValueError, match="a mask holds whole numbers from 0 to 1, found "):
        as_classes(torch.tensor(values), 2)


def test_without_a_number_of_classes_any_whole_number_is_one():
    assert mask_problem([0, 17], None) is None
    assert mask_problem([0, 0.5], None).startswith("a mask holds whole numbers from 0, found 0, 0.5")


@pytest.fixture
def files(tmp_path):
    """A head and a mask stored with a scale of 1/255, so that its ones are 1.0000001."""
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    image = np.zeros((32, 32, 32), np.float32)
    image[6:-6, 6:-6, 6:-6] = 40 + 4 * np.random.default_rng(0).standard_normal((20, 20, 20))
    mask = np.zeros(image.shape, np.float64)
    mask[10:14, 10:20, 10:20] = 1.00000012
    nib.save(nib.Nifti1Image(image, affine), tmp_path / "a.nii.gz")
    nib.save(nib.Nifti1Image(mask, affine), tmp_path / "m.nii.gz")
    return tmp_path


def test_training_reads_such_a_mask_as_whole_numbers(files):
    contract = InputContract(label_key="label", spacing=4, spatial_size=(32, 32, 32), align=False)
    label = contract({"image": str(files / "a.nii.gz"), "label": str(files / "m.nii.gz")})["label"]
    assert label.unique().tolist() == [0, 1]


def test_prepare_writes_such_a_mask_as_whole_numbers_and_refuses_others(files):
    grid = Grid((4.0, 4.0, 4.0), (32, 32, 32), untrusted="as_it_lies")
    record = align_case(CaseFiles(str(files), ("a.nii.gz",), "m.nii.gz"), files / "out", grid)
    assert record["status"] == "as it lies"
    written = nib.load(files / "out" / "a_label.nii").get_fdata()
    assert set(np.unique(written)) == {0.0, 1.0}
    mask = nib.load(files / "m.nii.gz").get_fdata() / 2
    nib.save(nib.Nifti1Image(mask, np.diag([4.0, 4.0, 4.0, 1.0])), files / "half.nii.gz")
    with pytest.raises(ValueError, match=r"half.nii.gz: a mask holds whole numbers from 0, found 0, 0.5"):
        align_case(CaseFiles(str(files), ("a.nii.gz",), "half.nii.gz"), files / "out", grid)
