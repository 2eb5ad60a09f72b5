"""Predicted volumes as NIfTI files: whole or not there, below the output folder, and with no text of their source.

MONAI's `SaveImage` writes under the final name, leaves the output folder for an image from outside `data_root_dir`, and
hides why it cannot write.
"""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import DtypeLike, KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, SaveImaged
from monai.utils import ImageMetaKey, MetaKeys

from custom.support.files import below
from custom.volumes.nifti import write_nifti


def result_path(image: str, data_root_dir: str | Path, output_dir: str | Path, postfix: str) -> Path:
    """Where a result of an image lies: `<output_dir>/<the image's place below data_root_dir>_<postfix>.nii.gz`.

    An image from elsewhere has its whole path below `output_dir`.
    """
    place = below(image, data_root_dir)
    return Path(output_dir) / place.with_name(f"{place.name.removesuffix('.gz').removesuffix('.nii')}_{postfix}.nii.gz")


class SaveVolumed(SaveImaged):  # MONAI Label, which answers with the mask itself, leaves out what is a SaveImaged
    """Write `(C, X, Y, Z)` on the grid it has; the file's path is added to those in its meta data under `saved_to`.

    Args:
        keys: of the volumes.
        output_dir: of the run.
        output_postfix: behind the image's name.
        data_root_dir: the images' folder, whose structure is kept.
        output_dtype: of the file.

    Raises:
        custom.support.files.WriteError: when it cannot be written.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str | Path,
        output_postfix: str,
        data_root_dir: str | Path,
        output_dtype: DtypeLike = np.float32,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.output_dir = output_dir
        self.output_postfix = output_postfix
        self.data_root_dir = data_root_dir
        self.output_dtype = output_dtype

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        for key in self.key_iterator(data):
            volume: MetaTensor = data[key]
            source = str(volume.meta[ImageMetaKey.FILENAME_OR_OBJ])
            path = result_path(source, self.data_root_dir, self.output_dir, self.output_postfix)
            array = np.moveaxis(volume.as_tensor().cpu().numpy().astype(self.output_dtype), 0, -1)
            write_nifti(path, array[..., 0] if array.shape[-1] == 1 else array, volume.affine.cpu().numpy())
            volume.meta[MetaKeys.SAVED_TO] = [*volume.meta.get(MetaKeys.SAVED_TO, ()), str(path)]
        return dict(data)
