"""What a scanner makes of tissue: contrasts of nature and none of nature's, bias, thick slices, blur and noise.

Shapes: B brains, T tissues; volumes are `(B, 1, X, Y, Z)`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from custom.painting.shapes import lattice
from custom.support.draws import Draws

NATURAL = {
    #        csf   gm    wm    bone  marrow fat  muscle
    "T1w": (0.22, 0.62, 0.92, 0.07, 0.60, 1.15, 0.50),
    "FLAIR": (0.13, 0.68, 0.54, 0.06, 0.35, 0.75, 0.36),
    "T2w": (1.10, 0.62, 0.45, 0.05, 0.45, 0.70, 0.25),
    "PD": (0.85, 0.80, 0.62, 0.08, 0.50, 0.80, 0.55),
}
"""Values of `custom.painting.anatomies.TISSUES` in units of about white matter on T1w; air has none."""
HOUNSFIELD = (5.0, 37.0, 28.0, 1150.0, 450.0, -90.0, 50.0)
AIR_HU = -1000.0
NATURE = 0.6
"""Share of the MR contrasts that are of nature, each value a tenth off; the others are uniform random."""
FAINTEST, STRONGEST = 0.1, 0.8
"""How far a lesion's value lies from white matter's, on the scale of `NATURAL`."""
LESION_HU = (-28.0, 45.0)
"""Range of a lesion's difference to white matter on CT."""


def tissue_values(draws: Draws, modality: str, tissues: int) -> Tensor:
    """A value for each tissue, `(B, T)`: on CT in HU, on MR of about 0 to 1.2."""
    if modality == "CT":
        return torch.tensor(HOUNSFIELD, device=draws.generator.device) * (1 + 0.08 * draws.normal(tissues))
    table = torch.tensor([*NATURAL.values()], device=draws.generator.device)
    picked = (draws.uniform(0, 1) * len(table)).long().clamp_max(len(table) - 1)
    natural = table[picked] * (1 + 0.1 * draws.normal(tissues))
    return torch.where(draws.chance(NATURE, 1), natural, draws.uniform(0, 1.2, tissues))


def lesion_values(draws: Draws, modality: str, white: Tensor) -> Tensor:
    """Values of a lesion's rim and core, `(B, 2)`, given white matter's, `(B,)`."""
    if modality == "CT":
        return white[:, None] + draws.uniform(*LESION_HU, 2)
    amount = FAINTEST * (STRONGEST / FAINTEST) ** draws.uniform(0, 1, 2)
    sign = torch.where(draws.chance(0.5, 2), 1.0, -1.0)
    return white[:, None] + sign * amount


def painted(draws: Draws, modality: str, fractions: Tensor, lesion: Tensor, depth: Tensor) -> Tensor:
    """Values of tissue and lesion, `(B, 1, X, Y, Z)`.

    Args:
        draws: of the batch.
        modality: `MR` or `CT`.
        fractions: of the tissues, `(B, T, X, Y, Z)`.
        lesion: how much of each place is lesion, `(B, 1, X, Y, Z)`.
        depth: how far inside it lies.
    """
    values = tissue_values(draws, modality, fractions.shape[1])
    air = AIR_HU if modality == "CT" else 0.0
    image = air + torch.einsum("bt,btxyz->bxyz", values - air, fractions)[:, None]
    rim, core = lesion_values(draws, modality, values[:, 2])[..., None, None, None, None].unbind(1)
    inner = torch.sigmoid((depth - draws.uniform(0.2, 0.9)[:, None, None, None, None]) / 0.05)
    cover = lesion * draws.uniform(0.5, 1.0)[:, None, None, None, None]
    return image + cover * (rim + inner * (core - rim) - image)


def scanned(draws: Draws, modality: str, image: Tensor, spacing: Sequence[float]) -> Tensor:
    """The image with texture and, on MR, bias field and Rician noise, seen through a blur that may be a thick slice's.

    Args:
        draws: of the batch.
        modality: `MR` or `CT`.
        image: `(B, 1, X, Y, Z)`.
        spacing: mm.
    """
    size = image.shape[2:]
    if modality == "CT":
        return blurred(image, draws.uniform(0.1, 0.8, 3)) + draws.noise(1, *size) * per_row(draws.uniform(2, 5))
    texture = 0.08 * per_row(draws.uniform(0, 1)) * lattice(draws, 1, 6.0, size, spacing)
    bias = 0.3 * per_row(draws.uniform(0, 1)) * lattice(draws, 1, 90.0, size, spacing)
    image = image.clamp_min(0) * torch.exp(texture + bias)
    axis = F.one_hot((draws.uniform(0, 1) * 3).long().clamp_max(2), 3)
    widths = draws.uniform(0.1, 0.7, 3) + draws.chance(0.3, 1) * axis * draws.uniform(0.3, 1.3, 1)
    sigma = per_row(draws.uniform(0.005, 0.06))
    real, imaginary = (sigma * draws.noise(1, *size) for _ in range(2))
    image = torch.hypot(blurred(image, widths) + real, imaginary)
    return image ** torch.exp(per_row(draws.uniform(-0.3, 0.3)))


def per_row(values: Tensor) -> Tensor:
    """One number for each volume, `(B,)` to `(B, 1, 1, 1, 1)`."""
    return values.view(-1, 1, 1, 1, 1)


def blurred(volumes: Tensor, widths: Tensor, radius: int = 4) -> Tensor:
    """Gaussian blur of each volume along each axis by its own standard deviation.

    Args:
        volumes: `(B, 1, X, Y, Z)`.
        widths: `(B, 3)`, voxels.
        radius: of the kernel, voxels.
    """
    offsets = torch.arange(-radius, radius + 1, device=volumes.device)
    for axis in range(3):
        kernel = torch.softmax(-0.5 * (offsets / widths[:, axis, None]) ** 2, 1)
        shape, padding = [len(volumes), 1, 1, 1, 1], [0] * 6
        shape[2 + axis], padding[4 - 2 * axis], padding[5 - 2 * axis] = len(offsets), radius, radius
        rows = F.pad(volumes.transpose(0, 1), padding, mode="replicate")
        volumes = F.conv3d(rows, kernel.view(shape), groups=len(volumes)).transpose(0, 1)
    return volumes
