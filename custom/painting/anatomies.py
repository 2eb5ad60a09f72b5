"""Tissue maps that brains are painted from: volume fractions of a head whose midsagittal plane is x = 0.

`sa-swin phantom tissues` writes them, from the ICBM152 template or from a user's FreeSurfer or SynthSeg label maps:
4D NIfTI `(X, Y, Z, C)`, uint8, 0 to 255, one volume for each of `CHANNELS`, in RAS with the centre of the array at the
centre of the head.
"""

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from custom.support.errors import UserError

CHANNELS = ("csf", "gm", "wm", "bone", "marrow", "fat", "muscle", "brain")
"""Fractions of tissues, what they leave free being air, and of the brain with its fluid."""
TISSUES = CHANNELS[:-1]
PATTERN = "*_tissues.nii.gz"


class Anatomies:
    """The tissue maps of a folder, in memory.

    Args:
        folder: of files that `sa-swin phantom tissues` wrote.

    Attributes:
        maps: `(N, C, X, Y, Z)`, the fractions of `CHANNELS`, 0 to 1.
        spacing: of them, mm, the same along all axes.

    Raises:
        UserError: when there are none, they cannot be read, or they are not of one shape and spacing.
    """

    def __init__(self, folder: str | Path) -> None:
        paths = sorted(Path(folder).glob(PATTERN)) if str(folder) else []
        if not paths:
            raise UserError(
                f"no tissue maps ({PATTERN}) in '{folder}'; write them with sa-swin phantom tissues --output FOLDER, "
                "and give it with --anatomies FOLDER"
            )
        try:
            images = [nib.as_closest_canonical(nib.load(path)) for path in paths]
            arrays = [np.moveaxis(np.asarray(image.dataobj, dtype=np.uint8), -1, 0) for image in images]
        except (OSError, EOFError, ValueError, nib.filebasedimages.ImageFileError) as error:
            raise UserError(f"{folder}: a tissue map cannot be read: {error}") from error
        forms = {(image.shape, tuple(np.round(image.header.get_zooms()[:3], 4))) for image in images}
        (shape, zooms), *others = forms
        if others or len(shape) != 4 or shape[3] != len(CHANNELS) or len(set(zooms)) != 1:
            found = "; ".join(f"{shape} at {zooms} mm" for shape, zooms in sorted(forms))
            raise UserError(f"{folder}: expected maps X, Y, Z, {len(CHANNELS)} of one shape and spacing, got {found}")
        self.maps: Tensor = torch.from_numpy(np.stack(arrays)).float() / 255
        self.spacing = float(zooms[0])
        self.on: dict[torch.device, Tensor] = {}

    def __len__(self) -> int:
        return len(self.maps)

    def sample(self, heads: Sequence[int], points: Tensor, channels: slice = slice(None)) -> Tensor:
        """Linear interpolation of heads' channels at points, `(B, C, X, Y, Z)`; zero outside.

        Args:
            heads: which, for each row.
            points: `(B, X, Y, Z, 3)` mm, the centre of the map at the origin.
            channels: of `CHANNELS`.
        """
        maps = self.on.setdefault(points.device, self.maps)  # the CPU's stay, for workers that paint there
        if maps.device != points.device:
            maps = self.on[points.device] = self.maps.to(points.device)
        extent = (torch.tensor(maps.shape[2:], device=points.device) - 1) * self.spacing / 2
        grid = (points / extent).flip(-1)  # grid_sample wants z, y, x
        rows = [F.grid_sample(maps[head : head + 1, channels], grid[row : row + 1], align_corners=True)
                for row, head in enumerate(heads)]  # fmt: skip
        return torch.cat(rows)
