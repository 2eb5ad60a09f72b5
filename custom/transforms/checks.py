"""What would spoil a training silently is refused, with the file: channels, values, units, classes."""

from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import look_up_option

from custom.support.errors import UserError
from custom.volumes.hounsfield import units_problem
from custom.volumes.loading import as_classes
from custom.volumes.nifti import LARGEST_VALUE


class VolumeError(UserError):
    """A volume that the networks cannot take, or a mask that does not fit it."""


def file_of(volume: MetaTensor) -> str:
    """The file a volume was read from."""
    return str(getattr(volume, "meta", {}).get("filename_or_obj", "volume"))


@contextmanager
def naming(volume: MetaTensor) -> Iterator[None]:
    """Put the file's name in front of what a pure function finds wrong with a volume."""
    try:
        yield
    except ValueError as error:
        raise VolumeError(f"{file_of(volume)}: {error}") from error


class CheckVolumed(MapTransform):
    """Refuse what would spoil a training silently: a wrong number of channels, not 3D, values that are none.

    Args:
        keys: the image.
        in_channels: channels C that the network was built for.

    Raises:
        ValueError: with the file, the rule and what was found.
    """

    def __init__(self, keys: KeysCollection, in_channels: int) -> None:
        super().__init__(keys)
        self.in_channels = in_channels

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        for key in self.key_iterator(data):
            image = data[key]
            name = file_of(image)
            if image.ndim != 4 or image.shape[0] != self.in_channels:
                raise VolumeError(
                    f"{name}: expected {self.in_channels} channel(s) of a 3D volume, got {tuple(image.shape)}"
                )
            low, high = image.as_tensor().aminmax()  # NaN, if any voxel is, and so no less
            if not (low >= -LARGEST_VALUE and high <= LARGEST_VALUE):
                bad = int((~(image.as_tensor().abs() <= LARGEST_VALUE)).sum())
                raise VolumeError(
                    f"{name}: {bad} voxels are not finite, or beyond {LARGEST_VALUE:g}; repair or leave out the file"
                )
        return dict(data)


class CheckUnitsd(MapTransform):
    """Refuse values that are not of the modality: a CT that is not in Hounsfield units, or one that is taken for MR.

    Args:
        keys: the image, as it lies in its file.
        modality: `MR` or `CT`.

    Raises:
        VolumeError: with the file, what was expected and found, and what to do.
    """

    def __init__(self, keys: KeysCollection, modality: str) -> None:
        super().__init__(keys)
        self.modality = look_up_option(modality, ("MR", "CT"))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        for key in self.key_iterator(data):
            for channel in data[key].as_tensor().cpu().numpy():
                if problem := units_problem(channel, self.modality):
                    raise VolumeError(f"{file_of(data[key])}: {problem}")
        return dict(data)


class CheckLabeld(MapTransform):
    """Refuse a mask whose values are not classes of the network; those that rounding has moved become whole again.

    Args:
        keys: the mask.
        num_classes: background included; values must be whole numbers from 0 to `num_classes - 1`, as
            `custom.volumes.masks` has it.

    Raises:
        ValueError: with the file, and the values found.
    """

    def __init__(self, keys: KeysCollection, num_classes: int) -> None:
        super().__init__(keys)
        self.num_classes = num_classes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            with naming(d[key]):
                d[key] = as_classes(d[key], self.num_classes)
        return d
