"""From volume files to a tensor: what MONAI's `LoadImage` does, for files that are not trusted.

Damaged voxels are refused, which `LoadImage` takes; the affine is the one that `sa-swin cohort` checks, where
`LoadImage` may take the qform although the sform is set; and of a header only the affine gets in.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import ImageMetaKey, MetaKeys, SpaceKeys
from torch import Tensor

from custom.volumes.masks import TOLERANCE, mask_problem
from custom.volumes.nifti import SAME_GRID, VolumeFileError, affine_problem, read_volume


def load_volume(paths: str | Sequence[str], dtype: torch.dtype | None = torch.float32) -> MetaTensor:
    """Read a volume, one file per channel: `(C, X, Y, Z)` with the first file's affine (RAS, mm) and name.

    Args:
        paths: file, or files of one grid.
        dtype: of the tensor; None keeps that of the files.

    Raises:
        FileNotFoundError: no such file.
        VolumeFileError: with the file's name; not a 3D volume, damaged, or of another grid than the first.
    """
    paths = [str(paths)] if not isinstance(paths, list | tuple) else [str(path) for path in paths]
    read = [_read(path) for path in paths]
    array, affine = read[0]
    for path, (other, own) in zip(paths, read, strict=True):
        if other.shape != array.shape:
            raise VolumeFileError("shape", f"{path}: shape {other.shape} differs from {array.shape} of {paths[0]}")
        if not np.allclose(own, affine, atol=SAME_GRID):
            raise VolumeFileError(
                "affine", f"{path}: its affine differs from that of {paths[0]}; resample all channels to one grid"
            )
    tensor = torch.from_numpy(np.stack([own for own, _ in read]))
    meta = {
        MetaKeys.ORIGINAL_AFFINE: affine.copy(),
        MetaKeys.SPATIAL_SHAPE: np.array(array.shape),
        MetaKeys.SPACE: SpaceKeys.RAS,
        MetaKeys.ORIGINAL_CHANNEL_DIM: 0,
        ImageMetaKey.FILENAME_OR_OBJ: paths[0],
    }
    return MetaTensor(tensor.to(dtype or tensor.dtype), affine=torch.from_numpy(affine), meta=meta)


def _read(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Values and affine of a file."""
    try:
        image = read_volume(path)
        if problem := affine_problem(image.affine):
            raise problem
        array = np.asanyarray(image.dataobj)
    except VolumeFileError as error:
        raise VolumeFileError(error.kind, f"{path}: {error}") from error
    return _native(array), image.affine


def _native(array: np.ndarray) -> np.ndarray:
    """The values `(X, Y, Z)` with Z running fastest, in this machine's byte order and a type that torch computes with.

    Plane by plane: in files X runs fastest, and turning a whole volume around would miss the cache at every step.
    """
    unsigned = array.dtype.kind == "u" and array.dtype.itemsize > 1  # torch computes with none of them
    dtype = np.dtype(f"i{min(8, 2 * array.dtype.itemsize)}") if unsigned else array.dtype.newbyteorder("=")
    native = np.empty(array.shape, dtype)
    for y in range(array.shape[1]):
        native[:, y] = array[:, y]
    return native


def as_classes(mask: Tensor, num_classes: int | None = None) -> Tensor:
    """A mask with whole numbers.

    Args:
        mask: of any shape.
        num_classes: background included; None takes any.

    Raises:
        ValueError: values that are no classes.
    """
    plain = mask.as_subclass(Tensor)
    whole = plain.round() if plain.is_floating_point() else plain
    highest = float("inf") if num_classes is None else num_classes - 1
    near = not plain.is_floating_point() or bool(((plain - whole).abs() <= TOLERANCE).all())
    if not (near and whole.min() >= 0 and whole.max() <= highest):
        raise ValueError(mask_problem(torch.unique(plain).cpu().numpy(), num_classes))
    return mask.round() if plain.is_floating_point() else mask


class LoadVolumed(MapTransform):
    """`load_volume` for the files of each key.

    Args:
        keys: paths, or lists of paths, one per channel.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = load_volume(d[key])
        return d
