"""One head: its file in, its asymmetry map on the file's grid, and a row with the peak's place and side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import ensure_tuple_rep
from torch import Tensor

from custom.data.case import image_paths
from custom.data.headers import case_problems
from custom.support.errors import UserError, root_cause
from custom.support.files import WriteError
from custom.symmetry import mirror, split_pair
from custom.transforms.asymmetry_map import AsymmetryMap, asymmetry_map, strangeness
from custom.transforms.contract import InputContract
from custom.transforms.findings import central_plane
from custom.volumes.nifti import write_nifti
from custom.volumes.saving import result_path
from sa_swin.asymmetry.norm import Norm, NormError

UNDECIDED = 0.5
"""How much stranger than its counterpart a place must be for a side to be told, in spreads."""
POSTFIX = "asymmetry"


@dataclass(frozen=True)
class Reading:
    """How heads are read; in a form that other processes can receive.

    Args:
        spacing: mm, of the aligned volume.
        spatial_size: voxels, of the aligned volume.
        align: find the midsagittal plane; False for volumes that lie straight already.
        untrusted: as in `InputContract`.
        modality: `MR`, of which alone there are maps, or `CT`.
    """

    spacing: tuple[float, float, float]
    spatial_size: tuple[int, int, int]
    align: bool = True
    untrusted: str = "leave_out"
    modality: str = "MR"

    def contract(self, channels: int) -> InputContract:
        return InputContract(
            modality=self.modality,
            in_channels=channels,
            spacing=self.spacing,
            spatial_size=self.spatial_size,
            align=self.align,
            untrusted=self.untrusted,
        )

    def pair(self, case: Mapping[str, Any]) -> MetaTensor:
        """The symmetric pair of a case, `(2C, X, Y, Z)`.

        Raises:
            ValueError: its files, their orientation or the plane cannot be used, or they do not share one grid.
        """
        channels = len(image_paths(case))
        if problems := case_problems(dict(case), "none", channels, None):
            raise ValueError("; ".join(problems))
        return self.contract(channels)(dict(case))["image"]

    def __call__(self, case: Mapping[str, Any]) -> tuple[MetaTensor, AsymmetryMap]:
        """The symmetric pair of a case, `(2C, X, Y, Z)`, and the map on its grid.

        Raises:
            ValueError: as `pair`, or there is no brain.
        """
        pair = self.pair(case)
        image, counterpart = split_pair(pair.as_subclass(Tensor)[None])
        found = asymmetry_map(image, self.spacing, counterpart)
        if not found.inside.any():
            raise ValueError(f"{image_paths(case)[0]}: no brain found that has both its sides in the field of view")
        return pair, found


@dataclass(frozen=True)
class HealthyMap:
    """A head's part of the norm, or why it has none."""

    reading: Reading

    def __call__(self, case: Mapping[str, Any]) -> AsymmetryMap | str:
        try:
            return self.reading(case)[1]
        except (ValueError, RuntimeError, OSError, MemoryError) as error:
            return reason_of(error)


@dataclass(frozen=True)
class ReadCase:
    """A head's map as a file, and its row.

    Args:
        reading: how it is read.
        norm: of healthy heads, or None.
        dataset_dir: folder whose structure the output folder gets.
        output: that folder.
    """

    reading: Reading
    norm: Norm | None
    dataset_dir: Path
    output: Path

    def __call__(self, case: Mapping[str, Any]) -> dict[str, Any]:
        """A row with `status` `done`, or `failed` and a reason: one bad file never loses the others.

        Raises:
            WriteError: when results cannot be written; then the others cannot either.
        """
        row = {"subject": case["subject"], "image": image_paths(case)[0]}
        try:
            return row | {"status": "done"} | self.read(case)
        except WriteError:
            raise
        except (ValueError, RuntimeError, OSError, MemoryError) as error:
            return row | {"status": "failed", "reason": reason_of(error)}

    def read(self, case: Mapping[str, Any]) -> dict[str, Any]:
        """Write the map and return the figures of its peak."""
        head = mapped_head(case, self.reading, self.norm)
        path = result_path(image_paths(case)[0], self.dataset_dir, self.output, POSTFIX)
        write_nifti(path, head.on_file.as_tensor().numpy()[0], head.on_file.affine.numpy())
        return head.row | {"map": str(path)}


@dataclass(frozen=True)
class MappedHead:
    """A head and its asymmetry.

    Args:
        pair: the aligned symmetric pair, `(2C, X, Y, Z)`.
        values: the signed map on its grid, `(X, Y, Z)`, see `signed`.
        on_file: the same on the grid of the file, `(1, X, Y, Z)`.
        row: figures of the peak, see `peak_row`, and with a norm whether it is an alarm.
    """

    pair: MetaTensor
    values: Tensor
    on_file: MetaTensor
    row: dict[str, Any]


def mapped_head(case: Mapping[str, Any], reading: Reading, norm: Norm | None) -> MappedHead:
    """Read a head and map its asymmetry: z-scores, or differences where there is no norm.

    Raises:
        ValueError: as `Reading`; or the norm is of another number of channels.
    """
    channels = len(image_paths(case))
    if norm and channels != len(norm.level):
        raise NormError(f"the norm is of {len(norm.level)} channel(s), the case has {channels}")
    pair, found = reading(case)
    if norm:
        score, strange = norm.z_map(found)[0, 0], norm.strangeness(found)[0, 0]
    else:
        score, strange = found.difference[0, 0], strangeness(found.level, found.inside, reading.spacing)[0, 0]
    values = signed(score, strange)
    aligned = MetaTensor(values[None], meta=pair.meta, applied_operations=pair.applied_operations)
    back = reading.contract(channels).inverse({"image": aligned})["image"]
    row = peak_row(score.where(found.inside[0, 0], -torch.inf), strange, pair, back.affine)
    return MappedHead(pair, values, back, row | ({"alarm": int(row["peak"] > norm.threshold)} if norm else {}))


def signed(score: Tensor, strange: Tensor) -> Tensor:
    """The score where a place is the stranger of the two, or neither is; minus the score where its counterpart is.

    Args:
        score: `(X, Y, Z)`; what is below 0, and so less than usual, becomes 0.
        strange: `(X, Y, Z)`, see `custom.transforms.asymmetry_map.strangeness`.
    """
    return score.clamp_min(0) * torch.where(strange < -UNDECIDED, -1.0, 1.0)


def peak_row(score: Tensor, strange: Tensor, pair: MetaTensor, file_affine: Tensor) -> dict[str, Any]:
    """The highest peak: its score, its side, and its place in the world (RAS, mm) and in the file (voxels).

    Where the counterpart of the peak is the stranger place, that is the place given.

    Args:
        score: `(X, Y, Z)` on the aligned grid, minus infinity outside the brain.
        strange: `(X, Y, Z)`, see `custom.transforms.asymmetry_map.strangeness`.
        pair: the aligned volume.
        file_affine: voxel-to-world of the file.
    """
    height, margin = float(score.max()), float(strange.flatten()[score.argmax()])
    place = np.unravel_index(int((mirror(score) if margin < 0 else score).argmax()), score.shape)
    world = pair.affine.numpy() @ [*place, 1]
    plane = central_plane(pair)
    right = plane.normal @ world[:3] > plane.offset
    voxel = np.linalg.inv(file_affine.numpy()) @ world
    names = ("x_mm", "y_mm", "z_mm", "voxel_i", "voxel_j", "voxel_k")
    side = "undecided" if abs(margin) < UNDECIDED else "right" if right else "left"
    places = [round(float(v), 1) for v in world[:3]] + [round(float(v)) for v in voxel[:3]]
    return {"peak": height, "side": side, "margin": abs(margin), **dict(zip(names, places, strict=True))}


def reason_of(error: Exception) -> str:
    """What an error says, in one line."""
    cause = root_cause(error)
    return " ".join(str(cause).split())[:300] or type(cause).__name__


def checked_grid(spacing: float | Sequence[float], spatial_size: Sequence[int]) -> tuple[tuple, tuple]:
    """Spacing (mm) and size (voxels) of the aligned grid, three of each.

    Raises:
        UserError: when they are not positive.
    """
    try:
        sides, size = ensure_tuple_rep(spacing, 3), ensure_tuple_rep(spatial_size, 3)
        good = min(*sides, *size) > 0
    except (TypeError, ValueError):
        good = False
    if not good:
        raise UserError(
            "spacing must be one or three positive mm, spatial_size three positive voxels; "
            f"got {spacing}, {spatial_size}"
        )
    return tuple(float(side) for side in sides), tuple(int(n) for n in size)
