"""What `load_volume` refuses beside damaged files, which `tests/faults` has."""

import nibabel as nib
import numpy as np
import pytest

from custom.volumes.loading import load_volume
from custom.volumes.nifti import VolumeFileError

MOVED, FLIPPED = np.diag([2.0, 2, 2, 1]), np.diag([-2.0, 2, 2, 1])
MOVED[0, 3] = 50.0


@pytest.mark.parametrize("affine", [MOVED, FLIPPED])
def test_channels_of_another_grid_are_refused_although_their_shape_is_the_same(tmp_path, affine):
    values = np.random.default_rng(0).normal(size=(6, 7, 8)).astype(np.float32)
    paths = [str(tmp_path / f"{name}.nii.gz") for name in ("a", "b", "c")]
    for path, own in zip(paths, (np.diag([2.0, 2, 2, 1]), affine, np.diag([2.0, 2, 2.001, 1])), strict=True):
        nib.save(nib.Nifti1Image(values, own), path)
    with pytest.raises(VolumeFileError, match=r"b\.nii\.gz: its affine differs from that of .*a\.nii\.gz; resample"):
        load_volume(paths[:2])
    assert load_volume([paths[0], paths[2]]).shape == (2, 6, 7, 8)
