"""What of a volume is not head: its intensity, whatever a file has for it."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

BACKGROUND_QUANTILE = 0.02
"""Share of a volume's voxels at or below its background level: enough to pass over undershoots, still air."""


def background_level(image: Tensor) -> float:
    """The intensity of what is not head: 0, -1024, -3.6, whatever the file has."""
    return quantiles(image, (BACKGROUND_QUANTILE,))[0]


def quantiles(channel: Tensor, probabilities: Sequence[float]) -> list[float]:
    """Quantiles of a volume, of which large ones are thinned; numpy's, for torch's sort all values."""
    values = channel.flatten()
    return np.quantile(values[:: max(1, values.numel() // 2**20)].float().cpu().numpy(), probabilities).tolist()
