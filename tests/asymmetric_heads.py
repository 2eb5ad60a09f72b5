"""Synthetic brains with a lesion on one side, for the asymmetry map."""

import torch

from custom.symmetry import mirror
from custom.transforms.asymmetry_map import patch_mean

SPACING = (3.0, 3.0, 3.0)
SIZE = (48, 56, 48)


def radius(center=(0.0, 0.0, 0.0)):
    """Distance (mm) of each voxel of a head from a point, the head's middle being 0."""
    axes = [(torch.arange(n) - (n - 1) / 2) * 3 for n in SIZE]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).sub(torch.tensor(center).view(3, 1, 1, 1)).norm(dim=0)


def head(seed=0, lesion=0.0, side=1, noise=0.3):
    """A brain of symmetric smooth texture and own noise, dark skull, bright scalp; a ball of 15 mm on one side."""
    generator = torch.Generator().manual_seed(seed)
    pattern = patch_mean(torch.randn(1, 1, *SIZE, generator=generator))[0, 0]
    image = 3 + pattern + mirror(pattern) + noise * torch.randn(SIZE, generator=generator)
    image = torch.where(radius((30.0 * side, 0.0, 0.0)) < 15, image + lesion, image)
    image = torch.where(radius() > 54, 0.3, image)  # skull
    image = torch.where(radius() > 60, 6.0, image)  # scalp
    return torch.where(radius() > 66, 0.0, image)[None, None]
