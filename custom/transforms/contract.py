"""The input contract: from a file to the symmetric pair that every network of this project takes, and back.

Thin MONAI transforms over the pure functions of `custom.alignment`, `custom.symmetry` and `intensity`.
Volumes are `(C, X, Y, Z)`; world coordinates are RAS millimetres, as in the file's affine.
"""

import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    InvertibleTransform,
    LazyTransform,
    MapTransform,
    Transform,
    allow_missing_keys_mode,
)
from monai.utils import GridSampleMode, ensure_tuple_rep, look_up_option
from torch import Tensor

from custom.alignment.grid import (
    REMEDY,
    RESAMPLE,
    UNTRUSTED,
    AlignedGrid,
    aligned_grid,
    central_affine,
    cut_off,
    from_grid,
    plane_figures,
    pose,
    to_grid,
)
from custom.alignment.homologous import homologous_counterpart
from custom.alignment.planes import plane_for, read_planes
from custom.alignment.trust import distrust_counterpart
from custom.support.errors import UserError
from custom.symmetry import symmetric_pair
from custom.transforms.asymmetry_channel import AsymmetryChanneld
from custom.transforms.checks import CheckLabeld, CheckUnitsd, CheckVolumed, VolumeError, file_of, naming
from custom.transforms.intensity import CT_WINDOW, standardize_mr, window_ct
from custom.volumes.loading import LoadVolumed

SPATIAL_SIZE = (192, 224, 192)
"""Voxels of the aligned volume: at 1 mm, a box that holds an adult's head from the crown down, multiples of 32."""
COUNTERPARTS = ("mirror", "homologous")
"""What a volume is paired with: its mirror image, or that bent until each place meets the one homologous to it."""


class UntrustedPlaneError(VolumeError):
    """The midsagittal plane of a volume cannot be trusted."""

    remedy = REMEDY


class MidsagittalAlignd(MapTransform, InvertibleTransform, LazyTransform):
    """Resample a volume so that its midsagittal plane is the central plane of axis 0, with one interpolation.

    The aligned grid lies in the file's own world space: its affine is oblique, world coordinates stay what they were,
    and the inverse is resampling to the grid of the file. The plane is found on all channels of the first key; all keys
    share the grid. A volume that lies straight on such a grid already is left as it is. Outside the field of view an
    image takes its background level, a label 0.

    Args:
        keys: the image first, then e.g. its label.
        spacing: of the aligned grid, mm.
        spatial_size: of the aligned grid, voxels.
        align: estimate the plane; False takes the central plane of the array (a volume prepared by `sa-swin prepare`).
        untrusted: when the plane cannot be trusted: `leave_out` raises, so that whoever asks can go on without the
            volume or stop; `found` takes it all the same, `as_it_lies` the array's central plane, both with a warning.
        planes: table of planes that a person set (`custom.alignment.planes`), which are trusted; not without `align`.
        lazy: leave the resampling to MONAI's lazy resampling; the field of view is then padded with its border, and
            labels go by the nearest neighbour.

    Raises:
        UserError: `planes` without `align`.
        UntrustedPlaneError: with the file, the reason and the figure, where `untrusted` is `leave_out`, or there is no
            plane.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spacing: float | Sequence[float] = 1.0,
        spatial_size: Sequence[int] = SPATIAL_SIZE,
        align: bool = True,
        untrusted: str = "leave_out",
        planes: str | None = None,
        lazy: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys)
        LazyTransform.__init__(self, lazy)
        if planes and not align:
            raise UserError(f"with --align False no plane is looked for, nor taken from {planes}; leave out --planes, "
                            "or align")  # fmt: skip
        self.spacing = ensure_tuple_rep(spacing, 3)
        self.spatial_size = ensure_tuple_rep(spatial_size, 3)
        self.align = align
        self.untrusted = look_up_option(untrusted, UNTRUSTED)
        self.planes = read_planes(planes)
        self.measured: set[str] = set()
        self.mode = (GridSampleMode.BILINEAR, GridSampleMode.NEAREST)[: len(self.keys)]

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        d = dict(data)
        lazy = self.lazy if lazy is None else lazy
        image = d[self.keys[0]]
        grid = self.grid(image)
        plane = grid.plane if grid.source != "as it lies" else None
        figures = plane_figures(plane, image)  # the same keys for every case, so that they can be batched
        for key, mode in self.key_iterator(d, self.mode):
            d[key] = self.to_grid(d[key], grid.affine, mode, lazy)
        d[self.keys[0]].meta |= {"midsagittal": figures, "plane": grid.source, "plane_reason": grid.reason or ""}
        return d

    def grid(self, image: MetaTensor) -> AlignedGrid:
        """The aligned grid of a volume, and the plane it rests on."""
        if not self.align:
            affine = central_affine(image, self.spacing, self.spatial_size)
            self.tell_what_is_cut_off(image, affine)
            return AlignedGrid(affine, None, "as it lies")
        by_hand = plane_for(self.planes, file_of(image))
        with naming(image):
            grid = aligned_grid(image, self.spacing, self.spatial_size, self.untrusted, by_hand)
        if grid.refused:
            found = pose(plane_figures(grid.plane, image)) if grid.plane else ""
            raise UntrustedPlaneError(f"{file_of(image)}: {found}{grid.reason}; {REMEDY}")
        if grid.reason is not None:
            what = "the plane that was found is taken" if self.untrusted == "found" else "it is kept as it lies"
            warnings.warn(f"{file_of(image)}: {grid.reason}; {what}", stacklevel=2)
        return grid

    def tell_what_is_cut_off(self, image: MetaTensor, affine: Tensor) -> None:
        """Warn, once for each file, where a part of the head lies outside of its grid."""
        if (name := file_of(image)) in self.measured:
            return
        self.measured.add(name)
        if problem := cut_off(image, affine, self.spatial_size):
            warnings.warn(f"{name}: {problem}", stacklevel=3)

    def to_grid(self, volume: MetaTensor, affine: Tensor, mode: str, lazy: bool) -> MetaTensor:
        if not lazy:
            return to_grid(volume, affine, self.spatial_size, mode)
        return RESAMPLE(volume, affine, self.spatial_size, mode=mode, padding_mode="border", lazy=True)

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = from_grid(d[key])
        return d


class StandardizeIntensityd(MapTransform):
    """Intensities by modality: z-score on the head for MR, a window of Hounsfield units mapped to 0-1 for CT.

    Args:
        keys: the image.
        modality: `MR` or `CT`.
        intensity_range: for CT, the window in HU.
    """

    def __init__(self, keys: KeysCollection, modality: str, intensity_range: Sequence[float] = CT_WINDOW) -> None:
        super().__init__(keys)
        self.modality = look_up_option(modality, ("MR", "CT"))
        self.intensity_range = intensity_range

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            with naming(d[key]):
                d[key] = window_ct(d[key], self.intensity_range) if self.modality == "CT" else standardize_mr(d[key])
        return d


class SymmetricPaird(MapTransform):
    """Append the counterpart as channels, `(C, X, Y, Z)` to `(2C, X, Y, Z)`; the volume must be aligned already.

    The volume itself is not moved, so that what is predicted for it comes back to the file as ever. With `homologous`,
    `meta["counterpart"]` holds the figures of its quality, and under `reason` why the mirror image is used instead, or
    nothing.

    Args:
        keys: the image.
        counterpart: `mirror`, the mirror image, or `homologous`, see `custom.alignment.homologous`.
    """

    def __init__(self, keys: KeysCollection, counterpart: str = "mirror") -> None:
        super().__init__(keys)
        self.counterpart = look_up_option(counterpart, COUNTERPARTS)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = symmetric_pair(d[key]) if self.counterpart == "mirror" else self.homologous_pair(d[key])
        return d

    def homologous_pair(self, image: MetaTensor) -> MetaTensor:
        counterpart, quality = homologous_counterpart(image.as_tensor()[None], image.pixdim.tolist())
        reason = distrust_counterpart(quality[0])
        if reason is not None:
            warnings.warn(f"{file_of(image)}: {reason}; the mirror image is used", stacklevel=2)
        pair = torch.cat([image, counterpart[0]])
        pair.meta["counterpart"] = asdict(quality[0]) | {"reason": reason or ""}
        return pair


class InputContract(MapTransform, InvertibleTransform):
    """From a file to the symmetric pair a network takes: load, check, align, standardize, pair.

    This is what pretrained weights depend on, so all three bundles share it. Everything spatial in it can be inverted:
    `Invertd` brings a prediction back to the voxel grid and affine of the file.

    Args:
        modality: `MR` (z-score on the head) or `CT` (a window in HU).
        in_channels: channels C of the image; a case lists one file per channel.
        label_key: key of a mask that goes through the same spatial steps, or None.
        num_classes: of that mask, background included.
        spacing: mm, of the aligned volume.
        spatial_size: voxels, of the aligned volume; multiples of 32.
        align: find the midsagittal plane; False for volumes that lie straight already.
        untrusted, planes: as in `MidsagittalAlignd`.
        intensity_range: for CT, the window in HU.
        counterpart: `mirror` or `homologous`, the second half of the pair; see `SymmetricPaird`.
        asymmetry_map: both halves get a further channel, see `with_asymmetry`; of MR alone.

    Raises:
        UserError: an asymmetry map of CT.
    """

    def __init__(
        self,
        modality: str = "MR",
        in_channels: int = 1,
        label_key: str | None = None,
        num_classes: int = 2,
        spacing: float | Sequence[float] = 1.0,
        spatial_size: Sequence[int] = SPATIAL_SIZE,
        align: bool = True,
        untrusted: str = "leave_out",
        planes: str | None = None,
        intensity_range: Sequence[float] = CT_WINDOW,
        counterpart: str = "mirror",
        asymmetry_map: bool = False,
    ) -> None:
        if asymmetry_map and modality == "CT":
            raise UserError("there is an asymmetry map of MR alone; give --asymmetry_map False for CT")
        keys = ["image", label_key] if label_key else ["image"]
        MapTransform.__init__(self, keys)
        steps: list[Transform] = [
            LoadVolumed(keys),
            CheckVolumed("image", in_channels),
            CheckUnitsd("image", modality),
            MidsagittalAlignd(keys, spacing, spatial_size, align, untrusted, planes),
            StandardizeIntensityd("image", modality, intensity_range),
            SymmetricPaird("image", counterpart),
        ]
        if label_key:
            steps.insert(1, CheckLabeld(label_key, num_classes))
        self.steps = Compose(steps)
        self.map = AsymmetryChanneld("image", ensure_tuple_rep(spacing, 3)) if asymmetry_map else None

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return self.mapped(self.paired(data))

    def paired(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """All but the asymmetry map."""
        return self.steps(data)

    def mapped(self, data: dict[Hashable, Any]) -> dict[Hashable, Any]:
        """With the asymmetry map of the pair, where it is asked for."""
        return self.map(data) if self.map else data

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        with allow_missing_keys_mode(self.steps):
            return self.steps.inverse(data)
