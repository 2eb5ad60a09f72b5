"""`sa-swin phantom tissues`: the tissue maps that pretraining paints brains from."""

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from custom.painting.anatomies import CHANNELS, PATTERN
from custom.volumes.nifti import read_volume
from sa_swin.phantom.anatomy import Anatomy, label_anatomy, label_maps
from sa_swin.phantom.cohort import write_image
from sa_swin.phantom.head import icbm_anatomy

SPACING_MM = 2.0
SHAPE = (104, 128, 112)
"""Voxels of a map: 208 x 256 x 224 mm."""
CENTRE_ABOVE_MM = 15.0
"""How far the centre of the brain lies above the centre of a map, which has room for the neck."""


def tissues_command(output: str, anatomies: str | None = None) -> None:
    """Write tissue maps of heads, for pretraining on painted brains (--painted): the ICBM152 template's, or your own.

    Args:
        output: folder of the maps.
        anatomies: folder of FreeSurfer or SynthSeg label maps of whole heads, in addition to the template.
    """
    try:
        paths = label_maps(str(anatomies)) if anatomies else []
        heads = {"icbm152": icbm_anatomy(round(SPACING_MM))}
        for path in paths:
            spacing = float(read_volume(path).header.get_zooms()[0])
            name = Path(path).name.removesuffix(".gz").removesuffix(".nii")
            heads[name] = label_anatomy(path, max(1, round(SPACING_MM / spacing)))
    except ValueError as error:
        sys.exit(f"sa-swin phantom tissues: {error}")
    for name, anatomy in heads.items():
        write_image(Path(str(output)) / PATTERN.replace("*", name), tissue_map(anatomy))
    print(f"{output}: {len(heads)} tissue maps written")


def tissue_map(anatomy: Anatomy) -> nib.Nifti1Image:
    """Fractions of an anatomy, `(X, Y, Z, C)` uint8, centred on its brain; the plane is the central one of X."""
    affine = np.diag([*[SPACING_MM] * 3, 1.0])
    affine[:3, 3] = centre(anatomy) - SPACING_MM * (np.array(SHAPE) - 1) / 2
    axes = [torch.arange(n) * SPACING_MM + float(start) for n, start in zip(SHAPE, affine[:3, 3], strict=True)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    fractions = anatomy.sample(points, CHANNELS)
    return nib.Nifti1Image((255 * fractions).round().byte().movedim(0, -1).numpy(), affine)


def centre(anatomy: Anatomy) -> np.ndarray:
    """The centre of the maps to be, `(3,)` mm in the anatomy: in the plane, below the middle of the brain's extent."""
    brain = anatomy.maps[-2] > 127
    points = nib.affines.apply_affine(anatomy.affine, np.argwhere(brain))
    middle = (points.min(0) + points.max(0)) / 2
    return np.array([0.0, middle[1], middle[2] - CENTRE_ABOVE_MM])
