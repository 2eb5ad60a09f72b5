"""Findings of a mask: its connected components, the side of the midsagittal plane each lies on, and their volumes.

A side is the patient's, and it is decided in world millimetres by the plane that the volume was aligned to, never by a
position in an array. Voxels that the plane cuts count to both sides, by their shares.

Midline shift is not measured: by its definition, the distance of the septum pellucidum from the ideal midline at the
foramen of Monro, it needs landmarks that no network of this project finds.
"""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scipy import ndimage
from torch import Tensor

from custom.support.errors import UserError
from custom.symmetry import LATERAL_AXIS

Row = dict[str, Any]

ONE_SIDED = 0.9
"""Share of a finding's volume from which on it is called left or right; else it is on both sides."""
TOUCHING = np.ones((3, 3, 3), bool)  # voxels that share a face, an edge or a corner are one finding


@dataclass(frozen=True)
class Plane:
    """The plane `{p : normal . p = offset}`, in world RAS mm; `normal` is a unit vector towards the patient's right."""

    normal: np.ndarray
    offset: float


def central_plane(aligned: MetaTensor) -> Plane:
    """The midsagittal plane of an aligned volume `(C, X, Y, Z)`: the central one of its lateral axis."""
    affine = aligned.affine.cpu().double().numpy()
    normal = np.cross(affine[:3, 1], affine[:3, 2])
    normal *= np.sign(normal @ affine[:3, LATERAL_AXIS]) / np.linalg.norm(normal)
    center = affine[:3, :3] @ ((np.array(aligned.shape[1:]) - 1) / 2) + affine[:3, 3]
    return Plane(normal, float(normal @ center))


def components(mask: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Connected components of each foreground class of a label map: the class, and the component's voxels `(N, 3)`."""
    for index in np.unique(mask[mask > 0]):
        labelled, _ = ndimage.label(mask == index, TOUCHING)
        for number, box in enumerate(ndimage.find_objects(labelled), 1):
            corner = [part.start for part in box]
            yield int(index), np.argwhere(labelled[box] == number) + corner


def voxel_ml(affine: np.ndarray) -> float:
    """Volume of a voxel, ml."""
    return float(abs(np.linalg.det(affine[:3, :3]))) / 1000


def right_share(voxels: np.ndarray, affine: np.ndarray, plane: Plane) -> np.ndarray:
    """How much of each voxel `(N, 3)` lies to the patient's right of a plane, `(N,)` in 0 to 1.

    A voxel whose centre is farther from the plane than half its own extent along the normal is on one side altogether;
    between, the share goes linearly.
    """
    distance = (voxels @ affine[:3, :3].T + affine[:3, 3]) @ plane.normal - plane.offset
    extent = np.abs(affine[:3, :3].T @ plane.normal).sum()
    return np.clip(0.5 + distance / extent, 0, 1)


def asymmetry_index(left: float, right: float) -> float:
    """`(right - left) / (right + left)`: -1 is all on the left, 1 all on the right; NaN where there is nothing."""
    return (right - left) / (right + left) if left + right > 0 else float("nan")


def side_of(left: float, right: float) -> str:
    """`left`, `right` or `both`, from the volumes on the two sides; empty where there is nothing."""
    if left + right <= 0:
        return ""
    share = right / (left + right)
    return "right" if share >= ONE_SIDED else "left" if share <= 1 - ONE_SIDED else "both"


def finding_rows(mask: MetaTensor, aligned: MetaTensor) -> list[Row]:
    """Every finding of a mask, the largest first: class, side, volumes (ml), asymmetry index, centre (world RAS, mm).

    Args:
        mask: `(1, X, Y, Z)` label map on the grid of its file.
        aligned: the volume it was predicted from, `(C, X, Y, Z)`, as the network saw it.
    """
    affine, plane = mask.affine.cpu().double().numpy(), central_plane(aligned)
    array = mask.as_subclass(Tensor)[0].cpu().numpy()
    rows = [_finding(index, voxels, affine, plane) for index, voxels in components(array)]
    rows.sort(key=lambda row: -row["volume_ml"])
    return [{"finding": number, **row} for number, row in enumerate(rows, 1)]


def _finding(index: int, voxels: np.ndarray, affine: np.ndarray, plane: Plane) -> Row:
    ml = voxel_ml(affine)
    right = float(right_share(voxels, affine, plane).sum()) * ml
    left = len(voxels) * ml - right
    center = affine[:3, :3] @ voxels.mean(0) + affine[:3, 3]
    return {
        "class": index,
        "side": side_of(left, right),
        "volume_ml": len(voxels) * ml,
        "left_ml": left,
        "right_ml": right,
        "asymmetry_index": asymmetry_index(left, right),
        **dict(zip(("x_mm", "y_mm", "z_mm"), center.tolist(), strict=True)),
    }


def laterality_row(findings: list[Row], num_classes: int = 2) -> Row:
    """Findings of a case added up per foreground class: how many, volume and volume per side (ml), side, index."""
    row: Row = {}
    for index in range(1, num_classes):
        own = [finding for finding in findings if finding["class"] == index]
        total, left, right = (sum(f[name] for f in own) for name in ("volume_ml", "left_ml", "right_ml"))
        row |= {
            f"findings_class{index}": len(own),
            f"volume_ml_class{index}": float(total),
            f"left_ml_class{index}": float(left),
            f"right_ml_class{index}": float(right),
            f"side_class{index}": side_of(left, right),
            f"asymmetry_index_class{index}": asymmetry_index(left, right),
        }
    return row


def volumes_by_side(mask: np.ndarray, affine: np.ndarray, plane: Plane) -> tuple[float, float]:
    """Volumes (ml) of what is True in a mask `(X, Y, Z)`, on the patient's left and right."""
    shares = right_share(np.argwhere(mask), affine, plane)
    return float((1 - shares).sum()) * voxel_ml(affine), float(shares.sum()) * voxel_ml(affine)


def segmented_row(output: Mapping[str, Any], num_classes: int = 2) -> Row:
    """Findings per class of a segmented case, and under `findings` the rows of `finding_rows`.

    Args:
        output: `pred`, a label map on the grid of its file, and `image`, the aligned volume.
        num_classes: background included.
    """
    findings = finding_rows(output["pred"], output["image"])
    return {**laterality_row(findings, num_classes), "findings": findings}


class RemoveSmallFindingsd(MapTransform):
    """Take connected components below a volume out of a label map `(1, X, Y, Z)`, each class by itself.

    Args:
        keys: the label map, on the grid of its file.
        min_volume_ml: what is smaller becomes background; 0 keeps everything.

    Raises:
        UserError: when `min_volume_ml` is negative.
    """

    def __init__(self, keys: KeysCollection, min_volume_ml: float = 0.0) -> None:
        super().__init__(keys)
        if not min_volume_ml >= 0:
            raise UserError(f"min_volume_ml must be 0 or more, got {min_volume_ml}")
        self.min_volume_ml = min_volume_ml

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d) if self.min_volume_ml else ():
            mask = d[key].clone()
            ml = voxel_ml(mask.affine.cpu().double().numpy())
            for _, voxels in components(mask.as_subclass(Tensor)[0].cpu().numpy()):
                if len(voxels) * ml < self.min_volume_ml:
                    mask.as_subclass(Tensor)[0][tuple(torch.from_numpy(voxels).to(mask.device).T)] = 0
            d[key] = mask
        return d
