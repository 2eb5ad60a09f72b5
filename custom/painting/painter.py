"""The painter: from tissue maps and random numbers to symmetric pairs, with the labels of each place."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from monai.utils import ensure_tuple_rep, look_up_option
from torch import Tensor

from custom.losses.dense import UNKNOWN
from custom.painting.anatomies import TISSUES, Anatomies
from custom.painting.lesions import pushed, random_lesions
from custom.painting.scanner import painted, scanned
from custom.painting.shapes import grid_points, lattice, places
from custom.support.draws import Draws
from custom.support.errors import UserError
from custom.symmetry import LATERAL_AXIS, mirror, symmetric_pair
from custom.transforms.asymmetry_channel import with_asymmetry
from custom.transforms.intensity import standardize_mr, window_ct

CLASSES = ("air", "csf", "gm", "wm", "outside the brain")
"""Classes of the tissue labels; `UNKNOWN` where nothing can be said."""
BARE = 0.3
"""Share of the heads without skull and scalp."""


@dataclass(frozen=True)
class Painting:
    """A batch of painted brains, seen by one scanner after the other.

    Args:
        pairs: one for each scanner, `(B, 2C, X, Y, Z)`, as `custom.transforms.InputContract` makes them of files.
        tissue: `(B, 1, X, Y, Z)`, indices of `CLASSES`; `UNKNOWN` in the lesion.
        lesion: `(B, 1, X, Y, Z)` bool.
        healthy: `(B,)` bool.
    """

    pairs: list[Tensor]
    tissue: Tensor
    lesion: Tensor
    healthy: Tensor

    @property
    def labels(self) -> Tensor:
        """Of each place: tissue, lesion, and whether it and its homologous place are healthy, `(B, 3, X, Y, Z)`."""
        free = ~self.lesion
        alike = free & mirror(free) & (self.tissue != 0)
        return torch.cat([self.tissue, *(label.to(self.tissue) for label in (self.lesion, alike))], 1)


class Painter:
    """Paints brains that nobody has: anatomies deformed at random, with and without lesions, in random contrasts.

    All of it is tensor functions of a batch, on the device of the generator it is given.

    Args:
        anatomies: tissue maps, or the folder of `Anatomies`.
        modality: `MR` or `CT`.
        channels: contrasts C of each head.
        spacing: mm.
        spatial_size: X, Y, Z in voxels.
        share: of a batch's brains that are painted, above 0 to 1.
        counterpart: of the pairs; `mirror` is all there is here.
        asymmetry_map: as in `custom.transforms.InputContract`.

    Raises:
        UserError: no tissue maps, another share or counterpart.

    References:
        Billot et al., SynthSeg, Medical Image Analysis 2023 (contrasts none of nature's); Liu et al., Brain-ID,
        arXiv 2311.16914.
    """

    def __init__(
        self,
        anatomies: Anatomies | str,
        modality: str = "MR",
        channels: int = 1,
        spacing: float | Sequence[float] = 1.0,
        spatial_size: Sequence[int] = (192, 224, 192),
        share: float = 1.0,
        counterpart: str = "mirror",
        asymmetry_map: bool = False,
    ) -> None:
        if not 0 < share <= 1:
            raise UserError(f"painted must be a share of the brains, 0 to 1; got {share}")
        if counterpart != "mirror":
            raise UserError(f"painted brains are paired with their mirror images; got --counterpart {counterpart}")
        self.share = share
        self.asymmetry_map = asymmetry_map
        self.anatomies = anatomies if isinstance(anatomies, Anatomies) else Anatomies(anatomies)
        self.modality = look_up_option(modality, ("MR", "CT"))
        self.channels = channels
        self.spacing = ensure_tuple_rep(spacing, 3)
        self.spatial_size = ensure_tuple_rep(spatial_size, 3)

    def __call__(self, draws: Draws, scanners: int = 1) -> Painting:
        """Paint a batch.

        Args:
            draws: its random numbers.
            scanners: pairs of each head, which differ by all that a scanner does.
        """
        size, spacing = self.spatial_size, self.spacing
        points = places(draws, size, spacing)
        voxels = grid_points(size, spacing, points.device).expand_as(points)
        heads = (draws.uniform(0, 1) * len(self.anatomies)).long().clamp_max(len(self.anatomies) - 1).tolist()
        reflected = 1 - 2 * draws.chance(0.5).view(-1, 1, 1, 1, 1) * torch.eye(3, device=points.device)[LATERAL_AXIS]
        before = self.anatomies.sample(heads, points * reflected, slice(1, 3))
        lesions = random_lesions(draws, voxels, before.sum(1))
        sampled = self.anatomies.sample(heads, pushed(lesions, voxels, points) * reflected)
        fractions, brain = sampled[:, : len(TISSUES)], sampled[:, len(TISSUES) :]
        lesion, depth = lesions.drawn(voxels, lattice(draws, 1, 12.0, size, spacing))
        lesion = lesion * (brain > 0.5)
        bare = draws.chance(BARE).view(-1, 1, 1, 1, 1)
        fractions = fractions * ((brain > 0.5) | ~bare)
        pairs = [self.seen(draws, fractions, lesion, depth) for _ in range(scanners)]
        if self.asymmetry_map:
            inside = (brain > 0.5) | mirror(brain > 0.5)
            pairs = [with_asymmetry(pair, spacing, inside) for pair in pairs]
        there = lesion > 0.5  # not what was planned: a small one may lie between the voxels
        return Painting(pairs, tissue_classes(fractions, lesion), there, ~there.flatten(1).any(1))

    def seen(self, draws: Draws, fractions: Tensor, lesion: Tensor, depth: Tensor) -> Tensor:
        """The symmetric pairs that a scanner makes, `(B, 2C, X, Y, Z)`."""
        images = [
            scanned(draws, self.modality, painted(draws, self.modality, fractions, lesion, depth), self.spacing)
            for _ in range(self.channels)
        ]
        standard = window_ct if self.modality == "CT" else standardize_mr
        return symmetric_pair(torch.stack([standard(image) for image in torch.cat(images, 1)]))


def tissue_classes(fractions: Tensor, lesion: Tensor) -> Tensor:
    """Index of `CLASSES` at each place, `(B, 1, X, Y, Z)` uint8; `UNKNOWN` where a lesion has replaced the tissue."""
    csf, gm, wm, *outside = fractions.split(1, 1)
    other = torch.cat(outside, 1).sum(1, keepdim=True)
    air = 1 - fractions.sum(1, keepdim=True)
    classes = torch.cat([air, csf, gm, wm, other], 1).argmax(1, keepdim=True)
    return classes.to(torch.uint8).masked_fill(lesion > 0.5, UNKNOWN)
