"""Lesions of any kind: where, how large, of what shape, on one side, on both, or across the midline.

A lesion is up to `PARTS` warped ellipsoids; the first is the largest and pushes the tissue around it away.
Shapes: B brains, K parts; points are `(B, X, Y, Z, 3)` in mm.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from custom.support.draws import Draws

PARTS = 3
HEALTHY, ONE_SIDED, BOTH_SIDES = 0.25, 0.6, 0.1
"""Shares of the brains without a lesion, with one on one side, and with its like at the mirrored place, too; what is
left has it across the midline."""
VOLUME_ML = (2.0, 100.0)
"""Smallest and largest volume of the first part, log-uniform; the others have 3 to 30 % of it."""
PUSH = 0.5
"""Largest mass effect: how much of the tissue's distance to the centre is taken away there."""
EDGE_MM = 1.0
"""Over which a lesion fades into the tissue."""


@dataclass(frozen=True)
class Lesions:
    """The lesions of a batch, before they are drawn.

    Args:
        centres: `(B, K, 3)` mm.
        radii: `(B, K)` mm; 0 where there is none.
        stretch: `(B, K, 3, 3)`: a lesion's distance is that of an ellipsoid.
        twin: `(B,)`: whether the mirrored place has its like.
        push: `(B,)`: of the first part.
    """

    centres: Tensor
    radii: Tensor
    stretch: Tensor
    twin: Tensor
    push: Tensor

    @property
    def healthy(self) -> Tensor:
        """Brains without a lesion, `(B,)`."""
        return self.radii.amax(1) == 0

    def folded(self, points: Tensor) -> Tensor:
        """Points, those of a brain with twins reflected onto the side of its centres."""
        side = torch.where(self.centres[:, 0, 0] < 0, -1.0, 1.0).view(-1, 1, 1, 1)
        lateral = torch.where(self.twin.view(-1, 1, 1, 1), side * points[..., 0].abs(), points[..., 0])
        return torch.cat([lateral[..., None], points[..., 1:]], -1)

    def drawn(self, points: Tensor, texture: Tensor) -> tuple[Tensor, Tensor]:
        """How much of each place is lesion, and how far inside it lies, `(B, 1, X, Y, Z)` each, 0 to 1.

        Args:
            points: of the voxels.
            texture: `(B, 1, X, Y, Z)`, random field that makes outlines irregular.
        """
        near, fraction, depth = self.folded(points), 0, 0
        for k in range(PARTS):
            away = torch.einsum("bij,bxyzj->bxyzi", self.stretch[:, k], near - self.centres[:, k].view(-1, 1, 1, 1, 3))
            radius = self.radii[:, k].view(-1, 1, 1, 1)
            distance = away.norm(dim=-1) + 0.25 * radius * texture[:, 0]
            part = torch.sigmoid((radius - distance) / EDGE_MM) * (radius > 0)
            fraction = torch.maximum(part, torch.as_tensor(fraction).to(part))
            inside = (1 - distance / radius.clamp_min(1)).clamp(0, 1) * (radius > 0)
            depth = torch.maximum(inside, torch.as_tensor(depth).to(inside))
        return fraction[:, None], depth[:, None]


def pushed(lesions: Lesions, voxels: Tensor, points: Tensor) -> Tensor:
    """Where the anatomy is read once the first part has pushed the tissue around it away, `(B, X, Y, Z, 3)` mm.

    Args:
        lesions: of the batch.
        voxels: `(B, X, Y, Z, 3)`, the places of the volume.
        points: where the anatomy would be read without.
    """
    near = lesions.folded(voxels)
    away = near - lesions.centres[:, 0].view(-1, 1, 1, 1, 3)
    reach = (1.6 * lesions.radii[:, 0]).clamp_min(1).view(-1, 1, 1, 1)
    weight = lesions.push.view(-1, 1, 1, 1) * torch.exp(-((away.norm(dim=-1) / reach) ** 2))
    shift = -weight[..., None] * away
    back = torch.where(near[..., :1] == voxels[..., :1], 1.0, -1.0)
    return points + torch.cat([shift[..., :1] * back, shift[..., 1:]], -1)


def random_lesions(draws: Draws, points: Tensor, tissue: Tensor) -> Lesions:
    """Lesions whose centres are in the tissue of the brain, those of one brain on one side.

    Args:
        draws: of the batch.
        points: `(B, X, Y, Z, 3)` of the voxels, mm.
        tissue: `(B, X, Y, Z)`, fraction of grey and white matter.
    """
    kind = draws.uniform(0, 1)
    healthy, midline = kind < HEALTHY, kind >= HEALTHY + ONE_SIDED + BOTH_SIDES
    twin = (kind >= HEALTHY + ONE_SIDED) & ~midline
    side = torch.where(draws.chance(0.5), 1.0, -1.0)
    lateral = points[..., 0] * side.view(-1, 1, 1, 1)
    allowed = torch.where(midline.view(-1, 1, 1, 1), lateral.abs() < 4, lateral > 8) & (tissue > 0.6)
    centres = torch.stack([chosen(draws.uniform(0, 1), points, allowed) for _ in range(PARTS)], 1)
    low, high = VOLUME_ML
    volume = low * (high / low) ** draws.uniform(0, 1, 1)
    volume = volume * torch.cat([torch.ones_like(volume), draws.uniform(0.03, 0.3, PARTS - 1)], 1)
    radii = (3000 * volume / (4 * torch.pi)) ** (1 / 3)
    there = torch.cat([~healthy[:, None], draws.chance(0.3, PARTS - 1) & ~healthy[:, None]], 1)
    rotation, _ = torch.linalg.qr(draws.normal(PARTS, 3, 3))
    stretch = rotation * torch.exp(0.25 * draws.normal(PARTS, 1, 3))
    push = draws.uniform(0, PUSH) * draws.chance(0.5)
    return Lesions(centres, radii * there, stretch, twin, push)


def chosen(share: Tensor, points: Tensor, allowed: Tensor) -> Tensor:
    """One of the allowed points of each brain, `(B, 3)`: the one at a share, `(B,)` in 0-1, of their number."""
    counts = allowed.flatten(1).cumsum(1)
    wanted = 1 + (share * counts[:, -1]).long()
    index = torch.searchsorted(counts, wanted[:, None].to(counts)).clamp_max(counts.shape[1] - 1)
    return points.flatten(1, 3).gather(1, index[..., None].expand(-1, -1, 3))[:, 0]
