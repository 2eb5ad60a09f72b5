"""Painted brains where a cohort would stand: placeholders in a training that paints, and a fixed set to validate on."""

from collections.abc import Mapping
from typing import Any

import torch
from monai.transforms import Transform

from custom.painting.painter import Painter
from custom.support.draws import Draws


def placeholders(count: int, channels: int) -> list[dict[str, Any]]:
    """Cases of a training whose brains are all painted on the device: what stands in for their images is one voxel."""
    return [
        {"image": torch.zeros(2 * channels, 1, 1, 1), "subject": f"painted-{number}", "number": number}
        for number in range(count)
    ]


class PaintBrain(Transform):
    """Paint a brain in the place of a placeholder, always the same one: a function of the seed and its number.

    `rescan` is the same head by another scanner.

    Args:
        painter: of it.
        seed: of the set.
    """

    def __init__(self, painter: Painter, seed: int = 0) -> None:
        self.painter = painter
        self.seed = seed

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(1_000_003 * (self.seed + 1) + data["number"])
        painting = self.painter(Draws(generator, 1), scanners=2)
        return {
            **data,
            "image": painting.pairs[0][0],
            "rescan": painting.pairs[1][0],
            "healthy": bool(painting.healthy[0]),
            "labels": painting.labels[0],
        }
