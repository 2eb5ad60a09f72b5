"""What of a volume is not head: its intensity, whatever a file has for it."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

BACKGROUND_QUANTILE = 0.02
"""Share of a volume's voxels at or below its background level: enough to pass over undershoots, still air."""
LEAST_FILL, LEAST_DARKER = 0.4, 0.1
"""Share of a volume that one value fills, and share of the values' range that lies darker, where it is `fill_amid`."""


def background_level(image: Tensor) -> float:
    """The intensity of what is not head: 0, -1024, -3.6, whatever the file has."""
    fill = fill_amid(image)
    return quantiles(image, (BACKGROUND_QUANTILE,))[0] if fill is None else fill


def fill_amid(image: Tensor) -> float | None:
    """The one value around a brain that lies amid those of the brain, as 0 where a stripped brain was normalised.

    None in all other volumes: what surrounds the head is darker there, or nearly so, or not one value.
    """
    values = _thinned(image)
    fill = values[0]  # a corner's
    if np.mean(values == fill) < LEAST_FILL:
        return None
    low, high = np.quantile(values, (BACKGROUND_QUANTILE, 0.995))
    amid = -500 < low < fill < high and fill - low > LEAST_DARKER * (high - low)  # below it, the air of a CT
    return float(fill) if amid else None


def quantiles(channel: Tensor, probabilities: Sequence[float]) -> list[float]:
    """Quantiles of a volume, of which large ones are thinned; numpy's, for torch's sort all values."""
    return np.quantile(_thinned(channel), probabilities).tolist()


def _thinned(channel: Tensor) -> np.ndarray:
    values = channel.flatten()
    return values[:: max(1, values.numel() // 2**20)].float().cpu().numpy()
